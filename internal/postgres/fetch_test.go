package postgres

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fakeJar is an archive like Maven Central's. testdata/postgres.txz holds two
// scripts that tell a version, a library and a link to it; what else is in the
// jar makes it long enough to be cut.
func fakeJar(t *testing.T) []byte {
	t.Helper()
	txz, err := os.ReadFile("testdata/postgres.txz")
	require.NoError(t, err)
	noise := make([]byte, 300_000)
	_, err = rand.NewChaCha8([32]byte{}).Read(noise)
	require.NoError(t, err)
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range map[string][]byte{"META-INF/noise": noise, "postgres-linux-x86_64.txz": txz} {
		w, err := z.Create(name)
		require.NoError(t, err)
		_, err = w.Write(content)
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	return b.Bytes()
}

func archiveOf(content []byte) archive {
	sum := sha256.Sum256(content)
	return archive{int64(len(content)), hex.EncodeToString(sum[:])}
}

// A repository serves one archive, as its handler does for the n-th request.
type repository struct {
	*httptest.Server
	jar    []byte
	mu     sync.Mutex
	ranges []string // one per request
}

func newRepository(t *testing.T, handle func(r *repository, n int, w http.ResponseWriter, req *http.Request)) *repository {
	t.Helper()
	r := &repository{jar: fakeJar(t)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		n := len(r.ranges)
		r.ranges = append(r.ranges, req.Header.Get("Range"))
		r.mu.Unlock()
		want := "/maven2/" + (&fetcher{version: fetchVersion, platform: platform()}).path()
		if req.URL.Path != want {
			http.NotFound(w, req)
			return
		}
		handle(r, n, w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *repository) whole(w http.ResponseWriter, req *http.Request) {
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.jar))
}

// half sends the first half of the archive, and returns with it on its way.
func (r *repository) half(w http.ResponseWriter) {
	w.Header().Set("Content-Length", strconv.Itoa(len(r.jar)))
	_, _ = w.Write(r.jar[:len(r.jar)/2]) // the client may be gone
	_ = http.NewResponseController(w).Flush()
}

func (r *repository) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.ranges...)
}

// rest is the range that a client asks for who has half.
func (r *repository) rest() string { return fmt.Sprintf("bytes=%d-", len(r.jar)/2) }

func (r *repository) fetcher(t *testing.T) *fetcher {
	t.Helper()
	return fakeFetcher(t, r.URL+"/maven2", archiveOf(r.jar))
}

func fakeFetcher(t *testing.T, mirror string, a archive) *fetcher {
	t.Helper()
	f, err := newFetcher(mirror, nil)
	require.NoError(t, err)
	f.archive, f.retry = a, time.Millisecond
	return f
}

// requireFetched checks that the archive is there, for all users, and nothing else.
func requireFetched(t *testing.T, f *fetcher, dir string) {
	t.Helper()
	home := f.home(dir)
	modes := map[string]fs.FileMode{}
	require.NoError(t, filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		fi, err := d.Info()
		require.NoError(t, err)
		name, err := filepath.Rel(home, path)
		require.NoError(t, err)
		modes[name] = fi.Mode()
		return nil
	}))
	link := modes["lib/libpq.so.5"]
	require.Equal(t, fs.ModeSymlink, link.Type())
	delete(modes, "lib/libpq.so.5")
	require.Equal(t, map[string]fs.FileMode{
		".": fs.ModeDir | 0o755, "bin": fs.ModeDir | 0o755, "lib": fs.ModeDir | 0o755, "lib/postgresql": fs.ModeDir | 0o755,
		"bin/postgres": 0o755, "bin/initdb": 0o755, "lib/libpq.so.5.17": 0o644, "lib/postgresql/pgoutput.so": 0o644,
	}, modes)
	linked, err := os.ReadFile(filepath.Join(home, "lib/libpq.so.5"))
	require.NoError(t, err)
	require.Equal(t, "not a library\n", string(linked))
	requireOnly(t, dir, filepath.Base(home), filepath.Base(home)+".lock")
}

func requireOnly(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.ElementsMatch(t, want, names)
}

