package api

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"outflow/domain"
)

// JSON Patch (RFC 6902), on values as they were parsed. How it fails follows
// RFC 5789, 2.2: a patch that is none is 400; one that doesn't fit the state of
// the resource (a test that fails, nothing where something is to be removed) is
// 409, because the client's picture of the resource is wrong and not its
// patch; one that would make the resource invalid is 422.
//
// evanphx/json-patch, which the tests hold this against, is laxer: it takes
// negative indexes, leading zeros and a test of null where nothing is.

// patchOp is one operation of a patch.
type patchOp struct {
	op         string
	path, from pointer
	value      *value // of add, replace and test
}

// pointer is a JSON Pointer (RFC 6901), taken apart; empty for the whole.
type pointer []string

func parsePointer(s string) (pointer, bool) {
	if s == "" {
		return pointer{}, true
	}
	if s[0] != '/' {
		return nil, false
	}
	p := pointer(strings.Split(s[1:], "/"))
	for i, token := range p {
		for j := range len(token) {
			if token[j] == '~' && (j+1 == len(token) || token[j+1] != '0' && token[j+1] != '1') {
				return nil, false
			}
		}
		p[i] = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
	}
	return p, true
}

// parsePatch reads a patch. Members that the RFC doesn't know are ignored, as
// it demands.
func parsePatch(v *value) ([]patchOp, error) {
	malformed := func(format string, args ...any) ([]patchOp, error) {
		return nil, &refusal{code: codeMalformedPatch, detail: fmt.Sprintf(format, args...)}
	}
	if v.kind != array {
		return malformed("the body must be an array of operations")
	}
	ops := make([]patchOp, len(v.items))
	for i := range v.items {
		item, o := &v.items[i], &ops[i]
		if item.kind != object {
			return malformed("operation %d must be an object", i)
		}
		var pathOK, fromOK bool
		for j := range item.members {
			switch m := &item.members[j]; {
			case m.name == "op" && m.kind == text:
				o.op = m.text
			case m.name == "path" && m.kind == text:
				o.path, pathOK = parsePointer(m.text)
			case m.name == "from" && m.kind == text:
				o.from, fromOK = parsePointer(m.text)
			case m.name == "value":
				o.value = &m.value
			}
		}
		needsValue := o.op == "add" || o.op == "replace" || o.op == "test"
		needsFrom := o.op == "move" || o.op == "copy"
		switch {
		case !needsValue && !needsFrom && o.op != "remove":
			return malformed("op of operation %d must be add, remove, replace, move, copy or test", i)
		case !pathOK:
			return malformed("path of operation %d must be a JSON Pointer", i)
		case needsFrom && !fromOK:
			return malformed("from of operation %d must be a JSON Pointer", i)
		case needsValue && o.value == nil:
			return malformed("operation %d must have a value", i)
		case o.op == "move" && len(o.from) < len(o.path) && slices.Equal(o.from, o.path[:len(o.from)]):
			return malformed("operation %d can't move a value into itself", i)
		}
	}
	return ops, nil
}

// Why an operation can't be applied.
var (
	errNothingThere = errors.New("there is nothing at that place")
	errNoPlace      = errors.New("there is no such place")
	errNotTheSame   = errors.New("another value is there")
)

// maxCopied is how many values the copies of one patch may make: each copy of
// the whole doubles it.
const maxCopied = 10_000

// applyPatch returns what a patch makes of a document, which stays as it is.
func applyPatch(doc value, ops []patchOp) (value, error) {
	copied := 0
	for i := range ops {
		o := &ops[i]
		var err error
		switch o.op {
		case "add":
			doc, err = doc.put(o.path, *o.value)
		case "remove":
			doc, _, err = doc.take(o.path)
		case "replace":
			doc, err = doc.replace(o.path, *o.value)
		case "move":
			var v value
			if doc, v, err = doc.take(o.from); err == nil {
				doc, err = doc.put(o.path, v)
			}
		case "copy":
			var v *value
			if v, err = doc.get(o.from); err == nil {
				if copied += v.count(maxCopied); copied > maxCopied {
					return doc, &domain.Error{Code: domain.CodeInvalid, Message: "the patch makes the resource too large"}
				}
				doc, err = doc.put(o.path, *v)
			}
		case "test":
			var v *value
			if v, err = doc.get(o.path); err == nil && !v.equal(o.value) {
				err = errNotTheSame
			}
		}
		if err != nil {
			return doc, &refusal{code: codePatchConflict, detail: fmt.Sprintf("operation %d (%s) does not fit the resource as it is: %v", i, o.op, err)}
		}
	}
	return doc, nil
}

// find returns the index of a member; -1 when there is none.
func (v *value) find(name string) int {
	return slices.IndexFunc(v.members, func(m member) bool { return m.name == name })
}

// arrayIndex reads an index of an array of so many items; -1 for none of them.
func arrayIndex(token string, items int) int {
	n, err := strconv.Atoi(token)
	if err != nil || n < 0 || n >= items || strconv.Itoa(n) != token {
		return -1
	}
	return n
}

