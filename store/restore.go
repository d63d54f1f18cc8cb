package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

// Restored is what [Store.Restore] did.
type Restored struct {
	Customers   int64           `json:"customers"` // rows, deleted ones included
	Orders      int64           `json:"orders"`
	Differences []RowDifference `json:"differences"` // from the live tables; at most MaxRowDifferences of each, never nil
}

// RowDifference is a row that isn't the same in both tables, or is in one alone.
type RowDifference struct {
	Table    string    `json:"table"`
	ID       domain.ID `json:"id"`
	Live     int64     `json:"live"`     // its version in the table that is there; 0 for none
	Restored int64     `json:"restored"` // and in the one that was restored
}

// ErrNotEmpty says that there are rows where a restore would write.
var ErrNotEmpty = errors.New("customers or orders have rows there already")

// ErrCustomersGone says that there are orders of customers whose events are no
// longer in the log.
var ErrCustomersGone = errors.New("the log no longer holds the events of customers that it has orders of")

// ErrLiveSchema says that tables in a schema would be taken for the live ones.
var ErrLiveSchema = errors.New("tables in this schema are, or would be taken for, the live ones")

// MaxRowDifferences is how many differences of a table are told.
const MaxRowDifferences = 1000

const restorePage = 2000

// Restore makes customers and orders from the event log alone, in a schema that
// has no rows in them: it is made if it isn't there. The rows are then compared
// with those of the live tables, as of one moment. With the schema "" the live
// tables themselves are filled, which have to be empty. Either all of it is done
// or nothing. progress is called now and then, if set, with how many rows are
// restored and about how many there are, 0 when that can't be told.
//
// Rows whose events are no longer in the log are not restored. It returns
// ErrNotEmpty, ErrLiveSchema and ErrCustomersGone.
func (s *Store) Restore(ctx context.Context, schema string, progress func(rows, total int64)) (res Restored, err error) {
	res.Differences = []RowDifference{}
	var total int64
	for _, typ := range []string{domain.AggregateCustomer, domain.AggregateOrder} {
		n, err := s.About(ctx, typ)
		if err != nil {
			return res, err
		}
		total += n
	}
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		r := restore{tx: tx, schema: schema, progress: progress, total: total, res: &res}
		// What suits requests doesn't suit one reading of everything.
		_, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on`)
		if err != nil {
			return err
		}
		if err := r.prepare(ctx); err != nil {
			return err
		}
		if res.Customers, err = r.fill(ctx, "customers", restoredCustomerColumns, selectLastCustomers, restoredCustomer); err != nil {
			return err
		}
		if res.Orders, err = r.fill(ctx, "orders", restoredOrderColumns, selectLastOrders, restoredOrder); err != nil {
			return err
		}
		if schema == "" {
			return nil
		}
		if _, err := tx.Exec(ctx, `ALTER TABLE `+r.in("orders")+` ADD FOREIGN KEY (customer_id) REFERENCES `+r.in("customers")+` (id)`); err != nil {
			return err
		}
		if err := r.compare(ctx, "customers"); err != nil {
			return err
		}
		return r.compare(ctx, "orders")
	})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == foreignKeyViolation {
		err = ErrCustomersGone
	}
	if err != nil {
		return Restored{}, wrap("restore from the event log", err)
	}
	return res, nil
}

type restore struct {
	tx       pgx.Tx
	schema   string
	progress func(rows, total int64)
	total    int64 // rows, about
	res      *Restored
	rows     int64
}

func (r *restore) name(table string) pgx.Identifier {
	if r.schema == "" {
		return pgx.Identifier{table}
	}
	return pgx.Identifier{r.schema, table}
}

func (r *restore) in(table string) string { return r.name(table).Sanitize() }

func (r *restore) prepare(ctx context.Context) error {
	if r.schema != "" {
		if _, err := r.tx.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+pgx.Identifier{r.schema}.Sanitize()); err != nil {
			return err
		}
	}
	if err := r.apart(ctx); err != nil {
		return err
	}
	for _, table := range []string{"customers", "orders"} {
		if r.schema != "" {
			if _, err := r.tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS `+r.in(table)+` (LIKE `+table+` INCLUDING ALL)`); err != nil {
				return err
			}
		}
		var filled bool
		if err := r.tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+r.in(table)+`)`).Scan(&filled); err != nil {
			return err
		}
		if filled {
			return ErrNotEmpty
		}
	}
	return nil
}

// apart refuses a schema in which PostgreSQL would find the tables before the
// live ones: the service, which doesn't name a schema, would go on with the
// copies. The default search path looks into the schema that is named for the
// role first, and the service's role may be another one than this.
func (r *restore) apart(ctx context.Context) error {
	if r.schema == "" {
		return nil
	}
	var live bool
	err := r.tx.QueryRow(ctx, `SELECT $1::name = ANY (current_schemas(true)) OR EXISTS (SELECT FROM pg_roles WHERE rolname = $1::name)`, r.schema).Scan(&live)
	if err == nil && live {
		err = ErrLiveSchema
	}
	return err
}

