package api_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/analytics"
	"outflow/domain"
	"outflow/internal/kafkatest"
	"outflow/internal/mongodb"
	"outflow/internal/mongofake"
)

// mongoServer is a MongoDB server.
type mongoServer struct {
	*mongofake.Server
	uri string
}

func startMongo(t testing.TB) *mongoServer {
	s, err := mongofake.Start(t.Context(), mongofake.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return &mongoServer{s, "mongodb://" + s.Addr().String() + "/test?directConnection=true"}
}

func (m *mongoServer) open(t testing.TB) *mongo.Database {
	target, err := mongodb.Parse(m.uri, "test")
	require.NoError(t, err)
	db, closing, err := target.Open()
	require.NoError(t, err)
	t.Cleanup(func() { _ = closing(context.Background()) })
	return db
}

// count lets a worker count the events of some entities.
func (s *server) count(entities ...map[string]any) {
	k := kafkatest.Fake(s.t)
	k.CreateTopics(s.t, 2)
	var all []domain.Event
	for _, e := range entities {
		aggregate := domain.AggregateCustomer
		if e["customer_id"] != nil {
			aggregate = domain.AggregateOrder
		}
		events, _, err := s.store.History(s.t.Context(), aggregate, domain.MustParseID(e["id"].(string)), 0, 100)
		require.NoError(s.t, err)
		all = append(all, events...)
	}
	k.Publish(s.t, all...)
	w, err := analytics.New(analytics.Config{
		Brokers: k.Brokers, Namespace: k.Namespace, MongoURI: s.mongo.uri, Kafka: kafkatest.Opts(), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	require.Eventually(s.t, func() bool { return w.Stats().Handled == int64(len(all)) }, time.Minute, 10*time.Millisecond)
	cancel()
	require.NoError(s.t, <-done)
}

func TestFiguresAreServed(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.customer("ada@example.com")
	sold, refunded, placed := s.order(c["id"]), s.order(c["id"]), s.order(c["id"])
	total := sold["total"].(float64)
	s.confirm(sold)
	s.confirm(refunded)
	s.do("POST", at("/api/orders/%s/fulfil", refunded), nil).is(200)
	s.do("POST", at("/api/orders/%s/refund", refunded), nil).is(200)
	s.count(c, sold, refunded, placed)
	currency := sold["currency"]

	summary := s.do("GET", "/api/analytics/summary?window=1h", nil).is(200).object()
	require.Equal(t, map[string]any{"placed": 1.0, "confirmed": 1.0, "refunded": 1.0, "fulfilled": 0.0, "rejected": 0.0, "cancelled": 0.0}, summary["orders_by_status"])
	require.Equal(t, []any{map[string]any{"currency": currency, "amount": total, "confirmed": 2 * total, "refunded": total, "orders": 2.0, "refunds": 1.0}}, summary["revenue"])
	require.Equal(t, 1.0, summary["customers_active"])
	require.Equal(t, 1.0, summary["customers_ordering"])
	from, err := time.Parse(time.RFC3339, summary["from"].(string))
	require.NoError(t, err)
	to, err := time.Parse(time.RFC3339, summary["to"].(string))
	require.NoError(t, err)
	require.Equal(t, time.Hour, to.Sub(from))

	for step, points := range map[string]int{"1h": 48, "24h": 2} {
		series := s.do("GET", "/api/analytics/timeseries?metric=orders&window=2d&step="+step, nil).is(200)
		n := 0.0
		for _, p := range series.data() {
			n += p["orders"].(float64)
			require.NotContains(t, p, "revenue")
		}
		require.Equal(t, 2.0, n)
		require.GreaterOrEqual(t, len(series.data()), points)
		require.LessOrEqual(t, len(series.data()), points+1)
	}
	last := s.do("GET", "/api/analytics/timeseries?metric=revenue", nil).is(200).data()
	require.NotContains(t, last[0], "orders")
	require.Equal(t, []any{}, last[0]["revenue"])

	for _, query := range []string{"", "?currency=" + currency.(string), "?limit=1000&window=30d"} {
		require.Equal(t, []map[string]any{{"customer_id": c["id"], "amount": total, "currency": currency, "orders": 2.0}},
			s.do("GET", "/api/analytics/top-customers"+query, nil).is(200).data())
	}
	require.Empty(t, s.do("GET", "/api/analytics/top-customers?currency=XAU", nil).is(200).data())

	transactions := s.do("GET", at("/api/customers/%s/transactions", c), nil).is(200)
	require.Equal(t, []any{map[string]any{"amount": total, "currency": currency}}, transactions.object()["sums"])
	require.Len(t, transactions.data(), 3)
	newest := transactions.data()[0]
	require.Equal(t, refunded["id"], newest["order_id"])
	require.Equal(t, "refund", newest["kind"])
	require.Equal(t, -total, newest["amount"])
	require.Equal(t, transactions.data(), s.do("GET", at("/api/customers/%s/transactions/latest", c), nil).is(200).data())
}

func TestQuestionsAboutWindowsThatAreRefused(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	const window = "query.window must be a whole number of s, m, h or d from 1s to 31d, such as 6h"
	for path, want := range map[string][]string{
		"/api/analytics/summary?window=":                              {window},
		"/api/analytics/summary?window=6":                             {window},
		"/api/analytics/summary?window=0h":                            {window},
		"/api/analytics/summary?window=-6h":                           {window},
		"/api/analytics/summary?window=1.5h":                          {window},
		"/api/analytics/summary?window=1h30m":                         {window},
		"/api/analytics/summary?window=32d":                           {window},
		"/api/analytics/summary?window=99999999999999999999999999h":   {window},
		"/api/analytics/summary?window=1w":                            {window},
		"/api/analytics/summary?windows=1h":                           {"query.windows is not known here"},
		"/api/analytics/timeseries?metric=sales&step=1m&window=x":     {"query.metric must be one of orders, revenue", "query.step must be one of 1h, 24h", window},
		"/api/analytics/top-customers?currency=eur&limit=0":           {"query.limit must be an integer of at least 1", "query.currency must be an ISO 4217 code, such as EUR"},
		"/api/customers/7/transactions":                               {"path.id must be a UUID"},
		"/api/customers/7/transactions/latest":                        {"path.id must be a UUID"},
		"/api/customers/" + someID + "/transactions?window=7":         {window},
		"/api/customers/" + someID + "/transactions/latest?window=6h": {"query.window is not known here"},
	} {
		require.Equal(t, want, s.do("GET", path, nil).problem(422, "invalid"), path)
	}
}

func TestFiguresOfACustomerThatThereIsNot(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{"/api/customers/" + someID + "/transactions", "/api/customers/" + someID + "/transactions/latest"} {
		s.do("GET", path, nil).problem(404, "not-found")
	}
}

func TestFiguresThatCannotBeReadAreUnavailable(t *testing.T) {
	t.Parallel()
	without := startWithoutStore(t)
	a := without.do("GET", "/api/analytics/summary", nil)
	a.problem(503, "unavailable")
	require.Contains(t, a.Raw, "OUTFLOW_MONGO_URI")

	s := start(t)
	c := s.customer("ada@example.com")
	require.NoError(t, s.mongo.Close())
	for _, path := range []string{"/api/analytics/summary", at("/api/customers/%s/transactions", c)} {
		a := s.do("GET", path, nil)
		a.problem(503, "unavailable")
		require.NotContains(t, a.Raw, "connect")
	}
	s.do("GET", at("/api/customers/%s", c), nil).is(200)
}
