//go:build failpoints

package notifier

import (
	"testing"

	"outflow/internal/failpoint/mutanttest"
)

// Each of these tests must fail when a defence is left out.
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	mutanttest.Run(t, map[string][]string{
		"TestRow17SMTPIsDown": {"consumer.no-retry", "notifier.gives-up"},
	})
}
