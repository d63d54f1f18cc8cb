package store_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/store"
)

func TestDecideOrders(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	with := func(status domain.CustomerStatus) domain.ID {
		in := named(string(status))
		in.Status = status
		return create(t, s, in).ID
	}
	active := place(t, s, with(domain.CustomerActive))
	another := place(t, s, active.CustomerID)
	suspended := place(t, s, with(domain.CustomerSuspended))
	closed := place(t, s, with(domain.CustomerClosed))
	cancelled := place(t, s, active.CustomerID)
	_, err := s.CancelOrder(t.Context(), cancelled.ID, store.Precondition{}, by)
	require.NoError(t, err)
	deleted := place(t, s, active.CustomerID)
	_, err = s.CancelOrder(t.Context(), deleted.ID, store.Precondition{}, by)
	require.NoError(t, err)
	require.NoError(t, s.DeleteOrder(t.Context(), deleted.ID, store.Precondition{}, by))
	// Not possible through the store, but after a restore it may be.
	orphan := place(t, s, create(t, s, named("orphan")).ID)
	_, err = pool.Exec(t.Context(), `UPDATE customers SET deleted_at = now() WHERE id = $1`, orphan.CustomerID.String())
	require.NoError(t, err)
	before := log(t, pool)

	ids := []domain.ID{closed.ID, active.ID, {1}, suspended.ID, cancelled.ID, active.ID, another.ID, deleted.ID, orphan.ID}
	cause := func(id domain.ID) domain.Metadata {
		return domain.Metadata{Actor: "confirmer", CausationID: id.String()}
	}
	errs := s.DecideOrders(t.Context(), ids, cause)
	require.Len(t, errs, len(ids))
	for i, err := range errs {
		if ids[i] == (domain.ID{1}) {
			requireCode(t, domain.CodeNotFound, err)
		} else {
			require.NoError(t, err)
		}
	}
	for id, want := range map[domain.ID][2]string{
		active.ID: {"confirmed", ""}, another.ID: {"confirmed", ""},
		suspended.ID: {"rejected", domain.ReasonCustomerSuspended}, closed.ID: {"rejected", domain.ReasonCustomerClosed},
		cancelled.ID: {"cancelled", ""}, orphan.ID: {"rejected", domain.ReasonCustomerDeleted},
	} {
		o, err := s.Order(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, want, [2]string{string(o.Status), o.Reason})
	}
	after := log(t, pool)[len(before):]
	require.Len(t, after, 5+4, "a change each, and nobody is told who is gone")
	for _, e := range after {
		if e.AggregateType == domain.AggregateOrder {
			require.Equal(t, marshal(t, cause(e.AggregateID)), string(e.Metadata))
		}
	}
	var templates []string
	for _, n := range requests(t, after) {
		templates = append(templates, n.Template)
	}
	slices.Sort(templates)
	require.Equal(t, []string{"order_confirmed", "order_confirmed", "order_rejected", "order_rejected"}, templates)

	for _, err := range s.DecideOrders(t.Context(), slices.DeleteFunc(ids, func(id domain.ID) bool { return id == domain.ID{1} }), cause) {
		require.NoError(t, err)
	}
	require.Len(t, log(t, pool), len(before)+len(after), "deciding again does nothing")
	require.Empty(t, s.DecideOrders(t.Context(), nil, cause))
	_, err = pool.Exec(t.Context(), `UPDATE customers SET deleted_at = NULL WHERE id = $1`, orphan.CustomerID.String())
	require.NoError(t, err)
}

func TestOneBadOrderDoesNotKeepOthersFromBeingDecided(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, ada())
	good, large, broken := place(t, s, c.ID), place(t, s, c.ID), place(t, s, c.ID)
	_, err := pool.Exec(t.Context(), `ALTER TABLE orders ADD CHECK (status = 'placed' OR id <> '`+broken.ID.String()+`')`)
	require.NoError(t, err)
	errs := s.DecideOrders(t.Context(), []domain.ID{good.ID, large.ID, broken.ID}, func(id domain.ID) domain.Metadata {
		if id == large.ID {
			return domain.Metadata{Actor: string(make([]byte, 200_000))} // six bytes each in JSON
		}
		return by
	})
	require.NoError(t, errs[0])
	requireCode(t, domain.CodeTooLarge, errs[1])
	require.ErrorContains(t, errs[2], "23514")
	require.Empty(t, domain.CodeOf(errs[2]))
	for id, want := range map[domain.ID]domain.OrderStatus{good.ID: "confirmed", large.ID: "placed", broken.ID: "placed"} {
		o, err := s.Order(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, want, o.Status)
	}
}

