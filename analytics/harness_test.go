package analytics

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/goleak"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/events"
	"outflow/internal/mongofake"
	"outflow/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

// server is a MongoDB server.
type server struct {
	uri  string
	fake *mongofake.Server // nil when the server is a real one
}

func startServer(t *testing.T) *server {
	t.Helper()
	if real := os.Getenv("OUTFLOW_TEST_MONGO"); real != "" {
		return &server{uri: real}
	}
	fake, err := mongofake.Start(context.Background(), mongofake.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, fake.Close()) })
	return &server{uri: fake.URI(), fake: fake}
}

// system is a database of its own, and a worker on it.
type system struct {
	*server
	db     *mongo.Database
	worker *Worker
}

// newSystem returns a system and what takes it away.
func (s *server) newSystem(t require.TestingT) (*system, func()) {
	u, err := url.Parse(s.uri)
	require.NoError(t, err)
	u.Path = "/a" + strings.ToLower(rand.Text()[:10])
	if u.User != nil && !u.Query().Has("authSource") {
		q := u.Query()
		q.Set("authSource", "admin")
		u.RawQuery = q.Encode()
	}
	client, err := mongo.Connect(options.Client().ApplyURI(u.String()).SetServerSelectionTimeout(2 * time.Second))
	require.NoError(t, err)
	sys := &system{server: &server{uri: u.String(), fake: s.fake}, db: client.Database(u.Path[1:])}
	sys.worker = sys.newWorker(t, Config{})
	return sys, func() {
		_ = sys.db.Drop(context.Background())
		_ = client.Disconnect(context.Background())
	}
}

func start(t *testing.T) *system {
	t.Helper()
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a MongoDB server")
	}
	sys, end := startServer(t).newSystem(t)
	t.Cleanup(end)
	return sys
}

const partitions = 3

// newWorker returns a worker that has all partitions and is called directly.
func (s *system) newWorker(t require.TestingT, cfg Config) *Worker {
	cfg.MongoURI, cfg.Brokers = s.uri, []string{"unused:1"}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	w, err := New(cfg)
	require.NoError(t, err)
	w.use(s.db)
	w.assign(t)
	return w
}

func (w *Worker) assign(t require.TestingT) {
	var all []consumer.Partition
	for _, topic := range w.topics() {
		for p := range int32(partitions) {
			all = append(all, consumer.Partition{Topic: topic, Partition: p})
		}
	}
	_, err := keeper{w}.Load(context.Background(), all)
	require.NoError(t, err)
}

func (s *system) reader(now time.Time) *Reader {
	return NewReader(s.db, func() time.Time { return now })
}

// id returns the n-th of the tests' ids.
func id(n int) domain.ID {
	return domain.MustParseID(fmt.Sprintf("01938f00-0000-7000-8000-%012x", n))
}

var epoch = time.Date(2026, 11, 21, 4, 5, 6, 789e6, time.UTC)

