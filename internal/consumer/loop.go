package consumer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/internal/events"
	"outflow/internal/failpoint"
)

// lane is the part of a batch that belongs to one key.
type lane struct {
	part     *part
	key      string
	waiting  bool      // whether the messages are the first of the key's queue
	again    bool      // whether they were parked, and come before the queue
	messages []Message // in order
	refused  int       // index of the first message that isn't for the handler; len(messages) when all are
	reason   error     // why it is not
	offset   int64     // of the first message that was not done
}

// step polls once, handles what came and what is due again, and saves how far
// that went.
func (s *session) step() {
	ctx, cancel := context.WithDeadline(s.ctx, s.wake(time.Now()))
	s.polling(cancel)
	fetches := s.client.PollRecords(ctx, s.MaxBatch)
	s.polling(nil)
	cancel()
	if len(fetches) == 0 { // nothing was polled, so nothing keeps a rebalance away
		return
	}
	defer s.client.AllowRebalance()
	if s.ctx.Err() != nil {
		return
	}
	if err := s.problem(fetches); err != nil {
		s.fail(err)
		return
	}
	s.tend()
	lanes := append(s.due(time.Now()), s.arrived(fetches)...)
	if failpoint.Mutant("consumer.early-save") {
		s.save()
	}
	if err := s.work(lanes); err != nil {
		s.fail(err)
		return
	}
	s.throttle()
	s.save()
}

// wake is when to stop waiting for records, because something else is due.
func (s *session) wake(now time.Time) time.Time {
	at := now.Add(seekInterval)
	if s.unsaved > 0 && s.retrySav.Before(at) {
		at = s.retrySav
	}
	for _, p := range s.owned() {
		for _, q := range p.keys {
			if !q.held() && q.due.Before(at) {
				at = q.due
			}
		}
	}
	if soonest := now.Add(time.Millisecond); at.Before(soonest) {
		at = soonest
	}
	return at
}

func (s *session) owned() []*part {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*part, 0, len(s.parts))
	for _, p := range s.parts {
		all = append(all, p)
	}
	return all
}

func (s *session) part(id Partition) *part {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parts[id]
}

// problem returns the error that ends the session, if the client reported one.
func (s *session) problem(fetches kgo.Fetches) error {
	for _, f := range fetches.Errors() {
		id := Partition{f.Topic, f.Partition}
		switch {
		case errors.Is(f.Err, context.DeadlineExceeded), errors.Is(f.Err, context.Canceled):
		case errors.Is(f.Err, kgo.ErrClientClosed):
			return &restartError{f.Err}
		case forbidden(f.Err):
			return fmt.Errorf("consume %s: %w", id, f.Err)
		case errors.Is(f.Err, kerr.OffsetOutOfRange):
			lost := &DataLossError{Partition: id, Start: -1, End: -1, Err: f.Err}
			if p := s.part(id); p != nil {
				lost.Next = p.next
			}
			return lost
		default:
			if lost, ok := errors.AsType[*kgo.ErrDataLoss](f.Err); ok {
				return &DataLossError{Partition: id, Next: lost.ConsumedTo, Start: -1, End: -1, Err: f.Err}
			}
			if _, ok := errors.AsType[*kgo.ErrGroupSession](f.Err); ok { // the client joins again by itself
				s.Logger.Warn("membership in the group was interrupted", "error", f.Err)
				continue
			}
			return &restartError{fmt.Errorf("consume %s: %w", id, f.Err)}
		}
	}
	return nil
}

// arrived sorts what was polled into lanes. What comes after waiting messages
// of its key waits with them.
func (s *session) arrived(fetches kgo.Fetches) []*lane {
	var lanes []*lane
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		p := s.part(Partition{f.Topic, f.Partition})
		if p == nil {
			return
		}
		p.end = max(p.end, f.LastStableOffset)
		byKey := map[string]*lane{}
		for _, r := range f.Records {
			p.next, p.epoch = r.Offset+1, r.LeaderEpoch
			if r.Attrs.IsControl() {
				continue
			}
			key := string(r.Key)
			m := Message{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Record: r}
			if p.keys[key] != nil && !failpoint.Mutant("consumer.overtake") {
				p.wait(key, m)
				continue
			}
			if byKey[key] == nil {
				byKey[key] = &lane{part: p, key: key}
				lanes = append(lanes, byKey[key])
			}
			byKey[key].messages = append(byKey[key].messages, m)
		}
	})
	return lanes
}

