package consumer_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/internal/consumer"
	"outflow/internal/kafkatest"
)

// A handler that knows when to get a message again gets it then; other keys
// don't wait, and what follows in its key does.
func TestAMessageComesAgainWhenTheHandlerAsksForIt(t *testing.T) {
	server(t)
	const pause = 700 * time.Millisecond
	k := kafkatest.Start(t)
	k.CreateTopics(t, 1)
	var j journal
	var mu sync.Mutex
	var times []time.Time
	cfg := config(t, k, consumer.Each(2, func(ctx context.Context, m consumer.Message) error {
		if m.Event.AggregateID == event(1, 1).AggregateID {
			mu.Lock()
			defer mu.Unlock()
			if times = append(times, time.Now()); len(times) <= 2 {
				return consumer.After(pause, errors.New("not yet"))
			}
		}
		return j.one(ctx, m)
	}))
	cfg.MinRetry, cfg.MaxRetry = time.Hour, time.Hour // nothing else brings it back
	c := consumer.New(cfg)
	run(t, c)
	k.Publish(t, event(1, 1), event(1, 2), event(2, 1))
	eventually(t, "the other key", func() bool { return len(j.of(2)) == 1 })
	require.Empty(t, j.of(1))
	eventually(t, "the key itself", func() bool { return len(j.of(1)) == 2 })
	require.Equal(t, []int64{1, 2}, j.of(1))
	mu.Lock()
	defer mu.Unlock()
	for i := range 2 {
		require.GreaterOrEqual(t, times[i+1].Sub(times[i]), pause)
	}
	require.Equal(t, int64(2), c.Stats().Retried)
	require.NoError(t, consumer.After(pause, nil))
	cause := errors.New("cause")
	require.ErrorIs(t, consumer.After(pause, cause), cause)
	require.EqualError(t, consumer.After(pause, cause), "cause")
}
