package api_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/internal/pgtest"
	"outflow/store"
)

// TestActionsTellTheStateThatForbidsThem tries every action in every state.
func TestActionsTellTheStateThatForbidsThem(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.customer("ada@example.com")
	reach := map[string][]string{
		"placed": nil, "confirmed": {"confirm"}, "cancelled": {"cancel"},
		"fulfilled": {"confirm", "fulfil"}, "refunded": {"confirm", "fulfil", "refund"},
	}
	becomes := map[string]map[string]string{
		"cancel": {"placed": "cancelled", "confirmed": "cancelled"},
		"fulfil": {"confirmed": "fulfilled"},
		"refund": {"fulfilled": "refunded"},
	}
	for state, steps := range reach {
		for action, allowed := range becomes {
			o := s.order(c["id"])
			path := at("/api/orders/%s", o)
			for _, step := range steps {
				if step == "confirm" {
					s.confirm(o)
				} else {
					s.do("POST", path+"/"+step, nil).is(200)
				}
			}
			before := s.do("GET", path, nil).object()
			require.Equal(t, state, before["status"])
			a := s.do("POST", path+"/"+action, nil)
			after := s.do("GET", path, nil)
			if allowed[state] == "" {
				a.problem(409, "order-state")
				require.Equal(t, state, a.object()["order_status"], action)
				require.Equal(t, before["version"], after.object()["version"])
				continue
			}
			require.Equal(t, after.Raw, a.is(200).Raw)
			require.Equal(t, allowed[state], a.object()["status"])
			require.EqualValues(t, before["version"].(float64)+1, a.object()["version"])
			require.Equal(t, after.Header.Get("ETag"), a.Header.Get("ETag"))
			events := s.do("GET", path+"/events", nil).data()
			require.Equal(t, "order."+allowed[state]+".v1", events[len(events)-1]["type"])
		}
	}
	o := s.order(c["id"])
	s.confirm(o)
	require.Equal(t, "confirmed", s.do("PATCH", at("/api/orders/%s", o), `{"currency":"USD"}`).is(409).object()["order_status"])
	require.Equal(t, "confirmed", s.do("DELETE", at("/api/orders/%s", o), nil).is(409).object()["order_status"])
	for _, action := range []string{"cancel", "fulfil", "refund"} {
		s.do("POST", "/api/orders/"+someID+"/"+action, nil).problem(404, "not-found")
		s.do("POST", "/api/orders/7/"+action, nil).problem(422, "invalid")
		s.do("POST", at("/api/orders/%s/", o)+action, `{"reason":"x"}`).problem(422, "invalid")
	}
}

