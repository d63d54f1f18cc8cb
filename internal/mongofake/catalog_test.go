package mongofake_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

func rename(t *testing.T, db *mongo.Database, from, to string, dropTarget bool) error {
	t.Helper()
	return db.Client().Database("admin").RunCommand(t.Context(),
		D("renameCollection", db.Name()+"."+from, "to", db.Name()+"."+to, "dropTarget", dropTarget)).Err()
}

// Manual: "renameCollection".
func TestRename(t *testing.T) {
	t.Parallel()
	db := database(t)
	from, to := db.Collection("from"), db.Collection("to")
	insert(t, from, D("_id", 1, "v", "new"))
	insert(t, to, D("_id", 2, "v", "old"))
	require.NoError(t, createIndex(t, from, D("v", 1), options.Index().SetUnique(true)))

	require.Equal(t, 48, code(t, rename(t, db, "from", "to", false)))
	require.Equal(t, 26, code(t, rename(t, db, "none", "to", true)))
	require.NoError(t, rename(t, db, "from", "to", true))
	require.Equal(t, A{int32(1)}, ids(t, to, D()))
	require.Empty(t, ids(t, from, D()))
	names, err := db.ListCollectionNames(t.Context(), D())
	require.NoError(t, err)
	require.Equal(t, []string{"to"}, names)
	// The indexes come along, and errors name the collection as it is called now.
	_, err = to.InsertOne(t.Context(), D("_id", 3, "v", "new"))
	require.Equal(t, 11000, code(t, err))
	require.ErrorContains(t, err, db.Name()+".to")
	require.NoError(t, rename(t, db, "to", "elsewhere", false))
	require.Equal(t, A{int32(1)}, ids(t, db.Collection("elsewhere"), D()))
}

// Readers see the old collection or the new one, never neither, while one after
// another is swapped in. Manual: "renameCollection".
func TestRenameIsAtomic(t *testing.T) {
	t.Parallel()
	db := database(t)
	live := db.Collection("live")
	fill := func(c *mongo.Collection, generation int) {
		docs := A{}
		for i := range 20 {
			docs = append(docs, D("_id", i, "generation", generation))
		}
		insert(t, c, docs...)
	}
	fill(live, 0)
	done := make(chan struct{})
	read := make(chan error)
	go func() {
		var failed error
		for {
			select {
			case <-done:
				read <- failed
				return
			default:
			}
			cursor, err := live.Find(t.Context(), D())
			var docs []struct{ Generation int }
			if err == nil {
				err = cursor.All(t.Context(), &docs)
			}
			if err == nil && len(docs) != 20 {
				err = fmt.Errorf("%d documents", len(docs))
			}
			for _, d := range docs {
				if d.Generation != docs[0].Generation {
					err = fmt.Errorf("two generations at once")
				}
			}
			if failed == nil {
				failed = err
			}
		}
	}()
	for generation := range 30 {
		fill(db.Collection("shadow"), generation+1)
		require.NoError(t, rename(t, db, "shadow", "live", true))
	}
	close(done)
	require.NoError(t, <-read)
}

// Manual: "create", "listCollections", "drop", "dropDatabase", "listDatabases".
func TestCollections(t *testing.T) {
	t.Parallel()
	db := database(t)
	require.NoError(t, db.CreateCollection(t.Context(), "b"))
	insert(t, db.Collection("a"), D("_id", 1))
	// A read or a write without effect makes no collection.
	require.Empty(t, all(t, db.Collection("none"), D()))
	_, err := db.Collection("none").UpdateOne(t.Context(), D("_id", 1), D("$set", D("a", 1)))
	require.NoError(t, err)
	_, err = db.Collection("none").DeleteMany(t.Context(), D())
	require.NoError(t, err)

	specs, err := db.ListCollectionSpecifications(t.Context(), D())
	require.NoError(t, err)
	names := []string{}
	for _, s := range specs {
		require.Equal(t, "collection", s.Type)
		require.False(t, s.ReadOnly)
		names = append(names, s.Name)
	}
	require.ElementsMatch(t, []string{"a", "b"}, names)
	filtered, err := db.ListCollectionNames(t.Context(), D("name", "a"))
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, filtered)

	require.NoError(t, db.Collection("a").Drop(t.Context()))
	require.NoError(t, db.Collection("a").Drop(t.Context()), "again is fine")
	require.Empty(t, all(t, db.Collection("a"), D()))

	databases, err := db.Client().ListDatabaseNames(t.Context(), D("name", db.Name()))
	require.NoError(t, err)
	require.Equal(t, []string{db.Name()}, databases)
	require.NoError(t, db.Drop(t.Context()))
	databases, err = db.Client().ListDatabaseNames(t.Context(), D("name", db.Name()))
	require.NoError(t, err)
	require.Empty(t, databases)
}

