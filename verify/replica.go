package verify

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/domain"
	"outflow/internal/events"
	"outflow/internal/failpoint"
	"outflow/internal/mongodb"
	"outflow/replicator"
	"outflow/store"
)

// Kind says how a document of the replica differs from its source.
type Kind string

// The kinds.
const (
	Missing Kind = "missing" // the source has a row and the replica nothing
	Stale   Kind = "stale"   // the replica has an older version
	Ahead   Kind = "ahead"   // the replica has a version that the source never had
	Extra   Kind = "extra"   // the source has no such row
	Corrupt Kind = "corrupt" // the same version, with other content
)

// Kinds lists the kinds.
var Kinds = []Kind{Missing, Stale, Ahead, Extra, Corrupt}

// Difference is one document that isn't what its source is.
type Difference struct {
	Kind     Kind   `json:"kind"`
	Type     string `json:"type"`               // the aggregate type
	ID       string `json:"id"`                 // as text; in MongoDB's JSON when it isn't a string
	Source   int64  `json:"source,omitempty"`   // the version in PostgreSQL; 0 for none
	Replica  int64  `json:"replica,omitempty"`  // the version in the replica; 0 for none, or none that is a version
	Repaired bool   `json:"repaired,omitempty"` // whether it was mended
}

// Replica is a comparison of the replica with its source. Store, MongoURI,
// Brokers and Published are required.
type Replica struct {
	Store     *store.Store
	MongoURI  string // names the database too
	Brokers   []string
	Namespace events.Namespace // events.DefaultNamespace when empty
	Kafka     []kgo.Opt        // further options of the Kafka client

	// Published returns once what was committed before the call is in Kafka.
	Published func(context.Context) error
	// Patience is how long the relay and the replicator may take until what
	// was committed is in the replica; 1 min when 0.
	Patience time.Duration
	Repair   bool     // mend what differs
	Types    []string // the aggregate types; all that are replicated when empty

	OnDifference func(Difference) // called for each, in the order in which they are settled
	// OnProgress is called now and then, with how many rows of a type were
	// compared, and about how many there are.
	OnProgress func(aggregateType string, rows, total int64)

	db       *mongo.Database
	base     *mongo.Collection
	typ      string
	total    int64 // rows of the type, about
	report   *Report
	suspects map[string]suspect
	odd      map[string]bson.RawValue // the ids of suspects that aren't strings
}

// Report is what a comparison found.
type Report struct {
	Rows        map[string]int64 `json:"rows"`        // how many of the source were compared, by aggregate type
	Differences map[Kind]int64   `json:"differences"` // how many there are, by kind
	Repaired    int64            `json:"repaired"`    // how many of them were mended
	Undecided   int64            `json:"undecided"`   // changed again at every look, so that nothing can be said
	Took        time.Duration    `json:"took_ns"`
}

// Clean reports whether nothing differs any more.
func (r *Report) Clean() bool {
	var n int64
	for _, k := range r.Differences {
		n += k
	}
	return n == r.Repaired
}

// A suspect differed when it was first looked at. source is the version that
// the source had then.
type suspect struct{ source int64 }

const (
	pageRows = 2000
	maxLooks = 5
	// maxSuspects is how many are settled together, because each time waits for
	// the relay, which tells how far it is only every 5 s while nothing happens;
	// lookRows is of how many both sides are in memory.
	maxSuspects = 100_000
	lookRows    = 1000
)

// ErrBehind says that the replica didn't catch up in time, so that what differs
// can't be told from what is only late.
var ErrBehind = errors.New("the replica did not catch up: are the relay and the replicator running?")

// Run compares. It returns ErrBehind when something differs and the replica
// doesn't catch up in time.
func (v *Replica) Run(ctx context.Context) (*Report, error) {
	target, err := mongodb.Parse(v.MongoURI, "outflow verify")
	if err != nil {
		return nil, err
	}
	db, closing, err := target.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = closing(ctx) }()
	v.db = db
	v.Namespace = cmp.Or(v.Namespace, events.DefaultNamespace)
	v.Patience = cmp.Or(v.Patience, time.Minute)
	v.report = &Report{Rows: map[string]int64{}, Differences: map[Kind]int64{}}
	begun := time.Now()
	for _, e := range replicator.EntityCollections {
		if len(v.Types) > 0 && !slices.Contains(v.Types, e.Aggregate) {
			continue
		}
		v.typ, v.base = e.Aggregate, db.Collection(e.Base)
		v.suspects, v.odd = map[string]suspect{}, map[string]bson.RawValue{}
		if err := v.compare(ctx); err != nil {
			return v.report, fmt.Errorf("compare %s: %w", e.View, err)
		}
	}
	v.report.Took = time.Since(begun)
	return v.report, nil
}

