package outbox

import (
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"outflow/internal/pgtest"
)

func withUser(t testing.TB, uri, user string) string {
	t.Helper()
	u, err := url.Parse(uri)
	require.NoError(t, err)
	u.User = url.User(user)
	return u.String()
}

func TestPartitionsAreMadeAhead(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ensure := func() {
		t.Helper()
		var g errgroup.Group
		for range 3 {
			g.Go(func() error {
				conn, err := pgx.Connect(t.Context(), db.URL)
				if err != nil {
					return err
				}
				defer func() { _ = conn.Close(t.Context()) }()
				return EnsurePartitions(t.Context(), conn)
			})
		}
		require.NoError(t, g.Wait())
	}
	count := func() (n int) {
		require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_inherits WHERE inhparent = 'outbox'::regclass`).Scan(&n))
		return n
	}
	ensure()
	require.Equal(t, 3, count())

	// At the edge of the last partition, an insert finds the next one.
	_, err := db.Pool.Exec(t.Context(), `SELECT setval(pg_get_serial_sequence('outbox', 'position'), $1)`, 3*partitionSize-2)
	require.NoError(t, err)
	ensure()
	require.Equal(t, 5, count())
	wr := (&world{db: db}).writer(t, 1)
	wr.write(t, 3)
	var tables []string
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT array_agg(DISTINCT tableoid::regclass::text ORDER BY tableoid::regclass::text) FROM outbox`).Scan(&tables))
	require.Equal(t, []string{"outbox_p2", "outbox_p3"}, tables)

	// A writer that is in the middle of a transaction doesn't hold it up.
	tx, err := db.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), change, wr.aggregates[0])
	require.NoError(t, err)
	_, err = db.Pool.Exec(t.Context(), `SELECT setval(pg_get_serial_sequence('outbox', 'position'), $1)`, 4*partitionSize)
	require.NoError(t, err)
	ensure()
	require.Equal(t, 7, count())
	require.NoError(t, tx.Commit(t.Context()))
}
