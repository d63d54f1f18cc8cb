package consumer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/internal/failpoint"
)

func (l *lane) lock() lock { return lock{l.part.id, l.key} }

// park moves what waits in lanes, whose first waiting message can't be
// handled, to the dead-letter topic, and notes that their keys are parked. If
// that fails, everything still waits.
//
// The messages are written before the state. Whoever dies between the two
// leaves a letter that the state of the next attempt begins after; whoever dies
// after both gets the messages again, and finds that they are parked.
func (s *session) park(lanes []*lane) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), requestTimeout)
	defer cancel()
	now := time.Now()
	var letters []*kgo.Record
	first := make([]int, len(lanes)) // where each lane's letters begin
	for i, l := range lanes {
		first[i] = len(letters)
		state := s.parked.state(l.lock())
		for n, m := range s.going(l) {
			if l.key != "" && state != nil && state.holds(l.part.log, m.Offset) {
				continue
			}
			reason := errBehind
			if n == 0 && !l.again {
				reason = l.reason
			}
			letters = append(letters, deadLetter(s.Group, m, l.part.log, reason, now))
		}
	}
	if len(letters) > 0 {
		if err := s.side.ProduceSync(ctx, letters...).FirstErr(); err != nil {
			return fmt.Errorf("write to %s: %w", deadLetterTopic(s.Group), err)
		}
		if err := failpoint.Hit(failpoint.ConsumerParked); err != nil {
			return err
		}
	}
	states := map[lock]*parkedState{}
	for i, l := range lanes {
		from := int64(-1)
		if first[i] < len(letters) {
			from = letters[first[i]].Offset
		}
		if state := s.stateAfter(l, from, now); state != nil {
			states[l.lock()] = state
		}
	}
	if len(states) > 0 {
		if err := s.parked.write(ctx, states); err != nil {
			return err
		}
	}
	for _, l := range lanes {
		if err := s.parkedNow(ctx, l); err != nil {
			return err
		}
	}
	s.count(func(t *Stats) { t.Parked += int64(len(letters)) })
	return nil
}

// going returns what of a lane's key goes to the dead-letter topic: all that
// waits, because it is behind what can't be handled. A message without a key
// has nothing behind it.
func (s *session) going(l *lane) []Message {
	messages := l.part.keys[l.key].messages
	if l.key == "" && !l.again {
		return messages[:1]
	}
	return messages
}

// stateAfter is the state of a lane's key once its messages, of which the
// first is at from in the dead-letter topic, are parked; nil if that changes
// nothing.
func (s *session) stateAfter(l *lane, from int64, now time.Time) *parkedState {
	going := s.going(l)
	next := parkedState{Log: l.part.log, From: from, Reason: shorten(l.reason), Since: now.UTC()}
	old := s.parked.state(l.lock())
	switch {
	case old != nil && l.again:
		next = old.rest(l.part.keys[l.key].again.letters)
		next.Reason, next.Since = shorten(l.reason), now.UTC()
	case old != nil:
		next = *old
	case len(going) > 0:
		next.First = going[0].Offset
	}
	if len(going) > 0 && next.Log == l.part.log {
		next.Last = max(next.Last, going[len(going)-1].Offset)
	}
	if old != nil && !l.again && next.Last == old.Last {
		return nil
	}
	return &next
}

// parkedNow forgets what of a lane was parked.
func (s *session) parkedNow(ctx context.Context, l *lane) error {
	q := l.part.keys[l.key]
	if l.again {
		if err := s.parked.answer(ctx, l.lock()); err != nil {
			return err
		}
		q.again = nil
	}
	n := len(s.going(l))
	s.Logger.Warn("message parked", "partition", l.part.id.String(), "offset", l.offset, "again", l.again, "waiting", n, "error", l.reason)
	q.attempt, q.due = 0, time.Time{}
	l.part.done(l.key, n)
	return nil
}

