package postgres

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// helperDir makes the test binary a helper: it runs a server in the directory
// that the variable names until its input ends, and never stops it.
const helperDir = "OUTFLOW_POSTGRES_HELPER_DIR"

// helperBin names the programs, which a helper that runs as another user may not
// find: what was fetched lies in the user's cache.
const helperBin = "OUTFLOW_POSTGRES_HELPER_BIN"

func TestMain(m *testing.M) {
	if mirror := os.Getenv(fetchChild); mirror != "" {
		os.Exit(fetchAsChild(mirror))
	}
	if dir := os.Getenv(helperDir); dir != "" {
		if err := help(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func help(dir string) error {
	bin, err := Find(os.Getenv(helperBin))
	if err != nil {
		return err
	}
	s, err := Start(context.Background(), Config{Dir: dir, Bin: bin, NoSync: true, Remove: os.Getenv("REMOVE") != ""})
	if err != nil {
		return err
	}
	fmt.Println(s.URL(), s.PID())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A helper is another process that runs a server.
type helper struct {
	cmd *exec.Cmd
	url string
	pid int // of its server
}

func startHelper(t *testing.T, dir string, cred *syscall.Credential, env ...string) *helper {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	if cred != nil {
		program = copyProgram(t, program, cred)
	}
	h := &helper{cmd: exec.Command(program)}
	h.cmd.Dir = "/"
	bin, _ := Find("") // else the helper says what is missing
	h.cmd.Env = append(append(os.Environ(), helperDir+"="+dir, helperBin+"="+bin.Dir), env...)
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	h.cmd.Stderr = os.Stderr
	in, err := h.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := h.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, h.cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		h.kill()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, "the helper must tell its server's address")
	_, err = fmt.Sscan(line, &h.url, &h.pid)
	require.NoError(t, err)
	return h
}

// helperError is what a helper says that can't start its server.
func helperError(t *testing.T, dir string, cred *syscall.Credential) string {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(copyProgram(t, program, cred))
	cmd.Dir = "/"
	bin, _ := Find("") // else the helper says what is missing
	cmd.Env = append(os.Environ(), helperDir+"="+dir, helperBin+"="+bin.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	return string(out)
}

// kill ends the helper as kill -9 does.
func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// copyProgram puts the test binary where another user may run it: Go builds it
// in a folder that only its owner may enter.
func copyProgram(t *testing.T, program string, cred *syscall.Credential) string {
	t.Helper()
	dir := openDir(t, cred)
	in, err := os.Open(program)
	require.NoError(t, err)
	defer func() { _ = in.Close() }()
	copied := filepath.Join(dir, "helper")
	out, err := os.OpenFile(copied, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	return copied
}

// openDir is a temporary directory of the user, whose parents anybody may enter.
func openDir(t *testing.T, cred *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "outflow-postgres-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	if cred != nil {
		require.NoError(t, os.Chown(dir, int(cred.Uid), int(cred.Gid)))
	}
	return dir
}

func needsServer(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts PostgreSQL, which -short leaves out")
	}
	if err := available(); err != nil {
		t.Fatal(err)
	}
}

// available fetches PostgreSQL where the machine has none, for Start to find.
var available = sync.OnceValue(func() error {
	_, err := FindOrFetch(context.Background(), "", Show(os.Stderr))
	return err
})

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may start a server as another user")
	}
}

// begin starts a server that ends with the test.
func begin(t *testing.T, cfg Config) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Start(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // often its server is gone by then
	return conn
}

func exec1(t *testing.T, url, sql string) {
	t.Helper()
	_, err := connect(t, url).Exec(t.Context(), sql)
	require.NoError(t, err)
}

func query1(t *testing.T, url, sql string) string {
	t.Helper()
	var v string
	require.NoError(t, connect(t, url).QueryRow(t.Context(), sql).Scan(&v))
	return v
}

// uidOf tells which user a process runs as.
func uidOf(t *testing.T, pid int) uint32 {
	t.Helper()
	cred, err := ownerOf(fmt.Sprintf("/proc/%d", pid))
	require.NoError(t, err)
	return cred.Uid
}

// childNamed finds a process of the server by its title.
func childNamed(t *testing.T, parent int, title string) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("finds the server's processes in /proc")
	}
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	require.NoError(t, err)
	for _, field := range strings.Fields(string(out)) {
		line, err := os.ReadFile("/proc/" + field + "/cmdline")
		if err == nil && strings.Contains(string(line), title) {
			var pid int
			_, err := fmt.Sscan(field, &pid)
			require.NoError(t, err)
			return pid
		}
	}
	require.Failf(t, "no such process", "%q below %d", title, parent)
	return 0
}
