package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/store"
)

func TestPlaceOrder(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, ada())
	o := place(t, s, c.ID)
	require.Equal(t, int64(900), o.Total)
	read, err := s.Order(t.Context(), o.ID)
	require.NoError(t, err)
	require.Equal(t, o, read, "nothing is lost on the way through the database")

	events := log(t, pool)
	require.Len(t, events, 3)
	e := events[2]
	require.Equal(t, domain.OrderPlaced, e.Type)
	require.Equal(t, domain.AggregateOrder, e.AggregateType)
	require.Equal(t, o.ID.String(), e.Key)
	require.Nil(t, e.Before)
	require.Equal(t, marshal(t, o), string(e.After))
	require.Equal(t, marshal(t, by), string(e.Metadata))

	_, err = s.PlaceOrder(t.Context(), tea(domain.ID{1}), by)
	requireCode(t, domain.CodeInvalid, err)
	var refused *domain.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "customer_id", refused.Fields[0].Path)
	_, err = s.PlaceOrder(t.Context(), domain.OrderInput{CustomerID: c.ID}, by)
	requireCode(t, domain.CodeInvalid, err)
	require.Len(t, log(t, pool), 3)
}

func TestUpdateOrder(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	o := place(t, s, create(t, s, ada()).ID)
	double := func(o domain.Order) (domain.OrderInput, error) {
		o.Items[0].Quantity *= 2
		return o.OrderInput, nil
	}
	updated, err := s.UpdateOrder(t.Context(), o.ID, store.AtVersion(1), double, by)
	require.NoError(t, err)
	require.Equal(t, int64(1800), updated.Total)
	require.Equal(t, int64(2), updated.Version)
	events := log(t, pool)
	e := events[len(events)-1]
	require.Equal(t, domain.OrderUpdated, e.Type)
	require.Equal(t, marshal(t, o), string(e.Before), "an edit in place leaves the state before alone")
	require.Equal(t, marshal(t, updated), string(e.After))

	_, err = s.UpdateOrder(t.Context(), o.ID, store.AtVersion(1), double, by)
	requireCode(t, domain.CodeVersionMismatch, err)
	_, err = s.UpdateOrder(t.Context(), domain.ID{1}, store.Precondition{}, double, by)
	requireCode(t, domain.CodeNotFound, err)
	same, err := s.UpdateOrder(t.Context(), o.ID, store.Precondition{}, func(o domain.Order) (domain.OrderInput, error) { return o.OrderInput, nil }, by)
	require.NoError(t, err)
	require.Equal(t, updated, same)
	decide(t, s, o.ID)
	_, err = s.UpdateOrder(t.Context(), o.ID, store.Precondition{}, double, by)
	requireCode(t, domain.CodeOrderState, err)
	require.Equal(t, []string{domain.OrderPlaced, domain.OrderUpdated, domain.OrderConfirmed}, types(log(t, pool), o.ID))
}

func TestCancelAndDeleteOrder(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, ada())
	o := place(t, s, c.ID)
	requireCode(t, domain.CodeOrderState, s.DeleteOrder(t.Context(), o.ID, store.Precondition{}, by))
	_, err := s.CancelOrder(t.Context(), o.ID, store.AtVersion(3), by)
	requireCode(t, domain.CodeVersionMismatch, err)
	_, err = s.CancelOrder(t.Context(), domain.ID{1}, store.Precondition{}, by)
	requireCode(t, domain.CodeNotFound, err)

	cancelled, err := s.CancelOrder(t.Context(), o.ID, store.AtVersion(1), by)
	require.NoError(t, err)
	require.Equal(t, domain.OrderStatusCancelled, cancelled.Status)
	n := requests(t, log(t, pool))[1]
	require.Equal(t, domain.TemplateOrderCancelled, n.Template)
	require.Equal(t, domain.Recipient{Name: c.Name, Email: c.Email}, n.To)
	require.Equal(t, &cancelled, n.Order)
	_, err = s.CancelOrder(t.Context(), o.ID, store.Precondition{}, by)
	requireCode(t, domain.CodeOrderState, err)

	requireCode(t, domain.CodeVersionMismatch, s.DeleteOrder(t.Context(), o.ID, store.AtVersion(1), by))
	require.NoError(t, s.DeleteOrder(t.Context(), o.ID, store.AtVersion(2), by))
	requireCode(t, domain.CodeNotFound, s.DeleteOrder(t.Context(), o.ID, store.Precondition{}, by))
	_, err = s.CancelOrder(t.Context(), o.ID, store.Precondition{}, by)
	requireCode(t, domain.CodeNotFound, err)
	require.Equal(t, []string{domain.OrderPlaced, domain.OrderCancelled, domain.OrderDeleted}, types(log(t, pool), o.ID))
	require.Len(t, requests(t, log(t, pool)), 2, "welcome and cancelled")
}

