package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"outflow/internal/failpoint"
)

// Partition names a partition of a topic.
type Partition struct {
	Topic     string
	Partition int32
}

func (p Partition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Partition) }

// Position is how far a partition was consumed.
type Position struct {
	Log   string // the identity of the log that Next counts in: the topic's id
	Next  int64  // the offset of the first record that wasn't handled yet
	Epoch int32  // the leader epoch before Next, by which Kafka tells a log that was cut; -1 when not known
}

// Positions keeps positions outside Kafka, beside the effects that they
// cover, so that effects that were lost or put back are noticed and caught up
// on. The group's committed offsets then only tell lag tools.
type Positions interface {
	// Load returns the positions of partitions as they are assigned. A
	// partition without one, or with one in another log, is consumed from its
	// beginning.
	Load(ctx context.Context, partitions []Partition) (map[Partition]Position, error)

	// Save keeps positions, once what is before them was handled. It is also
	// called with unchanged positions: before anything of an assignment is
	// handled, and about every second. It returns ErrPositionsMoved when what
	// is stored isn't what was last loaded or saved here; the consumer then
	// begins again from what Load returns.
	Save(ctx context.Context, positions map[Partition]Position) error
}

// groupPositions are a group's committed offsets. The log's identity is kept
// in the offset's metadata, because the offsets of a topic outlive it: without
// it, the successor of a deleted topic would be read from the middle.
type groupPositions struct {
	client *kgo.Client
	group  string
}

func (g groupPositions) Load(ctx context.Context, partitions []Partition) (map[Partition]Position, error) {
	topics := map[string]bool{}
	var names []string
	for _, p := range partitions {
		if !topics[p.Topic] {
			topics[p.Topic] = true
			names = append(names, p.Topic)
		}
	}
	committed, err := kadm.NewClient(g.client).FetchOffsetsForTopics(ctx, g.group, names...)
	if err != nil {
		return nil, fmt.Errorf("fetch the group's offsets: %w", err)
	}
	found := map[Partition]Position{}
	for _, p := range partitions {
		if o, ok := committed.Lookup(p.Topic, p.Partition); ok && o.At >= 0 {
			found[p] = Position{Log: o.Metadata, Next: o.At, Epoch: o.LeaderEpoch}
		}
	}
	return found, nil
}

func (g groupPositions) Save(ctx context.Context, positions map[Partition]Position) error {
	var failed error
	g.client.CommitOffsetsSync(g.commit(ctx, positions), offsets(positions), func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		failed = commitError(resp, err)
	})
	return failed
}

// saveAsync is Save for positions that matter only to lag tools.
func (g groupPositions) saveAsync(ctx context.Context, positions map[Partition]Position) {
	g.client.CommitOffsets(g.commit(ctx, positions), offsets(positions), nil)
}

func (g groupPositions) commit(ctx context.Context, positions map[Partition]Position) context.Context {
	return kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			t := &req.Topics[i]
			for j := range t.Partitions {
				log := positions[Partition{t.Topic, t.Partitions[j].Partition}].Log
				t.Partitions[j].Metadata = &log
			}
		}
		return nil
	})
}

func offsets(positions map[Partition]Position) map[string]map[int32]kgo.EpochOffset {
	all := map[string]map[int32]kgo.EpochOffset{}
	for p, at := range positions {
		if all[p.Topic] == nil {
			all[p.Topic] = map[int32]kgo.EpochOffset{}
		}
		all[p.Topic][p.Partition] = kgo.EpochOffset{Epoch: at.Epoch, Offset: at.Next}
	}
	return all
}

func commitError(resp *kmsg.OffsetCommitResponse, err error) error {
	if err != nil {
		return fmt.Errorf("commit the group's offsets: %w", err)
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("commit the group's offset of %s/%d: %w", t.Topic, p.Partition, err)
			}
		}
	}
	return nil
}

