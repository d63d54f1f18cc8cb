package analytics

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"outflow/domain"
	"outflow/internal/consumer"
)

// fact is what counts of one order or customer.
type fact struct {
	ID          string    `bson:"_id"`
	Version     int64     `bson:"version"`
	Status      string    `bson:"status"`
	Deleted     bool      `bson:"deleted,omitempty"`
	Customer    string    `bson:"customer,omitempty"` // this and what follows: of an order
	Currency    string    `bson:"currency,omitempty"`
	Total       int64     `bson:"total,omitempty"`
	PlacedAt    time.Time `bson:"placed_at,omitempty"`
	ConfirmedAt time.Time `bson:"confirmed_at,omitempty"` // only while the confirmation counts
	RefundedAt  time.Time `bson:"refunded_at,omitempty"`
}

// cell is where something is counted: an hour, or the zero time for what is
// counted regardless of time.
type cell struct {
	of   string // what is counted: ofOrders or ofCustomers
	hour time.Time
}

// bucket is the id of the cell's bucket of a partition.
func (c cell) bucket(partition int32) string {
	if c.hour.IsZero() {
		return fmt.Sprintf("%s/%d", c.of, partition)
	}
	return fmt.Sprintf("%s/%d/%s", c.of, partition, c.hour.Format("2006-01-02T15"))
}

func hourOf(t time.Time) time.Time { return t.UTC().Truncate(time.Hour) }

// posting is one thing that a fact counts.
type posting struct {
	cell    cell
	counter string
	n       int64
}

// The counters of buckets; a status or a currency follows.
const (
	counterStatus    = "status:"    // orders placed in the hour, or customers, that have the status
	counterOrders    = "orders:"    // orders confirmed in the hour
	counterConfirmed = "confirmed:" // the sum of their totals
	counterRefunds   = "refunds:"   // orders refunded in the hour
	counterRefunded  = "refunded:"  // the sum of their totals
)

// step is an event as the ledger takes it.
type step struct {
	version int64
	advance func(fact) fact // what the fact is after the event, but for its version
	cells   []cell          // where that may change what is counted
}

// kind is a kind of facts.
type kind struct {
	name     string // of its collection and of its buckets
	read     func(domain.Event) (step, error)
	postings func(fact) []posting
}

const (
	ofOrders    = "orders"
	ofCustomers = "customers"
)

var kinds = map[string]*kind{
	domain.AggregateOrder:    {name: ofOrders, read: readOrder, postings: orderPostings},
	domain.AggregateCustomer: {name: ofCustomers, read: readCustomer, postings: customerPostings},
}

// readEvent reads an event's step; its error is for good.
func readEvent(e domain.Event) (*kind, step, error) {
	k := kinds[e.AggregateType]
	if k == nil {
		return nil, step{}, errors.New("event of an unknown aggregate type")
	}
	// The states say it all, whatever the event is called; a new version of a
	// type may mean something else by them.
	if !strings.HasSuffix(e.Type, ".v1") {
		return nil, step{}, consumer.ErrUnknownVersion
	}
	if e.Before == nil && e.After == nil {
		return nil, step{}, errors.New("event without a state")
	}
	s, err := k.read(e)
	s.version = e.AggregateVersion
	return k, s, err
}

// orderState is what matters here of an order.
type orderState struct {
	CustomerID domain.ID          `json:"customer_id"`
	Currency   string             `json:"currency"`
	Total      int64              `json:"total"`
	Status     domain.OrderStatus `json:"status"`
	CreatedAt  time.Time          `json:"created_at"`
	UpdatedAt  time.Time          `json:"updated_at"`
}

// orderStatuses is in the order in which orders get them.
var orderStatuses = []domain.OrderStatus{
	domain.OrderStatusPlaced, domain.OrderStatusConfirmed, domain.OrderStatusRejected,
	domain.OrderStatusFulfilled, domain.OrderStatusRefunded, domain.OrderStatusCancelled,
}