func TestFetch(t *testing.T) {
	t.Parallel()
	r := newRepository(t, func(r *repository, _ int, w http.ResponseWriter, req *http.Request) { r.whole(w, req) })
	f := r.fetcher(t)
	dir := filepath.Join(openDir(t, nil), "new", "cache")
	_, err := find("", nil, dir)
	require.ErrorIs(t, err, ErrNotFound)
	for range 2 {
		b, err := f.fetch(t.Context(), dir)
		require.NoError(t, err)
		require.Equal(t, Binaries{Dir: filepath.Join(f.home(dir), "bin"), Version: "17.11", Major: 17}, b)
		requireFetched(t, f, dir)
	}
	require.Equal(t, []string{""}, r.asked(), "what is there is not asked for")

	b, err := find("", nil, dir)
	require.NoError(t, err)
	require.Equal(t, 17, b.Major)
	own := install(t, filepath.Join(t.TempDir(), "15"), "15.2")
	b, err = find("", []string{own}, dir)
	require.NoError(t, err)
	require.Equal(t, own, b.Dir, "the machine's own first")
	old := install(t, filepath.Join(t.TempDir(), "13"), "13.2")
	b, err = find("", []string{old}, dir)
	require.NoError(t, err)
	require.Equal(t, 17, b.Major, "but not an old one")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "broken"), nil, 0o600))
	for _, look := range []func() (Binaries, error){
		func() (Binaries, error) { return find("", nil, dir) },
		func() (Binaries, error) { return f.fetch(t.Context(), dir) },
	} {
		_, err = look()
		require.ErrorContains(t, err, "remove "+f.home(dir)+" to have it fetched again")
	}
}

// Each row is a repository that is not well, or a cache that isn't, and a fetch
// that succeeds all the same.
func TestFetchGoesOn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		handle func(r *repository, n int, w http.ResponseWriter, req *http.Request)
		before func(t *testing.T, r *repository, home string)
		asked  func(r *repository) []string
	}{
		"a connection that is cut": {
			handle: func(r *repository, n int, w http.ResponseWriter, req *http.Request) {
				if n == 0 {
					r.half(w)
					panic(http.ErrAbortHandler)
				}
				r.whole(w, req)
			},
			asked: func(r *repository) []string { return []string{"", r.rest()} },
		},
		"a connection that goes silent": {
			handle: func(r *repository, n int, w http.ResponseWriter, req *http.Request) {
				if n == 0 {
					r.half(w)
					<-req.Context().Done()
					return
				}
				r.whole(w, req)
			},
			asked: func(r *repository) []string { return []string{"", r.rest()} },
		},
		"a server that knows no ranges": {
			handle: func(r *repository, n int, w http.ResponseWriter, req *http.Request) {
				if n == 0 {
					r.half(w)
					panic(http.ErrAbortHandler)
				}
				req.Header.Del("Range")
				r.whole(w, req)
			},
			asked: func(r *repository) []string { return []string{"", r.rest()} },
		},
		"a server that gets ranges wrong": {
			handle: func(r *repository, n int, w http.ResponseWriter, req *http.Request) {
				if n == 0 {
					r.half(w)
					panic(http.ErrAbortHandler)
				}
				if n == 1 {
					req.Header.Set("Range", "bytes=7-")
				}
				r.whole(w, req)
			},
			asked: func(r *repository) []string { return []string{"", r.rest(), ""} },
		},
		"a server that is overloaded": {
			handle: func(r *repository, n int, w http.ResponseWriter, req *http.Request) {
				if n < 2 {
					http.Error(w, "later", http.StatusServiceUnavailable)
					return
				}
				r.whole(w, req)
			},
			asked: func(*repository) []string { return []string{"", "", ""} },
		},
		"half an archive from earlier": {
			before: func(t *testing.T, r *repository, home string) {
				require.NoError(t, os.WriteFile(home+".jar", r.jar[:len(r.jar)/2], 0o600))
			},
			asked: func(r *repository) []string { return []string{r.rest()} },
		},
		"the whole archive from earlier": {
			before: func(t *testing.T, r *repository, home string) {
				require.NoError(t, os.WriteFile(home+".jar", r.jar, 0o600))
			},
			asked: func(*repository) []string { return []string{} },
		},
		"rubbish from earlier": {
			before: func(t *testing.T, r *repository, home string) {
				require.NoError(t, os.WriteFile(home+".jar", make([]byte, len(r.jar)/2), 0o600))
			},
			asked: func(r *repository) []string { return []string{r.rest(), ""} },
		},
		"too much rubbish from earlier": {
			before: func(t *testing.T, r *repository, home string) {
				require.NoError(t, os.WriteFile(home+".jar", make([]byte, len(r.jar)+1), 0o600))
			},
			asked: func(*repository) []string { return []string{""} },
		},
		"a killed process's unpacking": {
			before: func(t *testing.T, _ *repository, home string) {
				require.NoError(t, os.MkdirAll(home+".unpacking/bin", 0o700))
				require.NoError(t, os.WriteFile(home+".unpacking/bin/postgres", []byte("half"), 0o600))
			},
			asked: func(*repository) []string { return []string{""} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.handle == nil {
				tc.handle = func(r *repository, _ int, w http.ResponseWriter, req *http.Request) { r.whole(w, req) }
			}
			r := newRepository(t, tc.handle)
			f := r.fetcher(t)
			if name == "a connection that goes silent" {
				f.stall = 300 * time.Millisecond
			}
			dir := openDir(t, nil)
			if tc.before != nil {
				tc.before(t, r, f.home(dir))
			}
			_, err := f.fetch(t.Context(), dir)
			require.NoError(t, err)
			requireFetched(t, f, dir)
			require.Equal(t, tc.asked(r), r.asked())
		})
	}
}

func TestFetchFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		handle func(r *repository, n int, w http.ResponseWriter, req *http.Request)
		asked  int
		want   string
	}{
		"another file of the same size": {
			handle: func(r *repository, _ int, w http.ResponseWriter, req *http.Request) {
				other := bytes.Clone(r.jar)
				other[1000] ^= 1
				http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(other))
			},
			asked: 1, want: "is not the file that is expected: its SHA-256 is",
		},
		"pieces of another file, again and again": {
			handle: func(r *repository, _ int, w http.ResponseWriter, req *http.Request) {
				other := &repository{jar: make([]byte, len(r.jar))}
				if req.Header.Get("Range") == "" {
					other.half(w)
					panic(http.ErrAbortHandler)
				}
				other.whole(w, req)
			},
			asked: 4, want: "is not the file that is expected: its SHA-256 is",
		},
		"a portal's page": {
			handle: func(_ *repository, _ int, w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "<html>Please log in</html>")
			},
			asked: 1, want: "is not the file that is expected: it has 26 bytes",
		},
		"not there": {
			handle: func(_ *repository, _ int, w http.ResponseWriter, req *http.Request) { http.NotFound(w, req) },
			asked:  1, want: "404 Not Found",
		},
		"overloaded for long": {
			handle: func(_ *repository, _ int, w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "later", http.StatusBadGateway)
			},
			asked: 3, want: "502 Bad Gateway",
		},
		"a server that knows no ranges and never gets to the end": {
			handle: func(r *repository, _ int, w http.ResponseWriter, _ *http.Request) {
				r.half(w)
				panic(http.ErrAbortHandler)
			},
			asked: 4, want: "bytes: unexpected EOF",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRepository(t, tc.handle)
			f, dir := r.fetcher(t), openDir(t, nil)
			_, err := f.fetch(t.Context(), dir)
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, MirrorEnv)
			require.Len(t, r.asked(), tc.asked)
			base := filepath.Base(f.home(dir))
			requireOnly(t, dir, base+".jar", base+".lock")
			if strings.Contains(tc.want, "SHA-256") {
				fi, err := os.Stat(f.home(dir) + ".jar")
				require.NoError(t, err)
				require.Zero(t, fi.Size(), "what is wrong is not continued")
			}
		})
	}
}

func TestFetchedDoesNotRun(t *testing.T) {
	t.Parallel()
	r := newRepository(t, func(r *repository, _ int, w http.ResponseWriter, req *http.Request) { r.whole(w, req) })
	f, dir := r.fetcher(t), openDir(t, nil)
	broken := filepath.Join(dir, "broken")
	require.NoError(t, os.WriteFile(broken, nil, 0o600))
	_, err := f.fetch(t.Context(), dir)
	require.ErrorContains(t, err, "does not run on this machine")
	require.NoDirExists(t, f.home(dir))
	require.NoError(t, os.Remove(broken)) // whatever it lacked is there now
	_, err = f.fetch(t.Context(), dir)
	require.NoError(t, err)
	requireFetched(t, f, dir)
	require.Len(t, r.asked(), 1, "the archive was kept")
}

