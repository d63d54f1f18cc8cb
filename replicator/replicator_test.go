package replicator

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/kafkatest"
	"outflow/internal/mongodb"
	"outflow/internal/mongofake"
)

func TestTheReplicaFollowsEntities(t *testing.T) {
	s := newSystem(t)
	s.run()
	ada, err := domain.CreateCustomer(id(1), domain.CustomerInput{
		Name: "Ada Löv", Email: "ada@example.com", Phone: "1-800-FLOWERS", Address: &domain.Address{City: "Berlin"},
		SpendingLimit: &domain.Money{Amount: domain.MaxAmount, Currency: "EUR"}, Metadata: map[string]string{"a.b": "$x", "$c": ""},
	}, start)
	s.Publish(t, change(t, domain.AggregateCustomer, id(1), ada, err))
	order, err := domain.PlaceOrder(id(2), domain.OrderInput{CustomerID: id(1), Currency: "EUR", Items: []domain.Item{{SKU: "A", Quantity: 2, UnitPrice: 150}}}, start)
	s.Publish(t, change(t, domain.AggregateOrder, id(2), order, err))

	s.eventually("both documents", func() bool { return s.raw("customers", id(1)) != nil && s.raw("orders", id(2)) != nil })
	require.Equal(t, bson.M{
		"_id": id(1).String(), "version": int64(1), "name": "Ada Löv", "email": "ada@example.com", "phone": "1-800-FLOWERS",
		"address": bson.D{{Key: "city", Value: "Berlin"}}, "status": "active",
		"spending_limit": bson.D{{Key: "amount", Value: int64(domain.MaxAmount)}, {Key: "currency", Value: "EUR"}},
		"metadata":       bson.D{{Key: "$c", Value: ""}, {Key: "a.b", Value: "$x"}},
		"created_at":     bson.NewDateTimeFromTime(start), "updated_at": bson.NewDateTimeFromTime(start),
	}, s.raw("customers", id(1)))
	require.Equal(t, bson.M{
		"_id": id(2).String(), "version": int64(1), "customer_id": id(1).String(), "currency": "EUR", "total": int64(300), "status": "placed",
		"items":      bson.A{bson.D{{Key: "sku", Value: "A"}, {Key: "quantity", Value: int64(2)}, {Key: "unit_price", Value: int64(150)}}},
		"created_at": bson.NewDateTimeFromTime(start), "updated_at": bson.NewDateTimeFromTime(start),
	}, s.raw("orders", id(2)))

	cancelled, err := domain.CancelOrder(*order.After, *ada.After, start.Add(time.Second))
	s.Publish(t, change(t, domain.AggregateOrder, id(2), cancelled, err))
	s.eventually("the cancellation", func() bool { return s.raw("orders", id(2))["status"] == "cancelled" })
	gone, err := domain.DeleteCustomer(*ada.After, false, start.Add(time.Minute))
	s.Publish(t, change(t, domain.AggregateCustomer, id(1), gone, err))
	s.eventually("the deletion", func() bool { return s.raw("customers", id(1)) == nil })
	require.Equal(t, bson.M{
		"_id": id(1).String(), "version": int64(2), "deleted_at": bson.NewDateTimeFromTime(start.Add(time.Minute)),
	}, s.raw("_customers", id(1)), "nothing personal is left")
}

func TestRow16OlderUpdateAfterDeleteStaysDeleted(t *testing.T) {
	s := newSystem(t)
	s.run()
	s.Publish(t, customer(1, 3), customer(2, 1))
	s.eventually("the newest", func() bool { return s.version("_customers", id(1)) == 3 && s.version("_customers", id(2)) == 1 })
	s.Publish(t, customer(1, 1), customer(1, 2), deleted(2, 3), customer(3, 1))
	s.eventually("the batch", func() bool { return s.version("_customers", id(3)) == 1 })
	require.Equal(t, "Ada 3", s.raw("customers", id(1))["name"])
	s.eventually("the deletion", func() bool { return s.version("_customers", id(2)) == 3 })
	// A replay from the beginning, and a message that someone held back.
	s.Publish(t, customer(2, 1), customer(2, 2), deleted(2, 3), customer(3, 2))
	s.eventually("the replay", func() bool { return s.version("_customers", id(3)) == 2 })
	require.Nil(t, s.raw("customers", id(2)))
	require.Equal(t, int64(3), s.version("_customers", id(2)))
}

