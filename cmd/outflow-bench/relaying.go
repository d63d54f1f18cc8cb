package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"outflow/outbox"
)

// longest is how long anything that is measured may take.
const longest = 10 * time.Minute

// A relay is outflow's relay as a process.
type relay struct {
	*process
	health string
}

// relay starts one and doesn't wait for it.
func (in *installation) relay() (*relay, error) {
	health, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p, err := in.start("relay", in.outflow, environ(append(in.vars(), "OUTFLOW_HEALTH_LISTEN="+health)...), "relay")
	return &relay{p, health}, err
}

// streaming starts a relay and returns when it streams.
func (in *installation) streaming(ctx context.Context) (*relay, error) {
	r, err := in.relay()
	if err != nil {
		return nil, err
	}
	return r, r.await(ctx, func() bool {
		st, err := r.status()
		return err == nil && st.State == outbox.StateStreaming
	})
}

func (r *relay) status() (st outbox.Stats, err error) {
	resp, err := http.Get("http://" + r.health + "/status/relay")
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// published returns when the relay has published so many events. It is asked
// seldom enough not to matter: when the last were committed, it tells.
func (r *relay) published(ctx context.Context, n int) (st outbox.Stats, err error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if st, err = r.status(); err == nil && st.Published >= int64(n) {
			break
		}
		select {
		case <-r.exited:
			return st, fmt.Errorf("relay ended: %s", &r.output)
		case <-ctx.Done():
			return st, fmt.Errorf("the relay published %d events of %d: %w", st.Published, n, ctx.Err())
		case <-tick.C:
		}
	}
	switch {
	case st.Published > int64(n):
		err = fmt.Errorf("the relay published %d events, and there are %d", st.Published, n)
	case st.Failures > 0:
		err = fmt.Errorf("the relay was interrupted: %s", st.LastError)
	}
	return st, err
}

// The backlog is of customers' events as they are: each names the customer
// before and after, and each is a transaction's only one. The events of a
// customer come from one writer, so they are committed in order.
const (
	backlogWriters   = 4
	backlogCustomers = 10_000
	createFill       = `
CREATE PROCEDURE bench_fill(writer int, writers int, events int, customers int) LANGUAGE plpgsql AS $$
DECLARE
    i int := writer;
    k int;
    customer text;
    state text;
BEGIN
    WHILE i < events LOOP
        k := i % customers;
        customer := '01938f00-0000-7000-8000-' || lpad(to_hex(k), 12, '0');
        state := ',"name":"Ada Lovelace ' || k || '","email":"ada' || k || '@example.com","phone":"+44 20 7946 0018","address":{"line1":"12 St James''s Square",'
            || '"city":"London","postal_code":"SW1Y 4JH","country":"GB"},"status":"active"}';
        INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
        VALUES (('01938f01-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'customer', customer::uuid, i / customers + 1,
            CASE WHEN i < customers THEN 'customer.created.v1' ELSE 'customer.updated.v1' END, customer,
            CASE WHEN i >= customers THEN ('{"id":"' || customer || '","version":' || i / customers || state)::json END,
            ('{"id":"' || customer || '","version":' || i / customers + 1 || state)::json, '{"actor":"bench"}', clock_timestamp());
        COMMIT;
        i := i + writers;
    END LOOP;
END $$`
)

// fill commits n transactions of one event each. That is not what is measured,
// so it doesn't wait for the disk but at its end.
func (s *stand) fill(ctx context.Context, database string, n int) error {
	if err := s.exec(ctx, database, createFill); err != nil {
		return err
	}
	g, fillCtx := errgroup.WithContext(ctx)
	for w := range backlogWriters {
		g.Go(func() error {
			return s.exec(fillCtx, database, `SET synchronous_commit = off`,
				fmt.Sprintf(`CALL bench_fill(%d, %d, %d, %d)`, w, backlogWriters, n, backlogCustomers))
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("fill the outbox: %w", err)
	}
	return s.exec(ctx, database, `DROP PROCEDURE bench_fill`)
}

func (s *stand) exec(ctx context.Context, database string, statements ...string) (err error) {
	conn, err := pgx.Connect(ctx, s.url(database))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

func (s *stand) queryInt(ctx context.Context, database, sql string) (n int, err error) {
	conn, err := pgx.Connect(ctx, s.url(database))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	return n, conn.QueryRow(ctx, sql).Scan(&n)
}

// audit reads what a topic has for those who read committed records, and fails
// unless that is n events, each once and those of a key in order.
func (in *installation) audit(ctx context.Context, aggregate string, n int) error {
	topic := in.ns.Topic(aggregate)
	var ends kadm.ListedOffsets
	err := withKafka(in.broker, func(_ *kgo.Client, adm *kadm.Client) (err error) {
		ends, err = adm.ListCommittedOffsets(ctx, topic)
		return errors.Join(err, ends.Error())
	})
	if err != nil {
		return err
	}
	k, err := kgo.NewClient(kgo.SeedBrokers(in.broker), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer k.Close()
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	versions, found := map[string]int64{}, 0
	var wrong error
	for len(left) > 0 && wrong == nil {
		fetches := k.PollFetches(ctx)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
			if r.Attrs.IsControl() {
				return
			}
			found++
			v, err := versionOf(r.Value)
			if last := versions[string(r.Key)]; err == nil && v != last+1 {
				err = fmt.Errorf("version %d of %s comes after version %d", v, r.Key, last)
			}
			versions[string(r.Key)] = v
			wrong = errors.Join(wrong, err)
		})
	}
	if wrong == nil && found != n {
		wrong = fmt.Errorf("%d events of %d are on Kafka", found, n)
	}
	return wrong
}

var beforeVersion, afterVersion = []byte(`{"version":`), []byte(`,`)

// versionOf is the version that an event's value begins with.
func versionOf(value []byte) (int64, error) {
	rest, ok := bytes.CutPrefix(value, beforeVersion)
	digits, _, more := bytes.Cut(rest, afterVersion)
	if !ok || !more {
		return 0, fmt.Errorf("not an event's value: %.40q", value)
	}
	return strconv.ParseInt(string(digits), 10, 64)
}
