package e2e_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
)

// TestKilledPartsLoseNothing writes 2,000 times through the API while every
// relay and worker, two copies of each, is killed with SIGKILL and started
// again, and then compares what came out with PostgreSQL.
func TestKilledPartsLoseNothing(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	const writes, writers = 2000, 8
	s := startSystem(t, 2)
	killed := []string{"relay", "replicate", "confirm", "notify"}

	// The kills hang on how many writes were made, not on time: the first copy
	// of each part dies and comes back in the first half, the second in the
	// second half, and at the end both at the same moment.
	random := rand.New(rand.NewPCG(7, 11))
	plan := &killPlan{}
	for _, part := range killed {
		plan.add(200+random.Int64N(600), part, 0)
		plan.add(1000+random.Int64N(400), part, 1)
		plan.add(1500+random.Int64N(400), part, 0, 1)
	}
	var killing sync.WaitGroup
	for _, part := range killed {
		live := slices.Clone(s.parts[part])
		killing.Go(func() {
			for _, k := range plan.kills {
				if k.part != part {
					continue
				}
				<-k.due
				for _, i := range k.copies {
					live[i].awaitMember()
				}
				for _, i := range k.copies {
					live[i].kill()
				}
				close(k.done)
				for _, i := range k.copies {
					live[i] = start(t, s.environ(), "outflow", part)
				}
			}
		})
	}
	var writing sync.WaitGroup
	failures := make(chan error, writers)
	for w := range writers {
		writing.Go(func() {
			if err := writeALot(s.client, rand.New(rand.NewPCG(42, uint64(w))), w, writes/writers, plan); err != nil {
				failures <- err
				plan.wrote(writes) // lets the killers end
			}
		})
	}
	writing.Wait()
	killing.Wait()
	close(failures)
	for err := range failures {
		require.NoError(t, err)
	}

	requireEveryOrderDecided(t, s.client)
	requireKafkaEqualsOutbox(t, s.client)
	requireReplicaEqualsOutbox(t, s.client, "customers", domain.AggregateCustomer)
	requireReplicaEqualsOutbox(t, s.client, "orders", domain.AggregateOrder)
	requireEveryMailArrived(t, s.client, 4)
}

// killPlan says after how many writes which copies of which part die. Writers
// wait for a kill that is due, so that it falls where the plan says.
type killPlan struct {
	kills []*plannedKill
	made  atomic.Int64
}

type plannedKill struct {
	after     int64
	part      string
	copies    []int
	once      sync.Once
	due, done chan struct{}
}

func (p *killPlan) add(after int64, part string, copies ...int) {
	p.kills = append(p.kills, &plannedKill{after: after, part: part, copies: copies, due: make(chan struct{}), done: make(chan struct{})})
}

// wrote counts n writes, and returns when every kill that this makes due has
// happened.
func (p *killPlan) wrote(n int64) {
	made := p.made.Add(n)
	for _, k := range p.kills {
		if made >= k.after {
			k.once.Do(func() { close(k.due) })
			<-k.done
		}
	}
}

// awaitMember waits until a worker has partitions. kfake never forgets a
// member that died while it joined for the first time, and keeps partitions
// for it; Kafka forgets it after the session timeout.
func (p *process) awaitMember() {
	p.t.Helper()
	if strings.HasSuffix(p.name, " relay") {
		return
	}
	deadline := time.After(patience)
	for {
		more := p.out.changed()
		if strings.Contains(p.out.String(), "partitions assigned") {
			return
		}
		select {
		case <-more:
		case <-p.done:
			return
		case <-deadline:
			p.t.Errorf("%s never got partitions", p.name)
			return
		}
	}
}

