package analytics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/failpoint"
	"outflow/internal/mongodb"
)

// bucket is the sums of one cell that came through one partition.
type bucket struct {
	ID       string           `bson:"_id"`
	Of       string           `bson:"of"`
	Hour     time.Time        `bson:"hour,omitempty"`
	Revision int64            `bson:"revision"` // how often it was written
	Counters map[string]int64 `bson:"counters"`
	Open     map[string]int64 `bson:"open"` // versions that are counted and may not be in their facts yet

	touched bool
	opened  map[string]int64 // what this batch adds to Open
}

// history is what a batch has of one entity, in order.
type history struct {
	id        string
	partition int32
	steps     []step
}

const (
	requestTimeout = 30 * time.Second
	maxAttempts    = 20 // of a batch that others keep interfering with
)

var errContended = errors.New("others keep changing the same buckets")

// apply counts what histories bring that isn't counted yet. When it returns an
// error, any part of it may have been done, and it can be called again with the
// same histories or with longer ones.
func (b *books) apply(ctx context.Context, k *kind, histories []*history) error {
	slices.SortFunc(histories, func(a, b *history) int { return strings.Compare(a.id, b.id) })
	cells := map[string]cell{}
	for _, h := range histories {
		for _, s := range h.steps {
			for _, c := range s.cells {
				cells[c.bucket(h.partition)] = c
			}
		}
	}
	for range maxAttempts {
		done, err := b.attempt(ctx, k, histories, cells)
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rand.N(5 * time.Millisecond)):
		}
	}
	return errContended
}

// attempt is apply, unless somebody else wrote one of the buckets meanwhile or
// the histories turn out to be about other cells too, which it adds.
func (b *books) attempt(ctx context.Context, k *kind, histories []*history, cells map[string]cell) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	found, err := b.readBuckets(ctx, cells)
	if err != nil {
		return false, err
	}
	ids := map[string]bool{}
	for _, h := range histories {
		ids[h.id] = true
	}
	for _, at := range found {
		for id := range at.Open {
			ids[id] = true
		}
	}
	facts, err := b.readFacts(ctx, k, ids) // after the buckets: see the package comment
	if err != nil {
		return false, err
	}

	var writes []mongodb.Versioned
	complete := true
	for _, h := range histories {
		f := facts[h.id]
		f.ID = h.id
		known := f.Version
		for _, s := range h.steps {
			if s.version <= f.Version {
				continue
			}
			next := s.advance(f)
			next.Version = s.version
			for at, n := range difference(k.postings(f), k.postings(next)) {
				id := at.cell.bucket(h.partition)
				if _, ok := cells[id]; !ok {
					cells[id], complete = at.cell, false
					continue
				}
				found[id].count(h.id, s.version, at.counter, n)
			}
			f = next
		}
		if f.Version > known {
			writes = append(writes, mongodb.Versioned{ID: f.ID, Version: f.Version, Document: f})
		}
	}
	if !complete {
		return false, nil
	}
	if err := failpoint.Hit(failpoint.AnalyticsCount); err != nil {
		return false, err
	}
	if done, err := b.writeBuckets(ctx, found, facts); !done || err != nil {
		return false, err
	}
	if err := failpoint.Hit(failpoint.AnalyticsCounted); err != nil {
		return false, err
	}
	if len(writes) == 0 {
		return true, nil
	}
	if err := errors.Join(mongodb.ReplaceOlder(ctx, b.collection(k.name), writes)...); err != nil {
		return false, err
	}
	return true, failpoint.Hit(failpoint.AnalyticsWritten)
}

// place is a counter of a cell.
type place struct {
	cell    cell
	counter string
}

// difference is what has to be added to the counters when postings change.
func difference(before, after []posting) map[place]int64 {
	d := map[place]int64{}
	for _, p := range before {
		d[place{p.cell, p.counter}] -= p.n
	}
	for _, p := range after {
		d[place{p.cell, p.counter}] += p.n
	}
	maps.DeleteFunc(d, func(_ place, n int64) bool { return n == 0 })
	return d
}

