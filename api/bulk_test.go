package api_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/api"
	"outflow/internal/pgtest"
	"outflow/store"
)

func newcomers(prefix string, n int) []any {
	all := make([]any, n)
	for i := range all {
		all[i] = map[string]any{"name": "Ada", "email": fmt.Sprintf("%s%d@example.com", prefix, i)}
	}
	return all
}

func TestBatchCreatesAllInOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	sent := newcomers("c", 1000)
	body := map[string]any{"customers": sent}
	a := s.do("POST", "/api/customers/batch", body, "Idempotency-Key: k").is(201)
	got := a.data()
	require.Len(t, got, 1000)
	orders := make([]any, 1000)
	for i, c := range got {
		require.Equal(t, sent[i].(map[string]any)["email"], c["email"])
		require.EqualValues(t, 1, c["version"])
		orders[i] = orderOf(c["id"])
	}
	require.Equal(t, got[7], s.do("GET", at("/api/customers/%s", got[7]), nil).is(200).object())
	placed := s.do("POST", "/api/orders/batch", map[string]any{"orders": orders}).is(201).data()
	require.Len(t, placed, 1000)
	require.Equal(t, got[999]["id"], placed[999]["customer_id"])
	require.Equal(t, 2000, counts(t, db.Pool, changeEvents))
	require.Equal(t, 3000, counts(t, db.Pool, `SELECT count(*) FROM outbox`), "with a welcome for each customer")
	replays(t, a, s.do("POST", "/api/customers/batch", body, "Idempotency-Key: k"))
	require.Equal(t, 2000, counts(t, db.Pool, changeEvents))
}

func TestBatchTellsAllProblemsAndCreatesNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	c := s.customer("taken@example.com")
	events := counts(t, db.Pool, changeEvents)
	for _, row := range []struct {
		path, body string
		status     int
		slug       string
		problems   []string
	}{
		{"customers", `{"customers":[{"name":"","email":"a@example.com"},{"name":"b","email":"b@example.com"},{"name":"c","email":7,"x":1}]}`, 422, "invalid",
			[]string{"body.customers[0].name is required", "body.customers[2].email must be a string", "body.customers[2].x is not known here"}},
		{"customers", `{"customers":[{"name":"a","email":"a@example.com"},{"name":"b","email":"TAKEN@example.com"},{"name":"c","email":"A@example.com"}]}`, 409, "email-taken",
			[]string{"body.customers[1].email is the email of another customer", "body.customers[2].email is the email of another customer"}},
		{"customers", `{"customers":[]}`, 422, "invalid", []string{"body.customers must have 1 to 1000 items"}},
		{"customers", `{}`, 422, "invalid", []string{"body.customers is required"}},
		{"customers", `{"customers":{},"orders":[]}`, 422, "invalid", []string{"body.orders is not known here", "body.customers must be an array"}},
		{"customers", `[]`, 422, "invalid", []string{"body must be an object"}},
		{"customers", `{"customers":[7]}`, 422, "invalid", []string{"body.customers[0] must be an object"}},
		{"customers", `{"customers":[` + strings.Repeat(`{},`, 1000) + `{}]}`, 422, "invalid", []string{"body.customers must have 1 to 1000 items"}},
		{"customers", `{"customers":["` + strings.Repeat("x", 4<<20) + `"]}`, 413, "body-too-large", nil},
		{"orders", fmt.Sprintf(`{"orders":[%[1]s,{"customer_id":"0193a5c3-11d4-7e08-b2a9-6f0d3c8e5b71","currency":"EUR","items":[{"sku":"a","quantity":1,"unit_price":1}]},%[1]s]}`,
			toJSON(t, orderOf(c["id"]))), 422, "invalid", []string{"body.orders[1].customer_id must be the id of an existing customer"}},
	} {
		require.Equal(t, row.problems, s.do("POST", "/api/"+row.path+"/batch", row.body, "Idempotency-Key: k").problem(row.status, row.slug), row.body[:min(len(row.body), 200)])
	}
	require.Len(t, s.do("POST", "/api/customers/batch", `{"customers":[`+strings.Repeat(`{},`, 999)+`{}]}`).problem(422, "invalid"), 1001)
	require.Equal(t, events, counts(t, db.Pool, changeEvents))
	require.Zero(t, counts(t, db.Pool, storedKeys))
	s.do("POST", "/api/customers/batch", `{"customers":[{"name":"`+strings.Repeat("x", 100)+`","email":"a@example.com"}`+strings.Repeat(" ", 100<<10)+`]}`).is(201)
}