func TestADroppedReplicaIsFilledAgain(t *testing.T) {
	for name, drop := range map[string]func(ctx context.Context, s *system) error{
		"database":   func(ctx context.Context, s *system) error { return s.db.Drop(ctx) },
		"collection": func(ctx context.Context, s *system) error { return s.db.Collection("_customers").Drop(ctx) },
		"positions":  func(ctx context.Context, s *system) error { return s.db.Collection(positionsCollection).Drop(ctx) },
	} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, running %t", name, running), func(t *testing.T) {
				s := newSystem(t)
				stop := s.run()
				for n := range 20 {
					s.Publish(t, customer(n, 1))
				}
				s.eventually("filled", func() bool { return s.count("customers") == 20 })
				s.eventually("positions", func() bool { return s.count(positionsCollection) == 6 })
				if !running {
					stop()
				}
				require.NoError(t, drop(t.Context(), s))
				if !running {
					s.run()
				}
				s.eventually("filled again", func() bool { return s.count("customers") == 20 && s.count(positionsCollection) == 6 })
				s.Publish(t, customer(1, 2))
				s.eventually("followed again", func() bool { return s.version("_customers", id(1)) == 2 })
			})
		}
	}
}

// backup is what is in the collection of customers and in that of the positions.
func (s *system) backup() (documents, places []bson.M) {
	for name, into := range map[string]*[]bson.M{"_customers": &documents, positionsCollection: &places} {
		c, err := s.db.Collection(name).Find(s.t.Context(), bson.D{})
		require.NoError(s.t, err)
		require.NoError(s.t, c.All(s.t.Context(), into))
	}
	return documents, places
}

// putBack puts a backup back in place, the positions last: what is put back
// after those is not noticed. Like mongorestore, it leaves documents that came
// meanwhile: a replicator that finds no position begins at the start.
func (s *system) putBack(documents, places []bson.M) {
	for _, of := range []struct {
		name string
		docs []bson.M
	}{{"_customers", documents}, {positionsCollection, places}} {
		_, err := s.db.Collection(of.name).DeleteMany(s.t.Context(), bson.D{})
		require.NoError(s.t, err)
		_, err = s.db.Collection(of.name).InsertMany(s.t.Context(), of.docs, options.InsertMany().SetOrdered(false))
		if !mongodb.HasCode(err, mongodb.CodeDuplicateKey) {
			require.NoError(s.t, err)
		}
	}
}

func TestABackupCatchesUpFromWhereItIs(t *testing.T) {
	s := newSystem(t)
	stop := s.run()
	s.Publish(t, customer(1, 1), customer(2, 1))
	s.eventually("two", func() bool { return s.count("customers") == 2 })
	stop()
	documents, places := s.backup()
	s.run()
	s.Publish(t, customer(1, 2), customer(3, 1))
	s.eventually("three", func() bool { return s.count("customers") == 3 && s.version("_customers", id(1)) == 2 })

	// While the replicator runs, whatever it has in hand.
	s.putBack(documents, places)
	s.eventually("caught up", func() bool { return s.count("customers") == 3 && s.version("_customers", id(1)) == 2 })
}

// A backup is put back between a batch and its position: the position that is
// put back is as far as the one that the replicator wrote last.
func TestABackupIsPutBackInTheMiddleOfABatch(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	stop := s.run()
	s.Publish(t, customer(1, 1), customer(2, 1))
	s.eventually("two", func() bool { return s.count("customers") == 2 })
	stop()
	documents, places := s.backup()
	r := s.replicator()
	s.start(r)
	s.eventually("partitions", func() bool { return r.Stats().Partitions == 6 })
	unsaved := s.fake.Fault(mongofake.Fault{Command: "update", Collection: positionsCollection, Code: 2})
	s.Publish(t, customer(1, 2), customer(3, 1))
	s.eventually("three", func() bool { return s.count("customers") == 3 && s.version("_customers", id(1)) == 2 })
	require.NoError(t, unsaved.Wait(t.Context(), 1))
	s.putBack(documents, places)
	require.Equal(t, int64(1), s.version("_customers", id(1)))
	unsaved.Remove()
	s.eventually("caught up", func() bool { return s.count("customers") == 3 && s.version("_customers", id(1)) == 2 })
}

