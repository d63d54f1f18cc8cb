package outbox

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/failpoint"
)

// A stream's progress is a log position, which is worth nothing once the slot
// is gone. So while it streams the relay also keeps, in its progress, what
// windows can go on from: a checkpoint. It is a snapshot C and a log position
// taken right after it: once everything that committed up to there is
// published, everything that C shows is. The reverse does not hold: a
// transaction is in the log before it is visible, for minutes when it waits for
// a synchronous standby. So the checkpoint also names the transactions that
// were published then and that C does not show, and where Kafka's topics ended:
// whatever was published since is found behind that.

// offsets are where partitions end, by topic.
type offsets map[string][]int64

func (o offsets) clone() offsets {
	c := make(offsets, len(o))
	for topic, ends := range o {
		c[topic] = slices.Clone(ends)
	}
	return c
}

type checkpoint struct {
	shown snapshot
	lsn   lsn // of the log's end, read after the snapshot was taken
}

// checkpoints decides which checkpoint goes into the progress.
type checkpoints struct {
	// floor is a transaction id. What an earlier relay published past its last
	// checkpoint is not known by id, only that its ids are lower: a new
	// checkpoint must show everything up to there.
	floor     uint64
	candidate atomic.Pointer[checkpoint] // taken and not used yet
	published atomic.Bool                // something was since the last one
	beyond    []uint64                   // published, and not shown by the last candidate
}

// apply puts the checkpoint that at is to carry into it. done is the progress
// before; ends is where the topics ended then.
func (c *checkpoints) apply(at *progress, done *progress, xids []uint64, ends offsets) {
	at.Prev, at.PrevLSN, at.Xids, at.Offsets = done.Prev, done.PrevLSN, done.Xids, done.Offsets
	if len(xids) > 0 {
		c.published.Store(true)
		c.beyond = append(c.beyond, xids...)
	}
	k := c.candidate.Load()
	if k == nil || at.LSN < k.lsn {
		return
	}
	// What this one shows, later ones show.
	c.beyond = slices.DeleteFunc(c.beyond, k.shown.shows)
	if k.shown.xmin > c.floor {
		at.Prev, at.PrevLSN, at.Xids, at.Offsets = k.shown, k.lsn, slices.Clone(c.beyond), ends.clone()
	}
	c.candidate.Store(nil)
}

// take takes a checkpoint from time to time.
func (c *checkpoints) take(ctx context.Context, s *session) error {
	for {
		if pause(ctx, s.cfg.checkpointInterval) != nil {
			return nil
		}
		if c.candidate.Load() != nil || !c.published.Swap(false) {
			continue
		}
		var k checkpoint
		var err error
		if k.shown, k.lsn, err = s.snapshot(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		c.candidate.Store(&k)
	}
}

// snapshot returns a snapshot, and the end of the log after it was taken: all
// that the snapshot shows committed before that.
func (s *session) snapshot(ctx context.Context) (snapshot, lsn, error) {
	var text, end string
	if err := s.db.QueryRow(ctx, `SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text`).Scan(&text, &end); err != nil {
		return snapshot{}, 0, fmt.Errorf("take a snapshot: %w", err)
	}
	shown, err := parseSnapshot(text)
	if err != nil {
		return snapshot{}, 0, err
	}
	var l lsn
	err = l.UnmarshalText([]byte(end))
	return shown, l, err
}

// takeXid takes a transaction id: all that were taken before are lower.
func (s *session) takeXid(ctx context.Context) (xid uint64, err error) {
	if err := s.db.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		return 0, fmt.Errorf("take a transaction id: %w", err)
	}
	return xid, nil
}

// fallBack goes on by windows from the last checkpoint, because the stream
// can't be used: the windows leave out what was published past the checkpoint.
func (s *session) fallBack(ctx context.Context, p *progress) error {
	xid, err := s.takeXid(ctx)
	if err != nil {
		return err
	}
	p.Phase, p.Now, p.Position, p.LSN, p.Until = phaseWindow, snapshot{}, 0, 0, xid
	return nil
}

