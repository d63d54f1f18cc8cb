//go:build failpoints

package analytics

import (
	"testing"

	"outflow/internal/failpoint/mutanttest"
)

// Each of these tests must fail when a defence is left out.
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	mutanttest.Run(t, map[string][]string{
		"TestRow18RebuiltFiguresAreThoseOfTheEvents/rebuild.filled": {"rebuild.notes-first"},
	})
}
