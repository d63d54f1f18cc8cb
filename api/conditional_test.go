package api_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/api"
)

// TestConditions holds every condition on every method, against a resource at
// version 2.
func TestConditions(t *testing.T) {
	t.Parallel()
	s := start(t)
	n := 0
	for _, row := range []struct {
		header     string
		get, write int
	}{
		{``, 200, 200},
		{`If-Match: "2"`, 200, 200},
		{`If-Match: *`, 200, 200},
		{`If-Match:   *  `, 200, 200},
		{`If-Match: "1"`, 412, 412},
		{`If-Match: "3"`, 412, 412},
		{`If-Match: W/"2"`, 412, 412}, // weak tags never match here
		{`If-Match: "02"`, 412, 412},
		{`If-Match: "+2"`, 412, 412},
		{`If-Match: "0"`, 412, 412},
		{`If-Match: ""`, 412, 412},
		{`If-Match: "2 "`, 422, 422},
		{`If-Match: "a,2"`, 412, 412},
		{`If-Match: "1", "2"`, 200, 200},
		{`If-Match: , "1",,"2" ,`, 200, 200},
		{`If-Match: "a,b","2"`, 200, 200},
		{`If-Match: "1", W/"2", "x"`, 412, 412},
		{`If-Match: 2`, 422, 422},
		{`If-Match: "2`, 422, 422},
		{`If-Match: "2" "3"`, 422, 422},
		{`If-Match: *, "2"`, 422, 422},
		{`If-Match: w/"2"`, 422, 422},
		{`If-Match: ,`, 422, 422},
		{`If-None-Match: "2"`, 304, 412},
		{`If-None-Match: W/"2"`, 304, 412}, // the weak comparison
		{`If-None-Match: *`, 304, 412},
		{`If-None-Match: "1"`, 200, 200},
		{`If-None-Match: "1", W/"3"`, 200, 200},
		{`If-None-Match: "1", W/"2"`, 304, 412},
		{`If-None-Match: 2`, 422, 422},
		{`If-Modified-Since: Sat, 29 Oct 2050 19:43:31 GMT`, 200, 200},
		{`If-Unmodified-Since: Sat, 29 Oct 1994 19:43:31 GMT`, 200, 200},
	} {
		var headers []string
		if row.header != "" {
			headers = []string{row.header}
		}
		for method, body := range map[string]string{"GET": "", "HEAD": "", "PUT": `{"name":"Max","email":"max@example.com"}`, "PATCH": `{"name":"Max"}`, "DELETE": ""} {
			n++
			c := s.customer(fmt.Sprintf("c%d@example.com", n))
			path := at("/api/customers/%s", c)
			now := s.do("PATCH", path, `{"name":"Eve"}`).is(200)
			a := s.do(method, path, body, headers...)
			after := s.do("GET", path, nil)
			message := fmt.Sprintf("%s with %s: %s", method, row.header, a.Raw)
			if method == "GET" || method == "HEAD" {
				require.Equal(t, row.get, a.Status, message)
				require.Equal(t, now.Raw, after.Raw, message)
				if row.get == 304 {
					require.Empty(t, a.Raw)
					require.Empty(t, a.Header.Get("Content-Type"))
					require.Equal(t, "private, no-cache", a.Header.Get("Cache-Control"))
					require.Equal(t, `"2"`, a.Header.Get("ETag"))
				}
				continue
			}
			switch row.write {
			case 200:
				require.Contains(t, []int{200, 204}, a.Status, message)
				require.NotEqual(t, now.Raw, after.Raw, message)
				if method != "DELETE" {
					s.do("DELETE", path, nil).is(204) // the email is needed again
				}
			case 412:
				a.problem(412, "version-mismatch")
				require.Equal(t, now.Raw, after.Raw, message)
			default:
				a.problem(row.write, "invalid")
				require.Equal(t, now.Raw, after.Raw, message)
			}
		}
	}
}

// TestConditionsComeAfterTheBody sends bodies that no version can take together
// with conditions that don't hold (RFC 9110, 13.2.1); what only this version
// can't take is told after them.
func TestConditionsComeAfterTheBody(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.customer("ada@example.com")
	customer, order := at("/api/customers/%s", c), at("/api/orders/%s", s.order(c["id"]))
	item := func(name, value string) string {
		return `{"customer_id":"` + c["id"].(string) + `","currency":"EUR","items":[{"sku":"T","quantity":1,"unit_price":1,"` + name + `":` + value + `}]}`
	}
	for _, row := range []struct {
		method, path, body, slug string
		status                   int
	}{
		{"PUT", order, item("name", `"\u0007"`), "invalid", 422},
		{"PUT", order, strings.Replace(item("name", `"x"`), "EUR", "AAA*", 1), "invalid", 422},
		{"PATCH", order, `{"currency":"AAA*"}`, "invalid", 422},
		{"PATCH", order, `{"items":[]}`, "invalid", 422},
		{"PATCH", order, `{"items":[{"sku":"T"}]}`, "invalid", 422},
		{"PUT", customer, `{"name":" ","email":"a@example.com"}`, "invalid", 422},
		{"PATCH", customer, `{"email":null}`, "invalid", 422},
		{"PATCH", customer, `{"spending_limit":{"amount":-1}}`, "invalid", 422},
		{"PATCH", customer, `{"metadata":{"":"x"}}`, "invalid", 422},
		{"PATCH", customer, `{"colour":"red"}`, "invalid", 422},
		{"PATCH", customer, `{"name":`, "malformed-body", 400},

		{"PATCH", customer, `{"name":"Eve"}`, "version-mismatch", 412},
		{"PATCH", customer, `{"spending_limit":{"amount":1}}`, "version-mismatch", 412},
		{"PATCH", customer, `{"version":7}`, "version-mismatch", 412},
		{"PUT", order, strings.Replace(item("name", `null`), c["id"].(string), someID, 1), "version-mismatch", 412},
		{"PATCH", order, `{"customer_id":"` + someID + `"}`, "version-mismatch", 412},
	} {
		for _, condition := range []string{`If-Match: "7"`, `If-None-Match: *`} {
			s.do(row.method, row.path, row.body, condition).problem(row.status, row.slug)
		}
	}
	s.do("PATCH", customer, `[{"op":"test","path":"/name","value":"Bob"}]`, `If-Match: "7"`, "Content-Type: application/json-patch+json").problem(412, "version-mismatch")
	s.do("PATCH", customer, `[{"op":"test"}]`, `If-Match: "7"`, "Content-Type: application/json-patch+json").problem(400, "malformed-patch")
}

