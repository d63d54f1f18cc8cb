package pgtest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"outflow/internal/postgres"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, IgnoreServer()) }

// childMode makes TestChild do something in a process of its own.
const childMode = "OUTFLOW_PGTEST_CHILD"

func TestChild(t *testing.T) {
	t.Parallel()
	mode := os.Getenv(childMode)
	if mode == "" {
		t.Skip("is run by other tests as a process of its own")
	}
	db := New(t)
	var dir string
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SHOW data_directory`).Scan(&dir))
	_, err := db.Pool.Exec(t.Context(), `SELECT pg_create_logical_replication_slot('child', 'pgoutput')`)
	if mode == "kill" {
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(os.Getenv("REPORT"), []byte(db.Name+" "+dir), 0o600))
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
	}
	require.NoError(t, os.WriteFile(os.Getenv("REPORT"), []byte(db.Name+" "+dir), 0o600))
	if mode == "panic" {
		panic("as a test may")
	}
}

// child runs TestChild in another process, and returns the name of its database
// and its server's data directory.
func child(t *testing.T, mode, server string) (name, dir string, err error) {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	report := filepath.Join(t.TempDir(), "report")
	cmd := exec.Command(program, "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childMode+"="+mode, "REPORT="+report, Env+"="+server)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	text, rerr := os.ReadFile(report)
	require.NoError(t, rerr, out.String())
	name, dir, _ = strings.Cut(string(text), " ")
	return name, dir, err
}

func TestEachTestHasItsOwnDatabase(t *testing.T) {
	t.Parallel()
	a, b := New(t), New(t)
	require.NotEqual(t, a.Name, b.Name)
	_, err := a.Pool.Exec(t.Context(), `CREATE TABLE mine (v int)`)
	require.NoError(t, err)
	var migrated, others bool
	const look = `SELECT to_regclass('outbox') IS NOT NULL, to_regclass('mine') IS NOT NULL`
	require.NoError(t, b.Pool.QueryRow(t.Context(), look).Scan(&migrated, &others))
	require.True(t, migrated)
	require.False(t, others)
}

func TestDatabaseGoesWithTheTest(t *testing.T) {
	t.Parallel()
	var db *DB
	t.Run("inner", func(t *testing.T) {
		db = New(t)
		// What a test may leave behind: a session, a slot that nobody reads, and
		// one that somebody does.
		_, err := pgx.Connect(t.Context(), db.URL)
		require.NoError(t, err)
		_, err = db.Pool.Exec(t.Context(), `SELECT pg_create_logical_replication_slot('idle', 'pgoutput')`)
		require.NoError(t, err)
		_, err = db.Pool.Exec(t.Context(), `CREATE PUBLICATION p FOR TABLE outbox`)
		require.NoError(t, err)
		conn, err := pgconn.Connect(t.Context(), db.URL+"&replication=database")
		require.NoError(t, err)
		_, err = pglogrepl.CreateReplicationSlot(t.Context(), conn, db.Name, "pgoutput", pglogrepl.CreateReplicationSlotOptions{Mode: pglogrepl.LogicalReplication})
		require.NoError(t, err)
		require.NoError(t, pglogrepl.StartReplication(t.Context(), conn, db.Name, 0, pglogrepl.StartReplicationOptions{
			PluginArgs: []string{"proto_version '1'", "publication_names 'p'"},
		}))
	})
	other := New(t)
	var left int
	const look = `SELECT (SELECT count(*) FROM pg_database WHERE datname = $1) + (SELECT count(*) FROM pg_replication_slots WHERE database = $1)`
	require.NoError(t, other.Pool.QueryRow(t.Context(), look, db.Name).Scan(&left))
	require.Zero(t, left)
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	New(t) // the server's start is not what is tried here
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { New(t) })
	}
	wg.Wait()
}

func TestPrivateServerKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	s := NewServer(t)
	db, second := s.DB(t), s.DB(t)
	require.NotEqual(t, db.Name, second.Name)
	var fsync string
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SHOW fsync`).Scan(&fsync))
	require.Equal(t, "on", fsync)
	_, err := db.Pool.Exec(t.Context(), `CREATE TABLE t AS SELECT 1 AS v`)
	require.NoError(t, err)
	require.NoError(t, s.Kill(syscall.SIGQUIT))
	require.NoError(t, s.Restart(t.Context()))
	db.Pool.Reset() // its idle connections are dead
	var v int
	require.NoError(t, db.Pool.QueryRow(t.Context(), `SELECT v FROM t`).Scan(&v))
	require.Equal(t, 1, v)
}

func TestNothingOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	if os.Getenv(Env) != "" {
		t.Skip("the server is not this test's")
	}
	skipShort(t)
	for _, mode := range []string{"pass", "panic", "kill"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			_, data, err := child(t, mode, "")
			require.Equal(t, mode == "pass", err == nil, "%v", err)
			require.Contains(t, data, "outflow-pgtest-")
			require.Eventually(t, func() bool {
				_, err := os.Stat(filepath.Dir(data))
				return os.IsNotExist(err)
			}, time.Minute, 10*time.Millisecond)
		})
	}
}

func TestOnANamedServer(t *testing.T) {
	t.Parallel()
	s := NewServer(t, func(cfg *postgres.Config) { cfg.NoSync = true })
	admin := s.DatabaseURL("postgres")
	databases := func() []string {
		conn, err := pgx.Connect(t.Context(), admin)
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close(context.Background())) }()
		rows, err := conn.Query(t.Context(), `SELECT datname FROM pg_database WHERE datname LIKE 'outflow\_t%'`)
		require.NoError(t, err)
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return names
	}
	// Several at once: one makes the template.
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			_, _, err := child(t, "pass", admin)
			if err != nil {
				t.Errorf("child: %v", err)
			}
		})
	}
	wg.Wait()
	require.Len(t, databases(), 1, "the template")

	killed, _, err := child(t, "kill", admin)
	require.Error(t, err)
	require.Contains(t, databases(), killed)
	_, _, err = child(t, "pass", admin)
	require.NoError(t, err)
	require.Len(t, databases(), 1, "what the killed one left is gone")
}

func TestNamedServerMustBeAURI(t *testing.T) {
	t.Parallel()
	c := &cluster{admin: "host=localhost user=me"}
	_, err := c.url("x")
	require.ErrorContains(t, err, Env+" is not a URI")
	c.admin = "postgres://me:secret@h:1/postgres?sslmode=disable&application_name=x"
	url, err := c.url("mine")
	require.NoError(t, err)
	require.Equal(t, "postgres://me:secret@h:1/mine?sslmode=disable&application_name=x", url)
}

func TestDatabaseNameFits(t *testing.T) {
	t.Parallel()
	c := &cluster{token: strings.Repeat("x", tokenLen)}
	c.counter.Store(999_999)
	name := c.databaseName("TestÄ/" + strings.Repeat("long name", 20))
	require.LessOrEqual(t, len(name), 63)
	require.Regexp(t, `^[a-z0-9_]+$`, name)
	require.NotEqual(t, name, c.databaseName("TestÄ/"+strings.Repeat("long name", 20)))
}

func BenchmarkNew(b *testing.B) {
	New(b)
	for b.Loop() {
		New(b)
	}
}
