package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A group that parks has two topics of one partition each:
//
//   - <group>.dlq holds every message that was parked, in order, as it came,
//     with headers that say from where and why;
//   - <group>.parked, compacted, holds the state of every parked key, and what
//     operators ask for.
func deadLetterTopic(group string) string { return group + ".dlq" }
func parkedTopic(group string) string     { return group + ".parked" }

// maxParkedBytes is the size of a batch that dead-letter topics take: that of a
// record which another topic took, and headers.
const maxParkedBytes = 16 << 20

// lock names a key that may be parked: a key of one partition.
type lock struct {
	Partition
	key string
}

// parkedState is the value of a state record: what is parked of a key.
type parkedState struct {
	Log     string    `json:"log"`               // the id of the topic that offsets count in
	First   int64     `json:"first"`             // offset of the first message that is still parked
	Last    int64     `json:"last"`              // offset of the last
	From    int64     `json:"from"`              // where the first is in the dead-letter topic
	Dropped []int64   `json:"dropped,omitempty"` // offsets after First that were dropped
	Reason  string    `json:"reason"`            // why the first was parked
	Since   time.Time `json:"since"`
}

// holds reports whether the message at an offset is in the dead-letter topic.
func (p *parkedState) holds(log string, offset int64) bool {
	return p.Log == log && p.First <= offset && offset <= p.Last
}

// before reports whether the message at an offset comes before what is parked,
// as when events are consumed again from the start.
func (p *parkedState) before(log string, offset int64) bool {
	return p.Log == log && offset < p.First
}

// rest is the state once only letters are left of what was parked.
func (p parkedState) rest(letters []letter) parkedState {
	first := letters[0]
	if first.log != p.Log { // what is left is of a topic that replaced the one before
		p.Dropped, p.Last = nil, 0
	}
	p.Log, p.First, p.From = first.log, first.record.Offset, first.at
	p.Dropped = slices.DeleteFunc(slices.Clone(p.Dropped), func(o int64) bool { return o < p.First })
	for _, l := range letters {
		if l.log == p.Log {
			p.Last = max(p.Last, l.record.Offset)
		}
	}
	return p
}

// ask is the value of an ask record: what an operator wants done with a key.
type ask struct {
	ID     string `json:"id"`
	Retry  bool   `json:"retry,omitempty"`  // handle what is parked, in order
	Drop   bool   `json:"drop,omitempty"`   // forget what is parked
	Offset int64  `json:"offset,omitempty"` // with Drop: only the message at this offset; all when -1
}

const (
	kindState = "state"
	kindAsk   = "ask"
	kindMark  = "mark"
)

// recordKey is the key that a record about l has in the parked topic.
func recordKey(kind string, l lock) []byte {
	return []byte(kind + "/" + l.Topic + "/" + strconv.Itoa(int(l.Partition.Partition)) + "/" + l.key)
}

func parseRecordKey(b []byte) (kind string, l lock, ok bool) {
	parts := strings.SplitN(string(b), "/", 4)
	if len(parts) != 4 {
		return "", lock{}, false
	}
	n, err := strconv.ParseInt(parts[2], 10, 32)
	return parts[0], lock{Partition{parts[1], int32(n)}, parts[3]}, err == nil
}

// noted is what the newest record of a key in the parked topic says.
type noted[T any] struct {
	value  *T // nil when it is a tombstone
	offset int64
}

// parked is a group's parked topic: read by one goroutine, written by whoever
// parks.
type parked struct {
	group  string
	client *kgo.Client // writes
	notify func()      // called when an operator asks for something
	logger *slog.Logger

	mu      sync.Mutex
	states  map[lock]noted[parkedState]
	asks    map[lock]noted[ask]
	read    int64 // the offset after the last record that was read
	changed chan struct{}
}

func newParked(group string, client *kgo.Client, logger *slog.Logger, notify func()) *parked {
	return &parked{
		group: group, client: client, logger: logger, notify: notify,
		states: map[lock]noted[parkedState]{}, asks: map[lock]noted[ask]{}, changed: make(chan struct{}),
	}
}

