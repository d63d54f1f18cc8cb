package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/api"
	"outflow/internal/pgtest"
	"outflow/store"
)

const feed = "/api/events"

// sent is a server-sent event: its lines by their field; a comment's is "".
type sent map[string]string

// stream is a stream of server-sent events.
type stream struct {
	t      testing.TB
	resp   *http.Response
	lines  *bufio.Scanner
	cancel context.CancelFunc
}

// listen opens a stream.
func (s *server) listen(path string, headers ...string) *stream {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	req, err := http.NewRequestWithContext(ctx, "GET", s.URL+path, nil)
	require.NoError(s.t, err)
	req.Header.Set("Accept", "text/event-stream")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := s.Client().Do(req)
	require.NoError(s.t, err)
	require.Equal(s.t, 200, resp.StatusCode)
	require.Equal(s.t, "text/event-stream", resp.Header.Get("Content-Type"))
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	st := &stream{s.t, resp, lines, cancel}
	s.t.Cleanup(st.close)
	return st
}

func (st *stream) close() {
	st.cancel()
	_ = st.resp.Body.Close()
}

// next returns the next block, nil at the end.
func (st *stream) next() sent {
	e := sent{}
	for st.lines.Scan() {
		if st.lines.Text() == "" {
			return e
		}
		name, value, _ := strings.Cut(st.lines.Text(), ":")
		e[name] = strings.TrimPrefix(value, " ")
	}
	return nil
}

// event returns the next block that has data, and that data.
func (st *stream) event() (id string, data map[string]any) {
	st.t.Helper()
	for {
		e := st.next()
		require.NotNil(st.t, e, "the stream ended: %v", st.lines.Err())
		if e["data"] != "" {
			require.NoError(st.t, json.Unmarshal([]byte(e["data"]), &data))
			return e["id"], data
		}
	}
}

func cursor(a answer) string { a.t.Helper(); return a.object()["next_cursor"].(string) }

func TestFeedIsReadFromTheBeginning(t *testing.T) {
	t.Parallel()
	s := start(t)
	empty := s.do("GET", feed, nil).is(200)
	require.Empty(t, empty.data())
	c := s.customer("ada@example.com")
	o := s.order(c["id"])
	s.do("POST", at("/api/orders/%s/cancel", o), nil).is(200)
	s.do("DELETE", at("/api/customers/%s", c), nil).is(204)
	want := []string{"customer.created.v1", "notification.requested.v1", "order.placed.v1", "order.cancelled.v1", "notification.requested.v1", "customer.deleted.v1"}

	all := s.do("GET", feed, nil).is(200)
	require.Equal(t, want, types(all.data()))
	require.Equal(t, s.do("GET", at("/api/orders/%s/events", o), nil).data(), s.do("GET", feed+"?aggregate_type=order", nil).is(200).data())
	for name, query := range map[string]string{"from nothing": "?cursor=" + cursor(empty), "slash": "/"} {
		require.Equal(t, all.data(), s.do("GET", feed+query, nil).is(200).data(), name)
	}
	var got []string
	at := ""
	for range want {
		a := s.do("GET", feed+"?limit=1"+at, nil).is(200)
		require.Len(t, a.data(), 1)
		got = append(got, types(a.data())...)
		at = "&cursor=" + cursor(a)
		require.Equal(t, `<`+feed+`?cursor=`+cursor(a)+`&limit=1>; rel="next"`, a.Header.Get("Link"))
	}
	require.Equal(t, want, got)
	end := s.do("GET", feed+"?"+at[1:], nil).is(200)
	require.Empty(t, end.data())
	last := cursor(end)
	require.Equal(t, last, cursor(s.do("GET", feed+"?cursor="+last, nil).is(200)), "nothing is new")
	require.Equal(t, last, cursor(s.do("GET", feed, nil, "Last-Event-ID: "+last).is(200)))
	require.Equal(t, last, cursor(s.do("GET", feed+"?cursor="+cursor(all), nil, "Last-Event-ID: "+last).is(200)), "a browser knows better")

	for query, want := range map[string][]string{
		"?type=order.placed.v1":                {"order.placed.v1"},
		"?aggregate_type=notification":         {want[1], want[4]},
		"?aggregate_id=" + c["id"].(string):    {want[0], want[5]},
		"?aggregate_id=" + o["id"].(string):    {want[2], want[3]},
		"?type=x&aggregate_type=order":         nil,
		"?aggregate_id=" + someID + "&limit=1": nil,
		"?type=order.cancelled.v1&aggregate_id=" + o["id"].(string) + "&aggregate_type=order": {want[3]},
	} {
		require.Equal(t, want, types(s.do("GET", feed+query, nil).is(200).data()), query)
	}
}

func types(events []map[string]any) []string {
	var all []string
	for _, e := range events {
		all = append(all, e["type"].(string))
	}
	return all
}

func TestFeedRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	s := start(t)
	for query, want := range map[string]string{
		"?wait=30":              "query.wait must be a number of seconds, such as 30s",
		"?wait=-1s":             "query.wait must be a number of seconds, such as 30s",
		"?wait=s":               "query.wait must be a number of seconds, such as 30s",
		"?wait=":                "query.wait must be a number of seconds, such as 30s",
		"?type=":                "query.type must be the type of an event, such as order.placed.v1",
		"?type=Order":           "query.type must be the type of an event, such as order.placed.v1",
		"?aggregate_type=house": "query.aggregate_type must be one of customer, order, notification",
		"?aggregate_id=7":       "query.aggregate_id must be a UUID",
		"?limit=0":              "query.limit must be an integer of at least 1",
		"?since=now":            "query.since is not known here",
		"?cursor=x":             "query.cursor must be the next_cursor of this list",
		"?cursor=":              "query.cursor must be the next_cursor of this list",
		"?cursor=" + someID:     "query.cursor must be the next_cursor of this list",
	} {
		require.Equal(t, []string{want}, s.do("GET", feed+query, nil).problem(422, "invalid"), query)
		require.Equal(t, []string{want}, s.do("GET", feed+query, nil, "Accept: text/event-stream").problem(422, "invalid"), query)
	}
	require.Equal(t, []string{"header.Last-Event-ID must be the id of an event of this stream, or a next_cursor of this list"},
		s.do("GET", feed, nil, "Last-Event-ID: 7").problem(422, "invalid"))
	s.do("GET", feed, nil, "Accept: text/html").problem(406, "not-acceptable")
	require.Equal(t, "application/json", s.do("GET", feed, nil, "Accept: application/json, text/event-stream;q=0.5").is(200).Header.Get("Content-Type"))
	require.Equal(t, "text/event-stream", s.do("HEAD", feed, nil, "Accept: text/event-stream").is(200).Header.Get("Content-Type"))
	s.do("GET", customers, nil, "Accept: text/event-stream").problem(406, "not-acceptable")
}

// TestCursorsOfAnotherHistoryAreGone reads on in another database that has the
// same secret to make cursors with, as a restored one does: all databases of
// these tests are copies of one.
func TestCursorsOfAnotherHistoryAreGone(t *testing.T) {
	t.Parallel()
	s, r := start(t), start(t)
	s.customer("ada@example.com")
	at := cursor(s.do("GET", feed, nil).is(200))
	r.do("GET", feed+"?cursor="+at, nil).problem(410, "history-gone")
	r.do("GET", feed+"?wait=5s&cursor="+at, nil).problem(410, "history-gone")
	r.do("GET", feed, nil, "Accept: text/event-stream", "Last-Event-ID: "+at).problem(410, "history-gone")
}

// shortLived cuts off whatever lasts.
func shortLived(srv *http.Server) {
	srv.ReadTimeout, srv.WriteTimeout = time.Second, time.Second
}

func startFeed(t *testing.T, heartbeat time.Duration, opts ...func(*http.Server)) *server {
	t.Helper()
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 8)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return serveConfigured(t, store.New(pool, store.Config{}), api.Config{Heartbeat: heartbeat}, opts...)
}

func TestARequestWaitsForEvents(t *testing.T) {
	t.Parallel()
	s := startFeed(t, time.Minute, shortLived)
	s.customer("ada@example.com")
	at := cursor(s.do("GET", feed, nil).is(200))
	began := time.Now()
	a := s.do("GET", feed+"?wait=2s&cursor="+at, nil).is(200) // longer than the server's timeouts
	require.Empty(t, a.data())
	require.Equal(t, at, cursor(a))
	require.Greater(t, time.Since(began), 1900*time.Millisecond)

	got := make(chan answer)
	go func() { got <- s.do("GET", feed+"?wait=20s&type=customer.created.v1&cursor="+at, nil) }()
	c := s.customer("eve@example.com")
	select {
	case a := <-got:
		require.Len(t, a.is(200).data(), 1)
		require.Equal(t, c["id"], a.data()[0]["aggregate_id"])
	case <-time.After(10 * time.Second):
		t.Fatal("it was not told")
	}
	require.Less(t, time.Since(began), 15*time.Second)
	s.do("GET", customers, nil).is(200) // the connection's timeouts are back
}

func TestAStreamGoesOn(t *testing.T) {
	t.Parallel()
	s := startFeed(t, 50*time.Millisecond, shortLived)
	ada := s.customer("ada@example.com")
	st := s.listen(feed + "?type=customer.created.v1")
	require.Equal(t, "no-store", st.resp.Header.Get("Cache-Control"))
	require.Equal(t, sent{"retry": "2000"}, st.next())
	first, e := st.event()
	require.Equal(t, ada["id"], e["aggregate_id"])
	require.Equal(t, s.do("GET", feed+"?limit=1", nil).data()[0], e, "as in the list")
	// Silence is filled, for longer than the server's timeouts.
	s.do("PATCH", at("/api/customers/%s", ada), `{"name":"Ada King"}`).is(200)
	place := first
	for began := time.Now(); time.Since(began) < 2*time.Second; {
		beat := st.next()
		require.NotNil(t, beat, st.lines.Err())
		require.Empty(t, beat["data"])
		if beat["id"] != "" {
			place = beat["id"]
		}
	}
	require.NotEqual(t, first, place, "what the filter leaves out is passed")
	eve := s.customer("eve@example.com")
	_, e = st.event()
	require.Equal(t, eve["id"], e["aggregate_id"])
	st.close()
	for _, id := range []string{first, place} {
		again := s.listen(feed+"?type=customer.created.v1", "Last-Event-ID: "+id)
		_, e = again.event()
		require.Equal(t, eve["id"], e["aggregate_id"], "it goes on behind what was there")
		again.close()
	}
}

