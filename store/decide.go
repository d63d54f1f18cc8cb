package store

import (
	"context"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
	"outflow/internal/failpoint"
)

const (
	// Customers are locked, deleted ones too, before their orders. An order
	// never changes its customer, so it doesn't matter that they are found
	// before anything is locked.
	lockCustomersOfOrders = `SELECT ` + customerColumns + `, c.deleted_at IS NOT NULL
FROM customers c WHERE c.id = ANY (ARRAY(SELECT o.customer_id FROM orders o WHERE o.id = ANY ($1::uuid[])))
ORDER BY c.id FOR NO KEY UPDATE OF c`

	// A deleted order is in a final state, so there is nothing to decide.
	lockOrders = `SELECT ` + orderColumns + ` FROM orders o WHERE o.id = ANY ($1::uuid[]) ORDER BY o.id FOR NO KEY UPDATE OF o`

	// What counts against a spending limit: orders of its currency, from their
	// confirmation until they are cancelled, by the database's clock. Deleting an
	// order doesn't give back what was spent. Rows that an earlier version
	// confirmed have no confirmed_at, and count from their last change.
	//
	// This has to be a statement of its own, after the one that locks the
	// customers. Of two confirmers that want the same lock, the one that had to
	// wait would otherwise still read the orders as of before it waited (manual,
	// 13.2.1), miss what the other one confirmed meanwhile, and confirm beyond
	// the limit.
	selectSpent = `SELECT o.customer_id, LEAST(sum(o.total), 9223372036854775807)::bigint
FROM customers c JOIN orders o ON o.customer_id = c.id AND o.currency = c.spending_limit_currency
WHERE c.id = ANY (ARRAY(SELECT p.customer_id FROM orders p WHERE p.id = ANY ($1::uuid[])))
  AND o.status IN ('confirmed', 'fulfilled', 'refunded')
  AND COALESCE(o.confirmed_at, o.updated_at) > statement_timestamp() - $2::interval
GROUP BY o.customer_id`
)

var decidePlaced = newStatement(decidedArgs, once(`
WITH input AS (
    SELECT * FROM unnest($12::uuid[], $13::bigint[], $14::text[], $15::text[], $16::timestamptz[])
        AS i (id, version, status, reason, updated_at)
), changed AS (
    UPDATE orders o SET version = i.version, status = i.status, reason = i.reason, updated_at = i.updated_at,
        confirmed_at = CASE WHEN i.status = 'confirmed' THEN statement_timestamp() END
    FROM input i
    WHERE o.id = i.id AND o.version = i.version - 1 AND o.status = 'placed' AND o.deleted_at IS NULL
    RETURNING o.id
)`))

func decidedArgs(changes []change) []any {
	return []any{
		column(changes, func(c change) pgtype.UUID { return uuidOf(c.id) }),
		column(changes, func(c change) int64 { return c.version }),
		column(changes, func(c change) string { return string(c.order.Status) }),
		column(changes, func(c change) string { return c.order.Reason }),
		column(changes, func(c change) pgtype.Timestamptz { return timeOf(c.order.UpdatedAt) }),
	}
}

// DecideOrders confirms or rejects those of the orders that are still placed,
// and leaves the others as they are, so that any number of callers may decide
// the same orders any number of times. metadata gives the metadata of what is
// decided about an order.
//
// Spending limits hold over the orders that are confirmed within
// Config.VelocityWindow, whoever decides them: a customer's orders are decided
// one after the other, here in the order of their ids.
//
// All of it is one transaction of two round trips; when it fails for a reason
// that lies in an order, the orders are decided one by one. The errors are
// those of the single orders, one for each id: nil, CodeNotFound (also while an
// order's transaction is just becoming visible), CodeTooLarge, or what is wrong
// with it.
func (s *Store) DecideOrders(ctx context.Context, ids []domain.ID, metadata func(domain.ID) domain.Metadata) []error {
	errs := make([]error, len(ids))
	if len(ids) == 0 {
		return errs
	}
	each, err := s.decideOrders(ctx, ids, metadata)
	if err == nil {
		for i, id := range ids {
			errs[i] = each[id]
		}
		return errs
	}
	code := domain.CodeOf(err)
	alone := code == domain.CodeUnavailable || code == domain.CodeWriteConflict || len(ids) == 1 || ctx.Err() != nil
	for i, id := range ids {
		if alone {
			errs[i] = err
		} else {
			errs[i] = s.DecideOrders(ctx, []domain.ID{id}, metadata)[0]
		}
	}
	return errs
}

