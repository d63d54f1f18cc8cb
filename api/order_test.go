package api_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func toJSON(t testing.TB, v any) string {
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

func TestOrderLives(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.customer("ada@example.com")
	a := s.do("POST", "/api/orders", map[string]any{
		"customer_id": c["id"], "currency": "EUR",
		"items": []any{map[string]any{"sku": "TEA", "name": "Tea", "quantity": 2, "unit_price": 450}, map[string]any{"sku": "CUP", "quantity": 1, "unit_price": 0}},
	}).is(201)
	o := a.object()
	path := at("/api/orders/%s", o)
	require.Equal(t, path, a.Header.Get("Location"))
	require.Equal(t, "placed", o["status"])
	require.EqualValues(t, 900, o["total"])
	require.NotContains(t, o, "reason")

	require.Equal(t, a.Raw, s.do("PUT", path, o).is(200).Raw, "PUT takes what GET shows")
	p := s.do("PATCH", path, map[string]any{"items": []any{map[string]any{"sku": "CUP", "quantity": 3, "unit_price": 100}}, "total": 900, "reason": nil, "status": "placed"}).is(200)
	require.EqualValues(t, 300, p.object()["total"], "arrays are replaced")
	require.Equal(t, `"2"`, p.Header.Get("ETag"))

	s.do("DELETE", path, nil).problem(409, "order-state")
	s.do("DELETE", at("/api/customers/%s", c), nil).problem(409, "open-orders")

	cancelled := s.do("POST", path+"/cancel", nil).is(200)
	require.Equal(t, "cancelled", cancelled.object()["status"])
	require.Equal(t, `"3"`, cancelled.Header.Get("ETag"))
	s.do("POST", path+"/cancel", "{}").problem(409, "order-state")
	s.do("PATCH", path, `{"currency":"USD"}`).problem(409, "order-state")
	require.Equal(t, "cancelled", s.do("PATCH", path, `{"currency":"EUR"}`).is(200).object()["status"], "nothing to change, nothing to refuse")

	s.do("DELETE", path, nil).is(204)
	s.do("GET", path, nil).problem(404, "not-found")
	s.do("POST", path+"/cancel", nil).problem(404, "not-found")
	s.do("DELETE", at("/api/customers/%s", c), nil).is(204)

	var types []any
	for _, e := range s.do("GET", path+"/events", nil).is(200).data() {
		types = append(types, e["type"])
	}
	require.Equal(t, []any{"order.placed.v1", "order.updated.v1", "order.cancelled.v1", "order.deleted.v1"}, types)
}

func TestOrderNeedsItsCustomer(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, other := s.customer("ada@example.com"), s.customer("eve@example.com")
	const absent = "0193a5c2-7c00-7a52-8f3e-5d1c9b7e4a60"
	require.Equal(t, []string{"body.customer_id must be the id of an existing customer"}, s.do("POST", "/api/orders", orderOf(absent)).problem(422, "invalid"))
	o := s.order(c["id"])
	require.Equal(t, []string{"body.customer_id can't be changed once the order is placed"},
		s.do("PATCH", at("/api/orders/%s", o), map[string]any{"customer_id": other["id"]}).problem(422, "invalid"))
	require.Equal(t, []string{"body.customer_id is required"},
		s.do("PATCH", at("/api/orders/%s", o), `{"customer_id":null}`).problem(422, "invalid"), "said once")
	require.Equal(t, []string{"body.customer_id must be a UUID"},
		s.do("PATCH", at("/api/orders/%s", o), `{"customer_id":"x"}`).problem(422, "invalid"), "said once")
}

func TestCancelTakesNoBody(t *testing.T) {
	t.Parallel()
	s := start(t)
	o := s.order(s.customer("ada@example.com")["id"])
	path := at("/api/orders/%s/cancel", o)
	require.Equal(t, []string{"body.reason is not known here"}, s.do("POST", path, `{"reason":"changed my mind"}`).problem(422, "invalid"))
	require.Equal(t, []string{"body must be an object"}, s.do("POST", path, `[]`).problem(422, "invalid"))
	s.do("POST", path, `{`).problem(400, "malformed-body")
	s.do("POST", path, `a=b`, "Content-Type: application/x-www-form-urlencoded").problem(415, "unsupported-media-type")
	s.do("POST", path, ``).is(200)
}

func TestOrdersAreListed(t *testing.T) {
	t.Parallel()
	s := start(t)
	a, b := s.customer("ada@example.com"), s.customer("eve@example.com")
	var want []any
	for range 3 {
		want = append(want, s.order(a["id"])["id"])
		s.order(b["id"])
	}
	require.Len(t, s.do("GET", "/api/orders", nil).is(200).data(), 6)
	first := s.do("GET", at("/api/customers/%s/orders?limit=2", a), nil).is(200)
	second := s.do("GET", at("/api/customers/%s/orders?limit=2&cursor=", a)+first.object()["next_cursor"].(string), nil).is(200)
	require.Nil(t, second.object()["next_cursor"])
	var got []any
	for _, o := range append(first.data(), second.data()...) {
		require.Equal(t, a["id"], o["customer_id"])
		got = append(got, o["id"])
	}
	require.Equal(t, want, got)
	s.do("GET", "/api/customers/00000000-0000-0000-0000-000000000000/orders", nil).problem(404, "not-found")
	s.do("GET", "/api/customers/0193a5c2-7c00-7a52-8f3e-5d1c9b7e4a60/orders", nil).problem(404, "not-found")

	lists := s.do("GET", "/api/orders?limit=1", nil).object()["next_cursor"].(string)
	require.Equal(t, []string{"query.cursor must be the next_cursor of this list, with the same sort and filters"},
		s.do("GET", "/api/customers?cursor="+lists, nil).problem(422, "invalid"), "a cursor belongs to its list")
}

func TestEventsAreListedOldestFirst(t *testing.T) {
	t.Parallel()
	s := start(t)
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	a := s.do("POST", "/api/customers", `{"name":"Ada","email":"ada@example.com"}`, "X-Request-Id: story-1", "traceparent: "+trace).is(201)
	created := a.object()
	path := at("/api/customers/%s", created)
	updated := s.do("PATCH", path, `{"name":"Eve"}`).is(200).object()
	s.do("DELETE", path, nil).is(204)

	events := s.do("GET", path+"/events", nil).is(200)
	require.Nil(t, events.object()["next_cursor"])
	data := events.data()
	require.Len(t, data, 3)
	require.Equal(t, map[string]any{"actor": "api", "correlation_id": "story-1", "traceparent": trace}, data[0]["metadata"])
	require.Equal(t, updated["updated_at"], data[1]["occurred_at"])
	for i, want := range []struct {
		kind          string
		before, after any
	}{{"customer.created.v1", nil, created}, {"customer.updated.v1", created, updated}, {"customer.deleted.v1", updated, nil}} {
		e := data[i]
		require.Equal(t, want.kind, e["type"])
		require.EqualValues(t, i+1, e["version"])
		require.Equal(t, want.before, e["before"])
		require.Equal(t, want.after, e["after"])
		require.Equal(t, "customer", e["aggregate_type"])
		require.Equal(t, created["id"], e["aggregate_id"])
		require.NotEmpty(t, e["id"])
	}

	var versions []any
	next := ""
	for {
		page := s.do("GET", path+"/events?limit=1"+next, nil).is(200)
		versions = append(versions, page.data()[0]["version"])
		cursor := page.object()["next_cursor"]
		if cursor == nil {
			break
		}
		next = "&cursor=" + cursor.(string)
	}
	require.Equal(t, []any{1.0, 2.0, 3.0}, versions)
	s.do("GET", "/api/customers/0193a5c2-7c00-7a52-8f3e-5d1c9b7e4a60/events", nil).problem(404, "not-found")
	s.do("GET", at("/api/orders/%s/events", created), nil).problem(404, "not-found")
}
