package consumer_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/kafkatest"
)

// gate refuses versions of customer 1 from some version on, for good.
type gate struct {
	journal
	from atomic.Int64 // the first version that is refused; none when 0
}

func (g *gate) handle(ctx context.Context, m consumer.Message) error {
	if from := g.from.Load(); from > 0 && m.Event.AggregateID == id(1) && m.Event.AggregateVersion >= from {
		return consumer.Permanent(errors.New("no good"))
	}
	return g.one(ctx, m)
}

func letters(t *testing.T, k *kafkatest.Kafka) *consumer.DeadLetters {
	t.Helper()
	d, err := consumer.OpenDeadLetters(k.Brokers, k.Namespace.Group("worker"), kafkatest.Opts()...)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d
}

func offsetsOf(all []consumer.DeadLetter) (offsets []int64) {
	for _, l := range all {
		offsets = append(offsets, l.Offset)
	}
	return offsets
}

// caughtUp waits until the group's committed offset of the only partition is n.
func caughtUp(t *testing.T, k *kafkatest.Kafka, n int64) {
	t.Helper()
	topic := k.Namespace.Topic(domain.AggregateCustomer)
	eventually(t, "committed", func() bool {
		committed, err := k.Admin().FetchOffsets(t.Context(), k.Namespace.Group("worker"))
		at, _ := committed.Lookup(topic, 0)
		return err == nil && at.At == n
	})
}

func TestRow14PoisonRecordIsParkedWithItsKeyAndOthersFlow(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	d := letters(t, k)
	none, err := d.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, none, "before anything was parked")

	var g gate
	g.from.Store(2)
	cfg := config(t, k, consumer.Each(4, g.handle))
	c := consumer.New(cfg)
	stop := run(t, c)
	k.Publish(t, event(1, 1), event(1, 2), event(2, 1), event(1, 3), event(2, 2))
	eventually(t, "the other key", func() bool { return len(g.of(2)) == 2 })
	began := time.Now()
	k.Publish(t, event(1, 4), event(3, 1))
	eventually(t, "another key", func() bool { return len(g.of(3)) == 1 })
	require.Less(t, time.Since(began), time.Second, "a parked key held others up")
	caughtUp(t, k, 7)
	require.Equal(t, []int64{1}, g.of(1))
	require.Equal(t, int64(3), c.Stats().Parked)

	all, err := d.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int64{1, 3, 5}, offsetsOf(all))
	require.True(t, all[0].First)
	require.Equal(t, "no good", all[0].Reason)
	require.False(t, all[1].First)
	want := event(1, 3)
	require.Equal(t, want, all[1].Event)
	require.Equal(t, k.Namespace.Record(&want).Headers, all[1].Record.Headers)
	got, err := d.Get(t.Context(), all[2].ID)
	require.NoError(t, err)
	require.Equal(t, all[2], got)
	_, err = d.Get(t.Context(), 1000)
	require.ErrorIs(t, err, consumer.ErrNoDeadLetter)

	// Whoever takes over knows it, even if the cause is gone meanwhile: what
	// comes now must not overtake what is parked.
	require.NoError(t, stop())
	g.from.Store(0)
	run(t, consumer.New(cfg))
	k.Publish(t, event(1, 5), event(3, 2))
	eventually(t, "another key", func() bool { return len(g.of(3)) == 2 })
	caughtUp(t, k, 9)
	require.Equal(t, []int64{1}, g.of(1))

	require.NoError(t, d.Retry(t.Context(), all[1].ID))
	require.Equal(t, []int64{1, 2, 3, 4, 5}, g.of(1))
	k.Publish(t, event(1, 6))
	eventually(t, "the key flows", func() bool { return len(g.of(1)) == 6 })
	none, err = d.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, none)
	require.ErrorIs(t, d.Retry(t.Context(), all[1].ID), consumer.ErrNoDeadLetter)
}

func TestARetryKeepsTheOrderWhileNewEventsArrive(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var g gate
	g.from.Store(1)
	run(t, consumer.New(config(t, k, consumer.Each(4, g.handle))))
	for v := range int64(50) {
		k.Publish(t, event(1, v+1))
	}
	d := letters(t, k)
	var all []consumer.DeadLetter
	eventually(t, "parked", func() bool {
		var err error
		all, err = d.List(t.Context())
		return err == nil && len(all) == 50
	})
	g.from.Store(0)
	done := make(chan error)
	go func() { done <- d.Retry(t.Context(), all[0].ID) }()
	for v := int64(50); v < 150; v++ {
		k.Publish(t, event(1, v+1))
	}
	require.NoError(t, <-done)
	eventually(t, "everything", func() bool { return len(g.of(1)) >= 150 })
	var want []int64
	for v := range int64(150) {
		want = append(want, v+1)
	}
	require.Equal(t, want, g.of(1))
}

