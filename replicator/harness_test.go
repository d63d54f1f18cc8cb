package replicator

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
	"outflow/internal/failpoint/mutanttest"
	"outflow/internal/kafkatest"
	"outflow/internal/mongofake"
)

var start = time.Date(2026, 11, 21, 4, 5, 6, 789e6, time.UTC)

// system is a broker and a database for one test.
type system struct {
	*kafkatest.Kafka
	t     *testing.T
	uri   string
	db    *mongo.Database
	fake  *mongofake.Server // nil when the server is a real one
	views bool              // whether the server has views
}

func newSystem(t *testing.T) *system {
	t.Helper()
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a Kafka broker and a MongoDB server")
	}
	s := &system{Kafka: kafkatest.Start(t), t: t}
	s.CreateTopics(t, 3)
	s.useMongo()
	return s
}

func (s *system) useMongo() {
	s.uri = os.Getenv("OUTFLOW_TEST_MONGO")
	if s.uri == "" {
		var err error
		s.fake, err = mongofake.Start(context.Background(), mongofake.Config{})
		require.NoError(s.t, err)
		s.t.Cleanup(func() { require.NoError(s.t, s.fake.Close()) })
		s.uri = s.fake.URI()
	}
	u, err := url.Parse(s.uri)
	require.NoError(s.t, err)
	u.Path = "/" + string(s.Namespace)
	if u.User != nil && !u.Query().Has("authSource") {
		q := u.Query()
		q.Set("authSource", "admin")
		u.RawQuery = q.Encode()
	}
	s.uri = u.String()
	client, err := mongo.Connect(options.Client().ApplyURI(s.uri))
	require.NoError(s.t, err)
	s.db = client.Database(string(s.Namespace))
	probe := client.Database(string(s.Namespace) + "_probe")
	_, err = probe.Collection("base").InsertOne(context.Background(), bson.D{{Key: "_id", Value: 1}})
	require.NoError(s.t, err)
	s.views = probe.CreateView(context.Background(), "view", "base", mongo.Pipeline{}) == nil &&
		probe.Collection("view").FindOne(context.Background(), bson.D{}).Err() == nil
	if !s.views {
		s.t.Log("the server has no views: reading base collections as the views would")
	}
	require.NoError(s.t, probe.Drop(context.Background()))
	s.t.Cleanup(func() {
		_ = s.db.Drop(context.Background())
		_ = client.Disconnect(context.Background())
	})
}

// needFake skips a test of what can't be done to a real server.
func (s *system) needFake() {
	if s.fake == nil {
		s.t.Skip("injects faults into the in-process MongoDB server")
	}
}

func (s *system) replicator() *Replicator {
	r, err := New(Config{
		Brokers: s.Brokers, Namespace: s.Namespace, MongoURI: s.uri,
		Logger: slog.New(slog.NewTextHandler(s.t.Output(), nil)), Kafka: kafkatest.Opts(),
	})
	require.NoError(s.t, err)
	return r
}

// run replicates until stop is called or the test ends.
func (s *system) run() (stop func()) { return s.start(s.replicator()) }

func (s *system) start(r *Replicator) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			require.NoError(s.t, err)
		case <-time.After(time.Minute):
			s.t.Error("the replicator did not stop")
		}
	})
	s.t.Cleanup(stop)
	return stop
}

func (s *system) eventually(what string, ok func() bool) {
	s.t.Helper()
	require.Eventually(s.t, ok, mutanttest.Patience(5*time.Minute), 10*time.Millisecond, what)
}

// read is what someone who reads a view or a base collection reads. Beside a
// server that has no views, it is what the view would show.
func (s *system) read(collection string) (*mongo.Collection, bson.D) {
	for _, e := range EntityCollections {
		if e.View == collection && !s.views {
			return s.db.Collection(e.Base), bson.D{{Key: "deleted_at", Value: bson.D{{Key: "$exists", Value: false}}}}
		}
	}
	return s.db.Collection(collection), bson.D{}
}

// raw returns a document, or nil.
func (s *system) raw(collection string, id domain.ID) bson.M {
	c, filter := s.read(collection)
	var doc bson.M
	if err := c.FindOne(context.Background(), append(filter, bson.E{Key: "_id", Value: id.String()})).Decode(&doc); err != nil {
		return nil
	}
	return doc
}

func (s *system) count(collection string) int {
	c, filter := s.read(collection)
	n, err := c.CountDocuments(context.Background(), filter)
	if err != nil {
		return -1
	}
	return int(n)
}

// version returns the version of a document of a base collection, 0 for none.
func (s *system) version(collection string, id domain.ID) int64 {
	v, _ := s.raw(collection, id)["version"].(int64)
	return v
}

func id(n int) domain.ID {
	return domain.MustParseID(fmt.Sprintf("01938f00-0000-7000-8000-%012x", n))
}

// change makes the event of a decision.
func change[T any](t *testing.T, aggregate string, of domain.ID, c domain.Change[T], err error) domain.Event {
	t.Helper()
	require.NoError(t, err)
	e := domain.Event{
		ID: id(int(of[15])<<24 + int(c.Version)), AggregateType: aggregate, AggregateID: of, AggregateVersion: c.Version,
		Type: c.Type, Key: of.String(), Metadata: json.RawMessage("{}"), OccurredAt: c.At,
	}
	if c.Before != nil {
		e.Before, err = json.Marshal(c.Before)
		require.NoError(t, err)
	}
	if c.After != nil {
		e.After, err = json.Marshal(c.After)
		require.NoError(t, err)
	}
	return e
}

// customer is version version of the n-th customer.
func customer(n int, version int64) domain.Event {
	c := domain.Customer{
		ID: id(n), Version: version, CreatedAt: start, UpdatedAt: start.Add(time.Duration(version) * time.Second),
		CustomerInput: domain.CustomerInput{Name: fmt.Sprintf("Ada %d", version), Email: fmt.Sprintf("ada%d@example.com", n), Status: domain.CustomerActive},
	}
	after, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return domain.Event{
		ID: id(n<<20 + int(version)), AggregateType: domain.AggregateCustomer, AggregateID: c.ID, AggregateVersion: version,
		Type: domain.CustomerUpdated, Key: c.ID.String(), After: after, Metadata: json.RawMessage("{}"), OccurredAt: c.UpdatedAt,
	}
}

// deleted is the event that deletes the n-th customer.
func deleted(n int, version int64) domain.Event {
	e := customer(n, version)
	e.Type, e.Before, e.After = domain.CustomerDeleted, e.After, nil
	return e
}

func quoted(s string) json.RawMessage { return json.RawMessage(strings.ReplaceAll(s, "'", `"`)) }
