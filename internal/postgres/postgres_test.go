package postgres

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

func nobody(t *testing.T) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup("nobody")
	require.NoError(t, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	require.NoError(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func TestStartAgainKeepsTheData(t *testing.T) {
	t.Parallel()
	needsServer(t)
	dir := filepath.Join(openDir(t, nil), "new", "postgres")
	s := begin(t, Config{Dir: dir})
	for name, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "wal_level": "logical",
		"max_slot_wal_keep_size": "4GB", "max_replication_slots": "32", "max_connections": "200",
		"listen_addresses": "127.0.0.1", "server_encoding": "UTF8", "timezone": "UTC",
	} {
		require.Equal(t, want, query1(t, s.URL(), "SHOW "+name), name)
	}
	exec1(t, s.URL(), `CREATE TABLE t AS SELECT 'kept' AS v`)
	require.NotEmpty(t, s.SocketDir())
	socket := fmt.Sprintf("host=%s port=%d user=%s dbname=%s", s.SocketDir(), s.Port(), User, Database)
	require.Equal(t, "kept", query1(t, socket, `SELECT v FROM t`))
	require.NoError(t, s.Stop())
	require.NoError(t, s.Stop(), "a second Stop does nothing")
	select {
	case <-s.Done():
	default:
		t.Fatal("Stop must have ended the process")
	}
	require.ErrorContains(t, s.Restart(t.Context()), "it was stopped")

	s = begin(t, Config{Dir: dir, NoSync: true, Settings: map[string]string{"max_connections": "42", "application_name": "a b 'c'"}})
	require.Equal(t, "kept", query1(t, s.URL(), `SELECT v FROM t`))
	require.Equal(t, "off", query1(t, s.URL(), `SHOW fsync`))
	require.Equal(t, "on", query1(t, s.URL(), `SHOW synchronous_commit`), "or logical decoding waits for the WAL writer")
	require.Equal(t, "42", query1(t, s.URL(), `SHOW max_connections`))
}

func TestStartInAClosedFolder(t *testing.T) {
	t.Parallel()
	needsServer(t)
	needsRoot(t)
	closed := openDir(t, nil)
	require.NoError(t, os.Chmod(closed, 0o700))
	s := begin(t, Config{Dir: filepath.Join(closed, "postgres")})
	exec1(t, s.URL(), `CREATE TABLE t AS SELECT 'kept' AS v`)
	a, err := newAccount()
	require.NoError(t, err)
	require.Equal(t, a.cred.Uid, uidOf(t, s.PID()))
	require.NoError(t, s.Restart(t.Context()))
	require.Equal(t, "kept", query1(t, s.URL(), `SELECT v FROM t`))
	exec1(t, s.URL(), `CHECKPOINT`)
}

func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	needsServer(t)
	needsRoot(t)
	cred := nobody(t)
	dir := filepath.Join(openDir(t, cred), "postgres")
	h := startHelper(t, dir, cred, "HOME=/nonexistent")
	require.Equal(t, cred.Uid, uidOf(t, h.pid))
	exec1(t, h.url, `CREATE TABLE t AS SELECT 'kept' AS v`)
	h.kill()

	// Root runs it as its owner, who can still run it afterwards.
	s := begin(t, Config{Dir: dir})
	require.Equal(t, cred.Uid, uidOf(t, s.PID()))
	require.Equal(t, "kept", query1(t, s.URL(), `SELECT v FROM t`))
	require.NoError(t, s.Stop())
	h = startHelper(t, dir, cred, "HOME=/nonexistent")
	require.Equal(t, "kept", query1(t, h.url, `SELECT v FROM t`))
}

func TestKilledOwner(t *testing.T) {
	t.Parallel()
	needsServer(t)
	dir := filepath.Join(openDir(t, nil), "postgres")
	h := startHelper(t, dir, nil)
	exec1(t, h.url, `CREATE TABLE t AS SELECT 'kept' AS v`)
	// The server is slow to stop: one of its processes doesn't react, and is
	// killed by the postmaster after 5 s. A start in the meantime must wait.
	require.NoError(t, syscall.Kill(childNamed(t, h.pid, "checkpointer"), syscall.SIGSTOP))
	h.kill()
	require.True(t, isPostmaster(h.pid, filepath.Join(dir, "data")), "this test needs a slow end")
	s := begin(t, Config{Dir: dir})
	require.False(t, isPostmaster(h.pid, filepath.Join(dir, "data")))
	require.Equal(t, "kept", query1(t, s.URL(), `SELECT v FROM t`))
}

