package verify

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/events"
	"outflow/outbox"
	"outflow/replicator"
	"outflow/store"
)

// Fault says what is wrong with an event.
type Fault string

// The faults of the log itself, and of Kafka.
const (
	Gap        Fault = "gap"          // versions of an aggregate are missing before this one
	Broken     Fault = "broken"       // before isn't what the version before left
	NoEvent    Fault = "no_event"     // a row has a version that the log lacks
	RowDiffers Fault = "row_differs"  // a row isn't what the event of its version says
	RowBehind  Fault = "row_behind"   // the log has a version that the row never had
	Lost       Fault = "lost"         // in the log, and not in Kafka
	Phantom    Fault = "phantom"      // in Kafka, and not in the log, or not so
	Duplicated Fault = "duplicated"   // more than once in Kafka
	OutOfOrder Fault = "out_of_order" // after a later version in Kafka
)

// LogFault is one thing that is wrong with the event log.
type LogFault struct {
	Fault   Fault  `json:"fault"`
	Type    string `json:"type"` // the aggregate type
	ID      string `json:"id"`   // the aggregate
	Version int64  `json:"version"`
	Where   string `json:"where,omitempty"` // in Kafka: topic/partition@offset
}

// Log is a check of the event log. All fields but Types and Kafka are required;
// Brokers may be empty, and then Kafka is left out.
type Log struct {
	Store       *store.Store
	PostgresURL string
	Brokers     []string
	Namespace   events.Namespace
	Kafka       []kgo.Opt
	Published   func(context.Context) error // as in Replica
	Patience    time.Duration               // how long Kafka may deliver nothing of what it has; 1 min when 0
	OnFault     func(LogFault)
	// OnProgress is called now and then, with how much of a phase is done, and of
	// how much: "events" of the log, "rows", "records" of Kafka, and "missing"
	// records that are looked for in the log.
	OnProgress func(phase string, done, total int64)

	// MaxAggregates is how many aggregates' versions are kept in memory: with
	// more of them, Kafka is read several times. 2 million when 0.
	MaxAggregates int64

	log        *outbox.Log
	extent     outbox.Extent
	aggregates int64 // how many the log has
	report     *LogReport
}

// LogReport is what a check found.
type LogReport struct {
	Events  int64           `json:"events"`  // in the log
	Records int64           `json:"records"` // in Kafka
	Rows    int64           `json:"rows"`    // customers and orders
	Faults  map[Fault]int64 `json:"faults"`
	Partial bool            `json:"partial"` // old events were dropped: what would need them isn't checked
	Took    time.Duration   `json:"took_ns"`
}

// Run checks: the log against itself, then the rows, then Kafka. It returns
// ErrDropped.
func (l *Log) Run(ctx context.Context) (*LogReport, error) {
	begun := time.Now()
	l.report = &LogReport{Faults: map[Fault]int64{}}
	l.MaxAggregates = cmp.Or(l.MaxAggregates, 2_000_000)
	l.Patience = cmp.Or(l.Patience, time.Minute)
	l.Namespace = cmp.Or(l.Namespace, events.DefaultNamespace)
	var err error
	if l.log, err = outbox.OpenLog(ctx, l.PostgresURL); err != nil {
		return nil, err
	}
	defer l.log.Close()
	if l.extent, err = l.log.Extent(ctx, domain.AggregateTypes...); err != nil {
		return nil, err
	}
	l.report.Partial = !l.extent.Complete
	if err := l.chains(ctx); err != nil {
		return l.report, err
	}
	for _, e := range replicator.EntityCollections {
		if err := l.rows(ctx, e.Aggregate); err != nil {
			return l.report, err
		}
	}
	if len(l.Brokers) > 0 {
		if err := l.kafka(ctx); err != nil {
			return l.report, err
		}
	}
	l.report.Took = time.Since(begun)
	if now, err := l.log.Extent(ctx); err != nil || now.Complete == l.extent.Complete {
		return l.report, err
	}
	return l.report, ErrDropped
}

// ErrDropped says that the oldest events were dropped during a check, so that what
// it found of them means nothing.
var ErrDropped = errors.New("the oldest events were dropped from the outbox meanwhile: check again")

func (l *Log) fault(f Fault, aggregateType string, id domain.ID, version int64, where string) {
	l.report.Faults[f]++
	if l.OnFault != nil {
		l.OnFault(LogFault{f, aggregateType, id.String(), version, where})
	}
}

// step is how many are done between two calls of OnProgress.
const step = 5000

func (l *Log) progress(phase string, done, total int64) {
	if l.OnProgress != nil {
		l.OnProgress(phase, done, total)
	}
}

