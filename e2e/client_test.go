package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
	"outflow/internal/events"
)

// client speaks to a running system from outside.
type client struct {
	t        *testing.T
	base     string
	inbox    string
	postgres *pgxpool.Pool
	mongo    *mongo.Database
	brokers  []string
	ns       events.Namespace
}

func newClient(t *testing.T, env map[string]string) *client {
	t.Helper()
	c := &client{
		t: t, base: env["OUTFLOW_API_URL"], inbox: env["OUTFLOW_INBOX_URL"],
		brokers: strings.Split(env["OUTFLOW_KAFKA_BROKERS"], ","), ns: events.Namespace(env["OUTFLOW_KAFKA_NAMESPACE"]),
	}
	if c.ns == "" {
		c.ns = events.DefaultNamespace
	}
	var err error
	c.postgres, err = pgxpool.New(t.Context(), env["OUTFLOW_POSTGRES_URL"])
	require.NoError(t, err)
	t.Cleanup(c.postgres.Close)
	uri, err := url.Parse(env["OUTFLOW_MONGO_URI"])
	require.NoError(t, err)
	m, err := mongo.Connect(options.Client().ApplyURI(env["OUTFLOW_MONGO_URI"]))
	require.NoError(t, err)
	t.Cleanup(func() {
		// Saying goodbye to a server that is gone would take half a minute.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = m.Disconnect(ctx)
	})
	c.mongo = m.Database(strings.Trim(uri.Path, "/"))
	return c
}

// response is an answer of the API.
type response struct {
	Status int
	Header http.Header
	Body   []byte
}

func (r response) into(t *testing.T, v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal(r.Body, v), "%s", r.Body)
}

func (c *client) try(method, path string, body any) (response, error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return response{}, err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, in)
	if err != nil {
		return response{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, b}, err
}

// do asks the API and wants the given status.
func (c *client) do(method, path string, body any, status int) response {
	c.t.Helper()
	r, err := c.try(method, path, body)
	require.NoError(c.t, err)
	require.Equal(c.t, status, r.Status, "%s %s: %s", method, path, r.Body)
	return r
}

func (c *client) createCustomer(in map[string]any) domain.Customer {
	c.t.Helper()
	var got domain.Customer
	c.do("POST", "/api/customers", in, http.StatusCreated).into(c.t, &got)
	return got
}

func (c *client) placeOrder(customer domain.ID) domain.Order {
	c.t.Helper()
	var got domain.Order
	c.do("POST", "/api/orders/", map[string]any{
		"customer_id": customer, "currency": "EUR",
		"items": []any{map[string]any{"sku": "TEA-1", "name": "Grüner Tee", "quantity": 2, "unit_price": 450}},
	}, http.StatusCreated).into(c.t, &got)
	return got
}

// order waits until the API shows the order in the given status.
func (c *client) order(id domain.ID, status domain.OrderStatus) domain.Order {
	c.t.Helper()
	var got domain.Order
	require.Eventually(c.t, func() bool {
		r, err := c.try("GET", "/api/orders/"+id.String(), nil)
		return err == nil && r.Status == http.StatusOK && json.Unmarshal(r.Body, &got) == nil && got.Status == status
	}, patience, 20*time.Millisecond, "order %s is not %s", id, status)
	return got
}

// document waits until a view shows the entity at a version.
func (c *client) document(view string, id domain.ID, version int64) bson.M {
	c.t.Helper()
	var doc bson.M
	require.Eventually(c.t, func() bool {
		doc = nil
		err := c.mongo.Collection(view).FindOne(c.t.Context(), bson.M{"_id": id.String()}).Decode(&doc)
		return err == nil && doc["version"] == version
	}, patience, 20*time.Millisecond, "%s %s at version %d: %v", view, id, version, doc)
	return doc
}

// gone waits until a view does not show the entity any more.
func (c *client) gone(view string, id domain.ID) {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		n, err := c.mongo.Collection(view).CountDocuments(c.t.Context(), bson.M{"_id": id.String()})
		return err == nil && n == 0
	}, patience, 20*time.Millisecond, "%s %s is still there", view, id)
}

type mail struct {
	To        []string `json:"to"`
	Subject   string   `json:"subject"`
	MessageID string   `json:"message_id"`
	Text      string   `json:"text"`
}

func (c *client) mails() []mail {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), "GET", c.inbox, nil)
	require.NoError(c.t, err)
	req.Header.Set("Accept", "application/json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(c.t, err)
	defer resp.Body.Close()
	var all []mail
	require.NoError(c.t, json.NewDecoder(resp.Body).Decode(&all))
	return all
}

// mailTo waits for n mails to an address, and returns them oldest first.
func (c *client) mailTo(address string, n int) []mail {
	c.t.Helper()
	var got []mail
	require.Eventually(c.t, func() bool {
		got = nil
		for _, m := range c.mails() {
			if len(m.To) == 1 && m.To[0] == address {
				got = append([]mail{m}, got...)
			}
		}
		return len(got) >= n
	}, patience, 50*time.Millisecond, "mail to %s: %v", address, got)
	require.Len(c.t, got, n)
	return got
}

// published reads what read_committed consumers see of an aggregate type's
// topic, up to the end that the topic has now, in the order of each partition.
func (c *client) published(aggregateType string) []domain.Event {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	topic := c.ns.Topic(aggregateType)
	k, err := kgo.NewClient(kgo.SeedBrokers(c.brokers...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond), kgo.KeepControlRecords())
	require.NoError(c.t, err)
	defer k.Close()
	ends := stableOffsets(ctx, c.t, k, topic)
	var all []domain.Event
	for len(ends) > 0 {
		fetches := k.PollFetches(ctx)
		require.NoError(c.t, ctx.Err(), "reading %s: still missing up to %v", topic, ends)
		for _, e := range fetches.Errors() {
			require.NoError(c.t, e.Err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= ends[r.Partition] {
				delete(ends, r.Partition)
			}
			if r.Attrs.IsControl() {
				return
			}
			e, err := events.Decode(r)
			require.NoError(c.t, err)
			all = append(all, e)
		})
	}
	return all
}
