package mongofake_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sync/errgroup"
)

// Manual: "Atomicity and Transactions": a write to one document is atomic.
func TestIncrementsAreNotLost(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c, D("_id", 1, "n", 0))
	const writers, each = 12, 200
	var g errgroup.Group
	for range writers {
		g.Go(func() error {
			for range each {
				if _, err := c.UpdateOne(t.Context(), D("_id", 1), D("$inc", D("n", 1))); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	require.Equal(t, D("_id", int32(1), "n", int32(writers*each)), all(t, c, D())[0])
}

// Many writers bring different versions of one document that isn't there yet:
// one inserts it, the others either find it older than theirs and replace it, or
// get E11000; those repeat without upsert, and then matching nothing means that
// theirs is stale. The highest version wins. Manual: "db.collection.updateOne()",
// "Upsert with Duplicate Values".
func TestRacingGuardedUpserts(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	for round := range 40 {
		id := fmt.Sprintf("round %d", round)
		const writers = 16
		inserted := make([]int64, writers)
		var g errgroup.Group
		for w := range writers {
			g.Go(func() error {
				version := int64(w + 1)
				guard := D("_id", id, "version", D("$lt", version))
				doc := D("_id", id, "version", version)
				r, err := c.ReplaceOne(t.Context(), guard, doc, options.Replace().SetUpsert(true))
				if mongo.IsDuplicateKeyError(err) {
					r, err = c.ReplaceOne(t.Context(), guard, doc)
				}
				if err != nil {
					return err
				}
				inserted[w] = r.UpsertedCount
				return nil
			})
		}
		require.NoError(t, g.Wait())
		total := int64(0)
		for _, n := range inserted {
			total += n
		}
		require.EqualValues(t, 1, total, "exactly one insert")
		require.Equal(t, []bson.D{D("_id", id, "version", int64(writers))}, all(t, c, D("_id", id)))
	}
}

// Two bulk writers with the same ids in opposite orders: no deadlock, nothing
// lost. Manual: "Bulk Write Operations".
func TestRacingBulkWrites(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	const documents, rounds = 200, 5
	var g errgroup.Group
	for w := range 4 {
		g.Go(func() error {
			for round := range rounds {
				models := make([]mongo.WriteModel, documents)
				for i := range models {
					id := i
					if w%2 == 1 {
						id = documents - 1 - i
					}
					models[i] = versioned(fmt.Sprintf("%03d", id), int64(round*4+w+1))
				}
				_, err := c.BulkWrite(t.Context(), models, options.BulkWrite().SetOrdered(false))
				if err != nil && !mongo.IsDuplicateKeyError(err) {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	got := all(t, c, D())
	require.Len(t, got, documents)
	for _, d := range got {
		require.Equal(t, int64(rounds*4), d[1].Value, "%v", d)
	}
}

// Of racing inserts under a unique index one succeeds. Manual: "Unique Indexes".
func TestRacingUniqueInserts(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	require.NoError(t, createIndex(t, c, D("email", 1), options.Index().SetUnique(true)))
	for round := range 20 {
		won := make([]bool, 8)
		var g errgroup.Group
		for w := range won {
			g.Go(func() error {
				_, err := c.InsertOne(t.Context(), D("email", round))
				won[w] = err == nil
				if mongo.IsDuplicateKeyError(err) {
					return nil
				}
				return err
			})
		}
		require.NoError(t, g.Wait())
		n := 0
		for _, w := range won {
			if w {
				n++
			}
		}
		require.Equal(t, 1, n)
	}
	require.Len(t, all(t, c, D()), 20)
}

// A find is never torn: what it sees of one document was written at once.
func TestReadsBesideWrites(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	require.NoError(t, createIndex(t, c, D("a", 1)))
	insert(t, c, D("_id", 1, "a", 0, "b", 0))
	done := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		defer close(done)
		for i := range 500 {
			if _, err := c.UpdateOne(t.Context(), D("_id", 1), D("$set", D("a", i, "b", i))); err != nil {
				return err
			}
		}
		return nil
	})
	for range 3 {
		g.Go(func() error {
			for {
				select {
				case <-done:
					return nil
				default:
				}
				var d struct{ A, B int }
				if err := c.FindOne(t.Context(), D("a", D("$gte", 0)), options.FindOne().SetSort(D("a", -1))).Decode(&d); err != nil {
					return err
				}
				if d.A != d.B {
					return fmt.Errorf("torn: %+v", d)
				}
			}
		})
	}
	require.NoError(t, g.Wait())
}
