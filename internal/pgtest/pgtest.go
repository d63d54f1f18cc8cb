// Package pgtest gives every test a PostgreSQL database of its own, migrated
// and empty.
//
// The databases are clones of a template, which takes some 15 ms each, on a
// server that is started by the first test of a test binary that asks, and
// shared by the binary's tests. A package needs no TestMain for it: nothing
// stops the server while tests run, and when the process ends, in whatever way
// (the last test, a panic, -timeout, kill -9), the kernel ends the server and
// a watcher removes its directory (see package postgres, Config.Remove).
//
// When OUTFLOW_TEST_POSTGRES names a server (a libpq URI of a superuser), the
// databases are made there instead. What a killed process leaves there, the next
// one removes.
//
// Tests about durability and crashes take a server of their own with NewServer.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"outflow/internal/postgres"
)

// Env names the variable that names a server to use.
const Env = "OUTFLOW_TEST_POSTGRES"

const (
	// startTimeout bounds what a test waits for a server or a database.
	startTimeout = 60 * time.Second
	// fetchTimeout bounds what all tests wait for PostgreSQL's programs. It ends
	// before go test's own patience, which says nothing of the reason.
	fetchTimeout = 9 * time.Minute
)

// DB is a database that belongs to one test.
type DB struct {
	Name string
	// URL is its libpq URI.
	URL string
	// Pool is connected to it when it is first used.
	Pool *pgxpool.Pool
}

// New makes a database for t, and drops it when t ends, with its replication
// slots and whoever is still connected. With -short it skips the test.
func New(t testing.TB) *DB {
	t.Helper()
	skipShort(t)
	c, err := shared()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return c.newDB(t, true)
}

// shared returns the cluster that all tests of this process share. When it
// can't be had, every test that asks says so.
var shared = sync.OnceValues(func() (*cluster, error) {
	if url := os.Getenv(Env); url != "" {
		return joinCluster(url)
	}
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(scratch(), "outflow-pgtest-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := postgres.Start(ctx, config(dir, bin, true, nil))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return newCluster(s.DatabaseURL("postgres"))
})

// programs are the machine's, or fetched where it has none. How far that is goes
// to the standard error, which go test shows with -v, when it tests one package
// in its folder, and when a test fails.
var programs = sync.OnceValues(func() (postgres.Binaries, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	bin, err := postgres.FindOrFetch(ctx, "", postgres.Show(os.Stderr))
	if errors.Is(err, postgres.ErrNotFound) {
		return bin, fmt.Errorf("%w; or name a running server in %s, as the URI of a superuser", err, Env)
	}
	return bin, err
})

// scratch is the folder for what need not survive a crash of the machine: memory,
// where there is plenty. A database is some 330 files, which take a disk's file
// system up to 80 ms to make and memory 10.
func scratch() string {
	const memory, plenty = "/dev/shm", 8 << 30
	var fs syscall.Statfs_t
	if os.Getenv("TMPDIR") == "" && syscall.Statfs(memory, &fs) == nil && uint64(fs.Bavail)*uint64(fs.Bsize) >= plenty {
		return memory
	}
	return os.TempDir()
}

// config is a server's for tests: small, and generous in connections and slots.
func config(dir string, bin postgres.Binaries, noSync bool, opts []func(*postgres.Config)) postgres.Config {
	cfg := postgres.Config{
		Dir:    dir,
		Bin:    bin,
		NoSync: noSync,
		Remove: true,
		Settings: map[string]string{
			"max_connections":       "300",
			"max_replication_slots": "100",
			"max_wal_senders":       "100",
			// Dropping a database scans all of them.
			"shared_buffers": "64MB",
			"min_wal_size":   "32MB",
		},
	}
	for _, opt := range opts {
		opt(&cfg)
	}
	return cfg
}

// Server is a PostgreSQL that belongs to one test, which may crash it: see
// Kill and Restart.
type Server struct {
	*postgres.Server
	cluster func() (*cluster, error)
}

// NewServer starts a server for t, durable (fsync on) unless an option says
// otherwise, and stops it when t ends. With -short it skips the test. When the
// test fails, the end of the server's log is in the test's output.
func NewServer(t testing.TB, opts ...func(*postgres.Config)) *Server {
	t.Helper()
	skipShort(t)
	bin, err := programs()
	switch {
	case errors.Is(err, postgres.ErrNotFound) && os.Getenv(Env) != "":
		t.Skipf("pgtest: this test crashes its server, so it needs one of its own: %v", err)
	case err != nil:
		t.Fatalf("pgtest: %v", err)
	}
	dir, err := os.MkdirTemp("", "outflow-pgtest-")
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	cfg := config(dir, bin, false, opts)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	s, err := postgres.Start(ctx, cfg)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", tail(s.LogFile()))
		}
		if err := s.Stop(); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return &Server{Server: s, cluster: sync.OnceValues(func() (*cluster, error) {
		return newCluster(s.DatabaseURL("postgres"))
	})}
}

// DB makes a migrated database on the server. It goes with the server.
func (s *Server) DB(t testing.TB) *DB {
	t.Helper()
	c, err := s.cluster()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return c.newDB(t, false)
}

// IgnoreServer makes goleak overlook the goroutine that holds the shared server,
// which lives until the process ends:
//
//	goleak.VerifyTestMain(m, pgtest.IgnoreServer())
func IgnoreServer() goleak.Option {
	return goleak.IgnoreAnyFunction("outflow/internal/postgres.(*process).run")
}

func skipShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL, which -short leaves out")
	}
}

// testWriter sends a logger's lines to the test's output.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}

func tail(path string) string {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	const most = 8 << 10
	if fi, err := f.Stat(); err == nil && fi.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// poolSize lets many tests share the server's 300 connections.
func poolSize() int32 { return int32(min(16, max(4, 200/runtime.GOMAXPROCS(0)))) }
