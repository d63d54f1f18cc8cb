package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"outflow/domain"
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
)

// DecideOrders confirms or rejects those of the orders that are still placed,
// and leaves the others as they are, so that any number of callers may decide
// the same orders any number of times. metadata gives the metadata of what is
// decided about an order.
//
// All of it is one transaction of two round trips; when it fails for a reason
// that lies in an order, the orders are decided one by one. The errors are
// those of the single orders, one for each id: nil, CodeNotFound, CodeTooLarge,
// or what is wrong with it.
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
	customers := map[domain.ID]*domain.Customer{}
	var orders []domain.Order
	read := func(b *pgx.Batch) {
		b.Queue(lockCustomersOfOrders, uuidsOf(ids)).Query(func(rows pgx.Rows) error {
			_, err := collect(rows, func(row pgx.Row) (struct{}, error) {
				var deleted bool
				c, err := scanCustomer(row, &deleted)
				if err == nil && !deleted {
					customers[c.ID] = &c
				}
				return struct{}{}, err
			})
			return err
		})
		b.Queue(lockOrders, uuidsOf(ids)).Query(func(rows pgx.Rows) (err error) {
			orders, err = collect(rows, scanOrder)
			return err
		})
	}
	err = retry(ctx, func() error {
		clear(customers)
		return s.lockAndWrite(ctx, read, updateOrders, func() ([]change, error) {
			each = map[domain.ID]error{}
			for _, id := range ids {
				each[id] = notFound("order")
			}
			var changes []change
			for _, o := range orders {
				each[o.ID] = nil
				d := domain.DecideOrder(o, customers[o.CustomerID], s.cfg.Now())
				if d.NoOp() {
					continue
				}
				c, err := s.orderChange(o.ID, d, metadata(o.ID))
				if err != nil {
					each[o.ID] = wrap("decide an order", err)
					continue
				}
				changes = append(changes, *c)
			}
			return changes, nil
		})
	})
	return each, wrap("decide orders", err)
}
