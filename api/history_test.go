package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"outflow/internal/pgtest"
	"outflow/store"
)

// The model: what an entity is at a version. A customer's a is its name and b
// its phone; an order's a is its item and b stays empty.
type modelState struct {
	a, b, status string
	deleted      bool
}

// modelOp is an operation of a client, and what came of it.
type modelOp struct {
	kind   string // get, put, patchA, patchB, cancel, delete
	entity int
	match  bool // with If-Match: the version that the client saw last

	demands    int64 // that version
	value      string
	began, end int64 // by a clock that all clients share
	status     int
	problem    string
	version    int64 // with a success, but for a delete
	state      modelState
}

func (o *modelOp) String() string {
	return fmt.Sprintf("[%d-%d] %s of %d by %q, If-Match %d: %d %s, version %d %+v", o.began, o.end, o.kind, o.entity, o.value, o.demands, o.status, o.problem, o.version, o.state)
}

func (o *modelOp) writes() bool { return o.kind != "get" }

// apply is what the operation makes of a state; ok is false where it is refused.
func (o *modelOp) apply(s modelState, order bool) (after modelState, ok bool) {
	switch {
	case s.deleted:
		return s, false
	case o.kind == "get":
		return s, true
	case o.kind == "delete":
		s.deleted = true
		return s, !order || s.status == "cancelled"
	case order && s.status != "placed":
		return s, false
	case o.kind == "cancel":
		s.status = "cancelled"
	case o.kind == "patchB":
		s.b = o.value
	case o.kind == "patchA":
		s.a = o.value
	case o.kind == "put":
		s.a, s.b = o.value, ""
	}
	return s, true
}

// explain holds the history of one entity against the model. Every success
// tells its version, so there is one order of the writes that can explain it;
// what remains to check is that each follows from the one before by the model,
// that the order keeps to the clock, and that there was a moment for every
// refusal. The history begins with the entity at version 1.
func explain(first modelState, order bool, ops []*modelOp) error {
	states := map[int64]modelState{1: first}
	writers := map[int64]*modelOp{}
	last := int64(1)
	var deleted *modelOp
	for _, o := range ops {
		if !o.writes() || o.status >= 300 {
			continue
		}
		if o.kind == "delete" {
			if deleted != nil {
				return fmt.Errorf("deleted twice: %v and %v", deleted, o)
			}
			deleted = o
			continue
		}
		if other := writers[o.version]; other != nil {
			return fmt.Errorf("two writes led to version %d: %v and %v", o.version, other, o)
		}
		writers[o.version], last = o, max(last, o.version)
	}
	if deleted != nil {
		last++
		deleted.version, writers[last] = last, deleted
	}
	for v := int64(2); v <= last; v++ {
		o := writers[v]
		if o == nil {
			return fmt.Errorf("nobody's write led to version %d", v)
		}
		after, ok := o.apply(states[v-1], order)
		if !ok {
			return fmt.Errorf("the state %+v does not allow %v", states[v-1], o)
		}
		if o != deleted && after != o.state {
			return fmt.Errorf("%v should have led from %+v to %+v", o, states[v-1], after)
		}
		if o.match && o.demands != v-1 {
			return fmt.Errorf("%v overwrote version %d", o, v-1)
		}
		states[v] = after
	}
	for _, o := range ops {
		if o.status == 200 && !o.writes() && (o.state != states[o.version] || states[o.version].deleted || o.version > last) {
			return fmt.Errorf("%v shows what never was: %+v", o, states[o.version])
		}
	}
	// The clock: what had ended before another began comes before it.
	for _, o := range ops {
		low, high := int64(1), last // the versions that there were while it ran
		for _, p := range ops {
			if p.status >= 300 {
				continue
			}
			switch {
			case p.end < o.began:
				low = max(low, p.version)
			case o.end < p.began && p.writes():
				high = min(high, p.version-1)
			case o.end < p.began:
				high = min(high, p.version)
			}
		}
		if low > high {
			return fmt.Errorf("%v began after version %d was there, and ended before version %d was gone", o, low, high)
		}
		switch {
		case o.status < 300 && o.writes():
			low++ // it made its version itself
			if o.version < low || o.version > high {
				return fmt.Errorf("%v, while the versions were %d to %d", o, low-1, high)
			}
			continue
		case o.status < 300:
			if o.version < low || o.version > high {
				return fmt.Errorf("%v, while the versions were %d to %d", o, low, high)
			}
			continue
		}
		explained := o.problem == "write-conflict" // nothing was written, and it says so
		for v := low; v <= high && !explained; v++ {
			_, allowed := o.apply(states[v], order)
			switch o.problem {
			case "not-found":
				explained = states[v].deleted
			case "version-mismatch":
				explained = o.match && v != o.demands && !states[v].deleted
			case "order-state":
				explained = !allowed && !states[v].deleted
			}
		}
		if !explained {
			return fmt.Errorf("%v is no answer for any of the versions %d to %d: %+v", o, low, high, states)
		}
	}
	return nil
}

