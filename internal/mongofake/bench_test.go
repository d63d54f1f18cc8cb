package mongofake_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/mongofake"
)

func benchCollection(b *testing.B) *mongo.Collection {
	b.Helper()
	s, err := mongofake.Start(b.Context(), mongofake.Config{})
	require.NoError(b, err)
	client, err := mongo.Connect(options.Client().ApplyURI(s.URI()))
	require.NoError(b, err)
	b.Cleanup(func() {
		require.NoError(b, client.Disconnect(context.Background()))
		require.NoError(b, s.Close())
	})
	return client.Database("bench").Collection("c")
}

func customer(i int, version int64) bson.D {
	return D("_id", fmt.Sprintf("0198a7c2-0000-7000-8000-%012d", i), "version", version, "name", "Ada Lovelace", "email", fmt.Sprintf("ada.%d@example.org", i),
		"status", "active", "address", D("street", "Main Street 1", "city", "London", "country", "GB"), "created_at", bson.DateTime(1700000000000), "updated_at", bson.DateTime(1700000000000+version))
}

// BenchmarkVersionedUpserts is the replicator's hot path: bulk writes of 500.
// One op is one upsert.
func BenchmarkVersionedUpserts(b *testing.B) {
	c := benchCollection(b)
	const size = 500
	models := make([]mongo.WriteModel, 0, size)
	for i := 0; b.Loop(); i++ {
		id, version := i%100_000, int64(i/100_000+1)
		models = append(models, mongo.NewReplaceOneModel().
			SetFilter(D("_id", customer(id, 0)[0].Value, "version", D("$lt", version))).
			SetReplacement(customer(id, version)).SetUpsert(true))
		if len(models) == size {
			_, err := c.BulkWrite(b.Context(), models, options.BulkWrite().SetOrdered(false))
			require.NoError(b, err)
			models = models[:0]
		}
	}
}

func BenchmarkFindByID(b *testing.B) {
	c := benchCollection(b)
	docs := A{}
	for i := range 100_000 {
		docs = append(docs, customer(i, 1))
	}
	_, err := c.InsertMany(b.Context(), docs)
	require.NoError(b, err)
	for i := 0; b.Loop(); i++ {
		require.NoError(b, c.FindOne(b.Context(), D("_id", customer(i%100_000, 0)[0].Value)).Err())
	}
}

// BenchmarkScanByID reads 1,000 documents a time in order of _id, as verify does.
func BenchmarkScanByID(b *testing.B) {
	c := benchCollection(b)
	docs := A{}
	for i := range 100_000 {
		docs = append(docs, customer(i, 1))
	}
	_, err := c.InsertMany(b.Context(), docs)
	require.NoError(b, err)
	last := any("")
	for b.Loop() {
		cursor, err := c.Find(b.Context(), D("_id", D("$gt", last)), options.Find().SetSort(D("_id", 1)).SetLimit(1000).SetBatchSize(1000))
		require.NoError(b, err)
		var page []bson.Raw
		require.NoError(b, cursor.All(b.Context(), &page))
		if last = any(""); len(page) == 1000 {
			last = page[999].Lookup("_id").StringValue()
		}
	}
}
