package api

import (
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"outflow/store"
)

// moment reads which moment of a resource's past the request asks for; nil for
// the present.
func (x *exchange) moment() (*store.Moment, error) {
	p := &params{query: x.query}
	var m *store.Moment
	if p.query.Has("version") {
		n, err := strconv.ParseInt(p.query.Get("version"), 10, 64)
		if err != nil || n < 1 {
			p.refuse("version", "must be an integer of at least 1")
		}
		m = &store.Moment{Version: n}
	}
	if t := p.instant("as_of"); t != nil {
		if m != nil {
			p.refuse("as_of", "must not be given together with version")
		}
		m = &store.Moment{Time: *t}
	}
	return m, p.err()
}

// find returns the resource as the request wants it: as it is, or as it was.
func (e *entity[T, In]) find(x *exchange) (t T, err error) {
	id, err := x.id()
	if err != nil {
		return t, err
	}
	m, err := x.moment()
	switch {
	case err != nil:
		return t, err
	case m != nil:
		return e.past(x.r.Context(), id, *m)
	}
	return e.get(x.r.Context(), id)
}

// past documents the moments that a GET may ask for.
func (d *entityDocs) past(op *huma.Operation) {
	op.Parameters = append(op.Parameters,
		inQuery("version", "The version to return, instead of the present one. It is a 404 if there is none such, or if that is the one that deleted the "+d.one+".",
			&huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: new(1.0)}),
		inQuery("as_of", "Return the "+d.one+" as it was at this time. It is a 404 if it wasn't there then.", instant("")))
}