// TestHistoriesAreLinearizable lets several clients work on the same customers
// and orders at once, through two processes, one of which shares commits, and
// looks for an order of their operations that explains all that they were told.
// A failure names the seed that repeats the operations; how they interleave is
// up to the machine.
func TestHistoriesAreLinearizable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var servers []*server
	for range 2 {
		pool, err := store.Open(t.Context(), db.URL, 8)
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		servers = append(servers, serve(t, store.New(pool, store.Config{})))
	}
	sharing, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- servers[0].store.Run(sharing) }()
	defer func() { stop(); require.NoError(t, <-ended) }()
	owner := servers[0].customer("owner@example.com")
	var counter atomic.Int64
	rapid.Check(t, func(t *rapid.T) {
		const customersAt, entities = 2, 3 // two customers, an order
		w := &modelWorld{clock: &counter, servers: servers, owner: owner["id"].(string)}
		for i := range entities {
			if err := w.create(i >= customersAt); err != nil {
				t.Fatal(err)
			}
		}
		clients := make([][]*modelOp, rapid.IntRange(2, 5).Draw(t, "clients"))
		for i := range clients {
			for range rapid.IntRange(3, 12).Draw(t, "operations") {
				o := &modelOp{entity: rapid.IntRange(0, entities-1).Draw(t, "entity"), match: rapid.Bool().Draw(t, "If-Match")}
				kinds := []string{"get", "get", "put", "put", "patchA", "patchA", "patchB", "patchB", "patchB", "delete"}
				if o.entity >= customersAt {
					kinds = []string{"get", "get", "put", "put", "patchA", "patchA", "patchA", "cancel", "delete"}
				}
				o.kind = rapid.SampledFrom(kinds).Draw(t, "kind")
				clients[i] = append(clients[i], o)
			}
		}
		var group sync.WaitGroup
		failures := make([]error, len(clients))
		for i, ops := range clients {
			group.Go(func() { failures[i] = w.run(i, ops) })
		}
		group.Wait()
		var check []*modelOp // everybody's last look
		for i := range entities {
			check = append(check, &modelOp{kind: "get", entity: i})
		}
		failures = append(failures, w.run(0, check))
		for _, err := range failures {
			if err != nil {
				t.Fatal(err)
			}
		}
		clients = append(clients, check)
		for i := range entities {
			var of []*modelOp
			for _, ops := range clients {
				for _, o := range ops {
					if o.entity == i {
						of = append(of, o)
					}
				}
			}
			if err := explain(w.first[i], i >= customersAt, of); err != nil {
				for _, o := range of {
					t.Log(o)
				}
				t.Fatal(err)
			}
		}
	})
}

// modelWorld is what the clients work on.
type modelWorld struct {
	clock   *atomic.Int64
	servers []*server
	owner   string
	paths   []string
	first   []modelState
}

func (w *modelWorld) create(order bool) error {
	n := w.clock.Add(1)
	path, body := customers, fmt.Sprintf(`{"name":"first","email":"m%d@example.com"}`, n)
	if order {
		path, body = "/api/orders", w.order("first")
	}
	status, answer, err := w.do(w.servers[0], "POST", path, body, "")
	if err != nil || status != 201 {
		return fmt.Errorf("create: %d %v %w", status, answer, err)
	}
	w.paths = append(w.paths, path+"/"+answer["id"].(string))
	w.first = append(w.first, stateOf(answer))
	return nil
}

func (w *modelWorld) order(sku string) string {
	return fmt.Sprintf(`{"customer_id":%q,"currency":"EUR","items":[{"sku":%q,"quantity":1,"unit_price":1}]}`, w.owner, sku)
}

func stateOf(answer map[string]any) modelState {
	s := modelState{status: answer["status"].(string)}
	if items, ok := answer["items"].([]any); ok {
		s.a = items[0].(map[string]any)["sku"].(string)
		return s
	}
	s.a = answer["name"].(string)
	s.b, _ = answer["phone"].(string)
	return s
}

// run is a client: it does one operation after the other.
func (w *modelWorld) run(client int, ops []*modelOp) error {
	seen := map[int]int64{}
	for _, o := range ops {
		o.began = w.clock.Add(1)
		o.value = fmt.Sprint("v", o.began)
		order := strings.HasPrefix(w.paths[o.entity], "/api/orders")
		method, path, body, match := "", w.paths[o.entity], "", ""
		switch o.kind {
		case "get":
			method, o.match = "GET", false
		case "put":
			method, body = "PUT", fmt.Sprintf(`{"name":%q,"email":"e%d@example.com"}`, o.value, o.began)
			if order {
				body = w.order(o.value)
			}
		case "patchA":
			method, body = "PATCH", fmt.Sprintf(`{"name":%q}`, o.value)
			if order {
				body = fmt.Sprintf(`{"items":[{"sku":%q,"quantity":1,"unit_price":1}]}`, o.value)
			}
		case "patchB":
			method, body = "PATCH", fmt.Sprintf(`{"phone":%q}`, o.value)
		case "cancel":
			method, path = "POST", path+"/cancel"
		case "delete":
			method = "DELETE"
		}
		if o.match {
			o.demands = max(1, seen[o.entity])
			match = fmt.Sprintf(`"%d"`, o.demands)
		}
		status, answer, err := w.do(w.servers[client%len(w.servers)], method, path, body, match)
		o.end, o.status = w.clock.Add(1), status
		switch {
		case err != nil:
			return fmt.Errorf("%v: %w", o, err)
		case status == 200:
			o.version, o.state = int64(answer["version"].(float64)), stateOf(answer)
			seen[o.entity] = o.version
		case status >= 300:
			_, o.problem, _ = strings.Cut(answer["type"].(string), "/problems/")
		}
	}
	return nil
}

func (w *modelWorld) do(s *server, method, path, body, match string) (status int, answer map[string]any, err error) {
	req, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if match != "" {
		req.Header.Set("If-Match", match)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		return 0, nil, err
	}
	raw, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err == nil && len(raw) > 0 {
		err = json.Unmarshal(raw, &answer)
	}
	return resp.StatusCode, answer, err
}
