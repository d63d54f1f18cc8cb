// Package events is the form that outflow's events have on Kafka: the names of
// topics and the mapping to CloudEvents 1.0 in Kafka's binary content mode
// (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md).
//
// A record's key is the event's key, its headers are the attributes (ce_id,
// ce_source, ce_specversion, ce_type, ce_subject, ce_time, content-type), and
// its value is
//
//	{"version":2,"before":{...},"after":{...},"metadata":{...}}
//
// where before is null in an aggregate's first event and after is null once it
// is deleted. The value itself is never null: a compacted topic keeps the last
// event of every key, deletions included. The bytes of before, after and
// metadata are those of the outbox, unchanged.
package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
)

// Namespace is what the names of topics and groups begin with, so that several
// installations can share a broker.
type Namespace string

// DefaultNamespace is used where nothing else is configured.
const DefaultNamespace Namespace = "outflow"

// Topic is where the events of an aggregate type are published.
func (n Namespace) Topic(aggregateType string) string {
	return string(n) + "." + aggregateType + ".v1"
}

// Topics lists the topic of every aggregate type.
func (n Namespace) Topics() []string {
	var all []string
	for _, t := range domain.AggregateTypes {
		all = append(all, n.Topic(t))
	}
	return all
}

// Progress is the compacted topic in which a relay group keeps its progress.
func (n Namespace) Progress(relayGroup string) string {
	return string(n) + ".relay." + relayGroup + ".progress"
}

// Group is a worker's consumer group.
func (n Namespace) Group(worker string) string { return string(n) + "." + worker }

// Source is the CloudEvents source of every event.
func (n Namespace) Source() string { return "/" + string(n) }

const timeFormat = "2006-01-02T15:04:05.000Z07:00"

var (
	specVersion = []byte("1.0")
	contentType = []byte("application/json")
	null        = []byte("null")
)

// Record returns the record that publishes e. It keeps no reference to e's
// slices.
func (n Namespace) Record(e *domain.Event) *kgo.Record {
	size := len(e.Before) + len(e.After) + len(e.Metadata) + 80
	v := make([]byte, 0, size)
	v = append(v, `{"version":`...)
	v = strconv.AppendInt(v, e.AggregateVersion, 10)
	v = append(v, `,"before":`...)
	v = append(v, orNull(e.Before)...)
	v = append(v, `,"after":`...)
	v = append(v, orNull(e.After)...)
	v = append(v, `,"metadata":`...)
	v = append(v, orNull(e.Metadata)...)
	v = append(v, '}')

	// One array backs every small value: a relay makes a hundred thousand
	// records a second.
	b := make([]byte, 0, 36+36+len(timeFormat)+len(e.Type)+len(e.Key)+len(n)+1)
	cut := func(from int) []byte { return b[from:len(b):len(b)] }
	b, _ = e.ID.AppendText(b)
	id := cut(0)
	b, _ = e.AggregateID.AppendText(b)
	subject := cut(36)
	from := len(b)
	b = e.OccurredAt.UTC().AppendFormat(b, timeFormat)
	at := cut(from)
	from = len(b)
	b = append(b, e.Type...)
	typ := cut(from)
	from = len(b)
	b = append(b, e.Key...)
	key := cut(from)
	from = len(b)
	b = append(append(b, '/'), n...)
	source := cut(from)

	return &kgo.Record{
		Topic: n.Topic(e.AggregateType),
		Key:   key,
		Value: v,
		Headers: []kgo.RecordHeader{
			{Key: "ce_specversion", Value: specVersion},
			{Key: "ce_id", Value: id},
			{Key: "ce_source", Value: source},
			{Key: "ce_type", Value: typ},
			{Key: "ce_subject", Value: subject},
			{Key: "ce_time", Value: at},
			{Key: "content-type", Value: contentType},
		},
	}
}

func orNull(b []byte) []byte {
	if b == nil {
		return null
	}
	return b
}

