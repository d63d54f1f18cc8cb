package mongofake

import (
	"math"

	"go.mongodb.org/mongo-driver/v2/bson"
)

var readCommands = map[string]command{
	"find": {
		run:     (*call).find,
		fields:  "filter sort projection skip limit batchSize singleBatch noCursorTimeout allowDiskUse allowPartialResults",
		refused: "hint min max returnKey showRecordId tailable awaitData oplogReplay collation let term readOnce requestResumeToken resumeAfter",
	},
	"getMore":     {run: (*call).getMore, fields: "collection batchSize", refused: "term lastKnownCommittedOpTime", anywhere: true},
	"killCursors": {run: (*call).killCursors, fields: "cursors"},
	"count":       {run: (*call).count, fields: "query limit skip", refused: "hint collation fields"},
	"distinct":    {run: (*call).distinct, fields: "key query", refused: "collation hint"},
	"aggregate": {
		run:     (*call).aggregate,
		fields:  "pipeline cursor allowDiskUse bypassDocumentValidation",
		refused: "explain hint collation let", anywhere: true,
	},
}

// readable runs fn with the collection behind the command's namespace and the
// whole query: the command's and those of the views on the way.
func (c *call) readable(query bson.D, fn func(coll *collection, query bson.D, match predicate)) *serverError {
	return c.server.catalog.read(c.namespace(), func(coll *collection, viewMatch []bson.D) *serverError {
		if len(viewMatch) > 0 {
			all := bson.A{}
			for _, m := range viewMatch {
				all = append(all, m)
			}
			query = bson.D{{Key: "$and", Value: append(all, query)}}
		}
		match, err := compileQuery(query)
		if err != nil {
			return err
		}
		fn(coll, query, match)
		return nil
	})
}

func (c *call) find() (bson.D, *serverError) {
	o := c.options()
	filter, spec, fields := o.document("filter"), o.document("sort"), o.document("projection")
	skip, limit := o.count("skip", 0), o.count("limit", 0)
	size := o.count("batchSize", defaultFirstBatch)
	single := o.boolean("singleBatch", false)
	if o.err != nil {
		return nil, o.err
	}
	sort, err := parseSort(spec)
	if err != nil {
		return nil, err
	}
	cur := &cursor{ns: c.namespace()}
	if cur.project, err = compileProjection(fields); err != nil {
		return nil, err
	}
	err = c.readable(filter, func(coll *collection, query bson.D, match predicate) {
		if coll != nil {
			cur.docs, cur.life = coll.find(query, match, sort, skip, limit), coll.life
		}
	})
	if err != nil {
		return nil, err
	}
	return c.server.cursors.first(cur, size, single, c.now)
}

func (c *call) getMore() (bson.D, *serverError) {
	id, ok := c.body[0].Value.(int64)
	if !ok {
		return nil, fail(codeTypeMismatch, "BSON field 'getMore.getMore' is the wrong type '%s', expected type 'long'", typeName(c.body[0].Value))
	}
	o := c.options()
	coll, size := o.text("collection"), o.count("batchSize", 0)
	if o.err != nil {
		return nil, o.err
	}
	if size == 0 {
		size = -1
	}
	return c.server.cursors.next(id, namespace{c.db, coll}, size, c.now)
}

func (c *call) killCursors() (bson.D, *serverError) {
	o := c.options()
	killed, notFound := bson.A{}, bson.A{}
	for _, v := range o.array("cursors") {
		id, ok := v.(int64)
		if !ok {
			o.wrongType("cursors", v, "long")
		}
		if c.server.cursors.forget(id) {
			killed = append(killed, id)
		} else {
			notFound = append(notFound, id)
		}
	}
	return doc("cursorsKilled", killed, "cursorsNotFound", notFound, "cursorsAlive", bson.A{}, "cursorsUnknown", bson.A{}), o.err
}

// asCount is the narrowest number that MongoDB answers counts with.
func asCount(n int64) any {
	if n > math.MaxInt32 {
		return n
	}
	return int32(n)
}

func (c *call) count() (bson.D, *serverError) {
	o := c.options()
	filter, skip := o.document("query"), o.count("skip", 0)
	limit := int64(0)
	if v, ok := lookup(c.body, "limit"); ok && v != nil {
		if limit, ok = integer(v); !ok {
			o.wrongType("limit", v, "long")
		}
		limit = max(limit, -limit) // a negative limit means the same
	}
	if o.err != nil {
		return nil, o.err
	}
	n := int64(0)
	err := c.readable(filter, func(coll *collection, query bson.D, match predicate) {
		switch {
		case coll == nil:
		case len(query) == 0:
			n = max(0, int64(len(coll.byID))-skip)
			if limit > 0 {
				n = min(n, limit)
			}
		default:
			n = int64(len(coll.find(query, match, nil, skip, limit)))
		}
	})
	if err != nil {
		return nil, err
	}
	return doc("n", asCount(n)), nil
}

func (c *call) distinct() (bson.D, *serverError) {
	o := c.options()
	key, filter := o.text("key"), o.document("query")
	if o.err != nil {
		return nil, o.err
	}
	values := bson.A{}
	seen := map[string]bool{}
	err := c.readable(filter, func(coll *collection, query bson.D, match predicate) {
		if coll == nil {
			return
		}
		for _, d := range coll.find(query, match, nil, 0, 0) {
			walk(d.fields, key, leafElements, func(v any) bool {
				switch v.(type) {
				case missing, bson.Undefined:
					return false
				}
				if k := keyOf(v); !seen[k] {
					seen[k] = true
					values = append(values, v)
				}
				return false
			})
		}
	})
	if err != nil {
		return nil, err
	}
	return doc("values", values), nil
}
