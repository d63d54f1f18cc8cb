// Package kafkatest gives tests a Kafka broker: an in-process one (kfake) of
// their own, or the one that OUTFLOW_TEST_KAFKA names, where every test has
// topics of its own under a namespace of its own.
package kafkatest

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/events"
)

// Kafka is a broker for one test.
type Kafka struct {
	Brokers   []string
	Fake      *kfake.Cluster // nil when the broker is a real one
	Namespace events.Namespace

	client *kgo.Client
}

// Start returns a broker that is gone when the test ends. Options are for
// kfake; a test that needs them to mean something calls [Fake].
func Start(t testing.TB, opts ...kfake.Opt) *Kafka {
	t.Helper()
	if real := os.Getenv("OUTFLOW_TEST_KAFKA"); real != "" {
		return At(t, strings.Split(real, ","))
	}
	return Fake(t, opts...)
}

// Fake is Start for what can't be done to a real broker.
func Fake(t testing.TB, opts ...kfake.Opt) *Kafka {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return connect(t, &Kafka{Brokers: c.ListenAddrs(), Fake: c})
}

// At is Start for a broker that runs already.
func At(t testing.TB, brokers []string) *Kafka {
	t.Helper()
	return connect(t, &Kafka{Brokers: brokers})
}

func connect(t testing.TB, k *Kafka) *Kafka {
	t.Helper()
	k.Namespace = events.Namespace("t" + strings.ToLower(rand.Text()[:10]))
	k.client = k.Client(t)
	return k
}

// Opts are what every client in a test needs: without them it takes seconds to
// see that a leader moved.
func Opts() []kgo.Opt {
	return []kgo.Opt{kgo.MetadataMinAge(100 * time.Millisecond)}
}

// Client returns a client that is closed when the test ends.
func (k *Kafka) Client(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	all := append([]kgo.Opt{kgo.SeedBrokers(k.Brokers...)}, Opts()...)
	c, err := kgo.NewClient(append(all, opts...)...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// Admin is for what a test asks or changes beside the code that it tests.
func (k *Kafka) Admin() *kadm.Client { return kadm.NewClient(k.client) }

// CreateTopics makes the topics of the namespace, or those named.
func (k *Kafka) CreateTopics(t testing.TB, partitions int32, topics ...string) {
	t.Helper()
	if len(topics) == 0 {
		topics = k.Namespace.Topics()
	}
	made, err := k.Admin().CreateTopics(t.Context(), partitions, 1, nil, topics...)
	require.NoError(t, err)
	require.NoError(t, made.Error())
}

// Publish writes events to their topics, in order.
func (k *Kafka) Publish(t testing.TB, all ...domain.Event) {
	t.Helper()
	var records []*kgo.Record
	for i := range all {
		records = append(records, k.Namespace.Record(&all[i]))
	}
	k.Produce(t, records...)
}

// Produce writes records, in order.
func (k *Kafka) Produce(t testing.TB, records ...*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, k.client.ProduceSync(ctx, records...).FirstErr())
}

// DeleteTopic deletes a topic, and waits until its name is free again.
func (k *Kafka) DeleteTopic(t testing.TB, topic string) {
	t.Helper()
	gone, err := k.Admin().DeleteTopics(t.Context(), topic)
	require.NoError(t, err)
	require.NoError(t, gone.Error())
	k.client.PurgeTopicsFromClient(topic)
	require.Eventually(t, func() bool {
		all, err := k.Admin().ListTopics(t.Context(), topic)
		return err == nil && !all.Has(topic)
	}, 30*time.Second, 10*time.Millisecond)
}

// DeleteOldest deletes what a topic holds, as retention would.
func DeleteOldest(t testing.TB, k *Kafka, topic string) {
	t.Helper()
	ends, err := k.Admin().ListEndOffsets(t.Context(), topic)
	require.NoError(t, err)
	_, err = k.Admin().DeleteRecords(t.Context(), ends.Offsets())
	require.NoError(t, err)
}
