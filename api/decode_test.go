package api

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"outflow/domain"
)

// problemsOf returns what is told of an error, as "location message".
func problemsOf(err error) []string {
	var all []string
	for _, f := range refused(err).errors {
		all = append(all, f.Location+" "+f.Message)
	}
	return all
}

func decoded[T, In any](e entity[T, In], m mode, body string, current *T) (In, error) {
	var in In
	if current != nil {
		in = e.input(current)
	}
	v, err := parse(body)
	if err != nil {
		return in, err
	}
	if err := e.read(m, &v, &in, current); err != nil {
		return in, err
	}
	return in, e.validate(in)
}

func TestAllProblemsOfACustomerAtOnce(t *testing.T) {
	t.Parallel()
	e := customers(nil)
	for body, want := range map[string][]string{
		`{}`:                               {"body.name is required", "body.email is required"},
		`[]`:                               {"body must be an object"},
		`null`:                             {"body must be an object"},
		`"x"`:                              {"body must be an object"},
		`{"name":1,"email":null}`:          {"body.name must be a string", "body.email is required"},
		`{"name":" ","email":"ada"}`:       {"body.name must not be blank", "body.email must be an email address, such as ada@example.com"},
		`{"name":"A\u0000","email":"a@b"}`: {"body.name must not contain control characters"},
		`{"name":"A","email":"a@b","x":1,"y y":2,"id":"1","version":1,"created_at":null,"updated_at":0}`: {
			"body.x is not known here", "body has a property that is not known here", "body.id is read-only and can't be set",
			"body.version is read-only and can't be set", "body.created_at is read-only and can't be set", "body.updated_at is read-only and can't be set"},
		`{"name":"A","email":"a@b","total":1}`: {"body.total is not known here"},
		`{"email":"x","address":{"line1":1,"country":"Germany","zip":"1"},"phone":[],"status":"gone"}`: {
			"body.address.line1 must be a string", "body.address.zip is not known here", "body.phone must be a string", "body.name is required",
			"body.email must be an email address, such as ada@example.com", "body.address.country must be an ISO 3166-1 alpha-2 code, such as DE",
			"body.status must be active, suspended or closed"},
		`{"name":"A","email":"a@b","address":"x","metadata":[1],"spending_limit":5}`: {
			"body.address must be an object", "body.metadata must be an object", "body.spending_limit must be an object"},
		`{"name":"A","email":"a@b","metadata":{"a":1,"b":{},"":"x"}}`:                                  {"body.metadata must have strings as values", "body.metadata must not have an empty name"},
		`{"name":"A","email":"a@b","spending_limit":{}}`:                                               {"body.spending_limit.amount is required", "body.spending_limit.currency must be an ISO 4217 code, such as EUR"},
		`{"name":"A","email":"a@b","spending_limit":{"amount":1.5,"currency":"eur"}}`:                  {"body.spending_limit.amount must be an integer", "body.spending_limit.currency must be an ISO 4217 code, such as EUR"},
		`{"name":"A","email":"a@b","spending_limit":{"amount":-1,"currency":"EUR"}}`:                   {"body.spending_limit.amount must be between 0 and 100000000000000 minor units"},
		`{"name":"A","email":"a@b","spending_limit":{"amount":99999999999999999999,"currency":"EUR"}}`: {"body.spending_limit.amount is out of range"},
		`{"name":"A","email":"a@b","spending_limit":{"amount":1e400,"currency":"EUR"}}`:                {"body.spending_limit.amount is out of range"},
		`{"name":"A","email":"a@b","spending_limit":{"amount":"5","currency":5}}`:                      {"body.spending_limit.amount must be an integer", "body.spending_limit.currency must be a string"},
	} {
		_, err := decoded(e, creating, body, nil)
		require.ElementsMatch(t, want, problemsOf(err), body)
	}
	in, err := decoded(e, creating, `{"name":"A","email":"a@b","spending_limit":{"amount":1.5e3,"currency":"EUR"}}`, nil)
	require.NoError(t, err)
	require.EqualValues(t, 1500, in.SpendingLimit.Amount, "an integer, as JSON Schema has it")
}

