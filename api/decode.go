package api

import (
	"math"
	"strconv"
	"strings"
	"time"

	"outflow/domain"
)

// mode is what a body does to a resource.
type mode uint8

const (
	creating  mode = iota // POST: read-only properties are refused
	replacing             // PUT: read-only properties may be there, as GET shows them, and are ignored
	merging               // PATCH: read-only properties must say what the resource says
)

// maxProblems is how many problems of one body are listed.
const maxProblems = 1000

// decoding turns a JSON value into an input and gathers every problem on the
// way. A body is decoded over what is there: over the zero input for POST and
// PUT, over the resource's for PATCH; that is what RFC 7396 asks for, without
// making JSON of the resource first. In all of them null means absent.
type decoding struct {
	mode     mode
	problems []domain.Field
	unread   map[string]bool // the paths of values that couldn't be read
}

// path leads to a value; it becomes text only when there is a problem.
type path struct {
	parent *path
	name   string // empty in an array
	index  int
}

func (p *path) String() string {
	switch {
	case p == nil:
		return ""
	case p.name == "":
		return p.parent.String() + "[" + strconv.Itoa(p.index) + "]"
	case p.parent == nil:
		return p.name
	}
	return p.parent.String() + "." + p.name
}

func (d *decoding) add(at *path, message string) {
	switch {
	case len(d.problems) < maxProblems:
		d.problems = append(d.problems, domain.Field{Path: at.String(), Message: message})
	case len(d.problems) == maxProblems:
		d.problems = append(d.problems, domain.Field{Message: "has more problems than are listed"})
	}
}

// bad adds the problem of a value that can't be read at all: what the domain
// would say about its absence is left out.
func (d *decoding) bad(at *path, message string) {
	if d.unread == nil {
		d.unread = map[string]bool{}
	}
	d.unread[at.String()] = true
	d.add(at, message)
}

// object returns the members of an object.
func (d *decoding) object(v *value, at *path) []member {
	if v.kind != object {
		d.bad(at, "must be an object")
		return nil
	}
	return v.members
}

// text reads a string; null gives the empty one.
func (d *decoding) text(v *value, at *path, into *string) {
	switch v.kind {
	case text, null:
		*into = ""
		if v.kind == text {
			*into = v.text
		}
	default:
		d.bad(at, "must be a string")
	}
}

// integer reads a whole number and reports whether there was one; null counts
// as absent.
func (d *decoding) integer(v *value, at *path, into *int64) bool {
	if v.kind == null {
		return false
	}
	if v.kind != number {
		d.bad(at, "must be an integer")
		return true
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	if err != nil && strings.ContainsAny(v.text, ".eE") {
		// 1.0 and 1e3 are integers too, as JSON Schema has it. Beyond 2^53 a
		// float no longer says which.
		f, _ := strconv.ParseFloat(v.text, 64)
		if f != math.Trunc(f) {
			d.bad(at, "must be an integer")
			return true
		}
		n, err = int64(f), nil
		if math.Abs(f) > 1<<53 {
			err = strconv.ErrRange
		}
	}
	if err != nil {
		d.bad(at, "is out of range")
		return true
	}
	*into = n
	return true
}

// id reads a UUID; null gives the zero one.
func (d *decoding) id(v *value, at *path, into *domain.ID) {
	*into = domain.ID{}
	switch v.kind {
	case null:
	case text:
		id, err := domain.ParseID(v.text)
		if err != nil {
			d.bad(at, "must be a UUID")
		}
		*into = id
	default:
		d.bad(at, "must be a UUID")
	}
}

// texts reads an object of strings over what is there: null takes a name away.
func (d *decoding) texts(v *value, at *path, into *map[string]string) {
	if v.kind == null {
		*into = nil
		return
	}
	all := make(map[string]string, len(*into)+len(v.members))
	for k, s := range *into {
		all[k] = s
	}
	for i := range d.object(v, at) {
		switch m := &v.members[i]; m.kind {
		case null:
			delete(all, m.name)
		case text:
			all[m.name] = m.text
		default:
			// The name is the caller's, and may be personal: it isn't repeated.
			d.add(at, "must have strings as values")
		}
	}
	*into = all
}

// computed deals with a property that callers don't decide. current is what
// the resource says, nil for a property that doesn't exist.
func (d *decoding) computed(m *member, at *path, current any) {
	switch {
	case current == nil:
		d.unknown(m.name, at.parent)
	case d.mode == creating:
		d.add(at, "is read-only and can't be set")
	case d.mode == merging && !says(&m.value, current):
		d.add(at, "is read-only and can't be changed")
	}
}

// unknown refuses a property that doesn't exist. Its name is repeated only
// when it looks like one: anything may be sent as a name.
func (d *decoding) unknown(name string, parent *path) {
	if plainName(name) {
		d.add(&path{parent: parent, name: name}, "is not known here")
		return
	}
	d.add(parent, "has a property that is not known here")
}

func plainName(s string) bool {
	if s == "" || len(s) > 40 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9' || i == 0) {
			return false
		}
	}
	return true
}

// says reports whether a JSON value is the one that the API would show for
// current.
func says(v *value, current any) bool {
	switch c := current.(type) {
	case domain.ID:
		id, err := domain.ParseID(v.text)
		return v.kind == text && err == nil && id == c
	case int64:
		n, err := strconv.ParseInt(v.text, 10, 64)
		return v.kind == number && err == nil && n == c
	case time.Time:
		t, err := time.Parse(time.RFC3339Nano, v.text)
		return v.kind == text && err == nil && t.Equal(c)
	case string:
		return v.kind == text && v.text == c || v.kind == null && c == ""
	}
	return false
}

// err returns all problems: those found here and those that the domain finds,
// less the ones that only follow from a value that couldn't be read. When
// nothing was found here it returns nil without asking the domain, which
// checks again when it decides.
func (d *decoding) err(validate func() error) error {
	if len(d.problems) == 0 {
		return nil
	}
	if e, ok := validate().(*domain.Error); ok {
		for _, f := range e.Fields {
			if !d.follows(f.Path) {
				d.problems = append(d.problems, f)
			}
		}
	}
	return &domain.Error{Code: domain.CodeInvalid, Message: "the body is not valid", Fields: d.problems}
}

// follows reports whether what is at p, or what that is a part of, couldn't be
// read.
func (d *decoding) follows(p string) bool {
	for !d.unread[p] {
		if p == "" {
			return false
		}
		p = p[:max(strings.LastIndexAny(p, ".["), 0)]
	}
	return true
}
