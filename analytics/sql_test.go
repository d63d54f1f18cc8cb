package analytics

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/store"
)

// shop makes up a history in PostgreSQL, at a clock of its own.
type shop struct {
	*store.Store
	now time.Time
}

func openShop(t *testing.T, db *pgtest.DB) (*shop, *pgxpool.Pool) {
	pool, err := store.Open(t.Context(), db.URL, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := &shop{now: epoch}
	s.Store = store.New(pool, store.Config{Now: func() time.Time { return s.now }})
	return s, pool
}

func (s *shop) trade(t *testing.T, r *rand.Rand, steps int) {
	ctx, by := t.Context(), domain.Metadata{Actor: "test"}
	var customers, orders []domain.ID
	for range 4 {
		in := customer.CustomerInput
		in.Email = string('a'+rune(len(customers))) + "@example.com"
		c, err := s.CreateCustomer(ctx, in, by)
		require.NoError(t, err)
		customers = append(customers, c.ID)
	}
	_, err := s.UpdateCustomer(ctx, customers[0], store.Precondition{}, func(c domain.Customer) (domain.CustomerInput, error) {
		c.Status = domain.CustomerSuspended
		return c.CustomerInput, nil
	}, by)
	require.NoError(t, err)
	for range steps {
		s.now = s.now.Add(time.Duration(r.IntN(20*60*1000)) * time.Millisecond)
		if len(orders) == 0 || r.IntN(4) == 0 {
			o, err := s.PlaceOrder(ctx, domain.OrderInput{
				CustomerID: customers[r.IntN(len(customers))], Currency: []string{"EUR", "USD"}[r.IntN(2)],
				Items: []domain.Item{{SKU: "A", Quantity: 1 + r.Int64N(3), UnitPrice: 1 + r.Int64N(1000)}},
			}, by)
			require.NoError(t, err)
			orders = append(orders, o.ID)
			continue
		}
		// Most of what is tried is refused, as the order's status has it.
		id := orders[r.IntN(len(orders))]
		var err error
		switch r.IntN(7) {
		case 0, 1:
			err = s.DecideOrders(ctx, []domain.ID{id}, func(domain.ID) domain.Metadata { return by })[0]
		case 2, 3:
			_, err = s.FulfilOrder(ctx, id, store.Precondition{}, by)
		case 4:
			_, err = s.RefundOrder(ctx, id, store.Precondition{}, by)
		case 5:
			_, err = s.CancelOrder(ctx, id, store.Precondition{}, by)
		case 6:
			err = s.DeleteOrder(ctx, id, store.Precondition{}, by)
		}
		if code := domain.CodeOf(err); code != domain.CodeOrderState && code != domain.CodeNotFound {
			require.NoError(t, err)
		}
	}
}

// rows returns what a query finds.
func rows[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) []T {
	found, err := pool.Query(context.Background(), sql, args...)
	require.NoError(t, err)
	all, err := pgx.CollectRows(found, pgx.RowToStructByPos[T])
	require.NoError(t, err)
	return all
}

const (
	sqlTransactions = `SELECT o.customer_id::text, o.currency, CASE e.type WHEN 'order.confirmed.v1' THEN o.total ELSE -o.total END AS amount, e.occurred_at AS at
FROM outbox e JOIN orders o ON o.id = e.aggregate_id
WHERE (e.type = 'order.refunded.v1' OR e.type = 'order.confirmed.v1'
       AND NOT EXISTS (SELECT FROM outbox c WHERE c.aggregate_id = e.aggregate_id AND c.type = 'order.cancelled.v1'))
  AND e.occurred_at > $1 AND e.occurred_at <= $2`
	sqlRevenue = `SELECT currency, sum(amount)::bigint, count(*) FILTER (WHERE amount >= 0) FROM (` + sqlTransactions + `) t GROUP BY currency ORDER BY currency`
	sqlTop     = `SELECT customer_id, sum(amount)::bigint FROM (` + sqlTransactions + `) t WHERE currency = 'EUR' GROUP BY customer_id ORDER BY 2 DESC, 1 LIMIT 3`
	sqlStatus  = `SELECT status, count(*) FROM orders WHERE deleted_at IS NULL AND created_at > $1 AND created_at <= $2 GROUP BY status`
	sqlCounts  = `SELECT (SELECT count(*) FROM customers WHERE deleted_at IS NULL AND status = 'active'),
       (SELECT count(DISTINCT customer_id) FROM orders WHERE deleted_at IS NULL AND created_at > $1 AND created_at <= $2)`
	sqlOfCustomer = `SELECT amount, at FROM (` + sqlTransactions + `) t WHERE customer_id = $3 ORDER BY at DESC`
	sqlEvents     = `SELECT aggregate_id, aggregate_type, aggregate_version, type, before, after, occurred_at FROM outbox WHERE aggregate_type <> 'notification' ORDER BY position`
)

// The events of a database, counted in two interleavings, one after the other,
// give the figures that SQL gives.
func TestFiguresAreThoseOfPostgreSQL(t *testing.T) {
	s := start(t)
	shop, pool := openShop(t, pgtest.New(t))
	r := rand.New(rand.NewPCG(5, 5))
	shop.trade(t, r, 400)

	type row struct {
		ID            [16]byte
		Aggregate     string
		Version       int64
		Type          string
		Before, After []byte
		At            time.Time
	}
	var all []domain.Event
	for _, e := range rows[row](t, pool, sqlEvents) {
		all = append(all, domain.Event{
			ID: e.ID, AggregateType: e.Aggregate, AggregateID: e.ID, AggregateVersion: e.Version, Type: e.Type, Key: domain.ID(e.ID).String(),
			Before: e.Before, After: e.After, OccurredAt: e.At,
		})
	}
	require.Greater(t, len(all), 150)
	for range 2 {
		d := deliveriesOf(r, all)
		for !d.done() {
			require.NoError(t, d.next(t.Context(), s.worker))
		}
		for range 20 {
			now := epoch.Add(time.Duration(r.Int64N(int64(shop.now.Sub(epoch))))).Add(time.Second)
			s.agreeWithSQL(t, pool, now, time.Duration(1+r.IntN(48*3600))*time.Second)
		}
		s.agreeWithSQL(t, pool, shop.now, 30*24*time.Hour)
	}
}

func (s *system) agreeWithSQL(t *testing.T, pool *pgxpool.Pool, now time.Time, d time.Duration) {
	w := ending(now, d)
	read := s.reader(now)
	summary, err := read.Summary(t.Context(), d)
	require.NoError(t, err)
	require.Equal(t, w, summary.Window)
	statuses := map[domain.OrderStatus]int64{}
	for _, r := range rows[struct {
		Status string
		N      int64
	}](t, pool, sqlStatus, w.From, w.To) {
		statuses[domain.OrderStatus(r.Status)] = r.N
	}
	for _, status := range orderStatuses {
		require.Equal(t, statuses[status], summary.Orders[status], status)
	}
	counts := rows[struct{ Active, Ordering int64 }](t, pool, sqlCounts, w.From, w.To)[0]
	require.Equal(t, counts.Active, summary.CustomersActive)
	require.Equal(t, counts.Ordering, summary.CustomersOrdering)

	type money struct {
		Currency string
		Amount   int64
		Orders   int64
	}
	var sold []money
	for _, r := range summary.Revenue {
		sold = append(sold, money{r.Currency, r.Amount, r.Orders})
	}
	require.Equal(t, rows[money](t, pool, sqlRevenue, w.From, w.To), append([]money{}, sold...))

	type ranked struct {
		ID     string
		Amount int64
	}
	top, err := read.TopCustomers(t.Context(), d, 3, "EUR")
	require.NoError(t, err)
	first := []ranked{}
	for _, c := range top.Customers {
		first = append(first, ranked{c.CustomerID.String(), c.Amount})
	}
	require.Equal(t, rows[ranked](t, pool, sqlTop, w.From, w.To), first)
	for _, c := range top.Customers {
		type transaction struct {
			Amount int64
			At     time.Time
		}
		got, err := read.Transactions(t.Context(), c.CustomerID, d)
		require.NoError(t, err)
		want := rows[transaction](t, pool, sqlOfCustomer, w.From, w.To, c.CustomerID.String())
		require.Len(t, got.Transactions, len(want))
		for i, tr := range got.Transactions {
			require.Equal(t, want[i].Amount, tr.Amount)
			require.True(t, want[i].At.Equal(tr.At))
		}
	}
}
