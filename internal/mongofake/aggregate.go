package mongofake

import (
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// stage is one compiled stage of a pipeline. It changes no document that it is
// given.
type stage func(in []bson.D) []bson.D

// blocking stages read everything before they answer anything, so that their
// result no longer depends on the collection.
var blocking = fieldSet("$sort $group $count $facet $sortByCount")

// stageCompiler finds the compiler of a stage. It is a function because $facet
// compiles pipelines, so that a table would refer to itself.
func stageCompiler(name string) func(any) (stage, *serverError) {
	switch name {
	case "$match":
		return compileMatch
	case "$sort":
		return compileSortStage
	case "$limit":
		return compileLimit
	case "$skip":
		return compileSkip
	case "$project":
		return compileProject
	case "$unset":
		return compileUnset
	case "$addFields", "$set":
		return compileAddFields
	case "$group":
		return compileGroup
	case "$count":
		return compileCount
	case "$unwind":
		return compileUnwind
	case "$replaceRoot":
		return compileReplaceRoot
	case "$sortByCount":
		return compileSortByCount
	case "$facet":
		return compileFacet
	case "$replaceWith":
		return compileReplaceWith
	}
	return nil
}

// parseStage takes the one field of a stage.
func parseStage(v any) (bson.E, *serverError) {
	d, ok := v.(bson.D)
	if !ok {
		return bson.E{}, fail(codeTypeMismatch, "Each element of the 'pipeline' array must be an object")
	}
	if len(d) != 1 {
		return bson.E{}, fail(40323, "A pipeline stage specification object must contain exactly one field.")
	}
	return d[0], nil
}

func compilePipeline(pipeline bson.A) ([]stage, *serverError) {
	stages := make([]stage, len(pipeline))
	for i, v := range pipeline {
		e, err := parseStage(v)
		if err != nil {
			return nil, err
		}
		compile := stageCompiler(e.Key)
		if compile == nil {
			return nil, fail(codeUnknownStage, "Unrecognized pipeline stage name: '%s' (or one that mongofake doesn't support)", e.Key)
		}
		if stages[i], err = compile(e.Value); err != nil {
			return nil, err
		}
	}
	return stages, nil
}

// pushedDown is the beginning of a pipeline that is a find.
type pushedDown struct {
	filter bson.D
	sort   []column
	limit  int64
	stages int // how many it stands for
}

func pushDown(pipeline bson.A) (p pushedDown) {
	var filters bson.A
	for ; p.stages < len(pipeline); p.stages++ {
		e, _ := parseStage(pipeline[p.stages])
		switch {
		case e.Key == "$match" && p.sort == nil:
			filters = append(filters, e.Value)
			continue
		case e.Key == "$sort" && p.sort == nil:
			spec, _ := e.Value.(bson.D)
			p.sort, _ = parseSort(spec)
			continue
		case e.Key == "$limit":
			p.limit, _ = integer(e.Value)
			p.stages++
		}
		break
	}
	switch len(filters) {
	case 0:
	case 1:
		p.filter, _ = filters[0].(bson.D)
	default:
		p.filter = bson.D{{Key: "$and", Value: filters}}
	}
	return p
}

func (c *call) aggregate() (bson.D, *serverError) {
	o := c.options()
	pipeline, cursorOptions := o.array("pipeline"), o.document("cursor")
	size := o.cursorSize()
	if o.err != nil {
		return nil, o.err
	}
	if c.coll == "" {
		return nil, unsupported("aggregations on a whole database")
	}
	if cursorOptions == nil {
		return nil, fail(codeFailedToParse, "The 'cursor' option is required, except for aggregate with the explain argument")
	}
	stages, err := compilePipeline(pipeline)
	if err != nil {
		return nil, err
	}
	p := pushDown(pipeline)
	cur := &cursor{ns: c.namespace()}
	err = c.readable(p.filter, func(coll *collection, query bson.D, match predicate) {
		if coll != nil {
			cur.docs, cur.life = coll.find(query, match, p.sort, 0, p.limit), coll.life
		}
	})
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(pipeline, func(v any) bool { return blocking[v.(bson.D)[0].Key] }) {
		cur.life = nil
	}
	if rest := stages[p.stages:]; len(rest) > 0 {
		docs := make([]bson.D, len(cur.docs))
		for i, d := range cur.docs {
			docs[i] = d.fields
		}
		for _, run := range rest {
			docs = run(docs)
		}
		cur.docs = make([]*document, len(docs))
		for i, d := range docs {
			cur.docs[i] = &document{fields: d, raw: encode(d)}
			if len(cur.docs[i].raw) > maxDocument {
				return nil, fail(codeDocumentTooLarge, "BSONObj size: %d is invalid. Size must be between 0 and %d(16MB)", len(cur.docs[i].raw), maxDocument)
			}
		}
	}
	return c.server.cursors.first(cur, size, false, c.now)
}

func compileMatch(v any) (stage, *serverError) {
	query, ok := v.(bson.D)
	if !ok {
		return nil, fail(15959, "the match filter must be an expression in an object")
	}
	match, err := compileQuery(query)
	if err != nil {
		return nil, err
	}
	return func(in []bson.D) (out []bson.D) {
		for _, d := range in {
			if match(d) {
				out = append(out, d)
			}
		}
		return out
	}, nil
}

func compileSortStage(v any) (stage, *serverError) {
	spec, ok := v.(bson.D)
	if !ok {
		return nil, fail(15973, "the $sort key specification must be an object")
	}
	if len(spec) == 0 {
		return nil, fail(15976, "$sort stage must have at least one sort key")
	}
	columns, err := parseSort(spec)
	if err != nil {
		return nil, err
	}
	return func(in []bson.D) []bson.D {
		docs := make([]*document, len(in))
		for i, d := range in {
			docs[i] = &document{fields: d}
		}
		sortDocuments(docs, columns)
		out := make([]bson.D, len(docs))
		for i, d := range docs {
			out[i] = d.fields
		}
		return out
	}, nil
}

func compileLimit(v any) (stage, *serverError) {
	n, ok := integer(v)
	if !ok || n < 0 {
		return nil, fail(5107201, "invalid argument to $limit stage: Expected a non-negative number in: $limit: %s", shellText(v))
	}
	if n == 0 {
		return nil, fail(15958, "the limit must be positive")
	}
	return func(in []bson.D) []bson.D { return in[:min(n, int64(len(in)))] }, nil
}

func compileSkip(v any) (stage, *serverError) {
	n, ok := integer(v)
	if !ok || n < 0 {
		return nil, fail(5107200, "invalid argument to $skip stage: Expected a non-negative number in: $skip: %s", shellText(v))
	}
	return func(in []bson.D) []bson.D { return in[min(n, int64(len(in))):] }, nil
}

func compileProject(v any) (stage, *serverError) {
	spec, ok := v.(bson.D)
	if !ok {
		return nil, fail(15969, "$project specification must be an object")
	}
	if len(spec) == 0 {
		return nil, fail(51272, "Invalid $project :: caused by :: projection specification must have at least one field")
	}
	project, err := compileProjectionIn(spec, false)
	if err != nil {
		return nil, err
	}
	return mapped(func(d bson.D) bson.D {
		out, err := project(d)
		if err != nil {
			panic(err)
		}
		return out
	}), nil
}

func mapped(f func(bson.D) bson.D) stage {
	return func(in []bson.D) []bson.D {
		out := make([]bson.D, len(in))
		for i, d := range in {
			out[i] = f(d)
		}
		return out
	}
}

func compileUnset(v any) (stage, *serverError) {
	list, ok := v.(bson.A)
	if !ok {
		list = bson.A{v}
	}
	spec := bson.D{}
	for _, item := range list {
		name, ok := item.(string)
		if !ok || name == "" {
			return nil, fail(31120, "$unset specification must be a string or an array containing only string values")
		}
		spec = append(spec, bson.E{Key: name, Value: int32(0)})
	}
	if len(spec) == 0 {
		return nil, fail(31119, "$unset specification must be a string or an array with at least one field")
	}
	return compileProject(spec)
}

// compileAddFields sets fields at their places, new ones at the end. All see
// the document as it came.
func compileAddFields(v any) (stage, *serverError) {
	spec, ok := v.(bson.D)
	if !ok || len(spec) == 0 {
		return nil, fail(40272, "$addFields specification stage must be an object with at least one field")
	}
	type added struct {
		path  []string
		value expression
	}
	var fields []added
	for _, e := range spec {
		if err := checkPath(e.Key); err != nil {
			return nil, err
		}
		x, err := compileExpression(e.Value)
		if err != nil {
			return nil, err
		}
		if d, ok := e.Value.(bson.D); ok && (len(d) == 0 || !strings.HasPrefix(d[0].Key, "$")) {
			return nil, unsupported("$addFields of a nested document; write the path with dots")
		}
		fields = append(fields, added{strings.Split(e.Key, "."), x})
	}
	return mapped(func(d bson.D) bson.D {
		var out any = cloneDocument(d)
		for _, f := range fields {
			for i := range f.path {
				if _, ok := get(out, f.path[:i]).(bson.A); ok {
					panic(unsupported("$addFields inside an array"))
				}
			}
			value := f.value(d)
			if value == any(missing{}) {
				out = unset(out, f.path)
				continue
			}
			out = overwrite(out, f.path, clone(value))
		}
		return out.(bson.D)
	}), nil
}

// overwrite is put, but makes a document of whatever is in the way.
func overwrite(container any, path []string, value any) any {
	if len(path) == 0 {
		return value
	}
	d, ok := container.(bson.D)
	if !ok {
		d = bson.D{}
	}
	for i := range d {
		if d[i].Key == path[0] {
			d[i].Value = overwrite(d[i].Value, path[1:], value)
			return d
		}
	}
	return append(d, bson.E{Key: path[0], Value: overwrite(nil, path[1:], value)})
}

func compileCount(v any) (stage, *serverError) {
	name, ok := v.(string)
	if !ok || name == "" || strings.HasPrefix(name, "$") || strings.Contains(name, ".") {
		return nil, fail(40156, "the count field must be a non-empty string without '$' at its start and without '.'")
	}
	return func(in []bson.D) []bson.D {
		if len(in) == 0 {
			return nil
		}
		return []bson.D{{{Key: name, Value: asCount(int64(len(in)))}}}
	}, nil
}

func compileUnwind(v any) (stage, *serverError) {
	o := &options{of: "$unwind", d: bson.D{{Key: "path", Value: v}}}
	if d, ok := v.(bson.D); ok {
		o.d = d
		for _, e := range d {
			if e.Key != "path" && e.Key != "preserveNullAndEmptyArrays" && e.Key != "includeArrayIndex" {
				return nil, fail(28811, "unrecognized option to $unwind stage: %s", e.Key)
			}
		}
	}
	path, preserve, indexField := o.text("path"), o.boolean("preserveNullAndEmptyArrays", false), ""
	if _, ok := lookup(o.d, "includeArrayIndex"); ok {
		indexField = o.text("includeArrayIndex")
	}
	if o.err != nil {
		return nil, o.err
	}
	if len(path) < 2 || path[0] != '$' || path[1] == '$' {
		return nil, fail(28818, "path option to $unwind stage should be prefixed with a '$': %s", path)
	}
	if strings.HasPrefix(indexField, "$") || strings.Contains(indexField, ".") {
		return nil, fail(28822, "includeArrayIndex option to $unwind stage should be a plain field name: %s", indexField)
	}
	segments := strings.Split(path[1:], ".")
	return func(in []bson.D) (out []bson.D) {
		for _, d := range in {
			v := fieldAt(d, path[1:])
			list, ok := v.(bson.A)
			if !ok || len(list) == 0 {
				single := !ok && !nullish(v)
				if !single && !preserve {
					continue
				}
				if ok {
					d = unset(cloneDocument(d), segments).(bson.D)
				}
				if indexField != "" {
					d = overwrite(cloneDocument(d), []string{indexField}, nil).(bson.D)
				}
				out = append(out, d)
				continue
			}
			for i, e := range list {
				one := overwrite(cloneDocument(d), segments, e).(bson.D)
				if indexField != "" {
					one = overwrite(one, []string{indexField}, int64(i)).(bson.D)
				}
				out = append(out, one)
			}
		}
		return out
	}, nil
}

func compileReplaceRoot(v any) (stage, *serverError) {
	d, ok := v.(bson.D)
	if !ok || len(d) != 1 || d[0].Key != "newRoot" {
		return nil, fail(40231, "$replaceRoot takes an object with the field newRoot")
	}
	return compileReplaceWith(d[0].Value)
}

func compileReplaceWith(v any) (stage, *serverError) {
	x, err := compileExpression(v)
	if err != nil {
		return nil, err
	}
	return mapped(func(d bson.D) bson.D {
		root, ok := x(d).(bson.D)
		if !ok {
			panic(fail(40228, "'newRoot' expression must evaluate to an object, but resulting value was of type: %s", typeName(x(d))))
		}
		return root
	}), nil
}

func compileSortByCount(v any) (stage, *serverError) {
	if s, ok := v.(string); ok && !strings.HasPrefix(s, "$") {
		return nil, fail(40148, "the sortByCount field must be a path with a '$' or an expression")
	}
	stages, err := compilePipeline(bson.A{
		doc("$group", doc("_id", v, "count", doc("$sum", int32(1)))),
		doc("$sort", doc("count", int32(-1))),
	})
	if err != nil {
		return nil, err
	}
	return func(in []bson.D) []bson.D { return stages[1](stages[0](in)) }, nil
}

func compileFacet(v any) (stage, *serverError) {
	spec, ok := v.(bson.D)
	if !ok || len(spec) == 0 {
		return nil, fail(40169, "the $facet specification must be a non-empty object")
	}
	pipelines := make([][]stage, len(spec))
	for i, e := range spec {
		list, ok := e.Value.(bson.A)
		if !ok {
			return nil, fail(40170, "arguments to $facet must be arrays, %s is type %s", e.Key, typeName(e.Value))
		}
		for _, s := range list {
			if inner, err := parseStage(s); err == nil && inner.Key == "$facet" {
				return nil, fail(40600, "$facet is not allowed to be used within a $facet stage")
			}
		}
		var err *serverError
		if pipelines[i], err = compilePipeline(list); err != nil {
			return nil, err
		}
	}
	return func(in []bson.D) []bson.D {
		out := make(bson.D, len(spec))
		for i, stages := range pipelines {
			docs := in
			for _, run := range stages {
				docs = run(docs)
			}
			list := make(bson.A, len(docs))
			for j, d := range docs {
				list[j] = d
			}
			out[i] = bson.E{Key: spec[i].Key, Value: list}
		}
		return []bson.D{out}
	}, nil
}