// outcome is a line of an import's answer.
type outcome struct {
	Line    int
	ID      string
	Problem *struct {
		Type, Title, Detail, Instance string
		Status                        int
		RequestID                     string `json:"request_id"`
		Errors                        []struct{ Location, Message string }
	}
}

func (a answer) outcomes() []outcome {
	a.t.Helper()
	require.Equal(a.t, "application/x-ndjson", a.Header.Get("Content-Type"))
	var all []outcome
	for l := range strings.Lines(a.Raw) {
		var o outcome
		require.NoError(a.t, json.Unmarshal([]byte(l), &o), l)
		all = append(all, o)
	}
	return all
}

const ndjson = "Content-Type: application/x-ndjson"

func TestImportAnswersLineByLine(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	c := s.customer("taken@example.com")
	lines := strings.Join([]string{
		`{"name":"a","email":"a@example.com"}`,
		``,
		`{"name":"","email":"b@example.com"}`,
		`{"name":"c","email":"TAKEN@example.com"}`,
		`{"name":`,
		`{"name":"x","email":"x@example.com","metadata":{"a":"` + strings.Repeat("x", 70_000) + `"}}`,
		`{"name":"d","email":"A@example.com"}`,
		"{\"name\":\"e\",\"email\":\"e@example.com\"}\r",
		`{"name":"f","email":"f@example.com"}`,
	}, "\n")
	want := map[int]string{1: "", 3: "invalid", 4: "email-taken", 5: "malformed-body", 6: "body-too-large", 7: "email-taken", 8: "", 9: ""}
	events := counts(t, db.Pool, `SELECT count(*) FROM outbox`)
	for _, validateOnly := range []bool{true, false} {
		a := s.do("POST", fmt.Sprintf("/api/customers/import?validate_only=%v", validateOnly), lines, ndjson, "Idempotency-Key: means nothing").is(200)
		last := 0
		for _, o := range a.outcomes() {
			require.Greater(t, o.Line, last, "in order")
			last = o.Line
			slug, known := want[o.Line]
			require.True(t, known, o)
			// What is only validated is compared with the lines that came with it.
			if slug == "" || validateOnly && o.Line == 7 && o.Problem == nil {
				require.Nil(t, o.Problem, a.Raw)
				require.Equal(t, validateOnly, o.ID == "")
				if !validateOnly {
					s.do("GET", "/api/customers/"+o.ID, nil).is(200)
				}
				continue
			}
			require.Equal(t, "/problems/"+slug, o.Problem.Type)
			require.Equal(t, a.Header.Get("X-Request-Id"), o.Problem.RequestID)
			require.NotEmpty(t, o.Problem.Detail)
			if slug == "invalid" {
				require.Equal(t, "body.name", o.Problem.Errors[0].Location)
			}
		}
		require.Len(t, a.outcomes(), len(want))
		if validateOnly {
			require.Equal(t, events, counts(t, db.Pool, `SELECT count(*) FROM outbox`))
		}
	}
	require.Equal(t, events+6, counts(t, db.Pool, `SELECT count(*) FROM outbox`), "a change and a welcome each")
	require.Zero(t, counts(t, db.Pool, storedKeys))

	a := s.do("POST", "/api/orders/import", toJSON(t, orderOf(c["id"]))+"\n"+toJSON(t, orderOf(someID))+"\n", ndjson).is(200).outcomes()
	require.Len(t, a, 2)
	s.do("GET", "/api/orders/"+a[0].ID, nil).is(200)
	require.Equal(t, 422, a[1].Problem.Status)
	require.Equal(t, "body.customer_id", a[1].Problem.Errors[0].Location)

	require.Empty(t, s.do("POST", "/api/orders/import", "", ndjson).is(200).outcomes())
	s.do("POST", "/api/orders/import", "{}").problem(415, "unsupported-media-type")
	s.do("POST", "/api/orders/import", "{}", ndjson, "Accept: application/json").problem(406, "not-acceptable")
	s.do("POST", "/api/orders/import?validate_only=yes", "{}", ndjson).problem(422, "invalid")
	s.do("POST", "/api/orders/import?dry_run=true", "{}", ndjson).problem(422, "invalid")
}