// child returns what a container has under a name or an index; nil for nothing.
func (v *value) child(token string) *value {
	switch v.kind {
	case object:
		if i := v.find(token); i >= 0 {
			return &v.members[i].value
		}
	case array:
		if i := arrayIndex(token, len(v.items)); i >= 0 {
			return &v.items[i]
		}
	}
	return nil
}

func (v *value) get(p pointer) (*value, error) {
	for _, token := range p {
		if v = v.child(token); v == nil {
			return nil, errNothingThere
		}
	}
	return v, nil
}

// change returns v with another container at the end of a path, which change
// makes of the one that is there. What lies on the way is copied, since others
// still hold the rest.
func (v value) change(p pointer, change func(container value, token string) (value, error)) (value, error) {
	if len(p) == 1 {
		return change(v, p[0])
	}
	inner := v.child(p[0])
	if inner == nil {
		return v, errNoPlace
	}
	changed, err := inner.change(p[1:], change)
	if err != nil {
		return v, err
	}
	return v.with(p[0], changed), nil
}

// with returns a container with another child in the place of one that it has.
func (v value) with(token string, child value) value {
	if v.kind == object {
		v.members = slices.Clone(v.members)
		v.members[v.find(token)].value = child
		return v
	}
	v.items = slices.Clone(v.items)
	v.items[arrayIndex(token, len(v.items))] = child
	return v
}

// put adds a value: in an array before the item that is there, in an object in
// place of what is there.
func (v value) put(p pointer, what value) (value, error) {
	if len(p) == 0 {
		return what, nil
	}
	return v.change(p, func(c value, token string) (value, error) {
		switch c.kind {
		case object:
			if c.find(token) >= 0 {
				return c.with(token, what), nil
			}
			c.members = append(slices.Clone(c.members), member{token, what})
			return c, nil
		case array:
			at := len(c.items)
			if token != "-" {
				at = arrayIndex(token, len(c.items)+1)
			}
			if at < 0 {
				return c, errNoPlace
			}
			c.items = slices.Insert(slices.Clone(c.items), at, what)
			return c, nil
		}
		return c, errNoPlace
	})
}

func (v value) replace(p pointer, what value) (value, error) {
	if len(p) == 0 {
		return what, nil
	}
	return v.change(p, func(c value, token string) (value, error) {
		if c.child(token) == nil {
			return c, errNothingThere
		}
		return c.with(token, what), nil
	})
}

// take returns v without what is at the path, and that.
func (v value) take(p pointer) (rest, taken value, err error) {
	if len(p) == 0 {
		return value{}, v, nil
	}
	rest, err = v.change(p, func(c value, token string) (value, error) {
		child := c.child(token)
		if child == nil {
			return c, errNothingThere
		}
		taken = *child
		if c.kind == object {
			i := c.find(token)
			c.members = slices.Delete(slices.Clone(c.members), i, i+1)
			return c, nil
		}
		i := arrayIndex(token, len(c.items))
		c.items = slices.Delete(slices.Clone(c.items), i, i+1)
		return c, nil
	})
	return rest, taken, err
}

// count is how many values there are in v, itself included, as far as enough.
func (v *value) count(enough int) int {
	n := 1
	for i := 0; i < len(v.items) && n <= enough; i++ {
		n += v.items[i].count(enough - n)
	}
	for i := 0; i < len(v.members) && n <= enough; i++ {
		n += v.members[i].count(enough - n)
	}
	return n
}

// equal is what the RFC's test means by it: numbers by their value, objects
// without regard to order.
func (v *value) equal(o *value) bool {
	if v.kind != o.kind || len(v.items) != len(o.items) || len(v.members) != len(o.members) {
		return false
	}
	switch v.kind {
	case number:
		return decimal(v.text) == decimal(o.text)
	case text, boolean:
		return v.text == o.text
	}
	for i := range v.items {
		if !v.items[i].equal(&o.items[i]) {
			return false
		}
	}
	for i := range v.members {
		other := o.child(v.members[i].name)
		if other == nil || !v.members[i].equal(other) {
			return false
		}
	}
	return true
}

// decimal is a number's one form: its digits without zeros at either end, and
// the exponent that belongs to them. Equal numbers have equal forms, and a huge
// exponent costs nothing.
func decimal(s string) string {
	s, negative := strings.CutPrefix(s, "-")
	mantissa, exponent, _ := strings.Cut(strings.ToLower(s), "e")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return "0"
	}
	e, err := strconv.ParseInt(cmp.Or(exponent, "0"), 10, 32)
	if err != nil {
		return s // as it was written: nothing here has such an exponent
	}
	short := strings.TrimRight(digits, "0")
	form := short + "e" + strconv.FormatInt(e-int64(len(fraction))+int64(len(digits)-len(short)), 10)
	if negative {
		return "-" + form
	}
	return form
}