// compare walks through both sides of one type.
func (v *Replica) compare(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if v.OnProgress != nil {
		var err error
		if v.total, err = v.Store.About(ctx, v.typ); err != nil {
			return err
		}
		v.progress()
	}
	table := rows{of: v.Store, typ: v.typ}
	source := pages(ctx, domain.ID{}, table.page)
	defer source.stop(cancel)
	copied := documents{base: v.base}
	replica := pages(ctx, "", copied.page)
	defer copied.close()
	defer replica.stop(cancel)

	row, doc := source.next(), replica.next()
	for row != nil || doc != nil {
		if row == nil && source.err != nil || doc == nil && replica.err != nil {
			break // what is left of the other side differs from nothing
		}
		c := order(row, doc)
		switch {
		case c < 0:
			v.suspects[row.id.String()] = suspect{row.version}
		case c > 0:
			v.suspects[doc.Lookup("_id").StringValue()] = suspect{}
		case !same(row.want, *doc):
			v.suspects[row.id.String()] = suspect{row.version}
		}
		if c <= 0 {
			row = source.next()
			v.counted()
		}
		if c >= 0 {
			doc = replica.next()
		}
		if len(v.suspects) >= maxSuspects {
			if err := v.settle(ctx); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(source.err, replica.err); err != nil {
		return err
	}
	// First, because a stranger's id may be written as another one's text.
	if err := v.settle(ctx); err != nil {
		return err
	}
	if err := v.strangers(ctx); err != nil {
		return err
	}
	v.progress()
	return v.settle(ctx)
}

// order tells which side comes first: below 0 the row, above 0 the document, 0
// when they have one id.
func order(row *row, doc *bson.Raw) int {
	switch {
	case row == nil:
		return 1
	case doc == nil:
		return -1
	case bytes.Equal(row.want, *doc): // nearly always, and then the ids too
		return 0
	}
	return bytes.Compare(idOf(row.want), idOf(*doc))
}

// idOf returns the text of a document's id, as it is in there.
func idOf(doc bson.Raw) []byte {
	v := doc.Lookup("_id").Value
	return v[4 : len(v)-1]
}

func (v *Replica) counted() {
	v.report.Rows[v.typ]++
	if v.report.Rows[v.typ]%pageRows == 0 {
		v.progress()
	}
}

func (v *Replica) progress() {
	if v.OnProgress != nil {
		v.OnProgress(v.typ, v.report.Rows[v.typ], v.total)
	}
}

// strangers suspects the documents whose ids aren't text: they are in no page.
func (v *Replica) strangers(ctx context.Context) error {
	cursor, err := v.base.Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$not", Value: bson.D{{Key: "$type", Value: "string"}}}}}})
	if err != nil {
		return fmt.Errorf("read %s: %w", v.base.Name(), err)
	}
	defer func() { _ = cursor.Close(ctx) }()
	for cursor.Next(ctx) {
		id := cursor.Current.Lookup("_id")
		v.suspects[id.String()] = suspect{}
		v.odd[id.String()] = bson.RawValue{Type: id.Type, Value: bytes.Clone(id.Value)}
		if len(v.suspects) >= maxSuspects {
			if err := v.settle(ctx); err != nil {
				return err
			}
		}
	}
	if err := cursor.Err(); err != nil {
		return fmt.Errorf("read %s: %w", v.base.Name(), err)
	}
	return nil
}

func (v *Replica) find(ctx context.Context, filter any) ([]bson.Raw, error) {
	cursor, err := v.base.Find(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", v.base.Name(), err)
	}
	defer func() { _ = cursor.Close(ctx) }()
	page, _, err := take(ctx, cursor, math.MaxInt, math.MaxInt, 0)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", v.base.Name(), err)
	}
	return page, nil
}

// ErrInvisible says that what is committed is not visible, so that nothing can be
// said of what the replica has and the source has not.
var ErrInvisible = errors.New("what is committed did not become visible: does PostgreSQL's synchronous standby answer?")

// visible returns once everything that is in the replica now is visible in the
// source.
func (v *Replica) visible(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, v.Patience, ErrInvisible)
	defer cancel()
	err := v.Store.AwaitVisible(ctx)
	if err != nil && errors.Is(context.Cause(ctx), ErrInvisible) {
		return errors.Join(ErrInvisible, err)
	}
	return err
}

// caughtUp returns once everything that is committed now is in the replica.
func (v *Replica) caughtUp(ctx context.Context) error {
	if failpoint.Mutant("verify.first-look") {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, v.Patience, ErrBehind)
	defer cancel()
	late := func(err error) error {
		// Drivers that know of the deadline give up a moment before it.
		end, _ := ctx.Deadline()
		if errors.Is(context.Cause(ctx), ErrBehind) || ctx.Err() == nil && time.Until(end) < 100*time.Millisecond {
			return errors.Join(ErrBehind, err)
		}
		return err
	}
	if err := v.Published(ctx); err != nil {
		return late(err)
	}
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(v.Brokers...)}, v.Kafka...)...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer client.Close()
	ends, err := replicator.EndsOf(ctx, kadm.NewClient(client), v.Namespace.Topic(v.typ))
	if err != nil {
		return late(err)
	}
	for {
		behind, err := replicator.Behind(ctx, v.db, ends)
		switch {
		case err != nil:
			return late(err)
		case behind == 0:
			return nil
		}
		select {
		case <-ctx.Done():
			return late(fmt.Errorf("%d events wait", behind))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
