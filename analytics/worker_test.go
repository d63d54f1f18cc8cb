package analytics

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/kafkatest"
	"outflow/internal/mongodb"
	"outflow/internal/mongofake"
)

// cluster is a system whose workers read from Kafka.
type cluster struct {
	*system
	*kafkatest.Kafka
	t *testing.T
}

func startCluster(t *testing.T) *cluster {
	s := start(t)
	c := &cluster{system: s, Kafka: kafkatest.Start(t), t: t}
	c.CreateTopics(t, partitions)
	return c
}

// run runs a worker until stop is called or the test ends.
func (c *cluster) run() (w *Worker, stop func()) {
	w, err := New(Config{
		Brokers: c.Brokers, Namespace: c.Namespace, MongoURI: c.uri, MaxBatch: 40, Kafka: kafkatest.Opts(),
		Logger: slog.New(slog.NewTextHandler(c.t.Output(), nil)),
	})
	require.NoError(c.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			require.NoError(c.t, err)
		case <-time.After(time.Minute):
			c.t.Error("the worker did not stop")
		}
	})
	c.t.Cleanup(stop)
	return w, stop
}

// settled waits until the positions of the live generation are at the ends of
// the topics.
func (c *cluster) settled() {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		s, err := readState(context.Background(), c.db)
		if err != nil {
			return false
		}
		ends, err := c.Admin().ListEndOffsets(context.Background(), c.Namespace.Topic(domain.AggregateOrder), c.Namespace.Topic(domain.AggregateCustomer))
		if err != nil {
			return false
		}
		cursor, err := c.db.Collection(positionsCollection).Find(context.Background(), bson.D{{Key: "collection", Value: s.Identity}})
		if err != nil {
			return false
		}
		var stored []mongodb.Position
		if cursor.All(context.Background(), &stored) != nil {
			return false
		}
		at := map[string]int64{}
		for _, p := range stored {
			at[p.ID] = p.Next
		}
		for topic, byPartition := range ends {
			for p, end := range byPartition {
				if end.Offset > 0 && at[fmt.Sprintf("%s/%d", topic, p)] != end.Offset {
					return false
				}
			}
		}
		return true
	}, 5*time.Minute, 20*time.Millisecond, "everything is counted")
}

// mixed is events with those of different entities mixed, as they commit.
func mixed(r *rand.Rand, all []domain.Event) []domain.Event {
	d := deliveriesOf(r, all)
	var out []domain.Event
	for len(out) < len(all) {
		i := r.IntN(len(d.queues))
		if n := d.handled[i]; n < len(d.queues[i]) {
			out = append(out, d.queues[i][n].Event)
			d.handled[i]++
		}
	}
	return out
}

func TestWorkersThatComeAndGoCountEverythingOnce(t *testing.T) {
	c := startCluster(t)
	r := rand.New(rand.NewPCG(1, 1))
	const customers = 3
	all := mixed(r, world(r, 150, customers))
	part := len(all) / 4
	_, stop := c.run()
	c.Publish(t, all[:part]...)
	c.run()
	c.Publish(t, all[part:2*part]...)
	c.settled()
	stop()
	if c.fake != nil {
		for _, command := range []string{"update", "insert"} {
			f := c.fake.Fault(mongofake.Fault{Command: command, After: true, Count: 5, Code: 8})
			t.Cleanup(f.Remove)
		}
	}
	c.Publish(t, all[2*part:]...)
	_, stop = c.run()
	c.settled()
	c.agree(t, r, all, customers)

	// What is published again, in another interleaving, is counted already.
	c.Publish(t, mixed(r, all)...)
	stop()
	c.run()
	c.settled()
	c.agree(t, r, all, customers)
}

func TestFiguresThatWereDroppedAreCountedAgain(t *testing.T) {
	for _, what := range []string{ofOrders, ofCustomers, buckets, positionsCollection, stateCollection, "all"} {
		t.Run(what, func(t *testing.T) {
			c := startCluster(t)
			r := rand.New(rand.NewPCG(2, 2))
			const customers = 2
			all := mixed(r, world(r, 40, customers))
			half := len(all) / 2
			c.run()
			c.Publish(t, all[:half]...)
			c.settled()
			s, err := readState(t.Context(), c.db)
			require.NoError(t, err)
			switch what {
			case "all":
				require.NoError(t, c.db.Drop(t.Context()))
			case positionsCollection, stateCollection:
				require.NoError(t, c.db.Collection(what).Drop(t.Context()))
			default:
				require.NoError(t, (&books{c.db, s.Generation}).collection(what).Drop(t.Context()))
			}
			require.Eventually(t, func() bool {
				now, err := readState(t.Context(), c.db)
				return err == nil && now.Generation != "" && (what == positionsCollection || now.Generation != s.Generation)
			}, 5*time.Minute, 20*time.Millisecond, "a new generation")
			c.Publish(t, all[half:]...)
			c.settled()
			c.agree(t, r, all, customers)
			names, err := c.db.ListCollectionNames(t.Context(), bson.D{})
			require.NoError(t, err)
			require.Len(t, names, 5, "the old generation is gone")
		})
	}
}

