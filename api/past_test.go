package api_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/store"
)

func TestPastOfACustomer(t *testing.T) {
	t.Parallel()
	// Each version is a minute younger than the one before.
	var minute int
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 8)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := serve(t, store.New(pool, store.Config{Now: func() time.Time { return begin.Add(time.Duration(minute) * time.Minute) }}))
	first := s.do("POST", "/api/customers", `{"name":"Ada","email":"ada@example.com"}`).is(201)
	path := first.Header.Get("Location")
	minute = 1
	second := s.do("PATCH", path, `{"name":"Ada King"}`).is(200)
	minute = 2
	s.do("DELETE", path, nil).is(204)

	for version, want := range []answer{first, second} {
		got := s.do("GET", fmt.Sprintf("%s?version=%d", path, version+1), nil).is(200)
		require.Equal(t, want.Raw, got.Raw)
		require.Equal(t, fmt.Sprintf(`"%d"`, version+1), got.Header.Get("ETag"))
		s.do("GET", fmt.Sprintf("%s?version=%d", path, version+1), nil, "If-None-Match: "+got.Header.Get("ETag")).is(304)
	}
	asOf := func(at time.Duration) string {
		return path + "?as_of=" + url.QueryEscape(begin.Add(at).In(time.FixedZone("", 3600)).Format(time.RFC3339Nano))
	}
	require.Equal(t, first.Raw, s.do("GET", asOf(0), nil).is(200).Raw)
	require.Equal(t, first.Raw, s.do("GET", asOf(time.Minute-time.Millisecond), nil).is(200).Raw)
	require.Equal(t, second.Raw, s.do("GET", asOf(time.Minute), nil).is(200).Raw)
	require.Equal(t, second.Raw, s.do("GET", asOf(2*time.Minute-time.Millisecond), nil).is(200).Raw)

	for _, none := range []string{
		asOf(-time.Millisecond), // not yet
		asOf(2 * time.Minute),   // no more
		path + "?version=3",     // the one that deleted it
		path + "?version=4",
		"/api/orders" + path[len("/api/customers"):] + "?version=1", // another kind's
		path, // and now
	} {
		s.do("GET", none, nil).problem(404, "not-found")
	}
	for query, field := range map[string]string{
		"version=0": "query.version", "version=x": "query.version", "version=": "query.version", "version=99999999999999999999": "query.version",
		"as_of=yesterday": "query.as_of", "as_of=2026-03-01": "query.as_of", "version=1&as_of=2026-03-01T12:00:00Z": "query.as_of",
	} {
		errors := s.do("GET", path+"?"+query, nil).problem(422, "invalid")
		require.Len(t, errors, 1, query)
		require.Contains(t, errors[0], field+" must", query)
	}
}

func TestPastOfAnOrder(t *testing.T) {
	t.Parallel()
	s := start(t)
	order := s.order(s.customer("ada@example.com")["id"])
	path := at("/api/orders/%s", order)
	s.confirm(order)
	s.do("POST", path+"/cancel", nil).is(200)
	for version, status := range []domain.OrderStatus{domain.OrderStatusPlaced, domain.OrderStatusConfirmed, domain.OrderStatusCancelled} {
		got := s.do("GET", fmt.Sprintf("%s?version=%d", path, version+1), nil).is(200).object()
		require.EqualValues(t, status, got["status"])
		require.EqualValues(t, version+1, got["version"])
	}
	require.Equal(t, "cancelled", s.do("GET", path+"?as_of="+url.QueryEscape(time.Now().Format(time.RFC3339Nano)), nil).is(200).object()["status"])
}