// decideOrders returns the errors of single orders, or the one of all.
func (s *Store) decideOrders(ctx context.Context, ids []domain.ID, metadata func(domain.ID) domain.Metadata) (each map[domain.ID]error, err error) {
	customers := map[domain.ID]*domain.Customer{} // those that are locked; nil for deleted ones
	var orders []domain.Order
	spent := map[domain.ID]int64{} // by customer, in the currency of its limit
	read := func(b *pgx.Batch) {
		b.Queue(locking(lockCustomersOfOrders), uuidsOf(ids)).Query(func(rows pgx.Rows) error {
			_, err := collect(rows, func(row pgx.Row) (struct{}, error) {
				var deleted bool
				c, err := scanCustomer(row, &deleted)
				customers[c.ID] = &c
				if deleted {
					customers[c.ID] = nil
				}
				return struct{}{}, err
			})
			return err
		})
		b.Queue(locking(lockOrders), uuidsOf(ids)).Query(func(rows pgx.Rows) (err error) {
			orders, err = collect(rows, scanOrder)
			return err
		})
		b.Queue(selectSpent, uuidsOf(ids), s.cfg.VelocityWindow).Query(func(rows pgx.Rows) error {
			_, err := collect(rows, func(row pgx.Row) (struct{}, error) {
				var customer pgtype.UUID
				var sum int64
				err := row.Scan(&customer, &sum)
				spent[customer.Bytes] = sum
				return struct{}{}, err
			})
			return err
		})
	}
	err = retry(ctx, func() error {
		clear(customers)
		clear(spent)
		return s.lockAndWrite(ctx, read, decidePlaced, func() ([]change, error) {
			each = map[domain.ID]error{}
			for _, id := range ids {
				each[id] = notFound("order")
			}
			var changes []change
			for _, o := range orders {
				customer, locked := customers[o.CustomerID]
				if !locked {
					// The order became visible after the first statement had begun, which
					// so left out its customer. The order is as good as not there yet.
					continue
				}
				each[o.ID] = nil
				if failpoint.Mutant("store.decides-again") {
					o.Status = domain.OrderStatusPlaced
				}
				d := domain.DecideOrder(o, customer, spent[o.CustomerID], s.cfg.Now())
				if d.NoOp() {
					continue
				}
				c, err := s.orderChange(o.ID, d, metadata(o.ID))
				if err != nil {
					each[o.ID] = wrap("decide an order", err)
					continue
				}
				changes = append(changes, *c)
				if d.After.Status == domain.OrderStatusConfirmed {
					spent[o.CustomerID] = add(spent[o.CustomerID], o.Total)
				}
			}
			return changes, nil
		})
	})
	return each, wrap("decide orders", err)
}

// locking is the statement itself, unless a test leaves its lock out.
func locking(sql string) string {
	if failpoint.Mutant("store.no-locks") {
		sql, _, _ = strings.Cut(sql, "FOR NO KEY UPDATE")
	}
	return sql
}

// once is the statement itself, unless a test leaves out that it is for placed
// orders alone.
func once(sql string) string {
	if failpoint.Mutant("store.decides-again") {
		sql = strings.Replace(sql, " AND o.status = 'placed'", "", 1)
	}
	return sql
}

// add sums what is not negative. It stays at the largest number rather than
// start over.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
