package api

import (
	"context"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"outflow/domain"
	"outflow/store"
)

// The number of items in a page.
const (
	defaultLimit = 50
	maxLimit     = 500 // more is asked for in vain, but not refused
)

// list is one page of a list.
type list[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"next_cursor"`     // null on the last page
	Total      *int64  `json:"total,omitempty"` // when it is asked for
}

// lister reads a page of a list.
type lister[T any] func(context.Context, store.Page) (store.List[T], error)

// replyList answers with the page that the request asks for. filtered reads
// the filters of the list.
func replyList[T any](x *exchange, sorts []string, filtered func(*params) lister[T]) error {
	p := &params{query: x.query}
	page := store.Page{Count: p.yes("include_total")}
	by, descending := strings.CutPrefix(p.oneOf("sort", withReverse(sorts)...), "-")
	page.Sort, page.Descending = store.Sort(by), descending
	read := filtered(p)
	var after []byte
	var err error
	if page.Limit, after, err = x.page(p); err != nil {
		return err
	}
	if len(after) > len(domain.ID{}) {
		page.After = &store.Place{ID: domain.ID(after[:len(domain.ID{})]), Value: string(after[len(domain.ID{}):])}
	}
	l, err := read(x.r.Context(), page)
	if err != nil {
		return err
	}
	body := list[T]{Data: l.Items}
	if page.Count {
		body.Total = &l.Total
	}
	if l.Next != nil {
		if body.NextCursor, err = x.next(append(l.Next.ID[:], l.Next.Value...)); err != nil {
			return err
		}
	}
	return x.reply(body)
}

// withReverse lists sorts with their reverses.
func withReverse(sorts []string) []string {
	var all []string
	for _, s := range sorts {
		all = append(all, s, "-"+s)
	}
	return all
}

// page reads the parameters limit and cursor, the last ones of a list, and
// returns everything that is wrong with its parameters. after is what next was
// given for the page before, nil for the first page.
func (x *exchange) page(p *params) (limit int, after []byte, err error) {
	limit = p.limit()
	if p.query.Has("cursor") {
		var ok bool
		if after, ok, err = x.api.cursors.decode(x.r.Context(), x.scope(), p.query.Get("cursor")); err != nil {
			return 0, nil, err
		}
		if !ok {
			p.refuse("cursor", "must be the next_cursor of this list, with the same sort and filters")
		}
	}
	return limit, after, p.err()
}

// next makes the cursor of the next page, and links to that page.
func (x *exchange) next(after []byte) (*string, error) {
	cursor, err := x.api.cursors.encode(x.r.Context(), x.scope(), after)
	if err != nil {
		return nil, err
	}
	x.linkNext(cursor)
	return &cursor, nil
}

// linkNext links to the next page (RFC 8288).
func (x *exchange) linkNext(cursor string) {
	q := url.Values{}
	maps.Copy(q, x.query)
	q.Set("cursor", cursor)
	x.Header().Set("Link", "<"+x.r.URL.EscapedPath()+"?"+q.Encode()+`>; rel="next"`)
}

// scope is the list that a cursor belongs to: with another sort or other
// filters it would lead to a page that continues nothing.
func (x *exchange) scope() string {
	q := url.Values{}
	for name, values := range x.query {
		if !slices.Contains([]string{"cursor", "limit", "include_total"}, name) {
			q[name] = values
		}
	}
	return x.route.OperationID + " " + strings.ToLower(x.r.PathValue("id")) + "?" + q.Encode()
}

// parseQuery reads the query and refuses parameters that the operation doesn't
// have: one that was misspelt must not be overlooked.
func parseQuery(raw string, known []string) (url.Values, error) {
	if raw == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, badParams(fieldProblem{"query", "must be form-encoded"})
	}
	var problems []fieldProblem
	for name, values := range q {
		switch {
		case !slices.Contains(known, name) && plainName(name):
			problems = append(problems, fieldProblem{"query." + name, "is not known here"})
		case !slices.Contains(known, name):
			problems = append(problems, fieldProblem{"query", "has a parameter that is not known here"})
		case len(values) > 1:
			problems = append(problems, fieldProblem{"query." + name, "must be given once"})
		}
	}
	if problems != nil {
		slices.SortFunc(problems, func(a, b fieldProblem) int { return strings.Compare(a.Location, b.Location) })
		return nil, badParams(slices.Compact(problems)...)
	}
	return q, nil
}

// params reads the parameters of a query and gathers what is wrong with them.
type params struct {
	query    url.Values
	problems []fieldProblem
}

func (p *params) refuse(name, message string) {
	p.problems = append(p.problems, fieldProblem{"query." + name, message})
}

func (p *params) err() error {
	if p.problems == nil {
		return nil
	}
	return badParams(p.problems...)
}

func (p *params) limit() int {
	s := p.query.Get("limit")
	if !p.query.Has("limit") {
		return defaultLimit
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if s == "" || strings.Trim(s, "0123456789") != "" || err == nil && n == 0 {
		p.refuse("limit", "must be an integer of at least 1")
	}
	return int(min(n, maxLimit)) // out of range gives the largest n
}

// text reads a text; "" when there is none.
func (p *params) text(name string, most int) string {
	s := p.query.Get(name)
	switch {
	case !p.query.Has(name):
	case s == "":
		p.refuse(name, "must not be empty")
	case !utf8.ValidString(s):
		p.refuse(name, "must be valid UTF-8")
	case utf8.RuneCountInString(s) > most:
		p.refuse(name, "must be at most "+strconv.Itoa(most)+" characters long")
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }):
		p.refuse(name, "must not contain control characters")
	}
	return s
}

// oneOf reads one of some words; "" when there is none.
func (p *params) oneOf(name string, words ...string) string {
	s := p.query.Get(name)
	if p.query.Has(name) && !slices.Contains(words, s) {
		p.refuse(name, "must be one of "+strings.Join(words, ", "))
	}
	return s
}

func (p *params) yes(name string) bool { return p.oneOf(name, "true", "false") == "true" }

// amount reads an amount; nil when there is none.
func (p *params) amount(name string) *int64 {
	if !p.query.Has(name) {
		return nil
	}
	s := p.query.Get(name)
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || strings.Trim(s, "0123456789") != "" {
		p.refuse(name, "must be an integer of at least 0, in minor units")
	}
	return &n
}

// id reads a UUID; nil when there is none.
func (p *params) id(name string) *domain.ID {
	if !p.query.Has(name) {
		return nil
	}
	id, err := domain.ParseID(p.query.Get(name))
	if err != nil {
		p.refuse(name, "must be a UUID")
	}
	return &id
}
