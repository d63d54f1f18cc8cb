package consumer_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/kafkatest"
)

func TestOnlyCommittedTransactionsAreHandledAndTheEndIsReached(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	producer := k.Client(t, kgo.TransactionalID(string(k.Namespace)))
	send := func(end kgo.TransactionEndTry, all ...domain.Event) {
		require.NoError(t, producer.BeginTransaction())
		for _, e := range all {
			require.NoError(t, producer.ProduceSync(t.Context(), k.Namespace.Record(&e)).FirstErr())
		}
		require.NoError(t, producer.EndTransaction(t.Context(), end))
	}
	var j journal
	c := consumer.New(config(t, k, j.handle))
	run(t, c)
	send(kgo.TryCommit, event(1, 1))
	send(kgo.TryAbort, event(1, 2), event(1, 3))
	send(kgo.TryCommit, event(1, 2))
	eventually(t, "both", func() bool { return len(j.of(1)) == 2 })
	send(kgo.TryAbort, event(1, 3))
	require.Equal(t, []int64{1, 2}, j.of(1))
	ends, err := k.Admin().ListEndOffsets(t.Context(), k.Namespace.Topic(domain.AggregateCustomer))
	require.NoError(t, err)
	end, _ := ends.Lookup(k.Namespace.Topic(domain.AggregateCustomer), 0)
	caughtUp(t, k, end.Offset)
	eventually(t, "no lag", func() bool { return c.Stats().Lag == 0 })
}

// A rebalance waits for the batch in hand, but not for ever.
func TestARebalanceWaitsForASlowBatchUpToTheGrace(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 2)
	started, ended := make(chan struct{}, 100), make(chan error, 100)
	var stuck atomic.Bool
	stuck.Store(true)
	slow := config(t, k, func(ctx context.Context, batch []consumer.Message) []error {
		if !stuck.Load() {
			return nil
		}
		started <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return slices.Repeat([]error{ctx.Err()}, len(batch))
	})
	var j journal
	run(t, consumer.New(slow))
	for n := range 20 { // both partitions have some
		k.Publish(t, event(n, 1))
	}
	<-started
	run(t, consumer.New(config(t, k, j.handle)))
	require.ErrorIs(t, <-ended, context.Canceled)
	eventually(t, "the other member has a partition", func() bool {
		for n := range 20 {
			if len(j.of(n)) > 0 {
				return true
			}
		}
		return false
	})
	stuck.Store(false)
}

func TestAStopLetsTheBatchInHandFinish(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var j journal
	started, finish := make(chan struct{}), make(chan struct{})
	stop := run(t, consumer.New(config(t, k, func(ctx context.Context, batch []consumer.Message) []error {
		close(started)
		<-finish
		if err := ctx.Err(); err != nil {
			return slices.Repeat([]error{err}, len(batch))
		}
		return j.handle(ctx, batch)
	})))
	k.Publish(t, event(1, 1))
	<-started
	stopped := make(chan error)
	go func() { stopped <- stop() }()
	select {
	case err := <-stopped:
		require.Fail(t, "it stopped before the batch was done", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(finish)
	require.NoError(t, <-stopped)
	require.Equal(t, []int64{1}, j.of(1))
	caughtUp(t, k, 1)
}

func TestTheBrokerRestarts(t *testing.T) {
	server(t)
	dir := t.TempDir()
	port := freePort(t)
	options := []kfake.Opt{kfake.NumBrokers(1), kfake.DataDir(dir), kfake.Ports(port)}
	broker, err := kfake.NewCluster(options...)
	require.NoError(t, err)
	k := kafkatest.At(t, broker.ListenAddrs())
	k.CreateTopics(t, 2)
	var j journal
	run(t, consumer.New(config(t, k, j.handle)))
	k.Publish(t, event(1, 1), event(2, 1))
	eventually(t, "the first", func() bool { return len(j.of(1)) == 1 && len(j.of(2)) == 1 })

	broker.Close()
	var again *kfake.Cluster
	eventually(t, "the port is free again", func() bool {
		again, err = kfake.NewCluster(options...)
		return err == nil
	})
	t.Cleanup(again.Close)
	k.Publish(t, event(1, 2), event(2, 2))
	eventually(t, "the second", func() bool { return slices.Contains(j.of(1), 2) && slices.Contains(j.of(2), 2) })
	require.True(t, slices.IsSorted(j.of(1)))
}

func TestItStartsBeforeTheBroker(t *testing.T) {
	server(t)
	port := freePort(t)
	k := &kafkatest.Kafka{Brokers: []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}, Namespace: "early"}
	var j journal
	run(t, consumer.New(config(t, k, j.handle)))
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(port))
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	late := kafkatest.At(t, broker.ListenAddrs())
	late.Namespace = "early"
	late.CreateTopics(t, 1)
	late.Publish(t, event(1, 1))
	eventually(t, "the event", func() bool { return len(j.of(1)) == 1 })
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	return l.Addr().(*net.TCPAddr).Port
}

