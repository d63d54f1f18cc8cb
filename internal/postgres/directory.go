package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrInUse says that another process runs a server on the directory.
var ErrInUse = errors.New("the data directory is in use")

// A directory is what Config.Dir names, while this process holds its lock.
type directory struct {
	path    string
	account account
	lock    *os.File
}

func (d *directory) data() string    { return filepath.Join(d.path, "data") }
func (d *directory) run() string     { return filepath.Join(d.path, "run") }
func (d *directory) logFile() string { return filepath.Join(d.path, "postgres.log") }

// openDirectory makes the directory where it is missing and locks it. The lock
// goes with this process, whatever ends it.
func openDirectory(path string) (_ *directory, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	d := &directory{path: path}
	if d.account, err = accountFor(d.data()); err != nil {
		return nil, err
	}
	d.lock, err = os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(d.lock, 32)) // for the message only
		return nil, fmt.Errorf("%w: process %s runs a server in %s: stop it, or name another data directory",
			ErrInUse, bytes.TrimSpace(holder), path)
	}
	if err := d.lock.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := d.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, err
	}
	return d, d.prepare()
}

// prepare makes what lies in the directory beside the cluster.
func (d *directory) prepare() error {
	if d.account.cred != nil {
		// Root made the directory, maybe under a strict umask, and the account
		// has to get to what lies in it.
		if err := os.Chmod(d.path, 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(d.run(), 0o700); err != nil {
		return err
	}
	if err := d.account.own(d.run()); err != nil {
		return err
	}
	// The log and the lock are this process's. Where root runs a user's
	// cluster they go to the user, who must be able to write them next time.
	return d.account.own(d.lock.Name())
}

func (d *directory) close() { _ = d.lock.Close() }

// create makes the cluster, unless there is one, and checks that major can run
// the one that is there.
func (d *directory) create(ctx context.Context, bin Binaries, sync bool) error {
	version, err := os.ReadFile(filepath.Join(d.data(), "PG_VERSION"))
	switch {
	case err == nil:
		if got := strings.TrimSpace(string(version)); got != strconv.Itoa(bin.Major) {
			return fmt.Errorf("%s was made by PostgreSQL %s, and %s holds %s: use the programs of %[2]s, or another data directory",
				d.data(), got, bin.Dir, bin.Version)
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}

	// A start that was killed in initdb left its folder.
	left, err := filepath.Glob(filepath.Join(d.path, "initdb-*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	temp, err := os.MkdirTemp(d.path, "initdb-")
	if err != nil {
		return err
	}
	if err := d.initdb(ctx, bin, temp, sync); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	// initdb has brought its files to disk; the rename makes them the cluster.
	if err := os.Rename(temp, d.data()); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	parent, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

func (d *directory) initdb(ctx context.Context, bin Binaries, temp string, sync bool) error {
	if err := d.account.own(temp); err != nil {
		return err
	}
	args := append([]string{"-U", User, "-A", "trust", "-E", "UTF8", "--no-instructions"}, locale...)
	if !sync {
		args = append(args, "--no-sync")
	}
	cmd, release, err := d.account.command(filepath.Join(bin.Dir, "initdb"), temp, args...)
	if err != nil {
		return err
	}
	defer release()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := startProcess(cmd, nil)
	if err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		// The whole group: initdb is waiting for a server that it started.
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		<-p.done
		return fmt.Errorf("initdb: %w", context.Cause(ctx))
	}
	if p.err != nil {
		return fmt.Errorf("initdb: %w\n%s", p.err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// A pidFile is what a postmaster tells in postmaster.pid.
type pidFile struct {
	pid    int
	status string // "starting", "ready", "stopping"; empty while it is being written
}

func (d *directory) pidFile() (pidFile, error) {
	text, err := os.ReadFile(filepath.Join(d.data(), "postmaster.pid"))
	if err != nil {
		return pidFile{}, err
	}
	return parsePIDFile(string(text)), nil
}

// parsePIDFile reads the first line, the process id, and the eighth, the status.
// https://github.com/postgres/postgres/blob/REL_15_STABLE/src/include/utils/pidfile.h
func parsePIDFile(text string) pidFile {
	lines := strings.Split(text, "\n")
	var p pidFile
	p.pid, _ = strconv.Atoi(strings.TrimSpace(lines[0])) // 0: empty or half-written
	if len(lines) >= 8 {
		p.status = strings.TrimSpace(lines[7])
	}
	return p
}

// awaitPredecessor waits until no server runs on the cluster any more. This
// process holds the directory's lock, so who started such a server is dead and
// the server has been told to stop, or somebody started it by hand; it is left
// alone then.
func (d *directory) awaitPredecessor(ctx context.Context) error {
	const (
		toObey = 3 * time.Second  // until it has seen that it is to stop
		toStop = 30 * time.Second // until it has stopped
	)
	began := time.Now()
	for {
		pf, err := d.pidFile()
		if errors.Is(err, fs.ErrNotExist) || err == nil && pf.pid <= 0 {
			return nil // PostgreSQL itself handles an empty file
		}
		if err != nil {
			return err
		}
		if !isPostmaster(pf.pid, d.data()) {
			// A leftover of a crash. Its id may be in use by now by something
			// else, which PostgreSQL would take for a server. That no other
			// process uses the cluster is still checked by PostgreSQL, through
			// its shared memory.
			if err := os.Remove(filepath.Join(d.data(), "postmaster.pid")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		waited := time.Since(began)
		if waited > toStop || waited > toObey && pf.status != "stopping" {
			return fmt.Errorf("%w: a PostgreSQL that outflow does not control (process %d) runs on %s: stop it, or name another data directory",
				ErrInUse, pf.pid, d.data())
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for the previous PostgreSQL (process %d) to stop: %w", pf.pid, err)
		}
	}
}

// pause lets a moment pass between two looks at something that can only be
// polled: another process's file.
func pause(ctx context.Context) error {
	t := time.NewTimer(5 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
