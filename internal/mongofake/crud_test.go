package mongofake_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
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

// Manual: "Bulk Write Operations": ordered stops at the first error, unordered
// does all that can be done.
func TestDuplicatesInTheMiddle(t *testing.T) {
	t.Parallel()
	db := database(t)
	docs := A{D("_id", 1), D("_id", 2), D("_id", 1), D("_id", 3), D("_id", 2), D("_id", 4)}
	for _, ordered := range []bool{true, false} {
		c := db.Collection(map[bool]string{true: "ordered", false: "unordered"}[ordered])
		_, err := c.InsertMany(t.Context(), docs, options.InsertMany().SetOrdered(ordered))
		var bulk mongo.BulkWriteException
		require.ErrorAs(t, err, &bulk)
		if ordered {
			require.Len(t, bulk.WriteErrors, 1)
			require.Equal(t, A{int32(1), int32(2)}, ids(t, c, D()))
		} else {
			require.Len(t, bulk.WriteErrors, 2)
			require.Equal(t, 2, bulk.WriteErrors[0].Index)
			require.Equal(t, 4, bulk.WriteErrors[1].Index)
			require.Equal(t, A{int32(1), int32(2), int32(3), int32(4)}, ids(t, c, D()))
		}
		require.Equal(t, 11000, bulk.WriteErrors[0].Code)
	}

	// Errors of other kinds don't stop the others either.
	c := db.Collection("mixed")
	insert(t, c, D("_id", 1, "s", "x"))
	r, err := c.BulkWrite(t.Context(), []mongo.WriteModel{
		mongo.NewInsertOneModel().SetDocument(D("_id", 5)),
		mongo.NewUpdateOneModel().SetFilter(D("_id", 1)).SetUpdate(D("$inc", D("s", 1))),
		mongo.NewUpdateOneModel().SetFilter(D("$bogus", 1)).SetUpdate(D("$set", D("s", 1))),
		mongo.NewUpdateOneModel().SetFilter(D("_id", 1)).SetUpdate(D("$set", D("ok", true))),
		mongo.NewDeleteOneModel().SetFilter(D("_id", 5)),
	}, options.BulkWrite().SetOrdered(false))
	var bulk mongo.BulkWriteException
	require.ErrorAs(t, err, &bulk)
	require.Len(t, bulk.WriteErrors, 2)
	require.Equal(t, 14, bulk.WriteErrors[0].Code)
	require.Equal(t, 2, bulk.WriteErrors[1].Code)
	require.EqualValues(t, 1, r.ModifiedCount)
	require.EqualValues(t, 1, r.DeletedCount)
}

// Manual: "Error Codes"; the form of E11000 is what people search logs for.
func TestDuplicateKeyError(t *testing.T) {
	t.Parallel()
	db := database(t)
	c := db.Collection("c")
	require.NoError(t, createIndex(t, c, D("a", 1, "b.c", -1), options.Index().SetUnique(true)))
	insert(t, c, D("_id", "x", "a", 1, "b", D("c", "y")))
	for _, tt := range []struct {
		doc            bson.D
		index          string
		pattern, value bson.D
	}{
		{D("_id", "x"), "_id_", D("_id", 1), D("_id", "x")},
		{D("_id", "y", "a", 1, "b", D("c", "y")), "a_1_b.c_-1", D("a", 1, "b.c", -1), D("a", 1, "b.c", "y")},
	} {
		_, err := c.InsertOne(t.Context(), tt.doc)
		var write mongo.WriteException
		require.ErrorAs(t, err, &write)
		require.Equal(t, 11000, write.WriteErrors[0].Code)
		require.Contains(t, write.WriteErrors[0].Message, "E11000 duplicate key error collection: "+db.Name()+".c index: "+tt.index+" dup key: {")
		if externalServer() != "" {
			continue // not every server has these
		}
		var raw struct{ KeyPattern, KeyValue bson.D }
		require.NoError(t, bson.Unmarshal(write.WriteErrors[0].Raw, &raw))
		require.Equal(t, text(tt.pattern), text(raw.KeyPattern))
		require.Equal(t, text(tt.value), text(raw.KeyValue))
	}
}

