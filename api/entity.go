package api

import (
	"context"
	"net/http"

	"outflow/domain"
	"outflow/store"
)

// entity describes a kind of resource: all that its handlers need to know.
type entity[T, In any] struct {
	aggregate string // as in its events
	path      string // of the list
	docs      entityDocs

	id      func(*T) domain.ID
	version func(*T) int64
	input   func(*T) In // what callers decide of it

	// decode reads a body over in, which it may not write through. With PATCH,
	// current is the resource.
	decode   func(d *decoding, v *value, in *In, current *T)
	computed func(name string, current *T) any // what a read-only property says; nil for others
	validate func(In) error
	sample   In // valid whatever valid patch is merged into it

	create    func(context.Context, In, domain.Metadata) (T, error)
	createAll func(context.Context, []In, domain.Metadata) ([]T, error)
	importAll func(ctx context.Context, ins []In, validateOnly bool, m domain.Metadata) []store.Imported

	get     func(context.Context, domain.ID) (T, error)
	past    func(context.Context, domain.ID, store.Moment) (T, error)
	list    func(*params) lister[T] // with the filters of a request
	update  func(context.Context, domain.ID, store.Precondition, func(T) (In, error), domain.Metadata) (T, error)
	remove  func(context.Context, domain.ID, store.Precondition, domain.Metadata) error
	history func(ctx context.Context, aggregateType string, id domain.ID, afterVersion int64, limit int) ([]domain.Event, int64, error)
}

// routes are the operations that every kind of resource has.
func (e *entity[T, In]) routes() []route {
	d := &e.docs
	one := e.path + "/{id}"
	return []route{
		{Operation: d.list(e.path), handle: e.handleList},
		{Operation: d.create(e.path), handle: e.handleCreate, answer: e.answer},
		{Operation: d.get(one), handle: e.handleGet},
		{Operation: d.replace(one), handle: e.handleReplace},
		{Operation: d.patch(one), handle: e.handlePatch, answer: e.answer},
		{Operation: d.remove(one), handle: e.handleDelete},
		{Operation: d.history(one + "/events"), handle: e.handleHistory},
	}
}

func (e *entity[T, In]) handleCreate(x *exchange) error {
	v, err := x.body(typeJSON)
	if err != nil {
		return err
	}
	var in In
	if err := e.read(creating, &v, &in, nil); err != nil {
		return err
	}
	t, err := e.create(x.r.Context(), in, x.metadata())
	if err != nil {
		return err
	}
	return e.reply(x, &t)
}

func (e *entity[T, In]) handleGet(x *exchange) error {
	t, err := e.find(x)
	if err != nil {
		return err
	}
	if done, err := x.unchanged(e.version(&t)); done || err != nil {
		return err
	}
	return e.reply(x, &t)
}

func (e *entity[T, In]) handleReplace(x *exchange) error {
	id, pre, err := x.target()
	if err != nil {
		return err
	}
	v, err := x.body(typeJSON)
	if err != nil {
		return err
	}
	var in In
	if err := e.fits(&v, &in); err != nil {
		return err
	}
	t, err := e.update(x.r.Context(), id, pre, func(T) (In, error) { return in, nil }, x.metadata())
	if err != nil {
		return err
	}
	return e.reply(x, &t)
}

// fits reads a body over in and refuses one that no version of a resource could
// take. That comes before the request's conditions are looked at (RFC 9110,
// 13.2.1): such a request is not one to send again to another version. What
// depends on the resource is for the store to find, after the conditions.
func (e *entity[T, In]) fits(v *value, in *In) error {
	if err := e.read(replacing, v, in, nil); err != nil {
		return err
	}
	return e.validate(*in)
}

// handlePatch decides inside the store's update: when others change the
// resource meanwhile, the patch is applied again, to what they left.
func (e *entity[T, In]) handlePatch(x *exchange) error {
	id, pre, err := x.target()
	if err != nil {
		return err
	}
	v, err := x.body(typeMergePatch, typeJSON, typeJSONPatch)
	if err != nil {
		return err
	}
	var patch func(T) (In, error)
	if x.sends(typeJSONPatch) {
		ops, err := parsePatch(&v)
		if err != nil {
			return err
		}
		patch = func(current T) (In, error) { return e.patched(current, ops) }
	} else {
		in := e.sample
		if err := e.fits(&v, &in); err != nil {
			return err
		}
		patch = func(current T) (In, error) {
			in := e.input(&current)
			err := e.read(merging, &v, &in, &current)
			return in, err
		}
	}
	t, err := e.update(x.r.Context(), id, pre, patch, x.metadata())
	if err != nil {
		return x.patchProblem(err)
	}
	return e.reply(x, &t)
}

// patched is what a JSON Patch makes of a resource. It is applied to all that
// GET shows, and may leave read-only properties only as they are.
func (e *entity[T, In]) patched(current T, ops []patchOp) (in In, err error) {
	shown, err := parse(string(mustJSON(current)))
	if err != nil {
		return in, err
	}
	result, err := applyPatch(shown, ops)
	if err != nil {
		return in, err
	}
	d := decoding{mode: merging}
	e.decode(&d, &result, &in, &current)
	for i := range shown.members {
		name := shown.members[i].name
		if result.kind == object && result.find(name) < 0 && e.computed(name, &current) != nil {
			d.add(&path{name: name}, "is read-only and can't be removed")
		}
	}
	return in, d.err(func() error { return e.validate(in) })
}

func (e *entity[T, In]) handleDelete(x *exchange) error {
	id, pre, err := x.target()
	if err != nil {
		return err
	}
	if err := e.remove(x.r.Context(), id, pre, x.metadata()); err != nil {
		return err
	}
	x.WriteHeader(x.route.DefaultStatus)
	return nil
}

func (e *entity[T, In]) handleList(x *exchange) error { return replyList(x, e.docs.sorts, e.list) }

// read decodes a body over in; current is the resource that a PATCH is for.
func (e *entity[T, In]) read(m mode, v *value, in *In, current *T) error {
	d := decoding{mode: m}
	e.decode(&d, v, in, current)
	return d.err(func() error { return e.validate(*in) })
}

// reply answers with a resource.
func (e *entity[T, In]) reply(x *exchange, t *T) error {
	if x.route.DefaultStatus == http.StatusCreated {
		x.Header().Set("Location", e.path+"/"+e.id(t).String())
	}
	x.Header().Set("ETag", etag(e.version(t)))
	return x.reply(t)
}

func (e *entity[T, In]) answer(x *exchange, result any) {
	t := result.(T)
	_ = e.reply(x, &t) // it never fails
}
