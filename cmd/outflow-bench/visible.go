package main

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	mongooptions "go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sync/errgroup"

	"outflow/internal/events"
	"outflow/replicator"
)

const replicaWrites = 500 // a second

var visibleFigures = []figure{{
	name: "replica-latency", what: "from the acknowledgement of a commit to a document that readers of the replica see, at 500 writes a second",
	limit:   "the way without transactions, and what comes at a time in one bulk write",
	goals:   []goal{p99Under(100), memoryUnder(150)},
	prepare: replicaLatency,
}}

func replicaLatency(ctx context.Context, s *stand) ([]side, error) {
	c, err := s.cluster(ctx, true)
	return []side{
		{"outflow", func(ctx context.Context) (sample, error) {
			in, err := s.install(ctx, c, "migrated")
			if err != nil {
				return sample{}, err
			}
			r, err := in.streaming(ctx)
			if err != nil {
				return sample{}, err
			}
			p, err := in.worker(ctx, "replicate")
			if err != nil {
				return sample{}, err
			}
			out, err := in.measured(ctx, replicaWrites, in.watchReplica)
			if err != nil {
				return sample{}, err
			}
			out.Memory, err = memory(r.process, p)
			return out, errors.Join(err, in.drop())
		}},
		{"without transactions", func(ctx context.Context) (sample, error) {
			in, err := s.install(ctx, c, "migrated")
			if err != nil {
				return sample{}, err
			}
			stop, k, err := in.plainRelay(ctx)
			if err != nil {
				return sample{}, err
			}
			defer k.Close()
			out, err := in.measured(ctx, replicaWrites, func(ctx context.Context, c *course) error {
				g, ctx := errgroup.WithContext(ctx)
				g.Go(func() error { return in.plainReplica(ctx, k) })
				g.Go(func() error { return in.watchReplica(ctx, c) })
				return g.Wait()
			})
			return out, errors.Join(err, stop(), in.drop())
		}},
	}, err
}

// plainReplica writes what a consumer gets, each poll in one bulk write.
func (in *installation) plainReplica(ctx context.Context, k *kgo.Client) error {
	return withMongo(ctx, in.mongoURI, func(ctx context.Context, db *mongo.Database) error {
		for {
			fetches := k.PollFetches(ctx)
			if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
				return err
			}
			var models []mongo.WriteModel
			for r := range fetches.RecordsAll() {
				e, err := events.Decode(r)
				if err != nil {
					return err
				}
				doc, err := replicator.Document(e)
				if err != nil {
					return err
				}
				models = append(models, guarded(e.AggregateID.String(), e.AggregateVersion, doc))
			}
			if len(models) == 0 {
				continue
			}
			if _, err := db.Collection(customersBase).BulkWrite(ctx, models, mongooptions.BulkWrite().SetOrdered(false)); err != nil {
				return err
			}
		}
	})
}

// guarded is how the replica is written: unless there is something newer.
func guarded(id string, version int64, doc bson.Raw) mongo.WriteModel {
	filter := bson.D{{Key: "_id", Value: id}, {Key: "version", Value: bson.D{{Key: "$lt", Value: version}}}}
	return mongo.NewReplaceOneModel().SetFilter(filter).SetUpsert(true).SetReplacement(doc)
}

const (
	customersBase = "_customers"
	mostWatched   = 500
	watchPause    = 200 * time.Microsecond
)

// watchReplica asks the replica for all that is committed and not yet seen, over
// and over: what it notes is late by one question and one pause at most.
func (in *installation) watchReplica(ctx context.Context, c *course) error {
	return withMongo(ctx, in.mongoURI, func(ctx context.Context, db *mongo.Database) error {
		base := db.Collection(customersBase)
		onlyID := mongooptions.Find().SetProjection(bson.D{{Key: "_id", Value: 1}}).SetBatchSize(mostWatched)
		from := 0 // all before it has arrived
		for ctx.Err() == nil {
			var ids bson.A
			for i := from; i < len(c.acked) && len(ids) < mostWatched && i < from+20*mostWatched; i++ {
				if c.there[i].Load() != 0 {
					if i == from {
						from++
					}
				} else if c.acked[i].Load() != 0 {
					ids = append(ids, numbered(i).String())
				}
			}
			if len(ids) > 0 {
				found, err := base.Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}}, onlyID)
				if err != nil {
					return err
				}
				var docs []struct {
					ID string `bson:"_id"`
				}
				if err := found.All(ctx, &docs); err != nil {
					return err
				}
				for _, d := range docs {
					i, err := numberOf(d.ID)
					if err != nil {
						return err
					}
					if err := c.arrive(i); err != nil {
						return err
					}
				}
			}
			time.Sleep(watchPause)
		}
		return ctx.Err()
	})
}
