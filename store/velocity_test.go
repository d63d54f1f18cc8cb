package store_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/store"
)

// limited creates a customer with a spending limit in euros' cents.
func limited(t *testing.T, s *store.Store, name string, limit int64) domain.ID {
	t.Helper()
	in := named(name)
	in.SpendingLimit = &domain.Money{Amount: limit, Currency: "EUR"}
	return create(t, s, in).ID
}

func placeOf(t *testing.T, s *store.Store, customer domain.ID, amount int64, currency string) domain.ID {
	t.Helper()
	o, err := s.PlaceOrder(t.Context(), domain.OrderInput{
		CustomerID: customer, Currency: currency, Items: []domain.Item{{SKU: "s", Quantity: 1, UnitPrice: amount}},
	}, by)
	require.NoError(t, err)
	return o.ID
}

// outcome tells how an order was decided, and decides it first.
func outcome(t *testing.T, s *store.Store, id domain.ID) string {
	t.Helper()
	decide(t, s, id)
	o, err := s.Order(t.Context(), id)
	require.NoError(t, err)
	if o.Reason != "" {
		return o.Reason
	}
	return string(o.Status)
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	_, err := pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

func TestSpendingLimitHoldsOverTheWindow(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := limited(t, s, "ada", 1000)
	age := func(id domain.ID, age string) {
		exec(t, pool, `UPDATE orders SET confirmed_at = now() - $2::interval WHERE id = $1`, id.String(), age)
	}
	first := placeOf(t, s, c, 600, "EUR")
	require.Equal(t, "confirmed", outcome(t, s, first))
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 401, "EUR")))
	second := placeOf(t, s, c, 400, "EUR")
	require.Equal(t, "confirmed", outcome(t, s, second), "what was rejected doesn't count, and the limit may be reached")
	require.Equal(t, "confirmed", outcome(t, s, placeOf(t, s, c, 0, "EUR")))
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "EUR")))
	require.Equal(t, "currency_not_accepted", outcome(t, s, placeOf(t, s, c, 1, "USD")))

	// An order counts until it leaves the window, to the second.
	age(first, "5:59:55")
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "EUR")))
	age(first, "6:00:01")
	third := placeOf(t, s, c, 600, "EUR")
	require.Equal(t, "confirmed", outcome(t, s, third))

	// It counts until it is cancelled, and not less for being fulfilled,
	// refunded or deleted.
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "EUR")))
	_, err := s.CancelOrder(t.Context(), third, store.Precondition{}, by)
	require.NoError(t, err)
	fourth := placeOf(t, s, c, 600, "EUR")
	require.Equal(t, "confirmed", outcome(t, s, fourth))
	_, err = s.FulfilOrder(t.Context(), fourth, store.Precondition{}, by)
	require.NoError(t, err)
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "EUR")))
	_, err = s.RefundOrder(t.Context(), fourth, store.Precondition{}, by)
	require.NoError(t, err)
	require.NoError(t, s.DeleteOrder(t.Context(), fourth, store.Precondition{}, by))
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "EUR")))

	// An order that an earlier version of outflow confirmed.
	exec(t, pool, `UPDATE orders SET confirmed_at = NULL WHERE id = $1`, second.String())
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "EUR")))

	// Others' orders are theirs.
	require.Equal(t, "confirmed", outcome(t, s, placeOf(t, s, limited(t, s, "eve", 1000), 1000, "EUR")))
}

func TestChangedLimits(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	c := create(t, s, named("ada")).ID
	limit := func(m *domain.Money) {
		_, err := s.UpdateCustomer(t.Context(), c, store.Precondition{}, func(c domain.Customer) (domain.CustomerInput, error) {
			c.SpendingLimit = m
			return c.CustomerInput, nil
		}, by)
		require.NoError(t, err)
	}
	// Without a limit, nothing is too much.
	for range 3 {
		require.Equal(t, "confirmed", outcome(t, s, placeOf(t, s, c, domain.MaxAmount, "EUR")))
		require.Equal(t, "confirmed", outcome(t, s, placeOf(t, s, c, 50, "USD")))
	}
	limit(&domain.Money{Amount: domain.MaxAmount, Currency: "EUR"})
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "EUR")), "what was confirmed before counts")
	limit(&domain.Money{Amount: 200, Currency: "USD"})
	require.Equal(t, "confirmed", outcome(t, s, placeOf(t, s, c, 50, "USD")), "what is of another currency doesn't")
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "USD")))
	limit(nil)
	require.Equal(t, "confirmed", outcome(t, s, placeOf(t, s, c, 1, "USD")))
}

// Sums that no int64 holds are more than every limit, not less.
func TestSpentMoreThanANumberHolds(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, named("ada")).ID
	var ids []domain.ID
	for range 3 {
		ids = append(ids, placeOf(t, s, c, 1, "EUR"))
	}
	decide(t, s, ids...)
	exec(t, pool, `UPDATE orders SET total = 9223372036854775807`)
	exec(t, pool, `UPDATE customers SET spending_limit_amount = $1, spending_limit_currency = 'EUR'`, int64(domain.MaxAmount))
	require.Equal(t, "limit_exceeded", outcome(t, s, placeOf(t, s, c, 1, "EUR")))
	exec(t, pool, `UPDATE orders SET total = 1`) // for the check of the log
	exec(t, pool, `UPDATE customers SET spending_limit_amount = NULL, spending_limit_currency = NULL`)
}

