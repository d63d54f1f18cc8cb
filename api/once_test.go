package api_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"outflow/api"
	"outflow/internal/pgtest"
	"outflow/store"
)

// startAt is start with a configured store, which runs.
func startAt(t testing.TB, dsn string, cfg store.Config) *server {
	t.Helper()
	pool, err := store.Open(t.Context(), dsn, 8)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	st := store.New(pool, cfg)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- st.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	return serveConfigured(t, st, api.Config{})
}

func counts(t testing.TB, pool *pgxpool.Pool, sql string) int {
	t.Helper()
	var n int
	require.NoError(t, pool.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

const (
	changeEvents = `SELECT count(*) FROM outbox WHERE aggregate_type <> 'notification'`
	storedKeys   = `SELECT count(*) FROM idempotency_keys`
)

// replays checks that b is what was answered the first time, and says so.
func replays(t testing.TB, a, b answer) {
	t.Helper()
	require.Equal(t, a.Status, b.Status, b.Raw)
	require.Equal(t, a.Raw, b.Raw)
	for _, name := range []string{"ETag", "Location", "Content-Type", "Content-Length", "Cache-Control"} {
		require.Equal(t, a.Header.Get(name), b.Header.Get(name), name)
	}
	require.Empty(t, a.Header.Get("Idempotency-Replayed"))
	require.Equal(t, "true", b.Header.Get("Idempotency-Replayed"))
	require.NotEqual(t, a.Header.Get("X-Request-Id"), b.Header.Get("X-Request-Id"))
}

func TestEveryOperationWithAKeyTakesPlaceOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	c := s.customer("ada@example.com")
	o := s.order(c["id"])
	confirmed := func() map[string]any {
		o := s.order(c["id"])
		_, err := db.Pool.Exec(t.Context(), `UPDATE orders SET status = 'confirmed' WHERE id = $1`, o["id"])
		require.NoError(t, err)
		return o
	}
	customer, order, fulfilled := at("/api/customers/%s", c), at("/api/orders/%s", o), at("/api/orders/%s", confirmed())
	for i, row := range []struct {
		method, path string
		body         any
		header       string
	}{
		{"POST", "/api/customers", map[string]any{"name": "Eve", "email": "eve@example.com"}, "X: y"},
		{"POST", "/api/orders", orderOf(c["id"]), "X: y"},
		{"PATCH", customer, `{"name":"Countess"}`, "Content-Type: application/merge-patch+json"},
		{"PATCH", customer, `[{"op":"add","path":"/phone","value":"1"}]`, "Content-Type: application/json-patch+json"},
		{"PATCH", customer, `{"name":"Countess"}`, "X: y"}, // changes nothing
		{"PATCH", order, `{"currency":"USD"}`, "If-Match: \"1\""},
		{"PATCH", order, `{"currency":"USD"}`, "X: y"}, // changes nothing
		{"POST", order + "/cancel", nil, "X: y"},
		{"POST", fulfilled + "/fulfil", nil, "X: y"},
		{"POST", fulfilled + "/refund", `{}`, "X: y"},
	} {
		key := fmt.Sprintf("Idempotency-Key: key-%d", i)
		first := s.do(row.method, row.path, row.body, row.header, key)
		require.Less(t, first.Status, 300, first.Raw)
		events := counts(t, db.Pool, changeEvents)
		replays(t, first, s.do(row.method, row.path, row.body, row.header, key))
		replays(t, first, s.do(row.method, row.path+"/", row.body, row.header, fmt.Sprintf(`Idempotency-Key: "key-%d"`, i)))
		require.Equal(t, events, counts(t, db.Pool, changeEvents), "%+v", row)
		require.Equal(t, i+1, counts(t, db.Pool, storedKeys), "%+v", row)

		s.do(row.method, row.path, `{"other":1}`, row.header, key).problem(422, "idempotency-key-reused")
		s.do("POST", order+"/refund", row.body, key).problem(422, "idempotency-key-reused")
	}
}

func TestKeysOfOtherMethodsMeanNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	c := s.customer("ada@example.com")
	path := at("/api/customers/%s", c)
	for range 2 {
		a := s.do("PUT", path, c, "Idempotency-Key: k").is(200)
		require.Empty(t, a.Header.Get("Idempotency-Replayed"))
	}
	s.do("GET", path, nil, "Idempotency-Key: k").is(200)
	s.do("DELETE", path, nil, "Idempotency-Key: k").is(204)
	s.do("DELETE", path, nil, "Idempotency-Key: k").is(404)
	require.Zero(t, counts(t, db.Pool, storedKeys))
}

