package replicator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/internal/consumer"
	"outflow/internal/events"
	"outflow/internal/mongodb"
	"outflow/internal/rebuild"
)

// shadowName is where a rebuild fills what is to become the base collection.
func (e EntityCollection) shadowName(run string) string { return e.shadowPrefix() + run }

func (e EntityCollection) shadowPrefix() string { return e.Base + "_rebuild_" }

// job is how a collection is rebuilt. Writes to a shadow are guarded like all
// others, so two rebuilds that fill the same one do no harm.
func (e EntityCollection) job(db *mongo.Database, ns events.Namespace) rebuild.Job {
	return rebuild.Job{
		Name: e.View, Topics: []string{ns.Topic(e.Aggregate)}, Group: ns.Group("replicator"), DB: db, Positions: positionsCollection,
		Make: func(ctx context.Context, run string) error {
			if err := prepare(ctx, db); err != nil {
				return err
			}
			if err := e.discardOthers(ctx, db, run); err != nil {
				return err
			}
			return e.create(ctx, db, e.shadowName(run))
		},
		Apply: func(ctx context.Context, run string, batch []consumer.Message) []error {
			return apply(ctx, func(string, ...collectionOption) *mongo.Collection { return db.Collection(e.shadowName(run)) }, batch)
		},
		Discard: func(ctx context.Context, run string) error { return db.Collection(e.shadowName(run)).Drop(ctx) },
		Shadow: func(ctx context.Context, run string) (string, error) {
			found, err := mongodb.Identities(ctx, db)
			if id := found[e.shadowName(run)]; id != "" || err != nil {
				return id, err
			}
			return "", fmt.Errorf("%s was dropped while it was filled", e.shadowName(run))
		},
		Swap: func(ctx context.Context, run, identity string) error {
			found, err := mongodb.Identities(ctx, db)
			if err != nil || found[e.shadowName(run)] != identity {
				return err
			}
			return mongodb.Rename(ctx, db, e.shadowName(run), e.Base)
		},
		Identify: func(ctx context.Context) (map[string]string, error) {
			found, err := mongodb.Identities(ctx, db)
			return map[string]string{ns.Topic(e.Aggregate): found[e.Base]}, err
		},
	}
}

// discardOthers removes what is left of other rebuilds: one that was given up,
// or that wrote to its shadow after another one had swapped that in.
func (e EntityCollection) discardOthers(ctx context.Context, db *mongo.Database, run string) error {
	found, err := mongodb.Identities(ctx, db)
	if err != nil {
		return err
	}
	for name := range found {
		if strings.HasPrefix(name, e.shadowPrefix()) && name != e.shadowName(run) {
			if err := db.Collection(name).Drop(ctx); err != nil {
				return fmt.Errorf("drop %s: %w", name, err)
			}
		}
	}
	return nil
}

// Rebuild makes one of the [EntityCollections] anew from the events, beside the
// replicators, and puts it in the place of the one that is there; cfg.Job is
// filled in. With cfg.Until it is left in a collection of its own instead, whose
// name is returned. See package rebuild for what holds.
func Rebuild(ctx context.Context, e EntityCollection, mongoURI string, ns events.Namespace, cfg rebuild.Config) (res rebuild.Result, collection string, err error) {
	target, err := mongodb.Parse(mongoURI, "outflow rebuild")
	if err != nil {
		return res, "", err
	}
	db, closing, err := target.Open()
	if err != nil {
		return res, "", err
	}
	defer func() { err = errors.Join(err, closing(ctx)) }()
	at := cfg.Job.At
	cfg.Job = e.job(db, ns)
	cfg.Job.At = at
	collection = e.Base
	if !cfg.Until.IsZero() {
		// Not to be mistaken for a rebuild, nor removed by one.
		stamp := cfg.Until.UTC().Format("20060102T150405.000Z")
		collection = e.View + "_at_" + strings.ReplaceAll(stamp, ".", "_")
		asOf := e
		asOf.Base = collection
		live := cfg.Job
		cfg.Job = asOf.job(db, ns)
		cfg.Job.At, cfg.Job.Name, cfg.Job.Identify = at, live.Name+" at "+cfg.Until.UTC().Format(time.RFC3339Nano), live.Identify
		cfg.Job.Make = func(ctx context.Context, run string) error { return asOf.create(ctx, db, asOf.shadowName(run)) }
		cfg.Keep = func(ctx context.Context, run string) error {
			return mongodb.Rename(ctx, db, asOf.shadowName(run), collection)
		}
	}
	res, err = rebuild.Run(ctx, cfg)
	return res, collection, err
}
