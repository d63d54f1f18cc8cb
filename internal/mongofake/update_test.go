package mongofake_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Manual: "Update Operators" and the page of each operator.
func TestUpdateOperators(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	const wide = int64(2147483648)
	tests := []struct{ doc, update, want bson.D }{
		{D("a", 1), D("$set", D("b", D("z", 1, "y", 2))), D("a", 1, "b", D("z", 1, "y", 2))},
		{D("a", 1), D("$set", D("a", 2)), D("a", 2)},
		{D("a", 1), D("$set", D()), D("a", 1)},
		{D(), D("$set", D("c", 1, "b", 2, "a", 3)), D("a", 3, "b", 2, "c", 1)}, // in the order of the names
		{D("a", A{1}), D("$set", D("a.3", 9)), D("a", A{1, nil, nil, 9})},
		{D("a", A{D("k", 1)}), D("$set", D("a.0.v", 9)), D("a", A{D("k", 1, "v", 9)})},
		{D(), D("$set", D("a.0", 1)), D("a", D("0", 1))},
		{D("a", A{D("k", 1), D("k", 2)}), D("$set", D("a.$[].z", 0)), D("a", A{D("k", 1, "z", 0), D("k", 2, "z", 0)})},
		{D("a", A{1, 2, 3}), D("$unset", D("a.1", "")), D("a", A{1, nil, 3})},
		{D("a", D("b", 1, "c", 2)), D("$unset", D("a.b", "", "x.y", "")), D("a", D("c", 2))},
		{D("a", 1), D("$setOnInsert", D("b", 1), "$set", D("c", 1)), D("a", 1, "c", 1)},
		{D("a", 2147483647), D("$inc", D("a", 1)), D("a", wide)},
		{D("a", 1), D("$inc", D("a", 0.5)), D("a", 1.5)},
		{D("a", 1), D("$inc", D("a", int64(1))), D("a", int64(2))},
		{D(), D("$inc", D("a.b", 3)), D("a", D("b", 3))},
		{D("a", 3), D("$mul", D("a", 2)), D("a", 6)},
		{D("a", 65536), D("$mul", D("a", 32768)), D("a", wide)},
		{D(), D("$mul", D("a", int64(2))), D("a", int64(0))},
		{D("t", bson.DateTime(5)), D("$max", D("t", bson.DateTime(9))), D("t", bson.DateTime(9))},
		{D("a", 3), D("$max", D("a", "s")), D("a", "s")},
		{D("a", 3), D("$max", D("a", 2)), D("a", 3)},
		{D("a", 3), D("$min", D("a", 2, "b", 1)), D("a", 2, "b", 1)},
		{D("a", 1, "c", 2), D("$rename", D("a", "b")), D("c", 2, "b", 1)},
		{D("a", 1), D("$rename", D("a", "d.e", "none", "x")), D("d", D("e", 1))},
		{D("a", A{1}), D("$push", D("a", A{2})), D("a", A{1, A{2}})},
		{D(), D("$push", D("a", 1)), D("a", A{1})},
		{D(), D("$push", D("a", D("$each", A{1, 2, 3}, "$position", 0, "$slice", 2))), D("a", A{1, 2})},
		{D("a", A{5, 1}), D("$push", D("a", D("$each", A{3}, "$sort", -1))), D("a", A{5, 3, 1})},
		{D("a", A{D("k", 2), D("k", 1)}), D("$push", D("a", D("$each", A{D("k", 0)}, "$sort", D("k", 1), "$slice", -2))), D("a", A{D("k", 1), D("k", 2)})},
		{D("a", A{1, 2}), D("$push", D("a", D("$each", A{9}, "$position", -1))), D("a", A{1, 9, 2})},
		{D("a", A{1, "x"}), D("$addToSet", D("a", 1.0)), D("a", A{1, "x"})},
		{D("a", A{1}), D("$addToSet", D("a", D("$each", A{2, 2, 1}))), D("a", A{1, 2})},
		{D("a", A{1, 2, 3}), D("$pop", D("a", 1)), D("a", A{1, 2})},
		{D("a", A{1, 2, 3}), D("$pop", D("a", -1)), D("a", A{2, 3})},
		{D("a", A{D("k", 1, "v", 0), D("k", 2)}), D("$pull", D("a", D("k", 1))), D("a", A{D("k", 2)})},
		{D("a", A{1, 5, 9}), D("$pull", D("a", D("$gte", 5))), D("a", A{1})},
		{D("a", A{1, 5, 1}), D("$pull", D("a", 1)), D("a", A{5})},
		{D("a", A{1, 5, 9, 5}), D("$pullAll", D("a", A{5, 9})), D("a", A{1})},
		{D("a", 1), D("$pull", D("b", 1), "$pop", D("c", 1)), D("a", 1)},
	}
	for i, tt := range tests {
		t.Run(text(tt.update), func(t *testing.T) {
			insert(t, c, append(D("_id", i), tt.doc...))
			_, err := c.UpdateOne(t.Context(), D("_id", i), tt.update)
			require.NoError(t, err)
			require.Equal(t, text(append(D("_id", i), tt.want...)), text(all(t, c, D("_id", i))[0]), "on %v", tt.doc)
		})
	}
}

