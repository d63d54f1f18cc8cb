package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"outflow/domain"
)

var deliveryFigures = []figure{
	{
		name: "delivery-200", what: "from the acknowledgement of a commit to a read_committed consumer, at 200 writes a second",
		limit:   "the same by a reader and a producer without transactions",
		goals:   []goal{p50Under(3), p99Under(20), memoryUnder(150)},
		prepare: func(ctx context.Context, s *stand) ([]side, error) { return deliveries(ctx, s, 200) },
	},
	{
		name: "delivery-1000", what: "the same at 1,000 writes a second", limit: "the same by a reader and a producer without transactions",
		goals:   []goal{p50Under(3), p99Under(20), memoryUnder(150)},
		prepare: func(ctx context.Context, s *stand) ([]side, error) { return deliveries(ctx, s, 1000) },
	},
}

const (
	warmUp  = 2  // seconds of a load that don't count, whatever the scale
	counted = 10 // seconds that do
	writers = 16 // connections that write, at 200 to 1,000 writes a second
)

// A course is the way of n writes: when each was acknowledged and when it
// arrived, in nanoseconds since begun; 0 while it is not. One is added, so that
// what arrives at once is not mistaken for missing.
type course struct {
	begun        time.Time
	acked, there []atomic.Int64
	left         atomic.Int64
	all          chan struct{} // closed when everything has arrived
}

func newCourse(n int) *course {
	c := &course{begun: time.Now(), acked: make([]atomic.Int64, n), there: make([]atomic.Int64, n), all: make(chan struct{})}
	c.left.Store(int64(n))
	return c
}

func (c *course) now() int64 { return int64(time.Since(c.begun)) + 1 }

// ack notes that write i is committed.
func (c *course) ack(i int) { c.acked[i].Store(c.now()) }

// arrive notes that write i has arrived, which it may do once.
func (c *course) arrive(i int) error {
	if i < 0 || i >= len(c.there) {
		return fmt.Errorf("write %d arrived, and there is none", i)
	}
	if !c.there[i].CompareAndSwap(0, c.now()) {
		return fmt.Errorf("write %d arrived twice", i)
	}
	if c.left.Add(-1) == 0 {
		close(c.all)
	}
	return nil
}

// latencies are those of the writes from one on. What arrived before the
// writer heard that it is committed took next to no time: the log is on disk,
// and so can be decoded, a moment before PostgreSQL answers.
func (c *course) latencies(from int) []time.Duration {
	var took []time.Duration
	for i := from; i < len(c.acked); i++ {
		took = append(took, max(time.Microsecond, time.Duration(c.there[i].Load()-c.acked[i].Load())))
	}
	return took
}

// await returns when everything has arrived, or watching for it has failed.
func (c *course) await(ctx context.Context, failed <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-c.all:
		return nil
	case err := <-failed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%d writes of %d did not arrive: %w", c.left.Load(), len(c.acked), ctx.Err())
	}
}

const insertEvent = `
INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
VALUES ($1, 'customer', $2, 1, 'customer.created.v1', $3, NULL, $4, '{"actor":"bench"}', clock_timestamp())`

// numbered is the id of customer i, and of its event.
func numbered(i int) (id domain.ID) {
	id = domain.MustParseID("01938f00-0000-7000-8000-000000000000")
	binary.BigEndian.PutUint32(id[12:], uint32(i))
	return id
}

func numberOf(id string) (int, error) {
	if len(id) != 36 {
		return 0, fmt.Errorf("not an id: %q", id)
	}
	n, err := strconv.ParseUint(id[28:], 16, 32)
	return int(n), err
}

// stateOf is customer i in JSON.
func stateOf(i int) ([]byte, error) {
	at := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	change, err := domain.CreateCustomer(numbered(i), customer(i), at)
	if err != nil {
		return nil, err
	}
	return json.Marshal(change.After)
}

// writes is a load of single events, each a statement and a transaction.
func (s *stand) writes(database string, c *course) load {
	return load{n: len(c.acked), clients: writers, connect: func(ctx context.Context) (func(int) error, func(), error) {
		conn, err := pgx.Connect(ctx, s.url(database))
		if err != nil {
			return nil, nil, err
		}
		do := func(i int) error {
			state, err := stateOf(i)
			if err != nil {
				return err
			}
			id := numbered(i).String()
			if _, err := conn.Exec(ctx, insertEvent, id, id, id, state); err != nil {
				return err
			}
			c.ack(i)
			return nil
		}
		return do, func() { _ = conn.Close(ctx) }, nil
	}}
}

