package outbox

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/kafkatest"
	"outflow/internal/pgtest"
	"outflow/internal/postgres"
)

// What follows is about transactions that are in the log and not visible, or
// visible and not in the log.

// standbyWorld is a world whose server waits for a synchronous standby that
// does not exist, for whoever sets synchronous_commit on.
func standbyWorld(t *testing.T) (w *world, admin func(sql string)) {
	t.Helper()
	server := pgtest.NewServer(t)
	w = &world{db: server.DB(t), kafka: kafkatest.Start(t)}
	conn, err := pgx.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	admin = func(sql string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	admin(`ALTER SYSTEM SET synchronous_commit = local`)
	admin(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	admin(`SELECT pg_reload_conf()`)
	return w, admin
}

// waiting commits a change that is in the log and waits for the standby, and
// so is visible to nobody. The channel tells when that is over.
func (w *world) waiting(t *testing.T) <-chan error {
	t.Helper()
	wr := w.writer(t, 1)
	conn, err := pgx.Connect(t.Context(), w.db.URL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(t.Context(), `SET synchronous_commit = on`)
	require.NoError(t, err)
	committed := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), change, wr.aggregates[0])
		committed <- err
	}()
	require.Eventually(t, func() bool {
		var waits bool
		require.NoError(t, w.db.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')`).Scan(&waits))
		return waits
	}, patience, time.Millisecond)
	return committed
}

// endOfWaiting lets commits go on without the standby.
const endOfWaiting = `ALTER SYSTEM SET synchronous_standby_names = ''`

// A transaction that waits for a synchronous standby is in the log, and so on
// Kafka, long before any snapshot shows it. Healing must not repeat it when it
// becomes visible.
func TestHealingLeavesOutWhatIsPublishedButNotVisible(t *testing.T) {
	t.Parallel()
	for name, interval := range map[string]time.Duration{"named by the checkpoint": 10 * time.Millisecond, "past the checkpoint": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slowly := func(c *Config) { quick(c); c.checkpointInterval = interval }
			w, admin := standbyWorld(t)
			wr := w.writer(t, 5)
			r := w.run(t, slowly)
			r.awaitState(t, StateStreaming)
			wr.write(t, 5)
			r.await(t, "published", func(s Stats) bool { return s.Published == 5 })
			committed := w.waiting(t)
			r.await(t, "published", func(s Stats) bool { return s.Published == 6 })
			var visible int
			require.NoError(t, w.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&visible))
			require.Equal(t, 5, visible)
			// A checkpoint, if there is one, and commits that carry it.
			began := time.Now()
			for n := int64(6); n < 11 || interval < time.Hour && r.Stats().Checkpoint.Before(began); {
				wr.write(t, 1)
				n++
				r.await(t, "published", func(s Stats) bool { return s.Published == n })
			}
			published := r.Stats().Published
			w.dropSlot(t)
			r.await(t, "healing", func(s Stats) bool { return s.Heals == 1 && s.State == StateCatchingUp })
			wr.write(t, 5)
			r.await(t, "published", func(s Stats) bool { return s.Published == published+5 })
			// On the way back the relay is replaced.
			require.NoError(t, r.stop())
			r = w.run(t, slowly)
			wr.write(t, 5)
			r.await(t, "published", func(s Stats) bool { return s.Published == 5 })
			require.Equal(t, StateCatchingUp, r.Stats().State)
			admin(endOfWaiting)
			admin(`SELECT pg_reload_conf()`)
			require.NoError(t, <-committed)
			r.awaitState(t, StateStreaming)
			wr.write(t, 5)
			w.equal(t)
		})
	}
}

