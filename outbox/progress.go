package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// progressFormat is the version of the progress record. A relay that meets a
// newer one stops: it would not know what it must not publish again.
const progressFormat = 1

// progress says which events are published. It is committed together with
// them, and is where the next relay of the group carries on.
//
// Everything that Prev shows is published. In a window, so is what Now shows
// and Prev doesn't, up to Position; a window is complete once its progress
// has no Now. While streaming, so is every transaction that committed up to
// LSN; Prev is then that of the last checkpoint.
//
// With Until, windows go on from such a checkpoint: of what Prev doesn't show,
// the transactions in Xids and the events that Kafka holds past Offsets are
// published too. A snapshot whose xmin is past Until shows all of them.
//
// Rows up to position Epoch were restored from another cluster, whose
// transaction ids they carry: they belong to the first window, whatever their
// ids. Ends is where the event topics ended, but for the events of this
// transaction: if they are shorter one day, Kafka has lost something.
type progress struct {
	Format   int    `json:"format"`
	System   string `json:"system"`   // the cluster's system identifier
	Timeline uint32 `json:"timeline"` // changes when a standby is promoted or a backup restored
	Database uint32 `json:"database"` // the database's OID

	Phase    phase    `json:"phase"`
	Prev     snapshot `json:"prev"`
	PrevLSN  lsn      `json:"prev_lsn"` // the log's end when the last of Prev and Now was taken
	Now      snapshot `json:"now"`
	Position int64    `json:"position,omitempty"`
	LSN      lsn      `json:"lsn"`
	Xids     []uint64 `json:"xids,omitempty"`
	Offsets  offsets  `json:"offsets,omitempty"`
	Until    uint64   `json:"until,omitempty"`
	Epoch    int64    `json:"epoch,omitempty"`
	Ends     offsets  `json:"ends,omitempty"`

	Events uint64 `json:"events"` // how many events this relay group has published
}

// phase is how the relay reads.
type phase string

const (
	phaseWindow phase = "window" // by snapshot difference
	phaseStream phase = "stream" // by logical decoding
)

// lsn is a position in the write-ahead log, in PostgreSQL's text form in JSON.
type lsn pglogrepl.LSN

func (l lsn) String() string { return pglogrepl.LSN(l).String() }

// MarshalText implements [encoding.TextMarshaler].
func (l lsn) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (l *lsn) UnmarshalText(b []byte) error {
	v, err := pglogrepl.ParseLSN(string(b))
	*l = lsn(v)
	return err
}

func (p *progress) encode() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("encode progress: %v", err)) // every field can be encoded
	}
	return b
}

func decodeProgress(b []byte) (*progress, error) {
	var p progress
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("decode the progress record: %w", err)
	}
	if p.Format != progressFormat {
		return nil, fatalf("the progress record has format %d and this relay knows %d: a newer relay has run here; run that one", p.Format, progressFormat)
	}
	if p.Phase != phaseWindow && p.Phase != phaseStream || p.Prev.isZero() {
		return nil, errors.New("decode the progress record: it is incomplete")
	}
	return &p, nil
}

// progressDeadline bounds the reading of the progress record, so that a broker
// that answers everything but this makes an error and not a silence.
const progressDeadline = 30 * time.Second

// readProgress returns the group's last committed progress, nil if there is
// none. The caller has initialised the group's transactional ids, so no
// transaction is open that could still commit; one that was being committed
// when its relay died may lack its marker, and is waited for.
func (s *session) readProgress(ctx context.Context) (*progress, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, progressDeadline, errors.New("the progress topic can't be read to its end"))
	defer cancel()
	topic := s.cfg.Namespace.Progress(s.cfg.Group)
	start, end, err := s.stableOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("read progress: %w", err)
	}
	// The last record is near the end: only aborted transactions and markers
	// can come after it. Look there first, whatever compaction has left below.
	for n := int64(64); ; n *= 16 {
		from := max(start, end-n)
		value, err := s.lastRecord(ctx, topic, from, end)
		switch {
		case err != nil:
			return nil, fmt.Errorf("read progress: %w", err)
		case value != nil:
			return decodeProgress(value)
		case from == start:
			return nil, nil
		}
	}
}

// stableOffsets returns the first offset of a topic of one partition and its
// high watermark, once no transaction is open below that.
func (s *session) stableOffsets(ctx context.Context, topic string) (start, end int64, err error) {
	adm := kadm.NewClient(s.kafka)
	for {
		var offset [3]int64
		for i, list := range []func(context.Context, ...string) (kadm.ListedOffsets, error){adm.ListStartOffsets, adm.ListEndOffsets, adm.ListCommittedOffsets} {
			listed, err := list(ctx, topic)
			if err != nil {
				return 0, 0, err
			}
			o, ok := listed.Lookup(topic, 0)
			if !ok {
				return 0, 0, fmt.Errorf("topic %s has no partition 0", topic)
			}
			if o.Err != nil {
				return 0, 0, o.Err
			}
			offset[i] = o.Offset
		}
		if offset[1] == offset[2] {
			return offset[0], offset[1], nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return 0, 0, err
		}
	}
}

// lastRecord returns the value of the last committed record of the group in
// [from, end), nil if there is none. The broker's answer ends with a marker:
// every record of the topic belongs to a transaction.
func (s *session) lastRecord(ctx context.Context, topic string, from, end int64) (value []byte, err error) {
	if from >= end {
		return nil, nil
	}
	k, err := kgo.NewClient(s.cfg.kafkaOpts(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(from)}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.FetchMaxWait(500*time.Millisecond),
	)...)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	for at := from; at < end; {
		fetches := k.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			at = max(at, r.Offset+1)
			if r.Offset < end && !r.Attrs.IsControl() && string(r.Key) == s.cfg.Group {
				value = r.Value
			}
		})
	}
	return value, nil
}
