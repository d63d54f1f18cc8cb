package replicator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/consumer"
)

const positionsCollection = "_positions"

// position is a document of _positions: how far one partition is in the
// replica.
type position struct {
	ID         string    `bson:"_id"` // topic/partition
	Topic      string    `bson:"topic"`
	Partition  int32     `bson:"partition"`
	Log        string    `bson:"log"`        // the topic's id
	Next       int64     `bson:"next"`       // the offset of the first record that isn't in the replica
	Epoch      int32     `bson:"epoch"`      // the leader epoch before it
	Collection string    `bson:"collection"` // the identity of the collection that holds what was replicated
	Generation int64     `bson:"generation"` // how often that collection was replaced by a rebuilt one
	UpdatedAt  time.Time `bson:"updated_at"`
}

// positions keeps the positions of the partitions that a replicator has. Every
// write is guarded by what was read or written last, so that a replicator that
// lost a partition without knowing can't move its position, and so that it is
// noticed when the replica was dropped, replaced or put back to a backup.
type positions struct {
	db     *mongo.Database
	bases  map[string]string // topic -> base collection
	logger *slog.Logger

	mu      sync.Mutex
	known   map[consumer.Partition]position // as they are stored; missing when nothing is
	bound   map[string]string               // base collection -> identity
	checked time.Time
}

// Load implements [consumer.Positions].
func (p *positions) Load(ctx context.Context, partitions []consumer.Partition) (map[consumer.Partition]consumer.Position, error) {
	was, err := identities(ctx, p.db)
	if err != nil {
		return nil, err
	}
	bound, err := prepare(ctx, p.db)
	if err != nil {
		return nil, err
	}
	ids := bson.A{}
	for _, id := range partitions {
		ids = append(ids, id.String())
	}
	cursor, err := p.db.Collection(positionsCollection).Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}})
	if err != nil {
		return nil, fmt.Errorf("read the replica's positions: %w", err)
	}
	var stored []position
	if err := cursor.All(ctx, &stored); err != nil {
		return nil, fmt.Errorf("read the replica's positions: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bound, p.checked = bound, time.Now()
	found := map[consumer.Partition]consumer.Position{}
	for _, id := range partitions {
		delete(p.known, id)
	}
	for _, s := range stored {
		id := consumer.Partition{Topic: s.Topic, Partition: s.Partition}
		if s.Collection != was[p.bases[id.Topic]] {
			p.logger.Warn("the replica's collection is not the one that was filled: consuming from the start", "partition", id.String())
			if _, err := p.db.Collection(positionsCollection).DeleteOne(ctx, same(s)); err != nil {
				return nil, fmt.Errorf("forget a position: %w", err)
			}
			continue
		}
		p.known[id] = s
		found[id] = consumer.Position{Log: s.Log, Next: s.Next, Epoch: s.Epoch}
	}
	return found, nil
}

// Save implements [consumer.Positions].
func (p *positions) Save(ctx context.Context, moved map[consumer.Partition]consumer.Position) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.check(ctx); err != nil {
		return err
	}
	var models []mongo.WriteModel
	var updates int64
	next := make(map[consumer.Partition]position, len(moved))
	for id, to := range moved {
		at := position{
			ID: id.String(), Topic: id.Topic, Partition: id.Partition, Log: to.Log, Next: to.Next, Epoch: to.Epoch,
			Collection: p.bound[p.bases[id.Topic]], Generation: p.known[id].Generation, UpdatedAt: time.Now().UTC(),
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
	done, err := p.db.Collection(positionsCollection).BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
	switch {
	case hasCode(err, codeDuplicateKey):
		return fmt.Errorf("write the replica's positions: %w", consumer.ErrPositionsMoved)
	case err != nil:
		return fmt.Errorf("write the replica's positions: %w", err)
	case done.MatchedCount != updates:
		return fmt.Errorf("write the replica's positions: %w", consumer.ErrPositionsMoved)
	}
	for id, at := range next {
		p.known[id] = at
	}
	return nil
}

// same is the filter that finds a position if it is as it was.
func same(was position) bson.D {
	return bson.D{
		{Key: "_id", Value: was.ID}, {Key: "generation", Value: was.Generation}, {Key: "collection", Value: was.Collection},
		{Key: "log", Value: was.Log}, {Key: "next", Value: was.Next},
	}
}

const checkInterval = time.Second

// check looks whether the collections are still those that the positions are
// about: the server makes a dropped one anew at the next write, and nothing
// else would tell.
func (p *positions) check(ctx context.Context) error {
	if time.Since(p.checked) < checkInterval {
		return nil
	}
	now, err := identities(ctx, p.db)
	if err != nil {
		return err
	}
	for _, base := range p.bases {
		if now[base] != p.bound[base] {
			return fmt.Errorf("collection %s was dropped or replaced: %w", base, consumer.ErrPositionsMoved)
		}
	}
	p.checked = time.Now()
	return nil
}

var _ consumer.Positions = (*positions)(nil)

var errNoDatabase = errors.New("the MongoDB URI names no database")
