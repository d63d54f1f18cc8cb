package consumer_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/internal/consumer"
	"outflow/internal/kafkatest"
)

func TestStatsTellMembershipAndLagFromTheBeginning(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	for n := range 10 {
		k.Publish(t, event(n, 1))
	}
	hold := make(chan struct{})
	c := consumer.New(config(t, k, func(ctx context.Context, batch []consumer.Message) []error {
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return make([]error, len(batch))
	}))
	require.False(t, c.Stats().Joined)
	stop := run(t, c)
	eventually(t, "member", func() bool { return c.Stats().Joined })
	require.GreaterOrEqual(t, c.Stats().Lag, int64(10), "the lag is known before anything is handled")
	require.Equal(t, 1, c.Stats().Partitions)

	// A member for which no partition is left is a member all the same.
	idle := consumer.New(config(t, k, (&journal{}).handle))
	stopIdle := run(t, idle)
	close(hold)
	eventually(t, "no lag", func() bool {
		return c.Stats().Lag+idle.Stats().Lag == 0 && c.Stats().Handled+idle.Stats().Handled == 10
	})
	eventually(t, "both are members", func() bool {
		return c.Stats().Joined && idle.Stats().Joined && c.Stats().Partitions+idle.Stats().Partitions == 1
	})
	require.NoError(t, stopIdle())
	require.NoError(t, stop())
	require.False(t, c.Stats().Joined)
}
