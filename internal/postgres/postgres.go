package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// User is the cluster's superuser, and the one that URL names.
	User = "outflow"
	// Database is the database that Start makes, and the one that URL names.
	Database = "outflow"
)

// locale sorts by code point and knows all letters' cases, where the system
// has such a locale.
var locale = func() []string {
	if runtime.GOOS == "linux" {
		return []string{"--locale=C.UTF-8"}
	}
	return []string{"--locale=C", "--lc-ctype=en_US.UTF-8"}
}()

// Config says how to run a server. Only Dir is required.
type Config struct {
	// Dir is the directory that the server owns. It is made when missing.
	Dir string
	// Bin are the programs to run; the zero value means those of Find("").
	Bin Binaries
	// Port to listen on at 127.0.0.1; 0 means a free one.
	Port int
	// NoSync gives up durability when the machine crashes, for speed. What was
	// committed still survives a crash of the server.
	NoSync bool
	// Remove removes Dir when the server is stopped, and also when this
	// process ends without stopping it.
	Remove bool
	// Settings are added to, and win over, the server's settings.
	Settings map[string]string
	// Logger hears of starts and stops. What the server itself says is in
	// postgres.log.
	Logger *slog.Logger
	// StopTimeout is how long Stop waits for the server's clients to be
	// disconnected in good order; 0 means 10 s.
	StopTimeout time.Duration
}

// Server is a running PostgreSQL, from Start to Stop. Its methods may be called
// from several goroutines.
type Server struct {
	cfg     Config
	dir     *directory
	log     *os.File
	watcher *watcher
	port    int

	op      sync.Mutex // held by whoever starts or ends the process
	stopped bool       // guarded by op

	mu      sync.Mutex
	process *process // the current one, or the last; guarded by mu
}

// Start runs a server in cfg.Dir and returns when it accepts connections. It
// makes the cluster and the database "outflow" when they are missing, and waits
// for the recovery of what an earlier server left. ctx bounds the start, not
// the server's life. It returns ErrInUse when another process runs the
// directory's server, and ErrNotFound when there is no PostgreSQL to run.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	return s, nil
}

