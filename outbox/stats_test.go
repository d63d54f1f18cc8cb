package outbox

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 2)
	var mu sync.Mutex
	var hold chan struct{}
	r := w.run(t, quick, func(c *Config) {
		c.hook = func(point string) error {
			mu.Lock()
			h := hold
			mu.Unlock()
			if h != nil && point == "relay.produce" {
				<-h
			}
			return nil
		}
	})
	r.awaitState(t, StateStreaming)
	wr.write(t, 10)
	r.await(t, "published", func(s Stats) bool { return s.Published == 10 && s.Position >= 10 })
	require.Positive(t, r.Stats().Latency)
	require.Less(t, r.Stats().Latency, time.Minute)

	// Kafka does not take anything.
	h := make(chan struct{})
	release := sync.OnceFunc(func() { close(h) })
	t.Cleanup(release)
	mu.Lock()
	hold = h
	mu.Unlock()
	tx, err := w.db.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), `CREATE TABLE open (n int)`)
	require.NoError(t, err)
	wr.write(t, 7)
	r.await(t, "lag", func(s Stats) bool {
		return s.Unpublished == 7 && s.Lag > 1 && s.RetainedWAL > 0 && !s.OldestTransaction.IsZero() && !s.OldestUnpublished.IsZero()
	})
	answer := httptest.NewRecorder()
	r.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/status", nil))
	var status map[string]any
	require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &status))
	require.Equal(t, "streaming", status["state"])
	require.EqualValues(t, 7, status["unpublished"])

	mu.Lock()
	hold = nil
	mu.Unlock()
	release()
	r.await(t, "no lag", func(s Stats) bool { return s.Unpublished == 0 && s.Lag == 0 && s.Published == 17 })
}