// writeALot makes n writes: customers, orders, changes, cancellations and
// deletions, at random but the same for the same seed.
func writeALot(c *client, random *rand.Rand, writer, n int, plan *killPlan) error {
	var customers, orders []domain.ID
	create := func(path string, body any, ids *[]domain.ID) error {
		r, err := c.try("POST", path, body)
		if err != nil {
			return err
		}
		if r.Status != http.StatusCreated {
			return fmt.Errorf("POST %s: %d %s", path, r.Status, r.Body)
		}
		var got struct{ ID domain.ID }
		err = json.Unmarshal(r.Body, &got)
		*ids = append(*ids, got.ID)
		return err
	}
	change := func(method, path string, body any) error {
		r, err := c.try(method, path, body)
		if err == nil && r.Status >= 300 && r.Status != http.StatusConflict && r.Status != http.StatusNotFound {
			err = fmt.Errorf("%s %s: %d %s", method, path, r.Status, r.Body)
		}
		return err
	}
	for i := range n {
		var err error
		switch dice := random.IntN(100); {
		case len(customers) == 0 || dice < 25:
			err = create("/api/customers", map[string]any{
				"name": fmt.Sprintf("Customer %d of %d", i, writer), "email": fmt.Sprintf("c%d.%d@example.com", writer, i),
				"status": []string{"active", "active", "active", "suspended"}[random.IntN(4)],
			}, &customers)
		case len(orders) == 0 || dice < 60:
			err = create("/api/orders", map[string]any{
				"customer_id": customers[random.IntN(len(customers))], "currency": "EUR",
				"items": []any{map[string]any{"sku": "S", "name": "Thing", "quantity": 1 + random.IntN(5), "unit_price": random.IntN(10_000)}},
			}, &orders)
			if err != nil && strings.Contains(err.Error(), "customer_id") {
				err = nil // deleted meanwhile, by this writer itself
			}
		case dice < 80:
			err = change("PATCH", "/api/customers/"+customers[random.IntN(len(customers))].String(), map[string]any{"phone": fmt.Sprint(i)})
		case dice < 92:
			err = change("POST", "/api/orders/"+orders[random.IntN(len(orders))].String()+"/cancel", nil)
		case dice < 96:
			err = change("DELETE", "/api/orders/"+orders[random.IntN(len(orders))].String(), nil)
		default:
			err = change("DELETE", "/api/customers/"+customers[random.IntN(len(customers))].String(), nil)
		}
		if err != nil {
			return err
		}
		plan.wrote(1)
	}
	return nil
}

func requireEveryOrderDecided(t *testing.T, c *client) {
	t.Helper()
	var placed int
	require.Eventually(t, func() bool {
		err := c.postgres.QueryRow(t.Context(), `SELECT count(*) FROM orders WHERE status = 'placed' AND deleted_at IS NULL`).Scan(&placed)
		return err == nil && placed == 0
	}, patience, 100*time.Millisecond, "undecided orders: %d", placed)
	var twice int
	require.NoError(t, c.postgres.QueryRow(t.Context(),
		`SELECT count(*) FROM (SELECT FROM outbox WHERE type IN ('order.confirmed.v1', 'order.rejected.v1') GROUP BY aggregate_id HAVING count(*) > 1) t`).Scan(&twice))
	require.Zero(t, twice, "orders decided twice")
}

func requireKafkaEqualsOutbox(t *testing.T, c *client) {
	t.Helper()
	for _, aggregate := range domain.AggregateTypes {
		var want []string
		rows, err := c.postgres.Query(t.Context(), `SELECT event_id::text FROM outbox WHERE aggregate_type = $1`, aggregate)
		require.NoError(t, err)
		for rows.Next() {
			var id string
			require.NoError(t, rows.Scan(&id))
			want = append(want, id)
		}
		require.NoError(t, rows.Err())
		var got []domain.Event
		require.Eventually(t, func() bool {
			got = c.published(aggregate)
			return len(got) >= len(want)
		}, patience, 100*time.Millisecond, "%s: %d of %d events in Kafka", aggregate, len(got), len(want))
		versions := map[domain.ID]int64{}
		var ids []string
		for _, e := range got {
			require.Equal(t, versions[e.AggregateID]+1, e.AggregateVersion, "%s %s is out of order", aggregate, e.AggregateID)
			versions[e.AggregateID] = e.AggregateVersion
			ids = append(ids, e.ID.String())
		}
		require.ElementsMatch(t, want, ids, aggregate)
	}
}

