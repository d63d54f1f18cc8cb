package mongodb

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/consumer"
	"outflow/internal/failpoint"
)

// Position is how far one partition is in what was made of it.
type Position struct {
	ID         string    `bson:"_id"` // topic/partition
	Topic      string    `bson:"topic"`
	Partition  int32     `bson:"partition"`
	Log        string    `bson:"log"`             // the topic's id
	Next       int64     `bson:"next"`            // the offset of the first record that isn't in there
	Epoch      int32     `bson:"epoch"`           // the leader epoch before it
	Collection string    `bson:"collection"`      // the identity of what was filled
	Generation int64     `bson:"generation"`      // how often that was replaced by a rebuilt one
	Write      string    `bson:"write,omitempty"` // names the worker's write that it is of; each has another
	UpdatedAt  time.Time `bson:"updated_at"`
}

// Positions keeps positions beside what a worker fills from events. Every
// write is guarded by what was read or written last, so that a worker that
// lost a partition without knowing can't move its position, and so that it is
// noticed when what was filled was dropped, replaced or put back to a backup.
// All fields but Await are required.
//
// How far a position is doesn't tell whether it was put back: documents are
// written, a backup is put back whose position is the one that covers none of
// them, and the worker moves that past what is no longer there. So every write
// has a name of its own ([Position.Write]), also one that moves nothing. The
// consumer writes once before the first effect of an assignment, and about every
// second from then on: what was put back from a backup made before the last of
// these is noticed.
type Positions struct {
	Collection *mongo.Collection // of the positions

	// Prepare makes what is to be filled, unless it is there, and returns its
	// identity for each topic.
	Prepare func(context.Context) (map[string]string, error)
	// Identify returns the identities without making anything.
	Identify func(context.Context) (map[string]string, error)
	// Await returns once nobody is replacing what is filled from partitions, and
	// whether somebody was. May be nil.
	Await func(context.Context, []consumer.Partition) (waited bool, err error)

	Logger *slog.Logger

	mu      sync.Mutex
	known   map[consumer.Partition]Position // as they are stored; missing when nothing is
	bound   map[consumer.Partition]string   // the identity of what each is filling
	checked time.Time
}

// Load implements [consumer.Positions].
func (p *Positions) Load(ctx context.Context, partitions []consumer.Partition) (map[consumer.Partition]consumer.Position, error) {
	var were, identities map[string]string
	var stored []Position
	for again := true; again; {
		if _, err := p.await(ctx, partitions); err != nil {
			return nil, err
		}
		var err error
		// Before anything is made: where collections have no UUID, one that is
		// made anew looks like the one that is gone.
		if were, err = p.Identify(ctx); err != nil {
			return nil, err
		}
		if identities, err = p.Prepare(ctx); err != nil {
			return nil, err
		}
		if err = Create(ctx, p.Collection.Database(), p.Collection.Name()); err != nil {
			return nil, err
		}
		if stored, err = p.stored(ctx, partitions); err != nil {
			return nil, err
		}
		// Somebody may have begun in between, so that what was read doesn't
		// belong together.
		if again, err = p.await(ctx, partitions); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known, p.bound = map[consumer.Partition]Position{}, map[consumer.Partition]string{}
	}
	for _, id := range partitions {
		delete(p.known, id)
		p.bound[id] = identities[id.Topic]
	}
	found := map[consumer.Partition]consumer.Position{}
	for _, s := range stored {
		id := consumer.Partition{Topic: s.Topic, Partition: s.Partition}
		if s.Collection != were[id.Topic] || s.Collection != p.bound[id] {
			p.Logger.Warn("what was filled is gone or another one: consuming from the start", "partition", id.String())
			if _, err := p.Collection.DeleteOne(ctx, same(s)); err != nil {
				return nil, fmt.Errorf("forget a position in %s: %w", p.Collection.Name(), err)
			}
			continue
		}
		p.known[id] = s
		found[id] = consumer.Position{Log: s.Log, Next: s.Next, Epoch: s.Epoch}
	}
	return found, nil
}

