package mongofake_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

type batch struct {
	Cursor struct {
		ID         int64
		NS         string
		FirstBatch []bson.Raw
		NextBatch  []bson.Raw
	}
}

func run(t *testing.T, db *mongo.Database, command bson.D) (batch, error) {
	t.Helper()
	var b batch
	err := db.RunCommand(t.Context(), command).Decode(&b)
	return b, err
}

// Manual: "find", "getMore", "killCursors", "Error Codes".
func TestCursors(t *testing.T) {
	t.Parallel()
	db := database(t)
	c := db.Collection("c")
	docs := A{}
	for i := range 250 {
		docs = append(docs, D("_id", i))
	}
	insert(t, c, docs...)
	require.Len(t, all(t, c, D()), 250)
	require.Len(t, all(t, c, D(), options.Find().SetBatchSize(7)), 250)
	require.Len(t, all(t, c, D(), options.Find().SetBatchSize(7).SetLimit(20)), 20)
	require.Len(t, all(t, c, D(), options.Find().SetLimit(-20)), 20)

	b, err := run(t, db, D("find", "c"))
	require.NoError(t, err)
	require.Len(t, b.Cursor.FirstBatch, 101)
	require.NotZero(t, b.Cursor.ID)
	require.Equal(t, db.Name()+".c", b.Cursor.NS)
	next, err := run(t, db, D("getMore", b.Cursor.ID, "collection", "c", "batchSize", 100))
	require.NoError(t, err)
	require.Len(t, next.Cursor.NextBatch, 100)
	_, err = run(t, db, D("getMore", b.Cursor.ID, "collection", "other"))
	require.Equal(t, 13, code(t, err))
	next, err = run(t, db, D("getMore", b.Cursor.ID, "collection", "c"))
	require.NoError(t, err)
	require.Len(t, next.Cursor.NextBatch, 49)
	require.Zero(t, next.Cursor.ID)
	_, err = run(t, db, D("getMore", b.Cursor.ID, "collection", "c"))
	require.Equal(t, 43, code(t, err))

	b, err = run(t, db, D("find", "c", "batchSize", 5, "singleBatch", true))
	require.NoError(t, err)
	require.Len(t, b.Cursor.FirstBatch, 5)
	require.Zero(t, b.Cursor.ID)

	b, err = run(t, db, D("find", "c", "batchSize", 2))
	require.NoError(t, err)
	var killed struct{ CursorsKilled, CursorsNotFound []int64 }
	require.NoError(t, db.RunCommand(t.Context(), D("killCursors", "c", "cursors", A{b.Cursor.ID, int64(9)})).Decode(&killed))
	require.Equal(t, []int64{b.Cursor.ID}, killed.CursorsKilled)
	require.Equal(t, []int64{9}, killed.CursorsNotFound)
	_, err = run(t, db, D("getMore", b.Cursor.ID, "collection", "c"))
	require.Equal(t, 43, code(t, err))
}

// Manual: "find", "batchSize": "a batchSize of 0 means that the cursor will be
// established, but no documents will be returned in the first batch".
func TestEmptyFirstBatch(t *testing.T) {
	t.Parallel()
	db := database(t)
	insert(t, db.Collection("c"), D("_id", 1))
	b, err := run(t, db, D("find", "c", "batchSize", 0))
	require.NoError(t, err)
	require.Empty(t, b.Cursor.FirstBatch)
	require.NotZero(t, b.Cursor.ID)
	next, err := run(t, db, D("getMore", b.Cursor.ID, "collection", "c"))
	require.NoError(t, err)
	require.Len(t, next.Cursor.NextBatch, 1)
}

// Manual: "Iterate a Cursor", "Cursor Batches": a reply holds 16 MiB at most,
// whatever the batch size.
func TestBatchesAreCutByBytes(t *testing.T) {
	t.Parallel()
	db := database(t)
	c := db.Collection("c")
	pad := bson.Binary{Data: bytes.Repeat([]byte{7}, 5<<20)}
	for i := range 7 {
		insert(t, c, D("_id", i, "pad", pad))
	}
	b, err := run(t, db, D("find", "c", "batchSize", 1000))
	require.NoError(t, err)
	require.Len(t, b.Cursor.FirstBatch, 3)
	next, err := run(t, db, D("getMore", b.Cursor.ID, "collection", "c", "batchSize", 1000))
	require.NoError(t, err)
	require.Len(t, next.Cursor.NextBatch, 3)
	next, err = run(t, db, D("getMore", b.Cursor.ID, "collection", "c", "batchSize", 1000))
	require.NoError(t, err)
	require.Len(t, next.Cursor.NextBatch, 1)
	require.Zero(t, next.Cursor.ID)
	require.Len(t, all(t, c, D()), 7)
}

// Manual: "MongoDB Limits and Thresholds", "BSON Document Size".
func TestDocumentSizeLimit(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	overhead := len(mustMarshal(t, D("_id", 1, "pad", bson.Binary{})))
	largest := bson.Binary{Data: make([]byte, 16<<20-overhead)}
	insert(t, c, D("_id", 1, "pad", largest))
	require.Len(t, all(t, c, D()), 1)
	_, err := c.UpdateOne(t.Context(), D("_id", 1), D("$set", D("more", 1)))
	require.Error(t, err)
	_, err = c.InsertOne(t.Context(), D("_id", 2, "pad", largest, "more", 1))
	require.Error(t, err)
	require.Equal(t, A{int32(1)}, ids(t, c, D()))
	require.Empty(t, ids(t, c, D("more", 1)))
}

func mustMarshal(t *testing.T, d bson.D) []byte {
	t.Helper()
	raw, err := bson.Marshal(d)
	require.NoError(t, err)
	return raw
}

// A cursor doesn't outlive its collection under that name. Manual:
// "renameCollection", "drop".
func TestCursorsEndWithTheirCollection(t *testing.T) {
	t.Parallel()
	db := database(t)
	for _, end := range []func(name string) error{
		func(name string) error { return db.Collection(name).Drop(t.Context()) },
		func(name string) error { return rename(t, db, name, name+"_away", false) },
		func(name string) error {
			insert(t, db.Collection("shadow"), D("_id", 9))
			return rename(t, db, "shadow", name, true)
		},
	} {
		insert(t, db.Collection("c"), D("_id", 1), D("_id", 2), D("_id", 3))
		b, err := run(t, db, D("find", "c", "batchSize", 1))
		require.NoError(t, err)
		require.NoError(t, end("c"))
		_, err = run(t, db, D("getMore", b.Cursor.ID, "collection", "c"))
		require.Contains(t, []int{43, 175}, code(t, err))
		require.NoError(t, db.Drop(t.Context()))
	}
}
