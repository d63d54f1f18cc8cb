package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/internal/failpoint"
)

// patience is how long anything may take on a busy machine before a test gives
// up; no test waits that long when all is well.
const patience = 5 * time.Minute

var built string // where the binaries are, once a test wanted them

var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "outflow-e2e-")
	if err != nil {
		return "", err
	}
	built = dir
	args := []string{"build", "-o", dir}
	if failpoint.Enabled {
		args = append(args, "-tags", "failpoints")
	}
	out, err := exec.Command("go", append(args, "outflow/cmd/outflow", "outflow/cmd/outflow-dev")...).CombinedOutput()
	if err != nil {
		return dir, fmt.Errorf("build: %w\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if err := os.RemoveAll(built); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status)
}

// process is a running binary whose output is kept.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
	err  error
}

// output keeps what a process prints, for tests that look for a line and for
// the log of a test that failed.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{} // closed at the next write; nil when nobody waits
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more != nil {
		close(o.more)
		o.more = nil
	}
	return o.buf.Write(p)
}

// changed is closed when more is printed.
func (o *output) changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more == nil {
		o.more = make(chan struct{})
	}
	return o.more
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs a binary; the test stops it at its end, if it still runs, and
// shows its output if the test failed.
func start(t *testing.T, env []string, binary string, args ...string) *process {
	t.Helper()
	dir, err := binaries()
	require.NoError(t, err)
	p := &process{t: t, name: binary + " " + strings.Join(args, " "), out: &output{}, done: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(dir, binary), args...)
	p.cmd.Env = append(cleanEnv(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	require.NoError(t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("--- %s (pid %d)\n%s", p.name, p.cmd.Process.Pid, tail(p.out.String(), 60))
		}
	})
	return p
}

func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "OUTFLOW_") {
			env = append(env, kv)
		}
	}
	return env
}

func tail(s string, lines int) string {
	all := strings.Split(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// stop interrupts the process as Ctrl-C does and returns how it ended.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.kill()
		return fmt.Errorf("%s did not stop", p.name)
	}
	return p.err
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
}

// runOnce runs a binary to its end.
func runOnce(t *testing.T, env []string, binary string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	dir, err := binaries()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, binary), args...)
	cmd.Env = append(cleanEnv(), env...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return o.String(), e.String(), exit.ExitCode()
	}
	require.NoError(t, err)
	return o.String(), e.String(), 0
}

var exportLine = regexp.MustCompile(`(?m)^export ([A-Z_]+)='(.*)'$`)

// stack is a running outflow-dev.
type stack struct {
	*process
	dir string
	env map[string]string
}

// startStack starts outflow-dev with args on dir and waits until it is ready.
func startStack(t *testing.T, dir string, args ...string) *stack {
	t.Helper()
	s := &stack{dir: dir, env: map[string]string{}}
	s.process = start(t, nil, "outflow-dev", append([]string{"--data-dir", dir}, args...)...)
	require.Eventually(t, func() bool {
		select {
		case <-s.done:
			return true
		default:
		}
		out, _, status := runOnce(t, nil, "outflow-dev", "env", "--data-dir", dir)
		for _, m := range exportLine.FindAllStringSubmatch(out, -1) {
			s.env[m[1]] = m[2]
		}
		return status == 0
	}, patience, 50*time.Millisecond, "outflow-dev is not ready")
	require.NotEmpty(t, s.env, "outflow-dev ended: %s", s.out)
	return s
}

// environ is the stack's environment, with changes.
func (s *stack) environ(changes ...string) []string {
	var env []string
	for k, v := range s.env {
		env = append(env, k+"="+v)
	}
	return append(env, changes...)
}

func waitHTTP(t *testing.T, url string) {
	t.Helper()
	require.Eventually(t, func() bool {
		resp, err := http.Get(url)
		if err != nil {
			return false
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return errors.Join(err, resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
	}, patience, 20*time.Millisecond, url)
}
