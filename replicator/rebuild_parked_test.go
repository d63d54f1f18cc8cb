package replicator

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/failpoint"
	"outflow/internal/kafkatest"
	"outflow/internal/mongofake"
	"outflow/internal/rebuild"
)

// letters returns what the replicators have parked, once that is n messages.
func (s *system) letters(n int) (*consumer.DeadLetters, []consumer.DeadLetter) {
	s.t.Helper()
	letters, err := consumer.OpenDeadLetters(s.Brokers, s.Namespace.Group("replicator"), kafkatest.Opts()...)
	require.NoError(s.t, err)
	s.t.Cleanup(letters.Close)
	var all []consumer.DeadLetter
	s.eventually("parked", func() bool {
		all, err = letters.List(s.t.Context())
		return err == nil && len(all) == n
	})
	return letters, all
}

// outbox is a rebuild from an outbox that holds these.
func outbox(all []domain.Event) func(*rebuild.Config) {
	return func(c *rebuild.Config) {
		c.From = rebuild.FromOutbox
		c.Outbox = func(_ context.Context, after int64, each func([]domain.Event, int64) error) error {
			if after >= int64(len(all)) {
				return nil
			}
			return each(all[after:], int64(len(all)))
		}
	}
}

// A record that is no event holds up its key from there on, and nothing that
// came before it.
func TestWhatComesBeforeARecordThatIsNoEventIsRebuilt(t *testing.T) {
	for name, first := range map[string]bool{"parked": false, "seen by the rebuild first": true} {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t)
			s.Publish(t, customer(1, 1), customer(2, 1), customer(1, 2))
			s.Produce(t, &kgo.Record{Topic: s.Namespace.Topic(domain.AggregateCustomer), Key: []byte(id(1).String()), Value: []byte("no event")})
			s.Publish(t, customer(1, 3), customer(2, 2))
			if !first {
				s.run()
				s.letters(2)
				require.Equal(t, int64(2), s.version("_customers", id(1)))
			}
			_, err := s.rebuild(customers)
			require.NoError(t, err)
			require.Equal(t, int64(2), s.version("_customers", id(1)), "what came before")
			require.Equal(t, int64(2), s.version("_customers", id(2)))
			if first {
				s.run()
			}
			letters, all := s.letters(2)
			require.NoError(t, letters.Drop(t.Context(), all[0].ID))
			require.NoError(t, letters.Retry(t.Context(), all[1].ID))
			require.Equal(t, int64(3), s.version("_customers", id(1)))
		})
	}
}

// An operator lets a key go while a rebuild, which knows it as parked, leaves
// it out: the workers pass what follows, and the shadow must have it too.
func TestAParkedKeyIsLetGoDuringARebuild(t *testing.T) {
	for _, point := range []string{rebuild.Filled, rebuild.Pausing} {
		t.Run(point, func(t *testing.T) {
			s := newSystem(t)
			s.run()
			newer := customer(1, 2)
			newer.Type = "customer.updated.v2"
			s.Publish(t, customer(1, 1), newer, customer(1, 3), customer(2, 1))
			letters, all := s.letters(2)
			let := false
			_, err := s.rebuild(customers, func(c *rebuild.Config) {
				c.At = func(at string) error {
					if at != point || let {
						return nil
					}
					let = true
					require.NoError(t, letters.Drop(t.Context(), all[0].ID))
					require.NoError(t, letters.Retry(t.Context(), all[1].ID))
					s.Publish(t, customer(1, 4))
					s.eventually("flows", func() bool { return s.version("_customers", id(1)) == 4 })
					return nil
				}
			})
			require.NoError(t, err)
			require.True(t, let)
			s.eventually("nothing is lost", func() bool { return s.version("_customers", id(1)) == 4 })
			s.clean()
		})
	}
}

