package domain

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// OrderStatus is where an order is on its way:
//
//	placed -> confirmed | rejected
//	confirmed -> fulfilled -> refunded
//	placed | confirmed -> cancelled
type OrderStatus string

// The statuses.
const (
	OrderStatusPlaced    OrderStatus = "placed"
	OrderStatusConfirmed OrderStatus = "confirmed"
	OrderStatusRejected  OrderStatus = "rejected"
	OrderStatusFulfilled OrderStatus = "fulfilled"
	OrderStatusRefunded  OrderStatus = "refunded"
	OrderStatusCancelled OrderStatus = "cancelled"
)

// Open reports whether an order of this status still waits for something, and
// so keeps itself and its customer from being deleted.
func (s OrderStatus) Open() bool { return s == OrderStatusPlaced || s == OrderStatusConfirmed }

// The reasons of a rejection.
const (
	ReasonCustomerSuspended = "customer_suspended"
	ReasonCustomerClosed    = "customer_closed"
	ReasonCustomerDeleted   = "customer_deleted"

	// The order is in another currency than the customer's spending limit.
	ReasonCurrencyNotAccepted = "currency_not_accepted"
	// Together with what was confirmed lately, the order is more than the limit.
	ReasonLimitExceeded = "limit_exceeded"
)

// Order is an order as the API shows it, as events carry it and as replicas
// hold it.
type Order struct {
	ID      ID    `json:"id"`
	Version int64 `json:"version"`
	OrderInput
	Total     int64       `json:"total"` // minor units of the currency, computed from the items
	Status    OrderStatus `json:"status"`
	Reason    string      `json:"reason,omitempty"` // why it was rejected
	CreatedAt time.Time   `json:"created_at"`
	UpdatedAt time.Time   `json:"updated_at"`
}

// OrderInput is the part of an order that callers decide.
type OrderInput struct {
	CustomerID ID     `json:"customer_id"`
	Currency   string `json:"currency"` // ISO 4217
	Items      []Item `json:"items"`
}

// Item is one line of an order.
type Item struct {
	SKU       string `json:"sku"`
	Name      string `json:"name,omitempty"`
	Quantity  int64  `json:"quantity"`
	UnitPrice int64  `json:"unit_price"` // minor units of the order's currency
}

// Money is an amount in minor units of an ISO 4217 currency.
type Money struct {
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
}

// Clone returns a copy that shares nothing with in, so that it can be edited in
// place while the original still serves as the state before.
func (in OrderInput) Clone() OrderInput {
	in.Items = slices.Clone(in.Items)
	return in
}

// PlaceOrder makes an order. It returns CodeInvalid with every problem; that
// the customer exists is for the caller to see to, in the same transaction.
func PlaceOrder(id ID, in OrderInput, now time.Time) (Change[Order], error) {
	if err := in.Validate(); err != nil {
		return Change[Order]{}, err
	}
	now = Timestamp(now)
	total, _ := in.total()
	o := Order{ID: id, Version: 1, OrderInput: in, Total: total, Status: OrderStatusPlaced, CreatedAt: now, UpdatedAt: now}
	return Change[Order]{Type: OrderPlaced, After: &o, Version: 1, At: now}, nil
}

// UpdateOrder replaces the items and currency of an order that is still
// placed. It returns CodeInvalid with every problem, CodeOrderState once the
// order was decided; an input that changes nothing gives a no-op in any state.
func UpdateOrder(o Order, in OrderInput, now time.Time) (Change[Order], error) {
	var p problems
	in.validate(&p)
	if in.CustomerID != o.CustomerID {
		p.add("customer_id", "can't be changed once the order is placed")
	}
	if err := p.err(); err != nil {
		return Change[Order]{}, err
	}
	if o.Currency == in.Currency && slices.Equal(o.Items, in.Items) {
		return unchanged(o, o.Version), nil
	}
	if o.Status != OrderStatusPlaced {
		return Change[Order]{}, stateError("changed", o.Status)
	}
	next := o
	next.OrderInput = in
	next.Total, _ = in.total()
	return o.become(OrderUpdated, next, now), nil
}

