package analytics

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
	"outflow/internal/failpoint"
	"outflow/internal/kafkatest"
	"outflow/internal/mongodb"
	"outflow/internal/mongofake"
	"outflow/internal/rebuild"
)

func (c *cluster) rebuild(change ...func(*rebuild.Config)) (rebuild.Result, error) {
	cfg := rebuild.Config{Brokers: c.Brokers, Kafka: kafkatest.Opts(), Lease: 400 * time.Millisecond}
	for _, ch := range change {
		ch(&cfg)
	}
	return Rebuild(c.t.Context(), c.uri, c.Namespace, cfg)
}

// generations are those of which there are collections.
func (c *cluster) generations() map[string]bool {
	found, err := mongodb.Identities(context.Background(), c.db)
	require.NoError(c.t, err)
	all := map[string]bool{}
	for name := range found {
		if _, after, ok := strings.Cut(strings.TrimPrefix(name, prefix), "_"); ok && strings.HasPrefix(name, prefix) {
			all[after] = true
		}
	}
	return all
}

// The part of row 18 of the failure table that is about figures: wherever the
// rebuild is killed, it resumes, and the figures are those of the events.
func TestRow18RebuiltFiguresAreThoseOfTheEvents(t *testing.T) {
	for _, point := range rebuild.Failpoints {
		t.Run(point, func(t *testing.T) {
			c := startCluster(t)
			r := rand.New(rand.NewPCG(5, 5))
			const customers = 3
			all := mixed(r, world(r, 60, customers))
			_, stop := c.run()
			c.run()
			c.Publish(t, all[:len(all)/2]...)
			c.settled()
			// What redelivery can't mend.
			s, err := readState(t.Context(), c.db)
			require.NoError(t, err)
			_, err = (&books{c.db, s.Generation}).collection(buckets).DeleteMany(t.Context(), bson.D{})
			require.NoError(t, err)
			_, err = c.rebuild(func(cfg *rebuild.Config) {
				cfg.At = func(at string) error {
					if at == point {
						return failpoint.ErrInjected
					}
					return nil
				}
			})
			require.ErrorIs(t, err, failpoint.ErrInjected)
			c.Publish(t, all[len(all)/2:len(all)*3/4]...)
			_, err = c.rebuild()
			require.NoError(t, err)
			stop()
			c.Publish(t, all[len(all)*3/4:]...)
			c.settled()
			c.agree(t, r, all, customers)
			require.Len(t, c.generations(), 1)
		})
	}
}

func TestFiguresFromTheOutbox(t *testing.T) {
	c := startCluster(t)
	r := rand.New(rand.NewPCG(6, 6))
	const customers = 3
	all := mixed(r, world(r, 60, customers))
	c.Publish(t, all[:len(all)/2]...) // and lost
	kafkatest.DeleteOldest(t, c.Kafka, c.Namespace.Topic(domain.AggregateOrder))
	kafkatest.DeleteOldest(t, c.Kafka, c.Namespace.Topic(domain.AggregateCustomer))
	_, err := c.rebuild(func(cfg *rebuild.Config) {
		cfg.From = rebuild.FromOutbox
		cfg.Outbox = func(_ context.Context, after int64, each func([]domain.Event, int64) error) error {
			for i := int(after); i < len(all)/2; i += 10 {
				end := min(i+10, len(all)/2)
				if err := each(all[i:end], int64(end)); err != nil {
					return err
				}
			}
			return nil
		}
	})
	require.NoError(t, err)
	c.run()
	c.Publish(t, all[len(all)/2:]...)
	c.settled()
	c.agree(t, r, all, customers)
}

// Whoever makes figures live may die before it has removed the others: the next
// one that completes the swap does.
func TestWhatWasReplacedIsRemovedByTheNext(t *testing.T) {
	c := startCluster(t)
	_, _, err := prepare(t.Context(), c.db, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	s, err := readState(t.Context(), c.db)
	require.NoError(t, err)
	require.NoError(t, (&books{c.db, "replaced"}).create(t.Context()))
	require.NoError(t, goLive(t.Context(), c.db, s.Generation, s.Identity))
	require.Equal(t, map[string]bool{s.Generation: true}, c.generations())
}

// A worker that begins a generation is stopped before it removes the others, and
// a rebuild makes its own live meanwhile: that one isn't among them.
func TestAWorkerClearsAwayLate(t *testing.T) {
	c := startCluster(t)
	if c.fake == nil {
		t.Skip("holds what a worker asks the in-process server")
	}
	require.NoError(t, c.db.Drop(t.Context())) // no worker has ever run
	all := placed(id(1), id(2), "EUR", 100, epoch).confirm(epoch).events
	var late *mongofake.ActiveFault
	_, err := c.rebuild(func(cfg *rebuild.Config) {
		cfg.PauseTimeout, cfg.Lease = time.Second, time.Minute
		cfg.From = rebuild.FromOutbox
		cfg.Outbox = func(_ context.Context, _ int64, each func([]domain.Event, int64) error) error {
			return each(all, int64(len(all)))
		}
		cfg.At = func(at string) error {
			if at != rebuild.Filled {
				return nil
			}
			begins := c.fake.Fault(mongofake.Fault{Command: "insert", Collection: stateCollection, Count: 1, Hold: true})
			c.run()
			require.NoError(t, begins.Wait(t.Context(), 1))
			late = c.fake.Fault(mongofake.Fault{Command: "find", Collection: "_rebuilds", Count: 1, Hold: true})
			begins.Release()
			return late.Wait(t.Context(), 1)
		}
	})
	require.NoError(t, err)
	rebuilt, err := readState(t.Context(), c.db)
	require.NoError(t, err)
	late.Release()
	c.Publish(t, all...)
	c.settled()
	s, err := readState(t.Context(), c.db)
	require.NoError(t, err)
	require.Equal(t, rebuilt, s)
	require.Equal(t, map[string]bool{s.Generation: true}, c.generations())
}
