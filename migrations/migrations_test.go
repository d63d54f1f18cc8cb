package migrations_test

import (
	"io/fs"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"outflow/internal/pgtest"
	"outflow/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

// One of them works and the others wait for it; in the end each finds the
// schema complete.
func TestRow23MigrationsStartOnSeveralNodesAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	files, err := fs.Glob(migrations.FS, "*.sql")
	require.NoError(t, err)
	for range 4 {
		_, err := db.Pool.Exec(t.Context(), `DROP SCHEMA public CASCADE`)
		require.NoError(t, err)
		_, err = db.Pool.Exec(t.Context(), `CREATE SCHEMA public`)
		require.NoError(t, err)
		const nodes = 8
		results, errs := make([]migrations.Result, nodes), make([]error, nodes)
		var wg sync.WaitGroup
		together := make(chan struct{})
		for i := range nodes {
			wg.Go(func() {
				<-together
				results[i], errs[i] = migrations.Up(t.Context(), db.URL)
			})
		}
		close(together)
		wg.Wait()
		worked := 0
		for i, r := range results {
			require.NoError(t, errs[i])
			require.EqualValues(t, len(files), r.Version)
			if len(r.Applied) > 0 {
				worked++
				require.Equal(t, files, r.Applied)
			}
		}
		require.Equal(t, 1, worked)
		var events int
		require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&events))
	}
}

func TestAddressThatMeansNothing(t *testing.T) {
	t.Parallel()
	_, err := migrations.Up(t.Context(), (&url.URL{Scheme: "postgres", Host: "127.0.0.1:1", Path: "/none"}).String())
	require.ErrorContains(t, err, "migrate")
}
