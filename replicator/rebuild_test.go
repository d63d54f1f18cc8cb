package replicator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/domain"
	"outflow/internal/failpoint"
	"outflow/internal/kafkatest"
	"outflow/internal/mongodb"
	"outflow/internal/mongofake"
	"outflow/internal/rebuild"
)

var customers, orders = EntityCollections[0], EntityCollections[1]

// rebuild rebuilds a collection.
func (s *system) rebuild(e EntityCollection, change ...func(*rebuild.Config)) (rebuild.Result, error) {
	cfg := rebuild.Config{
		Brokers: s.Brokers, Kafka: kafkatest.Opts(), Lease: 400 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(s.t.Output(), nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	res, _, err := Rebuild(s.t.Context(), e, s.uri, s.Namespace, cfg)
	return res, err
}

// traffic publishes versions of customers until stop is called, some of them
// late, and returns the last version of each.
type traffic struct {
	s      *system
	n      int
	mu     sync.Mutex
	latest map[int]int64
	gone   map[int]bool
	sent   atomic.Int64
	done   chan struct{}
	end    sync.WaitGroup
}

func (s *system) traffic(n int) *traffic {
	f := &traffic{s: s, n: n, latest: map[int]int64{}, gone: map[int]bool{}, done: make(chan struct{})}
	random := rand.New(rand.NewPCG(1, 2))
	f.publish(random, 3*n)
	f.end.Go(func() {
		pace := time.NewTicker(10 * time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-f.done:
				return
			case <-pace.C:
				f.publish(random, 20)
			}
		}
	})
	s.t.Cleanup(f.stop)
	return f
}

func (f *traffic) publish(random *rand.Rand, events int) {
	var all []domain.Event
	f.mu.Lock()
	for range events {
		i := random.IntN(f.n)
		if f.gone[i] {
			all = append(all, customer(i, f.latest[i]-1)) // an older update comes after the deletion
			continue
		}
		f.latest[i]++
		if f.latest[i] > 1 && random.IntN(100) == 0 {
			f.gone[i] = true
			all = append(all, deleted(i, f.latest[i]))
			continue
		}
		all = append(all, customer(i, f.latest[i]))
	}
	f.mu.Unlock()
	f.s.Publish(f.s.t, all...)
	f.sent.Add(int64(len(all)))
}

func (f *traffic) stop() {
	f.mu.Lock()
	select {
	case <-f.done:
	default:
		close(f.done)
	}
	f.mu.Unlock()
	f.end.Wait()
}

// check waits until the replica is what was published.
func (f *traffic) check() {
	f.s.t.Helper()
	f.s.eventually("every customer at its last version", func() bool {
		for i, v := range f.latest {
			if f.s.version("_customers", id(i)) != v {
				return false
			}
		}
		return true
	})
	for i, v := range f.latest {
		doc := f.s.raw("customers", id(i))
		require.Equal(f.s.t, f.gone[i], doc == nil, i)
		if doc != nil {
			require.Equal(f.s.t, fmt.Sprintf("Ada %d", v), doc["name"])
		}
	}
	require.Equal(f.s.t, len(f.latest), f.s.count("_customers"))
}

// watch reads the view until stop is called: nothing may ever be missing or
// older than it was.
func (s *system) watch(n int) (stop func() time.Duration) {
	done, ended := make(chan struct{}), make(chan struct{})
	var longest time.Duration
	go func() {
		defer close(ended)
		seen := map[string]int64{}
		for {
			select {
			case <-done:
				return
			default:
			}
			begun := time.Now()
			c, filter := s.db.Collection("_customers"), bson.D{}
			var all []struct {
				ID      string `bson:"_id"`
				Version int64  `bson:"version"`
			}
			cursor, err := c.Find(context.Background(), filter)
			if err == nil {
				err = cursor.All(context.Background(), &all)
			}
			longest = max(longest, time.Since(begun))
			if err != nil {
				continue // a cursor that was open ends at the swap
			}
			// DocumentDB's rename isn't atomic for readers: one that comes at that
			// moment finds nothing, or the first part of what there is.
			if len(all) < len(seen) && s.fake != nil {
				s.t.Errorf("%d documents are there and %d were before", len(all), len(seen))
			}
			for _, d := range all {
				if d.Version < seen[d.ID] {
					s.t.Errorf("%s went back from %d to %d", d.ID, seen[d.ID], d.Version)
				}
				seen[d.ID] = d.Version
			}
		}
	}()
	stop = sync.OnceValue(func() time.Duration {
		close(done)
		<-ended
		return longest
	})
	s.t.Cleanup(func() { stop() })
	return stop
}

func (s *system) clean() {
	s.t.Helper()
	found, err := mongodb.Identities(s.t.Context(), s.db)
	require.NoError(s.t, err)
	for name := range found {
		require.NotContains(s.t, name, "_rebuild_")
	}
	require.Zero(s.t, s.count("_rebuilds"))
}

func TestARebuiltReplicaHoldsWhatTheEventsSay(t *testing.T) {
	s := newSystem(t)
	stop := s.run()
	s.Publish(t, customer(1, 1), customer(2, 1), customer(1, 2), deleted(2, 2), customer(3, 1))
	s.eventually("filled", func() bool { return s.count("customers") == 2 && s.count("_customers") == 3 })
	// What nobody would find otherwise.
	_, err := s.db.Collection("_customers").DeleteOne(t.Context(), bson.D{{Key: "_id", Value: id(3).String()}})
	require.NoError(t, err)
	_, err = s.db.Collection("_customers").InsertOne(t.Context(), bson.D{{Key: "_id", Value: "stranger"}, {Key: "version", Value: int64(1)}})
	require.NoError(t, err)
	res, err := s.rebuild(customers)
	require.NoError(t, err)
	require.Equal(t, int64(5), res.Events)
	require.Equal(t, 2, s.count("customers"))
	require.Equal(t, int64(2), s.version("_customers", id(2)), "a tombstone")
	require.Equal(t, int64(1), s.version("_customers", id(3)))
	s.clean()
	s.Publish(t, customer(1, 3))
	s.eventually("followed", func() bool { return s.version("_customers", id(1)) == 3 })
	indexes, err := s.db.Collection("_customers").Indexes().ListSpecifications(t.Context())
	require.NoError(t, err)
	require.Len(t, indexes, 3)

	// Without a replicator.
	stop()
	_, err = s.rebuild(customers)
	require.NoError(t, err)
	_, err = s.rebuild(orders)
	require.NoError(t, err)
	require.Equal(t, 2, s.count("customers"))
	require.NoError(t, s.db.Drop(t.Context()))
	_, err = s.rebuild(customers)
	require.NoError(t, err)
	require.Equal(t, 2, s.count("customers"))
	s.run()
	s.Publish(t, customer(1, 4))
	s.eventually("followed", func() bool { return s.version("_customers", id(1)) == 4 })
	require.Equal(t, 3, s.count("_customers"))
}

// Row 16 of the failure table: delete, then an older update arrives. It stays
// deleted, also through a rebuild, whatever comes first there.
func TestRow16ADeletedEntityStaysDeleted(t *testing.T) {
	s := newSystem(t)
	s.run()
	s.Publish(t, customer(1, 1), deleted(1, 3), customer(1, 2), customer(2, 1))
	s.eventually("handled", func() bool { return s.version("_customers", id(1)) == 3 && s.version("_customers", id(2)) == 1 })
	require.Nil(t, s.raw("customers", id(1)))
	for range 2 {
		_, err := s.rebuild(customers)
		require.NoError(t, err)
		require.Nil(t, s.raw("customers", id(1)))
		s.Publish(t, customer(1, 2), customer(2, s.version("_customers", id(2))+1))
		before := s.version("_customers", id(2))
		s.eventually("handled", func() bool { return s.version("_customers", id(2)) > before || before == 3 })
		require.Nil(t, s.raw("customers", id(1)))
		require.Equal(t, int64(3), s.version("_customers", id(1)))
	}
}

// Row 18 of the failure table: a rebuild under live traffic, killed half-way.
// The live replica is never wrong, and the rebuild resumes.
func TestRow18ARebuildIsKilledAndResumed(t *testing.T) {
	for _, point := range rebuild.Failpoints {
		t.Run(point, func(t *testing.T) {
			s := newSystem(t)
			s.run()
			s.run()
			f := s.traffic(300)
			s.eventually("the traffic is seen", func() bool { return s.count("_customers") > 250 })
			stop := s.watch(300)
			killed := failpoint.ErrInjected
			_, err := s.rebuild(customers, func(c *rebuild.Config) {
				c.At = func(at string) error {
					if at == point {
						return killed
					}
					return nil
				}
			})
			require.ErrorIs(t, err, killed)
			sent := f.sent.Load()
			s.eventually("traffic goes on", func() bool { return f.sent.Load() > sent+100 })
			res, err := s.rebuild(customers)
			require.NoError(t, err)
			require.True(t, res.Resumed || res.ByOther || point == rebuild.Handed || point == rebuild.Swapped || point == rebuild.Swapping, "%+v", res)
			sent = f.sent.Load()
			s.eventually("traffic goes on", func() bool { return f.sent.Load() > sent+100 })
			f.stop()
			f.check()
			t.Logf("the slowest read took %s", stop())
			s.clean()
		})
	}
}

func TestTheSwapDoesNotHoldReadersUp(t *testing.T) {
	s := newSystem(t)
	s.run()
	f := s.traffic(200)
	s.eventually("the traffic is seen", func() bool { return s.count("_customers") > 150 })
	longest := func() (longest time.Duration) {
		var swapping, swapped atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			for !swapped.Load() {
				begun := time.Now()
				err := s.db.Collection("_customers").FindOne(context.Background(), bson.D{}).Err()
				if s.fake == nil && errors.Is(err, mongo.ErrNoDocuments) {
					err = nil // DocumentDB's rename isn't atomic for readers
				}
				if err != nil {
					t.Error(err)
					return
				}
				if swapping.Load() {
					longest = max(longest, time.Since(begun))
				}
			}
		}()
		_, err := s.rebuild(customers, func(c *rebuild.Config) {
			c.At = func(at string) error {
				swapping.Store(swapping.Load() || at == rebuild.Swapping)
				return nil
			}
		})
		swapped.Store(true)
		<-done
		require.NoError(t, err)
		return longest
	}
	// The other tests of this package run on the same cores: the fastest counts.
	best := longest()
	for tries := 1; tries < 5 && best >= 100*time.Millisecond; tries++ {
		best = min(best, longest())
	}
	t.Logf("the slowest read took %s", best)
	require.Less(t, best, 100*time.Millisecond)
	f.stop()
	f.check()
}

