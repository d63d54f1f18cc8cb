package mongofake

import (
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// access is a way to the documents that a query may match: all of them and
// perhaps others, each once. The query decides.
type access struct {
	scan   func(yield func(*document) bool)
	sorted bool // in the wanted order
}

// bounds is what the query says for certain about one field. Only what holds
// for every match is kept, so it may be wider than the query.
type bounds struct {
	points []any // the field is, or holds, one of these
	ranges []keyRange
}

// keyRange is inclusive, and high covers every key that begins with it.
type keyRange struct{ low, high string }

func (r keyRange) inverted() keyRange { return keyRange{low: invert(r.high), high: invert(r.low)} }

func invert(s string) string {
	b := []byte(s)
	for i := range b {
		b[i] = ^b[i]
	}
	return string(b)
}

// conjuncts lists the conditions that all must hold, those inside $and too.
func conjuncts(query bson.D) []bson.E {
	var all []bson.E
	for _, e := range query {
		if e.Key != "$and" {
			all = append(all, e)
			continue
		}
		list, _ := e.Value.(bson.A)
		for _, item := range list {
			if d, ok := item.(bson.D); ok {
				all = append(all, conjuncts(d)...)
			}
		}
	}
	return all
}

// indexable tells values that equality finds under their own key. Arrays match
// in two ways, null also matches what is not there.
func indexable(v any) bool {
	switch v.(type) {
	case nil, bson.A, bson.Regex, bson.Undefined, bson.MinKey, bson.MaxKey:
		return false
	}
	return !isNaN(v)
}

func (b *bounds) narrow(condition any) {
	operators, ok := isOperators(condition)
	if !ok {
		if indexable(condition) {
			b.points = []any{condition}
		}
		return
	}
	for _, op := range operators {
		var class string
		if op.Key != "$in" {
			if !indexable(op.Value) {
				continue
			}
			class = string([]byte{classOf(op.Value)})
		}
		switch op.Key {
		case "$eq":
			b.points = []any{op.Value}
		case "$in":
			list, _ := op.Value.(bson.A)
			if b.points == nil && !slices.ContainsFunc(list, func(v any) bool { return !indexable(v) }) {
				b.points = append([]any{}, list...)
			}
		case "$gt", "$gte":
			b.ranges = append(b.ranges, keyRange{keyOf(op.Value), class})
		case "$lt", "$lte":
			b.ranges = append(b.ranges, keyRange{class, keyOf(op.Value)})
		}
	}
}

// span is the range that all of b's ranges leave. One of them is all that can
// be used if the field may be an array: each bound may hold for another element.
func (b *bounds) span(array bool) (keyRange, bool) {
	if b == nil || len(b.ranges) == 0 {
		return keyRange{}, false
	}
	r := b.ranges[0]
	if array {
		return r, true
	}
	for _, o := range b.ranges[1:] {
		r.low = max(r.low, o.low)
		// "high" may be a whole class, of which the other is a part.
		if strings.HasPrefix(o.high, r.high) || !strings.HasPrefix(r.high, o.high) && o.high < r.high {
			r.high = o.high
		}
	}
	return r, true
}

func plan(c *collection, query bson.D, sort []column) access {
	known := map[string]*bounds{}
	all := conjuncts(query)
	for _, e := range all {
		if strings.HasPrefix(e.Key, "$") {
			continue
		}
		b := known[e.Key]
		if b == nil {
			b = &bounds{}
			known[e.Key] = b
		}
		b.narrow(e.Value)
	}
	if b := known["_id"]; b != nil && b.points != nil {
		return c.byPoints(b.points, sort)
	}
	best, score := access{}, 0
	for _, x := range c.indexes {
		if !x.usable(all) {
			continue
		}
		if a, s := x.access(known, sort); s > score {
			best, score = a, s
		}
	}
	if score > 0 {
		return best
	}
	r, _ := known["_id"].span(false)
	descending := len(sort) > 0 && sort[0].path == "_id" && sort[0].descending
	return access{
		// _id is unique: whatever else is sorted by comes too late to matter.
		sorted: len(sort) == 0 || sort[0].path == "_id",
		scan: func(yield func(*document) bool) {
			scanRange(c.ordered.Ascend, c.ordered.Descend, "", r, descending, yield)
		},
	}
}

func (c *collection) byPoints(points []any, sort []column) access {
	keys := make([]string, len(points))
	for i, v := range points {
		keys[i] = keyOf(v)
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	return access{
		sorted: len(keys) == 1 || len(sort) == 0,
		scan: func(yield func(*document) bool) {
			for _, k := range keys {
				if d := c.byID[k]; d != nil && !yield(d) {
					return
				}
			}
		},
	}
}

// usable says whether x holds every document that can match: always, unless it
// is partial and the query doesn't repeat its filter.
func (x *index) usable(all []bson.E) bool {
	for _, want := range conjuncts(x.partial) {
		if !slices.ContainsFunc(all, func(e bson.E) bool {
			return e.Key == want.Key && keyOf(e.Value) == keyOf(want.Value)
		}) {
			return false
		}
	}
	return true
}

// maxPrefixes bounds the products of several $in.
const maxPrefixes = 2000

// access is the way through x and how much it narrows down; 0 if not at all.
func (x *index) access(known map[string]*bounds, sort []column) (access, int) {
	prefixes := []string{""}
	fixed := 0
	for _, c := range x.columns {
		b := known[c.path]
		if b == nil || b.points == nil || len(prefixes)*len(b.points) > maxPrefixes {
			break
		}
		var extended []string
		for _, p := range prefixes {
			for _, v := range b.points {
				extended = append(extended, string(c.appendKey([]byte(p), v)))
			}
		}
		prefixes = extended
		fixed++
	}
	slices.Sort(prefixes)
	prefixes = slices.Compact(prefixes)

	score := 4 * fixed
	var r keyRange
	if fixed < len(x.columns) {
		next := x.columns[fixed]
		if span, ok := known[next.path].span(x.multikey > 0); ok {
			if r = span; next.descending {
				r = span.inverted()
			}
			score++
		}
	}
	sorted, descending := len(sort) == 0, false
	if !sorted && len(prefixes) == 1 && x.multikey == 0 {
		if sorted, descending = x.sorts(sort, fixed); sorted && !x.sparse {
			score += 2
		}
	}
	if x.sparse && fixed == 0 && r == (keyRange{}) {
		return access{}, 0 // it leaves documents out
	}
	if len(sort) == 0 && fixed == 0 && r == (keyRange{}) {
		return access{}, 0
	}
	once := len(prefixes) == 1 && x.multikey == 0
	return access{sorted: sorted, scan: func(yield func(*document) bool) {
		seen := map[*document]bool{}
		for _, p := range prefixes {
			more := scanRange(x.entries.Ascend, x.entries.Descend, p, r, descending, func(d *document) bool {
				if !once {
					if seen[d] {
						return true
					}
					seen[d] = true
				}
				return yield(d)
			})
			if !more {
				return
			}
		}
	}}, score
}

// sorts says whether x's entries with the first columns fixed are in the wanted
// order, forwards or backwards.
func (x *index) sorts(sort []column, fixed int) (ok, descending bool) {
	at := fixed
	for _, c := range sort {
		if slices.ContainsFunc(x.columns[:fixed], func(f column) bool { return f.path == c.path }) {
			continue
		}
		if at == len(x.columns) || x.columns[at].path != c.path {
			return false, false
		}
		backwards := x.columns[at].descending != c.descending
		if at > fixed && backwards != descending {
			return false, false
		}
		descending = backwards
		at++
	}
	return true, descending
}

type treeScan func(pivot string, yield func(string, *document) bool)

// scanRange yields the entries under prefix whose next component is in r (all,
// if r is empty), and says whether yield wants more.
func scanRange(ascend, descend treeScan, prefix string, r keyRange, descending bool, yield func(*document) bool) (more bool) {
	more = true
	low, high := prefix+r.low, prefix+r.high
	visit := func(key string, d *document) bool {
		switch {
		case key < low:
			return false
		case key > high && !strings.HasPrefix(key, high):
			return descending // the successor of high, where going down begins
		}
		more = yield(d)
		return more
	}
	if descending {
		descend(successor(high), visit)
	} else {
		ascend(low, visit)
	}
	return more
}

// successor is the least string above all that begin with s. No key begins with
// 0xff.
func successor(s string) string {
	b := []byte(s)
	for len(b) > 0 {
		if last := len(b) - 1; b[last] < 0xff {
			b[last]++
			return string(b)
		}
		b = b[:len(b)-1]
	}
	return "\xff"
}