// The stream must not take over before everything in the log up to where it
// begins is visible, and so published.
func TestHandoverWaitsForWhatIsNotVisible(t *testing.T) {
	t.Parallel()
	w, admin := standbyWorld(t)
	wr := w.writer(t, 5)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming) // and there is a slot
	require.NoError(t, r.stop())
	committed := w.waiting(t)
	wr.write(t, 5)
	r = w.run(t, quick, func(c *Config) { c.catchUpBytes = 1 })
	r.await(t, "published", func(s Stats) bool { return s.Published == 5 })
	wr.write(t, 5)
	r.await(t, "published", func(s Stats) bool { return s.Published == 10 })
	require.Never(t, func() bool { return r.Stats().State == StateStreaming }, time.Second, 10*time.Millisecond)
	admin(endOfWaiting)
	admin(`SELECT pg_reload_conf()`)
	require.NoError(t, <-committed)
	r.awaitState(t, StateStreaming)
	w.equal(t)
}

// A transaction that committed with synchronous_commit off is visible before
// it is in the log. A crash must not take back what was published.
func TestRow07NothingIsPublishedThatACrashTakesBack(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t, func(c *postgres.Config) { c.Settings["wal_writer_delay"] = "10s" })
	w := &world{db: server.DB(t), kafka: kafkatest.Start(t)}
	wr := w.writer(t, 5)
	poll := func(c *Config) { quick(c); c.Source = SourcePoll }
	r := w.run(t, poll)
	r.awaitState(t, StatePolling)
	conn, err := pgx.Connect(t.Context(), w.db.URL)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `SET synchronous_commit = off`)
	require.NoError(t, err)
	// The server may put the log on disk by itself before it is killed, if
	// seldom: then it is done once more. A relay that waits for the disk has it
	// there every time.
	for round, flushed := int64(1), true; flushed && round <= 4; round++ {
		for _, id := range wr.aggregates {
			_, err = conn.Exec(t.Context(), change, id)
			require.NoError(t, err)
		}
		var end string
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&end))
		r.await(t, "published", func(s Stats) bool { return s.Published == 5*round })
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn`, end).Scan(&flushed))
	}
	require.NoError(t, server.Kill(syscall.SIGQUIT))
	require.NoError(t, server.Restart(t.Context()))
	_ = conn.Close(t.Context())
	w.db.Pool.Reset()
	r.awaitState(t, StatePolling)
	wr.write(t, 5)
	w.equal(t)
}

// A row that was moved brings its old xid with it: its event is published.
func TestMovedRowsAreNotPublishedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	wr.write(t, 10)
	r.await(t, "published", func(s Stats) bool { return s.Published == 10 })
	_, err := w.db.Pool.Exec(t.Context(), `WITH moved AS (DELETE FROM outbox RETURNING *) INSERT INTO outbox OVERRIDING SYSTEM VALUE SELECT * FROM moved`)
	require.NoError(t, err)
	r.await(t, "left out", func(s Stats) bool { return s.LeftOut == 10 })
	wr.write(t, 10)
	w.equal(t)
}

// Who reads the outbox and goes on in Kafka, from where that ended before, must
// not miss what is in Kafka and wasn't visible yet.
func TestAReadingWaitsForWhatIsPublishedButNotVisible(t *testing.T) {
	t.Parallel()
	w, admin := standbyWorld(t)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	committed := w.waiting(t)
	r.await(t, "published", func(s Stats) bool { return s.Published == 1 })
	log, err := OpenLog(t.Context(), w.db.URL)
	require.NoError(t, err)
	t.Cleanup(log.Close)
	_, err = log.conn.Exec(t.Context(), `SET synchronous_commit = on`)
	require.NoError(t, err)
	type reading struct {
		events int
		err    error
	}
	read := make(chan reading, 1)
	go func() {
		var got reading
		got.err = log.ByPosition(context.Background(), domain.AggregateTypes, 0, func(page []domain.Event, _ int64) error {
			got.events += len(page)
			return nil
		})
		read <- got
	}()
	require.Eventually(t, func() bool {
		var waits int
		err := w.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&waits)
		return len(read) > 0 || err == nil && waits == 2
	}, patience, time.Millisecond)
	admin(endOfWaiting)
	admin(`SELECT pg_reload_conf()`)
	require.NoError(t, <-committed)
	require.Equal(t, reading{events: 1}, <-read)
}
