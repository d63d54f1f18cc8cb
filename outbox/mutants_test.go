//go:build failpoints

package outbox

import (
	"testing"

	"outflow/internal/failpoint/mutanttest"
)

// Each of these tests must fail when one of the relay's defences is left out.
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	mutanttest.Run(t, map[string][]string{
		"TestRow01CommitsInAnotherOrderThanTheirNumbers/poll":    {"relay.no-xip"},
		"TestRow02LongTransaction/poll":                          {"relay.no-xip", "relay.no-age"},
		"TestRow03RelayKilledBetweenProduceCommitAndConfirm":     {"relay.early-confirm", "relay.progress-apart"},
		"TestRow04PausedRelayWakesUpAfterItsSuccessor/produced":  {"relay.unfenced"},
		"TestRow05SlotLost/moved":                                {"relay.trusting-slot"},
		"TestRow05SlotLost/dropped_long":                         {"relay.no-scan"},
		"TestRow05SlotInvalidatedByWALLimits":                    {"relay.no-lost"},
		"TestHealingLeavesOutWhatIsPublishedButNotVisible/named": {"relay.no-xids"},
		"TestHandoverWaitsForWhatIsNotVisible":                   {"relay.no-proof"},
		"TestMovedRowsAreNotPublishedAgain":                      {"relay.any-xid"},
		"TestRow06IdlePublicationBesideBusyDatabase":             {"relay.no-idle", "relay.early-confirm"},
		"TestRow07PostgresCrashes":                               {"relay.gives-up"},
		"TestRow07NothingIsPublishedThatACrashTakesBack":         {"relay.no-barrier"},
		"TestRow09HugeTransactionIsPublishedWhole":               {"relay.split"},
		"TestRow09MemoryIsBounded":                               {"relay.gathers-all"},
		"TestRow10LargestEventFitsIntoARecord":                   {"outbox.any-size"},
		"TestRow11BrokerIsDown":                                  {"relay.gives-up"},
		"TestRow11LeaderMoves":                                   {"relay.no-retries"},
		"TestRow11OutcomeOfACommitIsUnknown":                     {"relay.presume-done"},
		"TestRow12KafkaLostData/topic":                           {"relay.trusting-kafka"},
		"TestRow13PartitionsWereAdded":                           {"relay.any-partitions"},
	})
}
