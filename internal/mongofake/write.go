package mongofake

import (
	"go.mongodb.org/mongo-driver/v2/bson"
)

var writeCommands = map[string]command{
	"insert":        {run: (*call).insert, fields: "documents ordered bypassDocumentValidation"},
	"update":        {run: (*call).update, fields: "updates ordered bypassDocumentValidation", refused: "let"},
	"delete":        {run: (*call).delete, fields: "deletes ordered", refused: "let"},
	"findAndModify": findAndModify,
	"findandmodify": findAndModify,
}

var findAndModify = command{
	run:     (*call).findAndModify,
	fields:  "query sort remove update new fields upsert bypassDocumentValidation arrayFilters",
	refused: "let hint collation",
}

// maxBatch is how many operations one write command may carry.
const maxBatch = 100000

// operations are the documents, updates or deletes of a write command, from a
// document sequence or from an array in its body.
func (c *call) operations(key string) ([]bson.Raw, *serverError) {
	list, ok := c.documents[key]
	if !ok {
		v, there := lookup(c.body, key)
		a, isArray := v.(bson.A)
		switch {
		case !there:
			return nil, fail(codeMissingField, "BSON field '%s.%s' is missing but a required field", c.name, key)
		case !isArray:
			return nil, fail(codeTypeMismatch, "BSON field '%s.%s' is the wrong type '%s', expected type 'array'", c.name, key, typeName(v))
		}
		for i, item := range a {
			d, ok := item.(bson.D)
			if !ok {
				return nil, fail(codeTypeMismatch, "BSON field '%s.%s.%d' is the wrong type '%s', expected type 'object'", c.name, key, i, typeName(item))
			}
			list = append(list, encode(d))
		}
	}
	if len(list) == 0 || len(list) > maxBatch {
		return nil, fail(codeInvalidLength, "Write batch sizes must be between 1 and %d. Got %d operations.", maxBatch, len(list))
	}
	return list, nil
}

// each runs operation after operation. An error ends an ordered batch and is
// skipped over in an unordered one (manual page "Bulk Write Operations").
func (c *call) each(n int, operation func(i int) *serverError) (bson.A, *serverError) {
	o := c.options()
	ordered := o.boolean("ordered", true)
	if o.err != nil {
		return nil, o.err
	}
	var failed bson.A
	for i := range n {
		err := c.fault.writeError(i)
		if err == nil {
			err = c.guarded(i, operation)
		}
		if err == nil {
			continue
		}
		failed = append(failed, err.writeError(i))
		if ordered {
			break
		}
	}
	return failed, nil
}

// guarded keeps one operation's panic from the others.
func (c *call) guarded(i int, operation func(i int) *serverError) (err *serverError) {
	defer func() {
		if p := recover(); p != nil {
			err = c.server.recovered(c.name, p)
		}
	}()
	return operation(i)
}

func withWriteErrors(reply bson.D, failed bson.A) bson.D {
	if failed != nil {
		reply = append(reply, bson.E{Key: "writeErrors", Value: failed})
	}
	return reply
}

func malformed(key string, i int, err error) *serverError {
	return fail(codeInvalidBSON, "%s.%d: %v", key, i, err)
}

