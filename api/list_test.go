package api_test

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/internal/pgtest"
)

// walk follows the links of a list from page to page and returns what it has
// under a name.
func (s *server) walk(path, name string) []any {
	s.t.Helper()
	all := []any{}
	for {
		a := s.do("GET", path, nil).is(200)
		for _, item := range a.data() {
			all = append(all, item[name])
		}
		link, more := a.Header.Get("Link"), a.object()["next_cursor"] != nil
		require.Equal(s.t, more, link != "")
		if !more {
			return all
		}
		next, ok := strings.CutSuffix(link, `>; rel="next"`)
		require.True(s.t, ok, link)
		require.Contains(s.t, next, "cursor="+a.object()["next_cursor"].(string))
		path = strings.TrimPrefix(next, "<")
	}
}

func TestCustomersAreSortedAndFiltered(t *testing.T) {
	t.Parallel()
	s := start(t)
	var times []string
	for _, row := range [][3]string{{"Zoe", "c@example.com", "active"}, {"ada", "d@example.com", "suspended"}, {"Adam", "A@example.com", "active"}, {"Max", "b@example.com", "closed"}} {
		c := s.do("POST", customers, map[string]any{"name": row[0], "email": row[1], "status": row[2]}).is(201).object()
		times = append(times, c["created_at"].(string))
		s.waitForTheNextMillisecond()
	}
	s.do("PATCH", at("/api/customers/%s", s.do("GET", customers+"?email=c@example.com", nil).data()[0]), `{"phone":"1"}`).is(200)
	q := url.QueryEscape
	for query, want := range map[string]string{
		"":                              "Zoe ada Adam Max",
		"sort=created_at":               "Zoe ada Adam Max",
		"sort=-created_at":              "Max Adam ada Zoe",
		"sort=updated_at":               "ada Adam Max Zoe",
		"sort=-updated_at":              "Zoe Max Adam ada",
		"sort=name":                     "ada Adam Max Zoe",
		"sort=-name":                    "Zoe Max Adam ada",
		"sort=email":                    "Adam Max Zoe ada",
		"sort=-email":                   "ada Zoe Max Adam",
		"status=active":                 "Zoe Adam",
		"status=suspended":              "ada",
		"email=A@EXAMPLE.com":           "Adam",
		"email=nobody":                  "",
		"name_prefix=AD":                "ada Adam",
		"name_prefix=%25":               "",
		"name_prefix=ad&sort=-name":     "Adam ada",
		"name_prefix=ad&status=active":  "Adam",
		"created_from=" + q(times[1]):   "ada Adam Max",
		"created_before=" + q(times[1]): "Zoe",
		"created_from=" + q(times[1]) + "&created_before=" + q(times[3]):                 "ada Adam",
		"created_from=" + q(strings.Replace(times[1], "Z", "+00:00", 1)):                 "ada Adam Max",
		"updated_from=" + q(times[3]):                                                    "Zoe Max",
		"updated_before=" + q(times[2]):                                                  "ada",
		"created_before=0001-01-01T00:00:00Z":                                            "",
		"updated_from=9999-12-31T23:59:59.999Z":                                          "",
		"status=active&sort=-email&created_from=" + q(times[0]) + "&include_total=false": "Zoe Adam",
	} {
		for _, limit := range []string{"limit=1", "limit=2", "limit=1000"} {
			got := ""
			for _, name := range s.walk(customers+"?"+strings.Trim(query+"&"+limit, "&"), "name") {
				got += " " + name.(string)
			}
			require.Equal(t, want, strings.TrimSpace(got), query)
		}
		total := s.do("GET", customers+"?limit=1&"+strings.ReplaceAll(query, "&include_total=false", "")+"&include_total=true", nil).is(200).object()["total"]
		require.EqualValues(t, len(strings.Fields(want)), total, query)
	}
	require.NotContains(t, s.do("GET", customers, nil).object(), "total", "only who asks waits for it")
}

// waitForTheNextMillisecond makes the times of what is created differ.
func (s *server) waitForTheNextMillisecond() {
	now := time.Now().UnixMilli()
	require.Eventually(s.t, func() bool { return time.Now().UnixMilli() > now }, time.Second, time.Millisecond)
}