func TestRow15ReplicatorsThatComeAndGoUnderLoadEndEqual(t *testing.T) {
	s := newSystem(t)
	const entities = 40
	version := int64(0)
	publish := func() {
		version++
		var all []domain.Event
		for n := range entities {
			all = append(all, customer(n, version))
			if version > 3 && rand.N(4) == 0 { // a replay beside live traffic
				all = append(all, customer(n, version-2))
			}
		}
		s.Publish(t, all...)
	}
	under := func(r *Replicator) {
		t.Helper()
		before := r.Stats().Handled
		for deadline := time.Now().Add(5 * time.Minute); r.Stats().Handled == before; publish() {
			require.False(t, time.Now().After(deadline), "a replicator got nothing to do")
		}
	}
	one, two, three := s.replicator(), s.replicator(), s.replicator()
	stopOne := s.start(one)
	under(one)
	s.start(two)
	under(two)
	stopOne()
	s.start(three)
	under(three)
	publish()
	for n := 0; n < entities; n += 5 {
		s.Publish(t, deleted(n, version+1), customer(n, version))
	}
	s.eventually("the deletions", func() bool { return s.count("customers") == entities-entities/5 })
	s.eventually("all at their last version", func() bool {
		n, err := s.db.Collection("_customers").CountDocuments(context.Background(), bson.D{{Key: "version", Value: version}})
		return err == nil && n == entities-entities/5
	})
	s.eventually("everything was seen", func() bool {
		ends, err := s.Admin().ListEndOffsets(t.Context(), s.Namespace.Topic(domain.AggregateCustomer))
		if err != nil {
			return false
		}
		for p := range int32(3) {
			end, _ := ends.Lookup(s.Namespace.Topic(domain.AggregateCustomer), p)
			var at mongodb.Position
			id := fmt.Sprintf("%s/%d", s.Namespace.Topic(domain.AggregateCustomer), p)
			if s.db.Collection(positionsCollection).FindOne(context.Background(), bson.D{{Key: "_id", Value: id}}).Decode(&at) != nil || at.Next != end.Offset {
				return false
			}
		}
		return true
	})
	for n := range entities {
		want := version
		if n%5 == 0 {
			want++
		}
		require.Equal(t, want, s.version("_customers", id(n)))
		require.Equal(t, n%5 == 0, s.raw("customers", id(n)) == nil)
	}
}

// Nor is it applied in part. The same is row 14: its key is parked in order,
// and others flow.
func TestRow24UnknownNewerVersionIsParked(t *testing.T) {
	s := newSystem(t)
	s.run()
	newer := customer(1, 2)
	newer.Type = "customer.updated.v2"
	s.Publish(t, customer(1, 1), newer, customer(1, 3), customer(2, 1))
	s.eventually("the other key", func() bool { return s.version("_customers", id(2)) == 1 })
	letters, err := consumer.OpenDeadLetters(s.Brokers, s.Namespace.Group("replicator"), kafkatest.Opts()...)
	require.NoError(t, err)
	defer letters.Close()
	var all []consumer.DeadLetter
	s.eventually("both parked", func() bool {
		all, err = letters.List(t.Context())
		return err == nil && len(all) == 2
	})
	require.Equal(t, int64(1), s.version("_customers", id(1)), "never half-applied")
	require.NoError(t, letters.Drop(t.Context(), all[0].ID))
	require.NoError(t, letters.Retry(t.Context(), all[1].ID))
	require.Equal(t, int64(3), s.version("_customers", id(1)))
}

func TestRow17MongoDBIsDown(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	s.run()
	s.Publish(t, customer(1, 1))
	s.eventually("the first", func() bool { return s.version("_customers", id(1)) == 1 })
	cut := s.fake.Fault(mongofake.Fault{Command: "update", CloseConn: true})
	for n := range 50 {
		s.Publish(t, customer(n, 2))
	}
	s.eventually("tries", func() bool { return cut.Hits() >= 3 })
	require.Equal(t, int64(1), s.version("_customers", id(1)))
	cut.Remove()
	s.eventually("caught up", func() bool { return s.count("customers") == 50 && s.version("_customers", id(1)) == 2 })
}

// Writes that were done, but whose answer was lost.
func TestLostAnswers(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	s.run()
	s.Publish(t, customer(1, 1))
	s.eventually("the first", func() bool { return s.version("_customers", id(1)) == 1 })
	var lost []*mongofake.ActiveFault
	for _, collection := range []string{"_customers", positionsCollection} {
		lost = append(lost, s.fake.Fault(mongofake.Fault{Command: "update", Collection: collection, Count: 2, After: true, CloseConn: true}))
	}
	for v := int64(2); lost[0].Hits() < 2 || lost[1].Hits() < 2; v++ {
		require.Less(t, v, int64(1000))
		s.Publish(t, customer(1, v), customer(2, v))
		s.eventually("written", func() bool { return s.version("_customers", id(1)) == v && s.version("_customers", id(2)) == v })
	}
}