// Manual: "Views", "Supported Operations for Views", "create", "collMod".
func TestViews(t *testing.T) {
	t.Parallel()
	db := database(t)
	base, view := db.Collection("_base"), db.Collection("view")
	insert(t, base, D("_id", 1, "live", true, "n", 5), D("_id", 2, "live", false, "n", 5), D("_id", 3, "live", true, "n", 7))
	match := A{D("$match", D("live", true))}
	require.NoError(t, db.CreateView(t.Context(), "view", "_base", match))

	require.Equal(t, A{int32(1), int32(3)}, ids(t, view, D()))
	require.Equal(t, A{int32(3)}, ids(t, view, D("n", D("$gt", 5))))
	require.Empty(t, ids(t, view, D("_id", 2)))
	n, err := view.CountDocuments(t.Context(), D())
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	n, err = view.CountDocuments(t.Context(), D("n", 5))
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	var values []any
	require.NoError(t, view.Distinct(t.Context(), "_id", D()).Decode(&values))
	require.ElementsMatch(t, []any{int32(1), int32(3)}, values)
	// A view shows what is there now.
	insert(t, base, D("_id", 4, "live", true))
	require.Equal(t, A{int32(1), int32(3), int32(4)}, ids(t, view, D()))

	_, err = view.InsertOne(t.Context(), D("_id", 9))
	require.Equal(t, 166, code(t, err))
	_, err = view.UpdateOne(t.Context(), D("_id", 1), D("$set", D("a", 1)))
	require.Equal(t, 166, code(t, err))
	_, err = view.DeleteOne(t.Context(), D("_id", 1))
	require.Equal(t, 166, code(t, err))
	require.Equal(t, 166, code(t, view.FindOneAndDelete(t.Context(), D("_id", 1)).Err()))
	require.Equal(t, 166, code(t, createIndex(t, view, D("n", 1))))
	require.Equal(t, 166, code(t, rename(t, db, "view", "other", false)))

	require.Equal(t, 48, code(t, db.CreateView(t.Context(), "_base", "x", match)))
	require.Equal(t, 48, code(t, db.CreateView(t.Context(), "view", "_base", A{})))
	require.NoError(t, db.RunCommand(t.Context(), D("collMod", "view", "viewOn", "_base", "pipeline", A{D("$match", D("live", false))})).Err())
	require.Equal(t, A{int32(2)}, ids(t, view, D()))

	specs, err := db.ListCollectionSpecifications(t.Context(), D("type", "view"))
	require.NoError(t, err)
	require.Len(t, specs, 1)
	require.Equal(t, "view", specs[0].Name)
	var opts struct {
		ViewOn   string
		Pipeline []bson.D
	}
	require.NoError(t, bson.Unmarshal(specs[0].Options, &opts))
	require.Equal(t, "_base", opts.ViewOn)
	require.Equal(t, []bson.D{D("$match", D("live", false))}, opts.Pipeline)

	// A view on a view, and none that reads itself.
	require.NoError(t, db.CreateView(t.Context(), "over", "view", A{D("$match", D("n", 5))}))
	require.Equal(t, A{int32(2)}, ids(t, db.Collection("over"), D()))
	err = db.RunCommand(t.Context(), D("collMod", "view", "viewOn", "over", "pipeline", A{})).Err()
	require.Equal(t, 5, code(t, err))

	// It goes on reading the name when the collection is swapped under it.
	insert(t, db.Collection("shadow"), D("_id", 8, "live", false, "n", 5))
	require.NoError(t, rename(t, db, "shadow", "_base", true))
	require.Equal(t, A{int32(8)}, ids(t, view, D()))
	require.NoError(t, view.Drop(t.Context()))
	require.Empty(t, ids(t, view, D()))
	require.Equal(t, A{int32(8)}, ids(t, base, D()))
}

