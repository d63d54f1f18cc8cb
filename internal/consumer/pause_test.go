package consumer

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Pauses double up to a bound, and half of each is at random, so that those who
// failed together don't come back together.
func TestPausesGrowAndDiffer(t *testing.T) {
	t.Parallel()
	c := New(Config{MinRetry: 100 * time.Millisecond, MaxRetry: 3 * time.Second})
	for attempt, most := range map[int]time.Duration{
		0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 4: 1600 * time.Millisecond, 5: 3 * time.Second, 29: 3 * time.Second, 1_000_000: 3 * time.Second,
	} {
		seen := map[time.Duration]bool{}
		for range 200 {
			pause := c.pause(attempt)
			require.LessOrEqual(t, pause, most)
			require.GreaterOrEqual(t, pause, most/2)
			seen[pause] = true
		}
		require.Greater(t, len(seen), 150)
	}
}