func TestJSONPatchChangesAResource(t *testing.T) {
	t.Parallel()
	s := start(t)
	const patch = "Content-Type: application/json-patch+json"
	c := s.do("POST", customers, `{"name":"Ada","email":"ada@example.com","phone":"1","address":{"city":"London"}}`).is(201).object()
	path := at("/api/customers/%s", c)
	for _, row := range []struct {
		patch  string
		status int
		want   string // the slug of a problem, or the property that changes and what it becomes
	}{
		{`[{"op":"replace","path":"/name","value":"Eve"}]`, 200, `name "Eve"`},
		{`[{"op":"test","path":"/name","value":"Eve"},{"op":"remove","path":"/phone"}]`, 200, `phone null`},
		{`[{"op":"add","path":"/metadata","value":{"a":"1"}},{"op":"copy","from":"/metadata/a","path":"/metadata/b"}]`, 200, `metadata {"a":"1","b":"1"}`},
		{`[{"op":"move","from":"/metadata/a","path":"/metadata/c"}]`, 200, `metadata {"b":"1","c":"1"}`},
		{`[{"op":"replace","path":"/address","value":null}]`, 200, `address null`},
		{`[{"op":"add","path":"/spending_limit","value":{"amount":5,"currency":"EUR"}}]`, 200, `spending_limit {"amount":5,"currency":"EUR"}`},
		{`[{"op":"test","path":"/version","value":7},{"op":"replace","path":"/version","value":7},{"op":"replace","path":"/status","value":"closed"}]`, 200, `status "closed"`},
		{`[{"op":"replace","path":"/name","value":"X"},{"op":"test","path":"/email","value":"eve@example.com"}]`, 409, "patch-conflict"},
		{`[{"op":"remove","path":"/phone"}]`, 409, "patch-conflict"},
		{`[{"op":"replace","path":"/email","value":"nobody"}]`, 422, "resource.email must be an email address, such as ada@example.com"},
		{`[{"op":"remove","path":"/name"}]`, 422, "resource.name is required"},
		{`[{"op":"add","path":"/age","value":1}]`, 422, "resource.age is not known here"},
		{`[{"op":"add","path":"/name","value":1}]`, 422, "resource.name must be a string"},
		{`[{"op":"replace","path":"/version","value":1}]`, 422, "resource.version is read-only and can't be changed"},
		{`[{"op":"remove","path":"/created_at"}]`, 422, "resource.created_at is read-only and can't be removed"},
		{`[{"op":"remove","path":""}]`, 422, "resource must be an object"},
		{`[{"op":"replace","path":"","value":{"name":"A","email":"a@b"}}]`, 422, "resource.created_at is read-only and can't be removed"},
		{`{"name":"Eve"}`, 400, "malformed-patch"},
		{`[{"op":"replace","path":"name","value":"Eve"}]`, 400, "malformed-patch"},
		{`[{"op":"replace","op":"add","path":"/name","value":"Eve"}]`, 400, "malformed-body"},
	} {
		before := s.do("GET", path, nil)
		a := s.do("PATCH", path, row.patch, patch)
		switch row.status {
		case 200:
			name, want, _ := strings.Cut(row.want, " ")
			got := a.is(200).object()
			require.JSONEq(t, want, toJSON(t, got[name]), row.patch)
			require.EqualValues(t, before.object()["version"].(float64)+1, got["version"], "one event: %s", row.patch)
			continue
		case 422:
			require.Contains(t, a.problem(422, "invalid"), row.want, row.patch)
		default:
			a.problem(row.status, row.want)
		}
		require.Equal(t, before.Raw, s.do("GET", path, nil).Raw, row.patch)
	}
	before := s.do("GET", path, nil)
	for _, noop := range []string{`[]`, `[{"op":"test","path":"/name","value":"Eve"}]`, `[{"op":"replace","path":"/name","value":"Eve"}]`,
		`[{"op":"add","path":"/phone","value":"2"},{"op":"remove","path":"/phone"}]`, `[{"op":"add","path":"/phone","value":null}]`} {
		require.Equal(t, before.Raw, s.do("PATCH", path, noop, patch).is(200).Raw, noop)
	}
	require.Len(t, s.do("GET", path+"/events", nil).data(), int(before.object()["version"].(float64)), "no-ops make no events")

	o := s.order(c["id"])
	path = at("/api/orders/%s", o)
	got := s.do("PATCH", path, `[{"op":"add","path":"/items/-","value":{"sku":"CUP","quantity":1,"unit_price":100}},{"op":"replace","path":"/items/0/quantity","value":1}]`, patch).is(200).object()
	require.EqualValues(t, 550, got["total"])
	require.Equal(t, []string{"resource.total is read-only and can't be changed"}, s.do("PATCH", path, `[{"op":"replace","path":"/total","value":1}]`, patch).problem(422, "invalid"))
	require.Contains(t, s.do("PATCH", path, `[{"op":"remove","path":"/items/1/sku"}]`, patch).problem(422, "invalid"), "resource.items[1].sku is required")
	s.do("POST", path+"/cancel", nil).is(200)
	require.Equal(t, "cancelled", s.do("PATCH", path, `[{"op":"remove","path":"/items/0"}]`, patch).is(409).object()["order_status"])
}