// exclusion is what windows leave out because it is published: it lies past
// the checkpoint that they go on from.
type exclusion struct {
	xids map[uint64]bool
	ids  map[domain.ID]struct{}
}

func (e *exclusion) has(r *row) bool {
	if e == nil {
		return false
	}
	if e.xids[r.xid] {
		return true
	}
	_, ok := e.ids[r.ID]
	return ok
}

// exclude reads what must be left out on the way from p's checkpoint.
func (s *session) exclude(ctx context.Context, p *progress) (*exclusion, error) {
	if p.Until == 0 {
		return nil, nil
	}
	e := &exclusion{xids: map[uint64]bool{}, ids: map[domain.ID]struct{}{}}
	for _, x := range p.Xids {
		if failpoint.Mutant("relay.no-xids") {
			break
		}
		e.xids[x] = true
	}
	began := time.Now()
	err := s.scan(ctx, p.Offsets, func(r *kgo.Record) error {
		for _, h := range r.Headers {
			if h.Key != "ce_id" {
				continue
			}
			var id domain.ID
			if err := id.UnmarshalText(h.Value); err == nil && !failpoint.Mutant("relay.no-scan") {
				e.ids[id] = struct{}{}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what is published past the last checkpoint: %w", err)
	}
	s.log.Info("read what is published past the last checkpoint", "events", len(e.ids), "took", time.Since(began))
	return e, nil
}

// scan passes every committed record of the event topics from the given
// offsets on. No transaction is open: the ids were initialised.
func (s *session) scan(ctx context.Context, from offsets, f func(*kgo.Record) error) error {
	ends, err := s.topicEnds(ctx)
	if err != nil {
		return err
	}
	type partition struct {
		topic string
		n     int32
	}
	left := map[partition]bool{}
	consume := map[string]map[int32]kgo.Offset{}
	for topic, all := range ends {
		for i, end := range all {
			start := int64(0) // with no offsets, from the beginning
			if i < len(from[topic]) {
				start = from[topic][i]
			}
			if start > end {
				return fatalf("partition %d of topic %s ends at %d, and the relay had published up to %d: Kafka has lost events that it had acknowledged, or the topic was made anew", i, topic, end, start)
			}
			if start == end {
				continue
			}
			left[partition{topic, int32(i)}] = true
			if consume[topic] == nil {
				consume[topic] = map[int32]kgo.Offset{}
			}
			consume[topic][int32(i)] = kgo.NewOffset().At(start)
		}
	}
	if len(left) == 0 {
		return nil
	}
	k, err := kgo.NewClient(s.cfg.kafkaOpts(
		kgo.ConsumePartitions(consume), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(500*time.Millisecond),
		// Two fetches of this may be buffered for every broker.
		kgo.FetchMaxBytes(8<<20),
	)...)
	if err != nil {
		return err
	}
	defer k.Close()
	for len(left) > 0 {
		fetches := k.PollFetches(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		var failed error
		fetches.EachRecord(func(r *kgo.Record) {
			if end := ends[r.Topic][r.Partition]; r.Offset < end && failed == nil {
				if !r.Attrs.IsControl() {
					failed = f(r)
				}
				if r.Offset == end-1 {
					delete(left, partition{r.Topic, r.Partition})
				}
			}
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}

// topicEnds returns where the event topics end.
func (s *session) topicEnds(ctx context.Context) (offsets, error) {
	listed, err := kadm.NewClient(s.kafka).ListEndOffsets(ctx, s.cfg.Namespace.Topics()...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list the topics' ends: %w", err)
	}
	ends := offsets{}
	for _, topic := range s.cfg.Namespace.Topics() {
		ends[topic] = make([]int64, s.cfg.Partitions)
		for i := range ends[topic] {
			o, ok := listed.Lookup(topic, int32(i))
			if !ok {
				return nil, fmt.Errorf("list the topics' ends: partition %d of %s is missing", i, topic)
			}
			ends[topic][i] = o.Offset
		}
	}
	return ends, nil
}
