package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A home is the folder of one stack: its lock, the addresses of what runs, and
// the data. Only one outflow-dev at a time runs on a home; the lock is the
// kernel's (flock), so it is gone with the process however that ends.
type home struct {
	dir  string
	lock *os.File
}

const (
	lockFile  = "lock"
	stateFile = "stack.json"
)

// state is what a running stack tells `outflow-dev env`.
type state struct {
	PID   int
	Ready bool
	Env   []variable
}

type variable struct{ Name, Value string }

// openHome makes dir when it is missing and takes its lock. It removes what an
// ephemeral stack left behind when it was killed.
func openHome(dir string) (*home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the data directory's lock: %w", err)
	}
	if err := lockHome(f); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data directory: %w", err)
		}
		return nil, fmt.Errorf("another outflow-dev runs on %s: stop it, or give this one a --data-dir of its own", dir)
	}
	h := &home{dir: dir, lock: f}
	if err := os.Remove(h.path(stateFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, f.Close())
	}
	left, err := filepath.Glob(h.path("ephemeral-*"))
	for _, d := range left {
		err = errors.Join(err, os.RemoveAll(d))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return h, nil
}

// lockHome takes the lock. `outflow-dev env` holds it for the moment in which
// it looks whether anyone does, so a refusal counts only when it lasts.
func lockHome(f *os.File) (err error) {
	for range 50 {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

func (h *home) path(name string) string { return filepath.Join(h.dir, name) }

// publish tells others where the stack is; the file appears whole or not at
// all.
func (h *home) publish(s state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := h.path(stateFile + ".new")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, h.path(stateFile))
}

func (h *home) close() error {
	return errors.Join(os.RemoveAll(h.path(stateFile)), h.lock.Close())
}

// readState returns the state of the stack that runs on dir, and an error that
// tells what to do when none does or it is not ready.
func readState(dir string) (state, error) {
	none := fmt.Errorf("no outflow-dev runs on %s: start one, or pick a running one with --data-dir", dir)
	f, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, none
	} else if err != nil {
		return state{}, err
	}
	defer f.Close()
	// A shared lock is refused only while a stack holds the exclusive one.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
		return state{}, none
	} else if !errors.Is(err, syscall.EWOULDBLOCK) {
		return state{}, err
	}
	var s state
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	// A stack that was killed leaves its state behind, and one that starts has
	// the lock a moment before it removes that.
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!s.Ready || !alive(s.PID)) {
		return state{}, fmt.Errorf("the outflow-dev on %s is still starting: try again in a moment", dir)
	}
	return s, err
}

func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	return err == nil && !errors.Is(p.Signal(syscall.Signal(0)), os.ErrProcessDone)
}

// exports prints variables for `eval`, quoted for every shell that knows
// POSIX's single quotes.
func exports(vars []variable) string {
	var b strings.Builder
	for _, v := range vars {
		fmt.Fprintf(&b, "export %s='%s'\n", v.Name, strings.ReplaceAll(v.Value, "'", `'\''`))
	}
	return b.String()
}