// requireReplicaEqualsOutbox compares a view with the last state of every
// aggregate, field by field.
func requireReplicaEqualsOutbox(t *testing.T, c *client, view, aggregate string) {
	t.Helper()
	want := map[string]map[string]any{}
	rows, err := c.postgres.Query(t.Context(), `SELECT DISTINCT ON (aggregate_id) aggregate_id::text, after FROM outbox
		WHERE aggregate_type = $1 ORDER BY aggregate_id, aggregate_version DESC`, aggregate)
	require.NoError(t, err)
	for rows.Next() {
		var id string
		var after []byte
		require.NoError(t, rows.Scan(&id, &after))
		if after != nil {
			var doc map[string]any
			require.NoError(t, json.Unmarshal(after, &doc))
			want[id] = doc
		}
	}
	require.NoError(t, rows.Err())
	var got map[string]map[string]any
	require.Eventually(t, func() bool {
		got = c.viewAsJSON(view)
		if len(got) != len(want) {
			return false
		}
		for id, doc := range want {
			if got[id] == nil || got[id]["version"] != doc["version"] {
				return false
			}
		}
		return true
	}, patience, 200*time.Millisecond, "%s: %d documents, %d expected", view, len(got), len(want))
	require.Equal(t, want, got, view)
}

// viewAsJSON reads a view as the API would show it.
func (c *client) viewAsJSON(view string) map[string]map[string]any {
	c.t.Helper()
	cur, err := c.mongo.Collection(view).Find(c.t.Context(), bson.M{})
	require.NoError(c.t, err)
	all := map[string]map[string]any{}
	for cur.Next(c.t.Context()) {
		var doc bson.M
		require.NoError(c.t, cur.Decode(&doc))
		id := doc["_id"].(string)
		doc["id"] = id
		delete(doc, "_id")
		for _, field := range []string{"created_at", "updated_at"} {
			doc[field] = doc[field].(bson.DateTime).Time().UTC()
		}
		b, err := json.Marshal(plain(doc))
		require.NoError(c.t, err)
		var m map[string]any
		require.NoError(c.t, json.Unmarshal(b, &m))
		all[id] = m
	}
	require.NoError(c.t, cur.Err())
	return all
}

// plain turns the driver's ordered documents into maps.
func plain(v any) any {
	switch d := v.(type) {
	case bson.M:
		m := map[string]any{}
		for k, v := range d {
			m[k] = plain(v)
		}
		return m
	case bson.D:
		m := map[string]any{}
		for _, e := range d {
			m[e.Key] = plain(e.Value)
		}
		return m
	case bson.A:
		a := make([]any, len(d))
		for i, v := range d {
			a[i] = plain(v)
		}
		return a
	}
	return v
}

// requireEveryMailArrived wants every notification's mail once; each killed
// notifier may have been between the server's acceptance and its mark, and so
// explains as many duplicates as it sends at once.
func requireEveryMailArrived(t *testing.T, c *client, notifierKills int) {
	t.Helper()
	want := map[string]bool{}
	rows, err := c.postgres.Query(t.Context(), `SELECT event_id::text FROM outbox WHERE type = 'notification.requested.v1'`)
	require.NoError(t, err)
	for rows.Next() {
		var id string
		require.NoError(t, rows.Scan(&id))
		want[id] = true
	}
	require.NoError(t, rows.Err())
	arrived := map[string]int{}
	require.Eventually(t, func() bool {
		clear(arrived)
		for _, m := range c.mails() {
			id, _, _ := strings.Cut(strings.Trim(m.MessageID, "<>"), "@")
			arrived[id]++
		}
		return len(arrived) >= len(want)
	}, patience, 200*time.Millisecond, "mails missing")
	duplicates := 0
	for id, n := range arrived {
		require.True(t, want[id], "mail %s was never asked for", id)
		duplicates += n - 1
	}
	require.Len(t, arrived, len(want))
	t.Logf("%d mails, %d sent twice, %d notifiers killed", len(arrived), duplicates, notifierKills)
	require.LessOrEqual(t, duplicates, notifierKills*sendsAtOnce, "more duplicates than the killed notifiers explain")
	if duplicates > 0 {
		var unmarked int
		require.NoError(t, c.postgres.QueryRow(t.Context(), `SELECT count(*) FROM mail WHERE attempts > 1`).Scan(&unmarked))
		require.GreaterOrEqual(t, unmarked, duplicates, "a mail was sent twice though its first claim was marked")
	}
}

// sendsAtOnce is how many mails one notifier hands to the server at a time.
const sendsAtOnce = 4
