package e2e_test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
)

func TestSeedDemoFillsAnEmptyStackOnce(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	dir := t.TempDir()
	s := startStack(t, dir, "--seed-demo", "--listen", "127.0.0.1:0")
	require.Contains(t, s.out.String(), "5 customers and 7 orders")
	c := newClient(t, s.env)
	seen := map[domain.OrderStatus]bool{}
	var orders struct{ Data []domain.Order }
	c.do("GET", "/api/orders", nil, http.StatusOK).into(t, &orders)
	for _, o := range orders.Data {
		seen[o.Status] = true
		c.document("orders", o.ID, o.Version)
	}
	for _, status := range []domain.OrderStatus{
		domain.OrderStatusConfirmed, domain.OrderStatusRejected, domain.OrderStatusFulfilled, domain.OrderStatusRefunded, domain.OrderStatusCancelled,
	} {
		require.True(t, seen[status], "the demo has no order that is %s", status)
	}
	_, stderr, status := runOnce(t, nil, "outflow-dev", "reset", "--yes", "--data-dir", dir)
	require.Equal(t, 1, status, "the stack runs")
	require.Contains(t, stderr, "another outflow-dev runs on "+dir)
	require.NoError(t, s.stop())

	// A used database is left alone. The banner comes when the replica, which is
	// in memory where the machine has no mongod, holds what was there.
	s = startStack(t, dir, "--seed-demo", "--listen", "127.0.0.1:0")
	c = newClient(t, s.env)
	for view, want := range map[string]int64{"customers": 5, "orders": 7} {
		n, err := c.mongo.Collection(view).CountDocuments(t.Context(), bson.M{})
		require.NoError(t, err)
		require.Equal(t, want, n, view)
	}
	require.Contains(t, s.out.String(), "left out: the database is not empty")
	require.NoError(t, s.stop())

	_, stderr, status = runOnce(t, nil, "outflow-dev", "reset", "--data-dir", dir)
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "--yes")
	require.DirExists(t, filepath.Join(dir, "data"))
	stdout, _, status := runOnce(t, nil, "outflow-dev", "reset", "--yes", "--data-dir", dir)
	require.Equal(t, 0, status)
	require.Contains(t, stdout, "removed "+filepath.Join(dir, "data"))
	_, err := os.Stat(filepath.Join(dir, "data"))
	require.ErrorIs(t, err, os.ErrNotExist)
	stdout, _, status = runOnce(t, nil, "outflow-dev", "reset", "--data-dir", dir)
	require.Equal(t, 0, status)
	require.Contains(t, stdout, "nothing to remove")
}

func TestHealthOfEveryPart(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	s := startStack(t, t.TempDir(), "--services-only", "--ephemeral", "--listen", "127.0.0.1:0")
	// The relay comes before the workers, who are not ready without its topics.
	for _, row := range [][2]string{
		{"api", "outflow_api_requests_total"}, {"relay", "outflow_relay_active"}, {"replicate", "outflow_consumer_joined"},
		{"analyze", "outflow_consumer_lag_records"}, {"confirm", "outflow_consumer_handled_total"}, {"notify", "outflow_consumer_parked_total"},
	} {
		part, metric := row[0], row[1]
		address := freeAddress(t)
		env := s.environ("OUTFLOW_HEALTH_LISTEN=" + address)
		_, stderr, status := runOnce(t, env, "outflow", "health")
		require.Equal(t, 1, status, "%s is not there yet: %s", part, stderr)
		start(t, env, "outflow", part)
		require.Eventually(t, func() bool {
			_, stderr, status = runOnce(t, env, "outflow", "health")
			return status == 0
		}, patience, 50*time.Millisecond, "%s: %s", part, stderr)
		c := client{t: t, base: "http://" + address}
		require.Regexp(t, `(?m)^`+metric+`\{part="`+part+`"\} `, string(c.do("GET", "/metrics", nil, http.StatusOK).Body))
	}
	// Kafka has no say in whether the API is ready; PostgreSQL has.
	address := freeAddress(t)
	env := s.environ("OUTFLOW_HEALTH_LISTEN="+address, "OUTFLOW_KAFKA_BROKERS="+freeAddress(t), "OUTFLOW_LISTEN=127.0.0.1:0")
	start(t, env, "outflow", "api")
	waitHTTP(t, "http://"+address+"/readyz")
	address = freeAddress(t)
	env = s.environ("OUTFLOW_HEALTH_LISTEN="+address, "OUTFLOW_LISTEN=127.0.0.1:0", "OUTFLOW_POSTGRES_URL=postgres://outflow@"+freeAddress(t)+"/outflow")
	start(t, env, "outflow", "api")
	waitHTTP(t, "http://"+address+"/livez")
	_, stderr, status := runOnce(t, env, "outflow", "health")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "503 Service Unavailable: not ready: api")
	_, stderr, status = runOnce(t, env, "outflow", "health", "--live")
	require.Equal(t, 0, status, stderr)
}

func TestShellCompletion(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds binaries")
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		for _, binary := range []string{"outflow", "outflow-dev"} {
			stdout, stderr, status := runOnce(t, nil, binary, "completion", shell)
			require.Equal(t, 0, status, stderr)
			require.Contains(t, stdout, binary)
		}
	}
	stdout, _, status := runOnce(t, nil, "outflow-dev", "__complete", "--se")
	require.Equal(t, 0, status)
	require.Contains(t, stdout, "--seed-demo")
}

// freeAddress is one that nobody listens on, just now.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	return ln.Addr().String()
}
