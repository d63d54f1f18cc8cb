package api

import (
	"net/http"
	"strconv"
	"strings"

	"outflow/store"
)

// Conditional requests (RFC 9110, 13). A resource's entity tag is its version
// in quotes; it is strong, because a version has one representation. There are
// no modification dates, so the conditions on those are ignored, as 13.1.3 and
// 13.1.4 ask for.

// etag is the entity tag of a version.
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// tags is the value of If-Match or If-None-Match.
type tags struct {
	any  bool // *
	list []tag
}

type tag struct {
	weak   bool
	opaque string // with its quotes
}

// version returns the version that a tag stands for; no resource has the
// version 0, which is for tags that are none of ours.
func (t tag) version() int64 {
	n, err := strconv.ParseInt(strings.Trim(t.opaque, `"`), 10, 64)
	if err != nil || etag(n) != t.opaque {
		return 0
	}
	return n
}

// parseTags reads a header of entity tags, which may be given on several lines.
func parseTags(lines []string) (tags, bool) {
	s := strings.Join(lines, ",")
	if strings.Trim(s, " \t") == "*" {
		return tags{any: true}, true
	}
	var all tags
	for {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			return all, all.list != nil
		}
		rest, weak := strings.CutPrefix(s, "W/")
		// A tag may hold commas, but no quotes.
		end := -1
		if strings.HasPrefix(rest, `"`) {
			end = strings.IndexByte(rest[1:], '"') + 1
		}
		if end <= 0 || strings.ContainsFunc(rest[:end], func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return tags{}, false
		}
		all.list = append(all.list, tag{weak, rest[:end+1]})
		s = strings.TrimLeft(rest[end+1:], " \t")
		if s != "" && s[0] != ',' {
			return tags{}, false
		}
	}
}

// demand is what If-Match with these tags demands, by the strong comparison. A
// resource that isn't there is a 404 before that.
func (t *tags) demand() store.Precondition {
	if t.any {
		return store.Precondition{}
	}
	versions := []int64{}
	for _, one := range t.list {
		if !one.weak {
			versions = append(versions, one.version())
		}
	}
	return store.Precondition{OneOf: versions}
}

// condition reads one of the headers; nil when it isn't there. One that can't
// be read is refused: whoever sends it relies on it.
func (x *exchange) condition(name string) (*tags, error) {
	lines := x.r.Header[name]
	if len(lines) == 0 {
		return nil, nil
	}
	t, ok := parseTags(lines)
	if !ok {
		return nil, badParams(fieldProblem{"header." + name, `must be * or a list of entity tags, such as "3"`})
	}
	return &t, nil
}

// precondition is what the request demands of the resource that it changes.
// The store holds it against the version that the change is made to.
func (x *exchange) precondition() (store.Precondition, error) {
	var p store.Precondition
	match, err := x.condition("If-Match")
	if err != nil {
		return p, err
	}
	switch {
	case match != nil:
		p = match.demand()
	case match == nil && x.api.cfg.RequireIfMatch && x.r.Method != http.MethodPost:
		return p, &refusal{code: codePreconditionRequired, detail: "the request must name the version that it changes, in If-Match"}
	}
	none, err := x.condition("If-None-Match")
	if err != nil || none == nil {
		return p, err
	}
	p.Absent = none.any
	for _, t := range none.list { // the weak comparison
		p.NoneOf = append(p.NoneOf, t.version())
	}
	return p, nil
}

// unchanged answers a GET for a resource that the client has already, and
// reports whether it did. It returns CodeVersionMismatch if the client demands
// another version.
func (x *exchange) unchanged(version int64) (bool, error) {
	match, err := x.condition("If-Match")
	if err != nil {
		return false, err
	}
	if match != nil {
		if err := match.demand().Check(version); err != nil {
			return false, err
		}
	}
	none, err := x.condition("If-None-Match")
	if err != nil || none == nil {
		return false, err
	}
	same := none.any
	for _, t := range none.list {
		same = same || t.version() == version
	}
	if same {
		x.Header().Set("ETag", etag(version))
		x.Header().Set("Cache-Control", cacheControl)
		x.WriteHeader(http.StatusNotModified)
	}
	return same, nil
}