func TestOneGenerationIsBegunByManyWorkers(t *testing.T) {
	s := start(t)
	require.NoError(t, s.db.Drop(t.Context()))
	var begun [8]*books
	var racing sync.WaitGroup
	for i := range begun {
		racing.Go(func() {
			b, _, err := prepare(t.Context(), s.db, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
			}
			begun[i] = b
		})
	}
	racing.Wait()
	for _, b := range begun {
		require.Equal(t, begun[0].generation, b.generation)
	}
	names, err := s.db.ListCollectionNames(t.Context(), bson.D{})
	require.NoError(t, err)
	require.Len(t, names, 4)
}

// A worker whose generation was replaced, and who doesn't know yet, must not
// write into the new one: that has to see every order from its first event.
func TestAnOldGenerationDoesNotReachTheNewOne(t *testing.T) {
	s := start(t)
	order := placed(id(9), id(1), "EUR", 500, epoch).confirm(epoch.Add(time.Minute)).fulfil(epoch.Add(time.Hour)).refund(epoch.Add(2 * time.Hour))
	s.deliver(t, order.events[:2]...)
	st, err := readState(t.Context(), s.db)
	require.NoError(t, err)
	require.NoError(t, (&books{s.db, st.Generation}).collection(buckets).Drop(t.Context()))
	zombie := s.worker
	s.worker = s.newWorker(t, Config{})
	for _, err := range zombie.handle(t.Context(), []consumer.Message{message(order.events[2], 0, 9), message(order.events[3], 0, 10)}) {
		require.NoError(t, err)
	}
	s.deliver(t, order.events...)
	s.agree(t, rand.New(rand.NewPCG(3, 3)), order.events, 1)
}

// A worker that was thought dead is stopped between its two reads, while others
// count its event and close the version in the bucket: had it read the fact
// before the bucket, neither would tell it that the event is counted.
func TestAWorkerWakesUpBetweenItsReads(t *testing.T) {
	s := start(t)
	if s.fake == nil {
		t.Skip("holds a command in the in-process MongoDB server")
	}
	first, second := placed(id(3), id(1), "EUR", 100, epoch), placed(id(6), id(1), "EUR", 900, epoch)
	s.deliver(t, first.events...)
	first.confirm(epoch)
	event := message(first.events[1], 0, 1)

	zombie := s.newWorker(t, Config{})
	held := s.fake.Fault(mongofake.Fault{Command: "find", Skip: 1, Count: 1, Hold: true})
	answers := make(chan []error, 1)
	go func() { answers <- zombie.handle(context.Background(), []consumer.Message{event}) }()
	require.NoError(t, held.Wait(t.Context(), 1))
	for _, err := range s.worker.handle(t.Context(), []consumer.Message{event}) {
		require.NoError(t, err)
	}
	s.deliver(t, second.events...)
	held.Remove()
	for _, err := range <-answers {
		require.NoError(t, err)
	}
	s.agree(t, rand.New(rand.NewPCG(6, 6)), append(first.events, second.events...), 1)
}

func TestWhatCannotBeCountedIsRefusedAndTheRestCounted(t *testing.T) {
	s := start(t)
	bad, good := placed(id(8), id(1), "EUR", 100, epoch).confirm(epoch), placed(id(9), id(1), "EUR", 900, epoch).confirm(epoch)
	for name, spoil := range map[string]func(*domain.Event){
		"newer version of a type": func(e *domain.Event) { e.Type = "order.placed.v2" },
		"other aggregate":         func(e *domain.Event) { e.AggregateType = "invoice" },
		"no state":                func(e *domain.Event) { e.After = nil },
		"not an order":            func(e *domain.Event) { e.After = json.RawMessage(`[]`) },
		"unknown status":          func(e *domain.Event) { e.After = replaced(e.After, `"placed"`, `"lost"`) },
		"currency":                func(e *domain.Event) { e.After = replaced(e.After, `"EUR"`, `"E.$"`) },
		"total":                   func(e *domain.Event) { e.After = replaced(e.After, `"total":100`, `"total":-1`) },
	} {
		first := bad.events[0]
		spoil(&first)
		batch := []consumer.Message{message(bad.events[0], 0, 0), message(bad.events[1], 0, 1), message(good.events[0], 0, 2), message(good.events[1], 0, 3)}
		batch[0].Event = first
		answers := s.worker.handle(t.Context(), batch)
		require.True(t, consumer.IsPermanent(answers[0]), name)
		require.NoError(t, answers[2], name)
		require.NoError(t, answers[3], name)
	}
	summary, err := s.reader(epoch).Summary(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, []Revenue{{Currency: "EUR", Amount: 900, Confirmed: 900, Orders: 1}}, summary.Revenue)
}

