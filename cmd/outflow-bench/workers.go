package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"outflow/domain"
	"outflow/internal/mailsink"
	"outflow/store"
)

var workerFigures = []figure{{
	name: "workers", what: "placed orders are relayed, decided, mailed and counted by all workers at once, in events a second from first to last",
	limit:   "nothing",
	goals:   []goal{memoryUnder(150)},
	prepare: workers,
}}

const (
	ordered = 20_000 // orders that are placed
	buyers  = 2_000  // customers that place them
)

func workers(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(ordered)
	c, err := s.cluster(ctx, true)
	if err != nil {
		return nil, err
	}
	sink, err := mailsink.Start(ctx, mailsink.Config{Max: 1})
	if err != nil {
		return nil, err
	}
	s.later(func() error { sink.Close(); return nil })
	like, _, err := s.database(ctx, "migrated")
	if err != nil {
		return nil, err
	}
	err = s.placed(ctx, like, s.n(buyers), n)
	return []side{{"outflow", func(ctx context.Context) (sample, error) {
		in, err := s.install(ctx, c, like)
		if err != nil {
			return sample{}, err
		}
		return in.work(ctx, sink.Addr(), n)
	}}}, err
}

// placed makes customers and orders that nobody has decided.
func (s *stand) placed(ctx context.Context, database string, customers, orders int) error {
	if err := s.customers(ctx, database, customers); err != nil {
		return err
	}
	pool, err := store.Open(ctx, s.url(database), 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	st := store.New(pool, store.Config{})
	ids, err := customerIDs(ctx, st, customers)
	if err != nil {
		return err
	}
	const batch = 500
	for from := 0; from < orders; from += batch {
		ins := make([]domain.OrderInput, min(batch, orders-from))
		for i := range ins {
			ins[i] = order(ids[(from+i)%len(ids)])
		}
		if _, err := st.PlaceOrders(ctx, ins, benchmark); err != nil {
			return err
		}
	}
	return nil
}

func customerIDs(ctx context.Context, st *store.Store, n int) (ids []domain.ID, err error) {
	for last := (domain.ID{}); len(ids) < n; last = ids[len(ids)-1] {
		page, err := st.States(ctx, domain.AggregateCustomer, last, n)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return nil, fmt.Errorf("the database has %d customers of %d", len(ids), n)
		}
		for _, e := range page {
			ids = append(ids, e.AggregateID)
		}
	}
	return ids, nil
}

// work runs everything until everything is done. The time begins when the relay
// is at work: the workers wait for it, because it makes the topics.
func (in *installation) work(ctx context.Context, smtp string, orders int) (sample, error) {
	r, err := in.relay()
	if err != nil {
		return sample{}, err
	}
	processes := []*process{r.process}
	var health string
	for _, name := range []string{"confirm", "notify", "analyze", "replicate"} {
		vars := append(in.vars(), "OUTFLOW_SMTP_ADDR="+smtp, "OUTFLOW_SMTP_TLS=none")
		if name == "analyze" {
			if health, err = freeAddress(); err != nil {
				return sample{}, err
			}
			vars = append(vars, "OUTFLOW_HEALTH_LISTEN="+health)
		}
		p, err := in.start(name, in.outflow, environ(vars...), name)
		if err != nil {
			return sample{}, err
		}
		processes = append(processes, p)
	}
	var begun time.Time
	err = r.await(ctx, func() bool {
		st, err := r.status()
		begun = time.Now()
		return err == nil && st.Active
	})
	if err != nil {
		return sample{}, err
	}
	events, err := in.allDone(ctx, processes, health, orders)
	if err != nil {
		return sample{}, err
	}
	out := rate(events, begun)
	if _, err := r.published(ctx, events); err != nil {
		return sample{}, err
	}
	out.Memory, err = memory(processes...)
	return out, errors.Join(err, in.drop())
}

const unfinished = `
SELECT (SELECT count(*) FROM orders WHERE status = 'placed'),
       (SELECT count(*) FROM orders WHERE status = 'confirmed'),
       (SELECT count(*) FROM outbox WHERE type = 'notification.requested.v1') - (SELECT count(*) FROM mail WHERE state = 'sent'),
       (SELECT count(*) FROM outbox),
       (SELECT count(*) FROM outbox WHERE aggregate_type <> 'notification')`

// allDone returns once every order is confirmed, every mail sent and every event
// counted, and how many events there are then.
func (in *installation) allDone(ctx context.Context, processes []*process, health string, orders int) (events int, err error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	conn, err := pgx.Connect(ctx, in.url(in.database))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tick := time.NewTicker(250 * time.Millisecond) // counting takes a while
	defer tick.Stop()
	for {
		var undecided, confirmed, unsent, entities int
		if err := conn.QueryRow(ctx, unfinished).Scan(&undecided, &confirmed, &unsent, &events, &entities); err != nil {
			return 0, err
		}
		done := 0
		if undecided == 0 && unsent == 0 {
			if confirmed != orders {
				return 0, fmt.Errorf("%d orders of %d were confirmed", confirmed, orders)
			}
			if done, err = handled(ctx, health); err != nil {
				return 0, err
			}
			if done >= entities {
				return events, nil
			}
		}
		for _, p := range processes {
			select {
			case <-p.exited:
				return 0, fmt.Errorf("%s ended: %s", p.name, &p.output)
			default:
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%d orders are undecided, %d mails unsent, %d of %d events counted: %w", undecided, unsent, done, entities, ctx.Err())
		case <-tick.C:
		}
	}
}

var handledTotal = regexp.MustCompile(`(?m)^outflow_consumer_handled_total\{[^}]*\} (\S+)$`)

// handled is how many messages a worker has done.
func handled(ctx context.Context, health string) (n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+health+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	m := handledTotal.FindSubmatch(text)
	if m == nil {
		return 0, errors.New("the worker doesn't tell how many messages it has handled")
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	return int(v), err
}
