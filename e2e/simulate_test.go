package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"outflow/domain"
)

// simulated is the report of `outflow simulate`.
type simulated struct {
	Requests      int
	Made          map[string]int
	Failed        map[string]int
	RequestsASec  float64 `json:"requests_per_second"`
	LatencyOfMost struct {
		P50 float64 `json:"p50_ms"`
		P99 float64 `json:"p99_ms"`
	} `json:"latency_all"`
}

// TestSimulatedLifeAddsUp lets simulated customers act for 20 s at 100 requests
// a second, with two copies of every worker, and holds what came out of it, the
// replica, the figures and the mail, against PostgreSQL.
func TestSimulatedLifeAddsUp(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	s := startSystem(t, 0)
	// Nothing dies here, so a mail that takes long on a busy machine is no reason
	// for a duplicate.
	s.env["OUTFLOW_SMTP_TIMEOUT"] = "60s"
	for range 2 {
		for _, part := range []string{"relay", "replicate", "analyze", "confirm", "notify"} {
			s.run(part)
		}
	}
	out, problem, status := runOnce(t, s.environ(), "outflow", "simulate", "--customers", "150", "--rate", "100/s", "--duration", "20s", "--seed", "7", "--json")
	require.Zero(t, status, problem)
	var report simulated
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	t.Logf("%d requests, %.0f/s, p50 %.1f ms, p99 %.1f ms: %v", report.Requests, report.RequestsASec, report.LatencyOfMost.P50, report.LatencyOfMost.P99, report.Made)
	require.Empty(t, report.Failed)
	require.Greater(t, report.Requests, 1500)

	requireEveryOrderDecided(t, s.client)
	requireKafkaEqualsOutbox(t, s.client)
	requireReplicaEqualsOutbox(t, s.client, "customers", domain.AggregateCustomer)
	requireReplicaEqualsOutbox(t, s.client, "orders", domain.AggregateOrder)
	requireEveryMailArrived(t, s.client, 0)
	requireFiguresEqualPostgreSQL(t, s.client)
	requireLimitsHeld(t, s.client)

	// What the simulator was told is what is there.
	for kind, sql := range map[string]string{
		"register": `SELECT count(*) FROM customers`,
		"order":    `SELECT count(*) FROM orders`,
		"cancel":   `SELECT count(*) FROM outbox WHERE type = 'order.cancelled.v1'`,
		"fulfil":   `SELECT count(*) FROM outbox WHERE type = 'order.fulfilled.v1'`,
		"refund":   `SELECT count(*) FROM outbox WHERE type = 'order.refunded.v1'`,
	} {
		require.Equal(t, report.Made[kind], query[int](t, s.client, sql)[0], kind)
		require.Positive(t, report.Made[kind], kind)
	}
	// Of an order, a customer is told once what was decided and once that it was
	// cancelled.
	require.Zero(t, query[int](t, s.client, `SELECT count(*) FROM (
		SELECT FROM outbox WHERE type = 'notification.requested.v1' GROUP BY after ->> 'template', after -> 'order' ->> 'id', after ->> 'customer_id'
		HAVING count(*) > 1) t`)[0])
	require.Equal(t, query[int](t, s.client, `SELECT count(*) FROM outbox WHERE type IN ('order.confirmed.v1', 'order.rejected.v1', 'order.cancelled.v1', 'customer.created.v1')`),
		query[int](t, s.client, `SELECT count(*) FROM outbox WHERE type = 'notification.requested.v1'`))
	for part, all := range s.parts {
		for _, p := range all {
			require.NoError(t, p.stop(), part)
			// An order may be on Kafka before its transaction is visible, which is
			// no failure.
			require.NotContains(t, p.out.String(), "there is no such order")
		}
	}
}

// query returns the first column of what a query finds.
func query[T any](t *testing.T, c *client, sql string, args ...any) []T {
	t.Helper()
	rows, err := c.postgres.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[T])
	require.NoError(t, err)
	return all
}

// records returns what a query finds, as JSON has it.
func records(t *testing.T, c *client, sql string, args ...any) []any {
	t.Helper()
	all := []any{}
	for _, text := range query[string](t, c, `SELECT to_json(r)::text FROM (`+sql+`) r`, args...) {
		var v any
		require.NoError(t, json.Unmarshal([]byte(text), &v))
		all = append(all, v)
	}
	return all
}

// What SQL says of a window of time: revenue counts orders from when they were
// confirmed, unless they were cancelled, and refunds when they were made.
const (
	transactionsSQL = `SELECT o.id AS order_id, o.customer_id, o.currency, e.occurred_at AS at,
		CASE e.type WHEN 'order.confirmed.v1' THEN o.total ELSE -o.total END AS amount, e.type = 'order.refunded.v1' AS refund
	FROM outbox e JOIN orders o ON o.id = e.aggregate_id
	WHERE (e.type = 'order.refunded.v1' OR e.type = 'order.confirmed.v1' AND o.status <> 'cancelled')
		AND e.occurred_at > $1 AND e.occurred_at <= $2`
	revenueSQL = `SELECT currency, sum(amount) AS amount, coalesce(sum(amount) FILTER (WHERE NOT refund), 0) AS confirmed,
		coalesce(-sum(amount) FILTER (WHERE refund), 0) AS refunded, count(*) FILTER (WHERE NOT refund) AS orders, count(*) FILTER (WHERE refund) AS refunds
	FROM (` + transactionsSQL + `) t GROUP BY currency ORDER BY currency`
	byStatusSQL = `SELECT (SELECT count(*) FROM orders WHERE status = s AND deleted_at IS NULL AND created_at > $1 AND created_at <= $2) AS n
	FROM unnest($3::text[]) WITH ORDINALITY AS u (s, i) ORDER BY i`
)

