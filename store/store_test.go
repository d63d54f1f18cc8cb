package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

var by = domain.Metadata{Actor: "test", CorrelationID: "r-1", CausationID: "c-1", Traceparent: "00-1-2-01"}

// open returns a store on a database of its own, which runs, through the pool
// that production uses. When the test ends, the whole log is checked.
func open(t *testing.T) (*store.Store, *pgxpool.Pool) {
	t.Helper()
	return openAt(t, nil)
}

func openAt(t *testing.T, now func() time.Time) (*store.Store, *pgxpool.Pool) {
	t.Helper()
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 16)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := store.New(pool, store.Config{Now: now})
	t.Cleanup(func() { checkLog(t, s, pool) })
	run(t, s)
	return s, pool
}

func ada() domain.CustomerInput {
	return domain.CustomerInput{
		Name: "Ada Lovelace", Email: "Ada@Example.com", Phone: "1-800-FLOWERS", Status: domain.CustomerActive,
		Address:       &domain.Address{Line1: "12 St James's Square", City: "London", PostalCode: "SW1Y", Country: "GB"},
		SpendingLimit: &domain.Money{Amount: 99_999_999_999_999, Currency: "EUR"},
		Metadata:      map[string]string{"b": "<&> \u00fc \"quoted\"", "a": ""},
	}
}

func named(name string) domain.CustomerInput {
	return domain.CustomerInput{Name: name, Email: name + "@example.com"}
}

func tea(customer domain.ID) domain.OrderInput {
	return domain.OrderInput{CustomerID: customer, Currency: "EUR", Items: []domain.Item{
		{SKU: "tea-1", Name: "Grüner Tee", Quantity: 2, UnitPrice: 450}, {SKU: "cup", Quantity: 1, UnitPrice: 0},
	}}
}

func create(t *testing.T, s *store.Store, in domain.CustomerInput) domain.Customer {
	t.Helper()
	c, err := s.CreateCustomer(t.Context(), in, by)
	require.NoError(t, err)
	return c
}

func place(t *testing.T, s *store.Store, customer domain.ID) domain.Order {
	t.Helper()
	o, err := s.PlaceOrder(t.Context(), tea(customer), by)
	require.NoError(t, err)
	return o
}

func decide(t *testing.T, s *store.Store, ids ...domain.ID) {
	t.Helper()
	for _, err := range s.DecideOrders(t.Context(), ids, func(domain.ID) domain.Metadata { return by }) {
		require.NoError(t, err)
	}
}

func requireCode(t *testing.T, want domain.Code, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, want, domain.CodeOf(err), "%v", err)
}

// rename is an edit that sets a customer's name.
func rename(name string) func(domain.Customer) (domain.CustomerInput, error) {
	return func(c domain.Customer) (domain.CustomerInput, error) {
		c.Name = name
		return c.CustomerInput, nil
	}
}

// event is a row of the outbox.
type event struct {
	position int64
	domain.Event
}

// log reads the whole outbox in the order of positions.
func log(t *testing.T, pool *pgxpool.Pool) []event {
	t.Helper()
	// The test's own context has ended when cleanups run.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	rows, err := pool.Query(ctx, `SELECT position, event_id, aggregate_type, aggregate_id, aggregate_version, type, key,
		before, after, metadata, occurred_at FROM outbox ORDER BY position`)
	require.NoError(t, err)
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (event, error) {
		var e event
		var id, aggregate pgtype.UUID
		var before, after, meta []byte
		err := row.Scan(&e.position, &id, &e.AggregateType, &aggregate, &e.AggregateVersion, &e.Type, &e.Key,
			&before, &after, &meta, &e.OccurredAt)
		e.ID, e.AggregateID, e.OccurredAt = id.Bytes, aggregate.Bytes, e.OccurredAt.UTC()
		e.Before, e.After, e.Metadata = before, after, meta
		return e, err
	})
	require.NoError(t, err)
	return events
}

// checkLog holds the outbox against itself and against the tables: versions
// 1..n without gaps and in the order of positions, the before of each event the
// after of the one before, the last after the row as it is, and a tombstone for
// what was deleted.
func checkLog(t *testing.T, s *store.Store, pool *pgxpool.Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	last := map[domain.ID]event{}
	ids := map[domain.ID]bool{}
	for _, e := range log(t, pool) {
		require.False(t, ids[e.ID], "the event's id is used twice")
		ids[e.ID] = true
		before, known := last[e.AggregateID]
		if known {
			require.Equal(t, before.AggregateType, e.AggregateType)
			require.NotNil(t, before.After, "an event after the deletion")
		}
		require.Equal(t, before.AggregateVersion+1, e.AggregateVersion, "%s %s", e.AggregateType, e.AggregateID)
		require.Equal(t, string(before.After), string(e.Before), "before of version %d", e.AggregateVersion)
		last[e.AggregateID] = e
	}
	entities := 0
	for id, e := range last {
		var now any
		var err error
		switch e.AggregateType {
		case domain.AggregateCustomer:
			now, err = s.Customer(ctx, id)
		case domain.AggregateOrder:
			now, err = s.Order(ctx, id)
		default:
			continue
		}
		entities++
		if e.After == nil {
			requireCode(t, domain.CodeNotFound, err)
			continue
		}
		require.NoError(t, err)
		state, err := json.Marshal(now)
		require.NoError(t, err)
		require.Equal(t, string(e.After), string(state), "the row and the last event differ")
	}
	var rows int
	require.NoError(t, pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM customers) + (SELECT count(*) FROM orders)`).Scan(&rows))
	require.Equal(t, rows, entities, "every row has events")
}

// requests decodes the notification requests of a log.
func requests(t *testing.T, events []event) []domain.Notification {
	t.Helper()
	var all []domain.Notification
	for _, e := range events {
		if e.AggregateType != domain.AggregateNotification {
			continue
		}
		var n domain.Notification
		require.NoError(t, json.Unmarshal(e.After, &n))
		require.Equal(t, domain.NotificationRequested, e.Type)
		require.Equal(t, int64(1), e.AggregateVersion)
		require.Equal(t, e.AggregateID, n.ID)
		require.Equal(t, n.CustomerID.String(), e.Key)
		require.Nil(t, e.Before)
		all = append(all, n)
	}
	return all
}

// types lists a log's event types of one aggregate.
func types(events []event, id domain.ID) []string {
	var all []string
	for _, e := range events {
		if e.AggregateID == id {
			all = append(all, e.Type)
		}
	}
	return all
}

// together runs n functions at the same moment and returns their errors.
func together(n int, f func(i int) error) []error {
	errs := make([]error, n)
	start := make(chan struct{})
	done := make(chan struct{})
	for i := range n {
		go func() {
			defer func() { done <- struct{}{} }()
			<-start
			errs[i] = f(i)
		}()
	}
	close(start)
	for range n {
		<-done
	}
	return errs
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

func nth(prefix string, i int) string { return fmt.Sprintf("%s-%d", prefix, i) }

// lockWaiters counts the sessions that wait for a lock.
func lockWaiters(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	var n int
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n))
	return n
}
