package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/consumer"
	"outflow/internal/failpoint"
	"outflow/internal/mongodb"
)

// stored returns the workers' positions.
func (j *Job) stored(ctx context.Context) (map[consumer.Partition]mongodb.Position, error) {
	cursor, err := j.DB.Collection(j.Positions).Find(ctx, bson.D{{Key: "topic", Value: bson.D{{Key: "$in", Value: j.Topics}}}})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", j.Positions, err)
	}
	var all []mongodb.Position
	if err := cursor.All(ctx, &all); err != nil {
		return nil, fmt.Errorf("read %s: %w", j.Positions, err)
	}
	found := map[consumer.Partition]mongodb.Position{}
	for _, p := range all {
		found[consumer.Partition{Topic: p.Topic, Partition: p.Partition}] = p
	}
	return found, nil
}

// pause stops the workers and fills the shadow up to where they can have been.
func (r *runner) pause(ctx context.Context) error {
	r.paused = time.Now()
	if err := r.write(ctx, func(c *control) { c.Phase, c.Attempt = pausing, c.Beat+1 }); err != nil {
		return err
	}
	if err := r.at(Pausing); err != nil {
		return err
	}
	if err := r.awaitAnswers(ctx); err != nil {
		return err
	}
	if err := r.at(Paused); err != nil {
		return err
	}
	ends, err := r.ends(ctx)
	if err != nil {
		return err
	}
	if failpoint.Mutant("rebuild.early-swap") {
		ends = nil
	}
	if err := r.follow(ctx, ends); err != nil {
		return err
	}
	if err := r.sameLogs(ctx); err != nil {
		return err
	}
	live, err := r.stored(ctx)
	if err != nil {
		return err
	}
	switch free, err := r.letGo(ctx); {
	case err != nil:
		return err
	case len(free) > 0:
		return r.write(ctx, func(c *control) { c.Phase = filling }) // which applies them
	}
	shadow, err := r.Shadow(ctx, r.c.Run)
	if err != nil {
		return err
	}
	if shadow != r.c.Shadow {
		return r.write(ctx, func(c *control) { c.Phase = filling }) // which finds out
	}
	if err := r.write(ctx, func(c *control) {
		c.Phase = swapping
		c.Handover, c.Generation = handover(c.Places, c.Held, live, r.starts), nextGeneration(live)
	}); err != nil {
		return err
	}
	return r.at(Swapping)
}

// handover returns what the workers' positions are going to be: where they
// were, so that they park what they must. A worker whose position isn't one in
// the log goes on where the shadow ends.
func handover(places []place, left []held, live map[consumer.Partition]mongodb.Position, starts map[consumer.Partition]int64) []place {
	next := slices.Clone(places)
	for i := range next {
		p := &next[i]
		id := consumer.Partition{Topic: p.Topic, Partition: p.Partition}
		at, ok := live[id]
		switch first := firstHeld(left, id); {
		case ok && at.Log == p.Log && at.Next <= p.Next && at.Next >= starts[id]:
			p.Next, p.Epoch = at.Next, at.Epoch
		case first >= 0:
			p.Next, p.Epoch = first, -1
		}
	}
	return next
}

func nextGeneration(live map[consumer.Partition]mongodb.Position) int64 {
	var most int64
	for _, p := range live {
		most = max(most, p.Generation)
	}
	return most + 1
}

// awaitAnswers raises the generations of the workers' positions, and returns once
// every worker that has a partition waits. A worker that doesn't answer is waited
// for until it must have lost its partitions.
func (r *runner) awaitAnswers(ctx context.Context) error {
	live, err := r.stored(ctx)
	if err != nil {
		return err
	}
	generation := nextGeneration(live)
	deadline := time.Now().Add(r.PauseTimeout)
	for {
		// A write now and then keeps the workers waiting.
		if err := r.beatNow(ctx); err != nil {
			return err
		}
		// Again each time: a worker that found no position, and no rebuild that
		// was pausing, may write its first one only now.
		if err := r.raise(ctx, generation); err != nil {
			return err
		}
		owned, settled, err := r.owned(ctx)
		if err != nil {
			return err
		}
		if settled {
			all, err := r.answered(ctx, owned)
			if all || err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			r.log.Warn("a worker does not answer: swapping without it")
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * pollInterval):
		}
	}
}

// raise raises the positions' generation to one, so that no worker that has an
// older one can write its position any more.
func (r *runner) raise(ctx context.Context, generation int64) error {
	older := bson.D{{Key: "topic", Value: bson.D{{Key: "$in", Value: r.Topics}}}, {Key: "generation", Value: bson.D{{Key: "$lt", Value: generation}}}}
	raised := bson.D{{Key: "$set", Value: bson.D{{Key: "generation", Value: generation}}}}
	if _, err := r.DB.Collection(r.Positions).UpdateMany(ctx, older, raised); err != nil {
		return fmt.Errorf("pause the workers: %w", err)
	}
	return nil
}

