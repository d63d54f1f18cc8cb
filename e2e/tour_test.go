package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// step is a command of the README's tour and what it prints there.
type step struct{ command, output string }

var fence = regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```\n")

// tour reads the steps from the README.
func tour(t *testing.T) []step {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(b), "\n## A tour in ten commands\n")
	require.True(t, found, "the README has no tour")
	section, _, _ = strings.Cut(section, "\n## ")
	var steps []step
	for _, m := range fence.FindAllStringSubmatch(section, -1) {
		if m[1] == "sh" {
			steps = append(steps, step{command: m[2]})
			continue
		}
		require.NotEmpty(t, steps, "output before the first command")
		steps[len(steps)-1].output += m[2]
	}
	require.Len(t, steps, 10)
	return steps
}

// What differs from run to run stands for itself; that two ids are the same one
// is kept.
var (
	anyID   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	anyTime = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
)

type normal map[string]string

func (n normal) text(s string) string {
	s = anyID.ReplaceAllStringFunc(s, func(id string) string {
		if n[id] == "" {
			n[id] = fmt.Sprintf("<id %d>", len(n)+1)
		}
		return n[id]
	})
	return anyTime.ReplaceAllString(s, "<time>")
}

// shell is one bash in which the steps run one after the other.
type shell struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func newShell(t *testing.T, env []string) *shell {
	t.Helper()
	cmd := exec.Command("bash", "--norc", "--noprofile")
	cmd.Env = env
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = w, w
	require.NoError(t, cmd.Start())
	require.NoError(t, w.Close())
	t.Cleanup(func() {
		require.NoError(t, in.Close())
		require.NoError(t, cmd.Wait())
		require.NoError(t, r.Close())
	})
	return &shell{t, in, bufio.NewReader(r)}
}

const endOfStep = "--- end of step ---"

func (s *shell) run(command string) string {
	s.t.Helper()
	_, err := fmt.Fprintf(s.in, "%s\necho '%s'\n", command, endOfStep)
	require.NoError(s.t, err)
	var out strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		require.NoError(s.t, err, "after %q", out.String())
		if before, ended := strings.CutSuffix(line, endOfStep+"\n"); ended {
			out.WriteString(before)
			return out.String()
		}
		out.WriteString(line)
	}
}

// TestTourOfTheReadme runs the commands of the README and compares what they
// print. Reading commands are given the moment that a reader takes: they run
// again until they print it.
func TestTourOfTheReadme(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	steps := tour(t)
	for _, program := range []string{"bash", "curl", "psql"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("the tour needs ", program)
		}
	}
	dir, err := binaries()
	require.NoError(t, err)
	s := startStack(t, t.TempDir(), "--ephemeral", "--listen", "127.0.0.1:0")
	sh := newShell(t, append(cleanEnv(), "BIN="+dir, "STACK="+s.dir, "PSQLRC="+filepath.Join(s.dir, "none"), "PAGER=cat", "LC_ALL=C.UTF-8"))
	// The binaries are built already, and the stack is not the user's own.
	sh.run(`go() {
		local program=${2##*/}; shift 2
		if [ "$program" = outflow-dev ]; then set -- "$@" --data-dir "$STACK"; fi
		"$BIN/$program" "$@"
	}`)

	readme, here := normal{}, normal{}
	for i, step := range steps {
		want := strings.TrimRight(readme.text(step.output), "\n")
		writes := strings.Contains(step.command, " -d ")
		var got string
		for deadline := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
			seen := maps.Clone(here) // what isn't there yet gives nothing a number
			got = strings.TrimRight(seen.text(sh.run(step.command)), "\n")
			if got == want || writes || time.Now().After(deadline) {
				here = seen
				break
			}
		}
		require.Equal(t, want, got, "command %d of the README: %s", i+1, step.command)
	}

	follow := commands(t, "Follow what happens")
	require.Len(t, follow, 2)
	for i, command := range follow {
		got := sh.run("timeout 3 " + command + "; echo status $?")
		require.Contains(t, got, `"type":"order.confirmed.v1"`, command)
		require.Contains(t, got, []string{"status 0", "status 124"}[i], command)
	}
	compare := commands(t, "Compare, rebuild, restore")
	require.Len(t, compare, 4)
	for i, command := range compare {
		got := sh.run(command + "; echo status $?")
		require.Contains(t, got, "status 0\n", command)
		require.Contains(t, got, []string{": equal", ": equal", `"rebuilt":"orders"`, ", 0 differ"}[i], command)
	}
}

// commands are the lines of a section's code, without their remarks.
func commands(t *testing.T, title string) []string {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(b), "\n## "+title+"\n")
	require.True(t, found, title)
	section, _, _ = strings.Cut(section, "\n## ")
	var all []string
	for _, m := range fence.FindAllStringSubmatch(section, -1) {
		for line := range strings.Lines(m[2]) {
			line, _, _ = strings.Cut(line, "   #")
			all = append(all, strings.TrimSpace(line))
		}
	}
	return all
}
