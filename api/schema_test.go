package api

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"outflow/analytics"
	"outflow/domain"
)

// names returns the names of v's JSON, and of the objects in it, as "items[].sku".
func names(t *testing.T, v any) []string {
	var all map[string]any
	require.NoError(t, json.Unmarshal(mustJSON(v), &all))
	var list []string
	var walk func(prefix string, v any)
	walk = func(prefix string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, inner := range v {
				list = append(list, prefix+name)
				if name != "metadata" { // whose names are the callers'
					walk(prefix+name+".", inner)
				}
			}
		case []any:
			for _, inner := range v {
				walk(strings.TrimSuffix(prefix, ".")+"[].", inner)
			}
		}
	}
	walk("", all)
	slices.Sort(list)
	return slices.Compact(list)
}

// described returns the names that a schema has.
func described(all properties, name string) []string {
	var list []string
	var walk func(prefix, name string)
	walk = func(prefix, name string) {
		s := all[name]
		for name, p := range s.Properties {
			list = append(list, prefix+name)
			if p.Ref != "" {
				walk(prefix+name+".", strings.TrimPrefix(p.Ref, "#/components/schemas/"))
			}
			if p.Items != nil {
				walk(prefix+name+"[].", strings.TrimPrefix(p.Items.Ref, "#/components/schemas/"))
			}
		}
	}
	walk("", name)
	slices.Sort(list)
	return list
}

// TestSchemasAreWhatTheDomainHas keeps the documentation together with the
// types that it is about.
func TestSchemasAreWhatTheDomainHas(t *testing.T) {
	t.Parallel()
	all := properties(schemas())
	c, o := exampleCustomer, exampleOrder
	c.Address = &domain.Address{Line1: "a", Line2: "b", City: "c", Region: "d", PostalCode: "e", Country: "GB"}
	o.Reason = domain.ReasonCustomerClosed
	require.Equal(t, names(t, c), described(all, "Customer"))
	require.Equal(t, names(t, c.CustomerInput), described(all, "CustomerInput"))
	require.Equal(t, names(t, c), described(all, "CustomerReplacement"))
	require.Equal(t, names(t, c), described(all, "CustomerPatch"))
	require.Equal(t, names(t, o), described(all, "Order"))
	require.Equal(t, names(t, o.OrderInput), described(all, "OrderInput"))
	require.Equal(t, names(t, o), described(all, "OrderReplacement"))
	require.Equal(t, names(t, o), described(all, "OrderPatch"))

	var e map[string]any
	docs := customers(nil).docs
	require.NoError(t, json.Unmarshal(mustJSON(exampleEvent(&docs)), &e))
	require.Equal(t, slices.Sorted(maps.Keys(e)), sorted(all["Event"].Properties))

	for schema, example := range map[string]any{"Summary": exampleSummary, "TopCustomers": exampleTop, "Transactions": exampleTransactions, "LatestTransactions": latest{exampleTransactions.Transactions}} {
		require.Equal(t, names(t, example), described(all, schema))
	}
	series := exampleSeries
	series.Points = append(series.Points, analytics.Point{Orders: new(int64)})
	require.Equal(t, names(t, series), described(all, "Timeseries"))

	// What is always there is what the schema says is always there.
	var least map[string]any
	require.NoError(t, json.Unmarshal(mustJSON(domain.Customer{}), &least))
	require.Equal(t, slices.Sorted(maps.Keys(least)), all["Customer"].Required)
	least = nil
	require.NoError(t, json.Unmarshal(mustJSON(domain.Order{}), &least))
	require.Equal(t, slices.Sorted(maps.Keys(least)), all["Order"].Required)
}

// TestBodiesAreReadAsDescribed sends each property of the input schemas, one at
// a time: those that are nullable must take null, and none may be unknown.
func TestBodiesAreReadAsDescribed(t *testing.T) {
	t.Parallel()
	all := properties(schemas())
	for schema, m := range map[string]mode{"CustomerInput": creating, "CustomerReplacement": replacing, "CustomerPatch": merging,
		"OrderInput": creating, "OrderReplacement": replacing, "OrderPatch": merging} {
		for name, p := range all[schema].Properties {
			body := string(mustJSON(map[string]any{name: nil}))
			var err error
			if strings.HasPrefix(schema, "Customer") {
				_, err = decoded(customers(nil), m, body, &exampleCustomer)
			} else {
				_, err = decoded(orders(nil), m, body, &exampleOrder)
			}
			said := problemsOf2(err)
			require.NotContains(t, said, "body."+name+" is not known here", schema)
			if p.Nullable {
				for _, s := range said {
					require.False(t, strings.HasPrefix(s, "body."+name), "%s: %s", schema, s)
				}
			}
		}
	}
	for name, p := range all["ItemInput"].Properties {
		_, err := decoded(orders(nil), creating, string(mustJSON(map[string]any{"items": []any{map[string]any{name: nil}}})), nil)
		about := slices.ContainsFunc(problemsOf2(err), func(s string) bool { return strings.HasPrefix(s, "body.items[0]."+name+" ") })
		require.NotEqual(t, p.Nullable, about, name)
	}
}

func TestEveryCodeOfTheDomainHasAProblemType(t *testing.T) {
	t.Parallel()
	for code, status := range map[domain.Code]int{
		domain.CodeInvalid: 422, domain.CodeNotFound: 404, domain.CodeEmailTaken: 409, domain.CodeOpenOrders: 409, domain.CodeOrderState: 409,
		domain.CodeVersionMismatch: 412, domain.CodeWriteConflict: 409, domain.CodeUnavailable: 503, domain.CodeTooLarge: 413,
		"what nobody foresaw": 500,
	} {
		require.Equal(t, status, typeOf(code).status, code)
	}
	seen := map[string]bool{}
	for i := range problemTypes {
		require.False(t, seen[problemTypes[i].slug()])
		seen[problemTypes[i].slug()] = true
	}
}

// TestNamesAreRefusedByTheirPattern holds the pattern against what the domain
// says, for each character that either of them may care about.
func TestNamesAreRefusedByTheirPattern(t *testing.T) {
	t.Parallel()
	asGo := regexp.MustCompile(`\\u([0-9A-F]{4})`).ReplaceAllString(schemas()["CustomerInput"].Properties["name"].Pattern, `\x{$1}`)
	pattern := regexp.MustCompile(asGo)
	for r := range rune(0xffff) {
		if !utf8.ValidRune(r) {
			continue
		}
		for _, name := range []string{string(r), " " + string(r), "A" + string(r)} {
			in := domain.CustomerInput{Name: name, Email: "a@example.com"}
			require.Equal(t, in.Validate() == nil, pattern.MatchString(name), "%q", name)
		}
	}
}
