//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Enabled says whether this binary has failpoints.
const Enabled = true

type point struct {
	action string
	at     int // the pass that it happens at
	passes int
}

var (
	mu     sync.Mutex
	points = sync.OnceValue(func() map[string]*point {
		p, err := parse(os.Getenv(Env))
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", Env, err)
			os.Exit(2)
		}
		return p
	})
)

func parse(spec string) (map[string]*point, error) {
	all := map[string]*point{}
	for part := range strings.SplitSeq(spec, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, what, ok := strings.Cut(part, "=")
		action, n, counted := strings.Cut(what, "@")
		p := &point{action: action, at: 1}
		if counted {
			var err error
			if p.at, err = strconv.Atoi(n); err != nil || p.at < 1 {
				return nil, fmt.Errorf("%q: the pass is not a number from 1 on", part)
			}
		}
		if !ok || action != "kill" && action != "stop" && action != "error" {
			return nil, fmt.Errorf("%q: not name=kill|stop|error[@n]", part)
		}
		all[name] = p
	}
	return all, nil
}

// Hit passes the named failpoint: it may not return, or return late, or return
// [ErrInjected].
func Hit(name string) error {
	p := points()[name]
	if p == nil {
		return nil
	}
	mu.Lock()
	p.passes++
	now := p.passes == p.at
	mu.Unlock()
	if !now {
		return nil
	}
	switch p.action {
	case "kill":
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "stop":
		return syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
	return fmt.Errorf("%s: %w", name, ErrInjected)
}

// Mutant reports whether the named defence is to be left out.
func Mutant(name string) bool { return os.Getenv(MutantEnv) == name }
