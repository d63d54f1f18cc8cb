package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/outbox"
)

const backlog = 300_000 // transactions of one event each

var relayFigures = []figure{
	{
		name: "relay-stream", what: "the relay streams a backlog of one-event transactions, exactly once, from its slot",
		limit:   "a drain of the same log that reads lazily and drops what it reads",
		goals:   []goal{ofLimit(1, "drain", 0.9), rateOf(70_000), memoryUnder(150)},
		prepare: relayStream,
	},
	{
		name: "relay-catchup", what: "a relay that is new to a database publishes what is there, exactly once, by windows",
		limit:   "COPY of the same rows to nowhere; a producer that fills the same broker with the same records",
		goals:   []goal{rateOf(150_000), memoryUnder(150)},
		prepare: relayCatchUp,
	},
}

func relayStream(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(backlog)
	c, err := s.cluster(ctx, false)
	return []side{
		{"outflow", func(ctx context.Context) (sample, error) { return s.streamBacklog(ctx, c, n) }},
		{"drain", func(ctx context.Context) (sample, error) {
			database, drop, err := s.database(ctx, "migrated")
			if err != nil {
				return sample{}, err
			}
			d, err := s.decoding(ctx, database)
			if err != nil {
				return sample{}, err
			}
			if err := s.fill(ctx, database, n); err != nil {
				return sample{}, err
			}
			out, err := d.drain(ctx, n)
			return out, errors.Join(err, drop())
		}},
	}, err
}

// streamBacklog measures a relay that streams already. So that it comes to have
// a backlog, which it would otherwise publish by windows, the server's process
// that decodes for it is stopped meanwhile. The time begins when that goes on.
func (s *stand) streamBacklog(ctx context.Context, c cluster, n int) (sample, error) {
	in, err := s.install(ctx, c, "migrated")
	if err != nil {
		return sample{}, err
	}
	r, err := in.streaming(ctx)
	if err != nil {
		return sample{}, err
	}
	goOn, err := in.holdDecoder(ctx)
	if err != nil {
		return sample{}, err
	}
	if err := s.fill(ctx, in.database, n); err != nil {
		return sample{}, err
	}
	before, err := r.status()
	if err != nil {
		return sample{}, err
	}
	begun := time.Now()
	if err := goOn(); err != nil {
		return sample{}, err
	}
	st, err := r.published(ctx, n)
	if err != nil {
		return sample{}, err
	}
	if before.Published > 0 || st.State != outbox.StateStreaming {
		return sample{}, fmt.Errorf("the relay was to stream all of the backlog: %d events were published before, and now it is %s", before.Published, st.State)
	}
	return in.relayed(ctx, r, domain.AggregateCustomer, n, float64(n)/st.LastCommit.Sub(begun).Seconds())
}

// relayed ends a run of a relay: what it published is looked at.
func (in *installation) relayed(ctx context.Context, r *relay, aggregate string, n int, perSecond float64) (sample, error) {
	peak, err := memory(r.process)
	if err != nil {
		return sample{}, err
	}
	if err := in.audit(ctx, aggregate, n); err != nil {
		return sample{}, err
	}
	return sample{PerSecond: perSecond, Memory: peak}, in.drop()
}