// locate finds where to begin in partitions that were just assigned, and which
// of their keys are parked, and saves that. It also returns where the partitions
// end.
func (s *session) locate(ctx context.Context, partitions []Partition) (map[Partition]Position, kadm.ListedOffsets, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stored, err := s.positions.Load(ctx, partitions)
	if err != nil {
		return nil, nil, fmt.Errorf("load positions: %w", err)
	}
	admin := kadm.NewClient(s.client)
	starts, err := admin.ListStartOffsets(ctx, s.Topics...)
	if err != nil {
		return nil, nil, fmt.Errorf("list the start offsets: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, s.Topics...)
	if err != nil {
		return nil, nil, fmt.Errorf("list the end offsets: %w", err)
	}
	if err := s.parked.catchUp(ctx); err != nil {
		return nil, nil, err
	}
	begin := map[Partition]Position{}
	for _, p := range partitions {
		start, startOK := starts.Lookup(p.Topic, p.Partition)
		end, endOK := ends.Lookup(p.Topic, p.Partition)
		if err := errors.Join(start.Err, end.Err); err != nil || !startOK || !endOK {
			return nil, nil, fmt.Errorf("list the offsets of %s: %w", p, errors.Join(err, errNoOffset(startOK && endOK)))
		}
		at, known := stored[p]
		known = known && !failpoint.Mutant("consumer.from-start")
		switch {
		case known && at.Log != s.logs[p.Topic] && !failpoint.Mutant("consumer.any-log"):
			s.Logger.Error("topic is another one than was consumed: beginning at its start", "partition", p.String(), "was_consumed_to", at.Next)
			known = false
		case known && (at.Next < start.Offset || at.Next > end.Offset) && !failpoint.Mutant("consumer.jump"):
			// The topic may have been made anew since its id was asked for.
			if logs, err := s.topicIDs(); err != nil || logs[p.Topic] != at.Log {
				return nil, nil, &restartError{errors.Join(errRecreated, err)}
			}
			return nil, nil, &DataLossError{Partition: p, Next: at.Next, Start: start.Offset, End: end.Offset}
		}
		if !known {
			if start.Offset > 0 {
				s.Logger.Warn("the oldest events are gone from Kafka: beginning after them", "partition", p.String(), "offset", start.Offset)
			}
			at = Position{Log: s.logs[p.Topic], Next: start.Offset, Epoch: -1}
		}
		begin[p] = at
	}
	if s.Positions != nil && !failpoint.Mutant("consumer.unsaved-begin") {
		if err := s.positions.Save(ctx, begin); err != nil {
			return nil, nil, fmt.Errorf("save where to begin: %w", err)
		}
	}
	return begin, ends, nil
}

func errNoOffset(ok bool) error {
	if ok {
		return nil
	}
	return errors.New("no offset is known")
}

// assign is told which partitions this member got, and tells the client where
// to begin in each. It keeps trying until it knows, or the partitions are
// taken away again.
func (s *session) assign(ctx context.Context, assigned map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	<-s.begun
	var partitions []Partition
	for t, ps := range assigned {
		for p := range ps {
			partitions = append(partitions, Partition{t, p})
		}
	}
	var begin map[Partition]Position
	var ends kadm.ListedOffsets
	for attempt := 0; ; attempt++ {
		var err error
		if begin, ends, err = s.locate(ctx, partitions); err == nil {
			break
		}
		_, lost := errors.AsType[*DataLossError](err)
		if _, restart := errors.AsType[*restartError](err); lost || restart || forbidden(err) {
			s.fail(err)
			return nil, err
		}
		if ctx.Err() == nil && s.ctx.Err() == nil {
			s.Logger.Warn("finding positions, will retry", "error", err)
		}
		select {
		case <-time.After(s.pause(attempt)):
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, at := range begin {
		end, _ := ends.Lookup(p.Topic, p.Partition)
		s.parts[p] = &part{id: p, log: at.Log, next: at.Next, end: end.Offset, lag: max(0, end.Offset-at.Next), epoch: at.Epoch, saved: at, keys: map[string]*queue{}}
		delete(s.sought, p)
		assigned[p.Topic][p.Partition] = kgo.NewOffset().At(at.Next).WithEpoch(at.Epoch)
	}
	s.tell()
	s.Logger.Info("partitions assigned", "partitions", len(partitions))
	return assigned, nil
}