// loaded is what was read of a parked key.
type loaded struct {
	lock
	part    *part
	ask     ask
	letters []letter
	err     error
}

// tend does what operators ask for, and lets go of keys whose parked messages
// are done.
func (s *session) tend() {
	for l, a := range s.parked.asked() {
		p := s.part(l.Partition)
		if p == nil || p.keys[l.key] != nil && p.keys[l.key].again != nil {
			continue
		}
		// From now on, messages of the key wait instead of being parked, so
		// that what is read of the dead-letter topic is complete.
		p.wait(l.key).again = &again{ask: a}
		s.load(l, p, a)
	}
	for {
		select {
		case r := <-s.loads:
			s.loaded(r)
			continue
		default:
		}
		break
	}
	for _, p := range s.owned() {
		for key, q := range p.keys {
			if q.again == nil || !q.again.loaded || len(q.again.letters) > 0 || q.due.After(time.Now()) {
				continue
			}
			if err := s.unpark(p, key, q); err != nil {
				s.Logger.Warn("letting go of a parked key, will retry", "error", err)
				q.due = time.Now().Add(s.pause(q.attempt))
				q.attempt++
			}
		}
	}
}

// load reads what is parked of a key, beside the loop.
func (s *session) load(l lock, p *part, a ask) {
	state := s.parked.state(l)
	s.tasks.Go(func() {
		r := loaded{lock: l, part: p, ask: a}
		if state != nil && !(a.Drop && a.Offset < 0) {
			pile := pile{state: state}
			r.err = readLetters(s.ctx, s.Group, s.plain(), state.From, func(letter letter) {
				if letter.lock == l {
					pile.add(letter)
				}
			})
			r.letters = pile.letters
		}
		for {
			select {
			case s.loads <- r:
				s.nudge()
				return
			case <-s.ctx.Done():
				return
			case <-time.After(s.MinRetry): // the loop has yet to take another one
				s.nudge()
			}
		}
	})
}

// loaded takes over what was read of a parked key.
func (s *session) loaded(r loaded) {
	if s.part(r.Partition) != r.part { // it went to another member, which does this
		return
	}
	q := r.part.keys[r.key]
	if r.err != nil {
		s.Logger.Warn("reading parked messages, will retry", "error", r.err)
		q.again = nil // asked for still, so that it is read again
		r.part.done(r.key, 0)
		return
	}
	q.attempt, q.due, q.again.loaded = 0, time.Time{}, true
	for _, l := range r.letters {
		if r.ask.Retry || l.record.Offset != r.ask.Offset {
			q.again.letters = append(q.again.letters, l)
		}
	}
	if r.ask.Retry || len(q.again.letters) == 0 {
		return
	}
	// One message was dropped, and others are still parked.
	state := *s.parked.state(r.lock)
	state.Dropped = append(slices.Clone(state.Dropped), r.ask.Offset)
	state = state.rest(q.again.letters)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), requestTimeout)
	defer cancel()
	err := s.parked.write(ctx, map[lock]*parkedState{r.lock: &state})
	if err == nil {
		err = s.parked.answer(ctx, r.lock)
	}
	if err != nil {
		s.Logger.Warn("dropping a parked message, will retry", "error", err)
	}
	q.again = nil
	r.part.done(r.key, 0)
}

// unpark notes that nothing is parked of a key any more. Only then may what
// waits be handled: after a crash, what came later would be taken for parked.
func (s *session) unpark(p *part, key string, q *queue) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), requestTimeout)
	defer cancel()
	l := lock{p.id, key}
	if err := s.parked.write(ctx, map[lock]*parkedState{l: nil}); err != nil {
		return err
	}
	if err := s.parked.answer(ctx, l); err != nil {
		return err
	}
	s.Logger.Info("parked key let go", "partition", p.id.String())
	q.attempt, q.due, q.again = 0, time.Time{}, nil
	p.done(key, 0)
	return nil
}