// A client that waits for each answer gets it before it sends the next line.
func TestImportAnswersAtOnce(t *testing.T) {
	t.Parallel()
	s := startAt(t, pgtest.New(t).URL, store.Config{})
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/customers/import", r)
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-ndjson")
	line := func(i int) string { return toJSON(t, newcomers("c", i+1)[i]) + "\n" }
	go func() { _, _ = w.Write([]byte(line(0))) }()
	resp, err := s.Client().Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	answers := bufio.NewScanner(resp.Body)
	for i := range 20 {
		require.True(t, answers.Scan())
		require.Contains(t, answers.Text(), fmt.Sprintf(`{"line":%d,"id":`, i+1))
		_, err := w.Write([]byte(line(i + 1)))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.True(t, answers.Scan())
	require.False(t, answers.Scan())
}

var longMetadata = func() string {
	var all []string
	for i := range 8 {
		all = append(all, fmt.Sprintf("\"m%d\":%q", i, strings.Repeat("x", 480)))
	}
	return strings.Join(all, ",")
}()

// endless is a body of many lines that is never in memory as a whole.
type endless struct {
	n, lines int
	rest     string
}

func (e *endless) Read(b []byte) (int, error) {
	for e.rest == "" {
		if e.n == e.lines {
			return 0, io.EOF
		}
		e.n++
		e.rest = fmt.Sprintf(`{"name":"Ada Lovelace","email":"ada%d@example.com","metadata":{%s}}`+"\n", e.n, longMetadata)
	}
	n := copy(b, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// A client that reads nothing before it has sent everything is served as well
// as others, and neither of them makes the server grow.
//
// It runs alone, because it measures the heap.
func TestLongImportsTakeConstantMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 113 MB")
	}
	const lines, bound = 30_000, 50 << 20
	s := startAt(t, pgtest.New(t).URL, store.Config{})
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "POST /api/customers/import?validate_only=true HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
	require.NoError(t, err)
	var highest atomic.Uint64
	body, sent := &endless{lines: lines}, 0
	b := make([]byte, 64<<10)
	for i := 0; ; i++ {
		n, err := io.ReadFull(body, b)
		sent += n
		_, werr := fmt.Fprintf(conn, "%x\r\n%s\r\n", n, b[:n])
		require.NoError(t, werr)
		if err != nil {
			break
		}
		if i%20 == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			highest.Store(max(highest.Load(), m.HeapInuse))
		}
	}
	_, err = io.WriteString(conn, "0\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	answers := bufio.NewScanner(resp.Body)
	n := 0
	for answers.Scan() {
		n++
		require.Equal(t, fmt.Sprintf(`{"line":%d}`, n), answers.Text())
	}
	require.NoError(t, answers.Err())
	require.Equal(t, lines, n)
	t.Logf("%d MB of heap at most, for %d MB", highest.Load()>>20, sent>>20)
	require.Greater(t, sent, 2*bound)
	require.Less(t, highest.Load(), uint64(bound))
}

// importing is a connection that has begun an import, and what it sends of it.
func importing(t *testing.T, s *server) (conn net.Conn, send func(chunk string) error) {
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = io.WriteString(conn, "POST /api/customers/import?validate_only=true HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
	require.NoError(t, err)
	return conn, func(chunk string) error {
		_, err := fmt.Fprintf(conn, "%x\r\n%s\r\n", len(chunk), chunk)
		return err
	}
}

// A client that takes nothing is patiently served as long as it sends, however
// much waits for it; when it does neither, it is cut off.
func TestImportWaitsForThoseWhoSend(t *testing.T) {
	t.Parallel()
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	const idle = time.Second
	s := serveConfigured(t, store.New(pool, store.Config{}), api.Config{ImportIdle: idle})
	conn, send := importing(t, s)
	pace := time.NewTicker(idle / 4)
	defer pace.Stop()
	const chunks, lines = 12, 4000
	for range chunks { // 24 MB of problems, in three times as long as it may be idle
		<-pace.C
		require.NoError(t, send(strings.Repeat("{}\n", lines)))
	}
	require.NoError(t, send(""))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, chunks*lines, bytes.Count(raw, []byte("\n")))

	conn, send = importing(t, s)
	require.NoError(t, send(strings.Repeat("{}\n", 10*lines))) // and then nothing
	resp, err = http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	raw, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(raw[len(raw)-1000:]), "/problems/request-timeout")

	conn, send = importing(t, s)
	for range chunks {
		require.NoError(t, send(strings.Repeat("{}\n", lines)))
	}
	require.NoError(t, send("")) // and takes nothing
	closed := make(chan struct{})
	go func() { defer close(closed); s.Close() }() // waits for the import
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		require.Fail(t, "the import holds on to its client")
	}
	raw, err = io.ReadAll(conn)
	require.True(t, err != nil || !bytes.HasSuffix(raw, []byte("0\r\n\r\n")), "the answer has no end")
}

