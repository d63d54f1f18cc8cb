package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/store"
)

// run lets a store share commits until the test ends.
func run(t testing.TB, s *store.Store) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	require.Eventually(t, func() bool { return s.Stats().Running }, time.Minute, time.Millisecond)
	require.Error(t, s.Run(ctx), "it runs already")
}

// model is what the rules make of commands that are carried out one after
// another. It is copied by value.
type model struct {
	customers [3]modelCustomer
	orders    [4]modelOrder
}

type modelCustomer struct {
	version int64 // 0 when it was never created
	gone    bool
	email   int
	name    int
}

type modelOrder struct {
	version  int64
	gone     bool
	customer int
	status   domain.OrderStatus
	quantity int64
}

func (m *model) live(i int) bool { return m.customers[i].version > 0 && !m.customers[i].gone }

func (m *model) taken(email, but int) bool {
	for i, c := range m.customers {
		if i != but && m.live(i) && c.email == email {
			return true
		}
	}
	return false
}

// step is a command: what it does to the model, and how it is given to the
// store. Both say what came of it in the same words.
type step struct {
	kind           string
	on, email, new int
	at             int64 // the version it demands; 0 for any
}

func (st step) String() string { return fmt.Sprintf("%+v", struct{ step }{st}) }

func result(version int64, err error) string {
	if err != nil {
		return string(domain.CodeOf(err))
	}
	return fmt.Sprint("ok ", version)
}

func (st step) apply(m *model) string {
	c, o := &m.customers[st.on%3], &m.orders[st.on]
	refuse := func(code domain.Code) string { return string(code) }
	ofOrder := st.kind == "cancel" || st.kind == "quantity" || st.kind == "delete order"
	switch {
	case st.kind == "create" || st.kind == "place":
	case ofOrder && (o.version == 0 || o.gone), !ofOrder && !m.live(st.on%3):
		return refuse(domain.CodeNotFound)
	case ofOrder && st.at != 0 && st.at != o.version, !ofOrder && st.at != 0 && st.at != c.version:
		return refuse(domain.CodeVersionMismatch)
	}
	switch st.kind {
	case "create":
		if m.taken(st.email, -1) {
			return refuse(domain.CodeEmailTaken)
		}
		*c = modelCustomer{version: 1, email: st.email}
		return "ok 1"
	case "name", "email":
		next := *c
		if st.kind == "name" {
			next.name = st.new
		} else {
			next.email = st.email
		}
		if next == *c {
			return result(c.version, nil)
		}
		if m.taken(next.email, st.on%3) {
			return refuse(domain.CodeEmailTaken)
		}
		next.version++
		*c = next
		return result(c.version, nil)
	case "delete":
		for _, o := range m.orders {
			if o.version > 0 && !o.gone && o.customer == st.on%3 && o.status.Open() {
				return refuse(domain.CodeOpenOrders)
			}
		}
		c.version++
		c.gone = true
		return "ok 0"
	case "place":
		if !m.live(st.email % 3) {
			return refuse(domain.CodeInvalid)
		}
		*o = modelOrder{version: 1, customer: st.email % 3, status: domain.OrderStatusPlaced, quantity: 1}
		return "ok 1"
	case "cancel":
		if !o.status.Open() {
			return refuse(domain.CodeOrderState)
		}
		o.status = domain.OrderStatusCancelled
		o.version++
		return result(o.version, nil)
	case "quantity":
		if o.quantity == int64(st.new) {
			return result(o.version, nil)
		}
		if o.status != domain.OrderStatusPlaced {
			return refuse(domain.CodeOrderState)
		}
		o.quantity = int64(st.new)
		o.version++
		return result(o.version, nil)
	case "delete order":
		if o.status.Open() {
			return refuse(domain.CodeOrderState)
		}
		o.version++
		o.gone = true
		return "ok 0"
	}
	panic(st.kind)
}

// world gives steps to a store.
type world struct {
	s         *store.Store
	id        string
	customers [3]domain.ID
	orders    [4]domain.ID
}