// A replicator that is stopped in the middle of a batch, and wakes up long
// after the swap, changes nothing but what is newer.
func TestAReplicatorSleepsThroughTheSwap(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	s.run()
	f := s.traffic(100)
	s.eventually("the traffic is seen", func() bool { return s.count("_customers") > 80 })
	asleep := s.fake.Fault(mongofake.Fault{Command: "update", Collection: "_customers", Count: 1, Hold: true})
	require.NoError(t, asleep.Wait(t.Context(), 1))
	_, err := s.rebuild(customers, func(c *rebuild.Config) { c.PauseTimeout = time.Second })
	require.NoError(t, err)
	asleep.Release()
	s.eventually("it woke up", func() bool { return asleep.Inside() == 0 })
	f.stop()
	f.check()
	s.clean()
}

func TestTwoRebuildsAtOnce(t *testing.T) {
	s := newSystem(t)
	s.run()
	s.Publish(t, customer(1, 1), customer(2, 1))
	s.eventually("filled", func() bool { return s.count("customers") == 2 })
	entered, leave := make(chan struct{}), make(chan struct{})
	var first, second error
	var res rebuild.Result
	var both sync.WaitGroup
	both.Go(func() {
		_, first = s.rebuild(customers, func(c *rebuild.Config) {
			c.Lease = 20 * time.Second
			c.At = func(at string) error {
				if at == rebuild.Paused {
					close(entered)
					<-leave
				}
				return nil
			}
		})
	})
	<-entered
	told := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	both.Go(func() {
		var err error
		res, _, err = Rebuild(ctx, customers, s.uri, s.Namespace, rebuild.Config{
			Brokers: s.Brokers, Kafka: kafkatest.Opts(), Lease: 20 * time.Second, OnWait: func(who string) { told <- who },
		})
		second = err
	})
	close(leave)
	both.Wait()
	require.NoError(t, first)
	require.NoError(t, second)
	require.True(t, res.ByOther || len(told) == 0, "it waited, or came after the other")
	require.Equal(t, 2, s.count("customers"))
	s.clean()
}