// Decode reads a record that [Namespace.Record] made. It returns an error that
// names the part that is missing or wrong; such a record can't be handled by
// trying again. The event's slices are the record's.
func Decode(r *kgo.Record) (domain.Event, error) {
	e := domain.Event{Key: string(r.Key)}
	var version, subject, at string
	for _, h := range r.Headers {
		var err error
		switch h.Key {
		case "ce_specversion":
			version = string(h.Value)
		case "ce_id":
			err = e.ID.UnmarshalText(h.Value)
		case "ce_type":
			e.Type = string(h.Value)
		case "ce_subject":
			subject = string(h.Value)
			err = e.AggregateID.UnmarshalText(h.Value)
		case "ce_time":
			at = string(h.Value)
			e.OccurredAt, err = time.Parse(time.RFC3339Nano, at)
		}
		if err != nil {
			return domain.Event{}, fmt.Errorf("header %s: %w", h.Key, err)
		}
	}
	aggregate, _, dotted := strings.Cut(e.Type, ".")
	switch {
	case version != "1.0":
		return domain.Event{}, errors.New("header ce_specversion: not 1.0")
	case e.ID.IsZero():
		return domain.Event{}, errors.New("header ce_id: missing")
	case !dotted:
		return domain.Event{}, errors.New("header ce_type: missing, or not aggregate.verb.version")
	case subject == "":
		return domain.Event{}, errors.New("header ce_subject: missing")
	case at == "":
		return domain.Event{}, errors.New("header ce_time: missing")
	}
	e.AggregateType = aggregate
	d, ours := split(r.Value)
	if !ours {
		d = data{} // RawMessage would write over what it refers to
		if err := json.Unmarshal(r.Value, &d); err != nil {
			return domain.Event{}, fmt.Errorf("data: %w", err)
		}
	}
	if d.Version < 1 {
		return domain.Event{}, errors.New("data: version is missing")
	}
	e.AggregateVersion = d.Version
	e.Before, e.After, e.Metadata = notNull(d.Before), notNull(d.After), notNull(d.Metadata)
	return e, nil
}

// data is a record's value.
type data struct {
	Version                 int64
	Before, After, Metadata json.RawMessage
}

// split reads a value that is written as [Namespace.Record] does, which is what
// workers and rebuilds spend their time on. It reports whether it could; what
// it can't read may be right all the same, only written otherwise.
func split(value []byte) (d data, ok bool) {
	if !json.Valid(value) {
		return d, false
	}
	// What follows relies on that.
	rest, ok := bytes.CutPrefix(value, []byte(`{"version":`))
	if !ok {
		return d, false
	}
	digits := bytes.IndexByte(rest, ',')
	if digits < 0 {
		return d, false
	}
	var err error
	if d.Version, err = strconv.ParseInt(string(rest[:digits]), 10, 64); err != nil {
		return d, false
	}
	rest = rest[digits:]
	for _, part := range []struct {
		name string
		to   *json.RawMessage
	}{{`,"before":`, &d.Before}, {`,"after":`, &d.After}, {`,"metadata":`, &d.Metadata}} {
		if rest, ok = bytes.CutPrefix(rest, []byte(part.name)); !ok {
			return d, false
		}
		n := objectOrNull(rest)
		if n == 0 {
			return d, false
		}
		*part.to, rest = rest[:n:n], rest[n:]
	}
	return d, string(rest) == "}"
}

// objectOrNull returns how long the object or the null is that valid JSON
// begins with, 0 when it begins with something else.
func objectOrNull(b []byte) int {
	if bytes.HasPrefix(b, null) {
		return len(null)
	}
	if b[0] != '{' {
		return 0
	}
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		}
	}
	return 0
}

func notNull(b json.RawMessage) json.RawMessage {
	if bytes.Equal(b, null) {
		return nil
	}
	return b
}
