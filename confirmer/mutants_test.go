//go:build failpoints

package confirmer_test

import (
	"testing"

	"outflow/internal/failpoint/mutanttest"
)

// Each of these tests must fail when a defence is left out.
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	mutanttest.Run(t, map[string][]string{
		"TestRow20HundredDeliveriesOfOnePlacedOrder": {"store.decides-again"},
	})
}
