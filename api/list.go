package api

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"net/url"
	"slices"
	"strconv"
	"strings"

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
	NextCursor *string `json:"next_cursor"` // null on the last page
}

// replyList answers with the page that the request asks for. The name keeps
// the cursors of different lists apart.
func replyList[T any](x *exchange, name string, read func(context.Context, store.Page) (store.List[T], error)) error {
	limit, after, err := x.page(name, len(domain.ID{}))
	if err != nil {
		return err
	}
	page := store.Page{Limit: limit}
	copy(page.After[:], after)
	l, err := read(x.r.Context(), page)
	if err != nil {
		return err
	}
	body := list[T]{Data: l.Items}
	if !l.Next.IsZero() {
		body.NextCursor = new(encodeCursor(name, l.Next[:]))
	}
	return x.reply(body)
}

// page reads the parameters limit and cursor. It returns where the cursor says
// that the page before ended, in so many bytes, or nil for the first page.
func (x *exchange) page(list string, size int) (limit int, after []byte, err error) {
	limit = defaultLimit
	var problems []fieldProblem
	if s := x.query.Get("limit"); x.query.Has("limit") {
		n, err := strconv.ParseUint(s, 10, 64)
		if s == "" || strings.Trim(s, "0123456789") != "" || err == nil && n == 0 {
			problems = append(problems, fieldProblem{"query.limit", "must be an integer of at least 1"})
		}
		limit = int(min(n, maxLimit)) // out of range gives the largest n
	}
	if x.query.Has("cursor") {
		var ok bool
		if after, ok = decodeCursor(list, x.query.Get("cursor")); !ok || len(after) != size {
			problems = append(problems, fieldProblem{"query.cursor", "must be the next_cursor of this list"})
		}
	}
	if problems != nil {
		return 0, nil, badParams(problems...)
	}
	return limit, after, nil
}

// encodeCursor makes a cursor: opaque to clients, safe in a URL.
func encodeCursor(list string, after []byte) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte(list+"\x00"), after...))
}

func decodeCursor(list, s string) (after []byte, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	rest, ok := strings.CutPrefix(string(b), list+"\x00")
	return []byte(rest), ok && err == nil
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

// versionCursor is where a page of a history ended.
func versionCursor(version int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(version))
}
