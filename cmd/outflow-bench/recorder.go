package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"outflow/store"
)

// A recording is what the store has sent to the database for one operation:
// the round trips, each of one or more statements. Sent again to a database in
// the same state, it does the same work without outflow.
type recording struct{ trips [][]statement }

type statement struct {
	sql  string
	args []any
}

type recordingKey struct{}

// recorder notes what is sent, in the recording that is in the context.
type recorder struct{}

func (recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if r, ok := ctx.Value(recordingKey{}).(*recording); ok {
		r.trips = append(r.trips, []statement{{q.SQL, q.Args}})
	}
	return ctx
}

func (recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (recorder) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	if r, ok := ctx.Value(recordingKey{}).(*recording); ok {
		var trip []statement
		for _, q := range b.Batch.QueuedQueries {
			trip = append(trip, statement{q.SQL, q.Arguments})
		}
		r.trips = append(r.trips, trip)
	}
	return ctx
}

func (recorder) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (recorder) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// record does n operations by the store, each with statements of its own, in a
// copy of a database, and returns what was sent for each.
func (s *stand) record(ctx context.Context, like string, n int, do func(ctx context.Context, st *store.Store, i int) error) (all []recording, err error) {
	database, drop, err := s.database(ctx, like)
	if err != nil {
		return nil, err
	}
	pool, err := openTraced(ctx, s.url(database))
	if err != nil {
		return nil, err
	}
	all = make([]recording, n)
	st := store.New(pool, store.Config{})
	err = inOrder(n, func(i int) error { return do(context.WithValue(ctx, recordingKey{}, &all[i]), st, i) })
	pool.Close()
	if err == nil {
		err = drop()
	}
	return all, err
}

func openTraced(ctx context.Context, url string) (*pgxpool.Pool, error) {
	plain, err := store.Open(ctx, url, 16)
	if err != nil {
		return nil, err
	}
	cfg := plain.Config()
	plain.Close()
	cfg.ConnConfig.Tracer = recorder{}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// inOrder does n things with some goroutines; what a client of a [load] does
// in order is done in order here.
func inOrder(n int, do func(i int) error) error {
	var g errgroup.Group
	for c := range clients {
		g.Go(func() error {
			for i := c; i < n; i += clients {
				if err := do(i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// replay is a load of recorded operations: every client has a connection and
// nothing else to do.
func (s *stand) replay(database string, all []recording) load {
	return load{n: len(all), clients: clients, connect: func(ctx context.Context) (func(int) error, func(), error) {
		pool, err := store.Open(ctx, s.url(database), 1)
		if err != nil {
			return nil, nil, err
		}
		conn, err := pool.Acquire(ctx)
		if err != nil {
			pool.Close()
			return nil, nil, err
		}
		do := func(i int) error { return all[i].send(ctx, conn.Conn()) }
		return do, func() { conn.Release(); pool.Close() }, nil
	}}
}

func (r *recording) send(ctx context.Context, conn *pgx.Conn) error {
	for _, trip := range r.trips {
		b := &pgx.Batch{}
		for _, st := range trip {
			b.Queue(st.sql, st.args...)
		}
		if err := conn.SendBatch(ctx, b).Close(); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
	}
	return nil
}

// filled makes a database with n customers to copy, and returns its name and
// the customers' ids.
func (s *stand) filled(ctx context.Context, n int) (name string, ids []string, err error) {
	name, _, err = s.database(ctx, "migrated")
	if err != nil {
		return "", nil, err
	}
	pool, err := store.Open(ctx, s.url(name), 16)
	if err != nil {
		return "", nil, err
	}
	defer pool.Close()
	st := store.New(pool, store.Config{})
	running, stop := context.WithCancel(ctx)
	var run sync.WaitGroup
	run.Go(func() { _ = st.Run(running) })
	defer run.Wait()
	defer stop()
	ids = make([]string, n)
	return name, ids, inOrder(n, func(i int) error {
		c, err := st.CreateCustomer(ctx, customer(i), benchmark)
		ids[i] = c.ID.String()
		return err
	})
}
