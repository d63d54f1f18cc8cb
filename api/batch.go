package api

import (
	"errors"
	"fmt"
	urlpath "path"

	"outflow/domain"
)

const (
	maxBatch     = 1000    // resources in a batch
	maxBatchBody = 4 << 20 // bytes
)

// batch is the answer to a batch.
type batch[T any] struct {
	Data []T `json:"data"`
}

// plural is the name of many: of the list in a batch, and the end of the path.
func (e *entity[T, In]) plural() string { return urlpath.Base(e.path) }

// handleBatch creates all or none.
func (e *entity[T, In]) handleBatch(x *exchange) error {
	v, err := x.body(typeJSON)
	if err != nil {
		return err
	}
	ins, err := e.readBatch(&v)
	if err != nil {
		return err
	}
	all, err := e.createAll(x.r.Context(), ins, x.metadata())
	if d, ok := errors.AsType[*domain.Error](err); ok && len(d.Fields) > 0 {
		located := *d
		located.Fields = make([]domain.Field, len(d.Fields))
		for i, f := range d.Fields {
			located.Fields[i] = domain.Field{Path: e.plural() + f.Path, Message: f.Message}
		}
		return &located
	}
	if err != nil {
		return err
	}
	return x.reply(batch[T]{all})
}

func (e *entity[T, In]) answerBatch(x *exchange, result any) {
	_ = x.reply(batch[T]{result.([]T)}) // it never fails
}

// readBatch decodes every resource of a batch, and gathers the problems of all.
func (e *entity[T, In]) readBatch(v *value) ([]In, error) {
	d := decoding{}
	at := &path{name: e.plural()}
	var list *value
	for i := range d.object(v, nil) {
		if m := &v.members[i]; m.name == at.name {
			list = &m.value
		} else {
			d.unknown(m.name, nil)
		}
	}
	switch {
	case v.kind != object:
	case list == nil || list.kind == null:
		d.add(at, isRequired)
	case list.kind != array:
		d.add(at, "must be an array")
	case len(list.items) == 0 || len(list.items) > maxBatch:
		d.add(at, fmt.Sprintf("must have 1 to %d items", maxBatch))
	}
	var ins []In
	if list != nil && len(list.items) <= maxBatch {
		ins = make([]In, len(list.items))
		for i := range ins {
			err := e.read(creating, &list.items[i], &ins[i], nil)
			if err == nil {
				err = e.validate(ins[i])
			}
			if one, ok := errors.AsType[*domain.Error](err); ok {
				for _, f := range one.Fields {
					d.addField(&path{parent: at, index: i}, f)
				}
			} else if err != nil {
				return nil, err
			}
		}
	}
	return ins, d.err(func() error { return nil })
}

// addField adds a problem of a part of what is at a place.
func (d *decoding) addField(at *path, f domain.Field) {
	where := at.String()
	if f.Path != "" {
		where += "." + f.Path
	}
	if len(d.problems) < maxProblems {
		d.problems = append(d.problems, domain.Field{Path: where, Message: f.Message})
	} else {
		d.add(at, f.Message) // says that there are more than are listed
	}
}

// bulkRoutes are the operations on many resources at once.
func (e *entity[T, In]) bulkRoutes() []route {
	d := &e.docs
	return []route{
		{Operation: d.createBatch(e.path+"/batch", e.plural()), handle: e.handleBatch, answer: e.answerBatch, maxBody: maxBatchBody},
		{Operation: d.importAll(e.path+"/import", e.plural()), handle: e.handleImport, produces: typeNDJSON},
	}
}
