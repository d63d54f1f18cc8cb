package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/events"
	"outflow/internal/failpoint"
	"outflow/internal/failpoint/mutanttest"
	"outflow/internal/kafkatest"
	"outflow/internal/pgtest"
)

var patience = mutanttest.Patience(5 * time.Minute)

// A world is a database and a broker, with relays between them.
type world struct {
	db    *pgtest.DB
	kafka *kafkatest.Kafka
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{db: pgtest.New(t), kafka: kafkatest.Start(t)}
}

func (w *world) config(change ...func(*Config)) Config {
	c := Config{
		PostgresURL: w.db.URL, Brokers: w.kafka.Brokers, Namespace: w.kafka.Namespace,
		KafkaOptions:    kafkatest.Opts(),
		PollInterval:    5 * time.Millisecond,
		IdleInterval:    50 * time.Millisecond,
		StandbyInterval: 20 * time.Millisecond,
	}
	if os.Getenv("OUTFLOW_TEST_LOG") != "" {
		c.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// A running relay.
type running struct {
	*Relay
	stop func() error // waits for Run, and returns what it did
}

func (w *world) run(t testing.TB, change ...func(*Config)) running {
	t.Helper()
	return start(t, NewRelay(w.config(change...)))
}

func start(t testing.TB, r *Relay) running {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return running{r, stop}
}

func (r running) await(t testing.TB, what string, cond func(Stats) bool) {
	t.Helper()
	if !assert.Eventually(t, func() bool { return cond(r.Stats()) }, patience, 2*time.Millisecond) {
		t.Fatalf("%s: %+v", what, r.Stats())
	}
}

func (r running) awaitState(t testing.TB, s State) {
	t.Helper()
	r.await(t, "state "+string(s), func(st Stats) bool { return st.State == s })
}

// A writer changes aggregates, a version each time, as package store does: the
// row of the aggregate is locked before the event is inserted.
type writer struct {
	w            *world
	aggregates   []string
	acknowledged atomic.Int64 // changes whose commit was acknowledged to adverse
}

func (w *world) writer(t testing.TB, aggregates int) *writer {
	t.Helper()
	wr := &writer{w: w}
	_, err := w.db.Pool.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS hot (id uuid PRIMARY KEY, version bigint NOT NULL DEFAULT 0)`)
	require.NoError(t, err)
	rows, err := w.db.Pool.Query(t.Context(), `INSERT INTO hot SELECT gen_random_uuid() FROM generate_series(1, $1) RETURNING id::text`, aggregates)
	require.NoError(t, err)
	wr.aggregates, err = pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return wr
}

const change = `
WITH changed AS (UPDATE hot SET version = version + 1 WHERE id = $1 RETURNING id, version)
INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
SELECT gen_random_uuid(), 'order', id, version, 'order.updated.v1', id::text, NULL, json_build_object('n', version), '{}', clock_timestamp() FROM changed`

// write commits n changes, a transaction each.
func (wr *writer) write(t testing.TB, n int) {
	t.Helper()
	for range n {
		_, err := wr.w.db.Pool.Exec(t.Context(), change, wr.aggregates[rand.IntN(len(wr.aggregates))])
		require.NoError(t, err)
	}
}

// writeTx commits n changes in one transaction.
func (wr *writer) writeTx(t testing.TB, n int) {
	t.Helper()
	const many = `
WITH a AS (SELECT id, n FROM unnest($1::text[]::uuid[]) WITH ORDINALITY AS u (id, n)),
     changed AS (UPDATE hot SET version = version + $2 WHERE id = ANY ($1::text[]::uuid[]) RETURNING id, version),
     v AS (SELECT id, version - $2 + s AS version, s, a.n FROM a JOIN changed USING (id), generate_series(1, $2) s)
INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
SELECT gen_random_uuid(), 'order', id, version, 'order.updated.v1', id::text, NULL, json_build_object('n', version, 'of', repeat('x', 300)), '{}', clock_timestamp() FROM v ORDER BY s, n`
	_, err := wr.w.db.Pool.Exec(t.Context(), many, wr.aggregates, n/len(wr.aggregates))
	require.NoError(t, err)
}

// adverse writes from several connections at once, until stop is called: hot
// aggregates, pauses between taking the position and the commit, rollbacks.
func (wr *writer) adverse(t testing.TB, connections int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for range connections {
		group.Go(func() {
			for ctx.Err() == nil {
				err := pgx.BeginFunc(context.Background(), wr.w.db.Pool, func(tx pgx.Tx) error {
					if _, err := tx.Exec(context.Background(), change, wr.aggregates[rand.IntN(len(wr.aggregates))]); err != nil {
						return err
					}
					if rand.IntN(2) == 0 {
						if _, err := tx.Exec(context.Background(), `SELECT pg_sleep($1)`, rand.Float64()*0.004); err != nil {
							return err
						}
					}
					if rand.IntN(10) == 0 {
						return errRollback
					}
					return nil
				})
				if err != nil && !errors.Is(err, errRollback) && ctx.Err() == nil && !isOutage(err) {
					t.Errorf("write: %v", err)
					return
				}
				if err == nil {
					wr.acknowledged.Add(1)
				}
			}
		})
	}
	once := sync.OnceFunc(func() { cancel(); group.Wait() })
	t.Cleanup(once)
	return once
}

var errRollback = errors.New("rolled back on purpose")

// isOutage tells errors of a server that is going down or away.
func isOutage(err error) bool {
	code := sqlState(err)
	return code == "" || code[:2] == "57" || code[:2] == "08"
}

// equal waits until the events on Kafka are those of the outbox, each once and
// the versions of each aggregate in order.
func (w *world) equal(t testing.TB) {
	t.Helper()
	rows, err := w.db.Pool.Query(t.Context(), `SELECT event_id::text FROM outbox`)
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	want := make(map[string]bool, len(ids))
	for _, id := range ids {
		want[id] = true
	}
	seen, versions := map[string]bool{}, map[domain.ID]int64{}
	k := w.kafka.Client(t, kgo.ConsumeTopics(w.kafka.Namespace.Topics()...), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	defer k.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	check := func(ctx context.Context) {
		k.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			e, err := events.Decode(r)
			id := e.ID.String()
			// There may be hundreds of thousands, and require takes its time.
			switch {
			case err != nil:
				t.Fatal(err)
			case !want[id]:
				t.Fatalf("event %s is not in the outbox", id)
			case seen[id]:
				t.Fatalf("event %s was published twice", id)
			case e.AggregateVersion != versions[e.AggregateID]+1:
				t.Fatalf("version %d of aggregate %s comes after %d", e.AggregateVersion, e.AggregateID, versions[e.AggregateID])
			}
			seen[id], versions[e.AggregateID] = true, e.AggregateVersion
		})
	}
	for len(seen) < len(want) {
		check(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%d of %d events are published", len(seen), len(want))
		}
	}
	more, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for more.Err() == nil {
		check(more)
	}
}

func (w *world) confirmed(t testing.TB) lsn {
	t.Helper()
	s := &session{Relay: NewRelay(w.config()), db: w.db.Pool}
	info, err := s.slotInfo(t.Context())
	require.NoError(t, err)
	return info.confirmed
}

func TestRelayPublishesInOrder(t *testing.T) {
	t.Parallel()
	for _, source := range []Source{SourceAuto, SourcePoll} {
		t.Run(string(source), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			wr := w.writer(t, 5)
			wr.write(t, 20) // before there is a slot
			r := w.run(t, func(c *Config) { c.Source = source })
			if source == SourcePoll {
				r.awaitState(t, StatePolling)
			} else {
				r.awaitState(t, StateStreaming)
			}
			stop := wr.adverse(t, 8)
			r.await(t, "published", func(s Stats) bool { return s.Published > 500 })
			stop()
			w.equal(t)
			require.NoError(t, r.stop())
			require.Equal(t, StateStopped, r.Stats().State)
			require.Zero(t, r.Stats().Failures, r.Stats().LastError)
		})
	}
}

func TestRelayMakesTopicsThatKeepEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(t).awaitState(t, StateStreaming)
	topics, err := w.kafka.Admin().ListTopics(t.Context(), w.kafka.Namespace.Topics()...)
	require.NoError(t, err)
	for _, topic := range topics {
		require.NoError(t, topic.Err)
		require.Len(t, topic.Partitions, 6)
	}
	configs, err := w.kafka.Admin().DescribeTopicConfigs(t.Context(), w.kafka.Namespace.Topic("order"), w.kafka.Namespace.Progress("main"))
	require.NoError(t, err)
	value := func(topic, key string) string {
		rc, err := configs.On(topic, func(rc *kadm.ResourceConfig) error { return rc.Err })
		require.NoError(t, err)
		for _, c := range rc.Configs {
			if c.Key == key {
				return c.MaybeValue()
			}
		}
		return ""
	}
	require.Equal(t, "-1", value(w.kafka.Namespace.Topic("order"), "retention.ms"))
	require.Equal(t, "compact", value(w.kafka.Namespace.Progress("main"), "cleanup.policy"))
}

// A huge transaction is published whole, while the relay holds little of it.
func TestRow09HugeTransactionIsPublishedWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 10)
	r := w.run(t)
	r.awaitState(t, StateStreaming)
	wr.writeTx(t, 20_000)
	r.await(t, "published", func(s Stats) bool { return s.Published > 0 })
	require.GreaterOrEqual(t, r.Stats().Published, int64(20_000), "a PostgreSQL transaction was split")
	wr.write(t, 5)
	r.await(t, "published", func(s Stats) bool { return s.Published == 20_005 })
	w.equal(t)
}

func TestRelayRestartsWhereItStopped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	stop := wr.adverse(t, 4)
	for i := range 6 {
		r := w.run(t, func(c *Config) {
			if i == 5 {
				c.Source = SourceWAL
			}
		})
		r.await(t, "published", func(s Stats) bool { return s.Published > 100 })
		require.NoError(t, r.stop())
	}
	stop()
	w.run(t)
	w.equal(t)
}

// A relay that dies in its very first transaction has written records, and no
// progress with them. They were never published, so nothing was lost.
func TestRow03RelayDiesInItsFirstTransaction(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.writer(t, 5).write(t, 20)
	var died atomic.Int64
	r := w.run(t, func(c *Config) {
		c.hook = func(point string) error {
			if point == failpoint.RelayProduced && died.Add(1) <= 2 {
				return errKilled
			}
			return nil
		}
		c.retry = time.Millisecond
	})
	r.await(t, "published", func(s Stats) bool { return s.Failures == 2 && s.Published == 20 })
	require.Zero(t, r.Stats().Heals)
	w.equal(t)
}

// A relay that dies at any point leaves nothing that its successor loses or
// repeats.
func TestRow03RelayKilledBetweenProduceCommitAndConfirm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	stop := wr.adverse(t, 4)
	var mu sync.Mutex
	passes, next, deaths := 0, 1, map[string]int{}
	r := w.run(t, func(c *Config) {
		c.hook = func(point string) error {
			mu.Lock()
			defer mu.Unlock()
			if passes++; passes < next {
				return nil
			}
			passes, next = 0, 1+rand.IntN(25)
			deaths[point]++
			return errKilled
		}
		c.retry = time.Millisecond
	})
	r.await(t, "failures", func(s Stats) bool { return s.Failures >= 60 && s.Published > 500 })
	stop()
	_ = r.stop()
	t.Log(deaths)
	require.Zero(t, r.Stats().Heals, "the slot was told of what was not committed")
	require.GreaterOrEqual(t, len(deaths), 5)
	w.run(t).await(t, "active", func(s Stats) bool { return s.State == StateStreaming })
	w.equal(t)
}

func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	first := w.run(t)
	first.awaitState(t, StateStreaming)
	second := w.run(t)
	second.awaitState(t, StateStandby)
	stop := wr.adverse(t, 4)
	first.await(t, "published", func(s Stats) bool { return s.Published > 100 })
	require.Zero(t, first.Stats().Failures, "the standby fenced a healthy relay")
	require.False(t, second.Stats().Active)
	require.NoError(t, first.stop())
	second.awaitState(t, StateStreaming)
	second.await(t, "published", func(s Stats) bool { return s.Published > 100 })
	stop()
	w.equal(t)
}

// The lease is taken from a relay whose connection is cut; it stops at once,
// and becomes a standby of its successor.
func TestLostLeaseStopsPublishing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	first := w.run(t)
	first.awaitState(t, StateStreaming)
	second := w.run(t)
	second.awaitState(t, StateStandby)
	stop := wr.adverse(t, 4)
	_, err := w.db.Pool.Exec(t.Context(), `SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND a.application_name LIKE '%lease'`)
	require.NoError(t, err)
	first.await(t, "failure", func(s Stats) bool { return s.Failures > 0 })
	require.Contains(t, first.Stats().LastError, errLeaseLost.Error())
	require.Eventually(t, func() bool {
		a, b := first.Stats(), second.Stats()
		return a.Active && b.State == StateStandby || b.Active && a.State == StateStandby
	}, patience, 2*time.Millisecond)
	stop()
	w.equal(t)
}

// The slot goes on while other tables are busy, but never beyond an event
// that is not published.
func TestRow06IdlePublicationBesideBusyDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 1)
	var mu sync.Mutex
	var hold chan struct{}
	var told atomic.Int64 // how often PostgreSQL was
	r := w.run(t, func(c *Config) {
		c.hook = func(point string) error {
			if point == failpoint.RelayConfirmed {
				told.Add(1)
			}
			mu.Lock()
			h := hold
			mu.Unlock()
			if h != nil && point == "relay.produce" {
				<-h
			}
			return nil
		}
	})
	r.awaitState(t, StateStreaming)
	busy := func() lsn {
		_, err := w.db.Pool.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS busy (t text)`)
		require.NoError(t, err)
		_, err = w.db.Pool.Exec(t.Context(), `INSERT INTO busy SELECT repeat('x', 1000) FROM generate_series(1, 1000)`)
		require.NoError(t, err)
		var at string
		require.NoError(t, w.db.Pool.QueryRow(t.Context(), `SELECT pg_current_wal_lsn()::text`).Scan(&at))
		var l lsn
		require.NoError(t, l.UnmarshalText([]byte(at)))
		return l
	}
	tip := busy()
	require.Eventually(t, func() bool { return w.confirmed(t) >= tip }, patience, 5*time.Millisecond)

	h := make(chan struct{})
	release := sync.OnceFunc(func() { close(h) })
	t.Cleanup(release)
	mu.Lock()
	hold = h
	mu.Unlock()
	var at string
	require.NoError(t, pgx.BeginFunc(t.Context(), w.db.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), change, wr.aggregates[0]); err != nil {
			return err
		}
		return tx.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&at)
	}))
	var held lsn // the event's commit comes after it
	require.NoError(t, held.UnmarshalText([]byte(at)))
	after := busy()
	require.Eventually(t, func() bool {
		var sent string
		require.NoError(t, w.db.Pool.QueryRow(t.Context(), `SELECT sent_lsn::text FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid WHERE slot_name = $1`, w.slotName()).Scan(&sent))
		var l lsn
		require.NoError(t, l.UnmarshalText([]byte(sent)))
		return l >= after
	}, patience, 5*time.Millisecond, "the event is sent to the relay")
	for before := told.Load(); told.Load() < before+4; { // every second, whatever comes
		require.LessOrEqual(t, w.confirmed(t), held)
	}
	require.LessOrEqual(t, w.confirmed(t), held)
	mu.Lock()
	hold = nil
	mu.Unlock()
	release()
	require.Eventually(t, func() bool { return w.confirmed(t) >= after }, patience, 5*time.Millisecond)
	w.equal(t)
}

