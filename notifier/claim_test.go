package notifier

import (
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
)

func newClaims(t *testing.T, lease time.Duration) *claims {
	t.Helper()
	if testing.Short() {
		t.Skip("starts PostgreSQL")
	}
	return &claims{pgtest.New(t).Pool, lease}
}

func eventID() domain.ID { return domain.ID(uuid.Must(uuid.NewV7())) }

func (c *claims) mustClaim(t *testing.T, event domain.ID) (claimed, int) {
	t.Helper()
	got, attempt, err := c.claim(t.Context(), event)
	require.NoError(t, err)
	return got, attempt
}

func TestOneOfManyGetsTheClaim(t *testing.T) {
	t.Parallel()
	c := newClaims(t, time.Hour)
	for range 20 {
		event := eventID()
		var mu sync.Mutex
		var grants int
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				got, _, err := c.claim(t.Context(), event)
				mu.Lock()
				defer mu.Unlock()
				if err != nil || got == alreadySent {
					t.Errorf("claim: %v, %v", got, err)
				}
				if got == granted {
					grants++
				}
			})
		}
		wg.Wait()
		require.Equal(t, 1, grants)
	}
}

func TestClaimOfADeadNotifierRunsOut(t *testing.T) {
	t.Parallel()
	c := newClaims(t, -time.Second) // as if the lease's time had passed
	event := eventID()
	got, attempt := c.mustClaim(t, event)
	require.Equal(t, granted, got)
	require.Equal(t, 1, attempt)
	c.lease = time.Hour
	got, attempt = c.mustClaim(t, event)
	require.Equal(t, granted, got)
	require.Equal(t, 2, attempt)
	got, _ = c.mustClaim(t, event)
	require.Equal(t, heldByOther, got)
}

func TestReleasedAndFailedMailMayBeClaimedAgain(t *testing.T) {
	t.Parallel()
	c := newClaims(t, time.Hour)
	event := eventID()
	_, attempt := c.mustClaim(t, event)
	require.NoError(t, c.release(t.Context(), event, attempt, "421 later"))
	got, attempt := c.mustClaim(t, event)
	require.Equal(t, granted, got)
	require.NoError(t, c.fail(t.Context(), event, attempt, "550 no such user"))
	got, _ = c.mustClaim(t, event)
	require.Equal(t, granted, got)
}

func TestSentMailStaysSent(t *testing.T) {
	t.Parallel()
	c := newClaims(t, -time.Second)
	event := eventID()
	_, first := c.mustClaim(t, event)
	_, second := c.mustClaim(t, event) // the first one's lease ran out while it was sending
	require.NoError(t, c.mark(t.Context(), event))
	require.NoError(t, c.release(t.Context(), event, second, "cut off"))
	require.NoError(t, c.fail(t.Context(), event, first, "550"))
	got, _ := c.mustClaim(t, event)
	require.Equal(t, alreadySent, got)
}

func TestLateReleaseLeavesTheSuccessorsClaim(t *testing.T) {
	t.Parallel()
	c := newClaims(t, -time.Second)
	event := eventID()
	_, first := c.mustClaim(t, event)
	c.lease = time.Hour
	_, second := c.mustClaim(t, event)
	require.NotEqual(t, first, second)
	require.NoError(t, c.release(t.Context(), event, first, "cut off"))
	got, _ := c.mustClaim(t, event)
	require.Equal(t, heldByOther, got, "the successor still sends")
}
