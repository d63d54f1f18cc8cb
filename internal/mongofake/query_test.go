package mongofake_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Manual: "Query and Projection Operators", "Query for Null or Missing Fields",
// "Query an Array of Embedded Documents", "$elemMatch", "$regex".
func TestQueries(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	nested := A{D("b", 1), D("b", 2)}
	tests := []struct {
		doc, query bson.D
		want       bool
	}{
		{D("a", "x"), D("a", D("$lt", 5)), false},
		{D(), D("a", nil), true},
		{D(), D("a", D("$lt", 5)), false},
		{D(), D("a", D("$lte", nil)), true},
		{D(), D("a", D("$gt", nil)), false},
		{D(), D("a", D("$ne", 5)), true},
		{D("a", nil), D("a", D("$exists", true)), true},
		{D("a", nested), D("a.b", 2), true},
		{D("a", nested), D("a.b", D("$ne", 2)), false},
		{D("a", nested), D("a.1.b", 2), true},
		{D("a", nested), D("a.1.b", 1), false},
		{D("a", nested), D("a.0", D("b", 1)), true},
		{D("a", nested), D("a.c", nil), true},
		{D("a", A{D("b", 1), D()}), D("a.b", nil), true},
		{D("a", A{D("b", 1)}), D("a.b", nil), false},
		{D("a", A{1, 2}), D("a.b", nil), false},
		{D("a", 1), D("a.b", nil), true},
		{D("a", A{D("b", A{1, 2})}), D("a.b", A{1, 2}), true},
		{D("a", A{D("b", A{})}), D("a.b", D("$exists", true)), true},
		{D("a", A{1, 9}), D("a", D("$gt", 4, "$lt", 3)), true},
		{D("a", A{1, 9}), D("a", D("$elemMatch", D("$gt", 4, "$lt", 3))), false},
		{D("a", A{D("b", 1, "c", 2)}), D("a", D("$elemMatch", D("b", 1, "c", 2))), true},
		{D("a", A{D("b", 1), D("c", 2)}), D("a", D("$elemMatch", D("b", 1, "c", 2))), false},
		{D("a", A{1, 2}), D("a", A{1, 2}), true},
		{D("a", A{1, 2}), D("a", A{2, 1}), false},
		{D("a", A{A{1, 2}}), D("a", A{1, 2}), true},
		{D("a", A{1, 2}), D("a", D("$gt", A{1})), true},
		{D("a", D("x", 1, "y", 2)), D("a", D("y", 2, "x", 1)), false},
		{D("a", D("x", 1)), D("a", D("x", 1.0)), true},
		{D("a", int64(5)), D("a", 5.0), true},
		{D("a", int64(1)<<53+1), D("a", float64(int64(1)<<53)), false},
		{D("a", 5), D("a", D("$in", A{nil, 5})), true},
		{D(), D("a", D("$in", A{nil})), true},
		{D(), D("a", D("$nin", A{nil})), false},
		{D("a", A{1, 2}), D("a", D("$nin", A{2})), false},
		{D("a", 5), D("$nor", A{D("a", 5)}), false},
		{D("a", 5), D("$or", A{D("a", 4), D("a", 5)}), true},
		{D("a", 5), D("$and", A{D("a", D("$gt", 4)), D("a", D("$lt", 5))}), false},
		{D("a", 5), D("a", D("$not", D("$gt", 6))), true},
		{D(), D("a", D("$not", D("$gt", 6))), true},
		{D("a", "x"), D("a", D("$not", bson.Regex{Pattern: "^x"})), false},
		{D("a", bson.DateTime(5)), D("a", D("$gte", bson.DateTime(5))), true},
		{D("a", A{}), D("a", D("$size", 0)), true},
		{D("a", A{A{1, 2}}), D("a", D("$size", 2)), false},
		{D("a", 12), D("a", D("$mod", A{4, 0})), true},
		{D("a", -7), D("a", D("$mod", A{4, -3})), true},
		{D("a", bson.MinKey{}), D("a", 1), false},
		{D("a", 1), D("a", D("$lt", bson.MaxKey{})), true},
		{D("a", 1), D("$comment", "hi"), true},
		{D("a", D("b", nil)), D("a.b", D("$exists", true)), true},
		{D("a", "abc"), D("a", D("$in", A{bson.Regex{Pattern: "^a"}})), true},
		{D("a", "abc"), D("a", bson.Regex{Pattern: "B", Options: "i"}), true},
		{D("a", "abc"), D("a", D("$regex", "b.$")), true},
		{D("a", "x\nabc"), D("a", D("$regex", "^abc$")), false},
		{D("a", "x\nabc"), D("a", D("$regex", "^abc$", "$options", "m")), true},
		{D("a", "abc\n"), D("a", D("$regex", "^abc$")), true},
		{D("a", A{"x", "abc"}), D("a", bson.Regex{Pattern: "^abc"}), true},
		{D("a", 1), D("a", bson.Regex{Pattern: "1"}), false},
		{D("a", A{1, 2, 3}), D("a", D("$all", A{3, 1})), true},
		{D("a", A{1, 2}), D("a", D("$all", A{3, 1})), false},
		{D("a", 1), D("a", D("$all", A{1})), true},
		{D("a", A{D("b", 1), D("b", 2)}), D("a", D("$all", A{D("$elemMatch", D("b", 1)), D("$elemMatch", D("b", 2))})), true},
		{D("a", A{}), D("a", D("$all", A{})), false},
		{D("a", 1), D("a", D("$type", "number")), true},
		{D("a", A{"x"}), D("a", D("$type", "string")), true},
		{D("a", A{"x"}), D("a", D("$type", "array")), true},
		{D(), D("a", D("$type", 10)), false},
		{D("a", 3, "b", 2), D("$expr", D("$gt", A{"$a", "$b"})), true},
		{D("a", 3, "b", "x"), D("$expr", D("$gt", A{"$a", "$b"})), false}, // across types
		{D("a", true), D("a", 1), false},
		{D("a", ""), D("a", nil), false},
		{D("a", A{nil}), D("a", nil), true},
		{D("a", A{}), D("a", nil), false},
	}
	for i, tt := range tests {
		insert(t, c, append(D("_id", i), tt.doc...))
	}
	for i, tt := range tests {
		t.Run(text(tt.query), func(t *testing.T) {
			got := all(t, c, append(D("_id", i), tt.query...))
			require.Equal(t, tt.want, len(got) == 1, "matches %v", tt.doc)
		})
	}
}

