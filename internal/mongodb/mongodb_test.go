package mongodb

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
)

// A secondary may answer with a position that doesn't hold any more.
func TestReadsGoToThePrimary(t *testing.T) {
	t.Parallel()
	target, err := Parse("mongodb://127.0.0.1:1/test?readPreference=secondary", "test")
	require.NoError(t, err)
	require.Equal(t, readpref.PrimaryMode, target.client.ReadPreference.Mode())
}
