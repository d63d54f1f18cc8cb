package pgtest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNewGivesAMigratedDatabase(t *testing.T) {
	t.Parallel()
	db := New(t)
	var n int
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM customers`).Scan(&n))
	require.Zero(t, n)
}
