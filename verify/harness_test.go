package verify_test

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
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/goleak"

	"outflow/domain"
	"outflow/internal/kafkatest"
	"outflow/internal/mongofake"
	"outflow/internal/mongotest"
	"outflow/internal/pgtest"
	"outflow/outbox"
	"outflow/replicator"
	"outflow/store"
	"outflow/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

// system is the service from PostgreSQL to the replica, for one test.
type system struct {
	*kafkatest.Kafka
	t     *testing.T
	pg    *pgtest.DB
	store *store.Store
	uri   string
	db    *mongo.Database
	mongo *mongofake.Server // nil when it is a real one
	n     atomic.Int64
}

func newSystem(t *testing.T) *system {
	t.Helper()
	t.Parallel()
	s := &system{t: t, pg: pgtest.New(t), Kafka: kafkatest.Start(t)}
	s.connect()
	return s
}

// connect opens what is beside PostgreSQL and Kafka.
func (s *system) connect() {
	t := s.t
	t.Helper()
	pool, err := store.Open(t.Context(), s.pg.URL, 12)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s.store = store.New(pool, store.Config{})
	s.uri, s.mongo = mongotest.Start(t, string(s.Namespace))
	client, err := mongo.Connect(options.Client().ApplyURI(s.uri))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(context.Background()) })
	s.db = client.Database(string(s.Namespace))
}

func (s *system) relayConfig() outbox.Config {
	return outbox.Config{
		PostgresURL: s.pg.URL, Brokers: s.Brokers, Namespace: s.Namespace, Partitions: 3, Group: string(s.Namespace),
		KafkaOptions: kafkatest.Opts(), IdleInterval: 200 * time.Millisecond, Logger: s.logger(),
	}
}

func (s *system) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// run runs something until stop is called or the test ends.
func (s *system) run(what func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- what(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			require.NoError(s.t, err)
		case <-time.After(time.Minute):
			s.t.Error("it did not stop")
		}
	})
	s.t.Cleanup(stop)
	return stop
}

func (s *system) relay() { s.run(outbox.NewRelay(s.relayConfig()).Run) }

func (s *system) replicate() (stop func()) {
	r, err := replicator.New(replicator.Config{Brokers: s.Brokers, Namespace: s.Namespace, MongoURI: s.uri, Logger: s.logger(), Kafka: kafkatest.Opts()})
	require.NoError(s.t, err)
	return s.run(r.Run)
}

// verify returns what a comparison finds, by id.
func (s *system) verify(change ...func(*verify.Replica)) (*verify.Report, map[string]verify.Difference) {
	s.t.Helper()
	found := map[string]verify.Difference{}
	v := &verify.Replica{
		Store: s.store, MongoURI: s.uri, Brokers: s.Brokers, Namespace: s.Namespace, Kafka: kafkatest.Opts(),
		Published:    func(ctx context.Context) error { return outbox.AwaitPublished(ctx, s.relayConfig()) },
		OnDifference: func(d verify.Difference) { found[d.ID] = d },
	}
	for _, c := range change {
		c(v)
	}
	report, err := v.Run(s.t.Context())
	require.NoError(s.t, err)
	return report, found
}

func (s *system) customer() domain.Customer {
	s.t.Helper()
	c, err := s.store.CreateCustomer(s.t.Context(), domain.CustomerInput{
		Name: "Ada", Email: fmt.Sprintf("ada%d@example.com", s.n.Add(1)), Metadata: map[string]string{"b": "2", "a.x": "1"},
		Address: &domain.Address{City: "Berlin"}, SpendingLimit: &domain.Money{Amount: 7, Currency: "EUR"},
	}, domain.Metadata{})
	require.NoError(s.t, err)
	return c
}

func (s *system) rename(id domain.ID) error {
	_, err := s.store.UpdateCustomer(s.t.Context(), id, store.Precondition{}, func(c domain.Customer) (domain.CustomerInput, error) {
		c.Name = fmt.Sprintf("Ada %d", s.n.Add(1))
		return c.CustomerInput, nil
	}, domain.Metadata{})
	return err
}

func (s *system) order(customer domain.ID) domain.Order {
	s.t.Helper()
	o, err := s.store.PlaceOrder(s.t.Context(), domain.OrderInput{CustomerID: customer, Currency: "EUR", Items: []domain.Item{{SKU: "A", Quantity: 1, UnitPrice: 5}}}, domain.Metadata{})
	require.NoError(s.t, err)
	return o
}

// load changes entities until stop is called: of those given, and others that
// it makes and deletes. Now and then it waits for the replica: some servers are
// slower than PostgreSQL, and verify rightly gives up when nothing catches up.
func (s *system) load(writers int, of []domain.Customer) (stop func()) {
	done := make(chan struct{})
	var writing sync.WaitGroup
	failed := make(chan error, writers)
	for w := range writers {
		random := rand.New(rand.NewPCG(1, uint64(w)))
		writing.Go(func() {
			for n := 1; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				err := s.change(random, of)
				if err == nil && n%50 == 0 {
					err = s.awaitReplica(done)
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(done)
		writing.Wait()
		select {
		case err := <-failed:
			require.NoError(s.t, err)
		default:
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// awaitReplica waits until the replica has what was committed before.
func (s *system) awaitReplica(done <-chan struct{}) error {
	made, err := s.store.CreateCustomer(s.t.Context(), domain.CustomerInput{Name: "Eve", Email: fmt.Sprintf("eve%d@example.com", s.n.Add(1))}, domain.Metadata{})
	for err == nil && s.doc("_customers", made.ID) == nil {
		select {
		case <-done:
			return nil
		case <-time.After(5 * time.Millisecond):
		}
	}
	return err
}

func (s *system) change(random *rand.Rand, of []domain.Customer) error {
	c := of[random.IntN(len(of))]
	switch random.IntN(4) {
	case 0:
		made, err := s.store.CreateCustomer(s.t.Context(), domain.CustomerInput{Name: "Bob", Email: fmt.Sprintf("bob%d@example.com", s.n.Add(1))}, domain.Metadata{})
		if err != nil || random.IntN(2) == 0 {
			return err
		}
		return s.store.DeleteCustomer(s.t.Context(), made.ID, store.Precondition{}, domain.Metadata{})
	case 1:
		o, err := s.store.PlaceOrder(s.t.Context(), domain.OrderInput{CustomerID: c.ID, Currency: "EUR", Items: []domain.Item{{SKU: "A", Quantity: 1, UnitPrice: 5}}}, domain.Metadata{})
		if err != nil || random.IntN(2) == 0 {
			return err
		}
		_, err = s.store.CancelOrder(s.t.Context(), o.ID, store.Precondition{}, domain.Metadata{})
		return err
	}
	err := s.rename(c.ID)
	if known, ok := errors.AsType[*domain.Error](err); ok && known.Code == domain.CodeWriteConflict {
		return nil // others changed it at the same time, too often
	}
	return err
}

func (s *system) doc(collection string, id domain.ID) bson.M {
	var doc bson.M
	if err := s.db.Collection(collection).FindOne(s.t.Context(), bson.D{{Key: "_id", Value: id.String()}}).Decode(&doc); err != nil {
		return nil
	}
	return doc
}
