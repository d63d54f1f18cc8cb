package consumer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/failpoint/mutanttest"
	"outflow/internal/kafkatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// id returns the n-th of the tests' ids.
func id(n int) domain.ID {
	return domain.MustParseID(fmt.Sprintf("01938f00-0000-7000-8000-%012x", n))
}

// event is version version of the n-th customer.
func event(n int, version int64) domain.Event {
	state := json.RawMessage(fmt.Sprintf(`{"n":%d,"version":%d}`, n, version))
	e := domain.Event{
		ID: id(n<<16 + int(version)), AggregateType: domain.AggregateCustomer, AggregateID: id(n), AggregateVersion: version,
		Type: domain.CustomerUpdated, Key: id(n).String(), After: state, Metadata: json.RawMessage("{}"),
		OccurredAt: time.Date(2026, 11, 21, 4, 5, 6, 0, time.UTC),
	}
	return e
}

// journal keeps which versions of which customer were handled, in order.
type journal struct {
	mu       sync.Mutex
	versions map[domain.ID][]int64
}

func (j *journal) add(m consumer.Message) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.versions == nil {
		j.versions = map[domain.ID][]int64{}
	}
	j.versions[m.Event.AggregateID] = append(j.versions[m.Event.AggregateID], m.Event.AggregateVersion)
}

func (j *journal) of(n int) []int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]int64(nil), j.versions[id(n)]...)
}

func (j *journal) handle(_ context.Context, batch []consumer.Message) []error {
	for _, m := range batch {
		j.add(m)
	}
	return nil
}

func (j *journal) one(_ context.Context, m consumer.Message) error {
	j.add(m)
	return nil
}

// config is a consumer of customers that logs to the test.
func config(t *testing.T, k *kafkatest.Kafka, h consumer.Handler) consumer.Config {
	return consumer.Config{
		Brokers: k.Brokers, Group: k.Namespace.Group("worker"), Topics: []string{k.Namespace.Topic(domain.AggregateCustomer)}, Handler: h,
		MinRetry: 10 * time.Millisecond, MaxRetry: 100 * time.Millisecond, Grace: 2 * time.Second,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Client: kafkatest.Opts(),
	}
}

// run runs a consumer until stop is called, which returns what Run returned.
func run(t *testing.T, c *consumer.Consumer) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(30 * time.Second):
			return fmt.Errorf("the consumer did not stop")
		}
	})
	t.Cleanup(func() { require.NoError(t, stop()) })
	return stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, mutanttest.Patience(5*time.Minute), 5*time.Millisecond, what)
}

func server(t *testing.T) {
	t.Helper()
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a Kafka broker")
	}
}
