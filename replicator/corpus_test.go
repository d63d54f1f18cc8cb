package replicator

import (
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/events"
	"outflow/internal/kafkatest"
)

var update = flag.Bool("update", false, "add events of types that the corpus lacks; those that are there never change")

const (
	corpus    = "testdata/events"
	documents = "testdata/documents" // what they become
)

// recorded is an event as it was published once: the record's key, headers and
// value, the value as JSON. Its file is named by its type and the version of
// the aggregate.
type recorded struct {
	Topic   string            `json:"topic"` // without the namespace
	Key     string            `json:"key"`
	Headers map[string]string `json:"headers"`
	Value   json.RawMessage   `json:"value"`
}

func (r recorded) record(ns events.Namespace) *kgo.Record {
	out := &kgo.Record{Topic: string(ns) + "." + r.Topic, Key: []byte(r.Key), Value: r.Value}
	for _, k := range slices.Sorted(keys(r.Headers)) {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: k, Value: []byte(r.Headers[k])})
	}
	return out
}

func keys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// eventType is how the types of events look.
var eventType = regexp.MustCompile(`^[a-z]+\.[a-z_]+\.v\d+$`)

// published are the types that the domain publishes today, wherever in it they
// are named: the constants of one file would leave out those of another.
func published(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../domain/*.go")
	require.NoError(t, err)
	var types []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil && eventType.MatchString(s) {
					types = append(types, s)
				}
			}
			return true
		})
	}
	require.NotEmpty(t, types)
	return types
}

// record adds what the corpus lacks, as today's domain decides it.
func record(t *testing.T) {
	t.Helper()
	at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Minute) }
	ada, err := domain.CreateCustomer(id(1), domain.CustomerInput{
		Name: "Ada Löv", Email: "ada@example.com", Phone: "+49 30 1", Address: &domain.Address{Line1: "Weg 1", City: "Berlin", Country: "DE"},
		SpendingLimit: &domain.Money{Amount: 100_000, Currency: "EUR"}, Metadata: map[string]string{"source": "shop"},
	}, start)
	all := []domain.Event{change(t, domain.AggregateCustomer, id(1), ada, err)}
	in := ada.After.Clone()
	in.Name = "Ada Lovelace"
	renamed, err := domain.UpdateCustomer(*ada.After, in, at(1))
	all = append(all, change(t, domain.AggregateCustomer, id(1), renamed, err))
	gone, err := domain.DeleteCustomer(*renamed.After, false, at(90))
	all = append(all, change(t, domain.AggregateCustomer, id(1), gone, err))

	orderIn := domain.OrderInput{CustomerID: id(1), Currency: "EUR", Items: []domain.Item{{SKU: "TEA-1", Name: "Tea", Quantity: 2, UnitPrice: 450}}}
	order := func(n int, steps ...func(domain.Order) (domain.Change[domain.Order], error)) {
		placed, err := domain.PlaceOrder(id(n), orderIn, at(n))
		all = append(all, change(t, domain.AggregateOrder, id(n), placed, err))
		now := *placed.After
		for _, step := range steps {
			next, err := step(now)
			all = append(all, change(t, domain.AggregateOrder, id(n), next, err))
			if next.After != nil {
				now = *next.After
			}
		}
	}
	edit := func(o domain.Order) (domain.Change[domain.Order], error) {
		in := o.OrderInput.Clone()
		in.Items[0].Quantity = 3
		return domain.UpdateOrder(o, in, at(20))
	}
	confirm := func(o domain.Order) (domain.Change[domain.Order], error) {
		next := o
		next.Status, next.Version, next.UpdatedAt = domain.OrderStatusConfirmed, o.Version+1, domain.Timestamp(at(21))
		return domain.Change[domain.Order]{Type: domain.OrderConfirmed, Before: &o, After: &next, Version: next.Version, At: next.UpdatedAt}, nil
	}
	reject := func(o domain.Order) (domain.Change[domain.Order], error) {
		next := o
		next.Status, next.Reason, next.Version, next.UpdatedAt = domain.OrderStatusRejected, domain.ReasonCustomerSuspended, o.Version+1, domain.Timestamp(at(22))
		return domain.Change[domain.Order]{Type: domain.OrderRejected, Before: &o, After: &next, Version: next.Version, At: next.UpdatedAt}, nil
	}
	order(2, edit, confirm,
		func(o domain.Order) (domain.Change[domain.Order], error) { return domain.FulfilOrder(o, at(30)) },
		func(o domain.Order) (domain.Change[domain.Order], error) { return domain.RefundOrder(o, at(40)) })
	order(3, reject, func(o domain.Order) (domain.Change[domain.Order], error) { return domain.DeleteOrder(o, at(50)) })
	order(4, func(o domain.Order) (domain.Change[domain.Order], error) {
		return domain.CancelOrder(o, *ada.After, at(60))
	})
	note := ada.Notifications[0]
	note.ID = id(9)
	body, err := json.Marshal(note)
	require.NoError(t, err)
	all = append(all, domain.Event{
		ID: id(9), AggregateType: domain.AggregateNotification, AggregateID: id(9), AggregateVersion: 1, Type: domain.NotificationRequested,
		Key: id(1).String(), After: body, Metadata: json.RawMessage(`{"actor":"api"}`), OccurredAt: start,
	})
	require.NoError(t, os.MkdirAll(corpus, 0o755))
	for _, e := range all {
		name := filepath.Join(corpus, e.Type+"."+e.AggregateID.String()[34:]+".json")
		if _, err := os.Stat(name); err == nil {
			continue
		}
		rec := events.Namespace("").Record(&e)
		r := recorded{Topic: strings.TrimPrefix(rec.Topic, "."), Key: string(rec.Key), Headers: map[string]string{}, Value: rec.Value}
		for _, h := range rec.Headers {
			r.Headers[h.Key] = string(h.Value)
		}
		r.Headers["ce_source"] = "/outflow"
		b, err := json.MarshalIndent(r, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, append(b, '\n'), 0o644))
	}
}

// read returns the corpus: of one aggregate in the order of versions.
func readCorpus(t *testing.T) []recorded {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(corpus, "*.json"))
	require.NoError(t, err)
	var all []recorded
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		var r recorded
		require.NoError(t, json.Unmarshal(b, &r), f)
		all = append(all, r)
	}
	version := func(r recorded) int64 {
		e, err := events.Decode(r.record("x"))
		require.NoError(t, err)
		return e.AggregateVersion
	}
	slices.SortStableFunc(all, func(a, b recorded) int { return int(version(a) - version(b)) })
	return all
}

// Every type and version of an event that was ever published is in the corpus.
func TestTheCorpusIsComplete(t *testing.T) {
	if *update {
		record(t)
	}
	var have []string
	for _, r := range readCorpus(t) {
		have = append(have, r.Headers["ce_type"])
	}
	for _, typ := range published(t) {
		require.Contains(t, have, typ, "run: go test ./replicator -run Corpus -update")
	}
}

// Events as they were published years ago make today's replica.
func TestOldEventsAreReplayed(t *testing.T) {
	s := newSystem(t)
	for _, r := range readCorpus(t) {
		s.Produce(t, r.record(s.Namespace))
	}
	for range 2 { // the worker's way, and a rebuild's
		stop := s.run()
		s.eventually("replayed", func() bool {
			return s.version("_customers", id(1)) == 3 && s.version("_orders", id(2)) == 5 && s.version("_orders", id(3)) == 3 && s.version("_orders", id(4)) == 2
		})
		require.Nil(t, s.raw("customers", id(1)))
		require.Nil(t, s.raw("orders", id(3)))
		refunded := s.raw("orders", id(2))
		require.Equal(t, "refunded", refunded["status"])
		require.Equal(t, int64(1350), refunded["total"])
		require.Equal(t, id(1).String(), refunded["customer_id"])
		require.Equal(t, "cancelled", s.raw("orders", id(4))["status"])
		stop()
		for _, e := range EntityCollections {
			_, err := s.rebuild(e)
			require.NoError(t, err)
		}
	}
}

// Each of them still becomes the document that it became when it was recorded,
// with the types of its values.
func TestOldEventsBecomeTheSameDocuments(t *testing.T) {
	for _, r := range readCorpus(t) {
		e, err := events.Decode(r.record("x"))
		require.NoError(t, err)
		if e.AggregateType == domain.AggregateNotification {
			continue // not replicated
		}
		doc, err := Document(e)
		require.NoError(t, err)
		got, err := bson.MarshalExtJSONIndent(doc, true, false, "", "  ")
		require.NoError(t, err)
		name := filepath.Join(documents, e.Type+"."+e.AggregateID.String()[34:]+".json")
		if _, err := os.Stat(name); *update && errors.Is(err, fs.ErrNotExist) {
			require.NoError(t, os.MkdirAll(documents, 0o755))
			require.NoError(t, os.WriteFile(name, append(got, '\n'), 0o644))
		}
		want, err := os.ReadFile(name)
		require.NoError(t, err, "run: go test ./replicator -run Document -update")
		require.Equal(t, string(want), string(got)+"\n", name)
	}
}

// Row 24 of the failure table: an event of an unknown newer version is parked,
// with what follows in its key, and never half-applied; a rebuild leaves out
// the same, and what an operator dropped is left out alone.
func TestRow24AnEventOfAnUnknownVersion(t *testing.T) {
	s := newSystem(t)
	s.run()
	newer := customer(1, 2)
	newer.Type = "customer.updated.v2"
	s.Publish(t, customer(1, 1), customer(2, 1), newer, customer(1, 3), customer(2, 2))
	letters, err := consumer.OpenDeadLetters(s.Brokers, s.Namespace.Group("replicator"), kafkatest.Opts()...)
	require.NoError(t, err)
	defer letters.Close()
	var all []consumer.DeadLetter
	s.eventually("parked", func() bool {
		all, err = letters.List(t.Context())
		return err == nil && len(all) == 2 && s.version("_customers", id(2)) == 2
	})
	require.Equal(t, int64(1), s.version("_customers", id(1)))
	_, err = s.rebuild(customers)
	require.NoError(t, err)
	require.Equal(t, int64(1), s.version("_customers", id(1)), "as the replicator has it")
	require.Equal(t, int64(2), s.version("_customers", id(2)))
	s.Publish(t, customer(1, 4), customer(2, 3))
	s.eventually("the other flows, and this one is parked", func() bool {
		all, err = letters.List(t.Context())
		return err == nil && len(all) == 3 && s.version("_customers", id(2)) == 3
	})
	require.Equal(t, int64(1), s.version("_customers", id(1)))
	require.NoError(t, letters.Drop(t.Context(), all[0].ID))
	require.NoError(t, letters.Retry(t.Context(), all[1].ID))
	require.Equal(t, int64(4), s.version("_customers", id(1)))
	_, err = s.rebuild(customers)
	require.NoError(t, err)
	require.Equal(t, int64(4), s.version("_customers", id(1)), "what was dropped doesn't count")
}

// One that the replicator hasn't seen yet is left to it.
func TestRow24AnUnknownVersionThatTheRebuildSeesFirst(t *testing.T) {
	s := newSystem(t)
	newer := customer(1, 2)
	newer.Type = "customer.updated.v2"
	s.Publish(t, customer(1, 1), newer, customer(1, 3), customer(2, 1))
	res, err := s.rebuild(customers)
	require.NoError(t, err)
	require.Equal(t, 1, res.LeftOut)
	require.Equal(t, int64(1), s.version("_customers", id(1)))
	s.run()
	letters, err := consumer.OpenDeadLetters(s.Brokers, s.Namespace.Group("replicator"), kafkatest.Opts()...)
	require.NoError(t, err)
	defer letters.Close()
	s.eventually("parked", func() bool {
		all, err := letters.List(t.Context())
		return err == nil && len(all) == 2
	})
	require.Equal(t, int64(1), s.version("_customers", id(1)))
}
