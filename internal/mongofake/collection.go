package mongofake

import (
	"bytes"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"
	"go.mongodb.org/mongo-driver/v2/bson"
)

// maxDocument is the largest BSON document, 16 MiB (manual page "MongoDB Limits
// and Thresholds").
const maxDocument = 16 << 20

type namespace struct{ db, coll string }

func (n namespace) String() string { return n.db + "." + n.coll }

// document is never changed once others can see it.
type document struct {
	key    string // of _id
	fields bson.D
	raw    bson.Raw // the same, encoded, in memory of its own
}

// life is a collection under one name. It ends when the collection is dropped
// or renamed, and with it the cursors that were opened in it.
type life struct{ ended atomic.Bool }

// collection is documents and the indexes on them. The caller holds mu.
type collection struct {
	ns   namespace
	uuid bson.Binary
	life *life

	mu      sync.RWMutex
	byID    map[string]*document
	ordered btree.Map[string, *document]
	indexes []*index
	bytes   int64 // of all documents
}

func newCollection(ns namespace, uuid bson.Binary) *collection {
	return &collection{ns: ns, uuid: uuid, life: &life{}, byID: map[string]*document{}}
}

// find lists the documents that match, in order.
func (c *collection) find(query bson.D, match predicate, sort []column, skip, limit int64) []*document {
	var found []*document
	a := plan(c, query, sort)
	enough := int64(0)
	if a.sorted && limit > 0 {
		enough = skip + limit
	}
	a.scan(func(d *document) bool {
		if match(d.fields) {
			found = append(found, d)
		}
		return enough == 0 || int64(len(found)) < enough
	})
	if !a.sorted {
		sortDocuments(found, sort)
	}
	found = found[min(skip, int64(len(found))):]
	if limit > 0 && int64(len(found)) > limit {
		found = found[:limit]
	}
	return found
}

// newDocument makes a document to be stored: _id comes first and is made if it
// is missing. raw is d as it came over the wire, or nil.
func newDocument(d bson.D, raw bson.Raw, now time.Time) (*document, *serverError) {
	changed := raw == nil
	at := -1
	for i, e := range d {
		if e.Key == "_id" {
			at = i
			break
		}
	}
	if at != 0 {
		id := any(bson.NewObjectID())
		if at > 0 {
			id = d[at].Value
		}
		moved := bson.D{{Key: "_id", Value: id}}
		for i, e := range d {
			if i != at {
				moved = append(moved, e)
			}
		}
		d, changed = moved, true
	}
	if err := checkID(d[0].Value); err != nil {
		return nil, err
	}
	for i := 1; i < len(d); i++ {
		// An empty timestamp at the top becomes the current time (manual
		// page "BSON Types", "Timestamps").
		if d[i].Value == any(bson.Timestamp{}) {
			d[i].Value = bson.Timestamp{T: uint32(now.Unix()), I: 1}
			changed = true
		}
	}
	if changed {
		raw = encode(d)
	} else {
		raw = bytes.Clone(raw)
	}
	return &document{key: keyOf(d[0].Value), fields: d, raw: raw}, nil
}

func checkID(id any) *serverError {
	switch v := id.(type) {
	case bson.A, bson.Regex, bson.Undefined:
		return fail(codeInvalidIDField, "The '_id' value cannot be of type %s", typeName(id))
	case bson.D:
		for _, e := range v {
			if strings.HasPrefix(e.Key, "$") {
				return fail(codeDollarPrefixedFieldName, "_id fields may not contain '$'-prefixed fields: %s is not valid for storage.", e.Key)
			}
		}
	}
	return nil
}

func (c *collection) insert(d *document) *serverError {
	if len(d.raw) > maxDocument {
		return fail(codeDocumentTooLarge, "object to insert too large. size in bytes: %d, max size: %d", len(d.raw), maxDocument)
	}
	if c.byID[d.key] != nil {
		id := bson.D{{Key: "_id", Value: d.fields[0].Value}}
		return duplicateKey(c.ns, "_id_", bson.D{{Key: "_id", Value: int32(1)}}, id)
	}
	entries := make([]indexEntry, len(c.indexes))
	for i, x := range c.indexes {
		var err *serverError
		if entries[i], err = x.entry(d.fields); err != nil {
			return err
		}
		if key, ok := x.conflict(entries[i], nil); ok {
			return x.duplicate(c.ns, d.fields, key)
		}
	}
	c.byID[d.key] = d
	c.ordered.Set(d.key, d)
	c.bytes += int64(len(d.raw))
	for i, x := range c.indexes {
		x.add(entries[i], d)
	}
	return nil
}

// replace puts d, which has old's _id, in old's place.
func (c *collection) replace(old, d *document) *serverError {
	if len(d.raw) > maxDocument {
		return fail(codeDocumentTooLargeOnUpdate, "Resulting document after update is larger than %d", maxDocument)
	}
	before := make([]indexEntry, len(c.indexes))
	after := make([]indexEntry, len(c.indexes))
	for i, x := range c.indexes {
		var err *serverError
		if after[i], err = x.entry(d.fields); err != nil {
			return err
		}
		if key, ok := x.conflict(after[i], old); ok {
			return x.duplicate(c.ns, d.fields, key)
		}
		before[i], _ = x.entry(old.fields)
	}
	c.byID[d.key] = d
	c.ordered.Set(d.key, d)
	c.bytes += int64(len(d.raw) - len(old.raw))
	for i, x := range c.indexes {
		x.remove(before[i], old)
		x.add(after[i], d)
	}
	return nil
}

func (c *collection) remove(d *document) {
	delete(c.byID, d.key)
	c.bytes -= int64(len(d.raw))
	c.ordered.Delete(d.key)
	for _, x := range c.indexes {
		e, _ := x.entry(d.fields)
		x.remove(e, d)
	}
}

