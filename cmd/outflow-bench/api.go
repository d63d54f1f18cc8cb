package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"outflow/domain"
	"outflow/store"
)

const theStatement = "statement" // the name of the limit of writes

var apiFigures = []figure{
	{
		name: "creates", what: "POST /api/customers by 64 clients: JSON, validation, unique email, change event, notification",
		limit:   "the store's own statement for one create, sent again by 64 clients of the database",
		goals:   []goal{ofLimit(1, theStatement, 1), p99Under(25), memoryUnder(150)},
		prepare: creates,
	},
	{
		name: "creates-keyed", what: "the same with an Idempotency-Key", limit: "the same without",
		goals:   []goal{ofLimit(1, "without key", 0.8), memoryUnder(150)},
		prepare: keyedCreates,
	},
	{
		name: "updates", what: "PUT /api/customers/{id} by 64 clients",
		limit:   "the store's own statements for one update, sent again by 64 clients of the database",
		goals:   []goal{ofLimit(1, theStatement, 1), p99Under(25), memoryUnder(150)},
		prepare: updates,
	},
	{
		name: "orders", what: "POST /api/orders by 64 clients: the customer is locked, then the order and its event are written",
		limit:   "the store's own statements for one order, sent again by 64 clients of the database",
		goals:   []goal{ofLimit(1, theStatement, 1), p99Under(25), memoryUnder(150)},
		prepare: orders,
	},
	{
		name: "create-latency", what: "POST /api/customers arriving at random, at half of what the slower of both sides can do",
		limit:   "the store's own statement for one create, arriving alike",
		goals:   []goal{p50Over(1, theStatement, 0.3), p99Over(1, theStatement, 3)},
		prepare: createLatency,
	},
	{
		name: "reads", what: "GET /api/customers/{id} by 64 clients, warm",
		limit:   "the store's SELECT by primary key, by 64 clients of the database; and a server of net/http that does nothing",
		goals:   []goal{ofLimit(1, "SELECT", 0.6), memoryUnder(150)},
		prepare: reads,
	},
	{
		name: "import", what: "NDJSON to POST /api/customers/import: validation, unique email, event and notification for every line",
		limit:   "COPY of the same rows into the same two tables, in one transaction",
		goals:   []goal{ofLimit(1, "COPY", 0.5), memoryUnder(150)},
		prepare: imports,
	},
}

var benchmark = domain.Metadata{Actor: "bench", CorrelationID: "0193a5c2-7b1e-7d3a-9c4f-2e6b8a1d0f35"}

// customer is what a client would send of a customer.
func customer(i int) domain.CustomerInput {
	n := strconv.Itoa(i)
	return domain.CustomerInput{
		Name: "Ada Lovelace " + n, Email: "ada" + n + "@example.com", Phone: "+44 20 7946 0018", Status: domain.CustomerActive,
		Address: &domain.Address{Line1: "12 St James's Square", City: "London", PostalCode: "SW1Y 4JH", Country: "GB"},
	}
}

func order(customer domain.ID) domain.OrderInput {
	return domain.OrderInput{CustomerID: customer, Currency: "GBP", Items: []domain.Item{
		{SKU: "TEA-250", Name: "Darjeeling, 250 g", Quantity: 2, UnitPrice: 9_50}, {SKU: "CUP-01", Name: "Cup", Quantity: 1, UnitPrice: 14_00},
	}}
}

