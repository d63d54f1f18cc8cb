package mongofake

import (
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// projection makes the document that a find or a $project answers.
type projection = func(bson.D) (bson.D, *serverError)

// projectionNode is what a projection says about one field.
type projectionNode struct {
	keep     bool // an included or excluded field, by the mode of the whole
	compute  expression
	slice    func(bson.A) bson.A
	first    valuePredicate // $elemMatch
	children []*projectionField
}

type projectionField struct {
	name string
	projectionNode
}

func (n *projectionNode) child(name string) *projectionField {
	i := slices.IndexFunc(n.children, func(f *projectionField) bool { return f.name == name })
	if i < 0 {
		return nil
	}
	return n.children[i]
}

// projectionMode is whether fields are named to be kept or to be left out.
type projectionMode int

const (
	undecided projectionMode = iota
	including
	excluding
)

type projectionParser struct {
	mode projectionMode
	id   projectionMode // what is said about _id, which doesn't decide the mode
	root projectionNode
	find bool
}

// compileProjection reads a find's projection (manual page "Project Fields to
// Return from Query"); nil if there is nothing to do.
func compileProjection(spec bson.D) (projection, *serverError) {
	return compileProjectionIn(spec, true)
}

func compileProjectionIn(spec bson.D, find bool) (projection, *serverError) {
	if len(spec) == 0 {
		return nil, nil
	}
	p := &projectionParser{find: find}
	for _, e := range spec {
		if e.Key == "_id" {
			if on, ok := flag(e.Value); ok {
				if p.id = excluding; on {
					p.id = including
				}
				continue
			}
		}
		if err := p.field(&p.root, e.Key, e.Value); err != nil {
			return nil, err
		}
	}
	if p.mode == undecided {
		p.mode = excluding
		if p.id == including {
			p.mode = including
		} else if p.id == undecided && slices.ContainsFunc(p.root.children, func(f *projectionField) bool { return f.compute != nil }) {
			p.mode = including
		}
	}
	keepID := p.id != excluding
	if p.mode == including && keepID && p.root.child("_id") == nil || p.mode == excluding && !keepID {
		p.root.children = append(p.root.children, &projectionField{name: "_id", projectionNode: projectionNode{keep: true}})
	}
	return func(d bson.D) (bson.D, *serverError) {
		return p.document(&p.root, d, d), nil
	}, nil
}

// flag reads the values that include or exclude a field.
func flag(v any) (on, ok bool) {
	switch v.(type) {
	case bool, int32, int64, float64:
		return truthy(v), true
	}
	return false, false
}

func (p *projectionParser) decide(mode projectionMode, path string) *serverError {
	if p.mode == undecided {
		p.mode = mode
	}
	if p.mode == mode {
		return nil
	}
	if mode == including {
		return fail(31253, "Cannot do inclusion on field %s in exclusion projection", path)
	}
	return fail(31254, "Cannot do exclusion on field %s in inclusion projection", path)
}

func (p *projectionParser) field(at *projectionNode, path string, v any) *serverError {
	if strings.HasSuffix(path, ".$") {
		return unsupported("the positional projection %s", path)
	}
	for _, segment := range strings.Split(path, ".") {
		if segment == "" || strings.HasPrefix(segment, "$") {
			return fail(16410, "FieldPath field names may not be empty or start with '$': '%s'", path)
		}
		if at.keep || at.compute != nil || at.slice != nil || at.first != nil {
			return fail(31249, "Path collision at %s", path)
		}
		next := at.child(segment)
		if next == nil {
			next = &projectionField{name: segment}
			at.children = append(at.children, next)
		}
		at = &next.projectionNode
	}
	if at.keep || at.compute != nil || at.slice != nil || at.first != nil || len(at.children) > 0 {
		return fail(31250, "Path collision at %s", path)
	}
	if on, ok := flag(v); ok {
		at.keep = true
		if on {
			return p.decide(including, path)
		}
		return p.decide(excluding, path)
	}
	if d, ok := v.(bson.D); ok {
		if len(d) == 0 {
			return fail(51270, "An empty sub-projection is not a valid value. Found empty object at path %s", path)
		}
		if !strings.HasPrefix(d[0].Key, "$") {
			for _, e := range d {
				if err := p.field(at, e.Key, e.Value); err != nil {
					return err
				}
			}
			return nil
		}
		if done, err := p.operator(at, path, d); done || err != nil {
			return err
		}
	}
	x, err := compileExpression(v)
	if err != nil {
		return err
	}
	at.compute = x
	return p.decide(including, path)
}

// operator reads the two operators that only a find's projection has.
func (p *projectionParser) operator(at *projectionNode, path string, d bson.D) (done bool, err *serverError) {
	if !p.find || len(d) != 1 {
		return false, nil
	}
	switch d[0].Key {
	case "$elemMatch":
		if strings.Contains(path, ".") {
			return true, fail(31275, "Cannot use $elemMatch projection on a nested field.")
		}
		at.first, err = compileElement(d[0].Value)
		if err != nil {
			return true, err
		}
		return true, p.decide(including, path)
	case "$slice":
		at.slice, err = compileSlice(d[0].Value)
		return true, err
	}
	return false, nil
}

func compileSlice(v any) (func(bson.A) bson.A, *serverError) {
	skip, limit := int64(0), int64(0)
	var ok1, ok2 bool
	if list, isList := v.(bson.A); isList {
		if len(list) != 2 {
			return nil, fail(28667, "$slice takes 2 arguments here")
		}
		skip, ok1 = integer(list[0])
		limit, ok2 = integer(list[1])
		if !ok1 || !ok2 || limit <= 0 {
			return nil, fail(28724, "First argument to $slice must be a number and second a positive one")
		}
	} else {
		n, ok := integer(v)
		if !ok {
			return nil, fail(28667, "Invalid $slice syntax. The given syntax did not match the find() or the expression syntax")
		}
		if limit = n; n < 0 {
			skip, limit = n, -n
		}
	}
	return func(a bson.A) bson.A {
		size := int64(len(a))
		from := min(skip, size)
		if skip < 0 {
			from = max(0, size+skip)
		}
		return a[from:min(size, from+min(limit, size))]
	}, nil
}

// document projects d; root is the whole document, for expressions.
func (p *projectionParser) document(n *projectionNode, d, root bson.D) bson.D {
	out := make(bson.D, 0, len(d))
	for _, e := range d {
		f := n.child(e.Key)
		switch {
		case f == nil:
			if p.mode == excluding {
				out = append(out, e)
			}
		case f.compute != nil:
			// Appended below: a computed field keeps no place.
		case f.keep:
			if p.mode == including {
				out = append(out, e)
			}
		case f.slice != nil:
			v := e.Value
			if a, ok := v.(bson.A); ok {
				v = f.slice(a)
			}
			out = append(out, bson.E{Key: e.Key, Value: v})
		case f.first != nil:
			a, _ := e.Value.(bson.A)
			if i := slices.IndexFunc(a, f.first); i >= 0 {
				out = append(out, bson.E{Key: e.Key, Value: bson.A{a[i]}})
			}
		default:
			if v, ok := p.value(&f.projectionNode, e.Value, root); ok {
				out = append(out, bson.E{Key: e.Key, Value: v})
			}
		}
	}
	for _, f := range n.children {
		if f.compute != nil {
			if v := f.compute(root); v != any(missing{}) {
				out = append(out, bson.E{Key: f.name, Value: v})
			}
			continue
		}
		if _, there := lookup(d, f.name); !there && f.computes() {
			out = append(out, bson.E{Key: f.name, Value: p.document(&f.projectionNode, nil, root)})
		}
	}
	return out
}

// value projects what is inside a field, in each element of an array.
func (p *projectionParser) value(n *projectionNode, v any, root bson.D) (any, bool) {
	switch v := v.(type) {
	case bson.D:
		return p.document(n, v, root), true
	case bson.A:
		out := bson.A{}
		for _, e := range v {
			if projected, ok := p.value(n, e, root); ok {
				out = append(out, projected)
			}
		}
		return out, true
	}
	if n.computes() {
		return p.document(n, nil, root), true
	}
	return v, p.mode == excluding
}

func (n *projectionNode) computes() bool {
	return n.compute != nil || slices.ContainsFunc(n.children, func(f *projectionField) bool { return f.computes() })
}
