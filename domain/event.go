package domain

import (
	"encoding/json"
	"time"
)

// The aggregate types: whatever has events of its own.
const (
	AggregateCustomer     = "customer"
	AggregateOrder        = "order"
	AggregateNotification = "notification"
)

// AggregateTypes lists every aggregate type, in the order in which they are
// documented and in which their topics are made.
var AggregateTypes = []string{AggregateCustomer, AggregateOrder, AggregateNotification}

// The event types. A published type never changes its meaning or its payload;
// what must differ gets a new version.
const (
	CustomerCreated = "customer.created.v1"
	CustomerUpdated = "customer.updated.v1"
	CustomerDeleted = "customer.deleted.v1"

	OrderPlaced    = "order.placed.v1"
	OrderUpdated   = "order.updated.v1"
	OrderConfirmed = "order.confirmed.v1"
	OrderRejected  = "order.rejected.v1"
	OrderCancelled = "order.cancelled.v1"
	OrderFulfilled = "order.fulfilled.v1"
	OrderRefunded  = "order.refunded.v1"
	OrderDeleted   = "order.deleted.v1"

	NotificationRequested = "notification.requested.v1"
)

// Event is one entry of the outbox: one version of one aggregate.
type Event struct {
	ID               ID              // UUIDv7, unique for ever
	AggregateType    string          // AggregateCustomer, ...
	AggregateID      ID              // which one
	AggregateVersion int64           // 1..n without gaps within one aggregate
	Type             string          // CustomerCreated, ...
	Key              string          // the Kafka key: events of one key stay in order
	Before           json.RawMessage // the entity before; nil for the first event
	After            json.RawMessage // the entity after; nil once it is deleted
	Metadata         json.RawMessage // a Metadata; kept as bytes, because few readers look inside
	OccurredAt       time.Time       // when the change was decided
}

// Metadata says who caused an event and what it belongs to. Empty parts are
// left out of the JSON.
type Metadata struct {
	Actor         string `json:"actor,omitempty"`          // who did it: "api", "confirmer", ...
	CorrelationID string `json:"correlation_id,omitempty"` // the request that began the story
	CausationID   string `json:"causation_id,omitempty"`   // the event that led to this one
	Traceparent   string `json:"traceparent,omitempty"`    // W3C Trace Context
}

// Change is a decision: what an entity was, what it becomes, and what that
// event is called.
type Change[T any] struct {
	Type          string         // the event's type; "" when nothing changes
	Before        *T             // nil when the entity is new
	After         *T             // nil when the entity is deleted
	Version       int64          // the entity's version after the change
	At            time.Time      // when
	Notifications []Notification // what to tell the customer; their IDs are given when stored
}

// NoOp reports whether the decision was to leave everything as it is: such a
// change makes no event and keeps the version.
func (c Change[T]) NoOp() bool { return c.Type == "" }

// The notification templates.
const (
	TemplateWelcome        = "welcome"
	TemplateOrderConfirmed = "order_confirmed"
	TemplateOrderRejected  = "order_rejected"
	TemplateOrderCancelled = "order_cancelled"
)

// Notification asks for a message to a customer. It carries all that the
// message needs, so that whoever sends it reads nothing else.
type Notification struct {
	ID         ID        `json:"id"`
	CustomerID ID        `json:"customer_id"`
	Template   string    `json:"template"`
	To         Recipient `json:"to"`
	Order      *Order    `json:"order,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
}

// Recipient is whom a notification goes to, as known when it was asked for.
type Recipient struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}
