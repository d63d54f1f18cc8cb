package replicator

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/connstring"

	"outflow/internal/consumer"
	"outflow/internal/events"
)

// Config says what to replicate and to where. Brokers and MongoURI are
// required.
type Config struct {
	Brokers   []string
	Namespace events.Namespace // events.DefaultNamespace when empty
	MongoURI  string           // names the database too
	MaxBatch  int              // most events in a bulk write; 1000 when 0
	Logger    *slog.Logger     // slog.Default when nil
	Kafka     []kgo.Opt        // further options of the Kafka clients
}

const (
	selectTimeout  = 5 * time.Second  // how long to look for a server that can be written to
	requestTimeout = 30 * time.Second // how long one bulk write may take
)

// Replicator keeps a replica. Several may run on one database.
type Replicator struct {
	client    *options.ClientOptions
	database  string
	db        *mongo.Database // while it runs
	positions *positions
	consumer  *consumer.Consumer
}

// New returns a replicator, which does nothing until it is run. It returns an
// error when the URI is wrong.
func New(cfg Config) (*Replicator, error) {
	uri, err := connstring.ParseAndValidate(cfg.MongoURI)
	if err != nil {
		return nil, fmt.Errorf("read the MongoDB URI: %w", err)
	}
	if uri.Database == "" {
		return nil, errNoDatabase
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
	r := &Replicator{
		client: options.Client().ApplyURI(cfg.MongoURI).SetAppName("outflow replicator").
			SetServerSelectionTimeout(selectTimeout).SetWriteConcern(writeconcern.Majority()),
		database: uri.Database,
	}
	if err := r.client.Validate(); err != nil {
		return nil, fmt.Errorf("read the MongoDB URI: %w", err)
	}
	var topics []string
	bases := map[string]string{}
	for _, e := range EntityCollections {
		topics = append(topics, cfg.Namespace.Topic(e.Aggregate))
		bases[cfg.Namespace.Topic(e.Aggregate)] = e.Base
	}
	r.positions = &positions{bases: bases, logger: cfg.Logger, known: map[consumer.Partition]position{}}
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
	client, err := mongo.Connect(r.client)
	if err != nil {
		return fmt.Errorf("configure the MongoDB client: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), selectTimeout)
		defer cancel()
		if cerr := client.Disconnect(ctx); err == nil && cerr != nil {
			err = fmt.Errorf("disconnect from MongoDB: %w", cerr)
		}
	}()
	r.db = client.Database(r.database)
	r.positions.db = r.db
	return r.consumer.Run(ctx)
}

// Stats counts what the replicator did since it was made.
func (r *Replicator) Stats() consumer.Stats { return r.consumer.Stats() }
