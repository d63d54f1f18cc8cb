package api_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

func TestCustomerIsCreated(t *testing.T) {
	t.Parallel()
	s := start(t)
	sent := map[string]any{
		"name": "Ada <Lovelace> & Söhne", "email": "ada@example.com", "phone": "1-800-FLOWERS",
		"address": map[string]any{"line1": "12 St James's Square", "city": "London", "country": "GB"},
		"status":  "active", "spending_limit": map[string]any{"amount": 50000, "currency": "GBP"},
		"metadata": map[string]any{"crm": "A-1"},
	}
	a := s.do("POST", "/api/customers", sent).is(201)
	got := a.object()
	id, err := domain.ParseID(got["id"].(string))
	require.NoError(t, err)
	require.Equal(t, byte(7), id[6]>>4, "a UUID of version 7")
	require.Equal(t, "/api/customers/"+id.String(), a.Header.Get("Location"))
	require.Equal(t, `"1"`, a.Header.Get("ETag"))
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	require.EqualValues(t, 1, got["version"])
	created, err := time.Parse(time.RFC3339, got["created_at"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), created, time.Minute)
	require.Equal(t, got["created_at"], got["updated_at"])
	for _, computed := range []string{"id", "version", "created_at", "updated_at"} {
		delete(got, computed)
	}
	require.Equal(t, toJSON(t, sent), toJSON(t, got))

	again := s.do("GET", a.Header.Get("Location"), nil).is(200)
	require.Equal(t, a.Raw, again.Raw)
	require.Equal(t, `"1"`, again.Header.Get("ETag"))
}

func TestCustomerDefaultsAndNulls(t *testing.T) {
	t.Parallel()
	s := start(t)
	got := s.do("POST", "/api/customers", `{"name":"Ada","email":"ada@example.com","phone":null,"address":null,"status":null,
		"spending_limit":null,"metadata":{"a":null}}`).is(201).object()
	require.Equal(t, "active", got["status"])
	for _, absent := range []string{"phone", "address", "spending_limit", "metadata"} {
		require.NotContains(t, got, absent)
	}
}

func TestCustomerIsReplacedByWhatGetShows(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.do("POST", "/api/customers", `{"name":"Ada","email":"ada@example.com","phone":"1","metadata":{"a":"b"}}`).is(201).object()
	path := at("/api/customers/%s", c)

	same := s.do("PUT", path, c).is(200)
	require.Equal(t, toJSON(t, c), toJSON(t, same.object()), "the same again is no change")
	require.Equal(t, `"1"`, same.Header.Get("ETag"))
	require.Len(t, s.do("GET", path+"/events", nil).is(200).data(), 1, "and no event")

	c["name"], c["version"], c["id"], c["created_at"] = "Countess", 99, nil, map[string]any{"what": "ever"}
	delete(c, "phone")
	a := s.do("PUT", path, c).is(200)
	require.Equal(t, `"2"`, a.Header.Get("ETag"))
	got := a.object()
	require.Equal(t, "Countess", got["name"])
	require.EqualValues(t, 2, got["version"])
	require.NotContains(t, got, "phone", "what is left out is gone")
	require.Equal(t, map[string]any{"a": "b"}, got["metadata"])
}

func TestCustomerIsPatched(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.do("POST", "/api/customers", `{"name":"Ada","email":"ada@example.com","phone":"1",
		"address":{"line1":"Square 1","city":"London"},"metadata":{"a":"1","b":"2"},"spending_limit":{"amount":5,"currency":"EUR"}}`).is(201).object()
	path := at("/api/customers/%s", c)
	for _, row := range []struct{ patch, field, want string }{
		{`{"name":"Eve"}`, "name", `"Eve"`},
		{`{"phone":null}`, "phone", `null`},
		{`{"address":{"city":"Oxford","line2":"x"}}`, "address", `{"city":"Oxford","line1":"Square 1","line2":"x"}`},
		{`{"address":{"line2":null}}`, "address", `{"city":"Oxford","line1":"Square 1"}`},
		{`{"metadata":{"a":null,"c":"3"}}`, "metadata", `{"b":"2","c":"3"}`},
		{`{"spending_limit":{"amount":7}}`, "spending_limit", `{"amount":7,"currency":"EUR"}`},
		{`{"spending_limit":null}`, "spending_limit", `null`},
		{`{"address":null}`, "address", `null`},
		{`{"status":"suspended"}`, "status", `"suspended"`},
		{`{"status":null}`, "status", `"active"`},
	} {
		before := s.do("GET", path, nil).object()
		got := s.do("PATCH", path, row.patch, "Content-Type: application/merge-patch+json").is(200).object()
		require.Equal(t, row.want, toJSON(t, got[row.field]), row.patch)
		require.EqualValues(t, before["version"].(float64)+1, got["version"], row.patch)
	}
	require.Len(t, s.do("GET", path+"/events", nil).data(), 11, "one event each")

	now := s.do("GET", path, nil)
	none := s.do("PATCH", path, `{"name":"Eve","metadata":{"zzz":null}}`).is(200)
	require.Equal(t, now.Raw, none.Raw, "a patch that changes nothing changes nothing")
	require.Len(t, s.do("GET", path+"/events", nil).data(), 11)
}

