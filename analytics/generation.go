package analytics

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/mongodb"
	"outflow/internal/rebuild"
)

const (
	prefix              = "_analytics_"
	stateCollection     = prefix + "state"
	positionsCollection = prefix + "positions"
)

// state is the document of _analytics_state: which generation is the one that
// is filled and read.
type state struct {
	ID         string `bson:"_id"`
	Generation string `bson:"generation"`
	Identity   string `bson:"identity"` // of its collections
}

const live = "live" // the state's _id

// readState returns the state, zero when there is none.
func readState(ctx context.Context, db *mongo.Database) (state, error) {
	var s state
	err := db.Collection(stateCollection).FindOne(ctx, bson.D{{Key: "_id", Value: live}}).Decode(&s)
	if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
		return s, fmt.Errorf("read %s: %w", stateCollection, err)
	}
	return s, nil
}

// books are the collections of one generation.
type books struct {
	db         *mongo.Database
	generation string
}

const buckets = "buckets"

// collection is that of the buckets, or of a kind's facts.
func (b *books) collection(name string) *mongo.Collection {
	return b.db.Collection(prefix + name + "_" + b.generation)
}

// identity is that of all collections together, given that of each; empty when
// one is missing.
func (b *books) identity(found map[string]string) string {
	parts := []string{b.generation}
	for _, name := range []string{ofOrders, ofCustomers, buckets} {
		id := found[b.collection(name).Name()]
		if id == "" {
			return ""
		}
		parts = append(parts, id)
	}
	return strings.Join(parts, "/")
}

// create makes the collections. Indexes that begin with a time are for the
// edges of windows, those that begin with customer for transactions.
func (b *books) create(ctx context.Context) error {
	index := func(fields ...string) mongo.IndexModel {
		var keys bson.D
		for _, f := range fields {
			keys = append(keys, bson.E{Key: f, Value: 1})
		}
		return mongo.IndexModel{Keys: keys}
	}
	sparse := func(field string) mongo.IndexModel {
		m := index(field)
		m.Options = options.Index().SetSparse(true)
		return m
	}
	return errors.Join(
		mongodb.Create(ctx, b.db, b.collection(ofOrders).Name(),
			index("placed_at"), sparse("confirmed_at"), sparse("refunded_at"),
			index("customer", "confirmed_at", "_id"), index("customer", "refunded_at", "_id")),
		mongodb.Create(ctx, b.db, b.collection(ofCustomers).Name()),
		mongodb.Create(ctx, b.db, b.collection(buckets).Name(), index("of", "hour")),
	)
}

// prepare returns the live generation and its identity. If there is none, or
// if one of its collections is gone or another one, it begins a new one, which
// it does once however many workers see that.
func prepare(ctx context.Context, db *mongo.Database, log *slog.Logger) (*books, string, error) {
	for {
		s, err := readState(ctx, db)
		if err != nil {
			return nil, "", err
		}
		found, err := mongodb.Identities(ctx, db) // after the state, so that what it names is there
		if err != nil {
			return nil, "", err
		}
		if b := (&books{db, s.Generation}); s.Generation != "" && b.identity(found) == s.Identity {
			return b, s.Identity, nil
		}
		if s.Generation != "" {
			log.Warn("figures are missing or were replaced: beginning again", "generation", s.Generation)
		}
		begun, err := begin(ctx, db, s)
		if err != nil {
			return nil, "", err
		}
		if begun {
			log.Info("began a generation of figures")
		}
	}
}

// begin makes a generation and puts it in the place of the one that was live,
// unless somebody else does. A name is never used twice, so that a worker that
// still writes to the collections of an old generation does no harm.
func begin(ctx context.Context, db *mongo.Database, was state) (bool, error) {
	b := &books{db, strings.ToLower(rand.Text()[:8])}
	if err := b.create(ctx); err != nil {
		return false, err
	}
	found, err := mongodb.Identities(ctx, db)
	if err != nil {
		return false, err
	}
	next := state{ID: live, Generation: b.generation, Identity: b.identity(found)}
	states := db.Collection(stateCollection)
	if was.Generation == "" {
		_, err = states.InsertOne(ctx, next)
	} else {
		var done *mongo.UpdateResult
		filter := bson.D{{Key: "_id", Value: live}, {Key: "generation", Value: was.Generation}}
		if done, err = states.ReplaceOne(ctx, filter, next); err == nil && done.MatchedCount == 0 {
			return false, b.drop(ctx)
		}
	}
	if mongodb.HasCode(err, mongodb.CodeDuplicateKey) {
		return false, b.drop(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("write %s: %w", stateCollection, err)
	}
	// Whoever is making another generation right now loses and begins again.
	return true, dropOthers(ctx, db, found)
}

// dropOthers removes the found collections of all generations but the live one
// and the one that a rebuild is making. The state is read last: whoever is
// stopped before, and finds no rebuild any more, finds what it has made live.
func dropOthers(ctx context.Context, db *mongo.Database, found map[string]string) error {
	rebuilt, err := rebuild.Running(ctx, db, jobName)
	if err != nil {
		return err
	}
	s, err := readState(ctx, db)
	if err != nil {
		return err
	}
	for name := range found {
		_, after, _ := strings.Cut(strings.TrimPrefix(name, prefix), "_")
		old := strings.HasPrefix(name, prefix) && after != s.Generation && after != rebuilt
		if old && !slices.Contains([]string{stateCollection, positionsCollection}, name) {
			if err := db.Collection(name).Drop(ctx); err != nil {
				return fmt.Errorf("drop %s: %w", name, err)
			}
		}
	}
	return nil
}

func (b *books) drop(ctx context.Context) error {
	for _, name := range []string{ofOrders, ofCustomers, buckets} {
		if err := b.collection(name).Drop(ctx); err != nil {
			return fmt.Errorf("drop %s: %w", b.collection(name).Name(), err)
		}
	}
	return nil
}