func start(ctx context.Context, cfg Config) (_ *Server, err error) {
	if cfg.Dir == "" {
		return nil, errors.New("no directory is given")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 10 * time.Second
	}
	if cfg.Bin.Dir == "" {
		if cfg.Bin, err = Find(""); err != nil {
			return nil, err
		}
	}
	s := &Server{cfg: cfg, port: cfg.Port}
	if s.dir, err = openDirectory(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	remove := ""
	if cfg.Remove {
		remove = s.dir.path
	}
	if cfg.Remove || !hasDeathSignal {
		if s.watcher, err = startWatcher(remove); err != nil {
			return nil, err
		}
	}
	if s.log, err = openLog(s.dir); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := s.dir.awaitPredecessor(ctx); err != nil {
		return nil, err
	}
	if err := s.dir.create(ctx, cfg.Bin, !cfg.NoSync); err != nil {
		return nil, err
	}
	if err := s.launch(ctx); err != nil {
		return nil, err
	}
	if err := s.createDatabase(ctx); err != nil {
		return nil, errors.Join(err, s.end(syscall.SIGQUIT))
	}
	cfg.Logger.Info("postgres started", "version", cfg.Bin.Version, "port", s.port, "pid", s.PID(),
		"dir", s.dir.path, "took", time.Since(began).Round(time.Millisecond))
	return s, nil
}

// openLog opens the server's log to add to it. A long one is put aside, so that
// there are never more than two.
func openLog(d *directory) (*os.File, error) {
	const long = 16 << 20
	if fi, err := os.Stat(d.logFile()); err == nil && fi.Size() > long {
		if err := os.Rename(d.logFile(), d.logFile()+".1"); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(d.logFile(), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	if err := d.account.own(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// settings are the command line's, which win over every file's.
func (s *Server) settings(port int) []string {
	set := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(port),
		"unix_socket_directories": "../run", // relative to the cluster: a path of any length does
		"wal_level":               "logical",
		"max_wal_senders":         "32",
		"max_replication_slots":   "32",
		// Without it a forgotten slot keeps WAL until the disk is full.
		"max_slot_wal_keep_size": "4GB",
		"max_connections":        "200",
		"timezone":               "UTC",
		"log_timezone":           "UTC",
		"lc_messages":            "C",
		"logging_collector":      "off",
		"log_destination":        "stderr",
		"log_line_prefix":        "%m [%p] %q%u@%d ",
	}
	if s.cfg.NoSync {
		set["fsync"] = "off"
		set["full_page_writes"] = "off"
		// Not synchronous_commit: turning it off lets WAL wait in memory for up
		// to 0.2 s, and logical decoding reads only what was written.
	}
	maps.Copy(set, s.cfg.Settings)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(set)) {
		args = append(args, "-c", name+"="+set[name])
	}
	return args
}

// launch starts the process on an existing cluster and waits until it is
// ready. The caller holds op, or is the only one to know s.
func (s *Server) launch(ctx context.Context) error {
	// What passes by itself: the backends of a postmaster that was killed hold
	// on to its shared memory until they notice, and somebody may take the port
	// between its choice and its use.
	const patience = 15 * time.Second
	began := time.Now()
	for {
		if err := s.dir.awaitPredecessor(ctx); err != nil {
			return err
		}
		port := s.port
		if port == 0 {
			var err error
			if port, err = freePort(); err != nil {
				return err
			}
		}
		said, err := s.try(ctx, port)
		if err == nil {
			s.port = port
			return nil
		}
		passes := bytes.Contains(said, []byte("pre-existing shared memory block")) ||
			bytes.Contains(said, []byte("could not create any TCP/IP sockets")) && s.cfg.Port == 0
		if !passes || time.Since(began) > patience {
			return err
		}
		if perr := pause(ctx); perr != nil {
			return errors.Join(err, perr)
		}
	}
}

// try starts the process once. When it ends before it is ready, said is the end
// of what it said, and is in the error, too.
func (s *Server) try(ctx context.Context, port int) (said []byte, err error) {
	fi, err := s.log.Stat()
	if err != nil {
		return nil, err
	}
	cmd, release, err := s.dir.account.command(filepath.Join(s.cfg.Bin.Dir, "postgres"), s.dir.data(), s.settings(port)...)
	if err != nil {
		return nil, err
	}
	defer release()
	cmd.Stdout, cmd.Stderr = s.log, s.log
	p, err := startProcess(cmd, s.tellWatcher)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.process = p
	s.mu.Unlock()
	for {
		// The file says which process is ready; a connection to the port might
		// reach somebody else's server.
		if pf, err := s.dir.pidFile(); err == nil && pf.pid == p.pid && pf.status == "ready" {
			return nil, nil
		}
		if p.ended() {
			said = s.tail(fi.Size())
			return said, fmt.Errorf("postgres ended at once: %w\n%s", p.err, said)
		}
		if err := pause(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("wait for postgres to be ready: %w", err), s.end(syscall.SIGQUIT))
		}
	}
}

// tellWatcher tells the watcher of the process, if there is one. That the
// process refers to s through it also keeps s alive for as long as the server:
// a caller who forgets s would otherwise have the lock and the watcher's pipe
// closed by the garbage collector.
func (s *Server) tellWatcher(pid int) {
	if s.watcher == nil {
		return
	}
	if err := s.watcher.tell(pid); err != nil {
		s.cfg.Logger.Warn("postgres is not watched", "pid", pid, "error", err)
	}
}

// tail is the end of the log, from offset on.
func (s *Server) tail(offset int64) []byte {
	const most = 4 << 10
	fi, err := s.log.Stat()
	if err != nil {
		return nil
	}
	offset = max(offset, fi.Size()-most)
	text, err := io.ReadAll(io.NewSectionReader(s.log, offset, fi.Size()-offset))
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(text)
}

func (s *Server) createDatabase(ctx context.Context) (err error) {
	conn, err := pgx.Connect(ctx, s.DatabaseURL("postgres"))
	if err != nil {
		return err
	}
	defer func() {
		if cerr := conn.Close(ctx); err == nil {
			err = cerr
		}
	}()
	const exists = `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`
	var found bool
	if err := conn.QueryRow(ctx, exists, Database).Scan(&found); err != nil {
		return fmt.Errorf("look for database %s: %w", Database, err)
	}
	if found {
		return nil
	}
	if _, err := conn.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{Database}.Sanitize()); err != nil {
		return fmt.Errorf("create database %s: %w", Database, err)
	}
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (s *Server) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// URL is the libpq URI of the database "outflow". It stays the same over
// restarts.
func (s *Server) URL() string { return s.DatabaseURL(Database) }

// DatabaseURL is the libpq URI of another database on the server.
func (s *Server) DatabaseURL(name string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", User, s.port, name)
}

// Port is where the server listens at 127.0.0.1.
func (s *Server) Port() int { return s.port }

// SocketDir is the folder of the Unix socket, for libpq's host, or empty when
// its path is too long for a socket's address (107 bytes on Linux, 103 on
// macOS).
func (s *Server) SocketDir() string {
	if len(s.dir.run()+"/.s.PGSQL.65535") > 103 {
		return ""
	}
	return s.dir.run()
}

// LogFile is where the server's own messages are.
func (s *Server) LogFile() string { return s.dir.logFile() }

// Version is the server's, "15.18".
func (s *Server) Version() string { return s.cfg.Bin.Version }

// PID is the process id of the postmaster, the current one or the last.
func (s *Server) PID() int { return s.current().pid }

// Done is closed when the current process has ended, whoever ended it. After a
// Restart, Done belongs to the new process.
func (s *Server) Done() <-chan struct{} { return s.current().done }

// Stop disconnects all clients and stops the server in good order. What takes
// longer than Config.StopTimeout is cut short, without loss. The server can't be
// restarted; further Stops do nothing.
func (s *Server) Stop() error {
	s.op.Lock()
	defer s.op.Unlock()
	if s.stopped {
		return nil
	}
	s.stopped = true
	err := errors.Join(s.end(syscall.SIGINT), s.release())
	if err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	s.cfg.Logger.Info("postgres stopped", "dir", s.dir.path)
	return nil
}

// Kill sends a signal that ends the server (SIGQUIT: as in a crash, SIGINT: in
// good order, SIGKILL: the postmaster alone, its backends follow when they
// notice) and waits until its process has ended.
func (s *Server) Kill(sig syscall.Signal) error {
	s.op.Lock()
	defer s.op.Unlock()
	return s.end(sig)
}

// Restart starts the server again, on the same port, after it has ended or, when
// it still runs, after an immediate shutdown, which is what a crash is to the
// clients and to the recovery.
func (s *Server) Restart(ctx context.Context) error {
	s.op.Lock()
	defer s.op.Unlock()
	if s.stopped {
		return errors.New("restart PostgreSQL: it was stopped")
	}
	if err := s.end(syscall.SIGQUIT); err != nil {
		return fmt.Errorf("restart PostgreSQL: %w", err)
	}
	if err := s.launch(ctx); err != nil {
		return fmt.Errorf("restart PostgreSQL: %w", err)
	}
	s.cfg.Logger.Info("postgres restarted", "port", s.port, "pid", s.PID())
	return nil
}

// end ends the process by sig, and with force when that takes too long.
func (s *Server) end(sig syscall.Signal) error {
	p := s.current()
	if p == nil {
		return nil
	}
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{
		{sig, s.cfg.StopTimeout},
		// The postmaster itself kills what hasn't ended 5 s after a SIGQUIT.
		{syscall.SIGQUIT, 10 * time.Second},
		{syscall.SIGKILL, 10 * time.Second},
	} {
		if err := p.signal(step.sig); err != nil {
			return fmt.Errorf("signal process %d: %w", p.pid, err)
		}
		t := time.NewTimer(step.wait)
		select {
		case <-p.done:
			t.Stop()
			return nil
		case <-t.C:
			s.cfg.Logger.Warn("postgres does not end", "pid", p.pid, "signal", step.sig.String(), "waited", step.wait)
		}
	}
	return fmt.Errorf("process %d does not end", p.pid)
}

// release gives up what the server held, after its process has ended.
func (s *Server) release() error {
	var errs []error
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.watcher != nil {
		errs = append(errs, s.watcher.close())
	}
	s.dir.close()
	return errors.Join(errs...)
}