// A wrong query is refused even if there is no document. Manual: "Error Codes".
func TestQueryErrors(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("empty")
	for _, query := range []bson.D{
		D("$bogus", 1), D("a", D("$bogus", 1)), D("$and", A{}), D("$or", D()), D("$and", A{1}), D("a", D("$in", 1)),
		D("a", D("$in", A{D("$gt", 1)})), D("a", D("$not", 1)), D("a", D("$not", D())), D("a", D("$size", "x")), D("a", D("$size", -1)),
		D("a", D("$mod", A{0, 1})), D("a", D("$elemMatch", 1)), D("a", D("$gt", 1, "b", 2)), D("a", D("$all", 1)), D("a", D("$type", "nothing")),
		D("a", D("$options", "i")), D("a", D("$gt", bson.Regex{Pattern: "a"})),
	} {
		t.Run(text(query), func(t *testing.T) {
			_, err := c.Find(t.Context(), query)
			require.Error(t, err)
			require.Contains(t, []int{2, 9, 14}, code(t, err), "%v", err)
		})
	}
}

// Manual: "Project Fields to Return from Query", "find (Database Command)".
func TestProjections(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c, D("_id", 1, "z", 1, "a", A{D("k", 1, "v", 2), 7, D("k", 3, "v", 4)}, "d", D("b", 1, "c", 2), "n", A{1, 2, 3, 4}))
	tests := []struct{ projection, want bson.D }{
		{D("d", 1, "z", 1), D("_id", 1, "z", 1, "d", D("b", 1, "c", 2))},
		{D("a.k", 1), D("_id", 1, "a", A{D("k", 1), D("k", 3)})},
		{D("a.k", 0, "n", 0, "d", 0), D("_id", 1, "z", 1, "a", A{D("v", 2), 7, D("v", 4)})},
		{D("_id", 0, "z", 1), D("z", 1)},
		{D("_id", 1), D("_id", 1)},
		{D("_id", 0, "a", 0, "n", 0), D("z", 1, "d", D("b", 1, "c", 2))},
		{D("d", D("b", 1)), D("_id", 1, "d", D("b", 1))},
		{D("d.b", true), D("_id", 1, "d", D("b", 1))},
		{D("d.b", 1, "d.c", 1), D("_id", 1, "d", D("b", 1, "c", 2))},
		{D("q", "$z"), D("_id", 1, "q", 1)},
		{D("q.r", "$z", "z", 1), D("_id", 1, "z", 1, "q", D("r", 1))},
		{D("z", 1, "n", D("$slice", 2)), D("_id", 1, "z", 1, "n", A{1, 2})},
		{D("z", 1, "n", D("$slice", -1)), D("_id", 1, "z", 1, "n", A{4})},
		{D("z", 1, "n", D("$slice", A{1, 2})), D("_id", 1, "z", 1, "n", A{2, 3})},
		{D("a", 0, "d", 0, "n", D("$slice", A{-3, 2})), D("_id", 1, "z", 1, "n", A{2, 3})},
		{D("n", D("$elemMatch", D("$gt", 2))), D("_id", 1, "n", A{3})},
		{D("a", D("$elemMatch", D("k", 3))), D("_id", 1, "a", A{D("k", 3, "v", 4)})},
		{D("missing", 1), D("_id", 1)},
		{D("z.y", 1), D("_id", 1)},
	}
	for _, tt := range tests {
		t.Run(text(tt.projection), func(t *testing.T) {
			got := all(t, c, D(), options.Find().SetProjection(tt.projection))
			require.Equal(t, text(tt.want), text(got[0]))
		})
	}
	for _, bad := range []bson.D{D("a", 1, "z", 0), D("a", 0, "z", 1), D("a", 1, "a.k", 1), D("a", D()), D("z", "$"), D("a", D("$bogus", 1))} {
		t.Run(text(bad), func(t *testing.T) {
			_, err := c.Find(t.Context(), D(), options.Find().SetProjection(bad))
			require.Error(t, err)
			code(t, err)
		})
	}
}