// bodies are what is sent for n inputs.
func bodies[T any](n int, input func(i int) T) ([][]byte, error) {
	all := make([][]byte, n)
	for i := range all {
		var err error
		if all[i], err = json.Marshal(input(i)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func post(path string, bodies [][]byte) func(int, *fasthttp.Request) {
	return func(i int, r *fasthttp.Request) {
		r.Header.SetMethod(http.MethodPost)
		r.SetRequestURI(path)
		r.Header.SetContentType("application/json")
		r.SetBodyRaw(bodies[i])
	}
}

// api starts an API on a database.
func (s *stand) api(ctx context.Context, database string) (p *process, addr string, err error) {
	if addr, err = freeAddress(); err != nil {
		return nil, "", err
	}
	p, err = s.part(ctx, "api", "OUTFLOW_POSTGRES_URL="+s.url(database), "OUTFLOW_LISTEN="+addr)
	return p, addr, err
}

// requests is the side that sends requests to an API on a copy of a database.
func (s *stand) requests(name, like string, n, status int, request func(int, *fasthttp.Request)) side {
	return side{name, func(ctx context.Context) (sample, error) {
		return s.withAPI(ctx, like, func(addr string) (sample, error) { return overHTTP(addr, n, status, request).full(ctx) })
	}}
}

// withAPI measures an API on a copy of a database.
func (s *stand) withAPI(ctx context.Context, like string, run func(addr string) (sample, error)) (sample, error) {
	database, drop, err := s.database(ctx, like)
	if err != nil {
		return sample{}, err
	}
	p, addr, err := s.api(ctx, database)
	if err != nil {
		return sample{}, err
	}
	out, err := run(addr)
	if err != nil {
		return sample{}, err
	}
	if out.Memory, err = memory(p); err != nil {
		return sample{}, err
	}
	return out, drop()
}

// statements is the side that sends to a copy of a database what the store
// sent for the same work.
func (s *stand) statements(name, like string, all []recording, run func(load) (sample, error)) side {
	return side{name, func(ctx context.Context) (sample, error) {
		database, drop, err := s.database(ctx, like)
		if err != nil {
			return sample{}, err
		}
		out, err := run(s.replay(database, all))
		return out, errors.Join(err, drop())
	}}
}

func fully(ctx context.Context) func(load) (sample, error) {
	return func(l load) (sample, error) { return l.full(ctx) }
}

func (s *stand) recordCreates(ctx context.Context, n int) ([]recording, error) {
	return s.record(ctx, "migrated", n, func(ctx context.Context, st *store.Store, i int) error {
		_, err := st.CreateCustomer(ctx, customer(i), benchmark)
		return err
	})
}

func creates(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(40_000)
	sent, err := bodies(n, customer)
	if err != nil {
		return nil, err
	}
	all, err := s.recordCreates(ctx, n)
	return []side{
		s.requests("outflow", "migrated", n, http.StatusCreated, post("/api/customers", sent)),
		s.statements(theStatement, "migrated", all, fully(ctx)),
	}, err
}

func keyedCreates(_ context.Context, s *stand) ([]side, error) {
	n := s.n(40_000)
	sent, err := bodies(n, customer)
	plain := post("/api/customers", sent)
	keyed := func(i int, r *fasthttp.Request) {
		plain(i, r)
		r.Header.Set("Idempotency-Key", "7f1c2f0e-5b0d-4f5e-9d43-"+strconv.Itoa(i))
	}
	return []side{
		s.requests("with key", "migrated", n, http.StatusCreated, keyed),
		s.requests("without key", "migrated", n, http.StatusCreated, plain),
	}, err
}

const stock = 20_000 // customers that updates, orders and reads are about

// pick is which of the stock's customers thing i is about. Things of different
// clients are about different ones, so that none waits for another.
func pick(i int) int {
	return (i%clients + i/clients*7*clients) % (stock / clients * clients)
}

func updates(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(30_000)
	like, ids, err := s.filled(ctx, stock)
	if err != nil {
		return nil, err
	}
	changed := func(i int) domain.CustomerInput {
		in := customer(pick(i))
		in.Phone = "+44 20 7946 " + strconv.Itoa(1000+i%9000)
		return in
	}
	sent, err := bodies(n, changed)
	if err != nil {
		return nil, err
	}
	all, err := s.record(ctx, like, n, func(ctx context.Context, st *store.Store, i int) error {
		id, err := domain.ParseID(ids[pick(i)])
		if err != nil {
			return err
		}
		_, err = st.UpdateCustomer(ctx, id, store.Precondition{}, func(domain.Customer) (domain.CustomerInput, error) { return changed(i), nil }, benchmark)
		return err
	})
	return []side{
		s.requests("outflow", like, n, http.StatusOK, func(i int, r *fasthttp.Request) {
			r.Header.SetMethod(http.MethodPut)
			r.SetRequestURI("/api/customers/" + ids[pick(i)])
			r.Header.SetContentType("application/json")
			r.SetBodyRaw(sent[i])
		}),
		s.statements(theStatement, like, all, fully(ctx)),
	}, err
}

func orders(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(30_000)
	like, ids, err := s.filled(ctx, stock)
	if err != nil {
		return nil, err
	}
	inputs := make([]domain.OrderInput, n)
	for i := range inputs {
		id, err := domain.ParseID(ids[pick(i)])
		if err != nil {
			return nil, err
		}
		inputs[i] = order(id)
	}
	sent, err := bodies(n, func(i int) domain.OrderInput { return inputs[i] })
	if err != nil {
		return nil, err
	}
	all, err := s.record(ctx, like, n, func(ctx context.Context, st *store.Store, i int) error {
		_, err := st.PlaceOrder(ctx, inputs[i], benchmark)
		return err
	})
	return []side{
		s.requests("outflow", like, n, http.StatusCreated, post("/api/orders", sent)),
		s.statements(theStatement, like, all, fully(ctx)),
	}, err
}

func createLatency(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(15_000)
	sent, err := bodies(n, customer)
	if err != nil {
		return nil, err
	}
	all, err := s.recordCreates(ctx, n)
	if err != nil {
		return nil, err
	}
	// At more than it can do, either would only tell how long its queue is.
	most, err := s.requests("", "migrated", n, http.StatusCreated, post("/api/customers", sent)).run(ctx)
	if err != nil {
		return nil, err
	}
	limit, err := s.statements("", "migrated", all, fully(ctx)).run(ctx)
	half := min(most.PerSecond, limit.PerSecond) / 2
	return []side{
		{"outflow", func(ctx context.Context) (sample, error) {
			return s.withAPI(ctx, "migrated", func(addr string) (sample, error) {
				return overHTTP(addr, n, http.StatusCreated, post("/api/customers", sent)).paced(ctx, half)
			})
		}},
		s.statements(theStatement, "migrated", all, func(l load) (sample, error) { return l.paced(ctx, half) }),
	}, err
}

func reads(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(100_000)
	like, ids, err := s.filled(ctx, stock)
	if err != nil {
		return nil, err
	}
	all, err := s.record(ctx, like, n, func(ctx context.Context, st *store.Store, i int) error {
		id, err := domain.ParseID(ids[pick(i)])
		if err == nil {
			_, err = st.Customer(ctx, id)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	idle, err := s.serve(ctx, "http")
	get := func(i int, r *fasthttp.Request) { r.SetRequestURI("/api/customers/" + ids[pick(i)]) }
	return []side{
		s.requests("outflow", like, n, http.StatusOK, get),
		s.statements("SELECT", like, all, fully(ctx)),
		{"net/http alone", func(ctx context.Context) (sample, error) { return overHTTP(idle, n, http.StatusOK, get).full(ctx) }},
	}, err
}

func imports(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(100_000)
	lines, err := bodies(n, customer)
	if err != nil {
		return nil, err
	}
	var body []byte
	for _, l := range lines {
		body = append(append(body, l...), '\n')
	}
	send := func(ctx context.Context) (sample, error) {
		return s.withAPI(ctx, "migrated", func(addr string) (sample, error) {
			begun := time.Now()
			if err := importLines(ctx, addr, body, n); err != nil {
				return sample{}, err
			}
			return rate(n, begun), nil
		})
	}
	// What COPY is to bring in is what an import has left.
	database, _, err := s.database(ctx, "migrated")
	if err != nil {
		return nil, err
	}
	p, addr, err := s.api(ctx, database)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(importLines(ctx, addr, body, n), p.stop()); err != nil {
		return nil, err
	}
	rows, err := s.copyOut(ctx, database, "customers", "outbox")
	if err != nil {
		return nil, err
	}
	return []side{
		{"outflow", send},
		{"COPY", func(ctx context.Context) (sample, error) {
			database, drop, err := s.database(ctx, "migrated")
			if err != nil {
				return sample{}, err
			}
			begun := time.Now()
			err = s.copyIn(ctx, database, rows)
			out := rate(n, begun)
			return out, errors.Join(err, drop())
		}},
	}, nil
}

// importLines sends an import and reads the answer to every line.
func importLines(ctx context.Context, addr string, body []byte, n int) error {
	done, err := streamLines(ctx, "http://"+addr+"/api/customers/import", body)
	if err == nil && done != n {
		err = fmt.Errorf("%d of %d lines were imported", done, n)
	}
	return err
}