func (s *orderState) check() error {
	switch {
	case !slices.Contains(orderStatuses, s.Status):
		return errors.New("the order's status is not known")
	case len(s.Currency) != 3 || strings.Trim(s.Currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "":
		return errors.New("the order's currency is not an ISO 4217 code")
	case s.Total < 0:
		return errors.New("the order's total is negative")
	case s.CustomerID.IsZero():
		return errors.New("the order has no customer")
	case s.CreatedAt.IsZero() || s.UpdatedAt.IsZero():
		return errors.New("the order has no times")
	}
	return nil
}

// states reads the states of an event, nil for null.
func states[T any](e domain.Event, check func(*T) error) (before, after *T, err error) {
	for _, s := range []struct {
		raw  json.RawMessage
		into **T
	}{{e.Before, &before}, {e.After, &after}} {
		if s.raw == nil {
			continue
		}
		*s.into = new(T)
		if err := json.Unmarshal(s.raw, *s.into); err != nil {
			return nil, nil, fmt.Errorf("read the state: %w", err)
		}
		if err := check(*s.into); err != nil {
			return nil, nil, err
		}
	}
	return before, after, nil
}

func readOrder(e domain.Event) (step, error) {
	before, after, err := states(e, (*orderState).check)
	if err != nil {
		return step{}, err
	}
	now := after
	if now == nil {
		now = before
	}
	occurred := domain.Timestamp(e.OccurredAt)
	was := func(s domain.OrderStatus) bool { return before != nil && before.Status == s }
	cells := []cell{{ofOrders, hourOf(now.CreatedAt)}, {ofOrders, hourOf(occurred)}}
	if before != nil {
		cells = append(cells, cell{ofOrders, hourOf(before.UpdatedAt)})
	}
	advance := func(f fact) fact {
		f.Deleted = after == nil
		f.Status, f.Customer = string(now.Status), now.CustomerID.String()
		f.Currency, f.Total, f.PlacedAt = now.Currency, now.Total, domain.Timestamp(now.CreatedAt)
		switch now.Status {
		case domain.OrderStatusPlaced, domain.OrderStatusRejected, domain.OrderStatusCancelled:
			f.ConfirmedAt, f.RefundedAt = time.Time{}, time.Time{}
			return f
		}
		// A confirmed order changes only by being fulfilled or cancelled, a
		// refunded one only by being deleted. So the state before tells when
		// it got that far, should the log no longer hold the event that did.
		if f.ConfirmedAt.IsZero() {
			switch {
			case was(domain.OrderStatusConfirmed):
				f.ConfirmedAt = domain.Timestamp(before.UpdatedAt)
			case now.Status == domain.OrderStatusConfirmed:
				f.ConfirmedAt = occurred
			}
		}
		if f.RefundedAt.IsZero() && now.Status == domain.OrderStatusRefunded {
			f.RefundedAt = occurred
			if was(domain.OrderStatusRefunded) {
				f.RefundedAt = domain.Timestamp(before.UpdatedAt)
			}
		}
		return f
	}
	return step{advance: advance, cells: cells}, nil
}

func orderPostings(f fact) []posting {
	var all []posting
	if f.Version > 0 && !f.Deleted {
		all = append(all, posting{cell{ofOrders, hourOf(f.PlacedAt)}, counterStatus + f.Status, 1})
	}
	if !f.ConfirmedAt.IsZero() {
		at := cell{ofOrders, hourOf(f.ConfirmedAt)}
		all = append(all, posting{at, counterOrders + f.Currency, 1}, posting{at, counterConfirmed + f.Currency, f.Total})
	}
	if !f.RefundedAt.IsZero() {
		at := cell{ofOrders, hourOf(f.RefundedAt)}
		all = append(all, posting{at, counterRefunds + f.Currency, 1}, posting{at, counterRefunded + f.Currency, f.Total})
	}
	return all
}

type customerState struct {
	Status domain.CustomerStatus `json:"status"`
}

func (s *customerState) check() error {
	switch s.Status {
	case domain.CustomerActive, domain.CustomerSuspended, domain.CustomerClosed:
		return nil
	}
	return errors.New("the customer's status is not known")
}

func readCustomer(e domain.Event) (step, error) {
	before, after, err := states(e, (*customerState).check)
	if err != nil {
		return step{}, err
	}
	now := after
	if now == nil {
		now = before
	}
	return step{cells: []cell{{of: ofCustomers}}, advance: func(f fact) fact {
		f.Status, f.Deleted = string(now.Status), after == nil
		return f
	}}, nil
}

func customerPostings(f fact) []posting {
	if f.Version == 0 || f.Deleted {
		return nil
	}
	return []posting{{cell{of: ofCustomers}, counterStatus + f.Status, 1}}
}