func TestAllProblemsOfAnOrderAtOnce(t *testing.T) {
	t.Parallel()
	e := orders(nil)
	const id = `"customer_id":"0193a5c2-7c00-7a52-8f3e-5d1c9b7e4a60","currency":"EUR"`
	item := `{"sku":"a","quantity":1,"unit_price":1}`
	for body, want := range map[string][]string{
		`{}`: {"body.customer_id is required", "body.currency must be an ISO 4217 code, such as EUR", "body.items must have at least one item"},
		`{"customer_id":"x","currency":1,"items":{}}`:   {"body.customer_id must be a UUID", "body.currency must be a string", "body.items must be an array"},
		`{"customer_id":7,"currency":"EUR","items":[]}`: {"body.customer_id must be a UUID", "body.items must have at least one item"},
		`{` + id + `,"items":[` + item + `,1,null,{},{"sku":2,"quantity":"2","unit_price":true,"price":3}]}`: {
			"body.items[1] must be an object", "body.items[2] must be an object",
			"body.items[3].sku is required", "body.items[3].quantity is required", "body.items[3].unit_price is required",
			"body.items[4].sku must be a string", "body.items[4].quantity must be an integer", "body.items[4].unit_price must be an integer", "body.items[4].price is not known here"},
		`{` + id + `,"items":[{"sku":"a","quantity":0,"unit_price":-1}]}`: {
			"body.items[0].quantity must be between 1 and 1000000", "body.items[0].unit_price must be between 0 and 100000000000000 minor units"},
		`{` + id + `,"items":[{"sku":null,"quantity":null,"unit_price":null}]}`: {
			"body.items[0].sku is required", "body.items[0].quantity is required", "body.items[0].unit_price is required"},
		`{` + id + `,"items":[` + item + `],"total":1,"status":"placed","reason":null}`: {
			"body.total is read-only and can't be set", "body.status is read-only and can't be set", "body.reason is read-only and can't be set"},
		`{` + id + `,"items":[` + item + strings.Repeat(","+item, domain.MaxItems) + `],"x":1}`: {"body.items must have at most 200 items", "body.x is not known here"},
	} {
		_, err := decoded(e, creating, body, nil)
		require.ElementsMatch(t, want, problemsOf(err), body)
	}
}

func TestAReplacementMayHoldWhatGetShows(t *testing.T) {
	t.Parallel()
	in, err := decoded(orders(nil), replacing, string(mustJSON(exampleOrder)), nil)
	require.NoError(t, err)
	require.Equal(t, exampleOrderInput, in)
	rejected := exampleOrder
	rejected.Reason = domain.ReasonCustomerClosed
	in, err = decoded(orders(nil), replacing, string(mustJSON(rejected)), nil)
	require.NoError(t, err)
	require.Equal(t, exampleOrderInput, in)
	c, err := decoded(customers(nil), replacing, string(mustJSON(exampleCustomer)), nil)
	require.NoError(t, err)
	require.Equal(t, exampleCustomerInput, c)
}

func TestAPatchMayRepeatReadOnlyProperties(t *testing.T) {
	t.Parallel()
	e := orders(nil)
	current := exampleOrder
	current.Reason = domain.ReasonCustomerClosed
	in, err := decoded(e, merging, string(mustJSON(current)), &current)
	require.NoError(t, err)
	require.Equal(t, current.OrderInput, in)
	for _, body := range []string{`{"id":"0193a5c2-7c00-7a52-8f3e-5d1c9b7e4a60"}`, `{"id":7}`, `{"id":null}`, `{"version":"2"}`, `{"version":3}`, `{"total":3300.5}`,
		`{"total":null}`, `{"status":"fulfilled"}`, `{"reason":null}`, `{"reason":""}`, `{"created_at":"2026-12-08"}`, `{"updated_at":{}}`} {
		_, err := decoded(e, merging, body, &current)
		require.Len(t, problemsOf(err), 1, body)
		require.Contains(t, problemsOf(err)[0], "is read-only and can't be changed", body)
	}
	current.Reason = ""
	for _, body := range []string{`{"reason":null}`, `{"id":"` + strings.ToUpper(current.ID.String()) + `"}`, `{"created_at":"2026-12-08T10:30:15.125+01:00"}`} {
		_, err := decoded(e, merging, body, &current)
		require.NoError(t, err, body)
	}
}

func TestProblemsAreBounded(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&b, `"x%d":1,`, i)
	}
	_, err := decoded(customers(nil), creating, `{`+b.String()+`"name":"A","email":"a@b"}`, nil)
	all := problemsOf(err)
	require.Len(t, all, maxProblems+1)
	require.Equal(t, "body has more problems than are listed", all[maxProblems])
}

// TestNothingSentIsRepeated sends values, and names that don't look like names,
// and looks for them in what comes back.
func TestNothingSentIsRepeated(t *testing.T) {
	t.Parallel()
	const secret = "s3cr-et@example"
	values := []string{`"` + secret + `"`, `["` + secret + `"]`, `{"` + secret + `":"` + secret + `"}`, `4711471147114711`, `-4711.25`}
	for _, name := range []string{"name", "email", "phone", "address", "status", "spending_limit", "metadata", "id", "version", "created_at", "customer_id",
		"currency", "items", "total", "reason", secret} {
		for _, v := range values {
			for _, body := range []string{`{"` + name + `":` + v + `}`, `{"address":{"` + name + `":` + v + `}}`, `{"metadata":{"` + name + `":` + v + `}}`,
				`{"spending_limit":{"` + name + `":` + v + `}}`, `{"items":[{"` + name + `":` + v + `}]}`} {
				for m := creating; m <= merging; m++ {
					_, errC := decoded(customers(nil), m, body, &exampleCustomer)
					_, errO := decoded(orders(nil), m, body, &exampleOrder)
					for _, err := range []error{errC, errO} {
						if err != nil {
							require.NotContains(t, strings.Join(problemsOf(err), "\n"), "s3cr-et", body)
							require.NotContains(t, strings.Join(problemsOf(err), "\n"), "4711", body)
						}
					}
				}
			}
		}
	}
}

