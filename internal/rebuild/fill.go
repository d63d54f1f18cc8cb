package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/events"
	"outflow/internal/failpoint"
)

const (
	maxBatch = 1000 // events that are applied together
	workers  = 8    // batches, of partitions each, that are applied at once
	maxPoll  = 8000 // events that are polled together
	// fetchBytes is how much one answer of Kafka may hold, unless one record is
	// larger: what is fetched ahead waits in memory.
	fetchBytes = 2 << 20
	maxHeld    = 1000 // keys whose events are left out
)

var errTooMany = fmt.Errorf("events of more than %d keys can't be applied: they may be of a newer version of outflow", maxHeld)

func (r *runner) place(id consumer.Partition) int {
	return slices.IndexFunc(r.c.Places, func(p place) bool { return p.Topic == id.Topic && p.Partition == id.Partition })
}

// fill fills the shadow until little is left.
func (r *runner) fill(ctx context.Context) error {
	var err error
	if r.ops, err = r.ask(ctx); err != nil {
		return err
	}
	if r.starts, err = r.startOffsets(ctx); err != nil {
		return err
	}
	if err := r.Make(ctx, r.c.Run); err != nil {
		return err
	}
	shadow, err := r.Shadow(ctx, r.c.Run)
	switch {
	case err != nil:
		return err
	case r.c.Shadow == "" && r.c.Done == 0:
		if err := r.write(ctx, func(c *control) { c.Shadow = shadow }); err != nil {
			return err
		}
	case r.c.Shadow != shadow:
		return r.beginAgain(ctx, errors.New("what was filled is gone"))
	}
	if err := r.goBack(ctx); err != nil {
		return err
	}
	if !r.c.Scan.Done {
		if err := r.scan(ctx); err != nil {
			return err
		}
	}
	for {
		if err := r.sameLogs(ctx); err != nil {
			return err
		}
		ends, err := r.ends(ctx)
		if err != nil {
			return err
		}
		for _, p := range r.c.Places {
			id := consumer.Partition{Topic: p.Topic, Partition: p.Partition}
			if end := ends[id]; p.Next > end {
				return r.beginAgain(ctx, &consumer.DataLossError{Partition: id, Next: p.Next, Start: r.starts[id], End: end})
			}
		}
		left := r.left(ends)
		if left <= nearEnd && (r.Until.IsZero() || left == 0) {
			return nil
		}
		if err := r.follow(ctx, ends); err != nil || !r.Until.IsZero() {
			return err
		}
	}
}

// left is how many records are left up to ends.
func (r *runner) left(ends map[consumer.Partition]int64) (n int64) {
	for _, p := range r.c.Places {
		n += max(0, ends[consumer.Partition{Topic: p.Topic, Partition: p.Partition}]-p.Next)
	}
	return n
}

// scan applies the outbox. What is committed with a lower position after it was
// passed comes from Kafka: it wasn't there when the rebuild began.
func (r *runner) scan(ctx context.Context) error {
	done := r.c.Done
	err := r.Outbox(ctx, r.c.Scan.Position, func(all []domain.Event, last int64) error {
		var batch []consumer.Message
		var left []held
		for _, e := range all {
			m := consumer.Message{Event: e, Offset: -1, Topic: r.topicOf(e.AggregateType)}
			m.Partition = r.partition(m)
			if l := (lock{m.Topic, e.Key}); r.isHeld(m) && !holds(r.c.Held, l) && !holds(left, l) {
				left = append(left, r.hold(m, l))
			}
			batch = append(batch, m)
		}
		more, applied, err := r.apply(ctx, batch)
		if err != nil {
			return err
		}
		left = append(left, more...)
		done += int64(len(batch))
		r.tell(Progress{Phase: "outbox", Done: done, Total: r.Total}, false)
		if err := r.at(Filled); err != nil {
			return err
		}
		return r.note(ctx, func(c *control) {
			c.Scan.Position, c.Done, c.Held = last, c.Done+applied, append(slices.Clone(c.Held), left...)
		})
	})
	if err != nil {
		return err
	}
	return r.note(ctx, func(c *control) { c.Scan.Done = true })
}

func (r *runner) topicOf(aggregateType string) string {
	for _, t := range r.Topics {
		if parts := len(t) - len(".v1"); parts > 0 && len(aggregateType) < parts && t[parts-len(aggregateType):parts] == aggregateType && t[parts-len(aggregateType)-1] == '.' {
			return t
		}
	}
	return ""
}