// due returns what waited long enough. Of a key that failed, that is the first
// message alone: what follows comes once that one is done.
func (s *session) due(now time.Time) []*lane {
	var lanes []*lane
	room := s.MaxBatch
	for _, p := range s.owned() {
		for key, q := range p.keys {
			if room <= 0 {
				return lanes
			}
			if q.held() || q.due.After(now) {
				continue
			}
			n := room
			if q.attempt > 0 {
				n = 1
			}
			l := &lane{part: p, key: key, waiting: true, messages: q.first(n)}
			if q.again != nil {
				l.again, l.messages = true, q.again.first(n)
			}
			if len(l.messages) > 0 { // else parked messages are done, and that has yet to be written
				room -= len(l.messages)
				lanes = append(lanes, l)
			}
		}
	}
	return lanes
}

// work handles lanes. It returns an error only when the handler is wrong.
func (s *session) work(lanes []*lane) error {
	var batch []Message
	for _, l := range lanes {
		s.screen(l)
		batch = append(batch, l.messages[:l.refused]...)
	}
	answers, err := s.handle(batch)
	if err != nil {
		return err
	}
	var handled, retried int64
	var failure error
	var parking []*lane
	for _, l := range lanes {
		var mine []error
		mine, answers = answers[:l.refused], answers[l.refused:]
		n := 0
		for n < len(mine) && (mine[n] == nil || failpoint.Mutant("consumer.no-retry") && !IsPermanent(mine[n])) {
			n++
		}
		if n < len(mine) {
			l.reason = mine[n]
		}
		handled += int64(n)
		s.settle(l, n)
		if n == len(l.messages) {
			continue
		}
		l.offset = l.messages[n].Offset
		switch {
		case IsPermanent(l.reason) && !failpoint.Mutant("consumer.no-parking"):
			parking = append(parking, l)
		default:
			retried++
			if _, ok := errors.AsType[*laterError](l.reason); !ok {
				failure = l.reason
			}
		}
	}
	s.count(func(t *Stats) {
		t.Handled += handled
		t.Retried += retried
		if handled > 0 {
			t.LastHandled = time.Now()
		}
	})
	if failure != nil {
		s.Logger.Warn("handling failed, will retry", "keys", retried, "of", len(lanes), "error", failure)
	}
	if len(parking) > 0 {
		if err := s.park(parking); err != nil {
			s.Logger.Error("parking failed, will retry", "keys", len(parking), "error", err)
		}
	}
	return nil
}

// screen finds the first message of a lane that isn't for the handler, because
// its key is parked or because it is no event, and decodes those before it.
func (s *session) screen(l *lane) {
	state := s.parked.state(l.lock())
	for i := range l.messages {
		m := &l.messages[i]
		var err error
		switch {
		case !l.again && l.key != "" && state != nil && !failpoint.Mutant("consumer.overtake-parked") && !state.before(l.part.log, m.Offset):
			err = errBehind
		default:
			if m.Event, err = events.Decode(m.Record); err != nil {
				err = fmt.Errorf("decode the event: %w", err)
			}
		}
		if err != nil {
			l.refused, l.reason = i, Permanent(err)
			return
		}
	}
	l.refused = len(l.messages)
}

// settle takes the first n messages of a lane for done, and lets what is left
// of it wait.
func (s *session) settle(l *lane, n int) {
	q := l.part.keys[l.key]
	switch {
	case l.again:
		q.again.letters = q.again.letters[n:]
	case l.waiting:
		l.part.done(l.key, n)
	case n < len(l.messages):
		q = l.part.wait(l.key, l.messages[n:]...)
	}
	switch {
	case q == nil:
	case n == len(l.messages): // the next ones of the queue
		q.attempt, q.due = 0, time.Time{}
	default:
		if n > 0 {
			q.attempt = 0
		}
		pause := s.pause(q.attempt)
		if later, ok := errors.AsType[*laterError](l.reason); ok {
			pause, q.attempt = later.pause, max(1, q.attempt)
		} else {
			q.attempt++
		}
		q.due = time.Now().Add(pause)
	}
}

