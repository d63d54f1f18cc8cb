package mongofake

import (
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

var (
	indexFields  = fieldSet("key name v unique sparse partialFilterExpression background ns")
	indexRefused = fieldSet("expireAfterSeconds hidden collation weights default_language language_override textIndexVersion 2dsphereIndexVersion bits min max bucketSize wildcardProjection storageEngine prepareUnique clustered")
)

// maxIndexes is how many indexes a collection may have, _id's among them.
const maxIndexes = 64

// parseIndex reads one entry of createIndexes; nil for the index on _id, which
// is always there.
func parseIndex(spec bson.D) (*index, *serverError) {
	for _, e := range spec {
		switch {
		case indexFields[e.Key]:
		case !indexRefused[e.Key]:
			return nil, fail(codeInvalidIndexOption, "Error in specification %s :: caused by :: The field '%s' is not valid for an index specification. Specification: %s", shellText(spec), e.Key, shellText(spec))
		case !neutral(e) || e.Key == "expireAfterSeconds":
			return nil, unsupported("the index option '%s'", e.Key)
		}
	}
	o := &options{of: "createIndexes.indexes", d: spec}
	x := &index{name: o.text("name"), pattern: o.document("key"), unique: o.boolean("unique", false), sparse: o.boolean("sparse", false)}
	x.partial = o.document("partialFilterExpression")
	if o.err != nil {
		return nil, o.err
	}
	if len(x.pattern) == 0 {
		return nil, fail(codeCannotCreateIndex, "Error in specification %s :: caused by :: Index keys cannot be empty.", shellText(spec))
	}
	if x.name == "" || x.name == "*" {
		return nil, fail(codeCannotCreateIndex, "Error in specification %s :: caused by :: The index name is not valid", shellText(spec))
	}
	for _, e := range x.pattern {
		if kind, ok := e.Value.(string); ok {
			return nil, unsupported("indexes of type %q", kind)
		}
		n, isNumber := e.Value.(float64)
		if i, ok := integer(e.Value); ok {
			n, isNumber = float64(i), true
		}
		switch {
		case !isNumber || n == 0 || n != n:
			return nil, fail(codeCannotCreateIndex, "Values in v:2 index key pattern cannot be of type %s. Only numbers > 0, numbers < 0, and strings are allowed.", typeName(e.Value))
		case e.Key == "" || slices.Contains(strings.Split(e.Key, "."), ""):
			return nil, fail(codeCannotCreateIndex, "Index keys cannot contain an empty field")
		case strings.Contains(e.Key, "$"):
			return nil, unsupported("wildcard indexes, or fields with a $")
		}
		x.columns = append(x.columns, column{path: e.Key, descending: n < 0})
	}
	if len(x.pattern) == 1 && x.pattern[0].Key == "_id" && !x.columns[0].descending {
		if x.sparse || x.partial != nil {
			return nil, fail(codeInvalidIndexOption, "The field 'sparse' or 'partialFilterExpression' is not valid for an _id index specification.")
		}
		return nil, nil
	}
	if x.partial == nil {
		return x, nil
	}
	if x.sparse {
		return nil, fail(codeCannotCreateIndex, "cannot mix \"partialFilterExpression\" and \"sparse\" options")
	}
	if err := checkPartial(x.partial); err != nil {
		return nil, err
	}
	var err *serverError
	x.covers, err = compileQuery(x.partial)
	return x, err
}

// checkPartial allows in a partial filter what manual page "Partial Indexes"
// allows.
func checkPartial(filter bson.D) *serverError {
	for _, e := range filter {
		switch e.Key {
		case "$and", "$or":
			list, _ := e.Value.(bson.A)
			for _, item := range list {
				if d, ok := item.(bson.D); ok {
					if err := checkPartial(d); err != nil {
						return err
					}
				}
			}
			continue
		}
		operators, ok := isOperators(e.Value)
		if !ok && !strings.HasPrefix(e.Key, "$") {
			continue
		}
		for _, op := range operators {
			switch op.Key {
			case "$eq", "$gt", "$gte", "$lt", "$lte", "$type", "$in":
				continue
			case "$exists":
				if truthy(op.Value) {
					continue
				}
			}
			return fail(codeCannotCreateIndex, "Expression not supported in partial index: %s %s", e.Key, op.Key)
		}
		if strings.HasPrefix(e.Key, "$") {
			return fail(codeCannotCreateIndex, "Expression not supported in partial index: %s", e.Key)
		}
	}
	return nil
}

func (c *call) createIndexes() (bson.D, *serverError) {
	o := c.options()
	specs := o.array("indexes")
	if o.err != nil {
		return nil, o.err
	}
	if len(specs) == 0 {
		return nil, fail(codeBadValue, "Must specify at least one index to create")
	}
	var wanted []*index
	for _, v := range specs {
		spec, ok := v.(bson.D)
		if !ok {
			return nil, fail(codeTypeMismatch, "The elements of the 'indexes' array must be objects, but got %s", typeName(v))
		}
		x, err := parseIndex(spec)
		if err != nil {
			return nil, err
		}
		if x != nil {
			wanted = append(wanted, x)
		}
	}
	created := false
	err := c.server.catalog.write(c.namespace(), false, func(coll *collection) *serverError {
		created = coll == nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	var before, after int
	err = c.server.catalog.write(c.namespace(), true, func(coll *collection) *serverError {
		before = len(coll.indexes) + 1
		kept := slices.Clone(coll.indexes)
		for _, x := range wanted {
			if err := coll.declare(x); err != nil {
				coll.indexes = kept // all of them or none
				return err
			}
		}
		after = len(coll.indexes) + 1
		return nil
	})
	if err != nil {
		return nil, err
	}
	reply := doc("numIndexesBefore", int32(before), "numIndexesAfter", int32(after), "createdCollectionAutomatically", created)
	if before == after {
		reply = append(reply, bson.E{Key: "note", Value: "all indexes already exist"})
	}
	return reply, nil
}

// declare adds x, unless it is there already or in conflict with one that is.
func (c *collection) declare(x *index) *serverError {
	if x.name == "_id_" {
		return fail(codeIndexKeySpecsConflict, "The index name '_id_' is reserved for the _id index")
	}
	for _, old := range c.indexes {
		same := old.sameSpec(x)
		switch {
		case old.name == x.name && same:
			return nil
		case old.name == x.name:
			return fail(codeIndexKeySpecsConflict, "An existing index has the same name as the requested index. When index names are not specified, they are auto generated and can cause conflicts. Please refer to our documentation. Requested index: %s, existing index: %s", shellText(x.describe()), shellText(old.describe()))
		case same:
			return fail(codeIndexOptionsConflict, "Index already exists with a different name: %s", old.name)
		}
	}
	if len(c.indexes)+1 >= maxIndexes {
		return fail(codeCannotCreateIndex, "add index fails, too many indexes for %s key:%s", c.ns, shellText(x.pattern))
	}
	return c.addIndex(x)
}

func (c *call) listIndexes() (bson.D, *serverError) {
	o := c.options()
	size := o.cursorSize()
	if o.err != nil {
		return nil, o.err
	}
	cur := &cursor{ns: c.namespace()}
	err := c.server.catalog.write(c.namespace(), false, func(coll *collection) *serverError {
		if coll == nil {
			return fail(codeNamespaceNotFound, "ns does not exist: %s", c.namespace())
		}
		all := []bson.D{doc("v", int32(2), "key", doc("_id", int32(1)), "name", "_id_")}
		for _, x := range coll.indexes {
			all = append(all, x.describe())
		}
		for _, d := range all {
			cur.docs = append(cur.docs, &document{fields: d, raw: encode(d)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c.server.cursors.first(cur, size, false, c.now)
}

func (c *call) dropIndexes() (bson.D, *serverError) {
	v, ok := lookup(c.body, "index")
	if !ok {
		return nil, fail(codeMissingField, "BSON field 'dropIndexes.index' is missing but a required field")
	}
	names := bson.A{v}
	if list, ok := v.(bson.A); ok {
		names = list
	}
	var was int
	err := c.server.catalog.write(c.namespace(), false, func(coll *collection) *serverError {
		if coll == nil {
			return fail(codeNamespaceNotFound, "ns not found %s", c.namespace())
		}
		was = len(coll.indexes) + 1
		left := slices.Clone(coll.indexes)
		for _, name := range names {
			var err *serverError
			if left, err = withoutIndex(left, name); err != nil {
				return err
			}
		}
		coll.indexes = left
		return nil
	})
	if err != nil {
		return nil, err
	}
	return doc("nIndexesWas", int32(was)), nil
}

// withoutIndex takes a name, "*" or a key pattern.
func withoutIndex(list []*index, which any) ([]*index, *serverError) {
	var matches func(*index) bool
	switch w := which.(type) {
	case string:
		if w == "*" {
			return nil, nil
		}
		if w == "_id_" {
			return nil, fail(codeInvalidOptions, "cannot drop _id index")
		}
		matches = func(x *index) bool { return x.name == w }
	case bson.D:
		if keyOf(w) == keyOf(doc("_id", int32(1))) {
			return nil, fail(codeInvalidOptions, "cannot drop _id index")
		}
		matches = func(x *index) bool { return keyOf(x.pattern) == keyOf(w) }
	default:
		return nil, fail(codeTypeMismatch, "BSON field 'dropIndexes.index' is the wrong type '%s', expected types '[string, object]'", typeName(which))
	}
	i := slices.IndexFunc(list, matches)
	if i < 0 {
		return nil, fail(codeIndexNotFound, "index not found with name or key [%s]", shellText(which))
	}
	return slices.Delete(list, i, i+1), nil
}
