package e2e_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/failpoint"
)

// Row 18 of the failure table, from outside: a rebuild is killed at five points
// and started again, while customers and orders change and one of the two
// replicators sleeps through the swap. What people read ends equal to
// PostgreSQL, each time.
func TestRow18RebuildsAreKilledBesideLiveTraffic(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	failing := filepath.Join(t.TempDir(), "outflow-failpoints")
	out, err := exec.Command("go", "build", "-tags", "failpoints", "-o", failing, "outflow/cmd/outflow").CombinedOutput()
	require.NoError(t, err, "%s", out)
	s := startSystem(t, 2)
	for _, p := range s.parts["replicate"] {
		p.awaitMember()
	}
	const writers, writes = 2, 40
	for round, point := range []string{"rebuild.filled", "rebuild.pausing", "rebuild.paused", "rebuild.swapping", "rebuild.swapped"} {
		var writing sync.WaitGroup
		done := make(chan struct{})
		failed := make(chan error, writers)
		for w := range writers {
			writing.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-done:
						return
					default:
					}
					writer := round*10_000 + n*writers + w
					if err := writeALot(s.client, rand.New(rand.NewPCG(9, uint64(writer))), writer, writes, &killPlan{}); err != nil {
						failed <- err
						return
					}
				}
			})
		}
		asleep := s.parts["replicate"][round%2].cmd.Process
		require.NoError(t, asleep.Signal(syscall.SIGSTOP))

		killed := exec.Command(failing, "rebuild", "customers")
		killed.Env = append(append(cleanEnv(), s.environ()...), failpoint.Env+"="+point+"=kill")
		output, err := killed.CombinedOutput()
		require.Error(t, err, "%s: %s", point, output)
		status, ok := killed.ProcessState.Sys().(syscall.WaitStatus)
		require.True(t, ok && status.Signal() == syscall.SIGKILL, "%s: %s", point, output)

		stdout, stderr, code := runOnce(t, s.environ(), "outflow", "rebuild", "customers")
		require.Zero(t, code, "%s: %s", point, stderr)
		var told struct {
			Rebuilt string
			Resumed bool
		}
		require.NoError(t, json.Unmarshal([]byte(stdout), &told), stdout)
		require.Equal(t, "customers", told.Rebuilt)
		// Once it was decided to swap, the replicator that is awake completes it,
		// and another rebuild is another one.
		if point != "rebuild.swapping" && point != "rebuild.swapped" {
			require.True(t, told.Resumed, "%s: it began again", point)
		}

		require.NoError(t, asleep.Signal(syscall.SIGCONT))
		close(done)
		writing.Wait()
		select {
		case err := <-failed:
			require.NoError(t, err)
		default:
		}
		requireReplicaEqualsOutbox(t, s.client, "customers", domain.AggregateCustomer)
		stdout, stderr, code = runOnce(t, s.environ(), "outflow", "verify")
		require.Zero(t, code, "%s: %s%s", point, stdout, stderr)
	}
	for _, args := range [][]string{
		{"rebuild", "all", "--dry-run"}, {"rebuild", "all", "--from", "outbox"}, {"rebuild", "orders", "--until", "2099-01-01T00:00:00Z"},
		{"verify", "--json"}, {"verify", "--log"}, {"restore"},
	} {
		stdout, stderr, code := runOnce(t, s.environ(), "outflow", args...)
		require.Zero(t, code, "%v: %s%s", args, stdout, stderr)
	}
	requireReplicaEqualsOutbox(t, s.client, "orders", domain.AggregateOrder)
	for _, args := range [][]string{{"rebuild", "mails"}, {"rebuild", "--from", "paper"}, {"rebuild", "--until", "soon", "orders"}, {"verify", "--log", "--repair"}, {"restore", "--in-place", "--schema", "x"}} {
		_, _, code := runOnce(t, s.environ(), "outflow", args...)
		require.Equal(t, 2, code, "%v", args)
	}
	// What is wrong is told by the status, and mended.
	_, err = s.client.mongo.Collection("_orders").DeleteMany(t.Context(), map[string]any{})
	require.NoError(t, err)
	_, _, code := runOnce(t, s.environ(), "outflow", "verify")
	require.Equal(t, 1, code)
	_, stderr, code := runOnce(t, s.environ(), "outflow", "verify", "orders", "--repair")
	require.Zero(t, code, stderr)
	requireReplicaEqualsOutbox(t, s.client, "orders", domain.AggregateOrder)
}

// A rebuild reads events that once sent mail and had orders decided, from Kafka
// and from the outbox. Nothing of that happens again, also not to workers that
// begin afterwards.
func TestARebuildSendsNoMailAndNoCommandsAgain(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	s := startSystem(t, 1)
	s.run("analyze")
	shop := func() {
		for range 12 { // some for each partition
			c := s.createCustomer(map[string]any{"name": "Ada", "email": uuid.NewString() + "@example.com"})
			s.order(s.placeOrder(c.ID).ID, domain.OrderStatusConfirmed)
		}
		requireEveryOrderDecided(t, s.client)
		requireEveryMailArrived(t, s.client, 0)
	}
	// What had effects: what was decided, what was asked of the mail server, and
	// how far the groups that do so are.
	effects := func() (events, sends int64, committed string) {
		require.NoError(t, s.postgres.QueryRow(t.Context(),
			`SELECT (SELECT count(*) FROM outbox), (SELECT sum(attempts) FROM mail)`).Scan(&events, &sends))
		k, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...))
		require.NoError(t, err)
		defer k.Close()
		for _, worker := range []string{"notifier", "confirmer"} {
			group := s.ns.Group(worker)
			all, err := kadm.NewClient(k).FetchOffsets(t.Context(), group)
			require.NoError(t, err)
			require.NotEmpty(t, all, group)
			for _, o := range all.Sorted() {
				committed += fmt.Sprintf("%s %s/%d@%d\n", group, o.Topic, o.Partition, o.At)
			}
		}
		return events, sends, committed
	}
	shop()
	for _, part := range []string{"notify", "confirm"} {
		require.NoError(t, s.parts[part][0].stop()) // what is handled is committed
	}
	events, sends, committed := effects()
	require.Positive(t, sends)
	for _, from := range []string{"kafka", "outbox"} {
		stdout, stderr, code := runOnce(t, s.environ(), "outflow", "rebuild", "all", "--from", from)
		require.Zero(t, code, stderr)
		for line := range strings.Lines(stdout) {
			var told struct {
				Rebuilt string
				Events  int64
			}
			require.NoError(t, json.Unmarshal([]byte(line), &told), line)
			require.GreaterOrEqual(t, told.Events, int64(12), "%s: nothing was read again", line)
		}
		require.Equal(t, 3, strings.Count(stdout, "\n"), stdout)
		e, n, c := effects()
		require.Equal(t, events, e, "events were added")
		require.Equal(t, sends, n, "mails were claimed")
		require.Equal(t, committed, c, "a group was put back")
	}
	// The workers begin again, and what comes now passes through each partition
	// behind anything that may have been published again.
	s.run("notify")
	s.run("confirm")
	shop()
	requireKafkaEqualsOutbox(t, s.client)
	var claims int64
	require.NoError(t, s.postgres.QueryRow(t.Context(), `SELECT max(attempts) FROM mail`).Scan(&claims))
	require.Equal(t, int64(1), claims)
}