// addIndex builds x over what is there.
func (c *collection) addIndex(x *index) *serverError {
	var failed *serverError
	c.ordered.Scan(func(_ string, d *document) bool {
		e, err := x.entry(d.fields)
		if err != nil {
			failed = err
			return false
		}
		if key, ok := x.conflict(e, d); ok {
			failed = x.duplicate(c.ns, d.fields, key)
			return false
		}
		x.add(e, d)
		return true
	})
	if failed != nil {
		return failed
	}
	c.indexes = append(c.indexes, x)
	return nil
}

// updateOp is one entry of an update command, or a findAndModify.
type updateOp struct {
	query         bson.D
	match         predicate
	sort          []column
	up            *updater
	multi, upsert bool
}

// updateResult is what one updateOp did.
type updateResult struct {
	matched, modified int32
	upserted          any // the _id; nil unless inserted is set
	inserted          bool
	before, after     *document // of the last one, for findAndModify
}

func (c *collection) update(op updateOp, now time.Time) (updateResult, *serverError) {
	var r updateResult
	limit := int64(1)
	if op.multi {
		limit = 0
	}
	for _, old := range c.find(op.query, op.match, op.sort, 0, limit) {
		d, err := op.up.modify(old, now)
		if err == nil && d != old {
			err = c.replace(old, d)
		}
		if err != nil {
			return r, err
		}
		r.matched++
		if d != old {
			r.modified++
		}
		r.before, r.after = old, d
	}
	if r.matched > 0 || !op.upsert {
		return r, nil
	}
	d, err := op.up.create(op.query, now)
	if err != nil {
		return r, err
	}
	if err := c.insert(d); err != nil {
		return r, err
	}
	r.upserted, r.inserted, r.after = d.fields[0].Value, true, d
	return r, nil
}

// modify makes the document that follows old, which is old itself if nothing
// changes.
func (up *updater) modify(old *document, now time.Time) (*document, *serverError) {
	id := old.fields[0]
	var d *document
	var err *serverError
	if up.replacement != nil {
		fields, raw := up.replacement, up.raw
		if given, ok := lookup(fields, "_id"); !ok {
			fields, raw = append(bson.D{id}, fields...), nil
		} else if compare(given, id.Value) != 0 {
			return nil, fail(codeImmutableField, "After applying the update, the (immutable) field '_id' was found to have been altered to _id: %s", shellText(given))
		}
		d, err = newDocument(fields, raw, now)
	} else {
		var fields bson.D
		if fields, err = up.apply(cloneDocument(old.fields), false, now); err != nil {
			return nil, err
		}
		if len(fields) == 0 || fields[0].Key != "_id" || compare(fields[0].Value, id.Value) != 0 {
			return nil, fail(codeImmutableField, "Performing an update on the path '_id' would modify the immutable field '_id'")
		}
		d, err = newDocument(fields, nil, now)
	}
	if err != nil {
		return nil, err
	}
	if bytes.Equal(d.raw, old.raw) {
		return old, nil
	}
	return d, nil
}

// create makes the document that an upsert inserts (manual page
// "db.collection.update()", "Upsert Behavior"): what the query says is equal,
// then the operators; of a replacement only its _id comes from the query.
func (up *updater) create(query bson.D, now time.Time) (*document, *serverError) {
	var base any = bson.D{}
	seen := map[string]bool{}
	for _, e := range equalities(query) {
		if up.replacement != nil && e.Key != "_id" {
			continue
		}
		if seen[e.Key] {
			return nil, fail(codeNotSingleValueField, "cannot infer query fields to set, path '%s' is matched twice", e.Key)
		}
		seen[e.Key] = true
		var err *serverError
		if base, err = put(base, strings.Split(e.Key, "."), clone(e.Value)); err != nil {
			return nil, err
		}
	}
	fields := base.(bson.D)
	wanted, given := lookup(fields, "_id")
	var raw bson.Raw
	if up.replacement != nil {
		if _, ok := lookup(up.replacement, "_id"); ok {
			fields, raw = up.replacement, up.raw
		} else {
			fields = append(fields, up.replacement...)
		}
	} else {
		var err *serverError
		if fields, err = up.apply(fields, true, now); err != nil {
			return nil, err
		}
	}
	if id, ok := lookup(fields, "_id"); given && (!ok || compare(id, wanted) != 0) {
		return nil, fail(codeImmutableField, "Performing an update on the path '_id' would modify the immutable field '_id'")
	}
	return newDocument(fields, raw, now)
}

// equalities lists what a matching document's fields must be equal to.
func equalities(query bson.D) []bson.E {
	var all []bson.E
	for _, e := range query {
		switch e.Key {
		case "$and", "$or":
			list, _ := e.Value.(bson.A)
			if e.Key == "$or" && len(list) != 1 {
				continue
			}
			for _, item := range list {
				d, _ := item.(bson.D)
				all = append(all, equalities(d)...)
			}
			continue
		}
		if strings.HasPrefix(e.Key, "$") {
			continue
		}
		operators, ok := isOperators(e.Value)
		if !ok {
			if _, pattern := e.Value.(bson.Regex); !pattern {
				all = append(all, e)
			}
			continue
		}
		for _, op := range operators {
			list, _ := op.Value.(bson.A)
			switch {
			case op.Key == "$eq":
				all = append(all, bson.E{Key: e.Key, Value: op.Value})
			case (op.Key == "$in" || op.Key == "$all") && len(list) == 1:
				_, nested := isOperators(list[0])
				if _, pattern := list[0].(bson.Regex); !pattern && !nested {
					all = append(all, bson.E{Key: e.Key, Value: list[0]})
				}
			}
		}
	}
	return all
}
