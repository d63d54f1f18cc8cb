package mongofake_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/goleak"

	"outflow/internal/mongofake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// D builds a document from keys and values in turn.
func D(pairs ...any) bson.D {
	d := bson.D{}
	for i := 0; i < len(pairs); i += 2 {
		d = append(d, bson.E{Key: pairs[i].(string), Value: pairs[i+1]})
	}
	return d
}

type A = bson.A

// externalServer names a real server that the same tests run against.
func externalServer() string { return os.Getenv("OUTFLOW_TEST_MONGO") }

// database is a database of the test's own, on a server of its own or on the one
// that OUTFLOW_TEST_MONGO names.
func database(t *testing.T) *mongo.Database {
	t.Helper()
	uri := externalServer()
	if uri == "" {
		return connect(t, start(t).URI())
	}
	db := connect(t, uri)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, db.Drop(ctx))
	})
	return db
}

func start(t *testing.T) *mongofake.Server {
	t.Helper()
	s, err := mongofake.Start(t.Context(), mongofake.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func connect(t *testing.T, uri string) *mongo.Database {
	t.Helper()
	client, err := mongo.Connect(options.Client().ApplyURI(uri).SetServerSelectionTimeout(5 * time.Second))
	require.NoError(t, err)
	db := client.Database("mongofake_" + strings.ReplaceAll(uuid.NewString(), "-", ""))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = client.Disconnect(ctx) // its server may be gone
	})
	return db
}

func insert(t *testing.T, c *mongo.Collection, docs ...any) {
	t.Helper()
	_, err := c.InsertMany(t.Context(), docs)
	require.NoError(t, err)
}

// all reads what a query answers.
func all(t *testing.T, c *mongo.Collection, filter any, opts ...options.Lister[options.FindOptions]) []bson.D {
	t.Helper()
	cursor, err := c.Find(t.Context(), filter, opts...)
	require.NoError(t, err)
	docs := []bson.D{}
	require.NoError(t, cursor.All(t.Context(), &docs))
	return docs
}

// ids are the _ids of what a query answers, sorted by _id.
func ids(t *testing.T, c *mongo.Collection, filter any) A {
	t.Helper()
	list := A{}
	for _, d := range all(t, c, filter, options.Find().SetSort(D("_id", 1))) {
		list = append(list, d[0].Value)
	}
	return list
}

// code is the error code of a failed command or of the first failed write.
func code(t *testing.T, err error) int {
	t.Helper()
	var write mongo.WriteException
	if errors.As(err, &write) && len(write.WriteErrors) > 0 {
		return write.WriteErrors[0].Code
	}
	var bulk mongo.BulkWriteException
	if errors.As(err, &bulk) && len(bulk.WriteErrors) > 0 {
		return bulk.WriteErrors[0].Code
	}
	var server mongo.ServerError
	require.ErrorAs(t, err, &server)
	return server.ErrorCodes()[0]
}