func TestPatchMayRepeatReadOnlyProperties(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.customer("ada@example.com")
	path := at("/api/customers/%s", c)
	c["name"] = "Eve"
	got := s.do("PATCH", path, c).is(200).object()
	require.Equal(t, "Eve", got["name"])

	errors := s.do("PATCH", path, `{"version":7,"id":null,"created_at":"2001-01-01T00:00:00Z","updated_at":1,"name":"X"}`).problem(422, "invalid")
	require.ElementsMatch(t, []string{
		"body.version is read-only and can't be changed", "body.id is read-only and can't be changed",
		"body.created_at is read-only and can't be changed", "body.updated_at is read-only and can't be changed",
	}, errors)
	require.Equal(t, "Eve", s.do("GET", path, nil).object()["name"])
}

func TestCustomerIsDeleted(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.customer("ada@example.com")
	path := at("/api/customers/%s", c)
	a := s.do("DELETE", path, nil).is(204)
	require.Empty(t, a.Raw)
	require.Empty(t, a.Header.Get("Content-Type"))
	s.do("GET", path, nil).problem(404, "not-found")
	s.do("PUT", path, c).problem(404, "not-found")
	s.do("PATCH", path, `{}`).problem(404, "not-found")
	s.do("DELETE", path, nil).problem(404, "not-found")
	s.do("GET", path+"/orders", nil).problem(404, "not-found")
	events := s.do("GET", path+"/events", nil).is(200).data()
	require.Len(t, events, 2)
	require.Equal(t, "customer.deleted.v1", events[1]["type"])
	require.Nil(t, events[1]["after"])
	require.NotNil(t, events[1]["before"])
	s.customer("ada@example.com") // the email is free again
}

func TestEmailBelongsToOneCustomer(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.customer("ada@example.com")
	eve := s.customer("eve@example.com")
	s.do("POST", "/api/customers", `{"name":"X","email":"ADA@Example.com"}`).problem(409, "email-taken")
	a := s.do("PATCH", at("/api/customers/%s", eve), `{"email":"ada@example.com"}`)
	a.problem(409, "email-taken")
	require.NotContains(t, a.Raw, "ada@")
	eve["email"] = "Ada@example.com"
	s.do("PUT", at("/api/customers/%s", eve), eve).problem(409, "email-taken")
}

func TestCustomersAreListedInPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	empty := s.do("GET", "/api/customers", nil).is(200)
	require.JSONEq(t, `{"data":[],"next_cursor":null}`, empty.Raw)
	var want, got []any
	for i := range 5 {
		want = append(want, s.customer(string(rune('a'+i)) + "@example.com")["id"])
	}
	path := "/api/customers?limit=2"
	for pages := 1; ; pages++ {
		a := s.do("GET", path, nil).is(200)
		for _, c := range a.data() {
			got = append(got, c["id"])
		}
		next := a.object()["next_cursor"]
		if next == nil {
			require.Equal(t, 3, pages)
			break
		}
		require.Len(t, a.data(), 2)
		path = "/api/customers?limit=2&cursor=" + next.(string)
	}
	require.Equal(t, want, got)
	require.Len(t, s.do("GET", "/api/customers?limit=100000000000000000000", nil).is(200).data(), 5)
	require.Nil(t, s.do("GET", "/api/customers?limit=5", nil).is(200).object()["next_cursor"])
}

func TestLimitIsCoerced(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i := range 502 {
		s.do("POST", "/api/customers", map[string]any{"name": "Ada", "email": fmt.Sprintf("a%d@example.com", i)}).is(201)
	}
	require.Len(t, s.do("GET", "/api/customers", nil).data(), 50)
	require.Len(t, s.do("GET", "/api/customers?limit=501", nil).is(200).data(), 500)
}