// requireFiguresEqualPostgreSQL compares what the API answers from the figures
// with SQL.
func requireFiguresEqualPostgreSQL(t *testing.T, c *client) {
	t.Helper()
	ask := func(path string) (answer map[string]any, from, to time.Time) {
		c.do("GET", path, nil, http.StatusOK).into(t, &answer)
		for name, at := range map[string]*time.Time{"from": &from, "to": &to} {
			if text, ok := answer[name].(string); ok {
				var err error
				*at, err = time.Parse(time.RFC3339, text)
				require.NoError(t, err)
			}
		}
		return answer, from, to
	}
	statuses := []string{"placed", "confirmed", "rejected", "fulfilled", "refunded", "cancelled"}
	wanted := func(from, to time.Time) map[string]any {
		counts := map[string]any{}
		for i, n := range query[int](t, c, byStatusSQL, from, to, statuses) {
			counts[statuses[i]] = float64(n)
		}
		return map[string]any{
			"orders_by_status":   counts,
			"revenue":            records(t, c, revenueSQL, from, to),
			"customers_active":   float64(query[int](t, c, `SELECT count(*) FROM customers WHERE status = 'active' AND deleted_at IS NULL`)[0]),
			"customers_ordering": float64(query[int](t, c, `SELECT count(DISTINCT customer_id) FROM orders WHERE deleted_at IS NULL AND created_at > $1 AND created_at <= $2`, from, to)[0]),
		}
	}
	var got, want map[string]any
	agree := func() bool {
		answer, from, to := ask("/api/analytics/summary?window=1h")
		want, got = wanted(from, to), map[string]any{}
		for name := range want {
			got[name] = answer[name]
		}
		return fmt.Sprint(got) == fmt.Sprint(want)
	}
	deadline := time.Now().Add(patience)
	for !agree() && time.Now().Before(deadline) {
		<-time.After(100 * time.Millisecond)
	}
	require.Equal(t, want, got)
	require.NotEmpty(t, got["revenue"])

	series, from, to := ask("/api/analytics/timeseries?metric=orders&window=1h")
	orders := 0.0
	for _, point := range series["data"].([]any) {
		orders += point.(map[string]any)["orders"].(float64)
	}
	require.Equal(t, float64(query[int](t, c, `SELECT count(*) FROM (`+transactionsSQL+`) t WHERE NOT refund`, from, to)[0]), orders)

	top, from, to := ask("/api/analytics/top-customers?currency=EUR&limit=50&window=1h")
	ranks := records(t, c, `SELECT customer_id, 'EUR' AS currency, sum(amount) AS amount, count(*) FILTER (WHERE NOT refund) AS orders
		FROM (`+transactionsSQL+`) t WHERE currency = 'EUR' GROUP BY customer_id ORDER BY amount DESC`, from, to)
	list := top["data"].([]any)
	require.Len(t, list, min(50, len(ranks)))
	require.Subset(t, ranks, list)
	for i := range list { // customers with the same amount may come in any order
		require.Equal(t, ranks[i].(map[string]any)["amount"], list[i].(map[string]any)["amount"])
	}

	for _, id := range query[string](t, c, `SELECT id::text FROM customers WHERE deleted_at IS NULL ORDER BY id`) {
		answer, from, to := ask("/api/customers/" + id + "/transactions?window=6h")
		var got []any
		for _, one := range answer["data"].([]any) {
			one := one.(map[string]any)
			got = append(got, map[string]any{"order_id": one["order_id"], "amount": one["amount"], "currency": one["currency"], "refund": one["kind"] == "refund"})
		}
		want := records(t, c, `SELECT order_id, amount, currency, refund FROM (`+transactionsSQL+`) t WHERE customer_id = $3 ORDER BY at DESC`, from, to, id)
		require.ElementsMatch(t, want, got, "customer %s", id)
		require.ElementsMatch(t, records(t, c, `SELECT currency, sum(amount) AS amount FROM (`+transactionsSQL+`) t WHERE customer_id = $3 GROUP BY currency`, from, to, id),
			answer["sums"], "customer %s", id)
	}
}

// requireLimitsHeld wants no customer over its limit at any time: all that was
// confirmed is within the window of six hours, and what was cancelled meanwhile
// made room.
func requireLimitsHeld(t *testing.T, c *client) {
	t.Helper()
	require.Empty(t, records(t, c, `SELECT c.id FROM customers c JOIN orders o ON o.customer_id = c.id
		WHERE o.status IN ('confirmed', 'fulfilled', 'refunded') AND c.spending_limit_amount IS NOT NULL
		GROUP BY c.id HAVING sum(o.total) > c.spending_limit_amount OR bool_or(o.currency <> c.spending_limit_currency)`))
	for _, reason := range []string{domain.ReasonLimitExceeded, domain.ReasonCustomerSuspended} {
		require.NotEmpty(t, records(t, c, `SELECT id FROM orders WHERE reason = $1 LIMIT 1`, reason), reason)
	}
}