// CancelOrder cancels a placed or confirmed order, and tells the customer. It
// returns CodeOrderState in any other state.
func CancelOrder(o Order, c Customer, now time.Time) (Change[Order], error) {
	if !o.Status.Open() {
		return Change[Order]{}, stateError("cancelled", o.Status)
	}
	next := o
	next.Status = OrderStatusCancelled
	change := o.become(OrderCancelled, next, now)
	change.Notifications = []Notification{c.notification(TemplateOrderCancelled, change.After, change.At)}
	return change, nil
}

// FulfilOrder marks a confirmed order as fulfilled. It returns CodeOrderState
// in any other state.
func FulfilOrder(o Order, now time.Time) (Change[Order], error) {
	if o.Status != OrderStatusConfirmed {
		return Change[Order]{}, stateError("fulfilled", o.Status)
	}
	next := o
	next.Status = OrderStatusFulfilled
	return o.become(OrderFulfilled, next, now), nil
}

// RefundOrder marks a fulfilled order as refunded, in full. It returns
// CodeOrderState in any other state.
func RefundOrder(o Order, now time.Time) (Change[Order], error) {
	if o.Status != OrderStatusFulfilled {
		return Change[Order]{}, stateError("refunded", o.Status)
	}
	next := o
	next.Status = OrderStatusRefunded
	return o.become(OrderRefunded, next, now), nil
}

// DeleteOrder deletes an order that is in a final state, else it returns
// CodeOrderState.
func DeleteOrder(o Order, now time.Time) (Change[Order], error) {
	if o.Status.Open() {
		return Change[Order]{}, stateError("deleted", o.Status)
	}
	return Change[Order]{Type: OrderDeleted, Before: &o, Version: o.Version + 1, At: later(o.UpdatedAt, now)}, nil
}

// DecideOrder confirms a placed order of an active customer, if the spending
// limit allows it, and rejects any other placed order, with the reason. An order
// that is not placed any more is left as it is: deciding twice is impossible. A
// nil customer was deleted, and nobody is told.
//
// spent is what the customer's orders that count come to, in minor units of the
// limit's currency: those that were confirmed within the window and not
// cancelled since. Together with the order it may reach the limit, but not go
// beyond. Without a limit, it doesn't matter.
func DecideOrder(o Order, c *Customer, spent int64, now time.Time) Change[Order] {
	if o.Status != OrderStatusPlaced {
		return unchanged(o, o.Version)
	}
	next := o
	next.Reason = rejection(o, c, spent)
	if next.Reason == "" {
		next.Status = OrderStatusConfirmed
		change := o.become(OrderConfirmed, next, now)
		change.Notifications = []Notification{c.notification(TemplateOrderConfirmed, change.After, change.At)}
		return change
	}
	next.Status = OrderStatusRejected
	change := o.become(OrderRejected, next, now)
	if c != nil {
		change.Notifications = []Notification{c.notification(TemplateOrderRejected, change.After, change.At)}
	}
	return change
}

func rejection(o Order, c *Customer, spent int64) string {
	switch {
	case c == nil:
		return ReasonCustomerDeleted
	case c.Status == CustomerSuspended:
		return ReasonCustomerSuspended
	case c.Status == CustomerClosed:
		return ReasonCustomerClosed
	case c.SpendingLimit == nil:
		return ""
	case c.SpendingLimit.Currency != o.Currency:
		return ReasonCurrencyNotAccepted
	case o.Total > c.SpendingLimit.Amount-spent: // none of these is negative, so nothing overflows
		return ReasonLimitExceeded
	}
	return ""
}

// become is the change from o to next, whose version and time it sets.
func (o Order) become(event string, next Order, now time.Time) Change[Order] {
	next.Version, next.UpdatedAt = o.Version+1, later(o.UpdatedAt, now)
	return Change[Order]{Type: event, Before: &o, After: &next, Version: next.Version, At: next.UpdatedAt}
}

func stateError(what string, s OrderStatus) error {
	return &Error{Code: CodeOrderState, State: string(s), Message: fmt.Sprintf("an order that is %s can't be %s", s, what)}
}

// total sums the items; false when the sum leaves int64.
func (in OrderInput) total() (int64, bool) {
	var sum int64
	for _, it := range in.Items {
		if it.Quantity < 0 || it.UnitPrice < 0 {
			return 0, false
		}
		if it.Quantity != 0 && it.UnitPrice > (math.MaxInt64-sum)/it.Quantity {
			return 0, false
		}
		sum += it.Quantity * it.UnitPrice
	}
	return sum, true
}
