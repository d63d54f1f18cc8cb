package outbox

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"outflow/internal/failpoint"
	"outflow/internal/kafkatest"
	"outflow/internal/pgtest"
)

// PostgreSQL crashes and comes back, twice: the relay resumes.
func TestRow07PostgresCrashes(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	w := &world{db: server.DB(t), kafka: kafkatest.Start(t)}
	wr := w.writer(t, 5)
	r := w.run(t, func(c *Config) { c.retry = 10 * time.Millisecond })
	r.awaitState(t, StateStreaming)
	stop := wr.adverse(t, 4)
	for i := range 2 {
		published := r.Stats().Published
		r.await(t, "published", func(s Stats) bool { return s.Published > published+100 })
		require.NoError(t, server.Kill(syscall.SIGQUIT))
		require.NoError(t, server.Restart(t.Context()))
		r.await(t, "failure", func(s Stats) bool { return s.Failures > int64(i) })
		r.awaitState(t, StateStreaming)
	}
	stop()
	w.equal(t)
	var kept int64
	require.NoError(t, w.db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&kept))
	require.GreaterOrEqual(t, kept, wr.acknowledged.Load(), "acknowledged writes are gone")
}

// outage makes every request to the broker fail until the returned function
// is called.
func outage(fake *kfake.Cluster) (end func()) {
	var over atomic.Bool
	fake.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
		if over.Load() {
			return nil, nil, false
		}
		fake.KeepControl()
		return nil, errors.New("outage"), true
	})
	return func() { over.Store(true) }
}

func TestRow11BrokerIsDown(t *testing.T) {
	t.Parallel()
	w := &world{db: pgtest.New(t), kafka: kafkatest.Fake(t)}
	wr := w.writer(t, 5)
	r := w.run(t, func(c *Config) { c.retry = 10 * time.Millisecond })
	r.awaitState(t, StateStreaming)
	stop := wr.adverse(t, 4)
	r.await(t, "published", func(s Stats) bool { return s.Published > 100 })
	end := outage(w.kafka.Fake)
	wr.write(t, 200) // writers notice nothing
	end()
	published := r.Stats().Published
	r.await(t, "published", func(s Stats) bool { return s.Published > published+200 })
	stop()
	w.equal(t)

	// Away when the relay starts, for longer than its clients are patient.
	require.NoError(t, r.stop())
	end = outage(w.kafka.Fake)
	wr.write(t, 10)
	r = w.run(t, func(c *Config) {
		c.retry = 10 * time.Millisecond
		c.KafkaOptions = append(c.KafkaOptions, kgo.RequestRetries(1))
	})
	r.await(t, "failures", func(s Stats) bool { return s.Failures >= 3 })
	end()
	r.awaitState(t, StateStreaming)
	w.equal(t)
}

// The outcome of a commit is unknown: the broker did it, or did it not, and the
// answer is lost. Reading progress tells.
func TestRow11OutcomeOfACommitIsUnknown(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]kfake.Fault{
		"refused":   {Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.InvalidProducerEpoch, Count: 1},
		"no reason": {Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError, Count: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &world{db: pgtest.New(t), kafka: kafkatest.Fake(t)}
			wr := w.writer(t, 5)
			r := w.run(t, func(c *Config) { c.retry = 10 * time.Millisecond })
			r.awaitState(t, StateStreaming)
			stop := wr.adverse(t, 4)
			for i := range 5 {
				published := r.Stats().Published
				r.await(t, "published", func(s Stats) bool { return s.Published > published+20 })
				w.kafka.Fake.Fault(fault)
				r.await(t, "failure", func(s Stats) bool { return s.Failures > int64(i) })
			}
			stop()
			w.equal(t)
		})
	}
	t.Run("committed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		wr := w.writer(t, 5)
		var mu sync.Mutex
		n := 0
		r := w.run(t, func(c *Config) {
			c.retry = time.Millisecond
			c.hook = func(point string) error {
				mu.Lock()
				defer mu.Unlock()
				if point == "relay.committed" {
					if n++; n%7 == 0 {
						return errors.New("the answer is lost")
					}
				}
				return nil
			}
		})
		stop := wr.adverse(t, 4)
		r.await(t, "failures", func(s Stats) bool { return s.Failures >= 20 })
		stop()
		w.equal(t)
	})
}

// A relay is paused in the middle of a transaction for so long that another
// takes over. When it wakes up, it is fenced.
func TestRow04PausedRelayWakesUpAfterItsSuccessor(t *testing.T) {
	t.Parallel()
	for _, point := range []string{failpoint.RelayProduce, failpoint.RelayProduced} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			wr := w.writer(t, 5)
			asleep, wake := make(chan struct{}), make(chan struct{})
			var once sync.Once
			var armed atomic.Bool
			zombie := w.run(t, func(c *Config) {
				c.hook = func(p string) error {
					if p == point && armed.Load() {
						once.Do(func() { close(asleep); <-wake })
					}
					return nil
				}
				// It does not notice that its lease is gone, as if every part of
				// the process were paused.
				c.deaf = true
			})
			t.Cleanup(sync.OnceFunc(func() {
				select {
				case <-wake:
				default:
					close(wake)
				}
			}))
			zombie.awaitState(t, StateStreaming)
			wr.write(t, 10)
			armed.Store(true)
			wr.write(t, 10)
			<-asleep
			_, err := w.db.Pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '%lease'`)
			require.NoError(t, err)
			next := w.run(t)
			next.awaitState(t, StateStreaming)
			wr.write(t, 10)
			next.await(t, "published", func(s Stats) bool { return s.Published >= 10 })
			close(wake)
			zombie.await(t, "fenced", func(s Stats) bool { return s.Failures > 0 && s.State == StateStandby })
			wr.write(t, 10)
			w.equal(t)
		})
	}
}

// Somebody uses a transactional id of a relay that works: it says so, and
// takes its ids back.
func TestFenceIsToldAndOvercome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	// The id is taken when it is initialised and in no transaction: while one is
	// being committed, this broker says something else.
	r := w.run(t, quick, func(c *Config) { c.IdleInterval = time.Hour })
	wr.write(t, 1)
	r.await(t, "published", func(s Stats) bool { return s.Published == 1 && s.State == StateStreaming })
	intruder := w.kafka.Client(t, kgo.TransactionalID(r.cfg.name()+"-2"))
	_, _, err := intruder.ProducerID(t.Context())
	require.NoError(t, err)
	stop := wr.adverse(t, 4)
	r.await(t, "fenced", func(s Stats) bool { return s.Fences == 1 && s.Active })
	r.await(t, "published", func(s Stats) bool { return s.Published > 100 })
	stop()
	w.equal(t)
}