// holdDecoder stops the process of PostgreSQL that decodes for the relay until
// goOn is called.
func (in *installation) holdDecoder(ctx context.Context) (goOn func() error, err error) {
	pid, err := in.queryInt(ctx, in.database, `SELECT active_pid FROM pg_replication_slots WHERE database = current_database() AND active_pid IS NOT NULL`)
	if err != nil {
		return nil, fmt.Errorf("find the process that decodes: %w", err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil, fmt.Errorf("stop the process that decodes: %w", err)
	}
	return in.once(func() error { return syscall.Kill(pid, syscall.SIGCONT) }), nil
}

func relayCatchUp(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(backlog)
	c, err := s.cluster(ctx, false)
	if err != nil {
		return nil, err
	}
	filled, _, err := s.database(ctx, "migrated")
	if err != nil {
		return nil, err
	}
	if err := s.fill(ctx, filled, n); err != nil {
		return nil, err
	}
	var records []*kgo.Record
	return []side{
		{"outflow", func(ctx context.Context) (sample, error) { return s.catchUp(ctx, c, filled, n) }},
		{"COPY", func(ctx context.Context) (sample, error) { return s.copyAway(ctx, filled, n) }},
		{"producer", func(ctx context.Context) (sample, error) {
			if records == nil {
				if records, err = s.recordsOf(ctx, filled); err != nil {
					return sample{}, err
				}
			}
			return s.produce(ctx, c, records)
		}},
	}, nil
}

// catchUp measures a relay that starts on a backlog. Its process's start is left
// out: the time begins when the relay is first seen at work, and what it has
// published by then doesn't count.
func (s *stand) catchUp(ctx context.Context, c cluster, like string, n int) (sample, error) {
	in, err := s.install(ctx, c, like)
	if err != nil {
		return sample{}, err
	}
	r, err := in.relay()
	if err != nil {
		return sample{}, err
	}
	var first outbox.Stats
	var begun time.Time
	err = r.await(ctx, func() bool {
		st, err := r.status()
		if err != nil || !st.Active {
			return false
		}
		first, begun = st, time.Now()
		return true
	})
	if err != nil {
		return sample{}, err
	}
	st, err := r.published(ctx, n)
	if err != nil {
		return sample{}, err
	}
	left := n - int(first.Published)
	if left == 0 {
		return sample{}, errors.New("all was published before the first look at the relay: the backlog is too small")
	}
	return in.relayed(ctx, r, domain.AggregateCustomer, n, float64(left)/st.LastCommit.Sub(begun).Seconds())
}

const outboxColumns = `position, xid, event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at`

// copyAway reads the outbox as fast as the server sends it.
func (s *stand) copyAway(ctx context.Context, database string, n int) (out sample, err error) {
	conn, err := pgx.Connect(ctx, s.url(database))
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	begun := time.Now()
	tag, err := conn.PgConn().CopyTo(ctx, io.Discard, `COPY (SELECT `+outboxColumns+` FROM outbox ORDER BY position) TO STDOUT`)
	out = rate(n, begun)
	if err == nil && tag.RowsAffected() != int64(n) {
		err = fmt.Errorf("%d rows of %d were copied", tag.RowsAffected(), n)
	}
	return out, err
}

// recordsOf makes the records that a relay would make of a database.
func (s *stand) recordsOf(ctx context.Context, database string) (records []*kgo.Record, err error) {
	log, err := outbox.OpenLog(ctx, s.url(database))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	in := installation{ns: "limit"}
	err = log.ByPosition(ctx, domain.AggregateTypes, 0, func(page []domain.Event, _ int64) error {
		for i := range page {
			records = append(records, in.ns.Record(&page[i]))
		}
		return nil
	})
	return records, err
}

// produce fills the broker by a producer that waits for all replicas but uses
// no transactions.
func (s *stand) produce(ctx context.Context, c cluster, records []*kgo.Record) (out sample, err error) {
	in, err := s.install(ctx, c, "migrated")
	if err != nil {
		return out, err
	}
	topic := in.ns.Topic(domain.AggregateCustomer)
	fresh := make([]kgo.Record, len(records))
	for i, r := range records {
		fresh[i] = kgo.Record{Topic: topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
	}
	k, err := in.producer(ctx, topic)
	if err != nil {
		return out, err
	}
	defer k.Close()
	// The first record waits for what the client has to learn of the broker.
	if err := k.ProduceSync(ctx, &fresh[0]).FirstErr(); err != nil {
		return out, err
	}
	var failed firstError
	begun := time.Now()
	for i := range fresh[1:] {
		k.Produce(ctx, &fresh[i+1], func(_ *kgo.Record, err error) { failed.note(err) })
	}
	err = k.Flush(ctx)
	out = rate(len(fresh)-1, begun)
	return out, errors.Join(err, failed.get(), in.audit(ctx, domain.AggregateCustomer, len(fresh)), in.drop())
}

// producer makes a topic and a producer for it: idempotent, all replicas, no
// transactions.
func (in *installation) producer(ctx context.Context, topic string, more ...kgo.Opt) (*kgo.Client, error) {
	err := withKafka(in.broker, func(_ *kgo.Client, adm *kadm.Client) error {
		_, err := adm.CreateTopic(ctx, partitions, -1, nil, topic)
		return err
	})
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(append(more, kgo.SeedBrokers(in.broker), kgo.MetadataMinAge(100*time.Millisecond), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.MaxBufferedRecords(50_000), kgo.UnknownTopicRetries(20))...)
}
