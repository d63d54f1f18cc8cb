package store_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/store"
)

// breakTable makes rows of a table fail with an SQLSTATE, for as long as the
// condition (which may use NEW and nextval('tries')) is true.
func breakTable(t *testing.T, pool *pgxpool.Pool, table, when, sqlstate string) {
	t.Helper()
	for _, sql := range []string{
		`CREATE SEQUENCE IF NOT EXISTS tries`,
		fmt.Sprintf(`CREATE OR REPLACE FUNCTION break_%s() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN IF %s THEN RAISE EXCEPTION 'broken by the test' USING ERRCODE = '%s'; END IF; RETURN NEW; END $$`, table, when, sqlstate),
		fmt.Sprintf(`CREATE OR REPLACE TRIGGER broken BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION break_%s()`, table, table),
	} {
		_, err := pool.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
}

// Whatever part of a write fails, the others are not there either. checkLog
// compares the rows with the log when the test ends.
func TestFailureOfAnyHalfWritesNothing(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, ada())
	o := place(t, s, c.ID)
	idle := create(t, s, named("idle"))
	before := log(t, pool)
	m := func(domain.ID) domain.Metadata { return by }
	writes := map[string]func() error{
		"create": func() error { _, err := s.CreateCustomer(t.Context(), named("new"), by); return err },
		"update": func() error {
			_, err := s.UpdateCustomer(t.Context(), c.ID, store.Precondition{}, rename("x"), by)
			return err
		},
		"delete": func() error { return s.DeleteCustomer(t.Context(), idle.ID, store.Precondition{}, by) },
		"place":  func() error { _, err := s.PlaceOrder(t.Context(), tea(c.ID), by); return err },
		"cancel": func() error { _, err := s.CancelOrder(t.Context(), o.ID, store.Precondition{}, by); return err },
		"decide": func() error { return s.DecideOrders(t.Context(), []domain.ID{o.ID}, m)[0] },
	}
	notifies := map[string]bool{"create": true, "cancel": true, "decide": true}
	for _, broken := range []struct{ table, when string }{
		{"outbox", "NEW.aggregate_type <> 'notification'"},
		{"outbox", "NEW.aggregate_type = 'notification'"},
		{"customers", "true"},
		{"orders", "true"},
	} {
		for name, write := range writes {
			ofOrder := name == "place" || name == "cancel" || name == "decide"
			if broken.table == "customers" && ofOrder || broken.table == "orders" && !ofOrder ||
				broken.when == "NEW.aggregate_type = 'notification'" && !notifies[name] {
				continue
			}
			breakTable(t, pool, broken.table, broken.when, "XX000")
			err := write()
			require.ErrorContains(t, err, "XX000", "%s with broken %s", name, broken.table)
			require.Empty(t, domain.CodeOf(err))
			require.Equal(t, before, log(t, pool), "%s with broken %s", name, broken.table)
			breakTable(t, pool, broken.table, "false", "XX000")
			var changed int
			require.NoError(t, pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM customers WHERE version <> 1)
				+ (SELECT count(*) FROM orders WHERE version <> 1) + (SELECT count(*) - 3 FROM customers, orders WHERE customers.id = customer_id)`).Scan(&changed))
			require.Equal(t, -2, changed, "%s with broken %s", name, broken.table)
		}
	}
}

func TestSQLStatesBecomeCodes(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	for state, want := range map[string]domain.Code{
		"53100": domain.CodeUnavailable, // disk full
		"53200": domain.CodeUnavailable, // out of memory
		"57P03": domain.CodeUnavailable, // cannot connect now
		"57014": domain.CodeUnavailable, // statement timeout
		"25006": domain.CodeUnavailable, // read-only transaction
		"58030": domain.CodeUnavailable, // I/O error
		"08006": domain.CodeUnavailable,
		"40001": domain.CodeWriteConflict,
		"40P01": domain.CodeWriteConflict,
		"55P03": domain.CodeWriteConflict,
		"23505": "", // of another constraint
		"22012": "",
		"42501": "",
	} {
		breakTable(t, pool, "outbox", "true", state)
		_, err := s.CreateCustomer(t.Context(), named("ada"), by)
		require.Error(t, err, state)
		require.Equal(t, want, domain.CodeOf(err), state)
	}
	breakTable(t, pool, "outbox", "false", "XX000")
	require.Empty(t, log(t, pool))
}

func TestDeadlocksAreTriedAgain(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	for _, state := range []string{"40001", "40P01"} {
		updated, deleted := create(t, s, named("b"+state)), create(t, s, named("c"+state))
		breakTable(t, pool, "outbox", "nextval('tries') <= 3", state)
		for name, write := range map[string]func() error{
			"one statement": func() error {
				_, err := s.CreateCustomer(t.Context(), named("a"+state), by)
				return err
			},
			"read and write": func() error {
				_, err := s.UpdateCustomer(t.Context(), updated.ID, store.AtVersion(1), rename("B"), by)
				return err
			},
			"transaction": func() error {
				return s.DeleteCustomer(t.Context(), deleted.ID, store.AtVersion(1), by)
			},
		} {
			_, err := pool.Exec(t.Context(), `ALTER SEQUENCE tries RESTART`)
			require.NoError(t, err)
			require.NoError(t, write(), "%s, %s", name, state)
		}
		breakTable(t, pool, "outbox", "false", state)
	}
}

func TestNoPartitionIsUnavailable(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	_, err := pool.Exec(t.Context(), `ALTER TABLE outbox ALTER COLUMN position RESTART WITH 1000000000000`)
	require.NoError(t, err)
	_, err = s.CreateCustomer(t.Context(), named("ada"), by)
	requireCode(t, domain.CodeUnavailable, err)
	require.Empty(t, log(t, pool))
}

func with(t *testing.T, dsn, parameter, value string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	q := u.Query()
	q.Set(parameter, value)
	u.RawQuery = q.Encode()
	return u.String()
}

func TestOpenConfiguresConnections(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t).URL
	pool, err := store.Open(t.Context(), with(t, dsn, "statement_timeout", "7s"), 3)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.Equal(t, int32(3), pool.Config().MaxConns)
	for name, want := range map[string]string{
		"application_name": "outflow", "transaction_isolation": "read committed", "enable_seqscan": "off",
		"idle_in_transaction_session_timeout": "30s", "statement_timeout": "7s",
	} {
		var got string
		require.NoError(t, pool.QueryRow(t.Context(), "SHOW "+name).Scan(&got))
		require.Equal(t, want, got, name)
	}
	_, err = store.Open(t.Context(), "postgres://u:hunter2@h:99999/db", 0)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
}

func TestReadOnlyAndTimeoutAreUnavailable(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, named("ada"))
	dsn := pool.Config().ConnString()

	readOnly, err := store.Open(t.Context(), with(t, dsn, "default_transaction_read_only", "on"), 2)
	require.NoError(t, err)
	t.Cleanup(readOnly.Close)
	_, err = store.New(readOnly, store.Config{}).CreateCustomer(t.Context(), named("b"), by)
	requireCode(t, domain.CodeUnavailable, err)
	require.NoError(t, store.New(readOnly, store.Config{}).Ping(t.Context()))

	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }() // or the pool could not close when the test fails
	_, err = tx.Exec(t.Context(), `SELECT FROM customers FOR UPDATE`)
	require.NoError(t, err)
	hasty, err := store.Open(t.Context(), with(t, dsn, "statement_timeout", "50ms"), 2)
	require.NoError(t, err)
	t.Cleanup(hasty.Close)
	_, err = store.New(hasty, store.Config{}).UpdateCustomer(t.Context(), c.ID, store.Precondition{}, rename("x"), by)
	requireCode(t, domain.CodeUnavailable, err)
	requireCode(t, domain.CodeUnavailable, store.New(hasty, store.Config{}).DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by))

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = s.UpdateCustomer(ctx, c.ID, store.Precondition{}, rename("x"), by)
	requireCode(t, domain.CodeUnavailable, err)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	gone, leave := context.WithCancel(t.Context())
	leave()
	_, err = s.UpdateCustomer(gone, c.ID, store.Precondition{}, rename("x"), by)
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, domain.CodeOf(err), "whoever left is told nothing")
	// The client has given up and asked the server to do so too; until that has
	// arrived, the statements still wait for their turn.
	require.Eventually(t, func() bool { return lockWaiters(t, pool) == 0 }, time.Minute, 5*time.Millisecond)
	require.NoError(t, tx.Rollback(t.Context()))
	require.Len(t, log(t, pool), 2)
}

func TestLostConnectionsAreUnavailableAndReplaced(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, err := store.Open(t.Context(), db.URL, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := store.New(pool, store.Config{})
	c := create(t, s, named("ada"))

	tx, err := db.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }() // or the pool could not close when the test fails
	_, err = tx.Exec(t.Context(), `SELECT FROM customers FOR UPDATE`)
	require.NoError(t, err)
	waiting := make(chan error, 1)
	go func() { waiting <- s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by) }()
	require.Eventually(t, func() bool {
		var n int
		err := db.Pool.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'outflow' AND wait_event_type = 'Lock'`).Scan(&n)
		return err == nil && n > 0
	}, time.Minute, 5*time.Millisecond)
	requireCode(t, domain.CodeUnavailable, <-waiting)
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by), "on a new connection")
	checkLog(t, s, pool)
}