// change makes the event of a decision.
func change[T any](aggregate string, of domain.ID, c domain.Change[T], err error) domain.Event {
	must(err)
	e := domain.Event{
		ID: of, AggregateType: aggregate, AggregateID: of, AggregateVersion: c.Version,
		Type: c.Type, Key: of.String(), Metadata: json.RawMessage("{}"), OccurredAt: c.At,
	}
	if c.Before != nil {
		e.Before, err = json.Marshal(c.Before)
		must(err)
	}
	if c.After != nil {
		e.After, err = json.Marshal(c.After)
		must(err)
	}
	return e
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// story makes the events of one order as decisions make them.
type story struct {
	order  domain.Order
	events []domain.Event
}

var customer = domain.Customer{CustomerInput: domain.CustomerInput{Name: "Ada", Email: "ada@example.com", Status: domain.CustomerActive}}

func placed(order, customer domain.ID, currency string, total int64, at time.Time) *story {
	s := &story{}
	c, err := domain.PlaceOrder(order, domain.OrderInput{
		CustomerID: customer, Currency: currency, Items: []domain.Item{{SKU: "A", Quantity: 1, UnitPrice: total}},
	}, at)
	return s.add(order, c, err)
}

func (s *story) add(of domain.ID, c domain.Change[domain.Order], err error) *story {
	s.events = append(s.events, change(domain.AggregateOrder, of, c, err))
	if c.After != nil {
		s.order = *c.After
	}
	return s
}

func (s *story) update(total int64, currency string, at time.Time) *story {
	in := s.order.OrderInput.Clone()
	in.Currency, in.Items[0].UnitPrice = currency, total
	c, err := domain.UpdateOrder(s.order, in, at)
	if err == nil && c.NoOp() {
		return s
	}
	return s.add(s.order.ID, c, err)
}

func (s *story) confirm(at time.Time) *story {
	return s.add(s.order.ID, domain.DecideOrder(s.order, &customer, 0, at), nil)
}

func (s *story) reject(at time.Time) *story {
	return s.add(s.order.ID, domain.DecideOrder(s.order, nil, 0, at), nil)
}

func (s *story) cancel(at time.Time) *story {
	c, err := domain.CancelOrder(s.order, customer, at)
	return s.add(s.order.ID, c, err)
}

func (s *story) fulfil(at time.Time) *story {
	c, err := domain.FulfilOrder(s.order, at)
	return s.add(s.order.ID, c, err)
}

func (s *story) refund(at time.Time) *story {
	c, err := domain.RefundOrder(s.order, at)
	return s.add(s.order.ID, c, err)
}

func (s *story) remove(at time.Time) *story {
	c, err := domain.DeleteOrder(s.order, at)
	return s.add(s.order.ID, c, err)
}

// message is an event as it comes from Kafka.
func message(e domain.Event, partition int32, offset int64) consumer.Message {
	r := events.DefaultNamespace.Record(&e)
	r.Partition, r.Offset = partition, offset
	decoded, err := events.Decode(r)
	must(err)
	return consumer.Message{Event: decoded, Topic: r.Topic, Partition: partition, Offset: offset, Record: r}
}

// deliver hands events to a worker in one batch, which it must take.
func (s *system) deliver(t *testing.T, all ...domain.Event) {
	t.Helper()
	var batch []consumer.Message
	for i, e := range all {
		batch = append(batch, message(e, int32(e.AggregateID[15])%partitions, int64(i)))
	}
	for _, err := range s.worker.handle(t.Context(), batch) {
		require.NoError(t, err)
	}
}

// deliveries hand the events of entities to a worker as Kafka and the loop
// might: those of one entity in order, batches cut anywhere, entities and
// partitions mixed, anything again at any time.
type deliveries struct {
	random  *mathrand.Rand
	queues  [][]consumer.Message // of each entity
	handled []int                // how many of each were answered with nil
}

func deliveriesOf(random *mathrand.Rand, all []domain.Event) *deliveries {
	d := &deliveries{random: random}
	index := map[domain.ID]int{}
	for n, e := range all {
		i, ok := index[e.AggregateID]
		if !ok {
			i = len(d.queues)
			index[e.AggregateID] = i
			d.queues = append(d.queues, nil)
		}
		d.queues[i] = append(d.queues[i], message(e, int32(e.AggregateID[15])%partitions, int64(n)))
	}
	d.handled = make([]int, len(d.queues))
	return d
}

func (d *deliveries) done() bool {
	for i, q := range d.queues {
		if d.handled[i] < len(q) {
			return false
		}
	}
	return true
}

// batch returns what comes next, and for each entity in it how far it goes.
func (d *deliveries) batch() (batch []consumer.Message, upTo map[int]int) {
	upTo = map[int]int{}
	for _, i := range d.random.Perm(len(d.queues))[:1+d.random.IntN(len(d.queues))] {
		q := d.queues[i]
		from := d.handled[i]
		if d.random.IntN(3) == 0 {
			from = d.random.IntN(from + 1)
		}
		to := from + d.random.IntN(len(q)-from+1)
		batch, upTo[i] = append(batch, q[from:to]...), to
	}
	return batch, upTo
}

// next delivers a batch and notes what was handled.
func (d *deliveries) next(ctx context.Context, w *Worker) error {
	batch, upTo := d.batch()
	if len(batch) == 0 {
		return nil
	}
	for _, err := range w.handle(ctx, batch) {
		if err != nil {
			return err
		}
	}
	for i, to := range upTo {
		d.handled[i] = max(d.handled[i], to)
	}
	return nil
}