// measured writes at a pace while watch notes what arrives, and returns how
// long that took. It fails unless every write arrives, and once.
func (in *installation) measured(ctx context.Context, perSecond int, watch func(context.Context, *course) error) (sample, error) {
	first := warmUp * perSecond
	n := first + in.n(counted*perSecond)
	c := newCourse(n)
	failed := make(chan error, 1)
	watching, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error {
		err := watch(watching, c)
		if watching.Err() != nil {
			return nil // it was told to stop
		}
		failed <- err
		return err
	})
	_, err := in.writes(in.database, c).paced(ctx, float64(perSecond))
	if err == nil {
		err = c.await(ctx, failed)
	}
	stop()
	if err = errors.Join(err, g.Wait()); err != nil {
		return sample{}, err
	}
	return sample{}.withLatency(c.latencies(first)), nil
}

func deliveries(ctx context.Context, s *stand, perSecond int) ([]side, error) {
	c, err := s.cluster(ctx, false)
	return []side{
		{"outflow", func(ctx context.Context) (sample, error) {
			in, err := s.install(ctx, c, "migrated")
			if err != nil {
				return sample{}, err
			}
			r, err := in.streaming(ctx)
			if err != nil {
				return sample{}, err
			}
			k, err := in.consumer(ctx, kgo.ReadCommitted())
			if err != nil {
				return sample{}, err
			}
			defer k.Close()
			out, err := in.measured(ctx, perSecond, func(ctx context.Context, c *course) error { return arrivals(ctx, k, c.arrived) })
			if err != nil {
				return sample{}, err
			}
			out.Memory, err = memory(r.process)
			return out, errors.Join(err, in.drop())
		}},
		{"without transactions", func(ctx context.Context) (sample, error) {
			in, err := s.install(ctx, c, "migrated")
			if err != nil {
				return sample{}, err
			}
			stop, k, err := in.plainRelay(ctx)
			if err != nil {
				return sample{}, err
			}
			defer k.Close()
			out, err := in.measured(ctx, perSecond, func(ctx context.Context, c *course) error { return arrivals(ctx, k, c.arrived) })
			return out, errors.Join(err, stop(), in.drop())
		}},
	}, err
}

// plainRelay runs a relay without transactions, progress or anything else in
// this process until stop is called, and a consumer of what it publishes.
func (in *installation) plainRelay(ctx context.Context) (stop func() error, k *kgo.Client, err error) {
	topic := in.ns.Topic(domain.AggregateCustomer)
	d, err := in.decoding(ctx, in.database)
	if err != nil {
		return nil, nil, err
	}
	producer, err := in.producer(ctx, topic, kgo.ProducerLinger(0))
	if err != nil {
		return nil, nil, err
	}
	if k, err = in.consumer(ctx, kgo.ReadUncommitted()); err != nil {
		producer.Close()
		return nil, nil, err
	}
	running, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error {
		defer producer.Close()
		var failed firstError
		err := d.insertions(running, func(row insertion) (bool, error) {
			e := domain.Event{
				ID: domain.ID(row.values["event_id"]), AggregateType: domain.AggregateCustomer, AggregateID: domain.ID(row.values["aggregate_id"]), AggregateVersion: 1,
				Type: string(row.values["type"]), Key: string(row.values["key"]), After: row.values["after"], Metadata: row.values["metadata"],
			}
			producer.Produce(running, in.ns.Record(&e), func(_ *kgo.Record, err error) { failed.note(err) })
			return true, failed.get()
		})
		if running.Err() != nil {
			return nil
		}
		return err
	})
	return in.once(func() error { cancel(); return g.Wait() }), k, nil
}

// consumer reads the customers' events from the end of their topic, which is
// there, and returns when it does.
func (in *installation) consumer(ctx context.Context, level kgo.IsolationLevel) (*kgo.Client, error) {
	k, err := kgo.NewClient(kgo.SeedBrokers(in.broker), kgo.ConsumeTopics(in.ns.Topic(domain.AggregateCustomer)), kgo.MetadataMinAge(100*time.Millisecond),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(level))
	if err == nil {
		err = k.Ping(ctx)
	}
	return k, err
}

// arrived notes that a customer's event has arrived.
func (c *course) arrived(r *kgo.Record) error {
	i, err := numberOf(string(r.Key))
	if err != nil {
		return err
	}
	return c.arrive(i)
}

// arrivals calls each with every record until ctx ends.
func arrivals(ctx context.Context, k *kgo.Client, each func(*kgo.Record) error) error {
	for {
		fetches := k.PollFetches(ctx)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return err
		}
		for r := range fetches.RecordsAll() {
			if err := each(r); err != nil {
				return err
			}
		}
	}
}
