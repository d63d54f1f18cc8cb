package simulator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"outflow/domain"
)

// Config says what to simulate, and on which service.
type Config struct {
	API       string        // scheme and host, no path
	Customers int           // how many register, one by one
	Rate      float64       // actions a second, on average
	Duration  time.Duration // how long to act; 0 means until the context ends
	Seed      uint64
	Client    *http.Client // http.DefaultTransport with as many connections as are useful when nil
	// Progress is called about every Every, and after the end.
	Progress func(Progress)
	Every    time.Duration // 200 ms when 0
}

// Progress is how far a simulation is.
type Progress struct {
	Elapsed   time.Duration // since the start
	Done      int           // requests that were answered
	Refused   int           // of those, with a 4xx status
	Failed    int           // not answered, or with a 5xx status
	InFlight  int
	PerSecond float64 // answers a second since the start
}

// inFlight bounds the requests that wait for an answer. Beyond it the service
// is slower than the traffic, and actions wait for their turn.
const inFlight = 256

type run struct {
	cfg       Config
	client    *http.Client
	customers futures
	orders    futures
	report    *collector
	begun     time.Time
}

// Run acts until the duration is over or ctx ends, waits for the last answers,
// and reports. It returns an error only when the service can't be reached at
// all; refusals and failures are in the report.
func Run(ctx context.Context, cfg Config) (Report, error) {
	r := &run{cfg: cfg, client: cfg.Client, report: newCollector(), begun: time.Now()}
	if r.client == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = inFlight
		defer t.CloseIdleConnections()
		r.client = &http.Client{Transport: t, Timeout: 30 * time.Second}
	}
	if cfg.Every == 0 {
		r.cfg.Every = 200 * time.Millisecond
	}
	if err := r.reach(ctx); err != nil {
		return Report{}, err
	}
	acting := ctx
	if cfg.Duration > 0 {
		var cancel context.CancelFunc
		acting, cancel = context.WithTimeout(ctx, cfg.Duration)
		defer cancel()
	}
	stopProgress := r.progress()
	var wg sync.WaitGroup
	slots := make(chan struct{}, inFlight)
	plan := NewPlan(cfg.Seed, cfg.Customers, cfg.Rate)
	next := time.NewTimer(0)
	defer next.Stop()
	due := r.begun
	for n := 0; ; n++ {
		a := plan.Next(n)
		due = due.Add(a.After)
		next.Reset(time.Until(due))
		select {
		case <-acting.Done():
		case <-next.C:
		}
		if acting.Err() != nil {
			break
		}
		slots <- struct{}{}
		r.report.begin()
		wg.Go(func() {
			defer func() { <-slots }()
			// Requests that were begun are finished: half of what happened would
			// otherwise be unknown.
			r.act(context.WithoutCancel(ctx), a)
		})
	}
	wg.Wait()
	stopProgress()
	return r.report.report(cfg, time.Since(r.begun)), nil
}

func (r *run) reach(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.cfg.API+"/livez", nil)
	if err != nil {
		return fmt.Errorf("the API's address: %w", err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("reach the API: %w", err)
	}
	return errors.Join(drain(resp.Body))
}

func drain(body io.ReadCloser) error {
	_, err := io.Copy(io.Discard, body)
	return errors.Join(err, body.Close())
}

// progress reports until the function it returns is called.
func (r *run) progress() (stop func()) {
	if r.cfg.Progress == nil {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(r.cfg.Every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.cfg.Progress(r.report.progress(time.Since(r.begun)))
			case <-done:
				r.cfg.Progress(r.report.progress(time.Since(r.begun)))
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

// act makes one action's request and notes what came of it.
func (r *run) act(ctx context.Context, a Action) {
	switch a.Kind {
	case Register:
		id, ok := r.send(ctx, a.Kind, http.MethodPost, "/api/customers", "application/json", a.New)
		if !ok {
			id, ok = r.lookUp(ctx, a.New.Email)
		}
		r.customers.resolve(a.Customer, id, ok)
	case Order:
		customer, ok := r.customers.await(a.Customer)
		var id domain.ID
		if ok {
			id, ok = r.send(ctx, a.Kind, http.MethodPost, "/api/orders", "application/json",
				domain.OrderInput{CustomerID: customer, Currency: a.Currency, Items: a.Basket})
		} else {
			r.report.skip(a.Kind)
		}
		r.orders.resolve(a.Order, id, ok)
	case Change:
		if id, ok := r.customers.await(a.Customer); ok {
			r.send(ctx, a.Kind, http.MethodPatch, "/api/customers/"+id.String(), "application/merge-patch+json", map[string]string{"phone": a.Phone})
		} else {
			r.report.skip(a.Kind)
		}
	case Cancel, Fulfil, Refund:
		if id, ok := r.orders.await(a.Order); ok {
			r.send(ctx, a.Kind, http.MethodPost, "/api/orders/"+id.String()+"/"+string(a.Kind), "application/json", nil)
		} else {
			r.report.skip(a.Kind)
		}
	}
}

// send makes a request and returns the id in its answer.
func (r *run) send(ctx context.Context, kind Kind, method, path, contentType string, body any) (domain.ID, bool) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			r.report.end(kind, 0, "the request could not be made", 0)
			return domain.ID{}, false
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.cfg.API+path, in)
	if err != nil {
		r.report.end(kind, 0, "the request could not be made", 0)
		return domain.ID{}, false
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	begun := time.Now()
	resp, err := r.client.Do(req)
	if err != nil {
		r.report.end(kind, 0, "no answer", 0)
		return domain.ID{}, false
	}
	var answer struct {
		ID   domain.ID
		Type string
	}
	b, err := io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	took := time.Since(begun)
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err != nil {
		r.report.end(kind, 0, "no usable answer", 0)
		return domain.ID{}, false
	}
	r.report.end(kind, resp.StatusCode, answer.Type, took)
	return answer.ID, resp.StatusCode < 300
}

// lookUp finds the customer whose email is taken: one that an earlier run with
// the same seed registered.
func (r *run) lookUp(ctx context.Context, email string) (domain.ID, bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.cfg.API+"/api/customers?email="+url.QueryEscape(email), nil)
	if err != nil {
		return domain.ID{}, false
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return domain.ID{}, false
	}
	var list struct{ Data []struct{ ID domain.ID } }
	err = json.NewDecoder(resp.Body).Decode(&list)
	if errors.Join(err, drain(resp.Body)) != nil || len(list.Data) != 1 {
		return domain.ID{}, false
	}
	return list.Data[0].ID, true
}

// futures are ids that are known once their request was answered.
type futures struct {
	mu  sync.Mutex
	all map[int]*future
}

type future struct {
	id   domain.ID
	ok   bool
	done chan struct{}
}

func (f *futures) get(i int) *future {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = map[int]*future{}
	}
	if f.all[i] == nil {
		f.all[i] = &future{done: make(chan struct{})}
	}
	return f.all[i]
}

func (f *futures) resolve(i int, id domain.ID, ok bool) {
	u := f.get(i)
	u.id, u.ok = id, ok
	close(u.done)
}

// await can't wait for ever: what it waits for was begun earlier, and every
// request ends by its timeout.
func (f *futures) await(i int) (domain.ID, bool) {
	u := f.get(i)
	<-u.done
	return u.id, u.ok
}