// chains checks the versions of each aggregate, and that each begins where the
// one before ended. The last of each is held against its row, which is read
// later and so has at least that version.
func (l *Log) chains(ctx context.Context) error {
	snapshot, err := l.log.Snapshot(ctx)
	if err != nil {
		return err
	}
	var last domain.Event
	tips := map[string]map[domain.ID]int64{}
	tip := func() error {
		if last.AggregateType != domain.AggregateCustomer && last.AggregateType != domain.AggregateOrder {
			return nil
		}
		of := tips[last.AggregateType]
		if of == nil {
			of = map[domain.ID]int64{}
			tips[last.AggregateType] = of
		}
		of[last.AggregateID] = last.AggregateVersion
		if len(of) < pageRows {
			return nil
		}
		defer clear(of)
		return l.behind(ctx, last.AggregateType, of)
	}
	err = l.log.ByAggregate(ctx, snapshot, func(e domain.Event, _ bool) error {
		if l.report.Events++; l.report.Events%step == 1 {
			l.progress("events", l.report.Events, l.extent.Events)
		}
		same := e.AggregateID == last.AggregateID
		switch {
		case !same:
			l.aggregates++
			if err := tip(); err != nil {
				return err
			}
			if e.AggregateVersion > 1 && l.extent.Complete {
				l.fault(Gap, e.AggregateType, e.AggregateID, e.AggregateVersion, "")
			}
			if e.AggregateVersion == 1 && e.Before != nil {
				l.fault(Broken, e.AggregateType, e.AggregateID, e.AggregateVersion, "")
			}
		case e.AggregateVersion != last.AggregateVersion+1:
			l.fault(Gap, e.AggregateType, e.AggregateID, e.AggregateVersion, "")
		case !equalJSON(e.Before, last.After) || last.After == nil:
			l.fault(Broken, e.AggregateType, e.AggregateID, e.AggregateVersion, "")
		}
		last = e
		return nil
	})
	if err == nil {
		err = tip()
	}
	for typ, of := range tips {
		if err == nil {
			err = l.behind(ctx, typ, of)
		}
	}
	return err
}

// behind tells which rows lack a version that the log has.
func (l *Log) behind(ctx context.Context, typ string, tips map[domain.ID]int64) error {
	var ids []domain.ID
	for id := range tips {
		ids = append(ids, id)
	}
	rows, err := l.Store.StatesOf(ctx, typ, ids)
	if err != nil {
		return err
	}
	has := map[domain.ID]int64{}
	for _, r := range rows {
		has[r.AggregateID] = r.AggregateVersion
	}
	for id, v := range tips {
		if has[id] < v {
			l.fault(RowBehind, typ, id, v, "")
		}
	}
	return nil
}

// rows holds each row against the event of its version.
func (l *Log) rows(ctx context.Context, typ string) error {
	total, err := l.Store.About(ctx, typ)
	if err != nil {
		return err
	}
	total += l.report.Rows
	for last := (domain.ID{}); ; {
		page, err := l.Store.States(ctx, typ, last, pageRows)
		if err != nil || len(page) == 0 {
			return err
		}
		versions := map[domain.ID]int64{}
		for _, row := range page {
			versions[row.AggregateID] = row.AggregateVersion
		}
		told, err := l.Store.Events(ctx, typ, versions)
		if err != nil {
			return err
		}
		by := map[domain.ID]domain.Event{}
		for _, e := range told {
			by[e.AggregateID] = e
		}
		for _, row := range page {
			e, ok := by[row.AggregateID]
			if !ok {
				if l.extent.Complete {
					l.fault(NoEvent, typ, row.AggregateID, row.AggregateVersion, "")
				}
				continue
			}
			want, err1 := replicator.Document(row)
			got, err2 := replicator.Document(e)
			if err1 != nil || err2 != nil || !same(want, got) {
				l.fault(RowDiffers, typ, row.AggregateID, row.AggregateVersion, "")
			}
		}
		l.report.Rows += int64(len(page))
		l.progress("rows", l.report.Rows, total)
		last = page[len(page)-1].AggregateID
	}
}

func equalJSON(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if a == nil || b == nil {
		return false
	}
	var x, y any
	return decodeJSON(a, &x) == nil && decodeJSON(b, &y) == nil && reflect.DeepEqual(x, y)
}

// equalEvents compares an event of the log with what Kafka has of it, where times
// are to the millisecond.
func equalEvents(in, e domain.Event) bool {
	return in.ID == e.ID && in.Type == e.Type && in.Key == e.Key && in.OccurredAt.UnixMilli() == e.OccurredAt.UnixMilli() &&
		equalJSON(in.Before, e.Before) && equalJSON(in.After, e.After) && equalJSON(in.Metadata, e.Metadata)
}

func decodeJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(v)
}
