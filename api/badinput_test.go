package api_test

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/api"
	"outflow/internal/pgtest"
)

const (
	someID    = "0193a5c2-7c00-7a52-8f3e-5d1c9b7e4a60"
	customers = "/api/customers"
	customer  = "/api/customers/" + someID
)

func TestBodiesThatAreRefused(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	deep := strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20)
	for _, row := range []struct {
		method, path, body string
		headers            []string
		status             int
		slug               string
	}{
		{"POST", customers, ``, nil, 400, "malformed-body"},
		{"POST", customers, `{"name":`, nil, 400, "malformed-body"},
		{"POST", customers, `{"name":"A","email":"a@b"} x`, nil, 400, "malformed-body"},
		{"POST", customers, `{"name":"A","name":"B","email":"a@b"}`, nil, 400, "malformed-body"},
		{"POST", customers, "{\"name\":\"\xff\"}", nil, 400, "malformed-body"},
		{"POST", customers, `{"name":"\ud800"}`, nil, 400, "malformed-body"},
		{"POST", customers, deep, nil, 400, "malformed-body"},
		{"PUT", customer, `[`, nil, 400, "malformed-body"},
		{"PATCH", customer, `{"a":1,"a":2}`, nil, 400, "malformed-body"},
		{"POST", customers, `{"name":7}`, nil, 422, "invalid"},
		{"POST", customers, `[]`, nil, 422, "invalid"},
		{"PUT", customer, `{"name":7}`, nil, 422, "invalid"},
		{"POST", "/api/orders", `{"total":1}`, nil, 422, "invalid"},
		{"POST", customers, `{}`, []string{"Content-Type: "}, 415, "unsupported-media-type"},
		{"POST", customers, `{}`, []string{"Content-Type: text/plain"}, 415, "unsupported-media-type"},
		{"POST", customers, `{}`, []string{"Content-Type: application/xml"}, 415, "unsupported-media-type"},
		{"POST", customers, `{}`, []string{"Content-Type: application/json; charset=latin1"}, 415, "unsupported-media-type"},
		{"POST", customers, `{}`, []string{"Content-Type: application/merge-patch+json"}, 415, "unsupported-media-type"},
		{"POST", customers, `{}`, []string{"Content-Encoding: gzip"}, 415, "unsupported-media-type"},
		{"PUT", customer, `{}`, []string{"Content-Type: application/merge-patch+json"}, 415, "unsupported-media-type"},
		{"PATCH", customer, `{}`, []string{"Content-Type: application/json-patch+json"}, 400, "malformed-patch"},
		{"PATCH", customer, `[]`, []string{"Content-Type: application/json-patch"}, 415, "unsupported-media-type"},
		{"POST", customers, `[]`, []string{"Content-Type: Application/JSON; Charset=UTF-8"}, 422, "invalid"},
		{"POST", customers, `{}`, []string{"Accept: text/html"}, 406, "not-acceptable"},
		{"POST", customers, `{}`, []string{"Sec-Fetch-Site: cross-site"}, 403, "cross-origin"},
		{"POST", customers, `[]`, []string{"Sec-Fetch-Site: same-origin"}, 422, "invalid"}, // the documentation's own page
		{"DELETE", customer, ``, []string{"Origin: https://evil.example"}, 403, "cross-origin"},
	} {
		a := s.do(row.method, row.path, row.body, row.headers...)
		a.problem(row.status, row.slug)
		require.Equal(t, "no-store", a.Header.Get("Cache-Control"))
		if row.status == 415 {
			accept := map[string]string{"PATCH": "Accept-Patch"}[row.method]
			require.Contains(t, a.Header.Get(cmp.Or(accept, "Accept")), "application/json")
		}
	}
	require.Equal(t, "application/merge-patch+json, application/json, application/json-patch+json",
		s.do("PATCH", customer, "x", "Content-Type: text/plain").Header.Get("Accept-Patch"))
	require.Empty(t, s.log.String(), "bad input is not the server's trouble")
}

func TestLargeBodiesAreRefused(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	of := func(n int) string { return `{"x":"` + strings.Repeat("a", n-len(`{"x":""}`)) + `"}` }
	s.do("POST", customers, of(64<<10)).problem(422, "invalid")
	s.do("POST", customers, of(64<<10+1)).problem(413, "body-too-large")
	s.do("POST", "/api/orders/"+someID+"/cancel", of(64<<10+1)).problem(413, "body-too-large")

	for size, want := range map[int]int{64 << 10: 422, 64<<10 + 1: 413, 10 << 20: 413} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+customers, io.NopCloser(strings.NewReader(of(size))))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		require.Zero(t, req.ContentLength, "chunked")
		resp, err := s.Client().Do(req)
		require.NoError(t, err)
		require.Equal(t, want, resp.StatusCode)
		_ = resp.Body.Close()
	}
}

