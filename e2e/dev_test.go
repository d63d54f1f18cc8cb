package e2e_test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

func TestDevStackKeepsItsDataThroughStopsAndKills(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	dir := t.TempDir()
	s := startStack(t, dir, "--listen", "127.0.0.1:0")
	c := newClient(t, s.env)
	ada := c.createCustomer(map[string]any{"name": "Ada", "email": "ada@example.com"})
	order := c.placeOrder(ada.ID)
	c.order(order.ID, domain.OrderStatusConfirmed)
	c.document("orders", order.ID, 2)
	c.mailTo("ada@example.com", 2)
	for _, word := range []string{"/api/customers", "/docs", "/inbox", dir, "kept", "curl -s " + s.env["OUTFLOW_API_URL"]} {
		require.Contains(t, s.out.String(), word)
	}

	_, stderr, status := runOnce(t, nil, "outflow-dev", "--data-dir", dir, "--listen", "127.0.0.1:0")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "another outflow-dev runs on "+dir)
	require.NoError(t, s.stop())
	require.Contains(t, s.out.String(), "stopped: ")
	require.Contains(t, s.out.String(), "5 events published")
	_, stderr, status = runOnce(t, nil, "outflow-dev", "env", "--data-dir", dir)
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "no outflow-dev runs on "+dir)

	// MongoDB is in memory where the machine has no mongod: the replica is
	// rebuilt from the events.
	s = startStack(t, dir, "--listen", "127.0.0.1:0")
	c = newClient(t, s.env)
	c.document("orders", order.ID, 2)
	bob := c.createCustomer(map[string]any{"name": "Bob", "email": "bob@example.com"})
	postgres := postmaster(t, dir)
	s.kill()
	require.Eventually(t, func() bool { return !alive(postgres) }, patience, 20*time.Millisecond, "PostgreSQL outlives a killed outflow-dev")

	s = startStack(t, dir, "--listen", "127.0.0.1:0")
	c = newClient(t, s.env)
	c.do("GET", "/api/customers/"+bob.ID.String(), nil, http.StatusOK)
	c.document("customers", bob.ID, 1)
	c.mailTo("bob@example.com", 1)
	c.mailTo("ada@example.com", 2)
	require.Equal(t, []string{"order.placed.v1 1", "order.confirmed.v1 2"}, typesOf(c.published(domain.AggregateOrder)))
	require.NoError(t, s.stop())
}

func postmaster(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "data", "postgres", "data", "postmaster.pid"))
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(line)
	require.NoError(t, err)
	return pid
}

func alive(pid int) bool {
	_, err := os.Stat("/proc/" + strconv.Itoa(pid))
	if _, noProc := os.Stat("/proc/self"); noProc != nil {
		p, err := os.FindProcess(pid)
		return err == nil && p.Signal(syscall.Signal(0)) == nil
	}
	return err == nil
}

func TestDevStackNamesTheFlagWhenThePortIsTaken(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds the binaries")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	dir := t.TempDir()
	_, stderr, status := runOnce(t, nil, "outflow-dev", "--data-dir", dir, "--listen", ln.Addr().String())
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "--listen")
	require.NoDirExists(t, filepath.Join(dir, "data"), "nothing was started")
}

func TestEphemeralStackLeavesNothing(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	dir := t.TempDir()
	s := startStack(t, dir, "--ephemeral", "--services-only", "--listen", "127.0.0.1:0")
	require.NoError(t, s.stop())
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(dir, "lock")}, left)

	s = startStack(t, dir, "--ephemeral", "--services-only", "--listen", "127.0.0.1:0")
	s.kill()
	s = startStack(t, dir, "--ephemeral", "--services-only", "--listen", "127.0.0.1:0")
	left, err = filepath.Glob(filepath.Join(dir, "ephemeral-*"))
	require.NoError(t, err)
	require.Len(t, left, 1, "the killed one's data is gone")
	require.NoError(t, s.stop())
}

func TestCommandLineAndConfigurationErrors(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds the binaries")
	}
	for name, row := range map[string]struct {
		env  []string
		args []string
		want []string
	}{
		"nothing is configured": {nil, []string{"notify"}, []string{"OUTFLOW_POSTGRES_URL", "OUTFLOW_KAFKA_BROKERS", "OUTFLOW_SMTP_ADDR"}},
		"several are wrong": {
			[]string{"OUTFLOW_POSTGRES_URL=mysql://x", "OUTFLOW_KAFKA_BROKERS=nowhere"}, []string{"relay"},
			[]string{"OUTFLOW_POSTGRES_URL", "OUTFLOW_KAFKA_BROKERS"},
		},
		"unknown command":   {nil, []string{"replciate"}, []string{"replciate", "--help"}},
		"unknown flag":      {nil, []string{"api", "--port", "1"}, []string{"--port", "--help"}},
		"unwanted argument": {nil, []string{"migrate", "now"}, []string{"now"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, status := runOnce(t, row.env, "outflow", row.args...)
			require.Equal(t, 2, status, stderr)
			require.Empty(t, stdout)
			for _, w := range row.want {
				require.Contains(t, stderr, w)
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds the binaries")
	}
	stdout, _, status := runOnce(t, nil, "outflow", "--help")
	require.Zero(t, status)
	for _, c := range []string{"api", "relay", "replicate", "analyze", "confirm", "notify", "migrate", "version"} {
		require.Contains(t, stdout, "\n  "+c)
	}
	for _, binary := range []string{"outflow", "outflow-dev"} {
		stdout, _, status = runOnce(t, nil, binary, "version")
		require.Zero(t, status)
		require.Contains(t, stdout, "go1.")
	}
}
