package store

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"outflow/domain"
)

// Sort is what a list is ordered by. Items that are equal in it are ordered by
// their ids.
type Sort string

// The sorts. Customers have all but SortTotal, orders have the first two and
// SortTotal.
const (
	SortCreated Sort = "created_at"
	SortUpdated Sort = "updated_at"
	SortName    Sort = "name"  // without regard to case, as the database's locale has it
	SortEmail   Sort = "email" // without regard to case
	SortTotal   Sort = "total"
)

// Page says which part of a list to read, and in which order.
type Page struct {
	Limit      int    // the most items; 50 when 0
	Sort       Sort   // SortCreated when empty
	Descending bool   // the other way round
	After      *Place // the last item of the page before; nil for the first page
	Count      bool   // whether to count what the whole list has
}

// Place is where an item is in a list. It stays what it is when others are
// inserted or deleted before it.
type Place struct {
	Value string // what the item is sorted by, as the database writes it
	ID    domain.ID
}

const defaultLimit = 50

func (p Page) limit() int {
	if p.Limit <= 0 {
		return defaultLimit
	}
	return p.Limit
}

// List is one page.
type List[T any] struct {
	Items []T    // never nil
	Next  *Place // Page.After of the next page; nil when this is the last one
	Total int64  // how many the whole list has, if Page.Count asks for it
}

// Period is the time from one moment on and before another one; nil leaves its
// end open.
type Period struct{ From, Before *time.Time }

// CustomerFilter selects the customers that have all of what is set.
type CustomerFilter struct {
	Status           domain.CustomerStatus
	Email            string // without regard to case
	NamePrefix       string // without regard to case
	Created, Updated Period
}

// OrderFilter selects the orders that have all of what is set.
type OrderFilter struct {
	Customer           *domain.ID
	Status             domain.OrderStatus
	Created, Updated   Period
	MinTotal, MaxTotal *int64 // both included
}

// listing is a kind of list.
type listing struct {
	columns, from string
	alias         string
	sorts         map[Sort]sortKey
}

// sortKey is an expression that an index is sorted by, followed by the id
// unless no two items have the same.
type sortKey struct {
	expr, kind string
	unique     bool
}

// Every sort and every filter has an index in migrations/00002.
var (
	customerListing = listing{columns: customerColumns, from: "customers c", alias: "c", sorts: map[Sort]sortKey{
		SortCreated: {expr: "c.created_at", kind: "timestamptz"},
		SortUpdated: {expr: "c.updated_at", kind: "timestamptz"},
		SortName:    {expr: `lower(c.name) COLLATE "C"`, kind: "text"},
		SortEmail:   {expr: "c.email_canonical", kind: "text", unique: true},
	}}
	orderListing = listing{columns: orderColumns, from: "orders o", alias: "o", sorts: map[Sort]sortKey{
		SortCreated: {expr: "o.created_at", kind: "timestamptz"},
		SortUpdated: {expr: "o.updated_at", kind: "timestamptz"},
		SortTotal:   {expr: "o.total", kind: "bigint"},
	}}
)

// query is a statement in the making.
type query struct {
	sql  strings.Builder
	args []any
}

// add appends SQL in which each ? stands for the next of the arguments.
func (q *query) add(sql string, args ...any) {
	for _, arg := range args {
		before, after, _ := strings.Cut(sql, "?")
		q.args = append(q.args, arg)
		q.sql.WriteString(before + "$" + strconv.Itoa(len(q.args)))
		sql = after
	}
	q.sql.WriteString(sql)
}

func (q *query) period(column string, p Period) {
	if p.From != nil {
		q.add(" AND "+column+" >= ?", timeOf(*p.From))
	}
	if p.Before != nil {
		q.add(" AND "+column+" < ?", timeOf(*p.Before))
	}
}

func (f CustomerFilter) conditions(q *query) {
	if f.Status != "" {
		q.add(" AND c.status = ?", string(f.Status))
	}
	if f.Email != "" {
		q.add(" AND c.email_canonical = ?", domain.CanonicalEmail(f.Email))
	}
	if f.NamePrefix != "" {
		q.add(` AND lower(c.name) COLLATE "C" LIKE lower(?)`, likeEscapes.Replace(f.NamePrefix)+"%")
	}
	q.period("c.created_at", f.Created)
	q.period("c.updated_at", f.Updated)
}

var likeEscapes = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

func (f OrderFilter) conditions(q *query) {
	if f.Customer != nil {
		q.add(" AND o.customer_id = ?", uuidOf(*f.Customer))
	}
	if f.Status != "" {
		q.add(" AND o.status = ?", string(f.Status))
	}
	q.period("o.created_at", f.Created)
	q.period("o.updated_at", f.Updated)
	if f.MinTotal != nil {
		q.add(" AND o.total >= ?", *f.MinTotal)
	}
	if f.MaxTotal != nil {
		q.add(" AND o.total <= ?", *f.MaxTotal)
	}
}