// TestAStatementThatTakesTooLongIsUnavailable holds a row until the database
// gives the request up.
func TestAStatementThatTakesTooLongIsUnavailable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, err := store.Open(t.Context(), db.URL+"&statement_timeout=200ms", 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := serve(t, store.New(pool, store.Config{}))
	path := at("/api/customers/%s", s.customer("ada@example.com"))
	tx, err := db.Pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "SELECT id FROM customers FOR UPDATE")
	require.NoError(t, err)
	a := s.do("PATCH", path, `{"name":"Eve"}`)
	a.problem(503, "unavailable")
	require.Equal(t, "2", a.Header.Get("Retry-After"))
	s.do("GET", path, nil).is(200) // reading waits for nobody
	require.NoError(t, tx.Rollback(t.Context()))
	s.do("PATCH", path, `{"name":"Eve"}`).is(200)
}

// TestWhoDripsHoldsNobodyUp keeps many connections open that send a byte now
// and then, in the header or in the body, and asks as somebody else meanwhile.
func TestWhoDripsHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, err := store.Open(t.Context(), db.URL, 2)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := serve(t, store.New(pool, store.Config{}), func(srv *http.Server) {
		srv.ReadHeaderTimeout, srv.ReadTimeout = time.Second, 2*time.Second
	})
	var conns []net.Conn
	for i := range 200 {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		begin := "POST " + customers + " HTTP/1.1\r\nHost: x\r\nX-Drip: "
		if i%2 == 0 {
			begin = "POST " + customers + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"name\":\""
		}
		_, err = io.WriteString(conn, begin)
		require.NoError(t, err)
		conns = append(conns, conn)
	}
	began := time.Now()
	for i := range 20 {
		s.do("POST", customers, fmt.Sprintf(`{"name":"Ada","email":"a%d@example.com"}`, i)).is(201)
		for _, conn := range conns {
			_, _ = conn.Write([]byte("a")) // fails once it is cut off
		}
	}
	require.Less(t, time.Since(began), time.Second, "nobody waited for them")
	for i, conn := range conns {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		answer, err := io.ReadAll(conn)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "connection %d is still open", i)
		if i%2 == 0 && err == nil {
			require.Contains(t, string(answer), "/problems/request-timeout")
		}
	}
}

// TestWhatIsNotHTTPIsAProblemToo: net/http answers these before any handler.
func TestWhatIsNotHTTPIsAProblemToo(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t, func(srv *http.Server) { srv.MaxHeaderBytes = 32 << 10 })
	require.Equal(t, 200, s.raw("GET /livez HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("a", 16<<10)))
	for request, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + strings.Repeat("a", 64<<10): "431 /problems/header-too-large",
		"GET /" + strings.Repeat("a", 64<<10) + " HTTP/1.1\r\nHost: x":         "431 /problems/header-too-large",
		"GET / HTTP/1.1": "400 /problems/bad-request",
		"GET / HTTP/1.1\r\nHost: x\r\nBad Name: 1":                             "400 /problems/bad-request",
		"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b":                               "400 /problems/bad-request",
		"GET  / HTTP/1.1\r\nHost: x":                                           "400 /problems/bad-request",
		"GET /%zz HTTP/1.1\r\nHost: x":                                         "400 /problems/bad-request",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1":                     "400 /problems/bad-request",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2": "400 /problems/bad-request",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip":                "501 about:blank",
		"GET / HTTP/3.7\r\nHost: x":                                            "505 about:blank",
	} {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		require.NoError(t, err)
		_, err = io.WriteString(conn, request+"\r\n\r\n")
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		raw, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		var p struct {
			Type, Title, Detail string
			Status              int
			RequestID           string `json:"request_id"`
		}
		require.NoError(t, json.Unmarshal(raw, &p), "%.60s: %s", request, raw)
		require.Equal(t, want, fmt.Sprint(resp.StatusCode, " ", p.Type), "%.60s", request)
		require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
		require.Equal(t, resp.StatusCode, p.Status)
		require.NotEmpty(t, p.Title)
		require.NotEmpty(t, p.Detail)
		require.Equal(t, resp.Header.Get("X-Request-Id"), p.RequestID)
		require.NotContains(t, string(raw), strings.Repeat("a", 40), "nothing of it is repeated") // ids of requests are hexadecimal
	}
}
