package consumer_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/failpoint/mutanttest"
	"outflow/internal/kafkatest"
)

func TestItGoesOnWhereItStopped(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 3)
	for n := range 10 {
		k.Publish(t, event(n, 1), event(n, 2))
	}
	var first journal
	stop := run(t, consumer.New(config(t, k, first.handle)))
	for n := range 10 {
		eventually(t, "both versions", func() bool { return len(first.of(n)) == 2 })
		require.Equal(t, []int64{1, 2}, first.of(n))
	}
	require.NoError(t, stop())

	var second journal
	for n := range 10 {
		k.Publish(t, event(n, 3))
	}
	c := consumer.New(config(t, k, second.handle))
	stop = run(t, c)
	for n := range 10 {
		eventually(t, "the third version", func() bool { return len(second.of(n)) > 0 })
	}
	eventually(t, "counted", func() bool { return c.Stats().Handled == 10 && c.Stats().Lag == 0 })
	require.NoError(t, stop())
	for n := range 10 {
		require.Equal(t, []int64{3}, second.of(n))
	}
	// Stopping left the group: nobody has to wait for a dead member.
	groups, err := k.Admin().DescribeGroups(t.Context(), k.Namespace.Group("worker"))
	require.NoError(t, err)
	require.Empty(t, groups[k.Namespace.Group("worker")].Members)
}

func TestItWaitsForTopics(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	var j journal
	run(t, consumer.New(config(t, k, j.handle)))
	k.CreateTopics(t, 2)
	k.Publish(t, event(1, 1))
	eventually(t, "the event", func() bool { return len(j.of(1)) == 1 })
}

func TestAFailedMessageHoldsBackItsKeyOnly(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var j journal
	var open atomic.Bool
	var failures atomic.Int64
	cfg := config(t, k, consumer.Each(4, func(ctx context.Context, m consumer.Message) error {
		if m.Event.AggregateID == id(1) && m.Event.AggregateVersion == 2 && !open.Load() {
			failures.Add(1)
			return errors.New("not yet")
		}
		return j.one(ctx, m)
	}))
	c := consumer.New(cfg)
	stop := run(t, c)
	k.Publish(t, event(1, 1), event(1, 2), event(2, 1), event(1, 3))
	eventually(t, "retries", func() bool { return failures.Load() > 3 })
	k.Publish(t, event(1, 4), event(3, 1))
	eventually(t, "other keys", func() bool { return len(j.of(2)) == 1 && len(j.of(3)) == 1 })
	require.Equal(t, []int64{1}, j.of(1))

	// What is held back was not committed: whoever comes next gets it.
	require.NoError(t, stop())
	committed, err := k.Admin().FetchOffsets(t.Context(), cfg.Group)
	require.NoError(t, err)
	at, _ := committed.Lookup(cfg.Topics[0], 0)
	require.Equal(t, int64(1), at.At)

	run(t, consumer.New(cfg))
	eventually(t, "retries again", func() bool { return failures.Load() > 10 })
	open.Store(true)
	eventually(t, "the key's end", func() bool { return len(j.of(1)) == 4 })
	require.Equal(t, []int64{1, 2, 3, 4}, j.of(1))
}

func TestASlowHandlerStaysAMember(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 2)
	var j journal
	slow := make(chan time.Time)
	cfg := config(t, k, func(ctx context.Context, batch []consumer.Message) []error {
		select { // for longer than a member may be silent
		case <-time.After(8 * time.Second):
			slow <- time.Now()
		case <-ctx.Done():
			return []error{ctx.Err()}
		}
		return j.handle(ctx, batch)
	})
	run(t, consumer.New(cfg))
	k.Publish(t, event(1, 1))
	<-slow
	eventually(t, "done once", func() bool { return len(j.of(1)) == 1 })
	eventually(t, "committed as a member", func() bool {
		committed, err := k.Admin().FetchOffsets(t.Context(), cfg.Group)
		return err == nil && sum(committed) == 1
	})
}