// text is a document as canonical JSON, in which an int is not a double.
func text(d any) string {
	b, err := bson.MarshalExtJSON(d, true, false)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Manual: "cursor.sort()", "Sort Order", "cursor.skip()", "cursor.limit()".
func TestSortSkipLimit(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c, D("_id", 1, "v", A{3, 1}), D("_id", 2, "v", 2), D("_id", 3, "v", A{0, 5}), D("_id", 4), D("_id", 5, "v", A{}))
	read := func(sort bson.D, opts *options.FindOptionsBuilder) A {
		got := A{}
		for _, d := range all(t, c, D(), opts.SetSort(sort)) {
			got = append(got, d[0].Value)
		}
		return got
	}
	// Of an array the smallest element counts ascending, the largest descending.
	require.Equal(t, A{int32(5), int32(4), int32(3), int32(1), int32(2)}, read(D("v", 1), options.Find()))
	require.Equal(t, A{int32(3), int32(1), int32(2), int32(4), int32(5)}, read(D("v", -1), options.Find()))
	require.Equal(t, A{int32(4), int32(3)}, read(D("v", 1), options.Find().SetSkip(1).SetLimit(2)))
	require.Equal(t, A{int32(5), int32(4)}, read(D("_id", -1), options.Find().SetLimit(2)))
	require.Equal(t, A{}, read(D("_id", 1), options.Find().SetSkip(9)))

	n, err := c.CountDocuments(t.Context(), D("_id", D("$gte", 2)), options.Count().SetSkip(1).SetLimit(2))
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	n, err = c.EstimatedDocumentCount(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 5, n)

	_, err = c.Find(t.Context(), D(), options.Find().SetSort(D("v", 2)))
	require.Error(t, err)
}

// Manual: "distinct".
func TestDistinct(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c, D("_id", 1, "v", A{1, 2}), D("_id", 2, "v", 2.0), D("_id", 3, "v", nil), D("_id", 4), D("_id", 5, "v", "x", "n", A{D("k", 1), D("k", 2)}))
	distinct := func(key string, filter bson.D) (values []any) {
		require.NoError(t, c.Distinct(t.Context(), key, filter).Decode(&values))
		return values
	}
	values := distinct("v", D())
	require.Len(t, values, 4) // 1, 2, null, "x"
	require.Contains(t, values, nil)
	require.ElementsMatch(t, []any{int32(1), int32(2)}, distinct("n.k", D("v", "x")))
	require.Empty(t, distinct("none", D()))
}
