package mongofake_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
)

func aggregate(t *testing.T, c *mongo.Collection, stages ...any) []bson.D {
	t.Helper()
	cursor, err := c.Aggregate(t.Context(), A(stages))
	require.NoError(t, err)
	docs := []bson.D{}
	require.NoError(t, cursor.All(t.Context(), &docs))
	return docs
}

// Manual: "Aggregation Stages" and the page of each stage and accumulator.
func TestAggregate(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	insert(t, c,
		D("_id", 1, "who", "a", "n", 5, "tags", A{"x", "y"}, "d", D("e", 1)),
		D("_id", 2, "who", "b", "n", int64(7), "tags", A{}),
		D("_id", 3, "who", "a", "n", 2.5, "tags", "z"),
		D("_id", 4, "who", "a"),
		D("_id", 5, "who", "b", "n", 1, "tags", A{"x"}))
	tests := []struct {
		stages A
		want   A
	}{
		{A{D("$match", D("who", "a")), D("$sort", D("_id", -1)), D("$limit", 2), D("$project", D("n", 1))}, A{D("_id", 4), D("_id", 3, "n", 2.5)}},
		{A{D("$sort", D("_id", 1)), D("$skip", 1), D("$limit", 1), D("$project", D("_id", 1))}, A{D("_id", 2)}},
		{A{D("$sort", D("_id", 1)), D("$limit", 2), D("$match", D("who", "b")), D("$project", D("_id", 1))}, A{D("_id", 2)}},
		{A{D("$group", D("_id", "$who", "sum", D("$sum", "$n"), "count", D("$sum", 1), "avg", D("$avg", "$n"), "min", D("$min", "$n"), "max", D("$max", "$n"))), D("$sort", D("_id", 1))},
			A{D("_id", "a", "sum", 7.5, "count", 3, "avg", 3.75, "min", 2.5, "max", 5), D("_id", "b", "sum", int64(8), "count", 2, "avg", 4.0, "min", 1, "max", int64(7))}},
		{A{D("$sort", D("_id", 1)), D("$group", D("_id", nil, "first", D("$first", "$n"), "last", D("$last", "$n"), "n", D("$count", D()), "ids", D("$push", "$_id")))},
			A{D("_id", nil, "first", 5, "last", 1, "n", 5, "ids", A{1, 2, 3, 4, 5})}},
		{A{D("$group", D("_id", nil, "ns", D("$push", "$n"))), D("$project", D("count", D("$size", "$ns")))}, A{D("_id", nil, "count", 4)}},
		{A{D("$group", D("_id", D("w", "$who"), "who", D("$addToSet", "$who"))), D("$sort", D("_id.w", 1))}, A{D("_id", D("w", "a"), "who", A{"a"}), D("_id", D("w", "b"), "who", A{"b"})}},
		{A{D("$match", D("_id", 99)), D("$group", D("_id", nil, "n", D("$sum", 1)))}, A{}},
		{A{D("$match", D("who", "a")), D("$count", "total")}, A{D("total", 3)}},
		{A{D("$match", D("who", "none")), D("$count", "total")}, A{}},
		{A{D("$unwind", "$tags"), D("$sort", D("_id", 1, "tags", 1)), D("$project", D("tags", 1))},
			A{D("_id", 1, "tags", "x"), D("_id", 1, "tags", "y"), D("_id", 3, "tags", "z"), D("_id", 5, "tags", "x")}},
		{A{D("$unwind", D("path", "$tags", "preserveNullAndEmptyArrays", true, "includeArrayIndex", "i")), D("$sort", D("_id", 1, "i", 1)), D("$project", D("tags", 1, "i", 1))},
			A{D("_id", 1, "tags", "x", "i", int64(0)), D("_id", 1, "tags", "y", "i", int64(1)), D("_id", 2, "i", nil), D("_id", 3, "tags", "z", "i", nil), D("_id", 4, "i", nil), D("_id", 5, "tags", "x", "i", int64(0))}},
		{A{D("$match", D("_id", 1)), D("$addFields", D("n", D("$add", A{"$n", 1}), "d.f", "$who", "new", D("$literal", "$x")))},
			A{D("_id", 1, "who", "a", "n", 6, "tags", A{"x", "y"}, "d", D("e", 1, "f", "a"), "new", "$x")}},
		{A{D("$match", D("_id", 1)), D("$set", D("n", "$$REMOVE", "tags", "$none")), D("$unset", "d")}, A{D("_id", 1, "who", "a")}},
		{A{D("$match", D("_id", 1)), D("$replaceRoot", D("newRoot", "$d"))}, A{D("e", 1)}},
		{A{D("$match", D("_id", 1)), D("$replaceWith", D("a", "$d.e", "b", "$none"))}, A{D("a", 1)}},
		{A{D("$sortByCount", "$who")}, A{D("_id", "a", "count", 3), D("_id", "b", "count", 2)}},
		{A{D("$facet", D("total", A{D("$count", "n")}, "first", A{D("$sort", D("_id", 1)), D("$limit", 1), D("$project", D("_id", 1))}))},
			A{D("total", A{D("n", 5)}, "first", A{D("_id", 1)})}},
		{A{D("$match", D("_id", 1)), D("$project", D("_id", 0, "x", D("$cond", A{D("$gt", A{"$n", 3}), "big", "small"}), "y", D("$ifNull", A{"$none", "$n"}), "z", D("$concat", A{"$who", "!"}),
			"q", D("$divide", A{"$n", 2}), "m", D("$multiply", A{"$n", 2, 0.5}), "s", D("$subtract", A{"$n", 7}), "in", D("$in", A{"x", "$tags"}), "at", D("$arrayElemAt", A{"$tags", -1}), "arr", A{"$n", "$none"}, "bool", D("$and", A{true, "$n"})))},
			A{D("x", "big", "y", 5, "z", "a!", "q", 2.5, "m", 5.0, "s", -2, "in", true, "at", "y", "arr", A{5, nil}, "bool", true)}},
	}
	for _, tt := range tests {
		t.Run(text(D("pipeline", tt.stages)), func(t *testing.T) {
			got := A{}
			for _, d := range aggregate(t, c, tt.stages...) {
				got = append(got, d)
			}
			require.Equal(t, text(D("docs", tt.want)), text(D("docs", got)))
		})
	}
	for _, bad := range []A{
		{D("$group", D("x", D("$sum", 1)))}, {D("$limit", 0)}, {D("$limit", -1)}, {D("$bogus", 1)}, {D("$match", 1)}, {D("$count", "$x")}, {D("$unwind", "x")}, {D("$project", D())},
		{D("$sort", D("a", 3))}, {D("$group", D("_id", 1, "x", 5))}, {D("$project", D("a", D("$bogus", 1)))}, {D("$match", D(), "$limit", 1)}, {D("$project", D("x", D("$divide", A{1, "$zero"}), "y", D("$divide", A{1, 0})))},
		{D("$project", D("x", "$$undefined"))}, {D("$replaceRoot", D("newRoot", "$who"))}, {D("$project", D("x", D("$add", A{"$who", 1})))},
	} {
		t.Run(text(D("pipeline", bad)), func(t *testing.T) {
			_, err := c.Aggregate(t.Context(), bad)
			require.Error(t, err)
		})
	}
}

// Manual: "$sum (aggregation)": the result has the widest type, and is exact.
func TestSums(t *testing.T) {
	t.Parallel()
	c := database(t).Collection("c")
	const most = int64(math.MaxInt64)
	for i, tt := range []struct {
		values A
		want   any
	}{
		{A{2147483647, 1}, int64(2147483648)},
		{A{2147483647, 1, -1}, 2147483647},
		{A{most, -1, 1}, most},
		{A{most, 1}, float64(1 << 63)},
		{A{"x", nil, 3}, 3},
		{A{"x"}, 0},
		{A{0.1, 0.2, 0.3, -0.6}, 0.0},
	} {
		group := i
		for _, v := range tt.values {
			insert(t, c, D("g", group, "v", v))
		}
		got := aggregate(t, c, D("$match", D("g", group)), D("$group", D("_id", nil, "s", D("$sum", "$v"))))
		if f, ok := tt.want.(float64); ok {
			require.InDelta(t, f, got[0][1].Value, 1e-15, "%v", tt.values)
			continue
		}
		require.Equal(t, text(D("s", tt.want)), text(got[0][1:]), "%v", tt.values)
	}
}