func TestViewIsNoRenameTarget(t *testing.T) {
	t.Parallel()
	db := database(t)
	insert(t, db.Collection("c"), D("_id", 1))
	require.NoError(t, db.CreateView(t.Context(), "view", "c", A{}))
	require.Equal(t, 48, code(t, rename(t, db, "c", "view", true)))
}

// What is not there is refused, by name. Manual: "Error Codes".
func TestRefusals(t *testing.T) {
	t.Parallel()
	if externalServer() != "" {
		t.Skip("a real server supports these")
	}
	db := database(t)
	insert(t, db.Collection("c"), D("_id", 1))
	tests := []struct {
		command bson.D
		code    int
		text    string
	}{
		{D("explain", D("find", "c")), 59, "explain"},
		{D("find", "c", "collation", D("locale", "de")), 238, "collation"},
		{D("find", "c", "tailable", true), 238, "tailable"},
		{D("find", "c", "nonsense", true), 40415, "nonsense"},
		{D("find", "c", "filter", 1), 14, "filter"},
		{D("find", "c", "limit", -1), 51024, "limit"},
		{D("find", 1), 73, ""},
		{D("find", "c", "filter", D("$where", "x")), 238, "$where"},
		{D("find", "c", "filter", D("a", D("$regex", "(?=x)"))), 238, "(?=x)"},
		{D("aggregate", "c", "cursor", D(), "pipeline", A{D("$lookup", D())}), 40324, "$lookup"},
		{D("aggregate", "c", "cursor", D(), "pipeline", A{D("$project", D("a", D("$dateToString", D())))}), 168, "$dateToString"},
		{D("aggregate", "c", "cursor", D(), "pipeline", A{D("$group", D("_id", 1, "x", D("$stdDevPop", 1)))}), 15952, "$stdDevPop"},
		{D("aggregate", "c", "pipeline", A{}), 9, "cursor"},
		{D("create", "x", "capped", true, "size", 100), 238, "capped"},
		{D("create", "x", "viewOn", "c", "pipeline", A{D("$limit", 1)}), 238, "$match"},
		{D("createIndexes", "c", "indexes", A{D("key", D("a", 1), "name", "x", "expireAfterSeconds", 0)}), 238, "expireAfterSeconds"},
		{D("createIndexes", "c", "indexes", A{D("key", D("a", "text"), "name", "x")}), 238, "text"},
		{D("update", "c", "updates", A{D("q", D(), "u", A{D("$set", D())})}), 238, "pipeline"},
		{D("update", "c", "updates", A{D("q", D(), "u", D("$set", D("a.$", 1)))}), 238, "positional"},
		{D("update", "c", "updates", A{D("q", D(), "u", D(), "x", 1)}), 40415, "x"},
		{D("insert", "c", "documents", A{}), 16, ""},
		{D("insert", "c", "documents", A{D("_id", 5)}, "writeConcern", D("w", 2)), 2, "w"},
		{D("insert", "c", "documents", A{D("_id", 5)}, "txnNumber", int64(1)), 20, "Transaction"},
		{D("find", "c", "readConcern", D("level", "snapshot")), 123, "snapshot"},
		{D("renameCollection", "a.b", "to", "a.c"), 13, "admin"},
		{D("insert", "a$b", "documents", A{D("_id", 5)}), 73, "a$b"},
		{D("listIndexes", "none"), 26, "none"},
		{D("dropIndexes", "none", "index", "*"), 26, "none"},
		{D("getMore", int64(77), "collection", "c"), 43, "77"},
	}
	for _, tt := range tests {
		var reply struct{ WriteErrors []struct{ Code int } }
		err := db.RunCommand(t.Context(), tt.command).Decode(&reply)
		if err == nil {
			require.NotEmpty(t, reply.WriteErrors, "%v", tt.command)
			require.Equal(t, tt.code, reply.WriteErrors[0].Code, "%v", tt.command)
			continue
		}
		require.Equal(t, tt.code, code(t, err), "%v: %v", tt.command, err)
		require.ErrorContains(t, err, tt.text)
	}
	require.Equal(t, A{int32(1)}, ids(t, db.Collection("c"), D()))
}
