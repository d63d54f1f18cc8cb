package analytics

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/events"
	"outflow/internal/mongodb"
	"outflow/internal/rebuild"
)

// Config says what to count and where. Brokers and MongoURI are required.
type Config struct {
	Brokers   []string
	Namespace events.Namespace // events.DefaultNamespace when empty
	MongoURI  string           // names the database too
	MaxBatch  int              // most events that are counted together; 1000 when 0
	Logger    *slog.Logger     // slog.Default when nil
	Kafka     []kgo.Opt        // further options of the Kafka clients
}

// Worker keeps the figures. Several may run on one database.
type Worker struct {
	cfg      Config
	target   mongodb.Target
	db       *mongo.Database // while it runs
	kept     *mongodb.Positions
	consumer *consumer.Consumer

	mu       sync.Mutex
	prepared *books                        // what Load found last
	books    map[consumer.Partition]*books // the generation that each partition is counted in
}

// New returns a worker, which does nothing until it is run. It returns an error
// when the URI is wrong.
func New(cfg Config) (*Worker, error) {
	target, err := mongodb.Parse(cfg.MongoURI, "outflow analytics")
	if err != nil {
		return nil, err
	}
	if cfg.Namespace == "" {
		cfg.Namespace = events.DefaultNamespace
	}
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 1000
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	w := &Worker{cfg: cfg, target: target, books: map[consumer.Partition]*books{}}
	w.consumer = consumer.New(consumer.Config{
		Brokers: cfg.Brokers, Group: cfg.Namespace.Group("analytics"), Topics: w.topics(), Handler: w.handle,
		MaxBatch: cfg.MaxBatch, Positions: keeper{w}, Logger: cfg.Logger, Client: cfg.Kafka,
	})
	return w, nil
}

func (w *Worker) topics() []string { return topics(w.cfg.Namespace) }

func topics(ns events.Namespace) []string {
	return []string{ns.Topic(domain.AggregateOrder), ns.Topic(domain.AggregateCustomer)}
}

// Run counts until ctx ends, and then returns nil once what is in hand is
// written. MongoDB or Kafka being away doesn't end it. It returns a
// [consumer.DataLossError] when Kafka no longer has the events that are to be
// counted next.
func (w *Worker) Run(ctx context.Context) (err error) {
	db, closing, err := w.target.Open()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := closing(ctx); err == nil {
			err = cerr
		}
	}()
	w.use(db)
	return w.consumer.Run(ctx)
}

func (w *Worker) use(db *mongo.Database) {
	w.db = db
	w.kept = &mongodb.Positions{
		Collection: db.Collection(positionsCollection), Logger: w.cfg.Logger,
		Prepare: func(ctx context.Context) (map[string]string, error) {
			found, identity, err := prepare(ctx, db, w.cfg.Logger)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.prepared = found
			return w.forAll(identity), err
		},
		Identify: func(ctx context.Context) (map[string]string, error) {
			s, err := readState(ctx, db)
			if err != nil {
				return nil, err
			}
			found, err := mongodb.Identities(ctx, db)
			return w.forAll((&books{db, s.Generation}).identity(found)), err
		},
		Await: (&rebuild.Gate{Job: job(db, w.cfg.Namespace)}).Await,
	}
}

// forAll is an identity that is that of all topics: each fills all collections
// of a generation or none.
func (w *Worker) forAll(identity string) map[string]string {
	all := map[string]string{}
	for _, t := range w.topics() {
		all[t] = identity
	}
	return all
}

// keeper keeps a worker's positions, and notes which generation a partition is
// assigned to: one that was begun meanwhile must not get the events that follow
// what another one has.
type keeper struct{ *Worker }

// Load implements [consumer.Positions]. It is not called twice at once.
func (k keeper) Load(ctx context.Context, partitions []consumer.Partition) (map[consumer.Partition]consumer.Position, error) {
	found, err := k.kept.Load(ctx, partitions)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range partitions {
		k.books[p] = k.prepared
	}
	return found, nil
}

// Save implements [consumer.Positions].
func (k keeper) Save(ctx context.Context, moved map[consumer.Partition]consumer.Position) error {
	return k.kept.Save(ctx, moved)
}

var errNotAssigned = errors.New("the message's partition is not assigned")

// handle counts a batch.
func (w *Worker) handle(ctx context.Context, batch []consumer.Message) []error {
	return count(ctx, batch, w.booksOf)
}

// count counts a batch in the books of each message's partition.
func count(ctx context.Context, batch []consumer.Message, booksOf func(consumer.Message) *books) []error {
	type group struct {
		books *books
		kind  *kind
	}
	answers := make([]error, len(batch))
	histories := map[group]map[domain.ID]*history{}
	members := map[group][]int{}    // the messages of each group
	refused := map[domain.ID]bool{} // entities of which a message was refused
	for i, m := range batch {
		id := m.Event.AggregateID
		if refused[id] {
			continue // it comes again, or is parked, behind the one that was refused
		}
		k, s, err := readEvent(m.Event)
		if err != nil {
			answers[i], refused[id] = consumer.Permanent(err), true
			continue
		}
		g := group{booksOf(m), k}
		if g.books == nil {
			answers[i], refused[id] = errNotAssigned, true
			continue
		}
		if histories[g] == nil {
			histories[g] = map[domain.ID]*history{}
		}
		h := histories[g][id]
		if h == nil {
			h = &history{id: id.String(), partition: m.Partition}
			histories[g][id] = h
		}
		h.steps = append(h.steps, s)
		members[g] = append(members[g], i)
	}
	for g, byID := range histories {
		if err := g.books.apply(ctx, g.kind, slices.Collect(maps.Values(byID))); err != nil {
			for _, i := range members[g] {
				answers[i] = err
			}
		}
	}
	return answers
}

func (w *Worker) booksOf(m consumer.Message) *books {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.books[consumer.Partition{Topic: m.Topic, Partition: m.Partition}]
}

// Stats counts what the worker did since it was made.
func (w *Worker) Stats() consumer.Stats { return w.consumer.Stats() }
