package mongofake

import (
	"math/rand/v2"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// cursor is what is left of a result.
type cursor struct {
	id   int64
	ns   namespace
	life *life // nil if the result no longer depends on the collection

	mu      sync.Mutex // held while a batch is made
	docs    []*document
	project func(bson.D) (bson.D, *serverError) // nil: as they are
	used    time.Time
}

type cursors struct {
	mu   sync.Mutex
	open map[int64]*cursor
}

// cursorTimeout ends cursors that nobody reads (manual page "cursor.noCursorTimeout()").
const cursorTimeout = 10 * time.Minute

const defaultFirstBatch = 101

// batch takes the next documents: up to size, if it isn't negative, and what
// fits in a reply of 16 MiB, but at least one.
func (c *cursor) batch(size int64) ([]bson.Raw, *serverError) {
	batch := []bson.Raw{}
	bytes := 0
	for len(c.docs) > 0 && (size < 0 || int64(len(batch)) < size) {
		raw := c.docs[0].raw
		if c.project != nil {
			d, err := c.project(c.docs[0].fields)
			if err != nil {
				return nil, err
			}
			raw = encode(d)
		}
		// An element is the document, its type and its index as text.
		bytes += len(raw) + len(indexName(len(batch))) + 2
		if len(batch) > 0 && bytes > maxDocument {
			break
		}
		batch = append(batch, raw)
		c.docs = c.docs[1:]
	}
	return batch, nil
}

// first answers a command that makes a cursor, which stays open if something is
// left.
func (s *cursors) first(c *cursor, size int64, single bool, now time.Time) (bson.D, *serverError) {
	batch, err := c.batch(size)
	if err != nil {
		return nil, err
	}
	if len(c.docs) > 0 && !single {
		s.keep(c, now)
	}
	return doc("cursor", doc("firstBatch", batch, "id", c.id, "ns", c.ns.String())), nil
}

func (s *cursors) keep(c *cursor, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, old := range s.open {
		// One that is being read is not idle.
		if old.mu.TryLock() {
			if now.Sub(old.used) > cursorTimeout {
				delete(s.open, id)
			}
			old.mu.Unlock()
		}
	}
	for c.id == 0 || s.open[c.id] != nil {
		c.id = rand.Int64()
	}
	c.used = now
	s.open[c.id] = c
}

// next answers getMore.
func (s *cursors) next(id int64, ns namespace, size int64, now time.Time) (bson.D, *serverError) {
	s.mu.Lock()
	c := s.open[id]
	s.mu.Unlock()
	if c == nil {
		return nil, fail(codeCursorNotFound, "cursor id %d not found", id)
	}
	if !c.mu.TryLock() {
		return nil, fail(codeCursorInUse, "cursor id %d is already in use", id)
	}
	defer c.mu.Unlock()
	if c.ns != ns {
		return nil, fail(codeUnauthorized, "Requested getMore on namespace '%s', but cursor belongs to a different namespace %s", ns, c.ns)
	}
	if c.life != nil && c.life.ended.Load() {
		s.forget(id)
		return nil, fail(codeQueryPlanKilled, "collection dropped or renamed: %s", ns)
	}
	batch, err := c.batch(size)
	if err != nil {
		s.forget(id)
		return nil, err
	}
	c.used = now
	if len(c.docs) == 0 {
		s.forget(id)
		id = 0
	}
	return doc("cursor", doc("nextBatch", batch, "id", id, "ns", ns.String())), nil
}

func (s *cursors) forget(id int64) (existed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, existed = s.open[id]
	delete(s.open, id)
	return existed
}
