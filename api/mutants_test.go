//go:build failpoints

package api_test

import (
	"testing"

	"outflow/internal/failpoint/mutanttest"
)

// Each of these tests must fail when a defence is left out.
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	mutanttest.Run(t, map[string][]string{
		"TestRow08UnknownOutcomeAndRetryMakeOneEvent":     {"store.no-keys"},
		"TestRow21ParallelRequestsWithOneKeyMakeOneEvent": {"store.no-keys"},
		"TestRow22DiskIsFull":                             {"store.disk-is-our-fault"},
	})
}
