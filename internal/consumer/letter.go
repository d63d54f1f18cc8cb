package consumer

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The headers that a dead letter has beside its own.
const (
	headerError     = "x-error"
	headerTopic     = "x-topic"
	headerPartition = "x-partition"
	headerOffset    = "x-offset"
	headerLog       = "x-log"
	headerParkedAt  = "x-parked-at"
)

// maxReason bounds the error texts that are kept.
const maxReason = 1000

// letter is a message in a dead-letter topic.
type letter struct {
	lock
	record   *kgo.Record // as it was in its own topic
	log      string
	reason   string
	parkedAt time.Time
	at       int64 // its offset in the dead-letter topic
}

// deadLetter is the record that parks a message.
func deadLetter(group string, m Message, log string, reason error, now time.Time) *kgo.Record {
	header := func(key, value string) kgo.RecordHeader { return kgo.RecordHeader{Key: key, Value: []byte(value)} }
	return &kgo.Record{
		Topic: deadLetterTopic(group), Key: m.Record.Key, Value: m.Record.Value, Timestamp: m.Record.Timestamp,
		Headers: append(slices.Clone(m.Record.Headers),
			header(headerError, shorten(reason)),
			header(headerTopic, m.Topic),
			header(headerPartition, strconv.Itoa(int(m.Partition))),
			header(headerOffset, strconv.FormatInt(m.Offset, 10)),
			header(headerLog, log),
			header(headerParkedAt, now.UTC().Format(time.RFC3339Nano)),
		),
	}
}

func shorten(err error) string {
	s := strings.ToValidUTF8(err.Error(), "?")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "..."
	}
	return s
}

// parseLetter reads a record of a dead-letter topic. The last header of a name
// counts: a letter may have come with some of its own.
func parseLetter(r *kgo.Record) (letter, error) {
	l := letter{at: r.Offset}
	l.key = string(r.Key)
	own := *r
	l.record = &own
	own.Headers = slices.Clone(r.Headers)
	take := func(name string) string {
		for i := len(own.Headers) - 1; i >= 0; i-- {
			if own.Headers[i].Key == name {
				value := string(own.Headers[i].Value)
				own.Headers = slices.Delete(own.Headers, i, i+1)
				return value
			}
		}
		return ""
	}
	l.reason, l.log, l.Topic = take(headerError), take(headerLog), take(headerTopic)
	partition, perr := strconv.ParseInt(take(headerPartition), 10, 32)
	offset, oerr := strconv.ParseInt(take(headerOffset), 10, 64)
	at, terr := time.Parse(time.RFC3339Nano, take(headerParkedAt))
	if l.Topic == "" || perr != nil || oerr != nil || terr != nil {
		return letter{}, fmt.Errorf("record %d of %s is not a parked message", r.Offset, r.Topic)
	}
	l.Partition.Partition, l.parkedAt = int32(partition), at
	own.Topic, own.Partition, own.Offset = l.Topic, int32(partition), offset
	return l, nil
}

func (l letter) message() Message {
	return Message{Topic: l.Topic, Partition: l.Partition.Partition, Offset: l.record.Offset, Record: l.record}
}

// readLetters calls each for the letters from an offset to the end of the
// dead-letter topic as it is now.
func readLetters(ctx context.Context, group string, opts []kgo.Opt, from int64, each func(letter)) error {
	topic := deadLetterTopic(group)
	client, err := kgo.NewClient(append(slices.Clone(opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(from)}}))...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("find the start of %s: %w", topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return fmt.Errorf("find the end of %s: %w", topic, err)
	}
	start, _ := starts.Lookup(topic, 0)
	end, ok := ends.Lookup(topic, 0)
	if !ok || end.Err != nil {
		return fmt.Errorf("find the end of %s: %w", topic, end.Err)
	}
	for next := max(from, start.Offset); next < end.Offset; {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read %s: %w", topic, err)
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if l, err := parseLetter(r); err == nil && r.Offset < end.Offset {
				each(l)
			}
		})
	}
	return nil
}

// pile is what is parked of one key, in order.
type pile struct {
	state   *parkedState
	letters []letter
	seen    map[place]bool
}

type place struct {
	log    string
	offset int64
}

// add puts a letter on the pile, unless it is there already (a worker that
// dies while it parks, parks again), or was settled.
func (p *pile) add(l letter) {
	at := place{l.log, l.record.Offset}
	if l.at < p.state.From || p.state.before(at.log, at.offset) || p.seen[at] ||
		at.log == p.state.Log && slices.Contains(p.state.Dropped, at.offset) {
		return
	}
	if p.seen == nil {
		p.seen = map[place]bool{}
	}
	p.seen[at] = true
	p.letters = append(p.letters, l)
}
