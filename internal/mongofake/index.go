package mongofake

import (
	"slices"
	"strings"

	"github.com/tidwall/btree"
	"go.mongodb.org/mongo-driver/v2/bson"
)

// column is one field of an index or of a sort.
type column struct {
	path       string
	descending bool
}

func (c column) appendKey(dst []byte, v any) []byte {
	if c.descending {
		return appendDescendingKey(dst, v)
	}
	return appendKey(dst, v)
}

// index is a declared index, other than the one on _id. Its entries are the
// keys of its columns followed by the key of _id, so that every entry is
// distinct and equal keys come in order of _id.
type index struct {
	name    string
	pattern bson.D
	columns []column
	unique  bool
	sparse  bool
	partial bson.D // nil without a partialFilterExpression
	covers  predicate

	entries btree.Map[string, *document]
	// multikey counts the documents with an array in an indexed field. While
	// there is one, an entry doesn't tell all about its document.
	multikey int
}

// indexEntry is what one document puts into one index.
type indexEntry struct {
	keys  []string // without _id
	array bool
}

// entry computes what d puts into x; no keys if a partial or sparse index
// leaves it out.
func (x *index) entry(d bson.D) (indexEntry, *serverError) {
	if x.covers != nil && !x.covers(d) {
		return indexEntry{}, nil
	}
	var e indexEntry
	present := false
	keys := [][]byte{nil}
	for _, c := range x.columns {
		values, array := pathValues(d, c.path)
		for _, v := range values {
			present = present || v != any(missing{})
		}
		if array {
			if e.array {
				return e, fail(codeParallelArrays, "cannot index parallel arrays [%s]", c.path)
			}
			e.array = true
		}
		extended := make([][]byte, 0, len(keys)*len(values))
		for _, k := range keys {
			for _, v := range values {
				extended = append(extended, c.appendKey(slices.Clone(k), v))
			}
		}
		keys = extended
	}
	if x.sparse && !present {
		return indexEntry{}, nil
	}
	e.keys = make([]string, len(keys))
	for i, k := range keys {
		e.keys[i] = string(k)
	}
	if len(keys) > 1 {
		slices.Sort(e.keys)
		e.keys = slices.Compact(e.keys)
	}
	return e, nil
}

// pathValues are the values that an index or a sort sees at path, at least one,
// and whether they come from an array.
func pathValues(d bson.D, path string) (values []any, array bool) {
	if array = crossesArray(d, path); !array {
		return []any{fieldAt(d, path)}, false
	}
	walk(d, path, leafElements, func(v any) bool {
		values = append(values, v)
		return false
	})
	if len(values) == 0 {
		values = []any{nil}
	}
	return values, true
}

func crossesArray(d bson.D, path string) bool {
	for {
		head, tail, deeper := strings.Cut(path, ".")
		value, _ := lookup(d, head)
		switch v := value.(type) {
		case bson.A:
			return true
		case bson.D:
			if deeper {
				d, path = v, tail
				continue
			}
		}
		return false
	}
}

// conflict finds a document other than self that holds one of the keys.
func (x *index) conflict(e indexEntry, self *document) (key string, found bool) {
	if !x.unique {
		return "", false
	}
	for _, key := range e.keys {
		x.entries.Ascend(key, func(entry string, holder *document) bool {
			if !strings.HasPrefix(entry, key) {
				return false
			}
			found = holder != self
			return !found
		})
		if found {
			return key, true
		}
	}
	return "", false
}

func (x *index) add(e indexEntry, d *document) {
	for _, key := range e.keys {
		x.entries.Set(key+d.key, d)
	}
	if e.array {
		x.multikey++
	}
}

func (x *index) remove(e indexEntry, d *document) {
	for _, key := range e.keys {
		x.entries.Delete(key + d.key)
	}
	if e.array {
		x.multikey--
	}
}

// duplicate names the key under which d conflicts.
func (x *index) duplicate(ns namespace, d bson.D, key string) *serverError {
	value := make(bson.D, len(x.columns))
	rest := key
	for i, c := range x.columns {
		value[i] = bson.E{Key: c.path}
		values, _ := pathValues(d, c.path)
		for _, v := range values {
			if k := string(c.appendKey(nil, v)); strings.HasPrefix(rest, k) {
				if v != any(missing{}) {
					value[i].Value = v
				}
				rest = rest[len(k):]
				break
			}
		}
	}
	return duplicateKey(ns, x.name, x.pattern, value)
}

// sameSpec says whether two indexes index the same keys of the same documents.
// Beside the keys, MongoDB counts unique, sparse and the partial filter (manual
// page "createIndexes").
func (x *index) sameSpec(y *index) bool {
	return keyOf(x.pattern) == keyOf(y.pattern) && x.unique == y.unique && x.sparse == y.sparse &&
		(x.partial == nil) == (y.partial == nil) && keyOf(x.partial) == keyOf(y.partial)
}

func (x *index) describe() bson.D {
	d := doc("v", int32(2), "key", x.pattern, "name", x.name)
	if x.unique {
		d = append(d, bson.E{Key: "unique", Value: true})
	}
	if x.sparse {
		d = append(d, bson.E{Key: "sparse", Value: true})
	}
	if x.partial != nil {
		d = append(d, bson.E{Key: "partialFilterExpression", Value: x.partial})
	}
	return d
}

// parseSort reads a sort document (manual page "cursor.sort()").
func parseSort(spec bson.D) ([]column, *serverError) {
	columns := make([]column, 0, len(spec))
	for _, e := range spec {
		if _, ok := e.Value.(bson.D); ok {
			return nil, unsupported("sorting by $meta")
		}
		n, ok := integer(e.Value)
		if !ok || n != 1 && n != -1 {
			return nil, fail(15975, "$sort key ordering must be 1 (for ascending) or -1 (for descending)")
		}
		if e.Key == "" || strings.HasPrefix(e.Key, "$") {
			return nil, fail(codeBadValue, "FieldPath field names may not start with '$' or be empty: %q", e.Key)
		}
		columns = append(columns, column{path: e.Key, descending: n < 0})
	}
	return columns, nil
}

// sortKey is the key by which d is sorted: of an array the smallest element
// counts in ascending order and the largest in descending order.
func sortKey(d bson.D, columns []column) string {
	var key []byte
	for _, c := range columns {
		values, _ := pathValues(d, c.path)
		best := c.appendKey(nil, values[0])
		for _, v := range values[1:] {
			if k := c.appendKey(nil, v); slices.Compare(k, best) < 0 {
				best = k
			}
		}
		key = append(key, best...)
	}
	return string(key)
}

func sortDocuments(docs []*document, columns []column) {
	type keyed struct {
		key string
		doc *document
	}
	list := make([]keyed, len(docs))
	for i, d := range docs {
		list[i] = keyed{sortKey(d.fields, columns), d}
	}
	slices.SortStableFunc(list, func(a, b keyed) int { return strings.Compare(a.key, b.key) })
	for i := range list {
		docs[i] = list[i].doc
	}
}