// TestStoppingEndsWhatWaits: a server that shuts down waits for its requests.
func TestStoppingEndsWhatWaits(t *testing.T) {
	t.Parallel()
	s := startFeed(t, time.Minute)
	s.customer("ada@example.com")
	at := cursor(s.do("GET", feed, nil).is(200))
	st := s.listen(feed)
	_, _ = st.event()
	got := make(chan answer, 1)
	var group sync.WaitGroup
	group.Go(func() { got <- s.do("GET", feed+"?wait=60s&cursor="+at, nil) })
	require.Eventually(t, func() bool { return s.store.FeedWaits() == 2 }, time.Minute, time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.NoError(t, s.Config.Shutdown(ctx))
	group.Wait()
	require.Equal(t, at, cursor((<-got).is(200)))
	for st.next() != nil {
	}
	require.NoError(t, st.lines.Err(), "it ended in an orderly way")
}

// TestWhoLeavesIsForgotten opens streams and leaves.
func TestWhoLeavesIsForgotten(t *testing.T) {
	t.Parallel()
	s := startFeed(t, 20*time.Millisecond)
	var all []*stream
	for range 50 {
		all = append(all, s.listen(feed))
	}
	require.Eventually(t, func() bool { return s.store.FeedWaits() == len(all) }, time.Minute, time.Millisecond)
	for _, st := range all {
		st.close()
	}
	require.Eventually(t, func() bool { return s.store.FeedWaits() == 0 }, time.Minute, time.Millisecond)
}

// TestEveryClientSeesEveryEventOnce reads while others write: by pages, by
// waiting, and by streams that are cut off again and again.
func TestEveryClientSeesEveryEventOnce(t *testing.T) {
	t.Parallel()
	s := startFeed(t, 20*time.Millisecond)
	committing, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.store.Run(committing) }()
	defer func() { stop(); require.NoError(t, <-ended) }()
	const writers, changes = 6, 60
	total := writers * (changes + 2)
	var group sync.WaitGroup
	check := func(name string) func(e map[string]any) int {
		seen, versions := map[string]bool{}, map[string]float64{}
		return func(e map[string]any) int {
			id, aggregate, version := e["id"].(string), e["aggregate_id"].(string), e["version"].(float64)
			if seen[id] || version != versions[aggregate]+1 {
				t.Errorf("%s: event %s comes again, or version %v of %s after %v", name, id, version, aggregate, versions[aggregate])
			}
			seen[id], versions[aggregate] = true, version
			return len(seen)
		}
	}
	for name, query := range map[string]string{"pages": "?limit=3", "waiting": "?limit=20&wait=5s"} {
		group.Go(func() {
			count, at := check(name), ""
			for n := 0; n < total && !t.Failed(); {
				a := s.do("GET", feed+query+at, nil).is(200)
				for _, e := range a.data() {
					n = count(e)
				}
				at = "&cursor=" + url.QueryEscape(cursor(a))
			}
		})
	}
	for i := range 3 {
		group.Go(func() {
			count, headers := check(fmt.Sprint("stream ", i)), []string{}
			for n := 0; n < total && !t.Failed(); {
				st := s.listen(feed, headers...)
				for range 10 * (i + 1) {
					id, e := st.event()
					headers = []string{"Last-Event-ID: " + id}
					if n = count(e); n == total {
						break
					}
				}
				st.close()
			}
		})
	}
	for w := range writers {
		group.Go(func() {
			c := s.customer(fmt.Sprintf("c%d@example.com", w))
			for i := range changes {
				s.do("PATCH", at("/api/customers/%s", c), map[string]any{"name": fmt.Sprint("Ada ", i)}).is(200)
			}
		})
	}
	group.Wait()
	require.Equal(t, total, len(s.do("GET", feed+"?limit=500", nil).data()))
}

// TestAStreamOutlivesTheDatabase cuts the connections off under a stream.
func TestAStreamOutlivesTheDatabase(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, err := store.Open(t.Context(), db.URL+"&application_name=feed", 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := serveConfigured(t, store.New(pool, store.Config{}), api.Config{Heartbeat: 10 * time.Millisecond})
	s.customer("ada@example.com")
	st := s.listen(feed + "?aggregate_type=customer")
	_, _ = st.event()
	for range 3 {
		_, err = db.Pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'feed'`)
		require.NoError(t, err)
		require.NotNil(t, st.next())
	}
	require.Eventually(t, func() bool {
		return s.do("POST", customers, map[string]any{"name": "Eve", "email": "eve@example.com"}).Status == 201
	}, time.Minute, 10*time.Millisecond)
	_, e := st.event()
	require.Equal(t, "customer.created.v1", e["type"])
}
