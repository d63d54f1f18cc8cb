package postgres

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MinMajor is the oldest major version of PostgreSQL that this project runs on.
const MinMajor = 14

// ErrNotFound says that the machine has no PostgreSQL that can be used. Its
// text tells how to install one; a caller that can be pointed at a running
// server adds how.
var ErrNotFound = errors.New("no PostgreSQL " + strconv.Itoa(MinMajor) + " or newer on this machine " +
	"(install it: apt-get install postgresql, dnf install postgresql-server, brew install postgresql@17)")

// Binaries is an installation of PostgreSQL's server programs.
type Binaries struct {
	Dir     string // the folder that holds postgres and initdb
	Version string // as the server tells it: "15.18"
	Major   int
}

// usualPlaces are the folders in which packagers put the server programs, for
// which PATH has no entry on most systems.
var usualPlaces = []string{
	"/usr/lib/postgresql/*/bin",                                   // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                            // PostgreSQL's own RPMs
	"/usr/libexec/postgresql*",                                    // Alpine
	"/usr/local/pgsql/bin",                                        // from source
	"/opt/homebrew/opt/postgresql*/bin",                           // Homebrew on Apple silicon
	"/usr/local/opt/postgresql*/bin",                              // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",              // Homebrew on Linux
	"/Applications/Postgres.app/Contents/Versions/*/bin",          // Postgres.app
	"/opt/local/lib/postgresql*/bin", "/Library/PostgreSQL/*/bin", // MacPorts, EDB's installer
}

// Find looks for PostgreSQL's programs: in dir when it is given, and only
// there, else on the PATH, then in the usual places, the newest first, and last
// among what FindOrFetch has fetched earlier. It returns ErrNotFound when there
// are none, or too old ones only.
func Find(dir string) (Binaries, error) {
	if dir != "" {
		b, err := inspect(dir)
		if err != nil {
			return Binaries{}, fmt.Errorf("PostgreSQL in %s: %w", dir, err)
		}
		if b.Major < MinMajor {
			return Binaries{}, fmt.Errorf("PostgreSQL in %s is %s: %d or newer is needed", dir, b.Version, MinMajor)
		}
		return b, nil
	}
	var onPath string
	if p, err := exec.LookPath("postgres"); err == nil {
		onPath = filepath.Dir(p)
	}
	fetched, err := FetchDir()
	if err != nil {
		fetched = "" // then nothing was fetched either
	}
	return find(onPath, usualPlaces, fetched)
}

func find(onPath string, patterns []string, fetched string) (Binaries, error) {
	var tooOld []string
	usable := func(dir string) (Binaries, bool) {
		b, err := inspect(dir)
		if err != nil {
			return b, false
		}
		if b.Major < MinMajor {
			tooOld = append(tooOld, fmt.Sprintf("%s in %s", b.Version, b.Dir))
			return b, false
		}
		return b, true
	}
	if onPath != "" {
		if b, ok := usable(onPath); ok {
			return b, nil
		}
	}
	var found []Binaries
	for _, pattern := range patterns {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return Binaries{}, fmt.Errorf("look for PostgreSQL in %s: %w", pattern, err)
		}
		for _, dir := range dirs {
			if b, ok := usable(dir); ok {
				found = append(found, b)
			}
		}
	}
	if len(found) > 0 {
		return slices.MaxFunc(found, func(a, b Binaries) int { return cmp.Compare(a.Major, b.Major) }), nil
	}
	if fetched != "" {
		if b, err := fetchedIn(fetched); !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	switch {
	case len(tooOld) > 0:
		return Binaries{}, fmt.Errorf("%w; too old: %s", ErrNotFound, strings.Join(tooOld, ", "))
	default:
		return Binaries{}, ErrNotFound
	}
}

// inspect reads the version of the programs in dir. A PATH entry is often a
// folder of links (or of wrappers around single programs), so both programs
// are looked for where postgres really lies, and then in dir itself.
func inspect(dir string) (Binaries, error) {
	// Absolute, because the programs are run in another folder.
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Binaries{}, err
	}
	if p, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres")); err == nil && isFile(filepath.Join(filepath.Dir(p), "initdb")) {
		dir = filepath.Dir(p)
	}
	for _, program := range []string{"postgres", "initdb"} {
		if !isFile(filepath.Join(dir, program)) {
			return Binaries{}, fmt.Errorf("%s is not there", program)
		}
	}
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("postgres --version: %w", err)
	}
	version, major, err := parseVersion(string(out))
	if err != nil {
		return Binaries{}, err
	}
	return Binaries{Dir: dir, Version: version, Major: major}, nil
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// Distributors add to the line behind the version, and a few before it.
var versionLine = regexp.MustCompile(`^postgres \([^)]*\) ((\d+)(?:\.\d+)*(?:devel|alpha\d+|beta\d+|rc\d+)?)`)

// parseVersion reads what `postgres --version` prints:
// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "postgres (PostgreSQL) 18beta1".
func parseVersion(line string) (version string, major int, err error) {
	m := versionLine.FindStringSubmatch(line)
	if m == nil {
		return "", 0, fmt.Errorf("postgres --version prints %q", strings.TrimSpace(line))
	}
	if major, err = strconv.Atoi(m[2]); err != nil {
		return "", 0, fmt.Errorf("postgres --version prints %q: %w", strings.TrimSpace(line), err)
	}
	return m[1], major, nil
}