// Manual: "$[<identifier>]", "Error Codes".
func TestArrayFilters(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c, D("_id", 1, "a", A{D("k", 1, "n", A{1, 7}), D("k", 2, "n", A{8})}))
	_, err := c.UpdateOne(t.Context(), D("_id", 1), D("$inc", D("a.$[x].n.$[y]", 100)),
		options.UpdateOne().SetArrayFilters([]any{D("x.k", 1), D("y", D("$gt", 5))}))
	require.NoError(t, err)
	require.Equal(t, text(D("_id", 1, "a", A{D("k", 1, "n", A{1, 107}), D("k", 2, "n", A{8})})), text(all(t, c, D())[0]))
	_, err = c.UpdateOne(t.Context(), D("_id", 1), D("$set", D("a.$[x].k", 1)), options.UpdateOne().SetArrayFilters([]any{D("y", 1)}))
	require.Error(t, err)
	_, err = c.UpdateOne(t.Context(), D("_id", 1), D("$set", D("b", 1)), options.UpdateOne().SetArrayFilters([]any{D("y", 1)}))
	require.Equal(t, 9, code(t, err))
}

// A failed update changes nothing. Manual: "Error Codes", "Update Operators".
func TestUpdateErrors(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	original := D("_id", 1, "a", 1, "s", "x", "l", A{1, 2}, "big", int64(1)<<62)
	insert(t, c, original)
	tests := []struct {
		update bson.D
		code   int
	}{
		{D("$set", D("a.b", 1)), 28},
		{D("$inc", D("s", 1)), 14},
		{D("$inc", D("a", "x")), 14},
		{D("$mul", D("big", 4)), 2},
		{D("$set", D("a", 2), "$inc", D("a", 1)), 40},
		{D("$set", D("x", 2, "x.y", 1)), 40},
		{D("$set", D("q", 2), "$rename", D("a", "q")), 40},
		{D("$push", D("a", 1)), 2},
		{D("$addToSet", D("a", 1)), 2},
		{D("$pop", D("a", 1)), 14},
		{D("$pull", D("a", 1)), 2},
		{D("$pop", D("l", 3)), 9},
		{D("$bogus", D("a", 1)), 9},
		{D("$set", 1), 9},
		{D("$set", D("l.x", 1)), 28},
		{D("$set", D("_id", 2)), 66},
		{D("$unset", D("_id", "")), 66},
		{D("$set", D("new", 1), "$inc", D("s", 1)), 14},
		{D("$currentDate", D("d", 1)), 2},
		{D("$push", D("l", D("$each", 1))), 2},
		{D("$set", D("a..b", 1)), 56},
	}
	for _, tt := range tests {
		t.Run(text(tt.update), func(t *testing.T) {
			_, err := c.UpdateOne(t.Context(), D("_id", 1), tt.update)
			require.Error(t, err)
			require.Equal(t, tt.code, code(t, err), "%v", err)
		})
	}
	_, err := c.ReplaceOne(t.Context(), D("_id", 1), D("_id", 2, "a", 5))
	require.Equal(t, 66, code(t, err))
	require.Equal(t, text(original), text(all(t, c, D())[0]))

	// No operation on an _id that stays the same is refused.
	_, err = c.UpdateOne(t.Context(), D("_id", 1), D("$set", D("_id", 1, "a", 2)))
	require.NoError(t, err)
}

// Manual: "$currentDate".
func TestCurrentDate(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c, D("_id", 1))
	before := time.Now().Add(-time.Second)
	_, err := c.UpdateOne(t.Context(), D("_id", 1), D("$currentDate", D("d", true, "t", D("$type", "timestamp"))))
	require.NoError(t, err)
	var got struct {
		D time.Time
		T bson.Timestamp
	}
	require.NoError(t, c.FindOne(t.Context(), D("_id", 1)).Decode(&got))
	require.WithinRange(t, got.D, before, time.Now().Add(time.Second))
	require.GreaterOrEqual(t, int64(got.T.T), before.Unix())
}

