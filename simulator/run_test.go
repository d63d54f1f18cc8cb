package simulator_test

import (
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/api"
	"outflow/internal/pgtest"
	"outflow/simulator"
	"outflow/store"
)

func TestRunReportsWhatTheDatabaseHolds(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts PostgreSQL")
	}
	db := pgtest.New(t)
	srv := httptest.NewServer(api.New(store.New(db.Pool, store.Config{}), api.Config{}))
	defer srv.Close()
	var last atomic.Int64
	cfg := simulator.Config{
		API: srv.URL, Customers: 20, Rate: 400, Duration: time.Second, Seed: 7,
		Progress: func(p simulator.Progress) { last.Store(int64(p.Done)) },
	}
	count := func(sql string) (n int) {
		require.NoError(t, db.Pool.QueryRow(t.Context(), sql).Scan(&n))
		return n
	}

	r, err := simulator.Run(t.Context(), cfg)
	require.NoError(t, err)
	require.Empty(t, r.Failed)
	require.Equal(t, int(last.Load()), r.Requests)
	require.Positive(t, r.Made[simulator.Order])
	require.Equal(t, r.Made[simulator.Register], count(`SELECT count(*) FROM customers`))
	require.Equal(t, r.Made[simulator.Order], count(`SELECT count(*) FROM orders`))
	require.Equal(t, r.Made[simulator.Cancel], count(`SELECT count(*) FROM orders WHERE status = 'cancelled'`))
	require.Equal(t, r.Made[simulator.Change], count(`SELECT count(*) FROM outbox WHERE type = 'customer.updated.v1'`))
	// No confirmer runs here, so nothing can be fulfilled or refunded.
	require.Zero(t, r.Made[simulator.Fulfil])
	refused := 0
	for _, n := range r.Refused {
		refused += n
	}
	require.Positive(t, refused)
	require.Positive(t, r.All.P50)
	require.LessOrEqual(t, r.All.P50, r.All.P99)

	// The same seed again: the customers are there already, and order again.
	r, err = simulator.Run(t.Context(), cfg)
	require.NoError(t, err)
	require.Empty(t, r.Failed)
	require.Positive(t, r.Refused["register: email-taken"])
	require.Positive(t, r.Made[simulator.Order])
}

func TestRunSaysWhenNothingAnswers(t *testing.T) {
	t.Parallel()
	_, err := simulator.Run(t.Context(), simulator.Config{API: "http://127.0.0.1:1", Rate: 1, Duration: time.Second})
	require.ErrorContains(t, err, "reach the API")
}
