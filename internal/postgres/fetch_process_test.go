package postgres

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fetchChild makes the test binary fetch from the repository that the variable
// names, as another process.
const fetchChild = "OUTFLOW_POSTGRES_FETCH_FROM"

func fetchAsChild(mirror string) int {
	if os.Getenv("STRICT_UMASK") != "" {
		syscall.Umask(0o077)
	}
	f, err := newFetcher(mirror, Show(os.Stdout))
	if err != nil {
		fmt.Println(err)
		return 2
	}
	if sum := os.Getenv("FETCH_SHA256"); sum != "" {
		f.archive.sha256 = sum
		if f.archive.size, err = strconv.ParseInt(os.Getenv("FETCH_SIZE"), 10, 64); err != nil {
			fmt.Println(err)
			return 2
		}
	}
	if _, err := f.fetch(context.Background(), os.Getenv("FETCH_DIR")); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// startFetch starts another process that fetches, and returns what it says.
func startFetch(t *testing.T, mirror string, a archive, dir string, cred *syscall.Credential, env ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	if cred != nil {
		program = copyProgram(t, program, cred)
	}
	cmd := exec.Command(program)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), fetchChild+"="+mirror, "FETCH_DIR="+dir, "FETCH_SHA256="+a.sha256, fmt.Sprintf("FETCH_SIZE=%d", a.size))
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewScanner(out)
}

func rest(t *testing.T, cmd *exec.Cmd, lines *bufio.Scanner) string {
	t.Helper()
	var said strings.Builder
	for lines.Scan() {
		fmt.Fprintln(&said, lines.Text())
	}
	require.NoError(t, cmd.Wait(), said.String())
	return said.String()
}

func TestSeveralProcessesFetchOnce(t *testing.T) {
	t.Parallel()
	started, goOn := make(chan struct{}), make(chan struct{})
	r := newRepository(t, func(r *repository, _ int, w http.ResponseWriter, req *http.Request) {
		close(started) // a second request would panic
		select {
		case <-goOn:
		case <-req.Context().Done(): // the test has failed
		}
		r.whole(w, req)
	})
	f, dir := r.fetcher(t), openDir(t, nil)
	cmd, lines := startFetch(t, r.URL+"/maven2", f.archive, dir, nil)
	<-started
	var others []*exec.Cmd
	var theirs []*bufio.Scanner
	for range 3 {
		other, said := startFetch(t, r.URL+"/maven2", f.archive, dir, nil)
		require.True(t, said.Scan())
		require.Equal(t, fmt.Sprintf("waiting for process %d, which is fetching PostgreSQL", cmd.Process.Pid), said.Text())
		others, theirs = append(others, other), append(theirs, said)
	}
	close(goOn)
	said := rest(t, cmd, lines)
	require.Contains(t, said, "fetching PostgreSQL "+fetchVersion+" from "+strings.TrimPrefix(r.URL, "http://")+" (0.3 MB)\n")
	require.Contains(t, said, "PostgreSQL 17.11 is in "+f.home(dir)+"\n")
	for i := range others {
		require.NotContains(t, rest(t, others[i], theirs[i]), "fetching PostgreSQL "+fetchVersion)
	}
	requireFetched(t, f, dir)
	require.Len(t, r.asked(), 1)
}

func TestKilledFetchIsContinued(t *testing.T) {
	t.Parallel()
	r := newRepository(t, func(r *repository, n int, w http.ResponseWriter, req *http.Request) {
		if n == 0 {
			r.half(w)
			<-req.Context().Done()
			return
		}
		r.whole(w, req)
	})
	f, dir := r.fetcher(t), openDir(t, nil)
	first, _ := startFetch(t, r.URL+"/maven2", f.archive, dir, nil)
	require.Eventually(t, func() bool {
		fi, err := os.Stat(f.home(dir) + ".jar")
		return err == nil && fi.Size() == int64(len(r.jar)/2)
	}, time.Minute, time.Millisecond)
	second, lines := startFetch(t, r.URL+"/maven2", f.archive, dir, nil)
	require.True(t, lines.Scan())
	require.Equal(t, fmt.Sprintf("waiting for process %d, which is fetching PostgreSQL", first.Process.Pid), lines.Text())
	require.NoError(t, first.Process.Kill())
	rest(t, second, lines)
	requireFetched(t, f, dir)
	require.Equal(t, []string{"", r.rest()}, r.asked())
}

func TestFetchAsWhoever(t *testing.T) {
	t.Parallel()
	r := newRepository(t, func(r *repository, _ int, w http.ResponseWriter, req *http.Request) { r.whole(w, req) })
	f := r.fetcher(t)
	t.Run("root under a strict umask", func(t *testing.T) {
		t.Parallel()
		needsRoot(t)
		base := openDir(t, nil)
		dir := filepath.Join(base, "a", "b")
		cmd, lines := startFetch(t, r.URL+"/maven2", f.archive, dir, nil, "STRICT_UMASK=1")
		rest(t, cmd, lines)
		requireFetched(t, f, dir)
		ok, err := (account{nobody(t)}).mayPass(filepath.Join(f.home(dir), "bin"))
		require.NoError(t, err)
		require.True(t, ok)
	})
	t.Run("an ordinary user", func(t *testing.T) {
		t.Parallel()
		needsRoot(t)
		cred := nobody(t)
		base := openDir(t, cred)
		dir := filepath.Join(base, "cache")
		cmd, lines := startFetch(t, r.URL+"/maven2", f.archive, dir, cred)
		rest(t, cmd, lines)
		requireFetched(t, f, dir)
		owner, err := ownerOf(f.home(dir))
		require.NoError(t, err)
		require.Equal(t, cred.Uid, owner.Uid)
	})
	t.Run("root into a closed folder", func(t *testing.T) {
		t.Parallel()
		needsRoot(t)
		base := openDir(t, nil)
		require.NoError(t, os.Chmod(base, 0o700))
		_, err := f.fetch(t.Context(), filepath.Join(base, "cache"))
		require.ErrorContains(t, err, "who may not enter "+base)
	})
}

func TestFetchThroughAProxy(t *testing.T) {
	t.Parallel()
	r := newRepository(t, func(r *repository, _ int, w http.ResponseWriter, req *http.Request) {
		if req.URL.Host != "maven.invalid" {
			http.Error(w, "not asked as a proxy", http.StatusBadRequest)
			return
		}
		r.whole(w, req)
	})
	f, dir := r.fetcher(t), openDir(t, nil)
	cmd, lines := startFetch(t, "http://maven.invalid/maven2", f.archive, dir, nil, "HTTP_PROXY="+r.URL)
	rest(t, cmd, lines)
	requireFetched(t, f, dir)
}
