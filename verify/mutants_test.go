//go:build failpoints

package verify_test

import (
	"testing"

	"outflow/internal/failpoint/mutanttest"
)

// Each of these tests must fail when a defence is left out.
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	mutanttest.Run(t, map[string][]string{
		"TestRow19CorruptionsUnderLoad": {"verify.first-look", "verify.versions-only"},
	})
}