// Manual: "db.collection.updateOne()", "Upsert Behavior"; "db.collection.replaceOne()".
func TestUpserts(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	upsert := options.UpdateOne().SetUpsert(true)
	r, err := c.UpdateOne(t.Context(), D("_id", 1, "kind", "x", "n", D("$gt", 5), "d.e", D("$eq", 2), "$and", A{D("f", 3)}),
		D("$set", D("b.c", 2), "$setOnInsert", D("a", 1), "$inc", D("f", 1)), upsert)
	require.NoError(t, err)
	require.EqualValues(t, 1, r.UpsertedCount)
	require.EqualValues(t, 0, r.MatchedCount)
	require.Equal(t, int32(1), r.UpsertedID)
	require.Equal(t, text(D("_id", 1, "kind", "x", "d", D("e", 2), "f", 4, "a", 1, "b", D("c", 2))), text(all(t, c, D("_id", 1))[0]))

	// Without an _id the server makes one.
	r, err = c.UpdateOne(t.Context(), D("kind", "y"), D("$set", D("z", 1)), upsert)
	require.NoError(t, err)
	require.IsType(t, bson.ObjectID{}, r.UpsertedID)

	// Of a replacement only the _id comes from the query.
	_, err = c.ReplaceOne(t.Context(), D("_id", 7, "kind", "q"), D("v", 1), options.Replace().SetUpsert(true))
	require.NoError(t, err)
	require.Equal(t, text(D("_id", 7, "v", 1)), text(all(t, c, D("_id", 7))[0]))
	_, err = c.ReplaceOne(t.Context(), D("_id", 8), D("_id", 9), options.Replace().SetUpsert(true))
	require.Equal(t, 66, code(t, err))
	_, err = c.UpdateOne(t.Context(), D("_id", 8), D("$set", D("_id", 9)), upsert)
	require.Equal(t, 66, code(t, err))

	// What is the same already is matched and not modified.
	replaced, err := c.ReplaceOne(t.Context(), D("_id", 7), D("v", 1))
	require.NoError(t, err)
	require.EqualValues(t, 1, replaced.MatchedCount)
	require.EqualValues(t, 0, replaced.ModifiedCount)
}

// Manual: "db.collection.updateMany()", "db.collection.deleteMany()".
func TestManyAndOne(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c, D("_id", 1, "k", "a"), D("_id", 2, "k", "a"), D("_id", 3, "k", "b"), D("_id", 4, "k", "a", "n", 1))
	r, err := c.UpdateMany(t.Context(), D("k", "a"), D("$set", D("n", 1)))
	require.NoError(t, err)
	require.EqualValues(t, 3, r.MatchedCount)
	require.EqualValues(t, 2, r.ModifiedCount)
	deleted, err := c.DeleteOne(t.Context(), D("k", "a"))
	require.NoError(t, err)
	require.EqualValues(t, 1, deleted.DeletedCount)
	deleted, err = c.DeleteMany(t.Context(), D("k", "a"))
	require.NoError(t, err)
	require.EqualValues(t, 2, deleted.DeletedCount)
	require.Equal(t, A{int32(3)}, ids(t, c, D()))
}

// Manual: "findAndModify (database command)".
func TestFindAndModify(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c, D("_id", 1, "n", 5), D("_id", 2, "n", 3), D("_id", 3, "n", 4))
	var got bson.D
	inc := D("$inc", D("n", 10))
	require.NoError(t, c.FindOneAndUpdate(t.Context(), D(), inc, options.FindOneAndUpdate().SetSort(D("n", 1))).Decode(&got))
	require.Equal(t, D("_id", int32(2), "n", int32(3)), got)
	got = nil
	require.NoError(t, c.FindOneAndUpdate(t.Context(), D("_id", 2), inc, options.FindOneAndUpdate().SetReturnDocument(options.After).SetProjection(D("_id", 0))).Decode(&got))
	require.Equal(t, D("n", int32(23)), got)
	got = nil
	require.NoError(t, c.FindOneAndUpdate(t.Context(), D("_id", 9), inc, options.FindOneAndUpdate().SetReturnDocument(options.After).SetUpsert(true)).Decode(&got))
	require.Equal(t, D("_id", int32(9), "n", int32(10)), got)
	got = nil
	require.NoError(t, c.FindOneAndReplace(t.Context(), D("_id", 9), D("x", 1)).Decode(&got))
	require.Equal(t, D("_id", int32(9), "n", int32(10)), got)
	got = nil
	require.NoError(t, c.FindOneAndDelete(t.Context(), D("_id", D("$lt", 9)), options.FindOneAndDelete().SetSort(D("_id", -1))).Decode(&got))
	require.Equal(t, D("_id", int32(3), "n", int32(4)), got)
	require.ErrorIs(t, c.FindOneAndDelete(t.Context(), D("_id", 77)).Err(), mongo.ErrNoDocuments)
	require.ErrorIs(t, c.FindOneAndUpdate(t.Context(), D("_id", 77), inc).Err(), mongo.ErrNoDocuments)
	require.Equal(t, A{int32(1), int32(2), int32(9)}, ids(t, c, D()))
}