// answered reports whether the workers that have the partitions all wait.
func (r *runner) answered(ctx context.Context, owned []consumer.Partition) (bool, error) {
	now, err := r.read(ctx)
	if err != nil {
		return false, err
	}
	for _, p := range owned {
		if now == nil || !slices.Contains(now.Answers, r.c.answer(p)) {
			return false, nil
		}
	}
	return true, nil
}

// owned returns the partitions that workers have; settled is false while they
// are being given to others.
func (r *runner) owned(ctx context.Context) (owned []consumer.Partition, settled bool, err error) {
	all, err := kadm.NewClient(r.kafka).DescribeGroups(ctx, r.Group)
	if err != nil {
		return nil, false, fmt.Errorf("look at the group %s: %w", r.Group, err)
	}
	g := all[r.Group]
	switch {
	case g.Err != nil && !errors.Is(g.Err, kerr.GroupIDNotFound): // which doesn't say that there are none
		return nil, false, fmt.Errorf("look at the group %s: %w", r.Group, g.Err)
	case g.Err != nil || g.State == "Dead" || g.State == "Empty" || g.State == "":
		return nil, true, nil
	case g.State != "Stable":
		return nil, false, nil
	}
	for _, m := range g.Members {
		assigned, ok := m.Assigned.AsConsumer()
		if !ok {
			continue
		}
		for _, t := range assigned.Topics {
			for _, p := range t.Partitions {
				if slices.Contains(r.Topics, t.Topic) {
					owned = append(owned, consumer.Partition{Topic: t.Topic, Partition: p})
				}
			}
		}
	}
	return owned, true, nil
}

// swapped returns errGone unless the shadow is live, once the swap is completed: it
// may have been dropped after it was last looked at, and then there was nothing to
// swap in.
func (r *runner) swapped(ctx context.Context) error {
	live, err := r.Identify(ctx)
	if err != nil {
		return err
	}
	for _, t := range r.Topics {
		if live[t] != r.c.Shadow {
			return errGone
		}
	}
	return nil
}

// errGone says that what was filled is not what is live.
var errGone = errors.New("what was filled is not what is live now: somebody dropped it, or put something else in its place; rebuild again")

// complete does what a record in the phase swapping says, or what is left of
// that. Any number may do it at once.
func (j *Job) complete(ctx context.Context, c *control) error {
	if err := j.Swap(ctx, c.Run, c.Shadow); err != nil {
		return err
	}
	if err := j.hook(Swapped); err != nil {
		return err
	}
	identities, err := j.Identify(ctx)
	if err != nil {
		return err
	}
	if err := mongodb.Create(ctx, j.DB, j.Positions); err != nil {
		return err
	}
	for _, h := range c.Handover {
		// What is live is something else by now, as when that was dropped and is
		// being filled again: these positions don't belong to it.
		if identities[h.Topic] != c.Shadow {
			continue
		}
		at := mongodb.Position{
			Topic: h.Topic, Partition: h.Partition, Log: h.Log, Next: h.Next, Epoch: h.Epoch,
			Collection: identities[h.Topic], Generation: c.Generation, UpdatedAt: time.Now().UTC(),
		}
		at.ID = consumer.Partition{Topic: h.Topic, Partition: h.Partition}.String()
		older := bson.D{{Key: "_id", Value: at.ID}, {Key: "generation", Value: bson.D{{Key: "$lt", Value: c.Generation}}}}
		_, err := j.DB.Collection(j.Positions).ReplaceOne(ctx, older, at, options.Replace().SetUpsert(true))
		// A duplicate key: somebody else has written it.
		if err != nil && !mongodb.HasCode(err, mongodb.CodeDuplicateKey) {
			return fmt.Errorf("write %s: %w", j.Positions, err)
		}
	}
	if err := j.hook(Handed); err != nil {
		return err
	}
	return j.forget(ctx, c.Run)
}

// beatNow shows that the rebuild lives, when it is due.
func (r *runner) beatNow(ctx context.Context) error {
	if !r.due() {
		return nil
	}
	return r.write(ctx, nil)
}

func (r *runner) due() bool { return time.Since(r.beaten) > r.Lease/8 }

func (r *runner) write(ctx context.Context, change func(*control)) error {
	err := r.Job.write(ctx, r.c, change)
	if errors.Is(err, errMoved) {
		now, rerr := r.read(ctx)
		switch {
		case rerr != nil:
			return rerr
		case now == nil || now.Run != r.c.Run || now.Owner != r.c.Owner:
			return ErrTakenOver
		}
		r.c = now // a worker ended the pause, or an answer to a write was lost
		return errMoved
	}
	if err == nil {
		r.beaten = time.Now()
	}
	return err
}