func TestARetryThatFailsParksAgain(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var g gate
	g.from.Store(1)
	run(t, consumer.New(config(t, k, consumer.Each(4, g.handle))))
	k.Publish(t, event(1, 1), event(1, 2), event(1, 3))
	caughtUp(t, k, 3)
	d := letters(t, k)
	all, err := d.List(t.Context())
	require.NoError(t, err)

	g.from.Store(2)
	var again *consumer.ParkedAgainError
	require.ErrorAs(t, d.Retry(t.Context(), all[0].ID), &again)
	require.Equal(t, "no good", again.Reason)
	require.Equal(t, []int64{1}, g.of(1))
	k.Publish(t, event(1, 4))
	caughtUp(t, k, 4)
	all, err = d.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2, 3}, offsetsOf(all), "what was done is no longer parked")
	require.Equal(t, "no good", all[0].Reason)

	// One that will never be good, in the middle.
	require.NoError(t, d.Drop(t.Context(), all[1].ID))
	left, err := d.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int64{1, 3}, offsetsOf(left))
	g.from.Store(0)
	require.NoError(t, d.Retry(t.Context(), all[0].ID))
	require.Equal(t, []int64{1, 2, 4}, g.of(1))
}

func TestDropping(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var g gate
	g.from.Store(1)
	run(t, consumer.New(config(t, k, consumer.Each(4, g.handle))))
	k.Publish(t, event(1, 1), event(1, 2), event(1, 3))
	caughtUp(t, k, 3)
	d := letters(t, k)
	all, err := d.List(t.Context())
	require.NoError(t, err)
	require.NoError(t, d.Drop(t.Context(), all[0].ID))
	all, err = d.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2}, offsetsOf(all))
	require.True(t, all[0].First)
	k.Publish(t, event(1, 4))
	caughtUp(t, k, 4)
	require.NoError(t, d.DropKey(t.Context(), all[1].ID))
	all, err = d.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	g.from.Store(0)
	k.Publish(t, event(1, 5))
	eventually(t, "the key flows", func() bool { return slices.Equal(g.of(1), []int64{5}) })

	// Dropping the last one lets the key go too.
	g.from.Store(1)
	k.Publish(t, event(1, 6))
	caughtUp(t, k, 6)
	all, err = d.List(t.Context())
	require.NoError(t, err)
	require.NoError(t, d.Drop(t.Context(), all[0].ID))
	g.from.Store(0)
	k.Publish(t, event(1, 7))
	eventually(t, "the key flows", func() bool { return slices.Equal(g.of(1), []int64{5, 7}) })
}

func TestWhatIsNoEventIsParked(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var j journal
	run(t, consumer.New(config(t, k, j.handle)))
	topic := k.Namespace.Topic(domain.AggregateCustomer)
	garbage := &kgo.Record{Topic: topic, Key: []byte(event(1, 1).Key), Value: []byte("{"), Headers: []kgo.RecordHeader{{Key: "x-error", Value: []byte("own")}}}
	k.Publish(t, event(1, 1))
	k.Produce(t, garbage, &kgo.Record{Topic: topic, Value: []byte("no key")}, &kgo.Record{Topic: topic, Value: []byte("nor here")})
	k.Publish(t, event(1, 2), event(2, 1))
	eventually(t, "others", func() bool { return len(j.of(2)) == 1 })
	caughtUp(t, k, 6)
	require.Equal(t, []int64{1}, j.of(1))
	d := letters(t, k)
	all, err := d.List(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 4)
	i := slices.IndexFunc(all, func(l consumer.DeadLetter) bool { return l.Offset == 1 })
	require.Contains(t, all[i].Reason, "decode the event")
	require.Equal(t, garbage.Headers, all[i].Record.Headers)
	require.NoError(t, d.Drop(t.Context(), all[i].ID))
	require.NoError(t, d.Retry(t.Context(), all[slices.IndexFunc(all, func(l consumer.DeadLetter) bool { return l.Offset == 4 })].ID))
	require.Equal(t, []int64{1, 2}, j.of(1))
	for _, l := range all {
		if l.Key == "" {
			require.NoError(t, d.Drop(t.Context(), l.ID))
		}
	}
	all, err = d.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
}

func TestAPanicIsParked(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var j journal
	k.Publish(t, event(1, 1), event(2, 1), event(3, 1))
	run(t, consumer.New(config(t, k, func(ctx context.Context, batch []consumer.Message) []error {
		for _, m := range batch {
			if m.Event.AggregateID == id(2) {
				panic("what a message")
			}
		}
		return j.handle(ctx, batch)
	})))
	eventually(t, "others", func() bool { return len(j.of(1)) > 0 && len(j.of(3)) > 0 })
	caughtUp(t, k, 3)
	all, err := letters(t, k).List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int64{1}, offsetsOf(all))
	require.Equal(t, "panic: what a message", all[0].Reason)
}

// Everything comes again, as after a crash before the commit, or when a group
// begins anew: what is parked stays parked, once.
func TestRedeliveryDoesNotParkTwice(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var g gate
	g.from.Store(2)
	cfg := config(t, k, consumer.Each(4, g.handle))
	stop := run(t, consumer.New(cfg))
	k.Publish(t, event(1, 1), event(1, 2), event(1, 3))
	caughtUp(t, k, 3)
	require.NoError(t, stop())
	_, err := k.Admin().DeleteGroups(t.Context(), cfg.Group)
	require.NoError(t, err)
	g.from.Store(0)
	c := consumer.New(cfg)
	run(t, c)
	caughtUp(t, k, 3)
	require.Equal(t, []int64{1, 1}, g.of(1))
	require.Zero(t, c.Stats().Parked)
	all, err := letters(t, k).List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2}, offsetsOf(all))
}