func TestOrdersAreSortedAndFiltered(t *testing.T) {
	t.Parallel()
	s := start(t)
	a, b := s.customer("a@example.com"), s.customer("b@example.com")
	place := func(customer map[string]any, total int) map[string]any {
		o := orderOf(customer["id"])
		o["items"] = []any{map[string]any{"sku": "X", "quantity": 1, "unit_price": total}}
		s.waitForTheNextMillisecond()
		return s.do("POST", "/api/orders", o).is(201).object()
	}
	first := place(a, 300)
	second := place(b, 100)
	place(a, 200)
	s.waitForTheNextMillisecond()
	s.confirm(second)
	s.do("POST", at("/api/orders/%s/cancel", first), nil).is(200)
	for query, want := range map[string][]any{
		"":                            {300., 100., 200.},
		"sort=-created_at":            {200., 100., 300.},
		"sort=updated_at":             {200., 100., 300.},
		"sort=-updated_at":            {300., 100., 200.},
		"sort=total":                  {100., 200., 300.},
		"sort=-total":                 {300., 200., 100.},
		"status=placed":               {200.},
		"status=confirmed":            {100.},
		"status=cancelled":            {300.},
		"status=refunded":             {},
		"total_min=200":               {300., 200.},
		"total_max=200":               {100., 200.},
		"total_min=150&total_max=250": {200.},
		"total_min=300&total_max=0":   {},
		at("customer_id=%s", a):       {300., 200.},
		"customer_id=" + someID:       {},
		at("customer_id=%s", b) + "&status=placed":                         {},
		"created_from=" + url.QueryEscape(second["created_at"].(string)):   {100., 200.},
		"created_before=" + url.QueryEscape(second["created_at"].(string)): {300.},
	} {
		require.Equal(t, want, s.walk("/api/orders?limit=1&"+query, "total"), query)
		require.EqualValues(t, len(want), s.do("GET", "/api/orders?include_total=true&"+query, nil).object()["total"], query)
		if strings.Contains(query, "customer_id") {
			continue
		}
		ofA := slices.DeleteFunc(slices.Clone(want), func(total any) bool { return total == 100. })
		require.Equal(t, ofA, s.walk(at("/api/customers/%s/orders?limit=1&", a)+query, "total"), query)
	}
	require.EqualValues(t, 2, s.do("GET", at("/api/customers/%s/orders?include_total=true", a), nil).object()["total"])
}

func TestListParametersThatAreRefused(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	const (
		anInstant = "must be an RFC 3339 time, such as 2026-12-08T09:30:00Z"
		anAmount  = "must be an integer of at least 0, in minor units"
	)
	for path, want := range map[string]string{
		customers + "?sort=":                                        "sort must be one of created_at, -created_at, updated_at, -updated_at, name, -name, email, -email",
		customers + "?sort=total":                                   "sort must be one of created_at, -created_at, updated_at, -updated_at, name, -name, email, -email",
		"/api/orders?sort=-name":                                    "sort must be one of created_at, -created_at, updated_at, -updated_at, total, -total",
		customer + "/orders?sort=--total":                           "sort must be one of created_at, -created_at, updated_at, -updated_at, total, -total",
		customers + "?status=gone":                                  "status must be one of active, suspended, closed",
		"/api/orders?status=":                                       "status must be one of placed, confirmed, rejected, fulfilled, refunded, cancelled",
		customers + "?email=":                                       "email must not be empty",
		customers + "?email=" + strings.Repeat("a", 255):            "email must be at most 254 characters long",
		customers + "?email=a%00b":                                  "email must not contain control characters",
		customers + "?name_prefix=":                                 "name_prefix must not be empty",
		customers + "?name_prefix=%ff":                              "name_prefix must be valid UTF-8",
		customers + "?name_prefix=" + strings.Repeat("%C3%A4", 201): "name_prefix must be at most 200 characters long",
		customers + "?created_from=yesterday":                       "created_from " + anInstant,
		customers + "?created_before=2026-01-01":                    "created_before " + anInstant,
		customers + "?updated_from=":                                "updated_from " + anInstant,
		"/api/orders?updated_before=2026-01-01T00:00:00+01:00":      "updated_before " + anInstant, // + is a space in a query
		"/api/orders?total_min=-1":                                  "total_min " + anAmount,
		"/api/orders?total_max=1.5":                                 "total_max " + anAmount,
		"/api/orders?total_max=%2B1":                                "total_max " + anAmount,
		"/api/orders?total_max=9223372036854775808":                 "total_max " + anAmount,
		"/api/orders?customer_id=7":                                 "customer_id must be a UUID",
		customers + "?include_total=yes":                            "include_total must be one of true, false",
		customers + "?total_min=1":                                  "total_min is not known here",
		customer + "/orders?customer_id=" + someID:                  "customer_id is not known here",
		customer + "/events?sort=created_at":                        "sort is not known here",
		customers + "?Sort=name":                                    "Sort is not known here",
		customers + "?status=active&status=closed":                  "status must be given once",
	} {
		require.Equal(t, []string{"query." + want}, s.do("GET", path, nil).problem(422, "invalid"), path)
	}
	require.Len(t, s.do("GET", "/api/orders?sort=x&status=x&total_min=x&limit=x&cursor=x&customer_id=x", nil).problem(422, "invalid"), 6, "all at once")
}