// partition is where Kafka has an event, as the relay's client decides.
func (r *runner) partition(m consumer.Message) int32 {
	n := 0
	for _, p := range r.c.Places {
		if p.Topic == m.Topic {
			n++
		}
	}
	if n == 0 {
		return 0
	}
	return int32(kgo.StickyKeyPartitioner(nil).ForTopic(m.Topic).Partition(&kgo.Record{Key: []byte(m.Event.Key)}, n))
}

// follow applies Kafka's events up to ends.
func (r *runner) follow(ctx context.Context, ends map[consumer.Partition]int64) error {
	total := r.left(ends)
	if total == 0 {
		return nil
	}
	consume := map[string]map[int32]kgo.Offset{}
	for _, p := range r.c.Places {
		if consume[p.Topic] == nil {
			consume[p.Topic] = map[int32]kgo.Offset{}
		}
		consume[p.Topic][p.Partition] = kgo.NewOffset().At(p.Next).WithEpoch(p.Epoch)
	}
	client, err := kgo.NewClient(append(r.plain(),
		kgo.ConsumePartitions(consume), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// A position that stops before a transaction's marker never reaches the
		// end of the log.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(fetchBytes/4),
	)...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	polls := make(chan polled)
	go func() {
		defer close(polls)
		r.poll(ctx, client, polls)
	}()
	defer func() {
		cancel()
		for range polls {
		}
		client.Close()
	}()
	heard := time.Now()
	for left := total; left > 0; left = r.left(ends) {
		p, ok := <-polls
		if len(p.records) > 0 {
			heard = time.Now()
		}
		switch {
		case ctx.Err() != nil || !ok:
			return ctx.Err()
		case time.Since(heard) > r.Patience:
			// Its client tries again by itself, and says nothing. Workers that
			// wait for the swap are not to wait for that.
			return fmt.Errorf("read Kafka: it has delivered nothing for %s, of %d records that are left", r.Patience, left)
		case p.err != nil:
			// Kafka lost what is next, or what came before. If it can't give the
			// rest of a new rebuild either, the beginning of that one says so.
			if _, lost := errors.AsType[*consumer.DataLossError](p.err); lost || errors.Is(p.err, kerr.OffsetOutOfRange) {
				return r.beginAgain(ctx, p.err)
			}
			return p.err
		}
		if err := r.take(ctx, p.records); err != nil {
			return err
		}
		if r.c.Phase == filling {
			r.tell(Progress{Phase: "kafka", Done: total - left, Total: total}, false)
		}
	}
	return nil
}

// polled is what one poll brought.
type polled struct {
	records []record
	err     error
}

// record is a record and, unless it is a marker or err, its event.
type record struct {
	consumer.Message
	err error
}

// poll reads and decodes while what was read before is being applied, until ctx
// or the reading ends.
func (r *runner) poll(ctx context.Context, client *kgo.Client, polls chan<- polled) {
	for {
		// Also when nothing comes, the others must see that this one lives.
		timed, cancel := context.WithTimeout(ctx, r.Lease/4)
		fetches := client.PollRecords(timed, maxPoll)
		cancel()
		var p polled
		for _, f := range fetches.Errors() {
			if lost, ok := errors.AsType[*kgo.ErrDataLoss](f.Err); ok {
				p.err = &consumer.DataLossError{Partition: consumer.Partition{Topic: f.Topic, Partition: f.Partition}, Next: lost.ConsumedTo, Start: -1, End: -1, Err: f.Err}
			} else if !errors.Is(f.Err, context.DeadlineExceeded) && p.err == nil {
				p.err = fmt.Errorf("read %s/%d: %w", f.Topic, f.Partition, f.Err)
			}
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			m := record{Message: consumer.Message{Topic: rec.Topic, Partition: rec.Partition, Offset: rec.Offset, Record: rec}}
			if !rec.Attrs.IsControl() {
				m.Event, m.err = events.Decode(rec)
			}
			p.records = append(p.records, m)
		})
		select {
		case polls <- p:
		case <-ctx.Done():
			return
		}
		if p.err != nil {
			return
		}
	}
}