func TestRow20HundredDecisionsConfirmOnce(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	o := place(t, s, create(t, s, ada()).ID)
	for _, err := range together(100, func(int) error {
		return s.DecideOrders(t.Context(), []domain.ID{o.ID}, func(domain.ID) domain.Metadata { return by })[0]
	}) {
		require.NoError(t, err)
	}
	require.Equal(t, []string{domain.OrderPlaced, domain.OrderConfirmed}, types(log(t, pool), o.ID))
	require.Len(t, requests(t, log(t, pool)), 2, "welcome and confirmed")
}

func TestDecisionsRaceWithCancelling(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, ada())
	seen := map[string]int{}
	for range 40 {
		o := place(t, s, c.ID)
		errs := together(3, func(i int) error {
			if i == 2 {
				_, err := s.CancelOrder(t.Context(), o.ID, store.Precondition{}, by)
				return err
			}
			return s.DecideOrders(t.Context(), []domain.ID{o.ID}, func(domain.ID) domain.Metadata { return by })[0]
		})
		for _, err := range errs {
			require.NoError(t, err, "a placed or confirmed order can be cancelled, and deciding is never an error")
		}
		events, _, err := s.History(t.Context(), domain.AggregateOrder, o.ID, 0, 0)
		require.NoError(t, err)
		var story []string
		for _, e := range events {
			story = append(story, e.Type)
		}
		seen[marshal(t, story)]++
		var last domain.Order
		require.NoError(t, json.Unmarshal(events[len(events)-1].After, &last))
		require.Equal(t, domain.OrderStatusCancelled, last.Status)
	}
	require.Subset(t, []string{
		`["order.placed.v1","order.cancelled.v1"]`, `["order.placed.v1","order.confirmed.v1","order.cancelled.v1"]`,
	}, keys(seen))
	require.Len(t, requests(t, log(t, pool)), 1+40+seen[`["order.placed.v1","order.confirmed.v1","order.cancelled.v1"]`])
}

func keys(m map[string]int) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	return all
}

// A decision waits for whoever is changing the customer, and then sees the
// change.
func TestDecisionSeesTheCustomerAsLocked(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	o := place(t, s, create(t, s, ada()).ID)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }() // or the pool could not close when the test fails
	_, err = tx.Exec(t.Context(), `SELECT FROM customers FOR NO KEY UPDATE`)
	require.NoError(t, err)
	decided := make(chan error, 1)
	go func() {
		decided <- s.DecideOrders(t.Context(), []domain.ID{o.ID}, func(domain.ID) domain.Metadata { return by })[0]
	}()
	require.Eventually(t, func() bool { return lockWaiters(t, pool) == 1 }, time.Minute, 5*time.Millisecond)
	_, err = tx.Exec(t.Context(), `UPDATE customers SET status = 'suspended'`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-decided)
	o, err = s.Order(t.Context(), o.ID)
	require.NoError(t, err)
	require.Equal(t, domain.ReasonCustomerSuspended, o.Reason)

	// For the check of the log, which the suspension above went past.
	_, err = pool.Exec(t.Context(), `UPDATE customers SET status = 'active'`)
	require.NoError(t, err)
}

// An order that becomes visible while a batch waits for its locks is seen by the
// statement that locks orders, and was not by the one before, which locks their
// customers. Its customer is not taken for a deleted one.
func TestAnOrderThatAppearsWhileItIsDecidedIsLeftForLater(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	first, second := create(t, s, named("ada")).ID, create(t, s, named("eve")).ID
	waits := place(t, s, first)
	late := domain.ID(uuid.Must(uuid.NewV7()))
	ids := []domain.ID{late}
	placing := store.New(pool, store.Config{NewID: func() domain.ID {
		if len(ids) > 0 {
			id := ids[0]
			ids = ids[1:]
			return id
		}
		return domain.ID(uuid.Must(uuid.NewV7()))
	}})

	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), `SELECT FROM customers WHERE id = $1 FOR NO KEY UPDATE`, first.String())
	require.NoError(t, err)
	decided := make(chan []error, 1)
	go func() {
		decided <- s.DecideOrders(t.Context(), []domain.ID{waits.ID, late}, func(domain.ID) domain.Metadata { return by })
	}()
	require.Eventually(t, func() bool { return lockWaiters(t, pool) == 1 }, time.Minute, 5*time.Millisecond)
	require.Equal(t, late, place(t, placing, second).ID)
	require.NoError(t, tx.Rollback(t.Context()))
	errs := <-decided
	require.NoError(t, errs[0])
	requireCode(t, domain.CodeNotFound, errs[1])
	o, err := s.Order(t.Context(), late)
	require.NoError(t, err)
	require.Equal(t, domain.OrderStatusPlaced, o.Status)
	require.Equal(t, "confirmed", outcome(t, s, late))
}
