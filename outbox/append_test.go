package outbox_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/events"
	"outflow/outbox"
)

// The largest event that may be stored is one that a producer and a broker
// with their default limits take.
func TestRow10LargestEventFitsIntoARecord(t *testing.T) {
	t.Parallel()
	id := domain.MustParseID("01938f00-0000-7000-8000-000000000001")
	e := domain.Event{
		ID: id, AggregateType: domain.AggregateNotification, AggregateID: id, AggregateVersion: 1 << 62,
		Type: domain.NotificationRequested, Key: id.String(), OccurredAt: time.Now(), Metadata: json.RawMessage(`{}`),
	}
	fill := (outbox.MaxEventSize - len(e.Metadata)) / 2
	e.Before = json.RawMessage(`"` + strings.Repeat("b", fill-2) + `"`)
	e.After = json.RawMessage(`"` + strings.Repeat("a", fill-2) + `"`)
	require.NoError(t, outbox.CheckSize(e))
	larger := e
	larger.Metadata = json.RawMessage(`{"a":""}`)
	require.Equal(t, domain.CodeTooLarge, domain.CodeOf(outbox.CheckSize(larger)))

	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, events.DefaultNamespace.Topic(e.AggregateType)))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ProducerBatchCompression(kgo.NoCompression()))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, client.ProduceSync(ctx, events.DefaultNamespace.Record(&e)).FirstErr())
}
