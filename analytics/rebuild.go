package analytics

import (
	"context"
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/internal/consumer"
	"outflow/internal/events"
	"outflow/internal/mongodb"
	"outflow/internal/rebuild"
)

const jobName = "analytics"

// job is how the figures are rebuilt: as a generation that becomes the live one.
// Its name is never used again, so whoever still writes to it after it was
// dropped does no harm.
func job(db *mongo.Database, ns events.Namespace) rebuild.Job {
	return rebuild.Job{
		Name: jobName, Topics: topics(ns), Group: ns.Group("analytics"), DB: db, Positions: positionsCollection,
		Make: func(ctx context.Context, run string) error {
			found, err := mongodb.Identities(ctx, db)
			if err != nil {
				return err
			}
			if err := dropOthers(ctx, db, found); err != nil {
				return err
			}
			return (&books{db, run}).create(ctx)
		},
		Apply: func(ctx context.Context, run string, batch []consumer.Message) []error {
			shadow := &books{db, run}
			return count(ctx, batch, func(consumer.Message) *books { return shadow })
		},
		Discard: func(ctx context.Context, run string) error { return (&books{db, run}).drop(ctx) },
		Shadow: func(ctx context.Context, run string) (string, error) {
			found, err := mongodb.Identities(ctx, db)
			if id := (&books{db, run}).identity(found); id != "" || err != nil {
				return id, err
			}
			return "", errors.New("the figures were dropped while they were made")
		},
		Swap: func(ctx context.Context, run, identity string) error { return goLive(ctx, db, run, identity) },
		Identify: func(ctx context.Context) (map[string]string, error) {
			s, err := readState(ctx, db)
			if err != nil {
				return nil, err
			}
			found, err := mongodb.Identities(ctx, db)
			all := map[string]string{}
			for _, t := range topics(ns) {
				all[t] = (&books{db, s.Generation}).identity(found)
			}
			return all, err
		},
	}
}

// goLive makes a generation the live one, if it is what it was, and removes the
// others.
func goLive(ctx context.Context, db *mongo.Database, generation, identity string) error {
	for {
		was, err := readState(ctx, db)
		if err != nil {
			return err
		}
		found, err := mongodb.Identities(ctx, db)
		if err == nil && was.Generation == generation { // whoever did that may have died before the rest
			return dropOthers(ctx, db, found)
		}
		if err != nil || (&books{db, generation}).identity(found) != identity {
			return err
		}
		next := state{ID: live, Generation: generation, Identity: identity}
		states := db.Collection(stateCollection)
		var done *mongo.UpdateResult
		if was.Generation == "" {
			_, err = states.InsertOne(ctx, next)
		} else {
			done, err = states.ReplaceOne(ctx, bson.D{{Key: "_id", Value: live}, {Key: "generation", Value: was.Generation}}, next)
		}
		switch {
		case mongodb.HasCode(err, mongodb.CodeDuplicateKey) || err == nil && done != nil && done.MatchedCount == 0:
			continue // somebody was faster
		case err != nil:
			return fmt.Errorf("write %s: %w", stateCollection, err)
		}
		return dropOthers(ctx, db, found)
	}
}

// Rebuild makes the figures anew from the events, beside the workers, and puts
// them in the place of those that are there; cfg.Job is filled in. See package
// rebuild for what holds.
func Rebuild(ctx context.Context, mongoURI string, ns events.Namespace, cfg rebuild.Config) (res rebuild.Result, err error) {
	target, err := mongodb.Parse(mongoURI, "outflow rebuild")
	if err != nil {
		return res, err
	}
	db, closing, err := target.Open()
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, closing(ctx)) }()
	at := cfg.Job.At
	cfg.Job = job(db, ns)
	cfg.Job.At = at
	return rebuild.Run(ctx, cfg)
}