func TestABodyThatEndsEarlyIsRefused(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{}", customers)
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(t, 400, resp.StatusCode)
}

func TestParametersThatAreRefused(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	for path, want := range map[string][]string{
		"/api/customers/7":                        {"path.id must be a UUID"},
		"/api/customers/ada@example.com/events":   {"path.id must be a UUID"},
		"/api/orders/%7B" + someID[1:]:            {"path.id must be a UUID"},
		"/api/orders/" + someID + "0":             {"path.id must be a UUID"},
		customers + "?limit=0":                    {"query.limit must be an integer of at least 1"},
		customers + "?limit=-1":                   {"query.limit must be an integer of at least 1"},
		customers + "?limit=":                     {"query.limit must be an integer of at least 1"},
		customers + "?limit=1.5":                  {"query.limit must be an integer of at least 1"},
		customers + "?limit=%2B5":                 {"query.limit must be an integer of at least 1"},
		customers + "?limit=x&cursor=y":           {"query.limit must be an integer of at least 1", "query.cursor must be the next_cursor of this list, with the same sort and filters"},
		customers + "?cursor=":                    {"query.cursor must be the next_cursor of this list, with the same sort and filters"},
		customers + "?cursor=AAAA":                {"query.cursor must be the next_cursor of this list, with the same sort and filters"},
		customers + "?limit=1&limit=2":            {"query.limit must be given once"},
		customers + "?limits=1&a%40b=2&c%40d=3":   {"query has a parameter that is not known here", "query.limits is not known here"},
		customers + "?limit=%zz":                  {"query must be form-encoded"},
		customer + "?fields=name":                 {"query.fields is not known here"},
		customer + "/events?limit=0&cursor=" + "": {"query.limit must be an integer of at least 1", "query.cursor must be the next_cursor of this list, with the same sort and filters"},
	} {
		require.Equal(t, want, s.do("GET", path, nil).problem(422, "invalid"), path)
	}
	for _, method := range []string{"PUT", "PATCH", "DELETE"} {
		s.do(method, "/api/customers/x", `{}`).problem(422, "invalid")
		s.do(method, customer+"?x=1", `{}`).problem(422, "invalid")
	}
}

func TestPathsAndMethodsThatThereAreNot(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	for _, path := range []string{"/api", "/api/", "/nothing", "/api/customer", customer + "/invoices", customer + "/orders/" + someID, "/api/orders/" + someID + "/cancel/x",
		"//api/customers", "/api//customers", "/api/customers//", "/api/./customers", "/api/x/../customers", "/docs/../etc", "/docs/page.html", "/problems/x", "/api/customers.json"} {
		for _, method := range []string{"GET", "POST", "DELETE", "PURGE"} {
			a := s.do(method, path, nil)
			a.problem(404, "no-such-path")
			require.Equal(t, path, a.object()["instance"])
		}
	}
	for path, allow := range map[string]string{
		customers:                           "GET, HEAD, POST",
		customer:                            "DELETE, GET, HEAD, PATCH, PUT",
		customer + "/events":                "GET, HEAD",
		"/api/orders/" + someID + "/cancel": "POST",
		"/docs":                             "GET, HEAD",
		"/livez":                            "GET, HEAD",
		"/openapi.json":                     "GET, HEAD",
	} {
		for _, slash := range []string{"", "/"} {
			a := s.do("OPTIONS", path+slash, nil)
			a.problem(405, "method-not-allowed")
			require.Equal(t, allow, a.Header.Get("Allow"))
		}
	}
	s.do("POST", "/", nil).problem(405, "method-not-allowed")
	require.Empty(t, s.log.String())
}

func TestAcceptIsHeard(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	for accept, status := range map[string]int{
		"": 200, "*/*": 200, "application/json": 200, "application/*": 200, "text/html, */*;q=0.1": 200, "application/json;q=0.5": 200,
		"text/html, application/json": 200, "Application/JSON; charset=utf-8": 200, "*/*;q=0, application/json": 200,
		"text/html": 406, "application/json;q=0": 406, "*/*, application/json;q=0": 406, "application/*;q=0, */*": 406, "application/xml, text/*": 406, "garbage": 406,
	} {
		a := s.do("GET", "/livez", nil, "Accept: "+accept)
		require.Equal(t, status, a.Status, accept)
	}
}

