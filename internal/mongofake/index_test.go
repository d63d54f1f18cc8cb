package mongofake_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

func createIndex(t *testing.T, c *mongo.Collection, keys bson.D, opts ...options.Lister[options.IndexOptions]) error {
	t.Helper()
	model := mongo.IndexModel{Keys: keys}
	if len(opts) > 0 {
		model.Options = opts[0].(*options.IndexOptionsBuilder)
	}
	_, err := c.Indexes().CreateOne(t.Context(), model)
	return err
}

// Manual: "Unique Indexes".
func TestUniqueIndex(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	require.NoError(t, createIndex(t, c, D("email", 1), options.Index().SetUnique(true)))
	insert(t, c, D("_id", 1, "email", "a"), D("_id", 2, "email", "b"))

	_, err := c.InsertOne(t.Context(), D("_id", 3, "email", "a"))
	require.Equal(t, 11000, code(t, err))
	require.ErrorContains(t, err, "email_1")
	_, err = c.UpdateOne(t.Context(), D("_id", 2), D("$set", D("email", "a")))
	require.Equal(t, 11000, code(t, err))
	// A failed write leaves nothing behind, in the index either.
	require.Equal(t, []bson.D{D("_id", int32(2), "email", "b")}, all(t, c, D("_id", D("$gt", 1))))
	require.Equal(t, A{int32(1)}, ids(t, c, D("email", "a")))

	// "If a document does not have a value for the indexed field, the index
	// stores a null value": one such document only.
	insert(t, c, D("_id", 4))
	_, err = c.InsertOne(t.Context(), D("_id", 5))
	require.Equal(t, 11000, code(t, err))

	// What was given up is free again.
	_, err = c.DeleteOne(t.Context(), D("_id", 1))
	require.NoError(t, err)
	insert(t, c, D("_id", 6, "email", "a"))

	require.Equal(t, 11000, code(t, createIndex(t, database2(t, c), D("kind", 1), options.Index().SetUnique(true))))
}

// database2 is a second collection with two documents alike.
func database2(t *testing.T, c *mongo.Collection) *mongo.Collection {
	other := c.Database().Collection("alike")
	insert(t, other, D("_id", 1, "kind", "x"), D("_id", 2, "kind", "x"))
	return other
}

// Manual: "Partial Indexes", "Partial Indexes with Unique Constraints".
func TestUniquePartialIndex(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	live := options.Index().SetUnique(true).SetPartialFilterExpression(D("live", true))
	require.NoError(t, createIndex(t, c, D("email", 1), live))
	insert(t, c,
		D("_id", 1, "email", "a", "live", true),
		D("_id", 2, "email", "a", "live", false),
		D("_id", 3, "email", "a"))
	_, err := c.InsertOne(t.Context(), D("_id", 4, "email", "a", "live", true))
	require.Equal(t, 11000, code(t, err))
	_, err = c.UpdateOne(t.Context(), D("_id", 2), D("$set", D("live", true)))
	require.Equal(t, 11000, code(t, err))
	_, err = c.UpdateOne(t.Context(), D("_id", 1), D("$set", D("live", false)))
	require.NoError(t, err)
	_, err = c.UpdateOne(t.Context(), D("_id", 2), D("$set", D("live", true)))
	require.NoError(t, err)
	// A query that the index doesn't cover sees all, one that it covers too.
	require.Equal(t, A{int32(1), int32(2), int32(3)}, ids(t, c, D("email", "a")))
	require.Equal(t, A{int32(2)}, ids(t, c, D("email", "a", "live", true)))
}

// Manual: "createIndexes", "Index Names", "dropIndexes", "listIndexes".
func TestIndexManagement(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	require.NoError(t, createIndex(t, c, D("a", 1, "b", -1)))
	require.NoError(t, createIndex(t, c, D("a", 1, "b", -1)), "the same again is fine")
	require.Equal(t, 85, code(t, createIndex(t, c, D("a", 1, "b", -1), options.Index().SetName("other"))))
	require.Equal(t, 86, code(t, createIndex(t, c, D("x", 1), options.Index().SetName("a_1_b_-1"))))

	specs, err := c.Indexes().ListSpecifications(t.Context())
	require.NoError(t, err)
	var names []string
	for _, s := range specs {
		names = append(names, s.Name)
	}
	require.ElementsMatch(t, []string{"_id_", "a_1_b_-1"}, names)

	require.Equal(t, 27, code(t, c.Indexes().DropOne(t.Context(), "none")))
	require.Equal(t, 72, code(t, c.Indexes().DropOne(t.Context(), "_id_")))
	require.NoError(t, c.Indexes().DropOne(t.Context(), "a_1_b_-1"))
	require.NoError(t, c.Indexes().DropAll(t.Context()))
	specs, err = c.Indexes().ListSpecifications(t.Context())
	require.NoError(t, err)
	require.Len(t, specs, 1)
}