// Orders that come in one batch are decided one after the other.
func TestOneBatchIsHeldAgainstTheLimitInOrder(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ada, eve := limited(t, s, "ada", 1000), limited(t, s, "eve", 500)
	placed := []domain.ID{
		placeOf(t, s, ada, 700, "EUR"), placeOf(t, s, eve, 500, "EUR"), placeOf(t, s, ada, 400, "EUR"),
		placeOf(t, s, ada, 300, "EUR"), placeOf(t, s, eve, 1, "EUR"), placeOf(t, s, ada, 1, "EUR"),
	}
	decide(t, s, placed[5], placed[4], placed[3], placed[2], placed[1], placed[0], placed[0])
	for i, want := range []string{"confirmed", "confirmed", "limit_exceeded", "confirmed", "limit_exceeded", "limit_exceeded"} {
		require.Equal(t, want, outcome(t, s, placed[i]), i)
	}
}

// Two orders that pass alone but not together, decided at the same time by
// confirmers that know nothing of each other: in every round, one is confirmed.
func TestTwoOrdersThatPassAloneButNotTogether(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	for round := range rounds {
		c := limited(t, s, nth("c", round), 1000)
		ids := []domain.ID{placeOf(t, s, c, 600, "EUR"), placeOf(t, s, c, 600, "EUR")}
		for _, err := range together(4, func(i int) error {
			return s.DecideOrders(t.Context(), ids[i%2:i%2+1], func(domain.ID) domain.Metadata { return by })[0]
		}) {
			require.NoError(t, err)
		}
		got := []string{outcome(t, s, ids[0]), outcome(t, s, ids[1])}
		require.ElementsMatch(t, []string{"confirmed", "limit_exceeded"}, got, "round %d", round)
	}
}

// Many orders of few customers, in batches that overlap, while some are
// cancelled: no limit is ever passed, and none is left unused.
func TestManyConfirmersKeepTheLimits(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	const customers, orders = 5, 40
	var all []domain.ID
	for i := range customers {
		c := limited(t, s, nth("c", i), 1000)
		for range orders {
			all = append(all, placeOf(t, s, c, 100, "EUR"))
		}
	}
	for _, err := range together(16, func(i int) error {
		for at := 0; at < len(all); at += 10 {
			from := (at + i*37) % len(all)
			for _, err := range s.DecideOrders(t.Context(), all[from:min(from+25, len(all))], func(domain.ID) domain.Metadata { return by }) {
				if err != nil {
					return err
				}
			}
		}
		return nil
	}) {
		require.NoError(t, err)
	}
	decide(t, s, all...)
	rows, err := pool.Query(t.Context(), `SELECT sum(total)::bigint FROM orders WHERE status = 'confirmed' GROUP BY customer_id`)
	require.NoError(t, err)
	sums, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	require.Equal(t, []int64{1000, 1000, 1000, 1000, 1000}, sums)
}

// trips counts what a connection sends and then waits for.
type trips struct{ n atomic.Int64 }

func (c *trips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (c *trips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *trips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (c *trips) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) {}

func TestABatchIsDecidedInTwoRoundTrips(t *testing.T) {
	t.Parallel()
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 1)
	require.NoError(t, err)
	pool.Close() // just for its configuration
	count := &trips{}
	cfg := pool.Config()
	cfg.ConnConfig.Tracer = count
	pool, err = pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := store.New(pool, store.Config{VelocityWindow: time.Hour})
	for round := range 3 {
		var ids []domain.ID
		for i := range 10 {
			c := limited(t, s, nth("c", 100*round+i), 1000)
			for range 5 {
				ids = append(ids, placeOf(t, s, c, 300, "EUR"))
			}
		}
		before := count.n.Load()
		decide(t, s, ids...)
		if round > 0 { // the first one prepares the statements
			require.Equal(t, int64(2), count.n.Load()-before)
		}
		for i, id := range ids {
			o, err := s.Order(t.Context(), id)
			require.NoError(t, err)
			require.Equal(t, i%5 >= 3, o.Status == domain.OrderStatusRejected)
		}
	}
}

// Batches of 100 placed orders, of 1,000 customers with limits, each with 50
// orders inside the window and as many before it.
func BenchmarkDecideOrders(b *testing.B) {
	pool, err := store.Open(b.Context(), pgtest.New(b).URL, 4)
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	s := store.New(pool, store.Config{})
	var customers []domain.ID
	for i := range 1000 {
		in := named(nth("c", i))
		in.SpendingLimit = &domain.Money{Amount: domain.MaxAmount, Currency: "EUR"}
		c, err := s.CreateCustomer(b.Context(), in, by)
		require.NoError(b, err)
		customers = append(customers, c.ID)
	}
	_, err = pool.Exec(b.Context(), `INSERT INTO orders (id, version, customer_id, currency, items, total, status, created_at, updated_at, confirmed_at)
		SELECT gen_random_uuid(), 2, c.id, 'EUR', '[]', 100, 'confirmed', now(), now(), now() - n * interval '7 minutes'
		FROM customers c, generate_series(1, 100) n`)
	require.NoError(b, err)
	const batch = 100
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		ids := make([]domain.ID, batch)
		for i := range ids {
			o, err := s.PlaceOrder(b.Context(), tea(customers[(n*batch+i)%len(customers)]), by)
			require.NoError(b, err)
			ids[i] = o.ID
		}
		b.StartTimer()
		for _, err := range s.DecideOrders(b.Context(), ids, func(domain.ID) domain.Metadata { return by }) {
			require.NoError(b, err)
		}
	}
	b.ReportMetric(float64(b.N)*batch/b.Elapsed().Seconds(), "orders/s")
}
