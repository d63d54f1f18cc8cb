package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/store"
	"outflow/verify"
)

func TestRestoresInWords(t *testing.T) {
	t.Parallel()
	res := store.Restored{Customers: 3, Orders: 2, Differences: []store.RowDifference{{Table: "orders"}}}
	require.Equal(t, "3 customers and 2 orders restored, 1 differ", restored(res, false))
	require.Equal(t, "3 customers and 2 orders restored", restored(store.Restored{Customers: 3, Orders: 2}, true))
	for range store.MaxRowDifferences {
		res.Differences = append(res.Differences, store.RowDifference{Table: "customers"})
	}
	require.Equal(t, "3 customers and 2 orders restored, 1001 or more differ", restored(res, false))
}

func TestDifferencesInWords(t *testing.T) {
	t.Parallel()
	for want, d := range map[string]verify.Difference{
		"missing  customer a: version 3 in PostgreSQL, not in the replica":                        {Kind: verify.Missing, ID: "a", Source: 3},
		"stale    customer a: version 3 in PostgreSQL, version 2 in the replica; repaired":        {Kind: verify.Stale, ID: "a", Source: 3, Replica: 2, Repaired: true},
		"ahead    customer a: version 3 in PostgreSQL, version 8 in the replica":                  {Kind: verify.Ahead, ID: "a", Source: 3, Replica: 8},
		"extra    customer \uFFFD[2J: not in PostgreSQL, version 1 in the replica":                {Kind: verify.Extra, ID: "\x1b[2J", Replica: 1},
		"extra    customer {\"$numberInt\":\"42\"}: not in PostgreSQL, no version in the replica": {Kind: verify.Extra, ID: `{"$numberInt":"42"}`},
		"corrupt  customer a: version 3 in both, with other content":                              {Kind: verify.Corrupt, ID: "a", Source: 3, Replica: 3},
		"corrupt  customer a: version 3 in PostgreSQL, no version in the replica":                 {Kind: verify.Corrupt, ID: "a", Source: 3},
	} {
		d.Type = "customer"
		require.Equal(t, want, differing(d))
	}
}