// With and without an index a query answers the same. Manual: "Query
// Documents", "Query an Array", "Sort Query Results", "Multikey Indexes".
func TestIndexesDontChangeAnswers(t *testing.T) {
	t.Parallel()
	db := database(t)
	plain, indexed := db.Collection("plain"), db.Collection("indexed")
	for _, keys := range []bson.D{D("a", 1), D("a", -1, "b", 1), D("a.b", 1), D("b", -1)} {
		require.NoError(t, createIndex(t, indexed, keys))
	}
	values := A{nil, int32(1), int32(2), 2.5, int64(3), "x", "y", A{int32(1), int32(9)}, A{}, A{nil}, D("b", int32(1)),
		A{D("b", int32(1)), D("b", int32(5))}, true, bson.DateTime(5), bson.MinKey{}, bson.MaxKey{}}
	docs := A{D("_id", -1)}
	for i, v := range values {
		docs = append(docs, D("_id", i, "a", v, "b", i%3), D("_id", 100+i, "a", v))
	}
	insert(t, plain, docs...)
	insert(t, indexed, docs...)
	for _, v := range append(values, int32(4), A{int32(9), int32(1)}) {
		for _, q := range []bson.D{
			D("a", v), D("a", D("$eq", v)), D("a", D("$ne", v)), D("a", D("$gt", v)), D("a", D("$gte", v)), D("a", D("$lt", v)), D("a", D("$lte", v)),
			D("a", D("$in", A{v, int32(2)})), D("a", D("$nin", A{v})), D("a.b", v), D("a.b", D("$gte", v)),
			D("a", v, "b", 1), D("a", D("$gt", v, "$lt", int32(9))), D("$and", A{D("a", v), D("b", D("$gte", 1))}), D("_id", D("$gt", 3), "a", v),
		} {
			require.Equal(t, all(t, plain, q, options.Find().SetSort(D("_id", 1))), all(t, indexed, q, options.Find().SetSort(D("_id", 1))), "%v", q)
			for _, sort := range []bson.D{D("a", 1, "_id", 1), D("a", -1, "_id", 1), D("b", -1, "_id", 1), D("b", 1, "_id", -1), D("a", 1, "b", 1, "_id", 1)} {
				opts := options.Find().SetSort(sort).SetSkip(1).SetLimit(5)
				require.Equal(t, all(t, plain, q, opts), all(t, indexed, q, opts), "%v sorted by %v", q, sort)
			}
		}
	}
}

// Manual: "Comparison/Sort Order".
func TestSortOrder(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	ordered := A{
		bson.MinKey{}, nil, -1.5, int32(0), int64(1), 1.5, int64(1) << 53, int64(1)<<53 + 1, "", "a", "a\x00", "aa", "b",
		D(), D("a", int32(1)), D("a", int32(2)), D("b", int32(0)), D("a", "x"), // types before names
		bson.Binary{Data: []byte{9}}, bson.Binary{Data: []byte{1, 1}}, bson.ObjectID{1}, false, true, bson.DateTime(-1), bson.DateTime(1), bson.Timestamp{T: 1}, bson.Regex{Pattern: "a"}, bson.MaxKey{},
	}
	for _, first := range []int{1, 0} { // not in order
		for i := first; i < len(ordered); i += 2 {
			insert(t, c, D("_id", i, "v", ordered[i]))
		}
	}
	want := A{}
	for i := range ordered {
		want = append(want, int32(i))
	}
	read := func(sort bson.D) A {
		got := A{}
		for _, d := range all(t, c, D(), options.Find().SetSort(sort)) {
			got = append(got, d[0].Value)
		}
		return got
	}
	require.Equal(t, want, read(D("v", 1)))
	back := A{}
	for i := range want {
		back = append(back, want[len(want)-1-i])
	}
	require.Equal(t, back, read(D("v", -1)))
	require.NoError(t, createIndex(t, c, D("v", 1)))
	require.Equal(t, want, read(D("v", 1)))
	require.Equal(t, back, read(D("v", -1)))
}