func TestKilledOwnerLeavesNothing(t *testing.T) {
	t.Parallel()
	needsServer(t)
	dir := filepath.Join(openDir(t, nil), "postgres")
	h := startHelper(t, dir, nil, "REMOVE=1")
	h.kill()
	require.Eventually(t, func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err) && syscall.Kill(h.pid, 0) == syscall.ESRCH
	}, time.Minute, 10*time.Millisecond)
}

func TestStopRemoves(t *testing.T) {
	t.Parallel()
	needsServer(t)
	dir := filepath.Join(t.TempDir(), "postgres")
	s := begin(t, Config{Dir: dir, NoSync: true, Remove: true})
	require.NoError(t, s.Stop())
	require.NoDirExists(t, dir)
}

// Where the kernel doesn't end the server with its parent, the watcher does.
func TestWatcherEndsTheProcess(t *testing.T) {
	t.Parallel()
	needsServer(t)
	cmd, release, err := account{}.command("/bin/sleep", t.TempDir())
	require.NoError(t, err)
	defer release()
	cmd.Args = []string{"sleep", "600"}
	w, err := startWatcher("")
	require.NoError(t, err)
	p, err := startProcess(cmd, func(pid int) { _ = w.tell(pid) })
	require.NoError(t, err)
	require.False(t, p.ended())
	require.NoError(t, w.close()) // as when this process ended
	<-p.done
	require.ErrorContains(t, p.err, "quit")
}

func TestSecondStart(t *testing.T) {
	t.Parallel()
	needsServer(t)
	// All at once, on nothing: one makes the cluster and runs it.
	dir := filepath.Join(t.TempDir(), "postgres")
	errs := make([]error, 4)
	servers := make([]*Server, len(errs))
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { servers[i], errs[i] = Start(t.Context(), Config{Dir: dir, NoSync: true}) })
	}
	wg.Wait()
	var winner *Server
	for i, err := range errs {
		if err == nil {
			require.Nil(t, winner, "two run on one directory")
			winner = servers[i]
			t.Cleanup(func() { require.NoError(t, winner.Stop()) })
			continue
		}
		require.ErrorIs(t, err, ErrInUse)
	}
	require.NotNil(t, winner)
	_, err := Start(t.Context(), Config{Dir: dir})
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorContains(t, err, fmt.Sprintf("process %d runs a server in %s", os.Getpid(), dir))
	require.Equal(t, "1", query1(t, winner.URL(), `SELECT '1'`), "the losers leave the winner alone")
}

func TestServerStartedByHand(t *testing.T) {
	t.Parallel()
	needsServer(t)
	dir := filepath.Join(t.TempDir(), "postgres")
	s := begin(t, Config{Dir: dir, NoSync: true})
	require.NoError(t, s.Stop())
	cmd, release, err := s.dir.account.command(filepath.Join(s.cfg.Bin.Dir, "postgres"), s.dir.data(), s.settings(s.port)...)
	require.NoError(t, err)
	defer release()
	p, err := startProcess(cmd, nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.signal(syscall.SIGQUIT))
		<-p.done
	})
	require.Eventually(t, func() bool {
		pf, err := s.dir.pidFile()
		return err == nil && pf.status == "ready"
	}, time.Minute, 5*time.Millisecond)
	_, err = Start(t.Context(), Config{Dir: dir})
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorContains(t, err, fmt.Sprintf("does not control (process %d)", p.pid))
	require.False(t, p.ended())
}

