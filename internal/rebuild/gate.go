package rebuild

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/internal/consumer"
)

// Gate is where workers wait while a rebuild swaps. Job needs what is said at
// [Job] to be for workers.
type Gate struct {
	Job Job
	// Patience is how long a pausing rebuild may be silent before workers go
	// on; 10 s when 0.
	Patience time.Duration

	mu    sync.Mutex
	seen  int64 // the beat that was seen last
	since time.Time
}

const pollInterval = 20 * time.Millisecond

// answer is what a worker says that waits with a partition.
func (c *control) answer(p consumer.Partition) string { return fmt.Sprintf("%d %s", c.Attempt, p) }

// Await returns once no rebuild pauses the partitions or swaps what is made of
// them; waited says whether there was one. It completes a swap that was decided.
func (g *Gate) Await(ctx context.Context, partitions []consumer.Partition) (waited bool, err error) {
	var mine []consumer.Partition
	for _, p := range partitions {
		for _, t := range g.Job.Topics {
			if p.Topic == t {
				mine = append(mine, p)
			}
		}
	}
	if len(mine) == 0 {
		return false, nil
	}
	answered := ""
	for {
		c, err := g.Job.read(ctx)
		switch {
		case err != nil:
			return waited, err
		case c == nil || c.Phase == filling:
			return waited, nil
		case c.Phase == swapping:
			if err := g.Job.complete(ctx, c); err != nil {
				return waited, err
			}
		case g.silent(c.Beat):
			// Its next write fails, and it pauses again if it lives.
			if err := g.Job.write(ctx, c, func(c *control) { c.Phase = filling }); err != nil && err != errMoved {
				return waited, err
			}
		default:
			if mark := fmt.Sprint(c.Run, c.Attempt); answered != mark {
				if err := g.answer(ctx, c, mine); err != nil {
					return waited, err
				}
				answered = mark
			}
			select {
			case <-ctx.Done():
				return true, ctx.Err()
			case <-time.After(pollInterval):
			}
		}
		waited = true
	}
}

// silent reports whether the beat has not changed for too long, by this
// worker's clock alone.
func (g *Gate) silent(beat int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if beat != g.seen {
		g.seen, g.since = beat, time.Now()
	}
	patience := g.Patience
	if patience == 0 {
		patience = 10 * time.Second
	}
	return time.Since(g.since) > patience
}

// answer says in the rebuild's record that the partitions wait. An answer that
// comes late finds no record to be written to, so it leaves nothing behind.
func (g *Gate) answer(ctx context.Context, c *control, partitions []consumer.Partition) error {
	var answers bson.A
	for _, p := range partitions {
		answers = append(answers, c.answer(p))
	}
	_, err := g.Job.controls().UpdateOne(ctx,
		bson.D{{Key: "_id", Value: c.ID}, {Key: "run", Value: c.Run}, {Key: "attempt", Value: c.Attempt}, {Key: "phase", Value: pausing}},
		bson.D{{Key: "$addToSet", Value: bson.D{{Key: "answers", Value: bson.D{{Key: "$each", Value: answers}}}}}})
	if err != nil {
		return fmt.Errorf("answer a rebuild: %w", err)
	}
	return nil
}
