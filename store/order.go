package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

const orderColumns = `o.id, o.version, o.customer_id, o.currency, o.items, o.total, o.status, o.reason, o.created_at, o.updated_at`

// scanOrder reads orderColumns.
func scanOrder(row pgx.Row) (domain.Order, error) {
	var o orderRow
	err := row.Scan(o.targets()...)
	return o.order(), err
}

// orderRow is what orderColumns are scanned into.
type orderRow struct {
	o            domain.Order
	id, customer pgtype.UUID
}

func (r *orderRow) targets() []any {
	o := &r.o
	return []any{&r.id, &o.Version, &r.customer, &o.Currency, &o.Items, &o.Total, &o.Status, &o.Reason, &o.CreatedAt, &o.UpdatedAt}
}

func (r *orderRow) order() domain.Order {
	o := r.o
	o.ID, o.CustomerID = r.id.Bytes, r.customer.Bytes
	o.CreatedAt, o.UpdatedAt = o.CreatedAt.UTC(), o.UpdatedAt.UTC()
	return o
}

// orderInput is the rows to write, as parameters after those of outbox.Append.
const orderInput = `
WITH input AS (
    SELECT * FROM unnest($12::uuid[], $13::bigint[], $14::uuid[], $15::text[], $16::json[], $17::bigint[], $18::text[], $19::text[],
        $20::timestamptz[], $21::timestamptz[])
        AS i (id, version, customer_id, currency, items, total, status, reason, created_at, updated_at)
)`

func orderArgs(changes []change) []any {
	return []any{
		column(changes, func(c change) pgtype.UUID { return uuidOf(c.id) }),
		column(changes, func(c change) int64 { return c.version }),
		column(changes, func(c change) pgtype.UUID { return uuidOf(c.order.CustomerID) }),
		column(changes, func(c change) string { return c.order.Currency }),
		column(changes, func(c change) []byte { return jsonOf(c.order.Items, false) }),
		column(changes, func(c change) int64 { return c.order.Total }),
		column(changes, func(c change) string { return string(c.order.Status) }),
		column(changes, func(c change) string { return c.order.Reason }),
		column(changes, func(c change) pgtype.Timestamptz { return timeOf(c.order.CreatedAt) }),
		column(changes, func(c change) pgtype.Timestamptz { return timeOf(c.order.UpdatedAt) }),
	}
}

// An order is placed only for a live customer, who can't be deleted before the
// order is committed: what comes out of a lock is the row as it is then, also
// when the lock had to wait for a deletion.
var placeOrders = newStatement(orderArgs, orderInput+`, owner AS (
    SELECT c.id, c.deleted_at FROM customers c WHERE c.id = ANY ($14::uuid[]) ORDER BY c.id FOR SHARE
), changed AS (
    INSERT INTO orders (id, version, customer_id, currency, items, total, status, reason, created_at, updated_at)
    SELECT i.id, i.version, i.customer_id, i.currency, i.items, i.total, i.status, i.reason, i.created_at, i.updated_at
    FROM owner JOIN input i ON i.customer_id = owner.id
    WHERE owner.deleted_at IS NULL
    RETURNING id
)`)

var updateOrders = newStatement(orderArgs, orderInput+`, locked AS (
    SELECT o.id, o.version, o.deleted_at FROM orders o WHERE o.id = ANY ($12::uuid[]) ORDER BY o.id FOR NO KEY UPDATE
), changed AS (
    UPDATE orders o SET version = i.version, currency = i.currency, items = i.items, total = i.total,
        status = i.status, reason = i.reason, updated_at = i.updated_at
    FROM locked l JOIN input i ON i.id = l.id AND i.version = l.version + 1
    WHERE o.id = l.id AND l.deleted_at IS NULL
    RETURNING o.id
)`)

var deleteOrders = newStatement(tombstoneArgs, tombstoneInput+`, locked AS (
    SELECT o.id, o.version, o.deleted_at FROM orders o WHERE o.id = ANY ($12::uuid[]) ORDER BY o.id FOR NO KEY UPDATE
), changed AS (
    UPDATE orders o SET version = i.version, updated_at = i.at, deleted_at = i.at
    FROM locked l JOIN input i ON i.id = l.id AND i.version = l.version + 1
    WHERE o.id = l.id AND l.deleted_at IS NULL
    RETURNING o.id
)`)

// PlaceOrder places an order. It returns CodeInvalid with every problem; that
// there is no such customer is one, of the field customer_id.
func (s *Store) PlaceOrder(ctx context.Context, in domain.OrderInput, m domain.Metadata) (domain.Order, error) {
	const doing = "place an order"
	d, err := domain.PlaceOrder(s.cfg.NewID(), in, s.cfg.Now())
	if err != nil {
		return domain.Order{}, err
	}
	c, err := newChange(s, domain.AggregateOrder, d.After.ID, d, m)
	if err != nil {
		return domain.Order{}, wrap(doing, err)
	}
	c.order = d.After
	err = retry(ctx, func() error {
		ok, err := s.commit(ctx, placeOrders, c)
		if err == nil && !ok {
			return noOwner()
		}
		return err
	})
	if err != nil {
		return domain.Order{}, wrap(doing, err)
	}
	return *d.After, nil
}

const selectOrder = `SELECT ` + orderColumns + ` FROM orders o WHERE o.id = $1 AND o.deleted_at IS NULL`

// Order returns an order, or CodeNotFound.
func (s *Store) Order(ctx context.Context, id domain.ID) (domain.Order, error) {
	var o domain.Order
	err := s.read(ctx, readOrder(id, &o))
	return o, wrap("read an order", found("order", err))
}

