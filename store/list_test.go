package store

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
)

const listed = 4000 // how many customers and orders the lists here have

var (
	listEpoch     = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	listDay       = func(n int) *time.Time { at := listEpoch.AddDate(0, 0, n); return &at }
	listStatuses  = []domain.CustomerStatus{domain.CustomerActive, domain.CustomerActive, domain.CustomerActive, domain.CustomerSuspended}
	listNames     = []string{"Ada", "ada", "Adam", "Zoe", "Łukasz", "a%b", "a_b", `a\b`, "Eve", "max"}
	someCustomers = map[string]CustomerFilter{
		"all":                {},
		"status":             {Status: domain.CustomerSuspended},
		"status of most":     {Status: domain.CustomerActive},
		"status of none":     {Status: domain.CustomerClosed},
		"email":              {Email: "C77@Example.com"},
		"no such email":      {Email: "nobody@example.com"},
		"name prefix":        {NamePrefix: "AD"},
		"name with %":        {NamePrefix: "a%"},
		"name with _":        {NamePrefix: "A_b"},
		"name with \\":       {NamePrefix: `a\`},
		"long name prefix":   {NamePrefix: "ada 12"},
		"created":            {Created: Period{From: listDay(10), Before: listDay(20)}},
		"created from":       {Created: Period{From: listDay(38)}},
		"updated":            {Updated: Period{From: listDay(105), Before: listDay(106)}},
		"updated before":     {Updated: Period{Before: listDay(101)}},
		"status and created": {Status: domain.CustomerSuspended, Created: Period{Before: listDay(5)}},
		"all of it": {Status: domain.CustomerActive, NamePrefix: "a", Created: Period{From: listDay(1), Before: listDay(39)},
			Updated: Period{From: listDay(101), Before: listDay(139)}},
	}
)

func someOrders(customer domain.ID) map[string]OrderFilter {
	least, most := int64(1000), int64(1100)
	return map[string]OrderFilter{
		"all":               {},
		"status":            {Status: domain.OrderStatusConfirmed},
		"status of most":    {Status: domain.OrderStatusPlaced},
		"customer":          {Customer: &customer},
		"no such customer":  {Customer: &domain.ID{1}},
		"customer, status":  {Customer: &customer, Status: domain.OrderStatusPlaced},
		"customer, created": {Customer: &customer, Created: Period{From: listDay(1)}},
		"created":           {Created: Period{From: listDay(10), Before: listDay(20)}},
		"updated":           {Updated: Period{From: listDay(105), Before: listDay(106)}},
		"total":             {MinTotal: &least, MaxTotal: &most},
		"least total":       {MinTotal: &most},
		"most total":        {MaxTotal: &least},
	}
}

// fill fills the tables, beside deleted rows, in an order that is not the one
// of any sort.
func fill(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	id := func() []byte {
		var id domain.ID
		for i := range id {
			id[i] = byte(r.Uint32())
		}
		return id[:]
	}
	at := func(day, i int) time.Time { return listDay(day).Add(time.Duration(i/3) * time.Minute) } // threes share a time
	var customers, orders [][]any
	for i := range listed {
		var deleted *time.Time
		if i%20 == 0 {
			deleted = listDay(150)
		}
		c := id()
		name := listNames[r.IntN(len(listNames))]
		if i%2 == 0 {
			name += fmt.Sprint(" ", i)
		}
		email := fmt.Sprintf("C%d@example.com", i)
		customers = append(customers, []any{c, 1, name, email, domain.CanonicalEmail(email), string(listStatuses[r.IntN(4)]), at(i/100, i), at(100+r.IntN(40), i), deleted})
		status := domain.OrderStatusPlaced
		if i%50 == 0 {
			status = domain.OrderStatusConfirmed
		}
		owner := c
		if i%4 == 0 {
			owner = customers[i%7][0].([]byte)
		}
		orders = append(orders, []any{id(), 1, owner, "EUR", "[]", int64(r.IntN(2000)), string(status), at(i/100, i), at(100+r.IntN(40), i), deleted})
	}
	_, err := pool.CopyFrom(t.Context(), pgx.Identifier{"customers"}, strings.Fields("id version name email email_canonical status created_at updated_at deleted_at"), pgx.CopyFromRows(customers))
	require.NoError(t, err)
	_, err = pool.CopyFrom(t.Context(), pgx.Identifier{"orders"}, strings.Fields("id version customer_id currency items total status created_at updated_at deleted_at"), pgx.CopyFromRows(orders))
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), "ANALYZE")
	require.NoError(t, err)
}

// listPlan is a node of what EXPLAIN ANALYZE says.
type listPlan struct {
	NodeType string     `json:"Node Type"`
	Rows     float64    `json:"Actual Rows"`
	Removed  float64    `json:"Rows Removed by Filter"`
	Plans    []listPlan `json:"Plans"`
}

// TestEverySortAndFilterHasAnIndex explains every list and count that the API
// can ask for, over filled tables. No table is read as a whole, only few rows are
// sorted (those that a filter's own index has found), and what has one rare thing
// is found without looking at what hasn't.
func TestEverySortAndFilterHasAnIndex(t *testing.T) {
	t.Parallel()
	pool, err := Open(t.Context(), pgtest.New(t).URL, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	fill(t, pool)
	var customer domain.ID
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT customer_id FROM orders WHERE deleted_at IS NULL GROUP BY 1 ORDER BY count(*) DESC LIMIT 1").Scan((*[16]byte)(&customer)))

	explained := 0
	explain := func(name string, q *query, sorted, exact bool) {
		var text []byte
		args := append([]any{pgx.QueryExecModeCacheDescribe}, q.args...)
		require.NoError(t, pool.QueryRow(t.Context(), "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) "+q.sql.String(), args...).Scan(&text), name)
		var plans []struct{ Plan listPlan }
		require.NoError(t, json.Unmarshal(text, &plans))
		var walk func(listPlan)
		walk = func(p listPlan) {
			require.NotEqual(t, "Seq Scan", p.NodeType, "%s: %s\n%s", name, q.sql.String(), text)
			if strings.Contains(p.NodeType, "Sort") {
				require.True(t, sorted, "%s is not sorted by its index: %s\n%s", name, q.sql.String(), text)
				require.Less(t, p.Plans[0].Rows, float64(listed)/10, "%s: %s\n%s", name, q.sql.String(), text)
			}
			if exact {
				require.Zero(t, p.Removed, "%s: %s\n%s", name, q.sql.String(), text)
			}
			for _, sub := range p.Plans {
				walk(sub)
			}
		}
		walk(plans[0].Plan)
		explained++
	}
	each := func(kind string, l *listing, filters map[string]func(*query)) {
		for name, filter := range filters {
			// What most have is found as well by another index.
			single := !strings.Contains(name, " and ") && !strings.Contains(name, ",") && !strings.Contains(name, "most") && name != "all of it"
			explain(kind+" counted, "+name, l.count(filter), false, single)
			for sort := range l.sorts {
				for _, descending := range []bool{false, true} {
					at := fmt.Sprintf("%s by %s (descending %v), %s", kind, sort, descending, name)
					p := Page{Sort: sort, Descending: descending, Limit: 20}
					explain(at, l.page(filter, p), name != "all", single && sort == SortCreated && slices.Contains([]string{"all", "status", "customer", "created"}, name))
					value := map[Sort]string{SortCreated: listDay(15).String()[:19] + "+00", SortUpdated: listDay(120).String()[:19] + "+00",
						SortName: "b", SortEmail: "c2", SortTotal: "1050"}[sort]
					p.After = &Place{Value: value, ID: domain.ID{7}}
					explain(at+", next page", l.page(filter, p), name != "all", false)
				}
			}
		}
	}
	filters := map[string]func(*query){}
	for name, f := range someCustomers {
		filters[name] = f.conditions
	}
	each("customers", &customerListing, filters)
	filters = map[string]func(*query){}
	for name, f := range someOrders(customer) {
		filters[name] = f.conditions
	}
	each("orders", &orderListing, filters)
	require.Greater(t, explained, 400)
}

// TestListsAreWhatTheyShouldBe reads every sort of every filter page by page,
// and holds it against the list that is made here of all rows.
func TestListsAreWhatTheyShouldBe(t *testing.T) {
	t.Parallel()
	pool, err := Open(t.Context(), pgtest.New(t).URL, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	fill(t, pool)
	s := New(pool, Config{})
	ctx := t.Context()
	everybody, err := s.Customers(ctx, CustomerFilter{}, Page{Limit: listed})
	require.NoError(t, err)
	require.Len(t, everybody.Items, listed*19/20)
	all, err := s.Orders(ctx, OrderFilter{}, Page{Limit: listed})
	require.NoError(t, err)

	within := func(p Period, at time.Time) bool {
		return (p.From == nil || !at.Before(*p.From)) && (p.Before == nil || at.Before(*p.Before))
	}
	for name, f := range someCustomers {
		want := slices.DeleteFunc(slices.Clone(everybody.Items), func(c domain.Customer) bool {
			return f.Status != "" && c.Status != f.Status || f.Email != "" && !strings.EqualFold(c.Email, f.Email) ||
				!strings.HasPrefix(strings.ToLower(c.Name), strings.ToLower(f.NamePrefix)) || !within(f.Created, c.CreatedAt) || !within(f.Updated, c.UpdatedAt)
		})
		holdAgainst(t, name, want, customerListing.sorts, func(p Page) (List[domain.Customer], error) { return s.Customers(ctx, f, p) },
			func(sort Sort, a, b domain.Customer) int {
				return map[Sort]int{SortCreated: a.CreatedAt.Compare(b.CreatedAt), SortUpdated: a.UpdatedAt.Compare(b.UpdatedAt),
					SortName: strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), SortEmail: strings.Compare(strings.ToLower(a.Email), strings.ToLower(b.Email))}[sort]
			}, func(c domain.Customer) domain.ID { return c.ID })
	}
	for name, f := range someOrders(all.Items[0].CustomerID) {
		want := slices.DeleteFunc(slices.Clone(all.Items), func(o domain.Order) bool {
			return f.Status != "" && o.Status != f.Status || f.Customer != nil && o.CustomerID != *f.Customer || f.MinTotal != nil && o.Total < *f.MinTotal ||
				f.MaxTotal != nil && o.Total > *f.MaxTotal || !within(f.Created, o.CreatedAt) || !within(f.Updated, o.UpdatedAt)
		})
		holdAgainst(t, name, want, orderListing.sorts, func(p Page) (List[domain.Order], error) { return s.Orders(ctx, f, p) },
			func(sort Sort, a, b domain.Order) int {
				return map[Sort]int{SortCreated: a.CreatedAt.Compare(b.CreatedAt), SortUpdated: a.UpdatedAt.Compare(b.UpdatedAt), SortTotal: int(a.Total - b.Total)}[sort]
			}, func(o domain.Order) domain.ID { return o.ID })
	}
}

func holdAgainst[T any](t *testing.T, name string, want []T, sorts map[Sort]sortKey, read func(Page) (List[T], error), compare func(Sort, T, T) int, id func(T) domain.ID) {
	t.Helper()
	for sort := range sorts {
		for _, descending := range []bool{false, true} {
			slices.SortFunc(want, func(a, b T) int {
				order := compare(sort, a, b)
				if order == 0 {
					order = strings.Compare(id(a).String(), id(b).String())
				}
				if descending {
					return -order
				}
				return order
			})
			got := []T{}
			p := Page{Sort: sort, Descending: descending, Limit: 333, Count: true}
			for {
				l, err := read(p)
				require.NoError(t, err)
				require.EqualValues(t, len(want), l.Total, name)
				got = append(got, l.Items...)
				if l.Next == nil {
					break
				}
				require.Len(t, l.Items, p.Limit)
				p.After = l.Next
			}
			require.Len(t, got, len(want), "%s by %s", name, sort)
			for i := range want {
				require.Equal(t, id(want[i]), id(got[i]), "%s by %s, descending %v, item %d", name, sort, descending, i)
			}
		}
	}
}

// TestPagesAreStableWhileOthersInsert inserts and deletes between the pages: what
// was there all the time is seen once.
func TestPagesAreStableWhileOthersInsert(t *testing.T) {
	t.Parallel()
	pool, err := Open(t.Context(), pgtest.New(t).URL, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := New(pool, Config{})
	create := func(name string) domain.Customer {
		c, err := s.CreateCustomer(t.Context(), domain.CustomerInput{Name: name, Email: strings.ToLower(name) + "@example.com"}, domain.Metadata{})
		require.NoError(t, err)
		return c
	}
	for sort := range customerListing.sorts {
		for _, descending := range []bool{false, true} {
			prefix := fmt.Sprintf("%s%v", strings.ReplaceAll(string(sort), "_", ""), descending)
			var want, got []string
			var doomed []domain.Customer
			for i := range 20 {
				want = append(want, create(fmt.Sprintf("%s-%02d-stays", prefix, i)).Name)
				doomed = append(doomed, create(fmt.Sprintf("%s-%02d-goes", prefix, i)))
			}
			p := Page{Sort: sort, Descending: descending, Limit: 3}
			for n := 0; ; n++ {
				l, err := s.Customers(t.Context(), CustomerFilter{NamePrefix: prefix}, p)
				require.NoError(t, err)
				for _, c := range l.Items {
					if strings.HasSuffix(c.Name, "stays") {
						got = append(got, c.Name)
					}
				}
				if l.Next == nil {
					break
				}
				p.After = l.Next
				if n < len(doomed) { // at either end, and around where the page ended
					create(fmt.Sprintf("%s-%02d-new", prefix, n))
					create(fmt.Sprintf("%s-%02d-newer", prefix, 19-n))
					require.NoError(t, s.DeleteCustomer(t.Context(), doomed[n].ID, Precondition{}, domain.Metadata{}))
				}
			}
			if descending {
				slices.Reverse(got)
			}
			require.Equal(t, want, got, prefix)
		}
	}
}