func (c *call) insert() (bson.D, *serverError) {
	raws, err := c.operations("documents")
	if err != nil {
		return nil, err
	}
	docs := make([]bson.D, len(raws))
	for i, raw := range raws {
		var bad error
		if docs[i], bad = decode(raw); bad != nil {
			return nil, malformed("documents", i, bad)
		}
	}
	n := int32(0)
	failed, err := c.each(len(docs), func(i int) *serverError {
		d, err := newDocument(docs[i], raws[i], c.now)
		if err != nil {
			return err
		}
		err = c.server.catalog.write(c.namespace(), true, func(coll *collection) *serverError { return coll.insert(d) })
		if err == nil {
			n++
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return withWriteErrors(doc("n", n), failed), nil
}

var (
	updateFields  = fieldSet("q u multi upsert arrayFilters sort")
	updateRefused = fieldSet("c collation hint upsertSupplied sampleId")
	deleteFields  = fieldSet("q limit")
	deleteRefused = fieldSet("collation hint sampleId")
)

func checkOperation(of string, d bson.D, taken, refused map[string]bool) *serverError {
	for _, e := range d {
		switch {
		case taken[e.Key]:
		case !refused[e.Key]:
			return fail(codeUnknownField, "BSON field '%s.%s' is an unknown field.", of, e.Key)
		case !neutral(e):
			return unsupported("the option '%s' of an update or delete", e.Key)
		}
	}
	return nil
}

func (c *call) update() (bson.D, *serverError) {
	raws, err := c.operations("updates")
	if err != nil {
		return nil, err
	}
	ops := make([]bson.D, len(raws))
	for i, raw := range raws {
		var bad error
		if ops[i], bad = decode(raw); bad != nil {
			return nil, malformed("updates", i, bad)
		}
		if err := checkOperation("update.updates", ops[i], updateFields, updateRefused); err != nil {
			return nil, err
		}
		for _, key := range []string{"q", "u"} {
			if _, ok := lookup(ops[i], key); !ok {
				return nil, fail(codeMissingField, "BSON field 'update.updates.%s' is missing but a required field", key)
			}
		}
	}
	var matched, modified int32
	var upserted bson.A
	failed, err := c.each(len(ops), func(i int) *serverError {
		op, err := parseUpdate("update.updates", ops[i], "q", "u", raws[i])
		if err != nil {
			return err
		}
		r, err := c.apply(op)
		matched += r.matched
		modified += r.modified
		if r.inserted {
			matched++
			upserted = append(upserted, doc("index", int32(i), "_id", r.upserted))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	reply := doc("n", matched)
	if upserted != nil {
		reply = append(reply, bson.E{Key: "upserted", Value: upserted})
	}
	return withWriteErrors(append(reply, bson.E{Key: "nModified", Value: modified}), failed), nil
}

// parseUpdate reads one update, from an update command or a findAndModify.
func parseUpdate(of string, d bson.D, queryKey, updateKey string, raw bson.Raw) (updateOp, *serverError) {
	o := &options{of: of, d: d}
	op := updateOp{query: o.document(queryKey), multi: o.boolean("multi", false), upsert: o.boolean("upsert", false)}
	sort, filters := o.document("sort"), o.array("arrayFilters")
	if o.err != nil {
		return op, o.err
	}
	var err *serverError
	if op.match, err = compileQuery(op.query); err != nil {
		return op, err
	}
	if op.sort, err = parseSort(sort); err != nil {
		return op, err
	}
	u, _ := lookup(d, updateKey)
	var rawUpdate bson.Raw
	if raw != nil {
		rawUpdate, _ = raw.Lookup(updateKey).DocumentOK()
	}
	if op.up, err = compileUpdate(u, rawUpdate, filters); err != nil {
		return op, err
	}
	if op.multi {
		if op.up.replacement != nil {
			return op, fail(codeFailedToParse, "multi update is not supported for replacement-style update")
		}
		if len(op.sort) > 0 {
			return op, fail(codeFailedToParse, "Cannot specify sort with multi=true")
		}
	}
	return op, nil
}

func (c *call) apply(op updateOp) (r updateResult, err *serverError) {
	err = c.server.catalog.write(c.namespace(), op.upsert, func(coll *collection) *serverError {
		if coll == nil {
			return nil
		}
		var err *serverError
		r, err = coll.update(op, c.now)
		return err
	})
	return r, err
}

func (c *call) delete() (bson.D, *serverError) {
	raws, err := c.operations("deletes")
	if err != nil {
		return nil, err
	}
	ops := make([]bson.D, len(raws))
	limits := make([]int64, len(raws))
	for i, raw := range raws {
		var bad error
		if ops[i], bad = decode(raw); bad != nil {
			return nil, malformed("deletes", i, bad)
		}
		if err := checkOperation("delete.deletes", ops[i], deleteFields, deleteRefused); err != nil {
			return nil, err
		}
		limit, _ := lookup(ops[i], "limit")
		var ok bool
		if limits[i], ok = integer(limit); !ok || limits[i] != 0 && limits[i] != 1 {
			return nil, fail(codeFailedToParse, "The limit field in delete objects must be 0 or 1. Got %s", shellText(limit))
		}
	}
	n := int32(0)
	failed, err := c.each(len(ops), func(i int) *serverError {
		o := &options{of: "delete.deletes", d: ops[i]}
		query := o.document("q")
		if o.err != nil {
			return o.err
		}
		match, err := compileQuery(query)
		if err != nil {
			return err
		}
		return c.server.catalog.write(c.namespace(), false, func(coll *collection) *serverError {
			if coll == nil {
				return nil
			}
			for _, d := range coll.find(query, match, nil, 0, limits[i]) {
				coll.remove(d)
				n++
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return withWriteErrors(doc("n", n), failed), nil
}

func (c *call) findAndModify() (bson.D, *serverError) {
	o := c.options()
	remove, wantNew, upsert := o.boolean("remove", false), o.boolean("new", false), o.boolean("upsert", false)
	fields := o.document("fields")
	u, updating := lookup(c.body, "update")
	if o.err != nil {
		return nil, o.err
	}
	project, err := compileProjection(fields)
	if err != nil {
		return nil, err
	}
	if remove {
		if updating || upsert || wantNew {
			return nil, fail(codeFailedToParse, "Cannot specify an update, upsert=true or new=true along with remove=true")
		}
		return c.findAndRemove(project)
	}
	if !updating || u == nil {
		return nil, fail(codeFailedToParse, "Either an update or remove=true must be specified")
	}
	op, err := parseUpdate(c.name, c.body, "query", "update", nil)
	if err != nil {
		return nil, err
	}
	r, err := c.apply(op)
	if err != nil {
		return nil, err
	}
	last := doc("n", r.matched, "updatedExisting", r.matched > 0)
	if r.inserted {
		last = doc("n", int32(1), "updatedExisting", false, "upserted", r.upserted)
	}
	answer := r.before
	if wantNew {
		answer = r.after
	}
	value, err := projected(answer, project)
	if err != nil {
		return nil, err
	}
	return doc("lastErrorObject", last, "value", value), nil
}

func (c *call) findAndRemove(project projection) (bson.D, *serverError) {
	o := c.options()
	query, spec := o.document("query"), o.document("sort")
	if o.err != nil {
		return nil, o.err
	}
	match, err := compileQuery(query)
	if err != nil {
		return nil, err
	}
	sort, err := parseSort(spec)
	if err != nil {
		return nil, err
	}
	var removed *document
	err = c.server.catalog.write(c.namespace(), false, func(coll *collection) *serverError {
		if coll == nil {
			return nil
		}
		for _, d := range coll.find(query, match, sort, 0, 1) {
			coll.remove(d)
			removed = d
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	value, err := projected(removed, project)
	if err != nil {
		return nil, err
	}
	n := int32(0)
	if removed != nil {
		n = 1
	}
	return doc("lastErrorObject", doc("n", n), "value", value), nil
}

func projected(d *document, project projection) (any, *serverError) {
	if d == nil {
		return nil, nil
	}
	if project == nil {
		return d.raw, nil
	}
	return project(d.fields)
}
