package rebuild

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/failpoint"
)

// Source is where the events are read.
type Source string

// The sources.
const (
	FromKafka  Source = "kafka"
	FromOutbox Source = "outbox"
)

// The failpoints.
const (
	Filled   = "rebuild.filled"   // a batch is in the shadow, and not noted
	Pausing  = "rebuild.pausing"  // it is noted that workers are to wait
	Paused   = "rebuild.paused"   // they wait
	Swapping = "rebuild.swapping" // it is decided to swap
	Swapped  = "rebuild.swapped"  // the shadow is in its place
	Handed   = "rebuild.handed"   // the workers' positions are written
)

// Failpoints lists them in their order.
var Failpoints = []string{Filled, Pausing, Paused, Swapping, Swapped, Handed}

// Job is what can be rebuilt. For workers, which wait for rebuilds, Group,
// Make, Apply, Shadow and Discard may be missing.
type Job struct {
	Name      string // of what is rebuilt
	Topics    []string
	Group     string // of the workers
	DB        *mongo.Database
	Positions string // the collection of the workers' positions

	// Make makes an empty shadow for a run, unless it is there.
	Make func(ctx context.Context, run string) error
	// Apply does what a worker does with a batch, to the shadow; it answers as a
	// [consumer.Handler] does. It must bear events that come again, also after
	// later ones, and different partitions at once.
	Apply func(ctx context.Context, run string, batch []consumer.Message) []error
	// Discard removes a shadow.
	Discard func(ctx context.Context, run string) error
	// Shadow returns the shadow's identity.
	Shadow func(ctx context.Context, run string) (string, error)
	// Swap puts the shadow in the place of what is live, if there is one that
	// has this identity: one that was swapped in may have been made anew by a
	// rebuild that was stopped and wrote to it later.
	Swap func(ctx context.Context, run, identity string) error
	// Identify returns the identity of what is live, for each topic.
	Identify func(ctx context.Context) (map[string]string, error)

	// At is called at every failpoint, if set; its error ends the rebuild as if
	// it had been killed there.
	At func(failpoint string) error
}

func (j *Job) hook(point string) error {
	if err := failpoint.Hit(point); err != nil {
		return err
	}
	if j.At != nil {
		return j.At(point)
	}
	return nil
}

// Config says how to rebuild. Brokers is required, and Outbox with FromOutbox.
type Config struct {
	Job
	From    Source // FromKafka when empty
	Brokers []string
	Kafka   []kgo.Opt // further options of the Kafka clients

	// Outbox reads the event log in the order of its positions, from after one
	// to the end as it is then, and calls each with some events of the job's
	// topics and the position of the last.
	Outbox func(ctx context.Context, after int64, each func(events []domain.Event, last int64) error) error
	// Total is how many events Outbox is going to give, about; for progress.
	Total int64

	// Until leaves out what happened later, if it is set. Then the shadow isn't
	// swapped in: Keep gets it.
	Until time.Time
	Keep  func(ctx context.Context, run string) error

	Lease        time.Duration // how long a silent rebuild keeps its work; 4 s when 0
	PauseTimeout time.Duration // how long to wait for workers; 20 s when 0
	Patience     time.Duration // how long Kafka may deliver nothing of what it has, before that is told; 30 s when 0
	Logger       *slog.Logger  // slog.Default when nil
	OnProgress   func(Progress)
	OnWait       func(who string) // called when another rebuild is at it
}

// Progress is how far a rebuild is.
type Progress struct {
	Phase string // "outbox", "kafka", "pausing", "swapping"
	Done  int64  // events that were read in this phase
	Total int64  // events that are to be read in it, as far as known
}

// Result is what a rebuild did.
type Result struct {
	Events  int64         // how many were applied, by all that worked at it
	LeftOut int           // keys of which events could not be applied
	Resumed bool          // whether it went on with another's work
	ByOther bool          // whether another one did it while this one waited
	Took    time.Duration // of this process
	Stood   time.Duration // how long the workers stood still for the swap; 0 when this process didn't begin that
}

// GoneError says that the oldest events are no longer in Kafka, so that a
// rebuild from there would lack what didn't change since.
type GoneError struct {
	Partition consumer.Partition
	Start     int64
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("Kafka no longer has the oldest events: %s begins at %d; rebuild from the outbox", e.Partition, e.Start)
}

// runner is a rebuild at work.
type runner struct {
	Config
	c      *control
	kafka  *kgo.Client
	log    *slog.Logger
	starts map[consumer.Partition]int64
	ops    operators
	newer  locks // keys with events that the workers know, it seems, and this rebuild doesn't
	beaten time.Time
	told   time.Time
	paused time.Time // when the workers were asked to wait
}

const (
	nearEnd  = 2000 // how many events may be left when workers are paused
	maxTries = 12   // of a rebuild whose servers answer with errors, in a row
)