// createParkingTopics makes a group's two topics, unless they are there.
func createParkingTopics(ctx context.Context, client *kgo.Client, group string) error {
	admin := kadm.NewClient(client)
	never, compact, size := "-1", "compact", strconv.Itoa(maxParkedBytes)
	for topic, config := range map[string]map[string]*string{
		deadLetterTopic(group): {"retention.ms": &never, "retention.bytes": &never, "max.message.bytes": &size},
		parkedTopic(group):     {"cleanup.policy": &compact},
	} {
		made, err := admin.CreateTopics(ctx, 1, -1, config, topic)
		if err == nil {
			err = made[topic].Err
		}
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("create topic %s: %w", topic, err)
		}
	}
	return nil
}

// follow reads the parked topic from its start until ctx ends.
func (p *parked) follow(ctx context.Context, reader *kgo.Client) {
	for ctx.Err() == nil {
		fetches := reader.PollFetches(ctx)
		fetches.EachError(func(t string, _ int32, err error) {
			if ctx.Err() == nil {
				p.logger.Warn("reading parked keys", "topic", t, "error", err)
			}
		})
		p.mu.Lock()
		asked := false
		fetches.EachRecord(func(r *kgo.Record) {
			kind, l, ok := parseRecordKey(r.Key)
			switch {
			case ok && kind == kindState:
				note(p.states, l, r, p.logger)
			case ok && kind == kindAsk:
				note(p.asks, l, r, p.logger)
				asked = true
			}
			p.read = r.Offset + 1
		})
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		if asked && p.notify != nil {
			p.notify()
		}
	}
}

// note applies a record, unless a newer one of its key was applied already by
// the one who wrote it.
func note[T any](all map[lock]noted[T], l lock, r *kgo.Record, logger *slog.Logger) {
	if n, ok := all[l]; ok && n.offset > r.Offset {
		return
	}
	if len(r.Value) == 0 {
		delete(all, l)
		return
	}
	value := new(T)
	if err := json.Unmarshal(r.Value, value); err != nil {
		logger.Error("a record about a parked key can't be read", "offset", r.Offset, "error", err)
		return
	}
	all[l] = noted[T]{value, r.Offset}
}

// catchUp returns once everything was read that was written before the call.
// It writes a mark and waits for it: after compaction, the last record need
// not be at the last offset.
func (p *parked) catchUp(ctx context.Context) error {
	mark := &kgo.Record{Topic: parkedTopic(p.group), Key: []byte(kindMark), Value: []byte("{}")}
	if err := p.client.ProduceSync(ctx, mark).FirstErr(); err != nil {
		return fmt.Errorf("mark the end of parked keys: %w", err)
	}
	for {
		p.mu.Lock()
		read, changed := p.read, p.changed
		p.mu.Unlock()
		if read > mark.Offset {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("read the parked keys: %w", ctx.Err())
		}
	}
}

// state returns what is parked of a key, or nil.
func (p *parked) state(l lock) *parkedState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.states[l].value
}

// asked returns what operators ask for.
func (p *parked) asked() map[lock]ask {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[lock]ask{}
	for l, n := range p.asks {
		if n.value != nil {
			all[l] = *n.value
		}
	}
	return all
}

// write sets the states of keys; nil for no longer parked.
func (p *parked) write(ctx context.Context, states map[lock]*parkedState) error {
	var records []*kgo.Record
	var locks []lock
	for l, state := range states {
		r := &kgo.Record{Topic: parkedTopic(p.group), Key: recordKey(kindState, l)}
		if state != nil {
			var err error
			if r.Value, err = json.Marshal(state); err != nil {
				return fmt.Errorf("write the state of a parked key: %w", err)
			}
		}
		records, locks = append(records, r), append(locks, l)
	}
	if err := p.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("write the states of parked keys: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, l := range locks {
		if p.states[l].offset <= records[i].Offset {
			p.states[l] = noted[parkedState]{states[l], records[i].Offset}
		}
	}
	return nil
}

// answer takes back what an operator asked for, once it is done.
func (p *parked) answer(ctx context.Context, l lock) error {
	r := &kgo.Record{Topic: parkedTopic(p.group), Key: recordKey(kindAsk, l)}
	if err := p.client.ProduceSync(ctx, r).FirstErr(); err != nil {
		return fmt.Errorf("answer an operator: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asks[l].offset <= r.Offset {
		p.asks[l] = noted[ask]{nil, r.Offset}
	}
	return nil
}