// In a container the same process ids come again: after a crash, the id in
// postmaster.pid may be another program's, and PostgreSQL refuses to start.
func TestReusedProcessID(t *testing.T) {
	t.Parallel()
	needsServer(t)
	dir := filepath.Join(t.TempDir(), "postgres")
	s := begin(t, Config{Dir: dir, NoSync: true})
	text, err := os.ReadFile(filepath.Join(s.dir.data(), "postmaster.pid"))
	require.NoError(t, err)
	require.NoError(t, s.Stop())

	cmd, release, err := s.dir.account.command("/bin/sleep", s.dir.data())
	require.NoError(t, err)
	defer release()
	cmd.Args = []string{"sleep", "600"}
	p, err := startProcess(cmd, nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.signal(syscall.SIGKILL))
		<-p.done
	})
	pidFile := filepath.Join(s.dir.data(), "postmaster.pid")
	first := len(strconv.Itoa(s.PID()))
	require.NoError(t, os.WriteFile(pidFile, append([]byte(strconv.Itoa(p.pid)), text[first:]...), 0o600))
	require.NoError(t, s.dir.account.own(pidFile))
	begin(t, Config{Dir: dir, NoSync: true})
}

func TestCrashAndRestart(t *testing.T) {
	t.Parallel()
	needsServer(t)
	s := begin(t, Config{Dir: filepath.Join(t.TempDir(), "postgres")})
	exec1(t, s.URL(), `CREATE TABLE t (v int)`)
	for i, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL, syscall.SIGINT} {
		exec1(t, s.URL(), fmt.Sprintf(`INSERT INTO t VALUES (%d)`, i))
		connect(t, s.URL()) // a client that stays
		url, pid, done := s.URL(), s.PID(), s.Done()
		require.NoError(t, s.Kill(sig))
		<-done
		require.NoError(t, s.Restart(t.Context()), sig)
		require.Equal(t, url, s.URL())
		require.NotEqual(t, pid, s.PID())
		require.Equal(t, strconv.Itoa(i+1), query1(t, s.URL(), `SELECT count(*)::text FROM t`), sig)
	}
	// Of a running one.
	require.NoError(t, s.Restart(t.Context()))
	require.Equal(t, "3", query1(t, s.URL(), `SELECT count(*)::text FROM t`))
}

// A relay that hangs holds up a shutdown in good order: the server waits until
// its walsender has delivered everything.
func TestStopDoesNotWaitForAHangingReader(t *testing.T) {
	t.Parallel()
	needsServer(t)
	s := begin(t, Config{Dir: filepath.Join(t.TempDir(), "postgres"), StopTimeout: 300 * time.Millisecond})
	exec1(t, s.URL(), `CREATE TABLE t (v text); CREATE PUBLICATION p FOR TABLE t`)
	conn, err := pgconn.Connect(t.Context(), s.URL()+"&replication=database")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = pglogrepl.CreateReplicationSlot(t.Context(), conn, "s", "pgoutput", pglogrepl.CreateReplicationSlotOptions{Mode: pglogrepl.LogicalReplication})
	require.NoError(t, err)
	require.NoError(t, pglogrepl.StartReplication(t.Context(), conn, "s", 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'p'"},
	}))
	exec1(t, s.URL(), `INSERT INTO t VALUES ('never read')`)
	began := time.Now()
	require.NoError(t, s.Stop())
	require.Less(t, time.Since(began), 20*time.Second)
}

