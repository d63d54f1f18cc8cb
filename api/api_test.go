package api_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"outflow/analytics"
	"outflow/api"
	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

// server is the API over a database of its own.
type server struct {
	*httptest.Server
	t     testing.TB
	log   *logged
	store *store.Store
	mongo *mongoServer // where figures are, if there are any
}

func start(t testing.TB) *server {
	t.Helper()
	return startOn(t, pgtest.New(t))
}

func startOn(t testing.TB, db *pgtest.DB) *server {
	t.Helper()
	pool, err := store.Open(t.Context(), db.URL, 8)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	mongo := startMongo(t)
	s := serveConfigured(t, store.New(pool, store.Config{}), api.Config{Analytics: analytics.NewReader(mongo.open(t), time.Now)})
	s.mongo = mongo
	return s
}

// startConfigured is start with another configuration.
func startConfigured(t testing.TB, cfg api.Config) *server {
	t.Helper()
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 8)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return serveConfigured(t, store.New(pool, store.Config{}), cfg)
}

// startWithoutStore serves what never gets as far as the store: there, it panics.
func startWithoutStore(t testing.TB, opts ...func(*http.Server)) *server {
	return serve(t, nil, opts...)
}

func serve(t testing.TB, s *store.Store, opts ...func(*http.Server)) *server {
	return serveConfigured(t, s, api.Config{}, opts...)
}

func serveConfigured(t testing.TB, s *store.Store, cfg api.Config, opts ...func(*http.Server)) *server {
	log := &logged{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	srv := httptest.NewUnstartedServer(api.New(s, cfg))
	srv.Listener = api.Listener(srv.Listener)
	api.StopWaiting(srv.Config)
	for _, opt := range opts {
		opt(srv.Config)
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return &server{Server: srv, t: t, log: log, store: s}
}

// logged is what the server logs.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// answer is what came back.
type answer struct {
	t      testing.TB
	Status int
	Header http.Header
	Raw    string
}

// do sends a request. body is JSON when it isn't a string. Headers are given
// as "Name: value"; a body is JSON unless one says otherwise.
func (s *server) do(method, path string, body any, headers ...string) answer {
	s.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		j, err := json.Marshal(b)
		require.NoError(s.t, err)
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, r)
	require.NoError(s.t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
		if value == "" {
			req.Header.Del(name)
		}
	}
	client := *s.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	require.NoError(s.t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	a := answer{s.t, resp.StatusCode, resp.Header, string(raw)}
	a.documented(method, path)
	return a
}

// raw sends a request as it is written, with more headers, and returns the
// status.
func (s *server) raw(request string, headers ...string) int {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(s.t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, strings.Join(append([]string{request}, headers...), "\r\n")+"\r\n\r\n")
	require.NoError(s.t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(s.t, err)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// object returns the body, which is an object.
func (a answer) object() map[string]any {
	a.t.Helper()
	var m map[string]any
	require.NoError(a.t, json.Unmarshal([]byte(a.Raw), &m), a.Raw)
	return m
}

func (a answer) data() []map[string]any {
	a.t.Helper()
	var l struct {
		Data []map[string]any `json:"data"`
	}
	require.NoError(a.t, json.Unmarshal([]byte(a.Raw), &l), a.Raw)
	return l.Data
}

// is checks the status, and returns the answer.
func (a answer) is(status int) answer {
	a.t.Helper()
	require.Equal(a.t, status, a.Status, a.Raw)
	return a
}

// problem checks that the answer is a problem of a type, and returns its errors
// as "location message".
func (a answer) problem(status int, slug string) []string {
	a.t.Helper()
	a.is(status)
	require.Equal(a.t, "application/problem+json", a.Header.Get("Content-Type"))
	var p struct {
		Type, Title, Detail, Instance string
		Status                        int
		RequestID                     string `json:"request_id"`
		OrderStatus                   string `json:"order_status"`
		Errors                        []struct{ Location, Message string }
	}
	d := json.NewDecoder(strings.NewReader(a.Raw))
	d.DisallowUnknownFields()
	require.NoError(a.t, d.Decode(&p))
	require.Equal(a.t, "/problems/"+slug, p.Type)
	require.Equal(a.t, status, p.Status)
	require.NotEmpty(a.t, p.Title)
	require.NotEmpty(a.t, p.Detail)
	require.NotEmpty(a.t, p.Instance)
	require.Equal(a.t, a.Header.Get("X-Request-Id"), p.RequestID)
	var all []string
	for _, e := range p.Errors {
		all = append(all, e.Location+" "+e.Message)
	}
	return all
}

// customer creates a customer with this email.
func (s *server) customer(email string) map[string]any {
	s.t.Helper()
	return s.do("POST", "/api/customers", map[string]any{"name": "Ada", "email": email}).is(201).object()
}

// order places an order of a customer.
func (s *server) order(customer any) map[string]any {
	s.t.Helper()
	return s.do("POST", "/api/orders", orderOf(customer)).is(201).object()
}

// confirm decides an order, as the confirmer does.
func (s *server) confirm(order map[string]any) {
	s.t.Helper()
	id := domain.MustParseID(order["id"].(string))
	require.NoError(s.t, s.store.DecideOrders(s.t.Context(), []domain.ID{id}, func(domain.ID) domain.Metadata { return domain.Metadata{} })[0])
}

func orderOf(customer any) map[string]any {
	return map[string]any{
		"customer_id": customer, "currency": "EUR",
		"items": []any{map[string]any{"sku": "TEA", "quantity": 2, "unit_price": 450}},
	}
}

func at(path string, resource map[string]any) string { return fmt.Sprintf(path, resource["id"]) }
