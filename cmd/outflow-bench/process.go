package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"

	"outflow/internal/tied"
)

const patience = time.Minute // with a process that starts or stops

// A process is a part of outflow, or a server, that runs by itself.
type process struct {
	name   string
	cmd    *exec.Cmd
	exited <-chan struct{}
	output tail
	once   sync.Once
	peak   int64
	err    error
}

// start runs a binary, which is stopped at the latest when the figure is
// measured.
func (s *stand) start(name, binary string, env []string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(binary, args...)}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	var err error
	if p.exited, err = tied.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.later(p.stop)
	return p, nil
}

// part starts a part of outflow and returns when it is ready.
func (s *stand) part(ctx context.Context, name string, vars ...string) (*process, error) {
	health, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p, err := s.start(name, s.outflow, environ(append(vars, "OUTFLOW_HEALTH_LISTEN="+health)...), name)
	if err != nil {
		return nil, err
	}
	return p, p.await(ctx, func() bool {
		resp, err := http.Get("http://" + health + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// await returns when ready does.
func (p *process) await(ctx context.Context, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended: %s", p.name, &p.output)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", p.name, ctx.Err(), &p.output)
		case <-tick.C:
		}
	}
	return nil
}

// stop stops the process, after which its peak is known.
func (p *process) stop() error {
	p.once.Do(func() {
		p.peak = peakMemory(p.cmd.Process.Pid)
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			p.err = err
		}
		select {
		case <-p.exited:
		case <-time.After(patience):
			p.err = fmt.Errorf("%s did not stop and was killed", p.name)
			p.err = errors.Join(p.err, p.cmd.Process.Kill())
		}
		if state := p.cmd.ProcessState; state != nil && !state.Success() && p.err == nil {
			p.err = fmt.Errorf("%s: %s: %s", p.name, state, &p.output)
		}
	})
	return p.err
}

// memory stops processes and returns the most memory that each has had.
func memory(processes ...*process) (map[string]int64, error) {
	found := map[string]int64{}
	var errs []error
	for _, p := range processes {
		errs = append(errs, p.stop())
		if p.peak > 0 {
			found[p.name] = p.peak
		}
	}
	return found, errors.Join(errs...)
}

var highWater = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakMemory is the most memory a process has had resident, in bytes; 0 where
// that can't be told (see proc_pid_status(5)).
func peakMemory(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	if m := highWater.FindSubmatch(text); m != nil {
		kb, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err == nil {
			return kb * 1024
		}
	}
	return 0
}

func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

// tail keeps the end of what a process prints.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailBytes = 4096

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b)
	if over := t.buf.Len() - tailBytes; over > 0 {
		t.buf.Next(over)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
