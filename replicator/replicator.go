package replicator

import (
	"context"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/internal/consumer"
	"outflow/internal/events"
	"outflow/internal/mongodb"
	"outflow/internal/rebuild"
)

// Config says what to replicate and to where. Brokers and MongoURI are
// required.
type Config struct {
	Brokers   []string
	Namespace events.Namespace // events.DefaultNamespace when empty
	MongoURI  string           // names the database too
	MaxBatch  int              // most events that are applied together; 1000 when 0
	Logger    *slog.Logger     // slog.Default when nil
	Kafka     []kgo.Opt        // further options of the Kafka clients
}

// Replicator keeps a replica. Several may run on one database.
type Replicator struct {
	target    mongodb.Target
	namespace events.Namespace
	db        *mongo.Database   // while it runs
	bases     map[string]string // topic -> base collection
	positions *mongodb.Positions
	consumer  *consumer.Consumer
}

// New returns a replicator, which does nothing until it is run. It returns an
// error when the URI is wrong.
func New(cfg Config) (*Replicator, error) {
	target, err := mongodb.Parse(cfg.MongoURI, "outflow replicator")
	if err != nil {
		return nil, err
	}
	if cfg.Namespace == "" {
		cfg.Namespace = events.DefaultNamespace
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 1000
	}
	r := &Replicator{target: target, namespace: cfg.Namespace, bases: map[string]string{}, positions: &mongodb.Positions{Logger: cfg.Logger}}
	var topics []string
	for _, e := range EntityCollections {
		topics = append(topics, cfg.Namespace.Topic(e.Aggregate))
		r.bases[cfg.Namespace.Topic(e.Aggregate)] = e.Base
	}
	r.consumer = consumer.New(consumer.Config{
		Brokers: cfg.Brokers, Group: cfg.Namespace.Group("replicator"), Topics: topics, Handler: r.handle,
		MaxBatch: cfg.MaxBatch, Positions: r.positions, Logger: cfg.Logger, Client: cfg.Kafka,
	})
	return r, nil
}

// Run replicates until ctx ends, and then returns nil once what is in hand is
// written. MongoDB or Kafka being away doesn't end it. It returns a
// [consumer.DataLossError] when Kafka no longer has the events that the replica
// needs next.
func (r *Replicator) Run(ctx context.Context) (err error) {
	db, closing, err := r.target.Open()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := closing(ctx); err == nil {
			err = cerr
		}
	}()
	r.use(db)
	return r.consumer.Run(ctx)
}

func (r *Replicator) use(db *mongo.Database) {
	r.db = db
	r.positions.Collection = db.Collection(positionsCollection)
	r.positions.Identify = func(ctx context.Context) (map[string]string, error) {
		found, err := mongodb.Identities(ctx, db)
		byTopic := map[string]string{}
		for topic, base := range r.bases {
			byTopic[topic] = found[base]
		}
		return byTopic, err
	}
	r.positions.Prepare = func(ctx context.Context) (map[string]string, error) {
		if err := prepare(ctx, db); err != nil {
			return nil, err
		}
		return r.positions.Identify(ctx)
	}
	gates := make([]rebuild.Gate, len(EntityCollections))
	for i, e := range EntityCollections {
		gates[i].Job = e.job(db, r.namespace)
	}
	r.positions.Await = func(ctx context.Context, partitions []consumer.Partition) (waited bool, err error) {
		for i := range gates {
			one, err := gates[i].Await(ctx, partitions)
			if waited = waited || one; err != nil {
				return waited, err
			}
		}
		return waited, nil
	}
}

// Stats counts what the replicator did since it was made.
func (r *Replicator) Stats() consumer.Stats { return r.consumer.Stats() }
