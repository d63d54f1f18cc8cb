package mongofake_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// versioned is the replicator's write: a replace guarded by version.
func versioned(id string, version int64) *mongo.ReplaceOneModel {
	return mongo.NewReplaceOneModel().
		SetFilter(D("_id", id, "version", D("$lt", version))).
		SetReplacement(D("_id", id, "version", version, "name", "n")).
		SetUpsert(true)
}

// Manual: "Bulk Write Operations", "db.collection.bulkWrite()".
func TestVersionedUpserts(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	r, err := c.BulkWrite(t.Context(), []mongo.WriteModel{versioned("a", 1), versioned("b", 2), versioned("a", 3)})
	require.NoError(t, err)
	require.EqualValues(t, 2, r.UpsertedCount)
	require.EqualValues(t, 1, r.MatchedCount)
	require.EqualValues(t, 1, r.ModifiedCount)
	require.Equal(t, map[int64]any{0: "a", 1: "b"}, r.UpsertedIDs)

	// A stale write doesn't match, so the upsert collides with what is there.
	r, err = c.BulkWrite(t.Context(), []mongo.WriteModel{versioned("a", 2), versioned("c", 1), versioned("b", 1), versioned("b", 5)}, options.BulkWrite().SetOrdered(false))
	var bulk mongo.BulkWriteException
	require.ErrorAs(t, err, &bulk)
	require.Len(t, bulk.WriteErrors, 2)
	require.Equal(t, 0, bulk.WriteErrors[0].Index)
	require.Equal(t, 2, bulk.WriteErrors[1].Index)
	require.Equal(t, 11000, bulk.WriteErrors[0].Code)
	require.True(t, mongo.IsDuplicateKeyError(err))
	require.EqualValues(t, 1, r.UpsertedCount)
	require.EqualValues(t, 1, r.ModifiedCount)

	require.Equal(t, []bson.D{
		D("_id", "a", "version", int64(3), "name", "n"),
		D("_id", "b", "version", int64(5), "name", "n"),
		D("_id", "c", "version", int64(1), "name", "n"),
	}, all(t, c, D(), options.Find().SetSort(D("_id", 1))))
}
