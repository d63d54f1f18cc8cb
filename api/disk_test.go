package api_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"outflow/internal/pgtest"
	"outflow/internal/postgres"
)

// The database's disk fills up under load: what is not stored is answered with
// 503 and nothing else, reading goes on where the server does, and once there
// is space again everything that was acknowledged is there.
func TestRow22DiskIsFull(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts PostgreSQL")
	}
	disk := t.TempDir()
	if err := syscall.Mount("outflow-test", disk, "tmpfs", 0, "size=160m"); err != nil {
		t.Skipf("a small file system can't be mounted here (%v): needs root on Linux", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(disk, 0)) })
	// The database's user has to get there.
	for dir := disk; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	pg := pgtest.NewServer(t, func(c *postgres.Config) {
		c.Dir = filepath.Join(disk, "data")
		c.Settings["max_wal_size"] = "32MB"
		c.Settings["restart_after_crash"] = "on"
	})
	s := startOn(t, pg.DB(t))
	noise := make([]byte, 4096)
	acknowledged := map[string]bool{}
	write := func() int {
		r := s.do("POST", "/api/customers", map[string]any{
			"name": "Ada", "email": uuid.NewString() + "@example.com",
			"metadata": map[string]any{"a": strings.Repeat(uuid.NewString(), 10)},
		})
		if r.Status == http.StatusCreated {
			acknowledged[r.object()["id"].(string)] = true
		}
		return r.Status
	}
	for range 50 {
		require.Equal(t, http.StatusCreated, write())
	}

	ballast, err := os.Create(filepath.Join(disk, "ballast"))
	require.NoError(t, err)
	for err == nil {
		_, err = ballast.Write(noise)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NoError(t, ballast.Close())
	refused := 0
	for began := time.Now(); refused < 20; {
		require.Less(t, time.Since(began), time.Minute, "the disk is full, and nothing is refused")
		switch status := write(); status {
		case http.StatusCreated:
		case http.StatusServiceUnavailable:
			refused++
		default:
			require.Failf(t, "not what a full disk is", "%d after %d: %s", status, len(acknowledged), s.log)
		}
	}

	require.NoError(t, os.Remove(ballast.Name()))
	require.Eventually(t, func() bool {
		if write() == http.StatusCreated {
			return true
		}
		// Without space for its log the server ends; somebody has to start it.
		conn, err := pgx.Connect(t.Context(), pg.URL())
		if err != nil {
			_ = pg.Kill(syscall.SIGQUIT)
			_ = pg.Restart(t.Context())
			return false
		}
		_ = conn.Close(t.Context())
		return false
	}, time.Minute, 100*time.Millisecond, "space is back, and nothing is accepted")
	for id := range acknowledged {
		require.Equal(t, http.StatusOK, s.do("GET", "/api/customers/"+id, nil).Status)
		require.Equal(t, http.StatusOK, s.do("GET", "/api/customers/"+id+"/events", nil).Status)
	}
	t.Logf("%d acknowledged, %d refused", len(acknowledged), refused)
}
