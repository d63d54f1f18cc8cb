//go:build failpoints

package outbox

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/internal/failpoint"
)

// Each row leaves out one of the relay's defences and names the test that must
// then fail:
//
//	go test -tags failpoints -run TestDefencesAreTested ./outbox
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	for mutant, test := range map[string]string{
		"relay.no-xip":         "TestReadersConform/poll",                                // rows 1, 2
		"relay.unfenced":       "TestZombieIsFenced/relay.produced",                      // row 4
		"relay.trusting-slot":  "TestLostSlotHeals/moved",                                // row 5
		"relay.no-scan":        "TestLostSlotHeals/dropped_while",                        // row 5
		"relay.no-xids":        "TestHealingLeavesOutWhatIsPublishedButNotVisible/named", // row 5
		"relay.no-proof":       "TestHandoverWaitsForWhatIsNotVisible",                   // row 5
		"relay.any-xid":        "TestMovedRowsAreNotPublishedAgain",                      // row 5
		"relay.no-idle":        "TestSlotAdvancesWhileIdle",                              // row 6
		"relay.early-confirm":  "TestRelayDiesAnywhere$",                                 // rows 3, 6
		"relay.no-barrier":     "TestNothingIsPublishedThatACrashTakesBack",              // row 7
		"relay.split":          "TestRelayPublishesOneHugeTransaction",                   // row 9
		"relay.any-partitions": "TestRefusals/partitions",                                // row 13
	} {
		t.Run(mutant, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run", test, "-test.timeout", "3m")
			cmd.Env = append(os.Environ(), failpoint.MutantEnv+"="+mutant, patienceEnv+"=15s")
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit, "%s does not notice that %s is left out:\n%s", test, mutant, out)
		})
	}
}