func TestServerThatIsAwayIsUnavailable(t *testing.T) {
	t.Parallel()
	pool, err := store.Open(t.Context(), "postgres://nobody@127.0.0.1:1/none", 2)
	require.NoError(t, err, "opening doesn't connect")
	t.Cleanup(pool.Close)
	s := store.New(pool, store.Config{})
	requireCode(t, domain.CodeUnavailable, s.Ping(t.Context()))
	_, err = s.CreateCustomer(t.Context(), ada(), by)
	requireCode(t, domain.CodeUnavailable, err)
	_, err = s.Orders(t.Context(), store.OrderFilter{}, store.Page{})
	requireCode(t, domain.CodeUnavailable, err)
	requireCode(t, domain.CodeUnavailable, s.DecideOrders(t.Context(), []domain.ID{{1}, {2}}, nil)[1])
}

// When the disk is full for some statements, whoever was told that it is done
// finds it there, and whoever was not is told that the database is the matter.
func TestFullDiskRefusesAndForgetsNothing(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	breakTable(t, pool, "outbox", "nextval('tries') % 5 = 0", "53100")
	created := make([]domain.ID, 200)
	failed := 0
	for i, err := range together(len(created), func(i int) error {
		c, err := s.CreateCustomer(t.Context(), named(nth("c", i)), by)
		created[i] = c.ID
		return err
	}) {
		if err != nil {
			requireCode(t, domain.CodeUnavailable, err)
			require.Zero(t, created[i])
			failed++
		}
	}
	breakTable(t, pool, "outbox", "false", "53100")
	require.Positive(t, failed)
	require.Len(t, log(t, pool), 2*(len(created)-failed))
	for _, id := range created {
		if !id.IsZero() {
			_, err := s.Customer(t.Context(), id)
			require.NoError(t, err)
		}
	}
}