// refuse lets requests that are about a topic fail, until it is told to stop:
// what is produced to it is refused, what is fetched from it cuts the
// connection. It counts them.
func refuse(k *kafkatest.Kafka, key kmsg.Key, topic string) (refused *atomic.Int64, stop func()) {
	refused = new(atomic.Int64)
	var off atomic.Bool
	about := func(name string, id [16]byte) bool {
		info := k.Fake.TopicIDInfo(id)
		return name == topic || info != nil && info.Topic == topic
	}
	k.Fake.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		if off.Load() {
			return nil, nil, false
		}
		k.Fake.KeepControl()
		switch req := req.(type) {
		case *kmsg.ProduceRequest:
			if !slices.ContainsFunc(req.Topics, func(t kmsg.ProduceRequestTopic) bool { return about(t.Topic, t.TopicID) }) {
				return nil, nil, false
			}
			refused.Add(1)
			resp := req.ResponseKind().(*kmsg.ProduceResponse)
			for _, t := range req.Topics {
				answer := kmsg.NewProduceResponseTopic()
				answer.Topic, answer.TopicID = t.Topic, t.TopicID
				for _, p := range t.Partitions {
					partition := kmsg.NewProduceResponseTopicPartition()
					partition.Partition, partition.ErrorCode = p.Partition, kerr.InvalidRecord.Code
					answer.Partitions = append(answer.Partitions, partition)
				}
				resp.Topics = append(resp.Topics, answer)
			}
			return resp, nil, true
		case *kmsg.FetchRequest:
			if !slices.ContainsFunc(req.Topics, func(t kmsg.FetchRequestTopic) bool { return about(t.Topic, t.TopicID) }) {
				return nil, nil, false
			}
			refused.Add(1)
			return nil, errors.New("cut the connection"), true
		}
		return nil, nil, false
	})
	return refused, func() { off.Store(true) }
}

// Until a message is in the dead-letter topic and its key is noted, it isn't
// done; however often that is tried, it is parked once.
func TestParkingFailsForAWhile(t *testing.T) {
	server(t)
	k := kafkatest.Fake(t)
	k.CreateTopics(t, 1)
	var g gate
	g.from.Store(1)
	refused, stop := refuse(k, kmsg.Produce, k.Namespace.Group("worker")+".dlq")
	run(t, consumer.New(config(t, k, consumer.Each(4, g.handle))))
	k.Publish(t, event(1, 1), event(2, 1), event(1, 2))
	eventually(t, "tries", func() bool { return refused.Load() > 2 })
	committed, err := k.Admin().FetchOffsets(t.Context(), k.Namespace.Group("worker"))
	require.NoError(t, err)
	require.Zero(t, sum(committed))
	stop()
	caughtUp(t, k, 3)
	all, err := letters(t, k).List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int64{0, 2}, offsetsOf(all))
	require.Equal(t, []int64{1}, g.of(2))

	refused, stop = refuse(k, kmsg.Produce, k.Namespace.Group("worker")+".parked")
	k.Publish(t, event(1, 3), event(3, 1))
	eventually(t, "tries", func() bool { return refused.Load() > 2 })
	stop()
	caughtUp(t, k, 5)
	all, err = letters(t, k).List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int64{0, 2, 3}, offsetsOf(all))
}

// A member that gets a partition must know which keys are parked before it
// handles anything of it, however slow that is to find out.
func TestParkedKeysAreKnownBeforeAnythingIsHandled(t *testing.T) {
	server(t)
	k := kafkatest.Fake(t)
	k.CreateTopics(t, 1)
	var g gate
	g.from.Store(2)
	cfg := config(t, k, consumer.Each(4, g.handle))
	stop := run(t, consumer.New(cfg))
	k.Publish(t, event(1, 1), event(1, 2))
	caughtUp(t, k, 2)
	require.NoError(t, stop())
	g.from.Store(0)
	k.Publish(t, event(1, 3))

	refused, show := refuse(k, kmsg.Fetch, k.Namespace.Group("worker")+".parked")
	run(t, consumer.New(cfg))
	eventually(t, "tries", func() bool { return refused.Load() > 3 })
	show()
	caughtUp(t, k, 3)
	require.Equal(t, []int64{1}, g.of(1))
}

// More waits than is kept in memory: the partition waits as a whole, and goes
// on without a gap.
func TestAPartitionInWhichTooMuchWaits(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var j journal
	var open atomic.Bool
	var failures atomic.Int64
	c := consumer.New(config(t, k, consumer.Each(4, func(ctx context.Context, m consumer.Message) error {
		if m.Event.AggregateID == id(1) && !open.Load() {
			failures.Add(1)
			return errors.New("not yet")
		}
		return j.one(ctx, m)
	})))
	run(t, c)
	var all []domain.Event
	var want []int64
	for v := range int64(5000) {
		all = append(all, event(1, v+1))
		want = append(want, v+1)
	}
	k.Publish(t, all...)
	k.Publish(t, event(2, 1))
	eventually(t, "many tries", func() bool { return failures.Load() > 20 })
	require.Empty(t, j.of(2), "it was read although the partition is full")
	open.Store(true)
	eventually(t, "all of both", func() bool { return len(j.of(1)) == 5000 && len(j.of(2)) == 1 })
	require.Equal(t, want, j.of(1))
}
