package outbox

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"outflow/internal/kafkatest"
	"outflow/internal/pgtest"
)

// Row 12: Kafka lost what it had acknowledged. The events come back from the
// outbox.
func TestRow12KafkaLostData(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*world) string{
		"topic":    func(w *world) string { return w.kafka.Namespace.Topic("order") },
		"progress": func(w *world) string { return w.kafka.Namespace.Progress("main") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			wr := w.writer(t, 5)
			r := w.run(t, quick)
			r.awaitState(t, StateStreaming)
			wr.write(t, 100)
			r.await(t, "published", func(s Stats) bool { return s.Published == 100 })
			wr.write(t, 1) // its progress knows where the topics end
			r.await(t, "published", func(s Stats) bool { return s.Published == 101 })
			require.NoError(t, r.stop())
			wr.write(t, 10)
			w.kafka.DeleteTopic(t, lose(w))
			r = w.run(t, quick)
			r.await(t, "healed", func(s Stats) bool { return s.Heals == 1 && s.State == StateStreaming })
			wr.write(t, 10)
			w.equal(t)
		})
	}
}

// What topics do not hold can't be told from what was never published when
// they drop events by themselves.
func TestHealingIsRefusedWhereTopicsForget(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	wr.write(t, 100)
	r.await(t, "published", func(s Stats) bool { return s.Published == 100 })
	require.NoError(t, r.stop())
	w.kafka.DeleteTopic(t, w.kafka.Namespace.Progress("main"))
	ends, err := w.kafka.Admin().ListEndOffsets(t.Context(), w.kafka.Namespace.Topic("order"))
	require.NoError(t, err)
	gone, err := w.kafka.Admin().DeleteRecords(t.Context(), ends.Offsets())
	require.NoError(t, err)
	require.NoError(t, gone.Error())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.ErrorContains(t, NewRelay(w.config(quick)).Run(ctx), "no longer holds its first events")
}

// Another database in the place of the one that was published from: refused,
// with a way out that works. Its rows carry transaction ids of another cluster.
func TestRestoredElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	wr.write(t, 50)
	r.await(t, "published", func(s Stats) bool { return s.Published == 50 })
	require.NoError(t, r.stop())
	wr.write(t, 20)

	// Dumped and restored, with ids that this cluster has not reached yet.
	restored := &world{db: pgtest.New(t), kafka: w.kafka}
	from, err := pgx.Connect(t.Context(), w.db.URL)
	require.NoError(t, err)
	defer func() { _ = from.Close(context.Background()) }()
	rows, err := from.Query(t.Context(), `SELECT position, (xid::text::bigint + CASE WHEN position % 2 = 0 THEN 1000000000 ELSE 0 END)::text, event_id::text, aggregate_type, aggregate_id::text, aggregate_version, type, key, before::text, after::text, metadata::text, occurred_at FROM outbox ORDER BY position`)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
	require.NoError(t, err)
	require.Len(t, all, 70)
	for _, v := range all {
		_, err := restored.db.Pool.Exec(t.Context(), `INSERT INTO outbox (position, xid, event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
OVERRIDING SYSTEM VALUE VALUES ($1, $2::text::xid8, $3::text::uuid, $4, $5::text::uuid, $6, $7, $8, $9::text::json, $10::text::json, $11::text::json, $12)`, v...)
		require.NoError(t, err)
	}
	_, err = restored.db.Pool.Exec(t.Context(), `SELECT setval(pg_get_serial_sequence('outbox', 'position'), (SELECT max(position) FROM outbox))`)
	require.NoError(t, err)
	_, err = w.db.Pool.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, w.slotName())
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err = NewRelay(restored.config(quick)).Run(ctx)
	require.ErrorContains(t, err, "came from database")
	require.ErrorContains(t, err, "resync")

	r = restored.run(t, quick, func(c *Config) { c.Resync = true })
	r.awaitState(t, StateStreaming)
	require.EqualValues(t, 20, r.Stats().Published)
	fresh := restored.writer(t, 3)
	fresh.write(t, 20)
	restored.equal(t)
}

// A promoted server carries on by itself when it holds all that is published.
func TestPromotion(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	w := &world{db: server.DB(t), kafka: kafkatest.Start(t)}
	wr := w.writer(t, 5)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	wr.write(t, 50)
	r.await(t, "published", func(s Stats) bool { return s.Published == 50 })
	var dir string
	require.NoError(t, w.db.Pool.QueryRow(t.Context(), `SHOW data_directory`).Scan(&dir))
	require.NoError(t, server.Kill(syscall.SIGINT))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o644))
	require.NoError(t, server.Restart(t.Context()))
	w.db.Pool.Reset()
	r.await(t, "refusal of a standby", func(s Stats) bool { return s.Failures > 0 && s.State == StateStarting })
	_, err := w.db.Pool.Exec(t.Context(), `SELECT pg_promote()`)
	require.NoError(t, err)
	r.awaitState(t, StateStreaming)
	wr.write(t, 50)
	r.await(t, "published", func(s Stats) bool { return s.Published == 100 })
	w.equal(t)

	// What it does not hold can't be mended without a person.
	s := &session{Relay: r.Relay, log: r.cfg.Logger, db: w.db.Pool}
	s.server, err = s.identify(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, s.server.timeline)
	p := progress{System: s.server.system, Database: s.server.database, Timeline: 1, Phase: phaseStream, LSN: 1 << 60}
	require.ErrorContains(t, s.compare(t.Context(), &p), "are in Kafka and not in this database")
	p.LSN = 1
	require.NoError(t, s.compare(t.Context(), &p))
}