func (w *world) email(n int) string { return fmt.Sprintf("%s-%d@example.com", w.id, n) }

// give carries a step out; known are the ids from before the round.
func (w *world) give(ctx context.Context, st step, known world) string {
	var pre store.Precondition
	if st.at != 0 {
		pre = store.AtVersion(st.at)
	}
	customer, order := known.customers[st.on%3], known.orders[st.on]
	editCustomer := func(edit func(*domain.Customer)) string {
		c, err := w.s.UpdateCustomer(ctx, customer, pre, func(c domain.Customer) (domain.CustomerInput, error) {
			edit(&c)
			return c.CustomerInput, nil
		}, by)
		return result(c.Version, err)
	}
	switch st.kind {
	case "create":
		c, err := w.s.CreateCustomer(ctx, domain.CustomerInput{Name: "name 0", Email: w.email(st.email)}, by)
		if err == nil {
			w.customers[st.on%3] = c.ID
		}
		return result(c.Version, err)
	case "name":
		return editCustomer(func(c *domain.Customer) { c.Name = fmt.Sprint("name ", st.new) })
	case "email":
		return editCustomer(func(c *domain.Customer) { c.Email = w.email(st.email) })
	case "delete":
		return result(0, w.s.DeleteCustomer(ctx, customer, pre, by))
	case "place":
		in := tea(known.customers[st.email%3])
		in.Items[0].Quantity = 1
		o, err := w.s.PlaceOrder(ctx, in, by)
		if err == nil {
			w.orders[st.on] = o.ID
		}
		return result(o.Version, err)
	case "cancel":
		o, err := w.s.CancelOrder(ctx, order, pre, by)
		return result(o.Version, err)
	case "quantity":
		o, err := w.s.UpdateOrder(ctx, order, pre, func(o domain.Order) (domain.OrderInput, error) {
			o.Items[0].Quantity = int64(st.new)
			return o.OrderInput, nil
		}, by)
		return result(o.Version, err)
	case "delete order":
		return result(0, w.s.DeleteOrder(ctx, order, pre, by))
	}
	panic(st.kind)
}

// state reads what the database holds, as the model has it. What is gone is
// told apart from what never was by the model's own version.
func (w *world) state(t require.TestingT, ctx context.Context, like model) model {
	var m model
	for i, id := range w.customers {
		c, err := w.s.Customer(ctx, id)
		if domain.CodeOf(err) == domain.CodeNotFound {
			m.customers[i] = like.customers[i]
			m.customers[i].gone = like.customers[i].version > 0
			continue
		}
		require.NoError(t, err)
		m.customers[i].version = c.Version
		_, err = fmt.Sscanf(c.Name, "name %d", &m.customers[i].name)
		require.NoError(t, err)
		m.customers[i].email = slices.IndexFunc([]int{0, 1, 2, 3}, func(n int) bool { return c.Email == w.email(n) })
	}
	for i, id := range w.orders {
		o, err := w.s.Order(ctx, id)
		if domain.CodeOf(err) == domain.CodeNotFound {
			m.orders[i] = like.orders[i]
			m.orders[i].gone = like.orders[i].version > 0
			continue
		}
		require.NoError(t, err)
		m.orders[i] = modelOrder{version: o.Version, status: o.Status, quantity: o.Items[0].Quantity,
			customer: slices.Index(w.customers[:], o.CustomerID)}
	}
	return m
}

// explain returns the states that the steps can lead to when they are carried
// out one after another, in any order, and come out as they did.
func explain(from []model, steps []step, outcomes []string) []model {
	var found []model
	var try func(m model, left []int)
	try = func(m model, left []int) {
		if len(left) == 0 {
			if !slices.Contains(found, m) {
				found = append(found, m)
			}
			return
		}
		for i, n := range left {
			next := m
			if steps[n].apply(&next) == outcomes[n] {
				try(next, slices.Concat(left[:i], left[i+1:]))
			}
		}
	}
	all := make([]int, len(steps))
	for i := range all {
		all[i] = i
	}
	for _, m := range from {
		try(m, all)
	}
	return found
}

