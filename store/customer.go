package store

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

const customerColumns = `c.id, c.version, c.name, c.email, c.phone, c.address, c.status,
    c.spending_limit_amount, c.spending_limit_currency, c.metadata, c.created_at, c.updated_at`

// scanCustomer reads customerColumns, and after them what extra points to.
func scanCustomer(row pgx.Row, extra ...any) (domain.Customer, error) {
	var c domain.Customer
	var id pgtype.UUID
	var amount *int64
	var currency *string
	err := row.Scan(append([]any{
		&id, &c.Version, &c.Name, &c.Email, &c.Phone, &c.Address, &c.Status,
		&amount, &currency, &c.Metadata, &c.CreatedAt, &c.UpdatedAt,
	}, extra...)...)
	if err != nil {
		return domain.Customer{}, err
	}
	c.ID = id.Bytes
	if amount != nil && currency != nil {
		c.SpendingLimit = &domain.Money{Amount: *amount, Currency: *currency}
	}
	c.CreatedAt, c.UpdatedAt = c.CreatedAt.UTC(), c.UpdatedAt.UTC()
	return c, nil
}

// customerInput is the rows to write, as parameters after those of
// outbox.Append.
const customerInput = `
WITH input AS (
    SELECT * FROM unnest($12::uuid[], $13::bigint[], $14::text[], $15::text[], $16::text[], $17::text[], $18::json[], $19::text[],
        $20::bigint[], $21::text[], $22::json[], $23::timestamptz[], $24::timestamptz[])
        AS i (id, version, name, email, email_canonical, phone, address, status,
        spending_limit_amount, spending_limit_currency, metadata, created_at, updated_at)
)`

func customerArgs(changes []change) []any {
	limit := func(c change) domain.Money {
		if l := c.customer.SpendingLimit; l != nil {
			return *l
		}
		return domain.Money{}
	}
	return []any{
		column(changes, func(c change) pgtype.UUID { return uuidOf(c.id) }),
		column(changes, func(c change) int64 { return c.version }),
		column(changes, func(c change) string { return c.customer.Name }),
		column(changes, func(c change) string { return c.customer.Email }),
		column(changes, func(c change) string { return domain.CanonicalEmail(c.customer.Email) }),
		column(changes, func(c change) string { return c.customer.Phone }),
		column(changes, func(c change) []byte { return jsonOf(c.customer.Address, c.customer.Address == nil) }),
		column(changes, func(c change) string { return string(c.customer.Status) }),
		column(changes, func(c change) pgtype.Int8 {
			return pgtype.Int8{Int64: limit(c).Amount, Valid: c.customer.SpendingLimit != nil}
		}),
		column(changes, func(c change) pgtype.Text {
			return pgtype.Text{String: limit(c).Currency, Valid: c.customer.SpendingLimit != nil}
		}),
		column(changes, func(c change) []byte { return jsonOf(c.customer.Metadata, c.customer.Metadata == nil) }),
		column(changes, func(c change) pgtype.Timestamptz { return timeOf(c.customer.CreatedAt) }),
		column(changes, func(c change) pgtype.Timestamptz { return timeOf(c.customer.UpdatedAt) }),
	}
}

// Emails are inserted in one order everywhere: of two statements with emails
// in common, one waits for the other, and neither in a circle.
var createCustomers = newStatement(customerArgs, customerInput+`, changed AS (
    INSERT INTO customers (id, version, name, email, email_canonical, phone, address, status,
        spending_limit_amount, spending_limit_currency, metadata, created_at, updated_at)
    SELECT i.id, i.version, i.name, i.email, i.email_canonical, i.phone, i.address, i.status,
        i.spending_limit_amount, i.spending_limit_currency, i.metadata, i.created_at, i.updated_at
    FROM input i ORDER BY i.email_canonical COLLATE "C"
    RETURNING id
)`).apart(emailOf)

func emailOf(c change) string { return domain.CanonicalEmail(c.customer.Email) }

// The rows are locked by their ids alone, and the guards are held against what
// comes out of the lock, which is the row as it is then. Asked for live rows,
// PostgreSQL may read all of an index of live rows, which it takes for a small
// one until somebody has analyzed the table.
var updateCustomers = newStatement(customerArgs, customerInput+`, locked AS (
    SELECT c.id, c.version, c.deleted_at FROM customers c WHERE c.id = ANY ($12::uuid[]) ORDER BY c.id FOR NO KEY UPDATE
), changed AS (
    UPDATE customers c SET version = i.version, name = i.name, email = i.email, email_canonical = i.email_canonical,
        phone = i.phone, address = i.address, status = i.status, spending_limit_amount = i.spending_limit_amount,
        spending_limit_currency = i.spending_limit_currency, metadata = i.metadata, updated_at = i.updated_at
    FROM locked l JOIN input i ON i.id = l.id AND i.version = l.version + 1
    WHERE c.id = l.id AND l.deleted_at IS NULL
    RETURNING c.id
)`).apart(emailOf)