// Manual: "The _id Field", "BSON Types".
func TestIDs(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	for i, id := range []any{1, "s", bson.NewObjectID(), D("a", 1, "b", "x"), bson.Binary{Subtype: 4, Data: make([]byte, 16)}, true, nil, 2.5, bson.DateTime(7), int64(1) << 60} {
		insert(t, c, D("_id", id, "i", i))
		got := all(t, c, D("_id", id))
		require.Len(t, got, 1, "%v", id)
		_, err := c.InsertOne(t.Context(), D("_id", id))
		require.Equal(t, 11000, code(t, err), "%v", id)
	}
	// 1 and 1.0 are the same _id.
	_, err := c.InsertOne(t.Context(), D("_id", 1.0))
	require.Equal(t, 11000, code(t, err))
	require.Len(t, all(t, c, D("_id", int64(1))), 1)
	require.Len(t, all(t, c, D("_id", D("$in", A{1.0, "s", "none", int64(1)}))), 2)
	// The order of a document's fields counts.
	require.Empty(t, all(t, c, D("_id", D("b", "x", "a", 1))))
	for _, bad := range []any{A{1}, bson.Regex{Pattern: "x"}} {
		_, err := c.InsertOne(t.Context(), D("_id", bad))
		require.Error(t, err, "%v", bad)
	}
	// _id comes first, wherever it was.
	insert(t, c, D("z", 1, "_id", "moved"))
	require.Equal(t, D("_id", "moved", "z", int32(1)), all(t, c, D("_id", "moved"))[0])
}

// Manual: "Write Concern".
func TestWriteConcern(t *testing.T) {
	t.Parallel()
	db := database(t)
	for _, w := range []any{"majority", 1} {
		var reply bson.M
		require.NoError(t, db.RunCommand(t.Context(), D("insert", "c", "documents", A{D("x", 1)}, "writeConcern", D("w", w, "j", true, "wtimeout", 1000))).Decode(&reply))
		require.EqualValues(t, 1, reply["n"])
		require.NotContains(t, reply, "writeConcernError")
	}
	// Nothing is answered to w: 0, and the connection is good for more.
	c := db.Collection("c", options.Collection().SetWriteConcern(&writeconcern.WriteConcern{W: 0}))
	_, err := c.InsertOne(t.Context(), D("_id", "fire and forget"))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return len(all(t, db.Collection("c"), D("_id", "fire and forget"))) == 1
	}, time.Minute, time.Millisecond)
}

// Every type comes back as it went in. Manual: "BSON Types".
func TestTypesRoundTrip(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	decimal, err := bson.ParseDecimal128("1234567890.123456789012345678901234")
	require.NoError(t, err)
	d := D("_id", 1, "double", 1.5, "string", "ü\x00x", "object", D("a", D()), "array", A{int32(1), A{}, nil}, "binary", bson.Binary{Subtype: 5, Data: []byte{1, 0, 2}},
		"oldBinary", bson.Binary{Subtype: 2, Data: []byte{1, 2, 3}}, "id", bson.NewObjectID(), "bool", true, "date", bson.DateTime(-62135596800000), "null", nil, "regex", bson.Regex{Pattern: "^a", Options: "im"},
		"code", bson.JavaScript("f()"), "symbol", bson.Symbol("s"), "scope", bson.CodeWithScope{Code: "g()", Scope: D("x", int32(1))}, "int", int32(-1), "timestamp", bson.Timestamp{T: 4, I: 2},
		"long", int64(-1), "decimal", decimal, "min", bson.MinKey{}, "max", bson.MaxKey{}, "nan", math.NaN(), "inf", math.Inf(-1))
	insert(t, c, d)
	require.Equal(t, text(d), text(all(t, c, D("_id", 1))[0]))
	_, err = c.UpdateOne(t.Context(), D("_id", 1), D("$set", D("object.b", 1)))
	require.NoError(t, err)
	d[3].Value = D("a", D(), "b", int32(1))
	require.Equal(t, text(d), text(all(t, c, D("decimal", decimal))[0]))
}