// TestAPanicIsAnInternalError relies on the store that isn't there.
func TestAPanicIsAnInternalError(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	a := s.do("GET", customer, nil, "X-Request-Id: find-me")
	a.problem(500, "internal")
	require.NotContains(t, a.Raw, "nil pointer")
	require.Contains(t, s.log.String(), "nil pointer")
	require.Contains(t, s.log.String(), "request_id=find-me")
	require.Contains(t, s.log.String(), "api.(*entity")
	s.do("GET", "/livez", nil).is(200)
}

func TestADatabaseThatIsAwayIsUnavailable(t *testing.T) {
	t.Parallel()
	db := pgtest.NewServer(t)
	s := startOn(t, db.DB(t))
	require.Equal(t, "ready", s.do("GET", "/readyz", nil).is(200).object()["status"])
	c := s.customer("ada@example.com")
	require.NoError(t, db.Kill(syscall.SIGQUIT))
	for _, path := range []string{"/readyz", customers, at("/api/customers/%s", c)} {
		a := s.do("GET", path, nil)
		a.problem(503, "unavailable")
		require.Equal(t, "2", a.Header.Get("Retry-After"))
		require.NotContains(t, a.Raw, "connect")
	}
	s.do("POST", customers, `{"name":"Eve","email":"eve@example.com"}`).problem(503, "unavailable")
	s.do("GET", "/livez", nil).is(200)
	require.NoError(t, db.Restart(t.Context()))
	require.Eventually(t, func() bool { return s.do("GET", "/readyz", nil).Status == 200 }, time.Minute, 20*time.Millisecond)
	s.do("GET", at("/api/customers/%s", c), nil).is(200)
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	for id, taken := range map[string]bool{
		"abc-DEF_1.2:3~": true, strings.Repeat("a", 128): true,
		"": false, strings.Repeat("a", 129): false, "a b": false, "a\"b": false, "ä": false, "a,b": false,
	} {
		got := s.do("GET", "/livez", nil, "X-Request-Id: "+id).Header.Get("X-Request-Id")
		if taken {
			require.Equal(t, id, got)
		} else {
			require.Len(t, got, 36, "a new one for %q", id)
			require.Equal(t, byte('7'), got[14])
		}
	}
	for _, path := range []string{"/", "/docs", "/nothing", "/openapi.json"} {
		require.NotEmpty(t, s.do("GET", path, nil).Header.Get("X-Request-Id"), path)
	}
}

func TestTraceparentsAreChecked(t *testing.T) {
	t.Parallel()
	s := start(t)
	const trace = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	n := 0
	for header, taken := range map[string]bool{
		"00-" + trace: true, "01-" + trace: true, "01-" + trace + "-more": true,
		"00-" + trace + "-more": false, "ff-" + trace: false, "0-" + trace: false, "00-" + strings.ToUpper(trace): false,
		"00-00000000000000000000000000000000-b7ad6b7169203331-01": false, "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01": false,
		"01-" + trace + "more": false, "01-" + trace + "-mo re": false, "x": false,
	} {
		n++
		a := s.do("POST", customers, fmt.Sprintf(`{"name":"Ada","email":"a%d@example.com"}`, n), "traceparent: "+header).is(201)
		c := a.object()
		m := s.do("GET", at("/api/customers/%s/events", c), nil).data()[0]["metadata"]
		if taken {
			require.Equal(t, header, m.(map[string]any)["traceparent"])
			require.Equal(t, header, a.Header.Get("Traceparent"))
		} else {
			require.NotContains(t, m, "traceparent", header)
			require.Empty(t, a.Header.Get("Traceparent"))
		}
	}
}

func TestServerCutsOffWhoIsTooSlow(t *testing.T) {
	t.Parallel()
	srv := api.NewServer("127.0.0.1:0", http.NotFoundHandler())
	require.Equal(t, "127.0.0.1:0", srv.Addr)
	for _, d := range []any{srv.ReadHeaderTimeout, srv.ReadTimeout, srv.WriteTimeout, srv.IdleTimeout} {
		require.Positive(t, d)
	}
	require.Equal(t, "10s", srv.ReadHeaderTimeout.String())
	require.Positive(t, srv.MaxHeaderBytes)
}

func TestABodyThatDripsIsTimedOut(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t, func(srv *http.Server) { srv.ReadTimeout = 200e6 })
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{", customers)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, 408, resp.StatusCode)
	require.True(t, bytes.Contains(raw, []byte("/problems/request-timeout")))
}