// handle calls the handler, under a leash for when a rebalance or a stop waits
// for it. It returns an answer per message.
func (s *session) handle(batch []Message) ([]error, error) {
	if len(batch) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	l := &leash{cancel: cancel}
	defer l.release()
	stop := context.AfterFunc(s.ctx, func() { l.tighten(s.Grace) })
	defer stop()
	s.mu.Lock()
	s.leash = l
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leash = nil
	}()

	answers, panicked := s.call(ctx, batch)
	if panicked && len(batch) > 1 {
		// Find the message that the handler can't bear. Handlers are
		// idempotent, so the others may come again.
		answers = Each(1, func(ctx context.Context, m Message) error {
			one, _ := s.call(ctx, []Message{m})
			return errors.Join(one...)
		})(ctx, batch)
	}
	switch len(answers) {
	case 0:
		return make([]error, len(batch)), nil
	case len(batch):
		return answers, nil
	}
	return nil, fmt.Errorf("the handler of %s answered %d times for %d messages", s.Group, len(answers), len(batch))
}

// call calls the handler; a panic becomes a permanent error for every message.
func (s *session) call(ctx context.Context, batch []Message) (answers []error, panicked bool) {
	defer func() {
		if v := recover(); v != nil {
			s.Logger.Error("the handler panicked", "panic", v, "messages", len(batch), "stack", string(debug.Stack()))
			answers, panicked = make([]error, len(batch)), true
			for i := range answers {
				answers[i] = Permanent(fmt.Errorf("panic: %v", v))
			}
		}
	}()
	return s.Handler(ctx, batch), false
}

// throttle stops fetching from partitions in which too much waits.
func (s *session) throttle() {
	for _, p := range s.owned() {
		if p.full() == p.paused {
			continue
		}
		p.paused = p.full()
		one := map[string][]int32{p.id.Topic: {p.id.Partition}}
		if p.paused {
			s.client.PauseFetchPartitions(one)
		} else {
			s.client.ResumeFetchPartitions(one)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parts {
		p.lag = max(0, p.end-p.position().Next)
	}
	s.tell()
}

// save writes positions that changed. What can't be saved now is saved later:
// until then, a restart only repeats what was handled.
func (s *session) save() {
	now := time.Now()
	if s.unsaved > 0 && now.Before(s.retrySav) {
		return
	}
	check := s.Positions != nil && now.Sub(s.checked) >= seekInterval
	changed := map[Partition]Position{}
	parts := s.owned()
	for _, p := range parts {
		if at := p.position(); check || at.Next != p.saved.Next || at.Log != p.saved.Log {
			changed[p.id] = at
		}
	}
	if len(changed) == 0 {
		s.unsaved = 0
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), requestTimeout)
	defer cancel()
	err := failpoint.Hit(failpoint.ConsumerSave)
	if err == nil {
		err = s.positions.Save(ctx, changed)
	}
	if err == nil {
		err = failpoint.Hit(failpoint.ConsumerSaved)
	}
	switch {
	case errors.Is(err, ErrPositionsMoved):
		s.fail(&restartError{err})
		return
	case err != nil:
		s.Logger.Warn("saving positions, will retry", "error", err)
		s.retrySav = time.Now().Add(s.pause(s.unsaved))
		s.unsaved++
		return
	}
	s.unsaved, s.checked = 0, now
	for _, p := range parts {
		if at, ok := changed[p.id]; ok {
			p.saved = at
		}
	}
	if s.Positions != nil && now.Sub(s.mirrored) >= time.Second {
		s.mirrored = now
		s.group.saveAsync(context.WithoutCancel(s.ctx), changed)
	}
}