func TestARebuildOfThePast(t *testing.T) {
	s := newSystem(t)
	s.Publish(t, customer(1, 1), customer(2, 1), customer(1, 2), customer(1, 3))
	res, name, err := Rebuild(t.Context(), customers, s.uri, s.Namespace, rebuild.Config{
		Brokers: s.Brokers, Kafka: kafkatest.Opts(), Until: start.Add(2 * time.Second),
	})
	require.NoError(t, err)
	require.Equal(t, "customers_at_20261121T040508_789Z", name)
	require.Equal(t, int64(3), res.Events, "those that happened by then")
	require.Equal(t, int64(2), s.version(name, id(1)))
	require.Equal(t, int64(1), s.version(name, id(2)))
	require.Zero(t, s.count("_customers"), "what is live isn't touched")
	s.clean()
}

func TestOldestEventsAreGone(t *testing.T) {
	s := newSystem(t)
	s.Publish(t, customer(1, 1))
	kafkatest.DeleteOldest(t, s.Kafka, s.Namespace.Topic(domain.AggregateCustomer))
	_, err := s.rebuild(customers)
	var gone *rebuild.GoneError
	require.ErrorAs(t, err, &gone)

	// The outbox has them.
	events := []domain.Event{customer(1, 1), customer(2, 1), deleted(2, 2)}
	_, err = s.rebuild(customers, func(c *rebuild.Config) {
		c.From = rebuild.FromOutbox
		c.Outbox = func(ctx context.Context, after int64, each func([]domain.Event, int64) error) error {
			for i := int(after); i < len(events); i++ {
				if err := each(events[i:i+1], int64(i+1)); err != nil {
					return err
				}
			}
			return nil
		}
	})
	require.NoError(t, err)
	s.run()
	s.Publish(t, customer(1, 2))
	s.eventually("followed", func() bool { return s.version("_customers", id(1)) == 2 })
	require.Equal(t, 1, s.count("customers"))
	require.Equal(t, 2, s.count("_customers"))
}

