package replicator

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
	"outflow/internal/mongofake"
	"outflow/internal/rebuild"
)

// A server that changes its primary at the swap answers with an error once. The
// rebuild tries again, as it does before: no worker may be there to complete it.
func TestTheSwapIsTriedAgain(t *testing.T) {
	for _, command := range []string{"renameCollection", "update"} {
		t.Run(command, func(t *testing.T) {
			s := newSystem(t)
			s.needFake()
			s.Publish(t, customer(1, 1))
			f := mongofake.Fault{Command: command, Count: 1, Code: 50, Message: "time limit exceeded"}
			if command == "update" {
				f.Collection, f.Skip = "_positions", 1 // the first one pauses the workers
			}
			fault := s.fake.Fault(f)
			_, err := s.rebuild(customers)
			require.NoError(t, err)
			require.Equal(t, 1, fault.Hits())
			require.Equal(t, int64(1), s.version("_customers", id(1)))
			s.clean()
		})
	}
}

// A broker that can't say who is in the group doesn't say that nobody is: the
// rebuild asks again, rather than swap while a worker writes.
func TestAGroupThatCanNotBeLookedAtIsNotEmpty(t *testing.T) {
	s := newSystem(t)
	if s.Fake == nil {
		t.Skip("injects an error into the in-process broker")
	}
	worker := s.replicator()
	s.start(worker)
	s.Publish(t, customer(1, 1))
	s.eventually("filled", func() bool { return s.count("_customers") == 1 })
	s.Fake.ControlKey(int16(kmsg.DescribeGroups), func(req kmsg.Request) (kmsg.Response, error, bool) {
		asked := req.(*kmsg.DescribeGroupsRequest)
		answer := asked.ResponseKind().(*kmsg.DescribeGroupsResponse)
		for _, group := range asked.Groups {
			g := kmsg.NewDescribeGroupsResponseGroup()
			g.Group, g.ErrorCode = group, kerr.UnknownServerError.Code
			answer.Groups = append(answer.Groups, g)
		}
		return answer, nil, true
	})
	_, err := s.rebuild(customers, func(c *rebuild.Config) {
		c.At = func(at string) error {
			if at == rebuild.Paused {
				require.Zero(t, worker.Stats().Partitions, "those that a worker still writes from")
			}
			return nil
		}
	})
	require.NoError(t, err)
}

// A worker that has looked for a rebuild, and writes its first position once the
// others were paused, is paused too.
func TestAWorkerBeginsWhileTheOthersArePaused(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	s.Publish(t, customer(1, 1))
	begins := s.fake.Fault(mongofake.Fault{Command: "insert", Collection: "_positions", Count: 1, Hold: true})
	s.run()
	require.NoError(t, begins.Wait(t.Context(), 1))
	res, err := s.rebuild(customers, func(c *rebuild.Config) {
		c.At = func(at string) error {
			if at == rebuild.Pausing && begins.Inside() > 0 {
				// The rebuild looks for answers once it has paused who has a position.
				looks := s.fake.Fault(mongofake.Fault{Command: "find", Collection: "_rebuilds", Count: 1, Hold: true})
				go func() {
					defer looks.Release()
					_ = looks.Wait(context.Background(), 1)
					begins.Release()
					assert.Eventually(t, func() bool { return s.count("_positions") > 0 }, time.Minute, time.Millisecond)
				}()
			}
			return nil
		}
	})
	require.NoError(t, err)
	require.Less(t, res.Stood, 10*time.Second, "the worker said that it waits")
}

// Whoever completes a swap may be stopped, and write the positions once others
// have completed it, and what was swapped in is gone and being filled again: what
// it writes must not have that passed over.
func TestASwapIsCompletedLate(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	const n = 2500 // more than one batch
	var all []domain.Event
	for i := range n {
		all = append(all, customer(i, 1))
	}
	s.Publish(t, all...)
	var fills *mongofake.ActiveFault
	_, err := s.rebuild(customers, func(c *rebuild.Config) {
		c.At = func(at string) error {
			if at != rebuild.Swapped {
				return nil
			}
			stop := s.run()
			s.eventually("a worker has completed it", func() bool { return s.count("_rebuilds") == 0 })
			stop()
			require.NoError(t, s.db.Collection("_customers").Drop(t.Context()))
			fills = s.fake.Fault(mongofake.Fault{Command: "update", Collection: "_customers", Hold: true})
			s.run()
			return fills.Wait(t.Context(), 1)
		}
	})
	require.ErrorContains(t, err, "not what is live")
	fills.Remove()
	s.eventually("filled again", func() bool { return s.count("_customers") == n })
}