// UpdateOrder replaces what callers decide of an order by what edit makes of
// it. edit gets a copy of its own, and may be called several times: again
// whenever others changed the order meanwhile. An edit that changes nothing
// writes nothing and leaves no event.
//
// It returns CodeNotFound, CodeVersionMismatch, CodeOrderState, CodeInvalid
// with every problem, CodeTooLarge, CodeWriteConflict, or edit's error.
func (s *Store) UpdateOrder(ctx context.Context, id domain.ID, pre Precondition, edit func(domain.Order) (domain.OrderInput, error), m domain.Metadata) (domain.Order, error) {
	var now domain.Order
	err := s.modify(ctx, readOrder(id, &now), updateOrders, func() (*change, error) {
		if err := pre.Check(now.Version); err != nil {
			return nil, err
		}
		theirs := now
		theirs.OrderInput = now.OrderInput.Clone()
		in, err := edit(theirs)
		if err != nil {
			return nil, err
		}
		d, err := domain.UpdateOrder(now, in, s.cfg.Now())
		if err != nil || d.NoOp() {
			return nil, err
		}
		now = *d.After
		return s.orderChange(id, d, m)
	})
	if err == nil {
		err = s.settle(ctx, now)
	}
	if err != nil {
		return domain.Order{}, wrap("update an order", err)
	}
	return now, nil
}

// CancelOrder cancels an order and asks for the customer to be told. It
// returns CodeNotFound, CodeVersionMismatch, CodeOrderState, CodeTooLarge or
// CodeWriteConflict.
func (s *Store) CancelOrder(ctx context.Context, id domain.ID, pre Precondition, m domain.Metadata) (domain.Order, error) {
	var now domain.Order
	var customer domain.Customer
	err := s.modify(ctx, readOrderAndCustomer(id, &now, &customer), updateOrders, func() (*change, error) {
		if err := pre.Check(now.Version); err != nil {
			return nil, err
		}
		d, err := domain.CancelOrder(now, customer, s.cfg.Now())
		if err != nil {
			return nil, err
		}
		now = *d.After
		return s.orderChange(id, d, m)
	})
	if err != nil {
		return domain.Order{}, wrap("cancel an order", err)
	}
	return now, nil
}

// FulfilOrder marks a confirmed order as fulfilled. It returns CodeNotFound,
// CodeVersionMismatch, CodeOrderState, CodeTooLarge or CodeWriteConflict.
func (s *Store) FulfilOrder(ctx context.Context, id domain.ID, pre Precondition, m domain.Metadata) (domain.Order, error) {
	return s.moveOrder(ctx, "fulfil an order", id, pre, domain.FulfilOrder, m)
}

// RefundOrder marks a fulfilled order as refunded. It returns CodeNotFound,
// CodeVersionMismatch, CodeOrderState, CodeTooLarge or CodeWriteConflict.
func (s *Store) RefundOrder(ctx context.Context, id domain.ID, pre Precondition, m domain.Metadata) (domain.Order, error) {
	return s.moveOrder(ctx, "refund an order", id, pre, domain.RefundOrder, m)
}

// moveOrder brings an order to another status.
func (s *Store) moveOrder(ctx context.Context, doing string, id domain.ID, pre Precondition, decide func(domain.Order, time.Time) (domain.Change[domain.Order], error), m domain.Metadata) (domain.Order, error) {
	var now domain.Order
	err := s.modify(ctx, readOrder(id, &now), updateOrders, func() (*change, error) {
		if err := pre.Check(now.Version); err != nil {
			return nil, err
		}
		d, err := decide(now, s.cfg.Now())
		if err != nil {
			return nil, err
		}
		now = *d.After
		return s.orderChange(id, d, m)
	})
	if err != nil {
		return domain.Order{}, wrap(doing, err)
	}
	return now, nil
}

// DeleteOrder deletes an order. It returns CodeNotFound, CodeVersionMismatch,
// CodeOrderState, CodeTooLarge or CodeWriteConflict.
func (s *Store) DeleteOrder(ctx context.Context, id domain.ID, pre Precondition, m domain.Metadata) error {
	var now domain.Order
	err := s.modify(ctx, readOrder(id, &now), deleteOrders, func() (*change, error) {
		if err := pre.Check(now.Version); err != nil {
			return nil, err
		}
		d, err := domain.DeleteOrder(now, s.cfg.Now())
		if err != nil {
			return nil, err
		}
		return s.orderChange(id, d, m)
	})
	return wrap("delete an order", err)
}

func (s *Store) orderChange(id domain.ID, d domain.Change[domain.Order], m domain.Metadata) (*change, error) {
	c, err := newChange(s, domain.AggregateOrder, id, d, m)
	c.order = d.After
	return &c, err
}

func readOrder(id domain.ID, o *domain.Order) reading {
	return reading{
		what: "order", sql: selectOrder, lock: ` FOR NO KEY UPDATE OF o`, args: []any{uuidOf(id)},
		scan: func(row pgx.Row) (func(), error) {
			got, err := scanOrder(row)
			return func() { *o = got }, err
		},
	}
}

const selectOrderAndCustomer = `SELECT ` + customerColumns + `, ` + orderColumns + `
FROM orders o JOIN customers c ON c.id = o.customer_id WHERE o.id = $1 AND o.deleted_at IS NULL`

// readOrderAndCustomer locks the order alone: what is read of the customer is
// whom to tell, and that is as good as the moment it was read.
func readOrderAndCustomer(id domain.ID, o *domain.Order, c *domain.Customer) reading {
	return reading{
		what: "order", sql: selectOrderAndCustomer, lock: ` FOR NO KEY UPDATE OF o`, args: []any{uuidOf(id)},
		scan: func(row pgx.Row) (func(), error) {
			var order orderRow
			customer, err := scanCustomer(row, order.targets()...)
			return func() { *c, *o = customer, order.order() }, err
		},
	}
}