// What Kafka lost while a rebuild was left is not waited for by the next one.
func TestKafkaLosesEventsBetweenTwoRebuilds(t *testing.T) {
	for name, all := range map[string]bool{"that were read": true, "that were not": false} {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t)
			s.Publish(t, customer(1, 1), customer(2, 1), customer(3, 1))
			point := rebuild.Filled
			if all {
				point = rebuild.Paused
			}
			leave := func(c *rebuild.Config) {
				c.At = func(at string) error {
					if at == point {
						return failpoint.ErrInjected
					}
					return nil
				}
			}
			_, err := s.rebuild(customers, leave)
			require.ErrorIs(t, err, failpoint.ErrInjected)
			s.Publish(t, customer(1, 2), customer(2, 2), customer(3, 2))
			kafkatest.DeleteOldest(t, s.Kafka, s.Namespace.Topic(domain.AggregateCustomer))
			_, err = s.rebuild(customers)
			var gone *rebuild.GoneError
			require.ErrorAs(t, err, &gone)
		})
	}
}

// A log that was cut is shorter than what was read of it: what it got since is
// something else than what a rebuild that was left has read.
func TestALogIsCutBetweenTwoRebuilds(t *testing.T) {
	s := newSystem(t)
	s.Publish(t, customer(1, 1), customer(2, 1), customer(3, 1))
	_, err := s.rebuild(customers, func(c *rebuild.Config) {
		c.At = func(at string) error {
			if at == rebuild.Paused {
				return failpoint.ErrInjected
			}
			return nil
		}
	})
	require.ErrorIs(t, err, failpoint.ErrInjected)
	s.Publish(t, customer(1, 2), customer(2, 2), customer(3, 2))
	for _, place := range []string{"places.0.next", "places.1.next", "places.2.next"} {
		_, err := s.db.Collection("_rebuilds").UpdateOne(t.Context(), bson.D{}, bson.D{{Key: "$set", Value: bson.D{{Key: place, Value: int64(1000)}}}})
		require.NoError(t, err)
	}
	_, err = s.rebuild(customers)
	require.NoError(t, err)
	for n := 1; n <= 3; n++ {
		require.Equal(t, int64(2), s.version("_customers", id(n)))
	}
}