// Whatever is given to the store at the same moment comes out as if it had
// been carried out one after another: with shared statements as with one for
// each. So nobody's failure is ever anyone else's, and deadlocks don't show.
// At the end the log is held against the tables (open).
func TestConcurrentCommandsAreLinearizable(t *testing.T) {
	t.Parallel()
	for name, shared := range map[string]bool{"shared": true, "one by one": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, err := store.Open(t.Context(), pgtest.New(t).URL, 16)
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			s := store.New(pool, store.Config{Committers: 1}) // so that as many as possible meet
			t.Cleanup(func() { checkLog(t, s, pool) })
			if shared {
				run(t, s)
			}
			var worlds atomic.Int64
			rapid.Check(t, func(rt *rapid.T) {
				w := &world{s: s, id: fmt.Sprint("w", worlds.Add(1))}
				possible := []model{{}}
				for round := range rapid.IntRange(2, 5).Draw(rt, "rounds") {
					var steps []step
					slots := map[string]bool{}
					for range rapid.IntRange(1, 7).Draw(rt, "steps") {
						st := step{
							kind: rapid.SampledFrom([]string{"create", "create", "create", "place", "place", "name", "name", "email",
								"cancel", "quantity", "delete", "delete order"}).Draw(rt, "kind"),
							on: rapid.IntRange(0, 3).Draw(rt, "on"), email: rapid.IntRange(0, 3).Draw(rt, "email"),
							new: rapid.IntRange(1, 3).Draw(rt, "new"), at: max(0, rapid.Int64Range(-4, 3).Draw(rt, "at")),
						}
						slot, used := st.slot(possible)
						// What is created takes a place of its own, and only in the next
						// round do others know that it is there.
						if slot != "" && (used || slots[slot]) {
							continue
						}
						slots[slot] = true
						steps = append(steps, st)
					}
					steps = slices.DeleteFunc(steps, func(st step) bool {
						slot, _ := st.slot(possible)
						return slot == "" && slots[st.target()] || st.kind == "place" && slots[fmt.Sprint("customer ", st.email%3)]
					})
					outcomes, known := make([]string, len(steps)), *w
					together(len(steps), func(i int) error {
						outcomes[i] = w.give(t.Context(), steps[i], known)
						return nil
					})
					next := explain(possible, steps, outcomes)
					require.NotEmpty(rt, next, "round %d: no order explains\n%v\n%q\nfrom %+v", round, steps, outcomes, possible)
					possible = slices.DeleteFunc(next, func(m model) bool { return w.state(rt, t.Context(), m) != m })
					require.NotEmpty(rt, possible, "round %d: the database holds another state after\n%v\n%q\nthan %+v", round, steps, outcomes, next)
				}
			})
			stats := s.Stats()
			t.Logf("%+v", stats)
			require.Equal(t, shared, stats.SharedChanges > stats.SharedStatements)
		})
	}
}

// slot is the place that a step fills, and whether it is filled.
func (st step) slot(possible []model) (string, bool) {
	switch st.kind {
	case "create":
		return st.target(), slices.ContainsFunc(possible, func(m model) bool { return m.customers[st.on%3].version > 0 })
	case "place":
		return st.target(), slices.ContainsFunc(possible, func(m model) bool { return m.orders[st.on].version > 0 })
	}
	return "", false
}

// target is what a step is about.
func (st step) target() string {
	switch st.kind {
	case "create", "name", "email", "delete":
		return fmt.Sprint("customer ", st.on%3)
	}
	return fmt.Sprint("order ", st.on)
}