func (p *Positions) await(ctx context.Context, partitions []consumer.Partition) (bool, error) {
	if p.Await == nil {
		return false, nil
	}
	return p.Await(ctx, partitions)
}

func (p *Positions) stored(ctx context.Context, partitions []consumer.Partition) ([]Position, error) {
	ids := bson.A{}
	for _, id := range partitions {
		ids = append(ids, id.String())
	}
	cursor, err := p.Collection.Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.Collection.Name(), err)
	}
	var stored []Position
	if err := cursor.All(ctx, &stored); err != nil {
		return nil, fmt.Errorf("read %s: %w", p.Collection.Name(), err)
	}
	return stored, nil
}

// Save implements [consumer.Positions].
func (p *Positions) Save(ctx context.Context, moved map[consumer.Partition]consumer.Position) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.check(ctx, moved); err != nil {
		return err
	}
	var models []mongo.WriteModel
	var updates int64
	next := make(map[consumer.Partition]Position, len(moved))
	name := rand.Text()
	for id, to := range moved {
		at := Position{
			ID: id.String(), Topic: id.Topic, Partition: id.Partition, Log: to.Log, Next: to.Next, Epoch: to.Epoch,
			Collection: p.bound[id], Generation: p.known[id].Generation, Write: name, UpdatedAt: time.Now().UTC(),
		}
		next[id] = at
		was, stored := p.known[id]
		if !stored {
			models = append(models, mongo.NewInsertOneModel().SetDocument(at))
			continue
		}
		updates++
		models = append(models, mongo.NewReplaceOneModel().SetReplacement(at).SetFilter(same(was)))
	}
	done, err := p.Collection.BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
	switch {
	case HasCode(err, CodeDuplicateKey):
		return fmt.Errorf("write %s: %w", p.Collection.Name(), consumer.ErrPositionsMoved)
	case err != nil:
		return fmt.Errorf("write %s: %w", p.Collection.Name(), err)
	case done.MatchedCount != updates:
		return fmt.Errorf("write %s: %w", p.Collection.Name(), consumer.ErrPositionsMoved)
	}
	for id, at := range next {
		p.known[id] = at
	}
	return nil
}

// same is the filter that finds a position if it is as it was.
func same(was Position) bson.D {
	if failpoint.Mutant("mongodb.unguarded-position") {
		return bson.D{{Key: "_id", Value: was.ID}}
	}
	is := bson.D{
		{Key: "_id", Value: was.ID}, {Key: "generation", Value: was.Generation}, {Key: "collection", Value: was.Collection},
		{Key: "log", Value: was.Log}, {Key: "next", Value: was.Next},
	}
	switch {
	case failpoint.Mutant("mongodb.nameless-writes"):
		return is
	case was.Write == "": // a rebuild wrote it, or outflow before writes had names
		return append(is, bson.E{Key: "write", Value: nil})
	}
	return append(is, bson.E{Key: "write", Value: was.Write})
}

const checkInterval = time.Second

// check looks whether what is being filled is still what the positions are
// about: the server makes a dropped collection anew at the next write, and
// nothing else would tell. Every partition is compared with what was there when
// it was assigned, because what is there may have been replaced before another
// partition came.
func (p *Positions) check(ctx context.Context, moved map[consumer.Partition]consumer.Position) error {
	if time.Since(p.checked) < checkInterval {
		return nil
	}
	now, err := p.Identify(ctx)
	if err != nil {
		return err
	}
	for id := range moved {
		if now[id.Topic] != p.bound[id] {
			return fmt.Errorf("what is filled from %s was dropped or replaced: %w", id, consumer.ErrPositionsMoved)
		}
	}
	p.checked = time.Now()
	return nil
}

var _ consumer.Positions = (*Positions)(nil)