// Run rebuilds, or goes on with a rebuild that was left. It returns nil when
// what is live is made anew, or when another one did that meanwhile. When ctx
// ends, or it fails, what was done is kept, and another Run goes on with it.
func Run(ctx context.Context, cfg Config) (res Result, err error) {
	r := &runner{Config: cfg}
	if r.From == "" {
		r.From = FromKafka
	}
	if r.Lease == 0 {
		r.Lease = 4 * time.Second
	}
	if r.PauseTimeout == 0 {
		r.PauseTimeout = 20 * time.Second
	}
	if r.Patience == 0 {
		r.Patience = 30 * time.Second
	}
	if r.log = r.Logger; r.log == nil {
		r.log = slog.Default()
	}
	r.log = r.log.With("rebuild", r.Name)
	if r.kafka, err = kgo.NewClient(r.plain()...); err != nil {
		return res, fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer r.kafka.Close()
	begun := time.Now()
	defer func() { res.Took = time.Since(begun) }()
	if res.Resumed, err = r.acquire(ctx); err != nil || r.c == nil {
		res.ByOther = err == nil
		return res, err
	}
	for tries := 0; ; {
		before := r.c.Beat
		finished, err := r.work(ctx)
		res.Events, res.LeftOut = r.c.Done, len(r.c.Held)
		if finished && !r.paused.IsZero() {
			res.Stood = time.Since(r.paused)
		}
		switch {
		case finished || ctx.Err() != nil || !r.temporary(err):
			return res, err
		case errors.Is(err, errMoved) || r.c.Beat-before > 2:
			tries = 0
		}
		if tries++; tries > maxTries {
			return res, err
		}
		r.log.Warn("interrupted, will retry", "error", err)
		select {
		case <-ctx.Done():
			return res, err
		case <-time.After(min(time.Duration(tries)*100*time.Millisecond, r.Lease/4)):
		}
	}
}

// temporary reports whether an error may be gone at the next try.
func (r *runner) temporary(err error) bool {
	_, gone := errors.AsType[*GoneError](err)
	injected := r.At != nil && errors.Is(err, failpoint.ErrInjected)
	return !gone && !injected && !errors.Is(err, ErrTakenOver) && !errors.Is(err, errTooMany)
}

// work does the next phase, and those after it until one is interrupted.
func (r *runner) work(ctx context.Context) (finished bool, err error) {
	for {
		switch r.c.Phase {
		case filling:
			if err := r.fill(ctx); err != nil {
				return false, err
			}
			if !r.Until.IsZero() {
				if err := r.Keep(ctx, r.c.Run); err != nil {
					return false, err
				}
				return true, r.forget(ctx, r.c.Run)
			}
			r.tell(Progress{Phase: "pausing"}, true)
			err = r.pause(ctx)
		case pausing: // whoever began it may have lost count of who waits
			err = r.write(ctx, func(c *control) { c.Phase = filling })
		case swapping:
			r.tell(Progress{Phase: "swapping"}, true)
			if err := r.complete(ctx, r.c); err != nil {
				return false, err
			}
			return true, r.swapped(ctx)
		}
		if err != nil {
			return false, err
		}
	}
}

func (r *runner) at(point string) error { return r.hook(point) }

func (r *runner) plain() []kgo.Opt {
	return append([]kgo.Opt{kgo.SeedBrokers(r.Brokers...)}, r.Kafka...)
}

func (r *runner) tell(p Progress, now bool) {
	if r.OnProgress != nil && (now || time.Since(r.told) > 100*time.Millisecond) {
		r.told = time.Now()
		r.OnProgress(p)
	}
}

// acquire makes the record, or takes it over once its owner is silent; the
// record is nil when the other one has finished while this one waited.
func (r *runner) acquire(ctx context.Context) (resumed bool, err error) {
	var beat int64
	var since time.Time
	for waited := false; ; {
		c, err := r.read(ctx)
		switch {
		case err != nil:
			return false, err
		case c == nil && waited:
			return false, nil
		case c == nil:
			if c, err = r.begin(ctx); err != nil {
				return false, err
			}
			if err = r.create(ctx, c); err == nil {
				r.c, r.beaten = c, time.Now()
				return false, nil
			}
			if !errors.Is(err, errMoved) {
				return false, err
			}
			continue
		}
		if c.Beat != beat {
			if beat != 0 && !waited && r.OnWait != nil {
				r.OnWait(c.Who)
			}
			waited = waited || beat != 0
			beat, since = c.Beat, time.Now()
		}
		if time.Since(since) > r.Lease {
			if err := r.Job.write(ctx, c, func(c *control) { c.Owner, c.Who = newName(), whoami() }); err == nil {
				r.c, r.beaten = c, time.Now()
				return true, r.adopt(ctx)
			} else if !errors.Is(err, errMoved) {
				return false, err
			}
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(r.Lease / 20):
		}
	}
}

// adopt begins again where what was found can't be gone on with.
func (r *runner) adopt(ctx context.Context) error {
	if r.c.Phase == swapping {
		return nil
	}
	logs, err := r.logs(ctx)
	if err != nil {
		return err
	}
	fits := r.c.From == r.From
	for _, p := range r.c.Places {
		fits = fits && logs[p.Topic] == p.Log
	}
	if fits {
		r.log.Info("going on with a rebuild that was left", "events", r.c.Done)
		return nil
	}
	return r.again(ctx)
}

// beginAgain is again where work can't go on; it returns errMoved.
func (r *runner) beginAgain(ctx context.Context, why error) error {
	r.log.Warn("beginning again", "reason", why)
	if err := r.again(ctx); err != nil {
		return err
	}
	return errMoved
}

// again lets another run take the place of this one.
func (r *runner) again(ctx context.Context) error {
	old := r.c.Run
	fresh, err := r.begin(ctx)
	if err != nil {
		return err
	}
	if err := r.write(ctx, func(c *control) {
		fresh.Owner, fresh.Beat = c.Owner, c.Beat
		*c = *fresh
	}); err != nil {
		return err
	}
	return r.Discard(ctx, old)
}

// begin is the record of a new rebuild. From the outbox, Kafka's events count
// from its end as it is before the outbox is read: what is in Kafka by now is
// in the outbox too.
func (r *runner) begin(ctx context.Context) (*control, error) {
	logs, err := r.logs(ctx)
	if err != nil {
		return nil, err
	}
	first := r.startOffsets
	if r.From == FromOutbox {
		first = r.ends
	}
	offsets, err := first(ctx)
	if err != nil {
		return nil, err
	}
	c := &control{
		ID: r.Name, Run: newName(), Owner: newName(), Who: whoami(), Beat: 1, Phase: filling, From: r.From, Started: time.Now().UTC(),
		Scan: scan{Done: r.From != FromOutbox},
	}
	for p, o := range offsets {
		if r.From == FromKafka && o > 0 {
			return nil, &GoneError{p, o}
		}
		c.Places = append(c.Places, place{Topic: p.Topic, Partition: p.Partition, Log: logs[p.Topic], Next: o, Epoch: -1})
	}
	return c, nil
}

// logs returns the ids of the topics.
func (r *runner) logs(ctx context.Context) (map[string]string, error) {
	logs, err := consumer.TopicIDs(ctx, r.kafka, r.Topics...)
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		err = fmt.Errorf("%w; has a relay ever run?", err)
	}
	return logs, err
}