// Many share statements with those who fail, and none of them notices.
func TestFailuresOfNeighboursAreTheirOwn(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	c := create(t, s, named("taken"))
	absent := s.Stats().SharedChanges
	for i, err := range together(300, func(i int) error {
		var err error
		switch i % 3 {
		case 0:
			_, err = s.CreateCustomer(t.Context(), named(nth("new", i)), by)
		case 1:
			_, err = s.CreateCustomer(t.Context(), named("taken"), by)
		case 2:
			id := c.ID
			if i%2 == 0 {
				id = domain.ID{1}
			}
			_, err = s.PlaceOrder(t.Context(), tea(id), by)
		}
		return err
	}) {
		switch {
		case i%3 == 1:
			requireCode(t, domain.CodeEmailTaken, err)
		case i%6 == 2:
			requireCode(t, domain.CodeInvalid, err)
		default:
			require.NoError(t, err)
		}
	}
	require.Greater(t, s.Stats().SharedChanges, absent)
	require.Positive(t, s.Stats().GivenUp)
}

// A row that somebody keeps locked holds up only those who want it.
func TestLockedRowsHoldUpNobodyElse(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	locked, other := create(t, s, named("locked")), create(t, s, named("other"))
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), `SELECT FROM customers WHERE id = $1 FOR UPDATE`, locked.ID.String())
	require.NoError(t, err)
	waiting := make(chan []error, 1)
	go func() {
		waiting <- together(6, func(i int) error {
			_, err := s.UpdateCustomer(t.Context(), locked.ID, store.Precondition{}, rename(nth("n", i)), by)
			return err
		})
	}()
	require.Eventually(t, func() bool { return lockWaiters(t, pool) == 6 }, time.Minute, time.Millisecond)
	for i := range 20 {
		_, err := s.UpdateCustomer(t.Context(), other.ID, store.Precondition{}, rename(nth("n", i)), by)
		require.NoError(t, err)
	}
	require.Equal(t, 6, lockWaiters(t, pool), "those who want it still wait")
	require.NoError(t, tx.Rollback(t.Context()))
	for _, err := range <-waiting {
		require.NoError(t, err)
	}
}

// When the connection of a shared statement breaks, nobody knows whether it
// was committed: everyone learns that, and nothing is written twice.
func TestLostConnectionOfASharedStatement(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, named("ada"))
	breakTable(t, pool, "orders", "pg_sleep(30)::text IS NOT NULL", "XX000")
	failed := make(chan []error, 1)
	go func() {
		failed <- together(8, func(int) error {
			_, err := s.PlaceOrder(t.Context(), tea(c.ID), by)
			return err
		})
	}()
	var errs []error
	require.Eventually(t, func() bool {
		_, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event = 'PgSleep'`)
		require.NoError(t, err)
		select {
		case errs = <-failed:
		default:
		}
		return errs != nil
	}, time.Minute, 5*time.Millisecond)
	for _, err := range errs {
		requireCode(t, domain.CodeUnavailable, err)
	}
	require.Zero(t, s.Stats().GivenUp)
	breakTable(t, pool, "orders", "false", "XX000")
	place(t, s, c.ID)
}

// Stopping writes what was taken, and after it all goes on without sharing.
func TestStoppingLosesNothing(t *testing.T) {
	t.Parallel()
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 16)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := store.New(pool, store.Config{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for i, err := range together(200, func(i int) error {
		if i == 100 {
			stop()
		}
		_, err := s.CreateCustomer(t.Context(), named(nth("c", i)), by)
		return err
	}) {
		require.NoError(t, err, i)
	}
	require.NoError(t, <-done)
	shared := s.Stats().SharedChanges
	create(t, s, named("later"))
	require.Equal(t, shared, s.Stats().SharedChanges)
	require.Len(t, log(t, pool), 2*201)
	checkLog(t, s, pool)
}

// Whoever leaves while others share the statement takes nobody along.
func TestLeavingTakesNobodyAlong(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	for i, err := range together(100, func(i int) error {
		ctx, leave := context.WithCancel(t.Context())
		if i%2 == 0 {
			go leave()
		}
		defer leave()
		_, err := s.CreateCustomer(ctx, named(nth("c", i)), by)
		return err
	}) {
		if i%2 == 1 || !errors.Is(err, context.Canceled) {
			require.NoError(t, err)
		}
	}
}
