package rebuild

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

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

// answer is a worker's document in the control collection: it waits.
type answer struct {
	ID      string `bson:"_id"`
	Run     string `bson:"run"`
	Attempt int64  `bson:"attempt"`
}

func answerID(job string, p consumer.Partition) string { return job + " waits in " + p.String() }

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

func (g *Gate) answer(ctx context.Context, c *control, partitions []consumer.Partition) error {
	for _, p := range partitions {
		a := answer{ID: answerID(c.ID, p), Run: c.Run, Attempt: c.Attempt}
		_, err := g.Job.controls().ReplaceOne(ctx, bson.D{{Key: "_id", Value: a.ID}}, a, options.Replace().SetUpsert(true))
		if err != nil {
			return fmt.Errorf("answer a rebuild: %w", err)
		}
	}
	return nil
}