// The last state of every entity: of a deleted one, what it was before. When an
// order was confirmed is not part of it, and is told by the event that did it,
// to within the difference of two clocks.
const (
	selectLastCustomers = `SELECT DISTINCT ON (e.aggregate_id) e.aggregate_version, coalesce(e.after, e.before), e.after IS NULL, e.occurred_at, NULL::timestamptz
FROM outbox e WHERE e.aggregate_type = 'customer' ORDER BY e.aggregate_id, e.aggregate_version DESC`
	selectLastOrders = `SELECT DISTINCT ON (e.aggregate_id) e.aggregate_version, coalesce(e.after, e.before), e.after IS NULL, e.occurred_at,
    (SELECT min(c.occurred_at) FROM outbox c WHERE c.aggregate_id = e.aggregate_id AND c.type = 'order.confirmed.v1')
FROM outbox e WHERE e.aggregate_type = 'order' ORDER BY e.aggregate_id, e.aggregate_version DESC`
)

// lastState is a row of these.
type lastState struct {
	version         int64
	entity          json.RawMessage
	deleted         bool
	at, confirmedAt *time.Time
}

// deletedAt is NULL while the entity lives.
func (l lastState) deletedAt() *time.Time {
	if l.deleted {
		return l.at
	}
	return nil
}

func (l lastState) updatedAt(t time.Time) time.Time {
	if l.deleted {
		return *l.at
	}
	return t
}

// fill copies the last states of entities into a table.
func (r *restore) fill(ctx context.Context, table string, columns []string, query string, row func(lastState) ([]any, error)) (total int64, err error) {
	if _, err := r.tx.Exec(ctx, `DECLARE last CURSOR FOR `+query); err != nil {
		return 0, err
	}
	for {
		page, err := r.tx.Query(ctx, fmt.Sprintf(`FETCH %d FROM last`, restorePage))
		if err != nil {
			return 0, err
		}
		rows, err := collect(page, func(p pgx.Row) ([]any, error) {
			var l lastState
			var entity []byte
			if err := p.Scan(&l.version, &entity, &l.deleted, &l.at, &l.confirmedAt); err != nil {
				return nil, err
			}
			l.entity = entity
			return row(l)
		})
		if err != nil {
			return 0, err
		}
		if len(rows) == 0 {
			_, err := r.tx.Exec(ctx, `CLOSE last`)
			return total, err
		}
		if _, err := r.tx.CopyFrom(ctx, r.name(table), columns, pgx.CopyFromRows(rows)); err != nil {
			return 0, err
		}
		total += int64(len(rows))
		if r.rows += int64(len(rows)); r.progress != nil {
			r.progress(r.rows, r.total)
		}
	}
}

var restoredCustomerColumns = []string{
	"id", "version", "name", "email", "email_canonical", "phone", "address", "status",
	"spending_limit_amount", "spending_limit_currency", "metadata", "created_at", "updated_at", "deleted_at",
}

func restoredCustomer(l lastState) ([]any, error) {
	var c domain.Customer
	if err := json.Unmarshal(l.entity, &c); err != nil {
		return nil, fmt.Errorf("read a customer: %w", err)
	}
	var amount, currency any
	if c.SpendingLimit != nil {
		amount, currency = c.SpendingLimit.Amount, c.SpendingLimit.Currency
	}
	return []any{
		uuidOf(c.ID), l.version, c.Name, c.Email, domain.CanonicalEmail(c.Email), c.Phone, jsonOf(c.Address, c.Address == nil), string(c.Status),
		amount, currency, jsonOf(c.Metadata, c.Metadata == nil), c.CreatedAt, l.updatedAt(c.UpdatedAt), l.deletedAt(),
	}, nil
}

var restoredOrderColumns = []string{
	"id", "version", "customer_id", "currency", "items", "total", "status", "reason", "created_at", "updated_at", "deleted_at", "confirmed_at",
}

func restoredOrder(l lastState) ([]any, error) {
	var o domain.Order
	if err := json.Unmarshal(l.entity, &o); err != nil {
		return nil, fmt.Errorf("read an order: %w", err)
	}
	return []any{
		uuidOf(o.ID), l.version, uuidOf(o.CustomerID), o.Currency, jsonOf(o.Items, false), o.Total, string(o.Status), o.Reason,
		o.CreatedAt, l.updatedAt(o.UpdatedAt), l.deletedAt(), l.confirmedAt,
	}, nil
}

// compare tells which rows differ from the live ones, in all but what is not in
// the event log.
func (r *restore) compare(ctx context.Context, table string) error {
	rows, err := r.tx.Query(ctx, `SELECT coalesce(l.id, r.id), coalesce(l.version, 0), coalesce(r.version, 0)
FROM `+table+` l FULL JOIN `+r.in(table)+` r ON r.id = l.id
WHERE to_jsonb(l) - 'confirmed_at' IS DISTINCT FROM to_jsonb(r) - 'confirmed_at' ORDER BY 1 LIMIT $1`, MaxRowDifferences)
	if err != nil {
		return err
	}
	found, err := collect(rows, func(row pgx.Row) (RowDifference, error) {
		d := RowDifference{Table: table}
		var id pgtype.UUID
		err := row.Scan(&id, &d.Live, &d.Restored)
		d.ID = id.Bytes
		return d, err
	})
	r.res.Differences = append(r.res.Differences, found...)
	return err
}