// A topic is replaced while it is read, by one that is longer than what was read:
// the replica is made of that one alone, from its start.
func TestATopicIsReplacedDuringARebuild(t *testing.T) {
	for _, point := range []string{rebuild.Filled, rebuild.Pausing} {
		t.Run(point, func(t *testing.T) {
			s := newSystem(t)
			s.Publish(t, customer(1, 1), customer(2, 1), customer(3, 1))
			replaced := false
			_, err := s.rebuild(customers, func(c *rebuild.Config) {
				c.At = func(at string) error {
					if at != point || replaced {
						return nil
					}
					replaced = true
					topic := s.Namespace.Topic(domain.AggregateCustomer)
					s.DeleteTopic(t, topic)
					s.CreateTopics(t, 3, topic)
					for n := 11; n <= 40; n++ {
						s.Publish(t, customer(n, 1))
					}
					return nil
				}
			})
			require.NoError(t, err)
			require.Equal(t, 30, s.count("_customers"))
			require.Zero(t, s.version("_customers", id(1)))
			s.clean()
		})
	}
}

// A broker that delivers nothing is told, and is read on from when it delivers
// again.
func TestARebuildTellsThatKafkaDeliversNothing(t *testing.T) {
	s := newSystem(t)
	if s.Fake == nil {
		t.Skip("silences the in-process broker")
	}
	for n := range 20 {
		s.Publish(t, customer(n, 1))
	}
	var silent atomic.Bool
	silent.Store(true)
	s.Fake.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		s.Fake.KeepControl()
		return nil, errors.New("silence"), silent.Load()
	})
	told := make(chan string, 100)
	logger := slog.New(slog.NewTextHandler(lines(told), nil))
	done := make(chan error, 1)
	go func() {
		_, err := s.rebuild(customers, func(c *rebuild.Config) { c.Patience, c.Logger = 300*time.Millisecond, logger })
		done <- err
	}()
	for line := ""; !strings.Contains(line, "delivered nothing"); {
		select {
		case line = <-told:
		case err := <-done:
			t.Fatal("it ended", err)
		}
	}
	silent.Store(false)
	require.NoError(t, <-done)
	require.Equal(t, 20, s.count("_customers"))
}

// lines are sent as long as somebody has room for them.
type lines chan<- string

func (l lines) Write(line []byte) (int, error) {
	select {
	case l <- string(line):
	default:
	}
	return len(line), nil
}

// What was filled, and is dropped before the swap, is not said to be live.
func TestAShadowThatIsDroppedBeforeTheSwapIsTold(t *testing.T) {
	s := newSystem(t)
	if s.fake == nil {
		t.Skip("needs collections that have identities")
	}
	stop := s.run()
	s.Publish(t, customer(1, 1))
	s.eventually("replicated", func() bool { return s.version("_customers", id(1)) == 1 })
	stop() // a worker might be quicker to swap it in
	_, err := s.rebuild(customers, func(c *rebuild.Config) {
		c.At = func(at string) error {
			if at != rebuild.Swapping {
				return nil
			}
			found, err := s.db.ListCollectionNames(t.Context(), bson.D{{Key: "name", Value: bson.D{{Key: "$regex", Value: "^_customers_rebuild_"}}}})
			require.NoError(t, err)
			for _, name := range found {
				require.NoError(t, s.db.Collection(name).Drop(t.Context()))
			}
			return nil
		}
	})
	require.ErrorContains(t, err, "not what is live")
	require.Equal(t, int64(1), s.version("_customers", id(1)))
	_, err = s.rebuild(customers)
	require.NoError(t, err)
	require.Equal(t, int64(1), s.version("_customers", id(1)))
}