func sum(committed kadm.OffsetResponses) (total int64) {
	committed.Each(func(o kadm.OffsetResponse) { total += max(0, o.At) })
	return total
}

func TestRow15RebalanceUnderLoadKeepsEveryKeyInOrder(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 6)
	const keys = 60
	var mu sync.Mutex
	last := map[domain.ID]int64{}
	var handled, skipped, repeated atomic.Int64
	cfg := config(t, k, func(_ context.Context, batch []consumer.Message) []error {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range batch {
			switch v, was := m.Event.AggregateVersion, last[m.Event.AggregateID]; {
			case v > was+1:
				skipped.Add(1)
			case v <= was:
				repeated.Add(1)
			default:
				last[m.Event.AggregateID] = v
				handled.Add(1)
			}
		}
		return nil
	})
	cfg.MaxBatch = 20
	published := int64(0)
	publish := func() {
		// Never far ahead, or the end of the test is spent catching up.
		eventually(t, "catching up", func() bool { return published*keys-handled.Load() < 50*keys })
		published++
		var all []domain.Event
		for n := range keys {
			all = append(all, event(n, published))
		}
		k.Publish(t, all...)
	}
	// under publishes until a consumer has handled something since.
	under := func(c *consumer.Consumer) {
		t.Helper()
		before := c.Stats().Handled
		for deadline := time.Now().Add(5 * time.Minute); c.Stats().Handled == before; publish() {
			require.False(t, time.Now().After(deadline), "a member got nothing to do")
		}
	}
	one, two, three := consumer.New(cfg), consumer.New(cfg), consumer.New(cfg)
	stopOne := run(t, one)
	under(one)
	stopTwo := run(t, two)
	under(two)
	run(t, three)
	under(three)
	require.NoError(t, stopOne())
	under(two)
	require.NoError(t, stopTwo())
	under(three)
	eventually(t, "everything", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for n := range keys {
			if last[id(n)] != published {
				return false
			}
		}
		return true
	})
	require.Zero(t, skipped.Load())
	require.Zero(t, repeated.Load(), "nobody died, so nothing comes twice")
}

func TestRow12LostDataIsAnError(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	topic := k.Namespace.Topic(domain.AggregateCustomer)
	var j journal
	k.Publish(t, event(1, 1))
	stop := run(t, consumer.New(config(t, k, j.handle)))
	eventually(t, "the first", func() bool { return len(j.of(1)) == 1 })
	require.NoError(t, stop())

	k.Publish(t, event(1, 2), event(1, 3), event(1, 4))
	_, err := k.Admin().DeleteRecords(t.Context(), kadm.Offsets{topic: {0: {Topic: topic, At: 3}}})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), mutanttest.Patience(5*time.Minute))
	defer cancel()
	err = consumer.New(config(t, k, j.handle)).Run(ctx)
	var lost *consumer.DataLossError
	require.ErrorAs(t, err, &lost)
	require.Equal(t, int64(1), lost.Next)
	require.Equal(t, int64(3), lost.Start)
	require.Equal(t, []int64{1}, j.of(1))
}

func TestRow12RecreatedTopicIsReadFromItsStart(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	topic := k.Namespace.Topic(domain.AggregateCustomer)
	k.Publish(t, event(1, 1), event(1, 2))
	var j journal
	run(t, consumer.New(config(t, k, j.handle)))
	eventually(t, "the old topic", func() bool { return len(j.of(1)) == 2 })

	k.DeleteTopic(t, topic)
	k.CreateTopics(t, 1, topic)
	// More records than were consumed of the old one: by offset alone, the
	// first two would be skipped.
	k.Publish(t, event(2, 1), event(2, 2), event(2, 3))
	eventually(t, "the new topic", func() bool { return len(j.of(2)) == 3 })
	require.Equal(t, []int64{1, 2, 3}, j.of(2))
}