// The same between a rebuild that was killed and the one that goes on with it:
// where it left the key out is in its record.
func TestAParkedKeyIsLetGoBetweenTwoRebuilds(t *testing.T) {
	for name, from := range map[string]rebuild.Source{"kafka": rebuild.FromKafka, "outbox": rebuild.FromOutbox} {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t)
			s.run()
			all := []domain.Event{customer(1, 1), customer(1, 2), customer(1, 3), customer(2, 1)}
			newer := all[1]
			newer.Type = "customer.updated.v2" // on Kafka alone, so that it is parked
			s.Publish(t, all[0], newer, all[2], all[3])
			for v := int64(2); v < 2500; v++ { // so many that they are read before the workers are paused
				all = append(all, customer(2, v))
			}
			s.Publish(t, all[4:]...)
			letters, parked := s.letters(2)
			configure := func(c *rebuild.Config) {
				outbox(all)(c)
				c.From = from
			}
			_, err := s.rebuild(customers, configure, func(c *rebuild.Config) {
				c.At = func(at string) error {
					if at == rebuild.Pausing {
						return failpoint.ErrInjected
					}
					return nil
				}
			})
			require.ErrorIs(t, err, failpoint.ErrInjected)
			require.NoError(t, letters.Drop(t.Context(), parked[0].ID))
			require.NoError(t, letters.Retry(t.Context(), parked[1].ID))
			s.eventually("flows", func() bool { return s.version("_customers", id(1)) == 3 })
			res, err := s.rebuild(customers, configure)
			require.NoError(t, err)
			require.True(t, res.Resumed)
			require.Equal(t, int64(3), s.version("_customers", id(1)))
			s.Publish(t, customer(1, 4))
			s.eventually("followed", func() bool { return s.version("_customers", id(1)) == 4 })
			s.clean()
		})
	}
}

// One of two parked messages is dropped while a rebuild leaves both out: what is
// left of them waits still.
func TestAParkedMessageIsDroppedDuringARebuild(t *testing.T) {
	s := newSystem(t)
	s.run()
	newer, newest := customer(1, 2), customer(1, 4)
	newer.Type, newest.Type = "customer.updated.v2", "customer.updated.v2"
	s.Publish(t, customer(1, 1), newer, customer(1, 3), newest, customer(1, 5))
	letters, all := s.letters(4)
	let := false
	_, err := s.rebuild(customers, func(c *rebuild.Config) {
		c.At = func(at string) error {
			if at == rebuild.Pausing && !let {
				let = true
				require.NoError(t, letters.Drop(t.Context(), all[0].ID))
				var again *consumer.ParkedAgainError
				require.ErrorAs(t, letters.Retry(t.Context(), all[1].ID), &again)
				require.Equal(t, int64(3), s.version("_customers", id(1)))
			}
			return nil
		}
	})
	require.NoError(t, err)
	require.Equal(t, int64(3), s.version("_customers", id(1)), "what was let go, and not what follows")
	_, all = s.letters(2)
	require.NoError(t, letters.Drop(t.Context(), all[0].ID))
	require.NoError(t, letters.Retry(t.Context(), all[1].ID))
	require.Equal(t, int64(5), s.version("_customers", id(1)))
}

// What an operator has dropped is in the outbox still, where nothing says so.
func TestWhatWasDroppedIsInTheOutbox(t *testing.T) {
	for name, left := range map[string]int{"alone": 0, "and the next one is parked": 2} {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t)
			s.run()
			all := []domain.Event{customer(1, 1), customer(1, 2), customer(1, 3), customer(1, 4), customer(2, 1)}
			all[1].Type = "customer.updated.v2"
			if left > 0 {
				all[2].Type = "customer.updated.v2"
			}
			s.Publish(t, all...)
			letters, parked := s.letters(3)
			require.NoError(t, letters.Drop(t.Context(), parked[0].ID))
			want := int64(1)
			if left == 0 {
				require.NoError(t, letters.Retry(t.Context(), parked[1].ID))
				want = 4
			}
			s.eventually("the position follows", func() bool { return s.version("_customers", id(1)) == want })
			res, err := s.rebuild(customers, outbox(all))
			require.NoError(t, err)
			require.Equal(t, want, s.version("_customers", id(1)))
			require.Equal(t, left > 0, res.LeftOut > 0)
			s.Publish(t, customer(1, 5))
			if left > 0 {
				letters, parked = s.letters(left + 1)
				require.NoError(t, letters.Drop(t.Context(), parked[0].ID))
				require.NoError(t, letters.Retry(t.Context(), parked[1].ID))
			}
			s.eventually("followed", func() bool { return s.version("_customers", id(1)) == 5 })
		})
	}
}