func TestOrdersPages(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	a, b := create(t, s, named("a")), create(t, s, named("b"))
	var all, ofA []domain.Order
	for i := range 9 {
		owner := []domain.ID{a.ID, b.ID, a.ID}[i%3]
		o := place(t, s, owner)
		all = append(all, o)
		if owner == a.ID {
			ofA = append(ofA, o)
		}
	}
	read := func(list func(store.Page) (store.List[domain.Order], error)) (got []domain.Order) {
		page := store.Page{Limit: 2}
		for {
			l, err := list(page)
			require.NoError(t, err)
			got = append(got, l.Items...)
			if l.Next == nil {
				return got
			}
			page.After = l.Next
		}
	}
	of := func(customer domain.ID) (store.List[domain.Order], error) {
		return s.OrdersOf(t.Context(), customer, store.OrderFilter{}, store.Page{})
	}
	require.Equal(t, all, read(func(p store.Page) (store.List[domain.Order], error) {
		return s.Orders(t.Context(), store.OrderFilter{}, p)
	}))
	require.Equal(t, ofA, read(func(p store.Page) (store.List[domain.Order], error) {
		return s.OrdersOf(t.Context(), a.ID, store.OrderFilter{}, p)
	}))

	c := create(t, s, named("c"))
	none, err := of(c.ID)
	require.NoError(t, err)
	require.Equal(t, store.List[domain.Order]{Items: []domain.Order{}}, none)
	_, err = of(domain.ID{1})
	requireCode(t, domain.CodeNotFound, err)
	require.NoError(t, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by))
	_, err = of(c.ID)
	requireCode(t, domain.CodeNotFound, err)
}

func TestHistory(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, named("v1"))
	for _, name := range []string{"v2", "v3", "v4"} {
		_, err := s.UpdateCustomer(t.Context(), c.ID, store.Precondition{}, rename(name), by)
		require.NoError(t, err)
	}
	require.NoError(t, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by))
	var want []domain.Event
	for _, e := range log(t, pool) {
		if e.AggregateID == c.ID {
			want = append(want, e.Event)
		}
	}
	require.Len(t, want, 5)

	var got []domain.Event
	for after := int64(0); ; {
		events, next, err := s.History(t.Context(), domain.AggregateCustomer, c.ID, after, 2)
		require.NoError(t, err)
		require.LessOrEqual(t, len(events), 2)
		got = append(got, events...)
		if next == 0 {
			break
		}
		after = next
	}
	require.Equal(t, want, got, "complete, oldest first, and still there after the deletion")

	past, next, err := s.History(t.Context(), domain.AggregateCustomer, c.ID, 5, 0)
	require.NoError(t, err)
	require.Empty(t, past)
	require.Zero(t, next)
	_, _, err = s.History(t.Context(), domain.AggregateOrder, c.ID, 0, 0)
	requireCode(t, domain.CodeNotFound, err)
	_, _, err = s.History(t.Context(), domain.AggregateCustomer, domain.ID{1}, 0, 0)
	requireCode(t, domain.CodeNotFound, err)
}