// page makes the statement that reads a page, and after each item what it is
// sorted by.
func (l *listing) page(filter func(*query), p Page) *query {
	key, ok := l.sorts[p.Sort]
	if !ok {
		key = l.sorts[SortCreated]
	}
	than, direction := ">", ""
	if p.Descending {
		than, direction = "<", " DESC"
	}
	id := l.alias + ".id"
	q := &query{}
	q.add("SELECT " + l.columns + ", (" + key.expr + ")::text FROM " + l.from + " WHERE " + l.alias + ".deleted_at IS NULL")
	filter(q)
	switch {
	case p.After == nil:
	case key.unique:
		q.add(" AND "+key.expr+" "+than+" ?", p.After.Value)
	default:
		q.add(" AND ("+key.expr+", "+id+") "+than+" (?::text::"+key.kind+", ?)", p.After.Value, uuidOf(p.After.ID))
	}
	q.add(" ORDER BY " + key.expr + direction)
	if !key.unique {
		q.add(", " + id + direction)
	}
	q.add(" LIMIT ?", p.limit()+1)
	return q
}

func (l *listing) count(filter func(*query)) *query {
	q := &query{}
	q.add("SELECT count(*) FROM " + l.from + " WHERE " + l.alias + ".deleted_at IS NULL")
	filter(q)
	return q
}

// readList reads one page of a list. The statements are planned each time with
// what they ask for: which index is best depends on how many have the status,
// and a plan that was made for any status would be wrong for some.
func readList[T any](ctx context.Context, s *Store, l *listing, filter func(*query), p Page, scan func(pgx.Row, ...any) (T, error), id func(T) domain.ID) (List[T], error) {
	q := l.page(filter, p)
	rows, err := s.pool.Query(ctx, q.sql.String(), append([]any{pgx.QueryExecModeCacheDescribe}, q.args...)...)
	if err != nil {
		return List[T]{}, err
	}
	var last, value string
	read := 0
	items, err := collect(rows, func(row pgx.Row) (T, error) {
		item, err := scan(row, &value)
		if read++; read <= p.limit() {
			last = value
		}
		return item, err
	})
	if err != nil {
		return List[T]{}, err
	}
	page := List[T]{Items: items}
	// One item more was read, only to learn whether there is one.
	if len(items) > p.limit() {
		page.Items = items[:p.limit()]
		page.Next = &Place{Value: last, ID: id(page.Items[p.limit()-1])}
	}
	if p.Count {
		q := l.count(filter)
		err = s.pool.QueryRow(ctx, q.sql.String(), append([]any{pgx.QueryExecModeCacheDescribe}, q.args...)...).Scan(&page.Total)
	}
	return page, err
}

// Customers lists customers, page by page. The place of a customer in the order
// of SortUpdated changes when the customer does.
func (s *Store) Customers(ctx context.Context, f CustomerFilter, p Page) (List[domain.Customer], error) {
	l, err := readList(ctx, s, &customerListing, f.conditions, p, scanCustomer, func(c domain.Customer) domain.ID { return c.ID })
	return l, wrap("list customers", err)
}

// Orders lists orders, page by page. The place of an order in the order of
// SortUpdated and SortTotal changes when the order does.
func (s *Store) Orders(ctx context.Context, f OrderFilter, p Page) (List[domain.Order], error) {
	scan := func(row pgx.Row, extra ...any) (domain.Order, error) {
		var o orderRow
		err := row.Scan(append(o.targets(), extra...)...)
		return o.order(), err
	}
	l, err := readList(ctx, s, &orderListing, f.conditions, p, scan, func(o domain.Order) domain.ID { return o.ID })
	return l, wrap("list orders", err)
}

const selectCustomerExists = `SELECT EXISTS (SELECT FROM customers c WHERE c.id = $1 AND c.deleted_at IS NULL)`

// OrdersOf lists the orders of a customer, as [Store.Orders] does. It returns
// CodeNotFound if the customer doesn't exist or was deleted.
func (s *Store) OrdersOf(ctx context.Context, customer domain.ID, f OrderFilter, p Page) (List[domain.Order], error) {
	var exists bool
	if err := s.pool.QueryRow(ctx, selectCustomerExists, uuidOf(customer)).Scan(&exists); err != nil {
		return List[domain.Order]{}, wrap("list the orders of a customer", err)
	}
	if !exists {
		return List[domain.Order]{}, notFound("customer")
	}
	f.Customer = &customer
	return s.Orders(ctx, f, p)
}

const selectSecret = `SELECT value FROM secrets WHERE name = $1`

// Secret returns a random value of 32 bytes that all processes on one database
// share. Migrations make them.
func (s *Store) Secret(ctx context.Context, name string) ([]byte, error) {
	var value []byte
	err := s.pool.QueryRow(ctx, selectSecret, name).Scan(&value)
	return value, wrap("read a secret", err)
}
