package verify

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/events"
)

// kafka holds Kafka against the log: in as many passes as it takes to keep one
// version per aggregate in memory.
func (l *Log) kafka(ctx context.Context) error {
	// What this shows is in Kafka before the ends that are read next.
	snapshot, err := l.log.Snapshot(ctx)
	if err != nil {
		return err
	}
	if err := l.Published(ctx); err != nil {
		return err
	}
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(l.Brokers...)}, l.Kafka...)...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	listed, err := admin.ListCommittedOffsets(ctx, l.Namespace.Topics()...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return fmt.Errorf("find the end of the events: %w", err)
	}
	begins, err := admin.ListStartOffsets(ctx, l.Namespace.Topics()...)
	if err == nil {
		err = begins.Error()
	}
	if err != nil {
		return fmt.Errorf("find the beginning of the events: %w", err)
	}
	if err := l.log.AwaitVisible(ctx); err != nil {
		return err
	}
	starts, ends := map[consumer.Partition]int64{}, map[consumer.Partition]int64{}
	var records int64
	listed.Each(func(o kadm.ListedOffset) {
		p := consumer.Partition{Topic: o.Topic, Partition: o.Partition}
		s, _ := begins.Lookup(o.Topic, o.Partition)
		starts[p], ends[p] = s.Offset, o.Offset
		records += o.Offset - s.Offset
	})
	// What Kafka has beyond the log may be of further aggregates, or markers.
	aggregates := l.aggregates + max(0, records-l.report.Events)
	passes := max(1, (aggregates+l.MaxAggregates-1)/l.MaxAggregates)
	for n := range passes {
		p := &pass{Log: l, n: n, of: passes, records: records, at: map[domain.ID]int64{}, missing: map[version]bool{}}
		if err := p.read(ctx, starts, ends); err != nil {
			return err
		}
		if err := p.compare(ctx, snapshot); err != nil {
			return err
		}
	}
	return nil
}

type version struct {
	id domain.ID
	n  int64
}

// pass is a reading of Kafka that looks at a part of the aggregates.
type pass struct {
	*Log
	n, of   int64
	records int64               // in Kafka
	seen    int64               // of them
	at      map[domain.ID]int64 // the highest version that came
	missing map[version]bool    // those below it that did not
	batch   []domain.Event
	where   []string
}

// mine: the last bytes of ids are random.
func (p *pass) mine(id domain.ID) bool {
	return (int64(id[15])|int64(id[14])<<8|int64(id[13])<<16)%p.of == p.n
}

func (p *pass) read(ctx context.Context, starts, ends map[consumer.Partition]int64) error {
	consume := map[string]map[int32]kgo.Offset{}
	left := map[consumer.Partition]bool{}
	for id, end := range ends {
		if starts[id] >= end {
			continue
		}
		if left[id] = true; consume[id.Topic] == nil {
			consume[id.Topic] = map[int32]kgo.Offset{}
		}
		consume[id.Topic][id.Partition] = kgo.NewOffset().At(starts[id])
	}
	if len(left) == 0 {
		return nil
	}
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(p.Brokers...), kgo.ConsumePartitions(consume), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
	}, p.Kafka...)...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer client.Close()
	for len(left) > 0 {
		fetches, err := p.poll(ctx, client)
		if err != nil {
			return fmt.Errorf("read Kafka: %w", err)
		}
		var failed error
		fetches.EachRecord(func(r *kgo.Record) {
			id := consumer.Partition{Topic: r.Topic, Partition: r.Partition}
			if r.Offset+1 >= ends[id] {
				delete(left, id)
			}
			if p.seen++; p.seen%step == 1 {
				p.progress("records", p.n*p.records+p.seen, p.of*p.records)
			}
			if r.Offset < ends[id] && !r.Attrs.IsControl() && failed == nil {
				failed = p.take(ctx, r)
			}
		})
		if failed != nil {
			return failed
		}
	}
	return p.lookUp(ctx)
}

// poll is the next records. A client whose broker is gone tries again by itself,
// for ever.
func (p *pass) poll(ctx context.Context, client *kgo.Client) (kgo.Fetches, error) {
	timed, cancel := context.WithTimeout(ctx, p.Patience)
	defer cancel()
	fetches := client.PollRecords(timed, 10*pageRows)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case timed.Err() != nil && fetches.NumRecords() == 0:
		return nil, fmt.Errorf("it has delivered nothing for %s", p.Patience)
	case timed.Err() == nil:
		return fetches, fetches.Err()
	}
	return fetches, nil
}

func (p *pass) take(ctx context.Context, r *kgo.Record) error {
	where := fmt.Sprintf("%s/%d@%d", r.Topic, r.Partition, r.Offset)
	e, err := events.Decode(r)
	if err != nil {
		if p.n == 0 {
			p.report.Records++
			p.fault(Phantom, r.Topic, domain.ID{}, 0, where)
		}
		return nil
	}
	if !p.mine(e.AggregateID) {
		return nil
	}
	p.report.Records++
	at, v := p.at[e.AggregateID], version{e.AggregateID, e.AggregateVersion}
	switch {
	case v.n > at:
		for n := at + 1; n < v.n && n > v.n-10_000; n++ {
			p.missing[version{v.id, n}] = true
		}
		p.at[v.id] = v.n
	case p.missing[v]:
		delete(p.missing, v)
		p.fault(OutOfOrder, e.AggregateType, v.id, v.n, where)
	default:
		p.fault(Duplicated, e.AggregateType, v.id, v.n, where)
	}
	p.batch, p.where = append(p.batch, e), append(p.where, where)
	if len(p.batch) < pageRows {
		return nil
	}
	return p.lookUp(ctx)
}

// lookUp finds what the log says of a batch of records. What it doesn't hold
// may have been dropped from it.
func (p *pass) lookUp(ctx context.Context) error {
	var ids []domain.ID
	var versions []int64
	for _, e := range p.batch {
		ids, versions = append(ids, e.AggregateID), append(versions, e.AggregateVersion)
	}
	logged, err := p.log.At(ctx, ids, versions)
	if err != nil {
		return err
	}
	by := map[version]domain.Event{}
	for _, e := range logged {
		by[version{e.AggregateID, e.AggregateVersion}] = e
	}
	for i, e := range p.batch {
		in, ok := by[version{e.AggregateID, e.AggregateVersion}]
		if !ok && !p.extent.Complete {
			continue
		}
		if !ok || !equalEvents(in, e) {
			p.fault(Phantom, e.AggregateType, e.AggregateID, e.AggregateVersion, p.where[i])
		}
	}
	p.batch, p.where = p.batch[:0], p.where[:0]
	return nil
}

// compare tells what the log has and Kafka has not.
func (p *pass) compare(ctx context.Context, snapshot string) error {
	var done int64
	return p.log.ByAggregate(ctx, snapshot, func(e domain.Event, shown bool) error {
		if done++; done%step == 1 {
			p.progress("missing", p.n*p.extent.Events+done, p.of*p.extent.Events)
		}
		if shown && p.mine(e.AggregateID) && (e.AggregateVersion > p.at[e.AggregateID] || p.missing[version{e.AggregateID, e.AggregateVersion}]) {
			p.fault(Lost, e.AggregateType, e.AggregateID, e.AggregateVersion, "")
		}
		return nil
	})
}