// The row stays, so that the version goes on and orders keep their customer.
var deleteCustomers = newStatement(tombstoneArgs, tombstoneInput+`, locked AS (
    SELECT c.id, c.version, c.deleted_at FROM customers c WHERE c.id = ANY ($12::uuid[]) ORDER BY c.id FOR NO KEY UPDATE
), changed AS (
    UPDATE customers c SET version = i.version, updated_at = i.at, deleted_at = i.at
    FROM locked l JOIN input i ON i.id = l.id AND i.version = l.version + 1
    WHERE c.id = l.id AND l.deleted_at IS NULL
    RETURNING c.id
)`)

// CreateCustomer creates a customer. It returns CodeInvalid with every
// problem, and CodeEmailTaken if a live customer has the email.
func (s *Store) CreateCustomer(ctx context.Context, in domain.CustomerInput, m domain.Metadata) (domain.Customer, error) {
	const doing = "create a customer"
	d, err := domain.CreateCustomer(s.cfg.NewID(), in, s.cfg.Now())
	if err != nil {
		return domain.Customer{}, err
	}
	c, err := newChange(s, domain.AggregateCustomer, d.After.ID, d, m)
	if err != nil {
		return domain.Customer{}, wrap(doing, err)
	}
	c.customer = d.After
	err = retry(ctx, func() error {
		_, err := s.commit(ctx, createCustomers, c)
		return err
	})
	if err != nil {
		return domain.Customer{}, wrap(doing, err)
	}
	return *d.After, nil
}

const selectCustomer = `SELECT ` + customerColumns + ` FROM customers c WHERE c.id = $1 AND c.deleted_at IS NULL`

// Customer returns a customer, or CodeNotFound.
func (s *Store) Customer(ctx context.Context, id domain.ID) (domain.Customer, error) {
	var c domain.Customer
	err := s.read(ctx, readCustomer(id, &c))
	return c, wrap("read a customer", found("customer", err))
}

// UpdateCustomer replaces what callers decide of a customer by what edit makes
// of it. edit gets a copy of its own, and may be called several times: again
// whenever others changed the customer meanwhile. An edit that changes nothing
// writes nothing and leaves no event.
//
// It returns CodeNotFound, CodeVersionMismatch, CodeEmailTaken, CodeInvalid
// with every problem, CodeTooLarge, CodeWriteConflict, or edit's error.
func (s *Store) UpdateCustomer(ctx context.Context, id domain.ID, pre Precondition, edit func(domain.Customer) (domain.CustomerInput, error), m domain.Metadata) (domain.Customer, error) {
	var now domain.Customer
	err := s.modify(ctx, readCustomer(id, &now), updateCustomers, func() (*change, error) {
		if err := pre.Check(now.Version); err != nil {
			return nil, err
		}
		theirs := now
		theirs.CustomerInput = now.CustomerInput.Clone()
		in, err := edit(theirs)
		if err != nil {
			return nil, err
		}
		d, err := domain.UpdateCustomer(now, in, s.cfg.Now())
		if err != nil || d.NoOp() {
			return nil, err
		}
		c, err := newChange(s, domain.AggregateCustomer, id, d, m)
		c.customer = d.After
		now = *d.After
		return &c, err
	})
	if err == nil {
		err = s.settle(ctx, now)
	}
	if err != nil {
		return domain.Customer{}, wrap("update a customer", err)
	}
	return now, nil
}

func readCustomer(id domain.ID, c *domain.Customer) reading {
	return reading{
		what: "customer", sql: selectCustomer, lock: ` FOR NO KEY UPDATE OF c`, args: []any{uuidOf(id)},
		scan: func(row pgx.Row) (func(), error) {
			got, err := scanCustomer(row)
			return func() { *c = got }, err
		},
	}
}

const selectHasOpenOrders = `SELECT EXISTS (SELECT FROM orders o
WHERE o.customer_id = $1 AND o.deleted_at IS NULL AND o.status IN ('placed', 'confirmed'))`

// DeleteCustomer deletes a customer. It returns CodeNotFound,
// CodeVersionMismatch, CodeOpenOrders or CodeTooLarge.
func (s *Store) DeleteCustomer(ctx context.Context, id domain.ID, pre Precondition, m domain.Metadata) error {
	var now domain.Customer
	var open bool
	r := readCustomer(id, &now)
	// Placing an order locks the customer too. Either it has committed when this
	// lock is granted, and the next statement sees the order; or it waits for
	// this transaction, and finds the customer deleted.
	read := func(b *pgx.Batch) {
		r.queue(b)
		b.Queue(selectHasOpenOrders, uuidOf(id)).QueryRow(func(row pgx.Row) error { return row.Scan(&open) })
	}
	err := retry(ctx, func() error {
		return s.lockAndWrite(ctx, read, deleteCustomers, func() ([]change, error) {
			if err := pre.Check(now.Version); err != nil {
				return nil, err
			}
			d, err := domain.DeleteCustomer(now, open, s.cfg.Now())
			if err != nil {
				return nil, err
			}
			c, err := newChange(s, domain.AggregateCustomer, id, d, m)
			return []change{c}, err
		})
	})
	return wrap("delete a customer", err)
}
