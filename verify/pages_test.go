package verify

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/mongotest"
)

// A cursor that the server gives up in the middle is no end, and nothing comes
// twice.
func TestABrokenCursorIsGoneOnWith(t *testing.T) {
	t.Parallel()
	client, err := mongo.Connect(options.Client().ApplyURI(mongotest.URI(t, "pages")))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(t.Context()) })
	db := client.Database("pages")
	var all []any
	for n := range 3*pageRows + 10 {
		all = append(all, bson.D{{Key: "_id", Value: fmt.Sprintf("%06d", n)}})
	}
	_, err = db.Collection("c").InsertMany(t.Context(), append(all, bson.D{{Key: "_id", Value: int32(5)}}))
	require.NoError(t, err)

	d := documents{base: db.Collection("c")}
	t.Cleanup(d.close)
	last, found, killed := "", 0, 0
	for {
		page, end, err := d.page(t.Context(), last)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		for _, doc := range page {
			require.Equal(t, all[found], bson.D{{Key: "_id", Value: doc.Lookup("_id").StringValue()}})
			found++
		}
		if last = end; d.cursor.ID() != 0 {
			kill := bson.D{{Key: "killCursors", Value: "c"}, {Key: "cursors", Value: bson.A{d.cursor.ID()}}}
			require.NoError(t, db.RunCommand(t.Context(), kill).Err())
			killed++
		}
	}
	require.Equal(t, len(all), found)
	require.GreaterOrEqual(t, killed, 2)
}
