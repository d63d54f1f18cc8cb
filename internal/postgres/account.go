package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// An account is the user that PostgreSQL's programs run as. The zero value is
// the user of this process.
type account struct {
	cred *syscall.Credential
}

// accountFor picks the account for the cluster in data, which need not exist.
// A cluster can only be run by its owner.
func accountFor(data string) (account, error) {
	owner, err := ownerOf(data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return newAccount()
	case err != nil:
		return account{}, err
	case os.Geteuid() == 0 && owner.Uid != 0:
		return account{owner}, nil
	case os.Geteuid() == 0:
		return newAccount()
	case int(owner.Uid) != os.Geteuid():
		return account{}, fmt.Errorf("%s belongs to another user (%d): name another data directory", data, owner.Uid)
	default:
		return account{}, nil
	}
}

// newAccount picks the account for a new cluster.
func newAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("group of user %s: %w", name, err)
		}
		return account{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, errors.New("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")
}

func ownerOf(path string) (*syscall.Credential, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s has no owner", path)
	}
	return &syscall.Credential{Uid: st.Uid, Gid: st.Gid}, nil
}

// own gives path to the account.
func (a account) own(path string) error {
	if a.cred == nil {
		return nil
	}
	return os.Chown(path, int(a.cred.Uid), int(a.cred.Gid))
}

// mayPass tells by their mode bits whether the account may pass through dir and
// all folders above it.
func (a account) mayPass(dir string) (bool, error) {
	if a.cred == nil {
		return true, nil // the folders are this process's own, or the system says why not
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	for ; ; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			return false, err
		}
		owner, err := ownerOf(dir)
		if err != nil {
			return false, err
		}
		bit := fs.FileMode(0o001)
		switch {
		case owner.Uid == a.cred.Uid:
			bit = 0o100
		case owner.Gid == a.cred.Gid:
			bit = 0o010
		}
		if fi.Mode()&bit == 0 {
			return false, nil
		}
		if dir == filepath.Dir(dir) {
			return true, nil
		}
	}
}

// command prepares one of PostgreSQL's programs to run on the data directory
// data. The caller closes what release names once the program has started.
//
// Where the account may not enter a parent of data, the program gets the open
// directory, and its name is /proc/self/fd/3: following that link asks for no
// permission on the way. Without it, `--data-dir $(mktemp -d)` would not do
// for root. All processes of a cluster inherit the descriptor.
func (a account) command(program, data string, args ...string) (cmd *exec.Cmd, release func(), err error) {
	cmd = exec.Command(program)
	cmd.Dir = "/" // the folder of the caller may be closed to the account
	cmd.Env = environment()
	// A group of its own: a terminal's Ctrl-C is for the caller, who stops the
	// server after those who use it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.cred, Setpgid: true}
	release = func() {}

	ok, err := a.mayPass(filepath.Dir(data))
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		if runtime.GOOS != "linux" {
			return nil, nil, fmt.Errorf("PostgreSQL runs as user %d, who may not enter %s: name another data directory", a.cred.Uid, filepath.Dir(data))
		}
		f, err := os.Open(data)
		if err != nil {
			return nil, nil, err
		}
		cmd.ExtraFiles = []*os.File{f} // the first of them becomes descriptor 3
		data = "/proc/self/fd/3"
		release = func() { _ = f.Close() }
	}
	cmd.Args = append([]string{program, "-D", data}, args...)
	return cmd, release, nil
}

// environment is this process's without what would configure PostgreSQL behind
// our back (PGPORT, PGDATA, ...), and with messages that can be recognised.
func environment() []string {
	env := []string{"LC_ALL=C"}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG") {
			continue
		}
		env = append(env, kv)
	}
	return env
}

// CacheHome is the folder under which outflow keeps what it makes on this
// machine: outflow in the user's cache folder. For root it is /var/cache/outflow
// where root's own is closed to the user that PostgreSQL runs as (/root is),
// or is another user's (sudo keeps HOME on some systems).
func CacheHome() (string, error) {
	dir, err := os.UserCacheDir()
	if os.Geteuid() != 0 {
		if err != nil {
			return "", fmt.Errorf("find the user's cache folder: %w", err)
		}
		return filepath.Join(dir, "outflow"), nil
	}
	const system = "/var/cache/outflow"
	if err != nil {
		return system, nil // a service or a container without HOME
	}
	a, err := newAccount()
	if err != nil {
		return "", err
	}
	existing := dir
	for {
		fi, err := os.Stat(existing)
		if err == nil && fi.IsDir() {
			break
		}
		if existing == filepath.Dir(existing) {
			return "", fmt.Errorf("find a folder above %s: %w", dir, err)
		}
		existing = filepath.Dir(existing)
	}
	owner, err := ownerOf(existing)
	if err != nil {
		return "", err
	}
	open, err := a.mayPass(existing)
	if err != nil {
		return "", err
	}
	if owner.Uid != 0 || !open {
		return system, nil
	}
	return filepath.Join(dir, "outflow"), nil
}
