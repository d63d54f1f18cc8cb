package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"outflow/domain"
	"outflow/outbox"
)

const (
	// importLockTimeout is how long creations of an import wait for a lock that
	// somebody holds, before the one that needs it is looked for.
	importLockTimeout = "1s"

	// importTimeout bounds the search: what isn't done by then is given up.
	importTimeout = 30 * time.Second
)

// bulk is what creations of one kind need to be done many at a time: COPY
// into the table and into the outbox, in one transaction.
type bulk[T, In any] struct {
	aggregate string
	decide    func(domain.ID, In, time.Time) (domain.Change[T], error)
	set       func(*change, *T)

	table   string
	columns []string
	row     func(*change) []any
	order   func(a, b change) int // in which rows are inserted everywhere

	// check finds the changes that what is in the database forbids, and sees to
	// it that no others come to be forbidden before the transaction ends, or
	// else that inserting them fails. Without lock it only looks.
	check func(ctx context.Context, q querier, lock bool, changes []change) (refused map[domain.ID]error, err error)
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

var bulkCustomers = bulk[domain.Customer, domain.CustomerInput]{
	aggregate: domain.AggregateCustomer,
	decide:    domain.CreateCustomer,
	set:       func(c *change, t *domain.Customer) { c.customer = t },
	table:     "customers",
	columns: []string{"id", "version", "name", "email", "email_canonical", "phone", "address", "status",
		"spending_limit_amount", "spending_limit_currency", "metadata", "created_at", "updated_at"},
	row: func(ch *change) []any {
		c := ch.customer
		var amount, currency any
		if l := c.SpendingLimit; l != nil {
			amount, currency = l.Amount, l.Currency
		}
		return []any{uuidOf(c.ID), c.Version, c.Name, c.Email, domain.CanonicalEmail(c.Email), c.Phone,
			jsonOf(c.Address, c.Address == nil), string(c.Status), amount, currency,
			jsonOf(c.Metadata, c.Metadata == nil), timeOf(c.CreatedAt), timeOf(c.UpdatedAt)}
	},
	order: func(a, b change) int { return strings.Compare(emailOf(a), emailOf(b)) },
	check: checkEmails,
}

var bulkOrders = bulk[domain.Order, domain.OrderInput]{
	aggregate: domain.AggregateOrder,
	decide:    domain.PlaceOrder,
	set:       func(c *change, t *domain.Order) { c.order = t },
	table:     "orders",
	columns:   []string{"id", "version", "customer_id", "currency", "items", "total", "status", "reason", "created_at", "updated_at"},
	row: func(ch *change) []any {
		o := ch.order
		return []any{uuidOf(o.ID), o.Version, uuidOf(o.CustomerID), o.Currency, jsonOf(o.Items, false), o.Total,
			string(o.Status), o.Reason, timeOf(o.CreatedAt), timeOf(o.UpdatedAt)}
	},
	order: func(a, b change) int { return 0 },
	check: checkOwners,
}

// selectTaken looks emails up one by one: asked for all of them at once,
// PostgreSQL may read all of another index of live rows instead. It may do so
// even here when the table is empty, so the plan is not kept.
const selectTaken = `SELECT taken.email_canonical FROM unnest($1::text[]) AS e (email), LATERAL (
    SELECT c.email_canonical FROM customers c WHERE c.email_canonical = e.email AND c.deleted_at IS NULL LIMIT 1
) AS taken`

// checkEmails refuses emails that live customers have, and those that come
// again. Nothing is locked: when somebody takes an email meanwhile, its unique
// index makes the COPY fail, and all is checked again.
func checkEmails(ctx context.Context, q querier, _ bool, changes []change) (map[domain.ID]error, error) {
	rows, err := q.Query(ctx, selectTaken, pgx.QueryExecModeCacheDescribe, column(changes, emailOf))
	if err != nil {
		return nil, err
	}
	emails, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	taken := make(map[string]bool, len(changes))
	for _, email := range emails {
		taken[email] = true
	}
	refused := map[domain.ID]error{}
	for _, c := range changes {
		if email := emailOf(c); taken[email] {
			refused[c.id] = emailTaken()
		} else {
			taken[email] = true
		}
	}
	return refused, nil
}

// What comes out of the lock is the row as it is then, so the condition on it
// is held against that.
const (
	selectOwners = `SELECT c.id, c.deleted_at IS NOT NULL FROM customers c WHERE c.id = ANY ($1::uuid[]) ORDER BY c.id`
	lockOwners   = selectOwners + ` FOR SHARE`
)

// checkOwners refuses orders without a live customer, and locks the customers.
func checkOwners(ctx context.Context, q querier, lock bool, changes []change) (map[domain.ID]error, error) {
	sql := selectOwners
	if lock {
		sql = lockOwners
	}
	ids := make([]domain.ID, len(changes))
	for i, c := range changes {
		ids[i] = c.order.CustomerID
	}
	rows, err := q.Query(ctx, sql, uuidsOf(ids))
	if err != nil {
		return nil, err
	}
	live := map[domain.ID]bool{}
	var id [16]byte
	var deleted bool
	if _, err := pgx.ForEachRow(rows, []any{&id, &deleted}, func() error { live[id] = !deleted; return nil }); err != nil {
		return nil, err
	}
	refused := map[domain.ID]error{}
	for _, c := range changes {
		if !live[c.order.CustomerID] {
			refused[c.id] = noOwner()
		}
	}
	return refused, nil
}

// prepare decides every creation. A change is usable where its error is nil.
func (b *bulk[T, In]) prepare(s *Store, ins []In, m domain.Metadata) (changes []change, states []T, errs []error) {
	changes, states, errs = make([]change, len(ins)), make([]T, len(ins)), make([]error, len(ins))
	for i, in := range ins {
		d, err := b.decide(s.cfg.NewID(), in, s.cfg.Now())
		if err == nil {
			states[i] = *d.After
			changes[i], err = newChange(s, b.aggregate, idOf(d.After), d, m)
			b.set(&changes[i], d.After)
		}
		errs[i] = err
	}
	return changes, states, errs
}

func idOf(entity any) domain.ID {
	switch e := entity.(type) {
	case *domain.Customer:
		return e.ID
	case *domain.Order:
		return e.ID
	}
	panic(fmt.Sprintf("store: %T has no id", entity))
}

// write creates what can be created, and returns the others with what forbids
// them; with all, it creates either all or nothing. A record of an idempotency
// key is stored with them.
func (b *bulk[T, In]) write(ctx context.Context, s *Store, changes []change, all bool, r *record) (refused map[domain.ID]error, err error) {
	err = retry(ctx, func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if !all {
				if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true)`, importLockTimeout); err != nil {
					return err
				}
			}
			if refused, err = b.check(ctx, tx, true, changes); err != nil || all && len(refused) > 0 {
				return err
			}
			good := slices.DeleteFunc(slices.Clone(changes), func(c change) bool { return refused[c.id] != nil })
			var events []domain.Event
			for _, c := range good {
				events = append(events, c.events...)
			}
			slices.SortStableFunc(good, b.order)
			_, err := tx.CopyFrom(ctx, pgx.Identifier{b.table}, b.columns,
				pgx.CopyFromSlice(len(good), func(i int) ([]any, error) { return b.row(&good[i]), nil }))
			if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == uniqueViolation && pg.ConstraintName == liveEmail {
				return fmt.Errorf("%w: %w", errMoved, err) // checking again finds whose it is
			}
			if err != nil {
				return err
			}
			if err := outbox.Copy(ctx, tx, events); err != nil || r == nil {
				return err
			}
			_, err = tx.Exec(ctx, insertKey, r.args()...)
			return err
		})
	})
	return refused, err
}

// CreateCustomers creates all of the customers or, when it returns an error,
// none. CodeInvalid comes with every problem of every customer; the paths
// begin with its index, as [2].email. When all that is wrong is that others
// have their emails, the code is CodeEmailTaken.
func (s *Store) CreateCustomers(ctx context.Context, ins []domain.CustomerInput, m domain.Metadata) ([]domain.Customer, error) {
	all, err := bulkCustomers.create(ctx, s, ins, m)
	return all, wrap("create customers", err)
}

// PlaceOrders places all of the orders or, when it returns an error, none.
// CodeInvalid comes with every problem of every order; the paths begin with
// its index, as [2].customer_id.
func (s *Store) PlaceOrders(ctx context.Context, ins []domain.OrderInput, m domain.Metadata) ([]domain.Order, error) {
	all, err := bulkOrders.create(ctx, s, ins, m)
	return all, wrap("place orders", err)
}

func (b *bulk[T, In]) create(ctx context.Context, s *Store, ins []In, m domain.Metadata) ([]T, error) {
	changes, states, errs := b.prepare(s, ins, m)
	usable := slices.Collect(func(yield func(change) bool) {
		for i, c := range changes {
			if errs[i] == nil && !yield(c) {
				return
			}
		}
	})
	var refused map[domain.ID]error
	var err error
	key := s.keyOf(ctx)
	if len(usable) == len(changes) {
		refused, err = b.write(ctx, s, changes, true, key.record(states))
	} else {
		refused, err = b.check(ctx, s.pool, false, usable)
	}
	if err != nil {
		return nil, err
	}
	for i, c := range changes {
		if errs[i] == nil {
			errs[i] = refused[c.id]
		}
	}
	if err := together(errs); err != nil {
		return nil, err
	}
	key.stored()
	return states, nil
}

// together makes one error of those of the single entities.
func together(errs []error) error {
	var one *domain.Error
	for i, err := range errs {
		if err == nil {
			continue
		}
		e, ok := errors.AsType[*domain.Error](err)
		if !ok {
			return err
		}
		if one == nil {
			one = &domain.Error{Code: e.Code, Message: e.Message}
		}
		if e.Code == domain.CodeInvalid {
			one.Code, one.Message = e.Code, e.Message
		}
		at := fmt.Sprintf("[%d]", i)
		for _, f := range e.Fields {
			one.Fields = append(one.Fields, domain.Field{Path: at + "." + f.Path, Message: f.Message})
		}
		if e.Fields == nil {
			one.Fields = append(one.Fields, domain.Field{Path: at, Message: e.Message})
		}
	}
	if one == nil {
		return nil
	}
	return one
}

// Imported is what became of one entity of an import.
type Imported struct {
	ID  domain.ID // of what was created
	Err error
}

// ImportCustomers creates those of the customers that can be created, and says
// for each what became of it; nobody's failure is anyone else's. The errors are
// those of CreateCustomer. With validateOnly nothing is created.
func (s *Store) ImportCustomers(ctx context.Context, ins []domain.CustomerInput, validateOnly bool, m domain.Metadata) []Imported {
	return bulkCustomers.load(ctx, s, ins, validateOnly, m)
}

// ImportOrders is for orders what ImportCustomers is for customers.
func (s *Store) ImportOrders(ctx context.Context, ins []domain.OrderInput, validateOnly bool, m domain.Metadata) []Imported {
	return bulkOrders.load(ctx, s, ins, validateOnly, m)
}

func (b *bulk[T, In]) load(ctx context.Context, s *Store, ins []In, validateOnly bool, m domain.Metadata) []Imported {
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	doing := "import " + b.table
	changes, _, errs := b.prepare(s, ins, m)
	all := make([]Imported, len(ins))
	index := make(map[domain.ID]int, len(ins))
	var usable []change
	for i, c := range changes {
		if all[i].Err = wrap(doing, errs[i]); errs[i] == nil {
			index[c.id] = i
			usable = append(usable, c)
		}
	}
	settle := func(some []change, refused map[domain.ID]error, err error) {
		for _, c := range some {
			result := &all[index[c.id]]
			if result.Err = wrap(doing, cmp.Or(err, refused[c.id])); result.Err == nil && !validateOnly {
				result.ID = c.id
			}
		}
	}
	if validateOnly {
		refused, err := b.check(ctx, s.pool, false, usable)
		settle(usable, refused, err)
		return all
	}
	var load func(some []change)
	load = func(some []change) {
		if len(some) == 0 {
			return
		}
		refused, err := b.write(ctx, s, some, false, nil)
		if err != nil && len(some) > 1 && rolledBack(err) && ctx.Err() == nil {
			// One of them stands in the way of all. It is found by halves, so that
			// it alone fails.
			load(some[:len(some)/2])
			load(some[len(some)/2:])
			return
		}
		settle(some, refused, err)
	}
	load(usable)
	return all
}

func emailTaken() error {
	return &domain.Error{
		Code: domain.CodeEmailTaken, Message: "another customer has this email",
		Fields: []domain.Field{{Path: "email", Message: "is the email of another customer"}},
	}
}

func noOwner() error {
	return &domain.Error{
		Code: domain.CodeInvalid, Message: "the input is not valid",
		Fields: []domain.Field{{Path: "customer_id", Message: "must be the id of an existing customer"}},
	}
}