// A client that goes away in the middle leaves what was complete, and nothing
// of the line that wasn't.
func TestImportThatBreaksOff(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startAt(t, db.URL, store.Config{})
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	body := `{"name":"a","email":"a@example.com"}` + "\n" + `{"name":"b","email":"b@example.com"}`
	_, err = fmt.Fprintf(conn, "POST /api/customers/import HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%s", len(body)+1, body)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return counts(t, db.Pool, changeEvents) == 1 }, time.Minute, 5*time.Millisecond)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	answers, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.Contains(t, string(answers), `{"line":1,"id":`)
	require.Contains(t, string(answers), `{"line":2,"problem":{"type":"/problems/malformed-body"`)
	require.Equal(t, 1, counts(t, db.Pool, changeEvents))
	s.customer("b@example.com")
}

func TestImportWithoutADatabase(t *testing.T) {
	t.Parallel()
	s := startAt(t, "postgres://nobody@127.0.0.1:1/none", store.Config{})
	s.do("POST", "/api/customers/import", `{"name":"a","email":"a@example.com"}`, ndjson).problem(503, "unavailable")
}

// Once the database is gone, the rest isn't tried, and every line learns it.
func TestImportThatLosesTheDatabase(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	proxy := newProxy(t, db.URL)
	s := startAt(t, proxy.url, store.Config{})
	proxy.breakAt(`copy "outbox"`, false)
	var lines strings.Builder
	for i := range 5000 {
		lines.WriteString(toJSON(t, map[string]any{"name": "a", "email": fmt.Sprintf("a%d@example.com", i)}) + "\n")
	}
	all := s.do("POST", "/api/customers/import", lines.String(), ndjson).is(200).outcomes()
	require.True(t, proxy.heal())
	require.Len(t, all, 5000)
	for i, o := range all {
		require.Equal(t, i+1, o.Line)
		require.Equal(t, "/problems/unavailable", o.Problem.Type)
	}
	require.Contains(t, all[4999].Problem.Detail, "not tried")
	require.Zero(t, counts(t, db.Pool, changeEvents))
	again := s.do("POST", "/api/customers/import", lines.String(), ndjson).is(200).outcomes()
	for _, o := range again {
		require.Nil(t, o.Problem)
	}
	require.Equal(t, 5000, counts(t, db.Pool, changeEvents))
}
