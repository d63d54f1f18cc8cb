package domain_test

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"outflow/domain"
)

func tea() domain.OrderInput {
	return domain.OrderInput{CustomerID: owner, Currency: "EUR", Items: []domain.Item{
		{SKU: "tea", Name: "Tea", Quantity: 2, UnitPrice: 450}, {SKU: "cup", Quantity: 1, UnitPrice: 99},
	}}
}

func order(t *testing.T) domain.Order {
	t.Helper()
	c, err := domain.PlaceOrder(id, tea(), t0)
	require.NoError(t, err)
	return *c.After
}

func in(o domain.Order, s domain.OrderStatus) domain.Order {
	o.Status = s
	return o
}

var statuses = []domain.OrderStatus{
	domain.OrderStatusPlaced, domain.OrderStatusConfirmed, domain.OrderStatusRejected,
	domain.OrderStatusFulfilled, domain.OrderStatusRefunded, domain.OrderStatusCancelled,
}

func TestPlaceOrder(t *testing.T) {
	t.Parallel()
	got, err := domain.PlaceOrder(id, tea(), t0)
	require.NoError(t, err)
	want := domain.Order{ID: id, Version: 1, OrderInput: tea(), Total: 999, Status: domain.OrderStatusPlaced, CreatedAt: t0, UpdatedAt: t0}
	require.Equal(t, domain.Change[domain.Order]{Type: domain.OrderPlaced, After: &want, Version: 1, At: t0}, got)
	state, err := json.Marshal(got.After)
	require.NoError(t, err)
	require.Equal(t, `{"id":"01938f00-0000-7000-8000-000000000001","version":1,"customer_id":"01938f00-0000-7000-8000-000000000002",`+
		`"currency":"EUR","items":[{"sku":"tea","name":"Tea","quantity":2,"unit_price":450},{"sku":"cup","quantity":1,"unit_price":99}],`+
		`"total":999,"status":"placed","created_at":"2026-11-21T04:05:06.007Z","updated_at":"2026-11-21T04:05:06.007Z"}`, string(state))
	_, err = domain.PlaceOrder(id, domain.OrderInput{}, t0)
	require.Equal(t, domain.CodeInvalid, domain.CodeOf(err))
}

func TestUpdateOrder(t *testing.T) {
	t.Parallel()
	o := order(t)
	more := tea()
	more.Items[0].Quantity = 3
	got, err := domain.UpdateOrder(o, more, t1)
	require.NoError(t, err)
	want := o
	want.OrderInput, want.Total, want.Version, want.UpdatedAt = more, 1449, 2, t1
	require.Equal(t, domain.Change[domain.Order]{Type: domain.OrderUpdated, Before: &o, After: &want, Version: 2, At: t1}, got)
	dollars := tea()
	dollars.Currency = "USD"
	got, err = domain.UpdateOrder(o, dollars, t1)
	require.NoError(t, err)
	require.False(t, got.NoOp())

	for _, s := range statuses {
		same, err := domain.UpdateOrder(in(o, s), tea(), t1)
		require.NoError(t, err, s)
		require.True(t, same.NoOp(), s)
		_, err = domain.UpdateOrder(in(o, s), more, t1)
		if s == domain.OrderStatusPlaced {
			require.NoError(t, err)
		} else {
			require.Equal(t, domain.CodeOrderState, domain.CodeOf(err), s)
			require.ErrorContains(t, err, string(s))
		}
	}

	wrong := tea()
	wrong.CustomerID, wrong.Currency = id, "euro"
	_, err = domain.UpdateOrder(o, wrong, t1)
	require.ElementsMatch(t, []string{"customer_id", "currency"}, paths(t, err), "all problems at once")
}

func TestCancelOrder(t *testing.T) {
	t.Parallel()
	c := customer(t)
	for _, s := range statuses {
		o := in(order(t), s)
		got, err := domain.CancelOrder(o, c, t1)
		if s != domain.OrderStatusPlaced && s != domain.OrderStatusConfirmed {
			require.Equal(t, domain.CodeOrderState, domain.CodeOf(err), s)
			continue
		}
		require.NoError(t, err, s)
		want := in(o, domain.OrderStatusCancelled)
		want.Version, want.UpdatedAt = 2, t1
		require.Equal(t, domain.Change[domain.Order]{
			Type: domain.OrderCancelled, Before: &o, After: &want, Version: 2, At: t1,
			Notifications: []domain.Notification{{
				CustomerID: c.ID, Template: domain.TemplateOrderCancelled,
				To: domain.Recipient{Name: c.Name, Email: c.Email}, Order: &want, CreatedAt: t1,
			}},
		}, got)
	}
}

func TestDeleteOrder(t *testing.T) {
	t.Parallel()
	for _, s := range statuses {
		o := in(order(t), s)
		got, err := domain.DeleteOrder(o, t1)
		if s.Open() {
			require.Equal(t, domain.CodeOrderState, domain.CodeOf(err), s)
			continue
		}
		require.NoError(t, err, s)
		require.Equal(t, domain.Change[domain.Order]{Type: domain.OrderDeleted, Before: &o, Version: 2, At: t1}, got)
	}
}