// sameLogs begins again when a topic was replaced since the rebuild began: what
// was read of the old one doesn't count, and offsets mean something else.
func (r *runner) sameLogs(ctx context.Context) error {
	logs, err := r.logs(ctx)
	if err != nil {
		return err
	}
	for _, p := range r.c.Places {
		if logs[p.Topic] != p.Log {
			return r.beginAgain(ctx, fmt.Errorf("%s was deleted and made anew", p.Topic))
		}
	}
	return nil
}

func (r *runner) startOffsets(ctx context.Context) (map[consumer.Partition]int64, error) {
	return r.list(ctx, kadm.NewClient(r.kafka).ListStartOffsets)
}

// ends is where each partition ends for readers of committed events.
func (r *runner) ends(ctx context.Context) (map[consumer.Partition]int64, error) {
	return r.list(ctx, kadm.NewClient(r.kafka).ListCommittedOffsets)
}

func (r *runner) list(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (map[consumer.Partition]int64, error) {
	listed, err := list(ctx, r.Topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	found := map[consumer.Partition]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		found[consumer.Partition{Topic: o.Topic, Partition: o.Partition}] = o.Offset
	})
	return found, nil
}

// Plan returns about how many events a rebuild would read, and writes nothing:
// Kafka's records with transaction markers among them. It returns a [GoneError]
// as a rebuild would.
func Plan(ctx context.Context, cfg Config, topics ...string) (int64, error) {
	if cfg.From == FromOutbox {
		return cfg.Total, nil
	}
	r := &runner{Config: cfg}
	r.Topics = topics
	var err error
	if r.kafka, err = kgo.NewClient(r.plain()...); err != nil {
		return 0, fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer r.kafka.Close()
	starts, err := r.startOffsets(ctx)
	if err != nil {
		return 0, err
	}
	ends, err := r.ends(ctx)
	if err != nil {
		return 0, err
	}
	var n int64
	for p, end := range ends {
		if starts[p] > 0 {
			return 0, &GoneError{p, starts[p]}
		}
		n += end
	}
	return n, nil
}