func TestFetchWithoutNetwork(t *testing.T) {
	t.Parallel()
	port, err := freePort()
	require.NoError(t, err)
	f := fakeFetcher(t, fmt.Sprintf("http://me:secret@127.0.0.1:%d/maven2", port), archive{size: 1})
	f.retry = time.Hour
	dir := openDir(t, nil)
	_, err = findOrFetch("", func(string) (Binaries, error) { return find("", nil, dir) }, func() (Binaries, error) { return f.fetch(t.Context(), dir) })
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorContains(t, err, "apt-get install postgresql")
	require.ErrorContains(t, err, "none can be fetched")
	require.ErrorContains(t, err, "connection refused")
	require.ErrorContains(t, err, MirrorEnv)
	require.NotContains(t, err.Error(), "secret")
	require.NotContains(t, err.Error(), "\n")
}

func TestFindOrFetchOnlyWhenNeeded(t *testing.T) {
	t.Parallel()
	never := func() (Binaries, error) { t.Error("fetched"); return Binaries{}, nil }
	own := Binaries{Dir: "/x", Major: 15}
	b, err := findOrFetch("", func(string) (Binaries, error) { return own, nil }, never)
	require.NoError(t, err)
	require.Equal(t, own, b)
	_, err = findOrFetch(t.TempDir(), Find, never)
	require.ErrorContains(t, err, "postgres is not there", "who names a folder gets no other")
	odd := errors.New("odd")
	_, err = findOrFetch("", func(string) (Binaries, error) { return Binaries{}, odd }, never)
	require.ErrorIs(t, err, odd)
}

func TestMirror(t *testing.T) {
	t.Parallel()
	for mirror, want := range map[string]string{
		"off":                      MirrorEnv + "=off forbids it",
		"ftp://h/maven2":           MirrorEnv + " is no http, https or file URL",
		"h/maven2":                 MirrorEnv + " is no http, https or file URL",
		"http://me:secret@h:x/%zz": MirrorEnv + " is not a URL",
	} {
		_, err := newFetcher(mirror, nil)
		require.EqualError(t, err, want, mirror)
	}
	f, err := newFetcher("", nil)
	require.NoError(t, err)
	artifact := "embedded-postgres-binaries-" + platform()
	require.Regexp(t, "^https://.+/maven2$", mavenCentral, "embedded-postgres keeps its address elsewhere now")
	require.Equal(t, mavenCentral+"/io/zonky/test/postgres/"+artifact+"/"+fetchVersion+"/"+artifact+"-"+fetchVersion+".jar", f.address())

	t.Run("a local repository", func(t *testing.T) {
		t.Parallel()
		repo, dir, jar := openDir(t, nil), openDir(t, nil), fakeJar(t)
		f := fakeFetcher(t, "file://"+repo, archiveOf(jar))
		file := filepath.Join(repo, f.path())
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		_, err := f.fetch(t.Context(), dir)
		require.ErrorContains(t, err, "404")
		require.NoError(t, os.WriteFile(file, jar, 0o600))
		_, err = f.fetch(t.Context(), dir)
		require.NoError(t, err)
		requireFetched(t, f, dir)
	})
}

func TestFetchIsCancelled(t *testing.T) {
	t.Parallel()
	sent := make(chan struct{})
	r := newRepository(t, func(r *repository, n int, w http.ResponseWriter, req *http.Request) {
		if n == 0 {
			r.half(w)
			close(sent)
			<-req.Context().Done()
			return
		}
		r.whole(w, req)
	})
	f, dir := r.fetcher(t), openDir(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	fetching := make(chan error, 1)
	go func() {
		_, err := f.fetch(ctx, dir)
		fetching <- err
	}()
	<-sent
	second := r.fetcher(t)
	waits := make(chan string, 1)
	second.report = func(what string, _, _ int64) {
		select {
		case waits <- what:
		default:
		}
	}
	impatient, giveUp := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() {
		_, err := second.fetch(impatient, dir)
		waiting <- err
	}()
	require.Equal(t, fmt.Sprintf("waiting for process %d, which is fetching PostgreSQL", os.Getpid()), <-waits)
	giveUp()
	err := <-waiting
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, fmt.Sprintf("wait for process %d", os.Getpid()))
	require.Eventually(t, func() bool {
		fi, err := os.Stat(f.home(dir) + ".jar")
		return err == nil && fi.Size() == int64(len(r.jar)/2)
	}, time.Minute, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-fetching, context.Canceled)

	_, err = f.fetch(t.Context(), dir)
	require.NoError(t, err)
	require.Equal(t, []string{"", r.rest()}, r.asked())
}