func TestDecideOrder(t *testing.T) {
	t.Parallel()
	euros := func(n int64) *domain.Money { return &domain.Money{Amount: n, Currency: "EUR"} }
	for name, row := range map[string]struct {
		customer *domain.CustomerStatus
		limit    *domain.Money // the order is of 999 EUR
		spent    int64
		reason   string
	}{
		"active":                        {customer: ptr(domain.CustomerActive)},
		"suspended":                     {ptr(domain.CustomerSuspended), euros(0), 0, "customer_suspended"},
		"closed":                        {ptr(domain.CustomerClosed), euros(1000), 0, "customer_closed"},
		"deleted":                       {nil, nil, 0, "customer_deleted"},
		"up to the limit":               {ptr(domain.CustomerActive), euros(999), 0, ""},
		"beyond the limit":              {ptr(domain.CustomerActive), euros(998), 0, "limit_exceeded"},
		"a limit of nothing":            {ptr(domain.CustomerActive), euros(0), 0, "limit_exceeded"},
		"up to the limit, with others":  {ptr(domain.CustomerActive), euros(2000), 1001, ""},
		"beyond the limit, with others": {ptr(domain.CustomerActive), euros(2000), 1002, "limit_exceeded"},
		"the limit was lowered":         {ptr(domain.CustomerActive), euros(2000), 5000, "limit_exceeded"},
		"no limit, much spent":          {ptr(domain.CustomerActive), nil, math.MaxInt64, ""},
		"more spent than can be":        {ptr(domain.CustomerActive), euros(0), math.MaxInt64, "limit_exceeded"},
		"another currency":              {ptr(domain.CustomerActive), &domain.Money{Amount: 5000, Currency: "USD"}, 0, "currency_not_accepted"},
	} {
		var c *domain.Customer
		if row.customer != nil {
			c = ptr(customer(t))
			c.Status, c.SpendingLimit = *row.customer, row.limit
		}
		event, status, template := domain.OrderConfirmed, domain.OrderStatusConfirmed, domain.TemplateOrderConfirmed
		if row.reason != "" {
			event, status, template = domain.OrderRejected, domain.OrderStatusRejected, domain.TemplateOrderRejected
		}
		o := order(t)
		got := domain.DecideOrder(o, c, row.spent, t1)
		want := in(o, status)
		want.Reason, want.Version, want.UpdatedAt = row.reason, 2, t1
		require.Equal(t, event, got.Type, name)
		require.Equal(t, o, *got.Before, name)
		require.Equal(t, want, *got.After, name)
		require.Equal(t, int64(2), got.Version, name)
		if c == nil {
			require.Empty(t, got.Notifications, name)
		} else {
			require.Equal(t, []domain.Notification{{
				CustomerID: c.ID, Template: template, To: domain.Recipient{Name: c.Name, Email: c.Email}, Order: &want, CreatedAt: t1,
			}}, got.Notifications, name)
		}
		require.True(t, domain.DecideOrder(*got.After, c, 0, t1).NoOp(), "%s: deciding twice", name)
	}
	for _, s := range statuses[1:] {
		require.True(t, domain.DecideOrder(in(order(t), s), nil, 0, t1).NoOp(), s)
	}
}

func ptr[T any](v T) *T { return &v }

// Whatever the items are, an order that is accepted has the total that exact
// arithmetic gives, and one whose total is out of bounds is refused.
func TestTotalsNeverOverflow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) domain.Item {
			return domain.Item{
				SKU:       "s",
				Quantity:  rapid.OneOf(rapid.Int64(), rapid.Int64Range(1, domain.MaxQuantity)).Draw(t, "quantity"),
				UnitPrice: rapid.OneOf(rapid.Int64(), rapid.Int64Range(0, domain.MaxAmount), rapid.Int64Range(0, 1000)).Draw(t, "price"),
			}
		}), 1, 5).Draw(t, "items")
		got, err := domain.PlaceOrder(id, domain.OrderInput{CustomerID: owner, Currency: "EUR", Items: items}, t0)
		exact, ok := 0.0, true
		var sum int64
		for _, it := range items {
			ok = ok && it.Quantity >= 1 && it.Quantity <= domain.MaxQuantity && it.UnitPrice >= 0 && it.UnitPrice <= domain.MaxAmount
			exact += float64(it.Quantity) * float64(it.UnitPrice)
			sum += it.Quantity * it.UnitPrice
		}
		if ok && exact < domain.MaxAmount*0.999 {
			if err != nil || got.After.Total != sum {
				t.Fatalf("total of %v: %v, %v", items, got.After, err)
			}
		} else if (!ok || exact > domain.MaxAmount*1.001) && domain.CodeOf(err) != domain.CodeInvalid {
			t.Fatalf("%v was accepted", items)
		}
	})
	for _, items := range [][]domain.Item{
		{{SKU: "s", Quantity: math.MaxInt64, UnitPrice: 2}},
		{{SKU: "s", Quantity: 1_000_000, UnitPrice: domain.MaxAmount}},
		{{SKU: "s", Quantity: 1, UnitPrice: domain.MaxAmount}, {SKU: "s", Quantity: 1, UnitPrice: 1}},
		{{SKU: "s", Quantity: -1, UnitPrice: 5}},
		{{SKU: "s", Quantity: 1, UnitPrice: math.MinInt64}},
	} {
		_, err := domain.PlaceOrder(id, domain.OrderInput{CustomerID: owner, Currency: "EUR", Items: items}, t0)
		require.Equal(t, domain.CodeInvalid, domain.CodeOf(err), "%v", items)
	}
	most, err := domain.PlaceOrder(id, domain.OrderInput{
		CustomerID: owner, Currency: "EUR", Items: []domain.Item{{SKU: "s", Quantity: 1, UnitPrice: domain.MaxAmount}},
	}, t0)
	require.NoError(t, err)
	require.Equal(t, int64(domain.MaxAmount), most.After.Total)
}