func TestCursorsBelongToTheirList(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := startOn(t, db)
	a, b := s.customer("ada@example.com"), s.customer("eve@example.com")
	for range 3 {
		s.order(a["id"])
		s.order(b["id"])
	}
	cursor := func(path string) string {
		return s.do("GET", path, nil).is(200).object()["next_cursor"].(string)
	}
	const refused = "query.cursor must be the next_cursor of this list, with the same sort and filters"
	byEmail := cursor(customers + "?limit=1&sort=email")
	ofA := at("/api/customers/%s/orders", a)
	for path, c := range map[string]string{
		customers:                               byEmail,
		customers + "?sort=-email":              byEmail,
		customers + "?sort=email&status=active": byEmail,
		"/api/orders":                           byEmail,
		"/api/orders?sort=total":                cursor("/api/orders?limit=1"),
		ofA:                                     cursor(at("/api/customers/%s/orders?limit=1", b)),
		at("/api/orders?customer_id=%s", a):     cursor(ofA + "?limit=1"),
		"/api/orders?total_min=1":               cursor("/api/orders?limit=1&total_min=2"),
		customers + "?sort=email&limit=1":       byEmail[:len(byEmail)-2] + "AA",
		customers + "?sort=email&limit=2":       byEmail + "A",
		customers + "?sort=email&limit=3":       base64.RawURLEncoding.EncodeToString([]byte("created_at=2026-01-01T00:00:00Z&id=0")),
		at("/api/customers/%s/events", a):       byEmail,
	} {
		url := path + map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + "cursor=" + c
		require.Equal(t, []string{refused}, s.do("GET", url, nil).problem(422, "invalid"), path)
	}
	// The size of the pages and the total may change on the way.
	next := s.do("GET", customers+"?sort=email&limit=5&include_total=true&cursor="+byEmail, nil).is(200)
	require.Equal(t, "eve@example.com", next.data()[0]["email"])
	require.EqualValues(t, 2, next.object()["total"])

	// What a page ended at can't be read from its cursor.
	raw, err := base64.RawURLEncoding.DecodeString(byEmail)
	require.NoError(t, err)
	require.NotContains(t, string(raw), "example")

	another := startOn(t, db)
	require.Equal(t, "eve@example.com", another.do("GET", customers+"?sort=email&cursor="+byEmail, nil).is(200).data()[0]["email"],
		"every process on the database reads it")
	elsewhere := pgtest.New(t)
	_, err = elsewhere.Pool.Exec(t.Context(), "UPDATE secrets SET value = '\\x01'")
	require.NoError(t, err)
	startOn(t, elsewhere).do("GET", customers+"?sort=email&cursor="+byEmail, nil).problem(422, "invalid")
}

func TestLinksKeepWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i := range 3 {
		s.customer(fmt.Sprintf("c%d@example.com", i))
	}
	a := s.do("GET", customers+"/?limit=1&sort=-email&name_prefix=%61d&include_total=true", nil).is(200)
	link, err := url.Parse(strings.Trim(strings.TrimSuffix(a.Header.Get("Link"), `; rel="next"`), "<>"))
	require.NoError(t, err)
	require.Equal(t, customers+"/", link.Path)
	require.Equal(t, url.Values{"limit": {"1"}, "sort": {"-email"}, "name_prefix": {"ad"}, "include_total": {"true"},
		"cursor": {a.object()["next_cursor"].(string)}}, link.Query())
	require.Equal(t, []any{"c2@example.com", "c1@example.com", "c0@example.com"}, s.walk(customers+"?limit=1&sort=-email", "email"))
	require.Empty(t, s.do("GET", customers, nil).Header.Get("Link"))
}
