// Package mongotest gives tests a MongoDB database: of an in-process server
// (mongofake) of their own, or on the server that OUTFLOW_TEST_MONGO names.
package mongotest

import (
	"context"
	"net/url"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/mongofake"
)

// Env names the variable that names a server to use.
const Env = "OUTFLOW_TEST_MONGO"

// URI returns the URI of a database that is gone when the test ends.
func URI(t testing.TB, database string) string {
	t.Helper()
	uri, _ := Start(t, database)
	return uri
}

// Start is [URI], with the server; nil when it is a real one.
func Start(t testing.TB, database string) (string, *mongofake.Server) {
	t.Helper()
	uri := os.Getenv(Env)
	var fake *mongofake.Server
	if uri == "" {
		var err error
		fake, err = mongofake.Start(context.Background(), mongofake.Config{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, fake.Close()) })
		uri = fake.URI()
	}
	u, err := url.Parse(uri)
	require.NoError(t, err)
	u.Path = "/" + database
	if u.User != nil && !u.Query().Has("authSource") {
		q := u.Query()
		q.Set("authSource", "admin")
		u.RawQuery = q.Encode()
	}
	if fake == nil {
		t.Cleanup(func() {
			client, err := mongo.Connect(options.Client().ApplyURI(u.String()))
			if err == nil {
				_ = client.Database(database).Drop(context.Background())
				_ = client.Disconnect(context.Background())
			}
		})
	}
	return u.String(), fake
}
