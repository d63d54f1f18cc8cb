package outbox

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/internal/failpoint/mutanttest"
	"outflow/internal/pgtest"
)

// How far a relay is in one database says nothing of another, as of one that was
// restored elsewhere; and whoever waits in vain is told why.
func TestWhatIsPublishedOfAnotherDatabaseDoesNotCount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	w.writer(t, 1).write(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), mutanttest.Patience(time.Minute))
	defer cancel()
	require.NoError(t, AwaitPublished(ctx, w.config()))

	other := pgtest.New(t)
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := AwaitPublished(short, w.config(func(c *Config) { c.PostgresURL = other.URL }))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "another database")
}