func TestInterruptedInitdbIsRemoved(t *testing.T) {
	t.Parallel()
	needsServer(t)
	dir := filepath.Join(t.TempDir(), "postgres")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		// As soon as initdb is at work.
		for ctx.Err() == nil {
			if files, _ := filepath.Glob(filepath.Join(dir, "initdb-*", "base")); files != nil {
				break
			}
		}
		cancel()
	}()
	_, err := Start(ctx, Config{Dir: dir, NoSync: true})
	require.ErrorIs(t, err, context.Canceled)
	left, err := filepath.Glob(filepath.Join(dir, "initdb-*"))
	require.NoError(t, err)
	require.Empty(t, left)

	killed := filepath.Join(dir, "initdb-killed")
	require.NoError(t, os.MkdirAll(filepath.Join(killed, "base"), 0o700))
	begin(t, Config{Dir: dir, NoSync: true})
	require.NoDirExists(t, killed)
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	needsServer(t)
	t.Run("the port is taken", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer func() { _ = l.Close() }()
		_, err = Start(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "postgres"), NoSync: true, Port: l.Addr().(*net.TCPAddr).Port})
		require.ErrorContains(t, err, "Address already in use")
	})
	t.Run("a setting is wrong", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "postgres")
		_, err := Start(t.Context(), Config{Dir: dir, NoSync: true, Settings: map[string]string{"shared_buffers": "much"}})
		require.ErrorContains(t, err, `invalid value for parameter "shared_buffers"`)
		begin(t, Config{Dir: dir, NoSync: true})
	})
	t.Run("the cluster is of another version", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		data := filepath.Join(dir, "data")
		require.NoError(t, os.MkdirAll(data, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("13\n"), 0o600))
		_, err := Start(t.Context(), Config{Dir: dir})
		require.ErrorContains(t, err, data+" was made by PostgreSQL 13, and ")
	})
	t.Run("the cluster is another user's", func(t *testing.T) {
		t.Parallel()
		needsRoot(t)
		cred := nobody(t)
		dir := openDir(t, nil)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "data"), 0o700))
		h := helperError(t, dir, cred)
		require.Contains(t, h, "belongs to another user (0): name another data directory")
	})
	t.Run("no directory", func(t *testing.T) {
		t.Parallel()
		_, err := Start(t.Context(), Config{})
		require.ErrorContains(t, err, "no directory is given")
	})
}

func TestParsePIDFile(t *testing.T) {
	t.Parallel()
	const whole = "4711\n/data\n1795234061\n5999\n../run\n127.0.0.1\n 10150161         4\nready   \n"
	require.Equal(t, pidFile{pid: 4711, status: "ready"}, parsePIDFile(whole))
	require.Equal(t, pidFile{pid: 4711}, parsePIDFile("4711\n/data\n"), "still being written")
	require.Equal(t, pidFile{}, parsePIDFile(""))
	require.Equal(t, pidFile{}, parsePIDFile("what\n"))
}

// A postmaster that was killed leaves its backends, and as long as one of them
// has not noticed, the cluster can't be started.
func TestRestartWaitsForLeftoverBackends(t *testing.T) {
	t.Parallel()
	needsServer(t)
	s := begin(t, Config{Dir: filepath.Join(t.TempDir(), "postgres"), NoSync: true})
	left := childNamed(t, s.PID(), "checkpointer")
	require.NoError(t, syscall.Kill(left, syscall.SIGSTOP))
	require.NoError(t, s.Kill(syscall.SIGKILL))
	restarted := make(chan error, 1)
	go func() { restarted <- s.Restart(t.Context()) }()
	refused := func() bool {
		text, err := os.ReadFile(s.LogFile())
		return err == nil && bytes.Contains(text, []byte("pre-existing shared memory block"))
	}
	require.Eventually(t, refused, time.Minute, 5*time.Millisecond)
	require.NoError(t, syscall.Kill(left, syscall.SIGCONT))
	require.NoError(t, <-restarted)
}

// Whoever drops the Server without stopping it, as a test binary does that
// shares one until its end, must not have it stopped by the garbage collector.
func TestForgottenServer(t *testing.T) {
	t.Parallel()
	needsServer(t)
	dir := filepath.Join(t.TempDir(), "postgres")
	url, pid, done := func() (string, int, <-chan struct{}) {
		s, err := Start(t.Context(), Config{Dir: dir, NoSync: true, Remove: true})
		require.NoError(t, err)
		return s.URL(), s.PID(), s.Done()
	}()
	for range 3 {
		runtime.GC()
	}
	require.Equal(t, "1", query1(t, url, `SELECT '1'`))
	_, err := Start(t.Context(), Config{Dir: dir})
	require.ErrorIs(t, err, ErrInUse)

	require.NoError(t, syscall.Kill(pid, syscall.SIGQUIT))
	<-done
	require.Eventually(t, func() bool {
		runtime.GC() // closes the watcher's pipe
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	}, time.Minute, 10*time.Millisecond)
}