// TestPatchIsRFC7396 holds patches against another implementation, which
// patches the resource's JSON: what it makes of it, PUT must take, and make the
// same of it as PATCH.
func TestPatchIsRFC7396(t *testing.T) {
	t.Parallel()
	e := customers(nil)
	rapid.Check(t, func(t *rapid.T) {
		current := domain.Customer{ID: exampleID, Version: 3, CreatedAt: exampleAt, UpdatedAt: exampleAt}
		base, err := decoded(e, creating, string(mustJSON(anyCustomer(t, "current", false))), nil)
		require.NoError(t, err)
		current.CustomerInput = base
		change, err := domain.CreateCustomer(exampleID, base, exampleAt) // fills in defaults
		require.NoError(t, err)
		current.CustomerInput = change.After.CustomerInput
		before := string(mustJSON(current))

		patch := mustJSON(anyCustomer(t, "patch", true))
		got, err := decoded(e, merging, string(patch), &current)
		merged, mergeErr := jsonpatch.MergePatch([]byte(before), patch)
		require.NoError(t, mergeErr)
		want, wantErr := decoded(e, replacing, string(merged), nil)
		require.ElementsMatch(t, problemsOf2(wantErr), problemsOf2(err), "%s + %s", before, patch)
		if err == nil {
			a, errA := domain.CreateCustomer(exampleID, got, exampleAt)
			b, errB := domain.CreateCustomer(exampleID, want, exampleAt)
			require.NoError(t, errors.Join(errA, errB))
			require.Equal(t, string(mustJSON(b.After)), string(mustJSON(a.After)), "%s + %s", before, patch)
		}
		require.Equal(t, before, string(mustJSON(current)), "the resource itself stays as it is")
	})
}

func problemsOf2(err error) []string {
	if err == nil {
		return nil
	}
	return problemsOf(err)
}

// anyCustomer draws a body that is valid but for what a patch may leave out.
func anyCustomer(t *rapid.T, label string, patch bool) map[string]any {
	c := map[string]any{}
	one := func(in map[string]any, name string, required bool, values ...any) {
		if !required {
			values = append(values, nil)
		}
		i := rapid.IntRange(0, len(values)).Draw(t, label+"."+name)
		switch {
		case i < len(values):
			in[name] = values[i]
		case required && !patch:
			in[name] = values[0]
		}
	}
	object := func(name string, fill func(map[string]any)) {
		switch rapid.IntRange(0, 3).Draw(t, label+"."+name) {
		case 0:
			c[name] = nil
		case 1, 2:
			in := map[string]any{}
			fill(in)
			c[name] = in
		}
	}
	one(c, "name", true, "Ada", "Eve")
	one(c, "email", true, "ada@example.com", "eve@example.com")
	one(c, "phone", false, "", "1-800")
	one(c, "status", false, "active", "closed")
	object("address", func(a map[string]any) {
		one(a, "city", false, "London", "")
		one(a, "line1", false, "Square 1")
		one(a, "country", false, "GB")
	})
	object("metadata", func(m map[string]any) {
		one(m, "a", false, "1", "2")
		one(m, "b", false, "", "3")
	})
	object("spending_limit", func(l map[string]any) {
		one(l, "amount", true, 5, 7)
		one(l, "currency", true, "EUR", "GBP")
	})
	return c
}

// FuzzDecode feeds bodies to the decoders: whatever comes must give an input
// that the domain takes, or problems.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(mustJSON(exampleCustomer)), uint8(replacing))
	f.Add([]byte(mustJSON(exampleOrder)), uint8(replacing))
	f.Add([]byte(mustJSON(exampleCustomerInput)), uint8(creating))
	f.Add([]byte(`{"metadata":{"a":null},"address":{"city":"x"},"spending_limit":{"amount":1e3}}`), uint8(merging))
	f.Fuzz(func(t *testing.T, body []byte, m uint8) {
		customer, order := exampleCustomer, exampleOrder
		before := string(mustJSON(customer)) + string(mustJSON(order))
		_, err := decoded(customers(nil), mode(m%3), string(body), &customer)
		_, err2 := decoded(orders(nil), mode(m%3), string(body), &order)
		for _, err := range []error{err, err2} {
			if domain.CodeOf(err) == domain.CodeInvalid && len(problemsOf(err)) == 0 {
				t.Fatalf("%q is refused without a problem", body)
			}
		}
		if after := string(mustJSON(customer)) + string(mustJSON(order)); after != before {
			t.Fatalf("%q: decoding wrote to the resource", body)
		}
	})
}
