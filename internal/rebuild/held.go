package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"outflow/internal/consumer"
)

// operators is what was parked, and how far the workers were: what can't be
// applied and isn't parked any more, an operator dropped.
type operators struct {
	parked map[lock]parkedAt
	live   map[consumer.Partition]int64
}

type parkedAt struct {
	offset  int64 // of the first message
	here    bool  // in the topic that is there, not in one that it replaced
	version int64 // of the first message
	retried bool  // whether it is being handled again, and may have been
}

// ask finds out. The positions come first: a worker parks before it moves its
// position, so what is before a position and isn't parked then was let go.
func (r *runner) ask(ctx context.Context) (ops operators, err error) {
	ops = operators{parked: map[lock]parkedAt{}, live: map[consumer.Partition]int64{}}
	stored, err := r.stored(ctx)
	if err != nil {
		return ops, err
	}
	for id, p := range stored {
		if i := r.place(id); i >= 0 && r.c.Places[i].Log == p.Log {
			ops.live[id] = p.Next
		}
	}
	letters, err := consumer.OpenDeadLetters(r.Brokers, r.Group, r.Kafka...)
	if err != nil {
		return ops, err
	}
	defer letters.Close()
	all, err := letters.List(ctx)
	if err != nil {
		return ops, fmt.Errorf("read what is parked: %w", err)
	}
	for _, one := range all {
		l := lock{one.Topic, one.Key}
		if _, ok := ops.parked[l]; !ok {
			i := r.place(consumer.Partition{Topic: one.Topic, Partition: one.Partition})
			here := i >= 0 && r.c.Places[i].Log == one.Log
			ops.parked[l] = parkedAt{one.Offset, here, one.Event.AggregateVersion, one.Retried}
		}
	}
	return ops, nil
}

// isHeld reports whether a message is left out because of what came before it
// in its key.
func (r *runner) isHeld(m consumer.Message) bool {
	l := lock{m.Topic, m.Event.Key}
	if holds(r.c.Held, l) {
		return true
	}
	at, ok := r.ops.parked[l]
	if !ok || at.retried {
		return false
	}
	if m.Offset >= 0 {
		return at.here && m.Offset >= at.offset
	}
	return at.version > 0 && m.Event.AggregateVersion >= at.version
}

// hold is what is noted of a key whose events are left out from m on.
func (r *runner) hold(m consumer.Message, l lock) held {
	h := held{Topic: l.topic, Key: l.key, Partition: m.Partition, Offset: m.Offset, Retried: r.ops.parked[l].retried}
	if m.Offset < 0 {
		h.Version = m.Event.AggregateVersion
		if _, parked := r.ops.parked[l]; !parked {
			h.Before = r.begun(m)
		}
	}
	return h
}

// begun is where Kafka ended in a message's partition when the reading of the
// outbox began, while that is read.
func (r *runner) begun(m consumer.Message) int64 {
	if i := r.place(consumer.Partition{Topic: m.Topic, Partition: m.Partition}); i >= 0 {
		return r.c.Places[i].Next
	}
	return 0
}

// known counts the keys of which the workers have parked something too.
func (r *runner) known(all []held) (n int) {
	for _, h := range all {
		if _, ok := r.ops.parked[h.lock()]; ok {
			n++
		}
	}
	return n
}

// dropped reports whether the workers have passed what can't be applied and it
// isn't parked: an operator has said that it doesn't count. Where a message of the
// outbox is in Kafka isn't known: the workers have passed it when they have passed
// all that was there. If it came later, it is read again there.
func (r *runner) dropped(m consumer.Message, l lock) bool {
	at, parked := r.ops.parked[l]
	live, ok := r.ops.live[consumer.Partition{Topic: m.Topic, Partition: m.Partition}]
	switch {
	case m.Offset < 0 && parked:
		return m.Event.AggregateVersion < at.version
	case m.Offset < 0:
		return ok && live >= r.begun(m)
	case parked && (!at.here || m.Offset >= at.offset):
		return false
	}
	return m.Offset < live
}

// locks counts keys.
type locks struct {
	mu  sync.Mutex
	all map[lock]bool
}

// add adds one, and returns how many there are.
func (s *locks) add(l lock) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[lock]bool{}
	}
	s.all[l] = true
	return len(s.all)
}

// letGo returns the keys that an operator has let go since they were left out, or
// is letting go: the workers have passed events that the shadow lacks, and nobody
// would bring them again.
func (r *runner) letGo(ctx context.Context) ([]held, error) {
	if len(r.c.Held) == 0 {
		return nil, nil
	}
	now, err := r.ask(ctx)
	if err != nil {
		return nil, err
	}
	return now.letGo(r.c.Held), nil
}

func (o operators) letGo(all []held) (free []held) {
	for _, h := range all {
		at, parked := o.parked[h.lock()]
		live, ok := o.live[consumer.Partition{Topic: h.Topic, Partition: h.Partition}]
		switch {
		// A worker that is paused while it handles a key again has done so, and
		// has yet to say it: what can be applied must not go back at the swap.
		case at.retried && !h.Retried,
			h.Offset < 0 && parked && at.version > h.Version,
			h.Offset < 0 && !parked && ok && live >= h.Before,
			h.Offset >= 0 && parked && at.here && at.offset > h.Offset,
			h.Offset >= 0 && !parked && live > h.Offset:
			free = append(free, h)
		}
	}
	return free
}

// goBack has the events of keys that were let go applied: from where they were
// left out on. What comes once more does no harm.
func (r *runner) goBack(ctx context.Context) error {
	free := r.ops.letGo(r.c.Held)
	if len(free) == 0 {
		return nil
	}
	first := map[consumer.Partition]int64{}
	for _, h := range free {
		if h.Offset < 0 {
			return r.beginAgain(ctx, errors.New("a parked key was let go, that is to be read from the outbox"))
		}
		id := consumer.Partition{Topic: h.Topic, Partition: h.Partition}
		if at, ok := first[id]; !ok || h.Offset < at {
			first[id] = h.Offset
		}
	}
	r.log.Warn("parked keys were let go: going back to where they were left out", "keys", len(free))
	return r.write(ctx, func(c *control) {
		c.Places, c.Held = slices.Clone(c.Places), slices.Clone(c.Held)
		for i := range c.Places {
			p := &c.Places[i]
			at, ok := first[consumer.Partition{Topic: p.Topic, Partition: p.Partition}]
			if !ok {
				continue
			}
			p.Next, p.Epoch = min(p.Next, at), -1
		}
		c.Held = slices.DeleteFunc(c.Held, func(h held) bool {
			at, ok := first[consumer.Partition{Topic: h.Topic, Partition: h.Partition}]
			return ok && h.Offset >= at
		})
	})
}
