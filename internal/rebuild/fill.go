package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"

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

// operators is what was parked, and how far the workers were, when the filling
// began: what can't be applied and isn't parked any more, an operator dropped.
type operators struct {
	parked map[held]parkedAt
	live   map[consumer.Partition]int64
}

type parkedAt struct{ offset, version int64 }

func (r *runner) ask(ctx context.Context) error {
	r.ops = operators{parked: map[held]parkedAt{}, live: map[consumer.Partition]int64{}}
	letters, err := consumer.OpenDeadLetters(r.Brokers, r.Group, r.Kafka...)
	if err != nil {
		return err
	}
	defer letters.Close()
	all, err := letters.List(ctx)
	if err != nil {
		return fmt.Errorf("read what is parked: %w", err)
	}
	for _, l := range all {
		k := held{l.Topic, l.Key}
		if _, ok := r.ops.parked[k]; !ok {
			r.ops.parked[k] = parkedAt{l.Offset, l.Event.AggregateVersion}
		}
	}
	stored, err := r.stored(ctx)
	if err != nil {
		return err
	}
	for id, p := range stored {
		if i := r.place(id); i >= 0 && r.c.Places[i].Log == p.Log {
			r.ops.live[id] = p.Next
		}
	}
	r.starts, err = r.startOffsets(ctx)
	return err
}

func (r *runner) place(id consumer.Partition) int {
	return slices.IndexFunc(r.c.Places, func(p place) bool { return p.Topic == id.Topic && p.Partition == id.Partition })
}

// fill fills the shadow until little is left.
func (r *runner) fill(ctx context.Context) error {
	if err := r.ask(ctx); err != nil {
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
		r.log.Warn("what was filled is gone: beginning again")
		if err := r.again(ctx); err != nil {
			return err
		}
		return errMoved
	}
	if !r.c.Scan.Done {
		if err := r.scan(ctx); err != nil {
			return err
		}
	}
	for {
		ends, err := r.ends(ctx)
		if err != nil {
			return err
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
		for _, e := range all {
			m := consumer.Message{Event: e, Offset: -1, Topic: r.topicOf(e.AggregateType)}
			m.Partition = r.partition(m)
			batch = append(batch, m)
		}
		left, applied, err := r.apply(ctx, batch)
		if err != nil {
			return err
		}
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
	for left := total; left > 0; left = r.left(ends) {
		p, ok := <-polls
		switch {
		case ctx.Err() != nil || !ok:
			return ctx.Err()
		case p.err != nil:
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
	var bad []held
	for _, m := range records {
		i := r.place(consumer.Partition{Topic: m.Topic, Partition: m.Partition})
		if i < 0 {
			continue
		}
		places[i].Next, places[i].Epoch = m.Offset+1, m.Record.LeaderEpoch
		switch {
		case m.Record.Attrs.IsControl():
			continue
		case m.err != nil:
			// No event: the worker parks it with what follows in its key.
			if h := (held{m.Topic, string(m.Record.Key)}); h.Key != "" && !r.dropped(m.Message, h) {
				bad = append(bad, h)
			}
			continue
		}
		if r.isHeld(m.Message) && places[i].LeftOut < 0 {
			places[i].LeftOut = m.Offset
		}
		batch = append(batch, m.Message)
	}
	batch = slices.DeleteFunc(batch, func(m consumer.Message) bool { return slices.Contains(bad, held{m.Topic, m.Event.Key}) })
	if failpoint.Mutant("rebuild.notes-first") && len(batch) > 0 {
		if err := errors.Join(r.write(ctx, func(c *control) { c.Places = places }), r.at(Filled)); err != nil {
			return err
		}
	}
	left, applied, err := r.apply(ctx, batch)
	if err != nil {
		return err
	}
	left = append(left, bad...)
	if len(batch) > 0 {
		if err := r.at(Filled); err != nil {
			return err
		}
	}
	for _, h := range left {
		for i := range places {
			if places[i].Topic == h.Topic && places[i].LeftOut < 0 {
				places[i].LeftOut = r.c.Places[i].Next
			}
		}
	}
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
	if len(next.Held) > maxHeld {
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
				all = slices.DeleteFunc(all, func(m consumer.Message) bool { return slices.Contains(one, held{m.Topic, m.Event.Key}) })
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
			k := held{m.Topic, m.Event.Key}
			switch {
			case slices.Contains(left, k):
			case skipping[k.Key]:
				again = append(again, m)
			case err == nil:
			case !consumer.IsPermanent(err):
				return nil, err
			case r.dropped(m, k):
				skipping[k.Key] = true
			default:
				r.log.Warn("an event can't be applied: leaving out its key from there on", "topic", m.Topic, "type", m.Event.Type, "error", err)
				left = append(left, k)
			}
		}
		batch = again
	}
	return left, nil
}

// isHeld reports whether a message is left out because of what came before it
// in its key.
func (r *runner) isHeld(m consumer.Message) bool {
	k := held{m.Topic, m.Event.Key}
	if slices.Contains(r.c.Held, k) {
		return true
	}
	at, ok := r.ops.parked[k]
	if !ok {
		return false
	}
	if m.Offset >= 0 {
		return m.Offset >= at.offset
	}
	return at.version > 0 && m.Event.AggregateVersion >= at.version
}

// dropped reports whether the workers have passed what can't be applied and it
// isn't parked: an operator has said that it doesn't count.
func (r *runner) dropped(m consumer.Message, k held) bool {
	if _, parked := r.ops.parked[k]; parked {
		return false
	}
	return m.Offset >= 0 && m.Offset < r.ops.live[consumer.Partition{Topic: m.Topic, Partition: m.Partition}]
}