// count adds what version version of an entity changes, unless the bucket as
// it was read includes that.
func (at *bucket) count(id string, version int64, counter string, n int64) {
	if version <= at.Open[id] {
		return
	}
	at.Counters[counter] += n
	at.opened[id] = version
	at.touched = true
}

// settle closes the versions that the facts include, and opens those that were
// counted.
func (at *bucket) settle(facts map[string]fact) {
	maps.DeleteFunc(at.Open, func(id string, version int64) bool { return version <= facts[id].Version })
	maps.Copy(at.Open, at.opened)
	maps.DeleteFunc(at.Counters, func(_ string, n int64) bool { return n == 0 })
}

func (b *books) readBuckets(ctx context.Context, cells map[string]cell) (map[string]*bucket, error) {
	cursor, err := b.collection(buckets).Find(ctx, among(maps.Keys(cells)))
	if err != nil {
		return nil, fmt.Errorf("read buckets: %w", err)
	}
	var stored []*bucket
	if err := cursor.All(ctx, &stored); err != nil {
		return nil, fmt.Errorf("read buckets: %w", err)
	}
	found := map[string]*bucket{}
	for id, c := range cells {
		found[id] = &bucket{ID: id, Of: c.of, Hour: c.hour}
	}
	for _, at := range stored {
		found[at.ID] = at
	}
	for _, at := range found {
		at.opened = map[string]int64{}
		if at.Counters == nil {
			at.Counters = map[string]int64{}
		}
		if at.Open == nil {
			at.Open = map[string]int64{}
		}
	}
	return found, nil
}

func (b *books) readFacts(ctx context.Context, k *kind, ids map[string]bool) (map[string]fact, error) {
	cursor, err := b.collection(k.name).Find(ctx, among(maps.Keys(ids)))
	if err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	var stored []fact
	if err := cursor.All(ctx, &stored); err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	found := make(map[string]fact, len(stored))
	for _, f := range stored {
		found[f.ID] = f
	}
	return found, nil
}

// writeBuckets writes the buckets that changed, each provided that it is as it
// was read. It is not done when one of them isn't; others may be written then.
func (b *books) writeBuckets(ctx context.Context, read map[string]*bucket, facts map[string]fact) (done bool, err error) {
	var models []mongo.WriteModel
	var replaced int64
	// In one order, for servers that lock what a bulk write touches.
	for _, at := range slices.SortedFunc(maps.Values(read), func(a, b *bucket) int { return cmp.Compare(a.ID, b.ID) }) {
		if !at.touched {
			continue
		}
		at.settle(facts)
		was := at.Revision
		at.Revision++
		if was == 0 {
			models = append(models, mongo.NewInsertOneModel().SetDocument(at))
			continue
		}
		replaced++
		models = append(models, mongo.NewReplaceOneModel().SetReplacement(at).
			SetFilter(bson.D{{Key: "_id", Value: at.ID}, {Key: "revision", Value: was}}))
	}
	if len(models) == 0 {
		return true, nil
	}
	result, err := b.collection(buckets).BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
	if err == nil {
		return result.MatchedCount == replaced, nil
	}
	if mongodb.HasCode(err, mongodb.CodeWriteConflict) {
		return false, nil
	}
	each, ok := errors.AsType[mongo.BulkWriteException](err)
	if ok && each.WriteConcernError == nil && !slices.ContainsFunc(each.WriteErrors, func(e mongo.BulkWriteError) bool {
		return e.Code != mongodb.CodeDuplicateKey && e.Code != mongodb.CodeWriteConflict
	}) {
		return false, nil
	}
	return false, fmt.Errorf("write buckets: %w", err)
}

func among(ids func(func(string) bool)) bson.D {
	return bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: slices.Sorted(ids)}}}}
}