// Partitions are added to a topic, while the relay runs or before it starts: it
// refuses, and until it has noticed no key goes to another partition.
func TestRow13PartitionsWereAdded(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running %t", running), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			wr := w.writer(t, 20)
			topic := w.kafka.Namespace.Topic("order")
			soon := func(c *Config) { c.KafkaOptions = append(c.KafkaOptions, kgo.MetadataMaxAge(time.Second)) }
			r := w.run(t, quick, soon)
			stop := wr.adverse(t, 4)
			r.await(t, "published", func(s Stats) bool { return s.Published > 100 })
			if !running {
				require.NoError(t, r.stop())
			}
			added, err := w.kafka.Admin().CreatePartitions(t.Context(), 3, topic)
			require.NoError(t, err)
			require.NoError(t, added.Error())
			if !running {
				require.Eventually(t, func() bool {
					all, err := w.kafka.Admin().ListTopics(t.Context(), topic)
					return err == nil && len(all[topic].Partitions) == 9
				}, patience, 10*time.Millisecond)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				err = NewRelay(w.config(quick, soon)).Run(ctx)
			} else {
				r.awaitState(t, StateStopped)
				err = r.stop()
			}
			stop()
			require.ErrorContains(t, err, "has 9 partitions and the relay is configured for 6")
			require.ErrorContains(t, err, "set OUTFLOW_KAFKA_PARTITIONS to 9")
			ends, err := w.kafka.Admin().ListEndOffsets(t.Context(), topic)
			require.NoError(t, err)
			ends.Each(func(o kadm.ListedOffset) {
				require.NoError(t, o.Err)
				require.True(t, o.Partition < 6 || o.Offset == 0, "partition %d has %d records", o.Partition, o.Offset)
			})
		})
	}
}

func TestSourceThatTheRoleDoesNotAllow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	role := fmt.Sprintf("plain%d", rand.Uint64())
	_, err := w.db.Pool.Exec(t.Context(), fmt.Sprintf(`CREATE ROLE %s LOGIN; GRANT SELECT ON outbox TO %s; GRANT USAGE ON SCHEMA public TO %s`, role, role, role))
	require.NoError(t, err)
	url := withUser(t, w.db.URL, role)
	err = NewRelay(w.config(func(c *Config) { c.PostgresURL, c.Source = url, SourceWAL })).Run(t.Context())
	require.ErrorContains(t, err, "may not replicate")
	require.ErrorContains(t, err, "REPLICATION")

	// What nobody grants is done without.
	wr := w.writer(t, 2)
	wr.write(t, 10)
	r := w.run(t, func(c *Config) { c.PostgresURL = url })
	r.awaitState(t, StatePolling)
	require.Contains(t, r.Stats().Reason, "may not replicate")
	w.equal(t)
}