func TestAWriteThatMetAnotherIsTriedAgain(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	r := s.replicator()
	r.db = s.db
	_, doc, err := plan(customer(1, 1))
	require.NoError(t, err)
	conflict := s.fake.Fault(mongofake.Fault{Command: "update", Count: 2, Code: mongodb.CodeWriteConflict, Kind: mongofake.WriteError})
	require.NoError(t, store(t.Context(), s.db.Collection("_customers"), []*write{{id: id(1).String(), version: 1, document: doc}})[0])
	require.Equal(t, 2, conflict.Hits())
	require.Equal(t, int64(1), s.version("_customers", id(1)))
}

// The new topic soon holds more than was consumed of the old one: by offset
// alone, the replica would miss its beginning.
func TestRow12RecreatedTopicIsReplicatedFromItsStart(t *testing.T) {
	s := newSystem(t)
	stop := s.run()
	for n := range 10 {
		s.Publish(t, customer(n, 1))
	}
	s.eventually("filled", func() bool { return s.count("customers") == 10 })
	stop()
	topic := s.Namespace.Topic(domain.AggregateCustomer)
	behind := func() int64 {
		ends, err := EndsOf(t.Context(), s.Admin(), topic)
		require.NoError(t, err)
		n, err := Behind(t.Context(), s.db, ends)
		require.NoError(t, err)
		return n
	}
	require.Zero(t, behind())
	s.DeleteTopic(t, topic)
	s.CreateTopics(t, 3, topic)
	for n := range 40 {
		s.Publish(t, customer(n, 2))
	}
	require.EqualValues(t, 40, behind(), "positions in the old topic say nothing of the new one")
	s.run()
	s.eventually("all of the new topic", func() bool {
		n, err := s.db.Collection("_customers").CountDocuments(context.Background(), bson.D{{Key: "version", Value: int64(2)}})
		return err == nil && n == 40
	})
}

// A replicator that lost its partitions without knowing must not move the
// position of the one that has them.
func TestRow15ZombieCannotMoveAPosition(t *testing.T) {
	s := newSystem(t)
	at := consumer.Partition{Topic: s.Namespace.Topic(domain.AggregateCustomer), Partition: 1}
	save := func(p *mongodb.Positions, next int64) error {
		return p.Save(t.Context(), map[consumer.Partition]consumer.Position{at: {Log: "log", Next: next}})
	}
	load := func() *mongodb.Positions {
		r := s.replicator()
		r.use(s.db)
		_, err := r.positions.Load(t.Context(), []consumer.Partition{at})
		require.NoError(t, err)
		return r.positions
	}
	zombie := load()
	require.NoError(t, save(zombie, 10))
	owner := load()
	require.NoError(t, save(owner, 20))
	require.ErrorIs(t, save(zombie, 15), consumer.ErrPositionsMoved)
	require.ErrorIs(t, save(zombie, 30), consumer.ErrPositionsMoved)
	require.NoError(t, save(owner, 20), "an unchanged position")

	// Nor that of a collection that a rebuild put there meanwhile.
	_, err := s.db.Collection(positionsCollection).UpdateMany(t.Context(), bson.D{}, bson.D{{Key: "$inc", Value: bson.D{{Key: "generation", Value: int64(1)}}}})
	require.NoError(t, err)
	require.ErrorIs(t, save(owner, 21), consumer.ErrPositionsMoved)

	// Two that begin at once: one of them is second.
	_, err = s.db.Collection(positionsCollection).DeleteMany(t.Context(), bson.D{})
	require.NoError(t, err)
	one, two := load(), load()
	require.NoError(t, save(one, 5))
	require.ErrorIs(t, save(two, 5), consumer.ErrPositionsMoved)
}

func TestMissingEventsAreAnError(t *testing.T) {
	s := newSystem(t)
	stop := s.run()
	s.Publish(t, customer(1, 1))
	s.eventually("the first", func() bool { return s.version("_customers", id(1)) == 1 })
	stop()
	s.Publish(t, customer(1, 2), customer(1, 3))
	kafkatest.DeleteOldest(t, s.Kafka, s.Namespace.Topic(domain.AggregateCustomer))
	var lost *consumer.DataLossError
	require.ErrorAs(t, s.replicator().Run(t.Context()), &lost)
	require.Equal(t, int64(1), s.version("_customers", id(1)))
}