// The workers come to what a rebuild could not apply only after the rebuild, and
// an operator drops it while the rebuild goes on.
func TestWhatIsInTheOutboxIsDroppedDuringARebuild(t *testing.T) {
	s := newSystem(t)
	all := []domain.Event{customer(1, 1), customer(1, 2), customer(1, 3), customer(2, 1)}
	all[1].Type = "customer.updated.v2"
	s.Publish(t, all[0])
	stop := s.run()
	s.eventually("filled", func() bool { return s.version("_customers", id(1)) == 1 })
	stop()
	s.Publish(t, all[1:]...)
	dropped := false
	_, err := s.rebuild(customers, outbox(all), func(c *rebuild.Config) {
		c.At = func(at string) error {
			if at != rebuild.Pausing || dropped {
				return nil
			}
			dropped = true
			// Workers go on once their patience with the rebuild is over.
			_, err := s.db.Collection("_rebuilds").UpdateOne(t.Context(), bson.D{}, bson.D{
				{Key: "$set", Value: bson.D{{Key: "phase", Value: "filling"}}}, {Key: "$inc", Value: bson.D{{Key: "beat", Value: int64(1)}}},
			})
			require.NoError(t, err)
			s.run()
			letters, parked := s.letters(2)
			require.NoError(t, letters.Drop(t.Context(), parked[0].ID))
			require.NoError(t, letters.Retry(t.Context(), parked[1].ID))
			return nil
		}
	})
	require.NoError(t, err)
	require.Equal(t, int64(3), s.version("_customers", id(1)))
	s.clean()
}

// The workers are paused while one of them handles a parked key again: it has
// written what the key waited for, and has yet to note that. The replica doesn't
// go back to what it was before.
func TestAParkedKeyIsHandledAgainWhenTheWorkersArePaused(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	s.run()
	newer := customer(1, 2)
	newer.Type = "customer.updated.v2"
	s.Publish(t, customer(1, 1), newer, customer(1, 3), customer(2, 1))
	letters, all := s.letters(2)
	require.NoError(t, letters.Drop(t.Context(), all[0].ID))
	s.watch(2)
	retried := make(chan error, 1)
	begun := false
	_, err := s.rebuild(customers, func(c *rebuild.Config) {
		c.At = func(at string) error {
			if at != rebuild.Pausing || begun {
				return nil
			}
			begun = true
			// So long that the worker compares its positions after this batch.
			writes := s.fake.Fault(mongofake.Fault{Command: "update", Collection: "_customers", Count: 1, Delay: time.Second})
			go func() { retried <- letters.Retry(t.Context(), all[1].ID) }()
			require.NoError(t, writes.Wait(t.Context(), 1))
			// The rebuild looks for answers once it has paused the workers.
			looks := s.fake.Fault(mongofake.Fault{Command: "find", Collection: "_rebuilds", Count: 1, Hold: true})
			go func() {
				defer looks.Release()
				assert.Eventually(t, func() bool { return s.version("_customers", id(1)) == 3 }, time.Minute, time.Millisecond)
			}()
			return nil
		}
	})
	require.NoError(t, err)
	require.NoError(t, <-retried)
	require.Equal(t, int64(3), s.version("_customers", id(1)))
}

// A rebuild by an older version of outflow than the workers' doesn't put states
// in their place that lack what it doesn't know: whether they have parked that,
// or have yet to see it, or have passed it because they know it.
func TestARebuildIsRefusedWhenItKnowsTooLittle(t *testing.T) {
	for name, passed := range map[string]bool{"nobody has seen it": false, "the workers know it": true} {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t)
			stop := s.run()
			s.Publish(t, customer(1, 1))
			s.eventually("replicated", func() bool { return s.version("_customers", id(1)) == 1 })
			stop()
			var all []domain.Event
			for n := range 1100 {
				newer := customer(2+n, 1)
				newer.Type = "customer.created.v2"
				all = append(all, newer)
			}
			s.Publish(t, all...)
			if passed {
				_, err := s.db.Collection("_positions").UpdateMany(t.Context(), bson.D{}, bson.D{{Key: "$set", Value: bson.D{{Key: "next", Value: int64(1 << 40)}}}})
				require.NoError(t, err)
			}
			_, err := s.rebuild(customers)
			require.ErrorContains(t, err, "newer version of outflow")
			require.Equal(t, 1, s.count("_customers"))
		})
	}
}