func TestKeysAreRead(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	long := strings.Repeat("k", 255)
	for i, row := range []struct{ header, key string }{
		{"bare", "bare"}, {`"quoted"`, "quoted"}, {`"a \"b\" \\"`, `a "b" \`}, {"8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"},
		{long, long}, {`"` + long + `"`, ""}, {long + "k", "-"}, {`""`, "-"}, {`"open`, "-"}, {`"a"b`, "-"}, {`"a\b"`, "-"}, {"\xc3\xbc", "-"}, {"a\tb", "-"},
	} {
		a := s.do("POST", "/api/customers", map[string]any{"name": "x", "email": fmt.Sprintf("c%d@example.com", i)}, "Idempotency-Key: "+row.header)
		switch row.key {
		case "-":
			require.Equal(t, []string{"header.Idempotency-Key must be 1 to 255 visible ASCII characters, bare or in quotes, and there once"},
				a.problem(422, "invalid"), row.header)
		case "":
			a.problem(422, "idempotency-key-reused")
		default:
			a.is(201)
			var n int
			require.NoError(t, db.Pool.QueryRow(t.Context(), storedKeys+` WHERE key = $1`, row.key).Scan(&n))
			require.Equal(t, 1, n, row.header)
		}
	}
}

// What was refused or failed leaves nothing, and the key may be used again.
func TestRefusedRequestsLeaveTheirKeyFree(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	ada := s.customer("ada@example.com")
	eve := `{"name":"Eve","email":"ada@example.com"}`
	key := "Idempotency-Key: k"
	s.do("POST", "/api/customers", `{"name":""}`, key).problem(422, "invalid")
	s.do("POST", "/api/customers", `{`, key).problem(400, "malformed-body")
	s.do("POST", "/api/customers", eve, key, "Content-Type: text/plain").problem(415, "unsupported-media-type")
	s.do("POST", "/api/customers", eve, key).problem(409, "email-taken")
	s.do("POST", "/api/orders", orderOf("0193a5c3-11d4-7e08-b2a9-6f0d3c8e5b71"), key).problem(422, "invalid")
	s.do("PATCH", at("/api/customers/%s", ada), `{"name":"x"}`, key, `If-Match: "7"`).problem(412, "version-mismatch")
	_, err := db.Pool.Exec(t.Context(), `ALTER TABLE outbox ADD CONSTRAINT broken CHECK (false) NOT VALID`)
	require.NoError(t, err)
	s.do("POST", "/api/customers", `{"name":"Eve","email":"eve@example.com"}`, key).problem(500, "internal")
	require.Zero(t, counts(t, db.Pool, storedKeys))
	require.Equal(t, 1, counts(t, db.Pool, changeEvents))
	_, err = db.Pool.Exec(t.Context(), `ALTER TABLE outbox DROP CONSTRAINT broken`)
	require.NoError(t, err)
	s.do("DELETE", at("/api/customers/%s", ada), nil).is(204)
	replays(t, s.do("POST", "/api/customers", eve, key).is(201), s.do("POST", "/api/customers", eve, key))
}

// Two servers on one database, as behind a load balancer.
func TestRow21ParallelRequestsWithOneKeyMakeOneEvent(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	servers := []*server{startAt(t, db.URL, store.Config{}), startAt(t, db.URL, store.Config{})}
	c := servers[0].customer("ada@example.com")
	o := servers[0].order(c["id"])
	for _, row := range []struct{ method, path, body string }{
		{"POST", "/api/customers", `{"name":"Eve","email":"eve@example.com"}`},
		{"POST", "/api/orders", toJSON(t, orderOf(c["id"]))},
		{"PATCH", at("/api/customers/%s", c), `{"name":"Countess"}`},
		{"POST", at("/api/orders/%s/cancel", o), `{}`},
	} {
		events := counts(t, db.Pool, changeEvents)
		answers := make([]answer, 64)
		var first atomic.Int64
		var wg sync.WaitGroup
		for i := range answers {
			wg.Go(func() {
				answers[i] = servers[i%2].do(row.method, row.path, row.body, "Idempotency-Key: one "+row.path)
				if answers[i].Header.Get("Idempotency-Replayed") == "" {
					first.Add(1)
				}
			})
		}
		wg.Wait()
		for _, a := range answers {
			require.Equal(t, answers[0].Status, a.Status, a.Raw)
			require.Equal(t, answers[0].Raw, a.Raw)
			require.Equal(t, answers[0].Header.Get("ETag"), a.Header.Get("ETag"))
		}
		require.Less(t, answers[0].Status, 300, answers[0].Raw)
		require.EqualValues(t, 1, first.Load())
		require.Equal(t, events+1, counts(t, db.Pool, changeEvents), row.path)
	}
}

// hold keeps a customer locked until the test lets go.
func hold(t *testing.T, pool *pgxpool.Pool, id any) (letGo func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT FROM customers WHERE id = $1 FOR UPDATE`, id)
	require.NoError(t, err)
	letGo = sync.OnceFunc(func() { _ = tx.Rollback(context.Background()) })
	t.Cleanup(letGo)
	return letGo
}

func waiting(t *testing.T, pool *pgxpool.Pool) bool {
	return counts(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
}

func TestTheSecondRequestWaitsForTheFirst(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	c := s.customer("ada@example.com")
	path := at("/api/customers/%s", c)
	letGo := hold(t, db.Pool, c["id"])
	answers := make(chan answer, 2)
	for range 2 {
		go func() { answers <- s.do("PATCH", path, `{"name":"Eve"}`, "Idempotency-Key: k") }()
	}
	require.Eventually(t, func() bool { return waiting(t, db.Pool) }, time.Minute, time.Millisecond)
	s.do("GET", path, nil).is(200)
	require.Empty(t, answers)
	letGo()
	a, b := <-answers, <-answers
	if a.Header.Get("Idempotency-Replayed") != "" {
		a, b = b, a
	}
	replays(t, a.is(200), b)
}

func TestTheSecondRequestDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{KeyWait: 50 * time.Millisecond})
	c := s.customer("ada@example.com")
	path := at("/api/customers/%s", c)
	letGo := hold(t, db.Pool, c["id"])
	first := make(chan answer, 1)
	go func() { first <- s.do("PATCH", path, `{"name":"Eve"}`, "Idempotency-Key: k") }()
	require.Eventually(t, func() bool { return waiting(t, db.Pool) }, time.Minute, time.Millisecond)
	s.do("PATCH", path, `{"name":"Eve"}`, "Idempotency-Key: k").problem(409, "idempotency-key-in-flight")
	letGo()
	replays(t, (<-first).is(200), s.do("PATCH", path, `{"name":"Eve"}`, "Idempotency-Key: k"))
}

func TestKeysExpire(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var later atomic.Int64
	s := startAt(t, db.URL, store.Config{Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }})
	post := func(n int) answer {
		return s.do("POST", "/api/customers", map[string]any{"name": "x", "email": fmt.Sprintf("c%d@example.com", n)}, "Idempotency-Key: k")
	}
	first := post(1).is(201)
	later.Store(int64(24*time.Hour - time.Minute))
	replays(t, first, post(1))
	later.Store(int64(24*time.Hour + time.Minute))
	post(2).is(201)
	require.Equal(t, 1, counts(t, db.Pool, storedKeys))
	later.Store(int64(49 * time.Hour))
	n, err := s.store.RemoveExpiredKeys(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	require.Zero(t, counts(t, db.Pool, storedKeys))
}

// The connection to the database breaks around COMMIT: the server has
// committed, or has not, and the API can't know. The request that is sent again
// makes one event, and gets the answer of what took place.
func TestRow08UnknownOutcomeAndRetryMakeOneEvent(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	proxy := newProxy(t, db.URL)
	s := startAt(t, proxy.url, store.Config{})
	s.customer("warm@example.com")
	for i, row := range []struct {
		name      string
		committed bool
	}{{"the answer is lost", true}, {"the statement is lost", false}} {
		for j, keyed := range []string{"POST", "PATCH"} {
			method, path := keyed, "/api/customers"
			body := map[string]any{"name": "Eve", "email": fmt.Sprintf("eve%d%d@example.com", i, j)}
			if method == "PATCH" {
				path = at("/api/customers/%s", s.customer(fmt.Sprintf("ada%d%d@example.com", i, j)))
			}
			events := counts(t, db.Pool, changeEvents)
			key := fmt.Sprintf("Idempotency-Key: k %d %d", i, j)
			proxy.breakAt("INSERT INTO idempotency_keys", row.committed)
			a := s.do(method, path, body, key)
			require.True(t, proxy.heal(), "no connection broke")
			if a.Status < 300 {
				// The API found out by itself, when it could connect again.
				require.True(t, row.committed, row.name)
			} else {
				a.problem(503, "unavailable")
			}
			b := s.do(method, path, body, key)
			require.Less(t, b.Status, 300, b.Raw)
			if row.committed {
				require.Equal(t, "true", b.Header.Get("Idempotency-Replayed"), row.name)
			}
			require.Equal(t, events+1, counts(t, db.Pool, changeEvents), row.name)
		}
	}
}

// proxy stands between the API and PostgreSQL, and breaks connections.
type proxy struct {
	url string

	mu     sync.Mutex
	at     string // what a message from the API must have in it to break its connection
	passes bool   // whether that message still arrives
	broken bool   // no new connections
}

func newProxy(t *testing.T, dsn string) *proxy {
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	network, address := "tcp", u.Host
	if host := u.Query().Get("host"); host != "" {
		network, address = "unix", host
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	u.Host = ln.Addr().String()
	p := &proxy{url: u.String()}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, address)
			if err != nil || p.refuses() {
				_ = client.Close()
				if err == nil {
					_ = server.Close()
				}
				continue
			}
			var cut atomic.Bool
			wg.Go(func() { p.forward(client, server, &cut) })
			wg.Go(func() {
				defer func() { _ = client.Close() }()
				b := make([]byte, 64<<10)
				for {
					n, err := server.Read(b)
					if cut.Load() {
						// What is answered is lost; the end of it means that it was done.
						_, _ = io.Copy(io.Discard, server)
						return
					}
					if err != nil {
						return
					}
					if _, err := client.Write(b[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	return p
}

func (p *proxy) refuses() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken
}

func (p *proxy) breakAt(what string, passes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.passes = what, passes
}

// heal lets connections through again, and reports whether one broke.
func (p *proxy) heal() (broke bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	broke = p.broken
	p.at, p.broken = "", false
	return broke
}

// hit reports whether a connection breaks at what the API sends, and whether
// that still arrives. A statement that is prepared first is sent in two parts;
// its values come with the second.
func (p *proxy) hit(sent []byte, armed *bool) (cut, passes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == "" {
		return false, false
	}
	if strings.Contains(string(sent), p.at) {
		*armed = true
		return false, false
	}
	if *armed {
		p.broken = true
		return true, p.passes
	}
	return false, false
}

func (p *proxy) forward(client, server net.Conn, cut *atomic.Bool) {
	defer func() { _ = server.Close() }()
	b := make([]byte, 1<<20)
	armed := false
	for {
		n, err := client.Read(b)
		if err != nil {
			return
		}
		hit, passes := p.hit(b[:n], &armed)
		if hit {
			cut.Store(true)
			if passes {
				_, _ = server.Write(b[:n])
				// Terminate comes after what was sent is done.
				_, _ = server.Write([]byte{'X', 0, 0, 0, 4})
				_, _ = io.Copy(io.Discard, client)
			}
			return
		}
		if _, err := server.Write(b[:n]); err != nil {
			return
		}
	}
}
