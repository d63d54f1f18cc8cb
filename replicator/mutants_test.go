//go:build failpoints

package replicator

import (
	"testing"

	"outflow/internal/failpoint/mutanttest"
)

// Each of these tests must fail when a defence is left out.
func TestDefencesAreTested(t *testing.T) {
	t.Parallel()
	mutanttest.Run(t, map[string][]string{
		"TestRow15WorkerKilledBetweenEffectAndOffset":        {"consumer.early-save"},
		"TestRow12RecreatedTopicIsReplicatedFromItsStart":    {"consumer.any-log"},
		"TestFirstWritesRace":                                {"mongodb.unguarded"},
		"TestRow15ZombieCannotMoveAPosition":                 {"mongodb.unguarded-position"},
		"TestABackupIsPutBackInTheMiddleOfABatch":            {"mongodb.nameless-writes"},
		"TestRow16OlderUpdateAfterDeleteStaysDeleted":        {"mongodb.unguarded", "replicator.weak-tombstone"},
		"TestRow17MongoDBIsDown":                             {"consumer.no-retry"},
		"TestRow18ARebuildIsKilledAndResumed":                {"rebuild.early-swap"},
		"TestRow18ARebuildIsKilledAndResumed/rebuild.filled": {"rebuild.notes-first"},
		"TestRow24UnknownNewerVersionIsParked":               {"replicator.any-version"},
	})
}
