package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/outbox"
)

// plan is a node of what EXPLAIN says.
type plan struct {
	NodeType  string `json:"Node Type"`
	Relation  string `json:"Relation Name"`
	Index     string `json:"Index Name"`
	IndexCond string `json:"Index Cond"`
	Plans     []plan `json:"Plans"`
}

func (p plan) walk(f func(plan)) {
	f(p)
	for _, sub := range p.Plans {
		sub.walk(f)
	}
}

// A statement's plan outlives the size of the tables that it was made for, so
// every row has to be found by a condition on an index, also in the plans for
// tables that are empty or were never analyzed.
func TestNoPlanReadsAWholeTable(t *testing.T) {
	t.Parallel()
	pool, err := Open(t.Context(), pgtest.New(t).URL, 2)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := New(pool, Config{})
	lock := ` FOR NO KEY UPDATE OF `
	statements := map[string]string{
		"createCustomers": createCustomers.sql, "updateCustomers": updateCustomers.sql, "deleteCustomers": deleteCustomers.sql,
		"placeOrders": placeOrders.sql, "updateOrders": updateOrders.sql, "deleteOrders": deleteOrders.sql,
		"selectCustomer": selectCustomer, "lockCustomer": selectCustomer + lock + "c",
		"selectHasOpenOrders": selectHasOpenOrders, "selectCustomerExists": selectCustomerExists,
		"selectOrder": selectOrder, "lockOrder": selectOrder + lock + "o",
		"selectOrderAndCustomer": selectOrderAndCustomer, "lockOrderOfCustomer": selectOrderAndCustomer + lock + "o",
		"lockCustomersOfOrders": lockCustomersOfOrders, "lockOrders": lockOrders, "selectSpent": selectSpent, "decidePlaced": decidePlaced.sql,
		"selectTaken": selectTaken, "selectOwners": selectOwners, "lockOwners": lockOwners,
		"createCustomersKeyed": createCustomers.keyed, "updateOrdersKeyed": updateOrders.keyed,
		"selectKey": selectKey, "deleteKey": deleteKey, "deleteKeys": deleteKeys,
		"selectHistory": selectHistory, "selectHasHistory": selectHasHistory,
	}
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), "SET plan_cache_mode = force_generic_plan")
	require.NoError(t, err)
	check := func(when string) {
		for name, sql := range statements {
			if name == "selectTaken" && when == "empty tables" {
				continue // it is planned each time
			}
			_, err := conn.Exec(t.Context(), "PREPARE "+name+" AS "+sql)
			require.NoError(t, err, name)
			params := 0
			for strings.Contains(sql, fmt.Sprintf("$%d", params+1)) {
				params++
			}
			var text []byte
			require.NoError(t, conn.QueryRow(t.Context(),
				"EXPLAIN (FORMAT JSON) EXECUTE "+name+"("+strings.TrimSuffix(strings.Repeat("NULL,", params), ",")+")").Scan(&text), name)
			var plans []struct{ Plan plan }
			require.NoError(t, json.Unmarshal(text, &plans))
			plans[0].Plan.walk(func(p plan) {
				require.NotEqual(t, "Seq Scan", p.NodeType, "%s, %s: %s", name, when, text)
				if p.Index != "" {
					require.NotEmpty(t, p.IndexCond, "%s, %s, index %s: %s", name, when, p.Index, text)
				}
			})
			// Every event and key is looked up among the changes, not held against
			// each of them.
			if strings.Contains(sql, outbox.Append) {
				lookups := 1
				if strings.HasSuffix(name, "Keyed") {
					lookups++
				}
				require.Equal(t, lookups, strings.Count(string(text), "hashed SubPlan"), "%s, %s: %s", name, when, text)
			}
			_, err = conn.Exec(t.Context(), "DEALLOCATE "+name)
			require.NoError(t, err)
		}
	}
	check("empty tables")
	for i := range 1000 {
		c, err := s.CreateCustomer(t.Context(), domain.CustomerInput{Name: "x", Email: fmt.Sprintf("c%d@example.com", i)}, domain.Metadata{})
		require.NoError(t, err)
		_, err = s.PlaceOrder(t.Context(), domain.OrderInput{
			CustomerID: c.ID, Currency: "EUR", Items: []domain.Item{{SKU: "s", Quantity: 1}},
		}, domain.Metadata{})
		require.NoError(t, err)
	}
	check("tables that were never analyzed")
	_, err = conn.Exec(t.Context(), "ANALYZE")
	require.NoError(t, err)
	check("analyzed tables")
}
