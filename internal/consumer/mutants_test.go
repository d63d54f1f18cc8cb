//go:build failpoints

package consumer_test

import (
	"testing"

	"outflow/internal/failpoint/mutanttest"
)

// Each of these tests must fail when a defence is left out.
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	mutanttest.Run(t, map[string][]string{
		"TestAFailedMessageHoldsBackItsKeyOnly":                {"consumer.overtake", "consumer.no-retry"},
		"TestWhereToBeginIsSavedFirst":                         {"consumer.unsaved-begin"},
		"TestRow12LostDataIsAnError":                           {"consumer.jump"},
		"TestRow14PoisonRecordIsParkedWithItsKeyAndOthersFlow": {"consumer.no-parking", "consumer.overtake-parked"},
		"TestRow15RebalanceUnderLoadKeepsEveryKeyInOrder":      {"consumer.from-start"},
	})
}
