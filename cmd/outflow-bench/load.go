package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"
)

// clients is how many connections a load has, of outflow and of its limits.
const clients = 64

// A load is n things to do, by a number of clients that each do one at a time.
// What the things have in common is the client: those of one client are done
// in their order.
type load struct {
	n       int
	clients int
	// connect makes a client, which does the thing with that number.
	connect func(ctx context.Context) (do func(i int) error, closing func(), err error)
}

// full does everything as fast as the clients can; client c has the things c,
// c+clients, and so on.
func (l load) full(ctx context.Context) (sample, error) {
	return l.run(ctx, func(g *errgroup.Group, each []func(int) error, took []time.Duration) {
		for c, do := range each {
			g.Go(func() error {
				for i := c; i < l.n; i += l.clients {
					begun := time.Now()
					if err := do(i); err != nil {
						return err
					}
					took[i] = time.Since(begun)
				}
				return nil
			})
		}
	})
}

// paced begins things at random moments, so many a second on average, whatever
// became of the ones before: what waits for a client has begun already.
func (l load) paced(ctx context.Context, perSecond float64) (sample, error) {
	random := rand.New(rand.NewPCG(1, 2))
	return l.run(ctx, func(g *errgroup.Group, each []func(int) error, took []time.Duration) {
		type due struct {
			i  int
			at time.Time
		}
		queue := make(chan due, l.n)
		g.Go(func() error {
			defer close(queue)
			at := time.Now()
			for i := range l.n {
				at = at.Add(time.Duration(random.ExpFloat64() / perSecond * float64(time.Second)))
				time.Sleep(time.Until(at))
				queue <- due{i, at}
			}
			return nil
		})
		for _, do := range each {
			g.Go(func() error {
				for d := range queue {
					if err := do(d.i); err != nil {
						return err
					}
					took[d.i] = time.Since(d.at)
				}
				return nil
			})
		}
	})
}

func (l load) run(ctx context.Context, work func(*errgroup.Group, []func(int) error, []time.Duration)) (sample, error) {
	each := make([]func(int) error, l.clients)
	for c := range each {
		do, closing, err := l.connect(ctx)
		if err != nil {
			return sample{}, err
		}
		defer closing()
		each[c] = do
	}
	took := make([]time.Duration, l.n)
	var g errgroup.Group
	begun := time.Now()
	work(&g, each, took)
	err := g.Wait()
	return rate(l.n, begun).withLatency(took), err
}

// overHTTP is a load of requests, each on its client's connection.
func overHTTP(addr string, n int, status int, request func(i int, r *fasthttp.Request)) load {
	return load{n: n, clients: clients, connect: func(context.Context) (func(int) error, func(), error) {
		client := &fasthttp.HostClient{Addr: addr, MaxConns: 1, ReadTimeout: patience, WriteTimeout: patience}
		req, resp := &fasthttp.Request{}, &fasthttp.Response{}
		do := func(i int) error {
			req.Reset()
			resp.Reset()
			req.Header.SetHost(addr)
			request(i, req)
			if err := client.Do(req, resp); err != nil {
				return err
			}
			if got := resp.StatusCode(); got != status {
				return fmt.Errorf("%s %s was answered %d: %s", req.Header.Method(), req.URI().Path(), got, resp.Body())
			}
			return nil
		}
		return do, client.CloseIdleConnections, nil
	}}
}