func replaced(raw json.RawMessage, was, now string) json.RawMessage {
	return json.RawMessage(strings.ReplaceAll(string(raw), was, now))
}

// Messages that wait for a retry, or that were parked, come after others of
// their partition, and with other offsets.
func TestAMessageMayComeAfterLaterOnes(t *testing.T) {
	s := start(t)
	late, early := placed(id(3), id(1), "EUR", 100, epoch).confirm(epoch), placed(id(6), id(1), "EUR", 900, epoch).confirm(epoch)
	s.deliver(t, early.events...)
	for i, e := range late.events {
		for _, err := range s.worker.handle(t.Context(), []consumer.Message{message(e, int32(e.AggregateID[15])%partitions, int64(-5+i))}) {
			require.NoError(t, err)
		}
	}
	s.agree(t, rand.New(rand.NewPCG(4, 4)), append(early.events, late.events...), 1)
}

// Where the log was cut, what it no longer holds isn't counted, and what it
// tells of the time before is.
func TestALogThatWasCut(t *testing.T) {
	s := start(t)
	at := func(h int) time.Time { return epoch.Add(time.Duration(h) * time.Hour) }
	whole := func(n int) []domain.Event {
		return placed(id(n), id(1), "EUR", int64(n), at(0)).confirm(at(1)).fulfil(at(2)).refund(at(3)).remove(at(4)).events
	}
	s.deliver(t, whole(1)[1:]...) // from its confirmation
	s.deliver(t, whole(2)[2:]...) // the state before is that of the confirmation
	s.deliver(t, whole(3)[3:]...) // when it was confirmed is not known
	s.deliver(t, whole(4)[4:]...) // the state before is that of the refund
	s.deliver(t, placed(id(5), id(1), "EUR", 5, at(0)).confirm(at(1)).cancel(at(2)).events[2:]...)
	got, err := s.reader(at(5)).Transactions(t.Context(), id(1), 100*time.Hour)
	require.NoError(t, err)
	transaction := func(n int, kind string, amount int64, h int) Transaction {
		return Transaction{id(n), kind, domain.Money{Amount: amount, Currency: "EUR"}, at(h)}
	}
	require.Equal(t, []Transaction{
		transaction(4, KindRefund, -4, 3), transaction(3, KindRefund, -3, 3), transaction(2, KindRefund, -2, 3), transaction(1, KindRefund, -1, 3),
		transaction(2, KindOrder, 2, 1), transaction(1, KindOrder, 1, 1),
	}, got.Transactions)
	summary, err := s.reader(at(5)).Summary(t.Context(), 100*time.Hour)
	require.NoError(t, err)
	require.Equal(t, []Revenue{{Currency: "EUR", Amount: -7, Confirmed: 3, Refunded: 10, Orders: 2, Refunds: 4}}, summary.Revenue)
}

// Open versions are closed with the next batch, so that buckets stay small.
func TestBucketsStaySmall(t *testing.T) {
	s := start(t)
	for n := range 30 {
		s.deliver(t, placed(id(1000+n), id(1), "EUR", 1, epoch).events...)
	}
	st, err := readState(t.Context(), s.db)
	require.NoError(t, err)
	cursor, err := s.db.Collection(prefix+buckets+"_"+st.Generation).Find(t.Context(), bson.D{})
	require.NoError(t, err)
	var all []bucket
	require.NoError(t, cursor.All(t.Context(), &all))
	require.Len(t, all, partitions)
	for _, b := range all {
		require.Len(t, b.Open, 1)
		require.Equal(t, map[string]int64{"status:placed": 10}, b.Counters)
	}
}

func FuzzReadEvent(f *testing.F) {
	for _, e := range placed(id(1), id(2), "EUR", 3, epoch).confirm(epoch).fulfil(epoch).refund(epoch).remove(epoch).events {
		f.Add([]byte(e.Before), []byte(e.After))
	}
	f.Fuzz(func(t *testing.T, before, after []byte) {
		for aggregate := range kinds {
			e := domain.Event{AggregateType: aggregate, Type: aggregate + ".changed.v1", AggregateVersion: 1, Before: before, After: after, OccurredAt: epoch}
			k, s, err := readEvent(e)
			if err != nil {
				continue
			}
			next := s.advance(fact{})
			next.Version = 1
			cells := map[cell]bool{}
			for _, c := range s.cells {
				cells[c] = true
			}
			for _, p := range k.postings(next) {
				if !cells[p.cell] {
					t.Fatalf("%+v is counted in %v, which the event doesn't name", next, p.cell)
				}
			}
		}
	})
}