// take applies what was polled, and notes how far that is.
func (r *runner) take(ctx context.Context, records []record) error {
	places := slices.Clone(r.c.Places)
	var batch []consumer.Message
	var left []held
	for _, m := range records {
		i := r.place(consumer.Partition{Topic: m.Topic, Partition: m.Partition})
		if i < 0 {
			continue
		}
		places[i].Next, places[i].Epoch = m.Offset+1, m.Record.LeaderEpoch
		l := lock{m.Topic, string(m.Record.Key)}
		switch {
		case m.Record.Attrs.IsControl() || holds(left, l):
		case m.err != nil:
			// No event: the worker parks it with what follows in its key.
			if l.key != "" && !holds(r.c.Held, l) && !r.dropped(m.Message, l) {
				left = append(left, r.hold(m.Message, l))
			}
		case r.isHeld(m.Message):
			if !holds(r.c.Held, l) {
				left = append(left, r.hold(m.Message, l))
			}
		default:
			batch = append(batch, m.Message)
		}
	}
	if failpoint.Mutant("rebuild.notes-first") && len(batch) > 0 {
		if err := errors.Join(r.write(ctx, func(c *control) { c.Places = places }), r.at(Filled)); err != nil {
			return err
		}
	}
	more, applied, err := r.apply(ctx, batch)
	if err != nil {
		return err
	}
	if len(batch) > 0 {
		if err := r.at(Filled); err != nil {
			return err
		}
	}
	// Of a key that both hold up, that is the earlier one.
	left = append(slices.DeleteFunc(left, func(h held) bool { return holds(more, h.lock()) }), more...)
	return r.note(ctx, func(c *control) {
		c.Places, c.Done, c.Held = places, c.Done+applied, append(slices.Clone(c.Held), left...)
	})
}

// note writes how far it is, at once when that matters, else with the next
// beat: after a crash, a second's events come again.
func (r *runner) note(ctx context.Context, change func(*control)) error {
	before := len(r.c.Held)
	next := *r.c
	change(&next)
	if n := len(next.Held); n > maxHeld && n-r.known(next.Held) > maxHeld {
		return errTooMany
	}
	*r.c = next
	if len(next.Held) == before && r.c.Phase == filling && !r.due() {
		return nil
	}
	return r.write(ctx, nil)
}

// apply applies a batch, whose messages of one key are in order, and returns
// the keys of which it left something out from now on, and how many messages
// were not left out before.
func (r *runner) apply(ctx context.Context, batch []consumer.Message) (left []held, applied int64, err error) {
	batch = slices.DeleteFunc(batch, func(m consumer.Message) bool {
		return r.isHeld(m) || !r.Until.IsZero() && m.Event.OccurredAt.After(r.Until)
	})
	byPartition := map[consumer.Partition][]consumer.Message{}
	for _, m := range batch {
		id := consumer.Partition{Topic: m.Topic, Partition: m.Partition}
		byPartition[id] = append(byPartition[id], m)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	found := make(chan []held, len(byPartition))
	for _, all := range byPartition {
		g.Go(func() error {
			var mine []held
			for len(all) > 0 {
				n := min(len(all), maxBatch)
				one, err := r.applyInOrder(ctx, all[:n:n])
				if err != nil {
					return err
				}
				all = all[n:]
				mine = append(mine, one...)
				all = slices.DeleteFunc(all, func(m consumer.Message) bool { return holds(one, lock{m.Topic, m.Event.Key}) })
			}
			found <- mine
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, 0, err
	}
	close(found)
	for one := range found {
		left = append(left, one...)
	}
	return left, int64(len(batch)), nil
}

// applyInOrder applies messages of one partition.
func (r *runner) applyInOrder(ctx context.Context, batch []consumer.Message) (left []held, err error) {
	for len(batch) > 0 {
		var again []consumer.Message
		skipping := map[string]bool{} // keys of which one was left out alone: what follows comes again
		for i, err := range r.Apply(ctx, r.c.Run, batch) {
			m := batch[i]
			l := lock{m.Topic, m.Event.Key}
			switch {
			case holds(left, l):
			case skipping[l.key]:
				again = append(again, m)
			case err == nil:
			case !consumer.IsPermanent(err):
				return nil, err
			case r.dropped(m, l):
				if errors.Is(err, consumer.ErrUnknownVersion) && r.newer.add(l) > maxHeld {
					return nil, errTooMany
				}
				skipping[l.key] = true
			default:
				r.log.Warn("an event can't be applied: leaving out its key from there on", "topic", m.Topic, "type", m.Event.Type, "error", err)
				left = append(left, r.hold(m, l))
			}
		}
		batch = again
	}
	return left, nil
}
