package consumer

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/events"
)

// ErrNoDeadLetter says that no parked message has the id that was named.
var ErrNoDeadLetter = errors.New("no message with this id is parked")

// DeadLetter is a message that is parked.
type DeadLetter struct {
	ID        int64 // its offset in the dead-letter topic
	Topic     string
	Partition int32
	Offset    int64
	Log       string // the id of the topic that Offset counts in, which may be gone
	Key       string
	First     bool         // whether it is what its key waits for; others are behind it
	Retried   bool         // whether its key is to be handled again, as an operator asked: how far that is isn't known
	Reason    string       // why it, or the first of its key, could not be handled
	ParkedAt  time.Time    // when it came to the dead-letter topic
	Event     domain.Event // the zero event when the record is none
	Record    *kgo.Record  // as it was in its topic
}

// DeadLetters is a group's parked messages, as operators see them. What they
// ask for is done by the worker that has the message's partition, because only
// that one knows what else of the key is on its way.
type DeadLetters struct {
	group  string
	opts   []kgo.Opt
	client *kgo.Client
}

// OpenDeadLetters returns the parked messages of a group. Close it after use.
func OpenDeadLetters(brokers []string, group string, opts ...kgo.Opt) (*DeadLetters, error) {
	d := &DeadLetters{group: group, opts: append([]kgo.Opt{kgo.SeedBrokers(brokers...)}, opts...)}
	var err error
	if d.client, err = kgo.NewClient(d.opts...); err != nil {
		return nil, fmt.Errorf("configure the Kafka client: %w", err)
	}
	return d, nil
}

// Close ends the connections to Kafka.
func (d *DeadLetters) Close() { d.client.Close() }

// List returns what is parked, in the order in which it was.
func (d *DeadLetters) List(ctx context.Context) ([]DeadLetter, error) {
	p, stop, err := d.follow(ctx)
	if p == nil {
		return nil, err
	}
	defer stop()
	return d.list(ctx, p)
}

func (d *DeadLetters) list(ctx context.Context, p *parked) ([]DeadLetter, error) {
	piles := map[lock]*pile{}
	retried := map[lock]bool{}
	from := int64(-1)
	p.mu.Lock()
	for l, n := range p.asks {
		retried[l] = n.value != nil && n.value.Retry
	}
	for l, n := range p.states {
		if n.value == nil {
			continue
		}
		piles[l] = &pile{state: n.value}
		if from < 0 || n.value.From < from {
			from = n.value.From
		}
	}
	p.mu.Unlock()
	if len(piles) == 0 {
		return nil, nil
	}
	if err := readLetters(ctx, d.group, d.opts, from, func(l letter) {
		if pile := piles[l.lock]; pile != nil {
			pile.add(l)
		}
	}); err != nil {
		return nil, err
	}
	var all []DeadLetter
	for lock, pile := range piles {
		for i, l := range pile.letters {
			letter := DeadLetter{
				ID: l.at, Topic: l.Topic, Partition: l.Partition.Partition, Offset: l.record.Offset, Log: l.log, Key: l.key,
				First: i == 0, Retried: retried[lock], Reason: l.reason, ParkedAt: l.parkedAt, Record: l.record,
			}
			if i == 0 {
				letter.Reason = pile.state.Reason
			}
			if e, err := events.Decode(l.record); err == nil {
				letter.Event = e
			}
			all = append(all, letter)
		}
	}
	slices.SortFunc(all, func(a, b DeadLetter) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// Get returns the parked message with an id, or ErrNoDeadLetter.
func (d *DeadLetters) Get(ctx context.Context, id int64) (DeadLetter, error) {
	all, err := d.List(ctx)
	if err != nil {
		return DeadLetter{}, err
	}
	return find(all, id)
}

func find(all []DeadLetter, id int64) (DeadLetter, error) {
	if i := slices.IndexFunc(all, func(l DeadLetter) bool { return l.ID == id }); i >= 0 {
		return all[i], nil
	}
	return DeadLetter{}, ErrNoDeadLetter
}

// Retry has the key of a parked message handled again: all that is parked of
// it, in order, and then what came meanwhile. It returns once that is done;
// a [ParkedAgainError] when it failed again. When ctx ends before, the request
// stands.
func (d *DeadLetters) Retry(ctx context.Context, id int64) error {
	return d.ask(ctx, id, func(DeadLetter) ask { return ask{Retry: true} })
}

// Drop forgets one parked message. What is parked behind it stays parked.
func (d *DeadLetters) Drop(ctx context.Context, id int64) error {
	return d.ask(ctx, id, func(l DeadLetter) ask { return ask{Drop: true, Offset: l.Offset} })
}

// DropKey forgets all that is parked of a parked message's key, which then
// flows again.
func (d *DeadLetters) DropKey(ctx context.Context, id int64) error {
	return d.ask(ctx, id, func(DeadLetter) ask { return ask{Drop: true, Offset: -1} })
}

// ParkedAgainError says that a parked message could not be handled again.
type ParkedAgainError struct{ Reason string }

func (e *ParkedAgainError) Error() string { return "parked again: " + e.Reason }

func (d *DeadLetters) ask(ctx context.Context, id int64, what func(DeadLetter) ask) error {
	p, stop, err := d.follow(ctx)
	if p == nil {
		return errors.Join(err, noneIf(err == nil))
	}
	defer stop()
	all, err := d.list(ctx, p)
	if err != nil {
		return err
	}
	letter, err := find(all, id)
	if err != nil {
		return err
	}
	l := lock{Partition{letter.Topic, letter.Partition}, letter.Key}
	a := what(letter)
	a.ID = rand.Text()
	value, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("ask for it: %w", err)
	}
	r := &kgo.Record{Topic: parkedTopic(d.group), Key: recordKey(kindAsk, l), Value: value}
	if err := d.client.ProduceSync(ctx, r).FirstErr(); err != nil {
		return fmt.Errorf("ask for it: %w", err)
	}
	for {
		p.mu.Lock()
		read, changed, asked, state := p.read, p.changed, p.asks[l].value, p.states[l].value
		p.mu.Unlock()
		switch {
		case read <= r.Offset || asked != nil && asked.ID == a.ID:
		case asked != nil:
			return errors.New("someone else asked for something else meanwhile")
		case a.Retry && state != nil:
			return &ParkedAgainError{state.Reason}
		default:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no worker of %s has done it yet: %w", d.group, ctx.Err())
		}
	}
}

func noneIf(none bool) error {
	if none {
		return ErrNoDeadLetter
	}
	return nil
}

// follow reads the parked topic until stop is called. It returns nil when there
// is none, because nothing was ever parked.
func (d *DeadLetters) follow(ctx context.Context) (p *parked, stop func(), err error) {
	topic := parkedTopic(d.group)
	switch _, err := TopicIDs(ctx, d.client, topic, deadLetterTopic(d.group)); {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	}
	reader, err := kgo.NewClient(append(slices.Clone(d.opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))...)
	if err != nil {
		return nil, nil, fmt.Errorf("configure the Kafka client: %w", err)
	}
	p = newParked(d.group, d.client, slog.New(slog.DiscardHandler), nil)
	reading, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() { p.follow(reading, reader) })
	stop = func() {
		cancel()
		following.Wait()
		reader.Close()
	}
	if err := p.catchUp(ctx); err != nil {
		stop()
		return nil, nil, err
	}
	return p, stop, nil
}
