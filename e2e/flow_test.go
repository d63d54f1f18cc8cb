package e2e_test

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
)

// system is outflow run as in production, a process per part, on the servers
// of a stack.
type system struct {
	*client
	*stack
	parts map[string][]*process
}

// startSystem starts the servers, with further arguments for outflow-dev, and
// copies of each part; the API is alone.
func startSystem(t *testing.T, copies int, args ...string) *system {
	t.Helper()
	args = append([]string{"--services-only", "--ephemeral", "--listen", "127.0.0.1:0"}, args...)
	s := &system{stack: startStack(t, t.TempDir(), args...), parts: map[string][]*process{}}
	if brokers := os.Getenv("OUTFLOW_TEST_KAFKA"); brokers != "" {
		s.env["OUTFLOW_KAFKA_BROKERS"] = brokers
		s.env["OUTFLOW_KAFKA_NAMESPACE"] = "e2e-" + strings.ToLower(rand.Text()[:10])
	}
	// A killed notifier's claims run out soon.
	s.env["OUTFLOW_SMTP_TIMEOUT"] = "2s"
	s.client = newClient(t, s.env)
	s.run("api")
	for range copies {
		for _, part := range []string{"relay", "replicate", "confirm", "notify"} {
			s.run(part)
		}
	}
	waitHTTP(t, s.base+"/readyz")
	return s
}

func (s *system) run(part string) *process {
	p := start(s.stack.t, s.environ(), "outflow", part)
	s.parts[part] = append(s.parts[part], p)
	return p
}

func TestFromHTTPToMongoDBAndInbox(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	s := startSystem(t, 1)
	c := s.client

	ada := c.createCustomer(map[string]any{
		"name": "Ada Lovelace", "email": "Ada@example.com", "phone": "1-800-FLOWERS",
		"address":        map[string]any{"line1": "12 St James's Square", "city": "London", "country": "GB"},
		"spending_limit": map[string]any{"amount": 50_000, "currency": "EUR"},
		"metadata":       map[string]any{"tier": "gold"},
	})
	require.Equal(t, int64(1), ada.Version)
	order := c.placeOrder(ada.ID)
	require.Equal(t, domain.OrderStatusPlaced, order.Status)
	require.Equal(t, int64(900), order.Total)

	order = c.order(order.ID, domain.OrderStatusConfirmed)
	require.Equal(t, int64(2), order.Version)
	doc := c.document("orders", order.ID, 2)
	require.Equal(t, "confirmed", doc["status"])
	require.Equal(t, int64(900), doc["total"])
	require.Equal(t, ada.ID.String(), doc["customer_id"])
	doc = c.document("customers", ada.ID, 1)
	require.Equal(t, "1-800-FLOWERS", doc["phone"])
	require.Equal(t, "London", sub(t, doc["address"])["city"])
	require.Equal(t, int64(50_000), sub(t, doc["spending_limit"])["amount"])
	require.Equal(t, bson.NewDateTimeFromTime(ada.CreatedAt), doc["created_at"])

	mails := c.mailTo("Ada@example.com", 2)
	require.Contains(t, mails[0].Text+mails[1].Text, "Grüner Tee")
	require.NotEqual(t, mails[0].MessageID, mails[1].MessageID)

	// Change, cancel, delete, and see that everywhere too.
	var changed domain.Customer
	c.do("PATCH", "/api/customers/"+ada.ID.String(), map[string]any{"phone": nil, "name": "Ada King"}, http.StatusOK).into(t, &changed)
	require.Equal(t, "Ada King", changed.Name)
	require.Empty(t, changed.Phone)
	doc = c.document("customers", ada.ID, 2)
	require.Equal(t, "Ada King", doc["name"])
	require.NotContains(t, doc, "phone")

	c.do("DELETE", "/api/customers/"+ada.ID.String()+"/", nil, http.StatusConflict)
	c.do("POST", "/api/orders/"+order.ID.String()+"/cancel", nil, http.StatusOK)
	require.Equal(t, "cancelled", c.document("orders", order.ID, 3)["status"])
	require.Len(t, c.mailTo("Ada@example.com", 3), 3)
	c.do("DELETE", "/api/orders/"+order.ID.String(), nil, http.StatusNoContent)
	c.do("DELETE", "/api/customers/"+ada.ID.String(), nil, http.StatusNoContent)
	c.do("GET", "/api/customers/"+ada.ID.String(), nil, http.StatusNotFound)
	c.gone("customers", ada.ID)
	c.gone("orders", order.ID)

	// Kafka has every event once, in order, and so has the API's history.
	require.Eventually(t, func() bool { return len(c.published(domain.AggregateOrder)) >= 4 }, patience, 100*time.Millisecond)
	require.Equal(t, []string{"customer.created.v1 1", "customer.updated.v1 2", "customer.deleted.v1 3"}, typesOf(c.published(domain.AggregateCustomer)))
	require.Equal(t, []string{"order.placed.v1 1", "order.confirmed.v1 2", "order.cancelled.v1 3", "order.deleted.v1 4"}, typesOf(c.published(domain.AggregateOrder)))
	var history struct {
		Data []struct {
			ID            domain.ID
			Type          string
			Version       int64
			Before, After json.RawMessage
			OccurredAt    time.Time `json:"occurred_at"`
		}
	}
	c.do("GET", "/api/orders/"+order.ID.String()+"/events", nil, http.StatusOK).into(t, &history)
	require.Len(t, history.Data, 4)
	for i, e := range c.published(domain.AggregateOrder) {
		require.Equal(t, e.ID, history.Data[i].ID)
		require.Equal(t, e.Type, history.Data[i].Type)
		require.Equal(t, e.AggregateVersion, history.Data[i].Version)
	}
	require.JSONEq(t, string(history.Data[1].After), string(history.Data[2].Before))

	for _, p := range []string{"api", "relay", "replicate", "confirm", "notify"} {
		require.NoError(t, s.parts[p][0].stop(), p)
	}
	require.NoError(t, s.stop())
}

func sub(t *testing.T, v any) map[string]any {
	t.Helper()
	m := map[string]any{}
	switch d := v.(type) {
	case bson.D:
		for _, e := range d {
			m[e.Key] = e.Value
		}
	case bson.M:
		m = d
	default:
		require.Failf(t, "not a document", "%T", v)
	}
	return m
}

func typesOf(all []domain.Event) []string {
	var types []string
	for _, e := range all {
		types = append(types, e.Type+" "+string(rune('0'+e.AggregateVersion)))
	}
	return types
}
