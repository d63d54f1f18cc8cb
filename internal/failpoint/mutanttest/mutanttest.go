// Package mutanttest shows that tests notice when a defence is left out: it
// runs a test again in a process in which the defence is missing, and wants it
// to fail.
//
// The defences are named where they are ([failpoint.Mutant]), and can be left
// out in binaries with the build tag failpoints alone:
//
//	go test -tags failpoints -run TestDefencesAreTested ./...
package mutanttest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/internal/failpoint"
)

// PatienceEnv shortens how long tests wait for what must happen: with a defence
// left out, it often never does.
const PatienceEnv = "OUTFLOW_TEST_PATIENCE"

// Patience is how long a test is to wait for what must happen, usually d.
func Patience(d time.Duration) time.Duration {
	if shorter, err := time.ParseDuration(os.Getenv(PatienceEnv)); err == nil {
		return min(d, shorter)
	}
	return d
}

// Run runs tests (patterns as for -run) once for every defence that is named
// for them, without that defence, each time in a process of its own. It fails
// unless they fail.
func Run(t *testing.T, tests map[string][]string) {
	t.Helper()
	require.True(t, failpoint.Enabled, "needs the build tag failpoints")
	for test, mutants := range tests {
		for _, mutant := range mutants {
			t.Run(mutant+" "+test, func(t *testing.T) {
				t.Parallel()
				cmd := exec.Command(os.Args[0], "-test.run", test, "-test.v", "-test.timeout", "4m")
				cmd.Env = append(os.Environ(), failpoint.MutantEnv+"="+mutant, PatienceEnv+"=15s")
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				require.ErrorAs(t, err, &exit, "%s does not notice that %s is left out:\n%s", test, mutant, out)
				failed, _, _ := strings.Cut(strings.Trim(test, "^$"), "/")
				require.Contains(t, string(out), "--- FAIL: "+failed, "%s fails for another reason than that %s is left out", test, mutant)
			})
		}
	}
}