func TestConditionsOnSeveralLines(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := at("/api/customers/%s", s.customer("ada@example.com"))
	send := func(tags ...string) int {
		return s.raw("DELETE "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close", tags...)
	}
	require.Equal(t, 412, send(`If-Match: "7"`, `If-Match: W/"1"`))
	require.Equal(t, 204, send(`If-Match: "7"`, `If-Match: "1"`))
}

func TestConditionsOnOrdersAndTheirActions(t *testing.T) {
	t.Parallel()
	s := start(t)
	o := s.order(s.customer("ada@example.com")["id"])
	path := at("/api/orders/%s", o)
	s.do("PATCH", path, `{"currency":"USD"}`, `If-Match: "2"`).problem(412, "version-mismatch")
	s.do("POST", path+"/cancel", nil, `If-Match: "2"`).problem(412, "version-mismatch")
	s.do("POST", path+"/fulfil", nil, `If-Match: "2"`).problem(412, "version-mismatch")
	s.do("POST", path+"/refund", nil, `If-None-Match: *`).problem(412, "version-mismatch")
	s.do("POST", path+"/cancel", nil, `If-Match: 1`).problem(422, "invalid")
	s.do("POST", path+"/cancel", nil, `If-Match: "1"`).is(200)
	s.do("DELETE", path, nil, `If-Match: "1"`).problem(412, "version-mismatch")
	s.do("DELETE", path, nil, `If-Match: "2"`).is(204)
	s.do("DELETE", path, nil, `If-Match: "2"`).problem(404, "not-found")
	s.do("DELETE", path, nil, `If-Match: *`).problem(404, "not-found")
}

// TestANoOpStillNeedsItsVersion: a condition that fails is told, also when
// there would be nothing to change.
func TestANoOpStillNeedsItsVersion(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := at("/api/customers/%s", s.customer("ada@example.com"))
	s.do("PATCH", path, `{}`, `If-Match: "2"`).problem(412, "version-mismatch")
	require.Equal(t, `"1"`, s.do("PATCH", path, `{}`, `If-Match: "1"`).is(200).Header.Get("ETag"))
}

func TestIfMatchCanBeRequired(t *testing.T) {
	t.Parallel()
	s := startConfigured(t, api.Config{RequireIfMatch: true})
	c := s.customer("ada@example.com")
	path := at("/api/customers/%s", c)
	s.do("PUT", path, c).problem(428, "precondition-required")
	s.do("PATCH", path, `{}`).problem(428, "precondition-required")
	s.do("DELETE", path, nil).problem(428, "precondition-required")
	s.do("DELETE", path, nil, `If-None-Match: "9"`).problem(428, "precondition-required")
	s.do("PATCH", path, `{"name":"Eve"}`, `If-Match: *`).is(200)
	s.do("PATCH", path, `{"name":"Max"}`, `If-Match: "1"`).problem(412, "version-mismatch")
	o := s.order(c["id"])
	s.do("POST", at("/api/orders/%s/cancel", o), nil).is(200) // which version it cancels is nothing that could be lost
	s.do("DELETE", path, nil, `If-Match: "2"`).is(204)
}

// TestOneOfManyWithTheSameVersionWins is the lost update that conditions are for.
func TestOneOfManyWithTheSameVersionWins(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := at("/api/customers/%s", s.customer("ada@example.com"))
	const writers = 16
	statuses := make([]int, writers)
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			statuses[i] = s.do("PATCH", path, fmt.Sprintf(`{"name":"N%d"}`, i), `If-Match: "1"`).Status
		})
	}
	all.Wait()
	count := map[int]int{}
	for _, status := range statuses {
		count[status]++
	}
	require.Equal(t, map[int]int{200: 1, 412: writers - 1}, count)
	require.Len(t, s.do("GET", path+"/events", nil).data(), 2)
}

// TestWritersWithoutConditionsLoseNothing: patches of different properties all
// survive, each with its event.
func TestWritersWithoutConditionsLoseNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := at("/api/customers/%s", s.customer("ada@example.com"))
	const writers = 16
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() { s.do("PATCH", path, fmt.Sprintf(`{"metadata":{"w%d":"x"}}`, i)).is(200) })
	}
	all.Wait()
	got := s.do("GET", path, nil).object()
	require.Len(t, got["metadata"], writers)
	require.EqualValues(t, writers+1, got["version"])
}
