package outbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/internal/events"
	"outflow/internal/kafkatest"
	"outflow/internal/pgtest"
)

// What other transactions commit flows on beside one that has been open for
// long, here and in another database of the cluster, and its age is told.
func TestRow02LongTransaction(t *testing.T) {
	t.Parallel()
	for _, source := range []Source{SourceAuto, SourcePoll} {
		t.Run(string(source), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			wr, long := w.writer(t, 5), w.writer(t, 1)
			r := w.run(t, quick, func(c *Config) { c.Source = source })
			active := func(s Stats) bool { return s.State == StateStreaming || s.State == StatePolling }
			r.await(t, "active", active)
			other := pgtest.New(t)
			elsewhere, err := other.Pool.Begin(t.Context())
			require.NoError(t, err)
			defer func() { _ = elsewhere.Rollback(context.Background()) }()
			_, err = elsewhere.Exec(t.Context(), `CREATE TABLE t (n int)`)
			require.NoError(t, err)
			began := time.Now()
			here, err := w.db.Pool.Begin(t.Context())
			require.NoError(t, err)
			defer func() { _ = here.Rollback(context.Background()) }()
			_, err = here.Exec(t.Context(), change, long.aggregates[0])
			require.NoError(t, err)

			wr.write(t, 20)
			r.await(t, "published", func(s Stats) bool { return s.Published == 20 })
			r.await(t, "an age", func(s Stats) bool {
				return !s.OldestTransaction.IsZero() && s.OldestTransaction.Before(began.Add(time.Second))
			})
			// A relay that begins while they are open publishes too, though no
			// slot can be made before they end.
			require.NoError(t, r.stop())
			if source == SourceAuto {
				w.dropSlot(t)
			}
			wr.write(t, 20)
			r = w.run(t, quick, func(c *Config) { c.Source = source })
			r.await(t, "published", func(s Stats) bool { return s.Published == 20 })
			require.NoError(t, here.Commit(t.Context()))
			r.await(t, "the long one published", func(s Stats) bool { return s.Published == 21 })
			require.NoError(t, elsewhere.Rollback(t.Context()))
			r.await(t, "active", active)
			wr.write(t, 5)
			w.equal(t)
		})
	}
}

// large inserts an event that is as large as one may be, and hardly compresses.
func (w *world) large(t *testing.T) (id, after string) {
	t.Helper()
	noise := make([]byte, (MaxEventSize-8)/2)
	_, _ = rand.Read(noise) // never fails
	after = `{"n":"` + hex.EncodeToString(noise)[:MaxEventSize-16] + `"}`
	require.NoError(t, w.db.Pool.QueryRow(t.Context(), `
INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, after, metadata, occurred_at)
SELECT id, 'order', id, 1, 'order.updated.v1', id::text, $1::text::json, '{}', clock_timestamp() FROM gen_random_uuid() AS id
RETURNING event_id::text`, after).Scan(&id))
	return id, after
}

func TestRow10EventOfAMegabyteIsIntact(t *testing.T) {
	t.Parallel()
	for _, source := range []Source{SourceAuto, SourcePoll} {
		t.Run(string(source), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			want := map[string]string{}
			insert := func() { id, after := w.large(t); want[id] = after }
			insert()
			r := w.run(t, func(c *Config) { c.Source = source })
			r.await(t, "published", func(s Stats) bool { return s.Published == 1 && (s.State == StateStreaming || s.State == StatePolling) })
			insert()
			w.equal(t)
			k := w.kafka.Client(t, kgo.ConsumeTopics(w.kafka.Namespace.Topic("order")), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for got := 0; got < len(want); {
				fetches := k.PollFetches(ctx)
				require.NoError(t, fetches.Err())
				for _, record := range fetches.Records() {
					e, err := events.Decode(record)
					require.NoError(t, err)
					require.Equal(t, want[e.ID.String()], string(e.After))
					got++
				}
			}
		})
	}
}

// A topic whose limit somebody lowered takes no large record: that is told, and
// publishing goes on as soon as the limit is right, without help.
func TestRow10RecordOverTheLimitOfItsTopic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	limit := func(bytes string) {
		_, err := w.kafka.Admin().AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &bytes}}, w.kafka.Namespace.Topic("order"))
		require.NoError(t, err)
	}
	limit("100000")
	w.large(t)
	wr.write(t, 5)
	r.await(t, "the error", func(s Stats) bool { return s.Failures > 1 })
	require.Contains(t, r.Stats().LastError, w.kafka.Namespace.Topic("order")+": MESSAGE_TOO_LARGE")
	limit("1048588")
	r.await(t, "published", func(s Stats) bool { return s.Published == 6 })
	w.equal(t)
}

// The leaders of partitions move from broker to broker under load.
func TestRow11LeaderMoves(t *testing.T) {
	t.Parallel()
	w := &world{db: pgtest.New(t), kafka: kafkatest.Fake(t, kfake.NumBrokers(3))}
	wr := w.writer(t, 20)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	stop := wr.adverse(t, 4)
	for range 20 {
		w.kafka.Fake.ShufflePartitionLeaders()
		published := r.Stats().Published
		r.await(t, "published", func(s Stats) bool { return s.Published > published+20 })
	}
	stop()
	w.equal(t)
	require.Zero(t, r.Stats().Heals)
	require.Zero(t, r.Stats().Failures, "what was begun goes to the new leader")
	var all int64
	require.NoError(t, w.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&all))
	require.Equal(t, all, r.Stats().Published)
}
