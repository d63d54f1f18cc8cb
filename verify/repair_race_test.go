package verify_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/replicator"
	"outflow/verify"
)

// A change that comes between the look at an entity and its repair is refused by
// what is to be repaired, when that has a version that is too high or none.
func TestRepairIsNotOlderThanWhatWasRefusedMeanwhile(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	first, ahead, without := s.customer(), s.customer(), s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	c := s.db.Collection("_customers")
	_, err := c.DeleteOne(t.Context(), bson.D{{Key: "_id", Value: first.ID.String()}})
	require.NoError(t, err)
	_, err = c.UpdateOne(t.Context(), bson.D{{Key: "_id", Value: ahead.ID.String()}}, bson.D{{Key: "$set", Value: bson.D{{Key: "version", Value: int64(1000)}}}})
	require.NoError(t, err)
	_, err = c.UpdateOne(t.Context(), bson.D{{Key: "_id", Value: without.ID.String()}}, bson.D{{Key: "$unset", Value: bson.D{{Key: "version", Value: ""}}}})
	require.NoError(t, err)
	changed := false
	_, found = s.verify(func(v *verify.Replica) {
		v.Repair = true
		told, published := v.OnDifference, v.Published
		v.OnDifference = func(d verify.Difference) {
			told(d)
			if changed {
				return
			}
			changed = true
			require.Equal(t, first.ID.String(), d.ID)
			require.NoError(t, s.rename(ahead.ID))
			require.NoError(t, s.rename(without.ID))
			require.NoError(t, published(t.Context()))
			ends, err := s.Admin().ListCommittedOffsets(t.Context(), s.Namespace.Topic(domain.AggregateCustomer))
			require.NoError(t, err)
			at := map[consumer.Partition]int64{}
			ends.Each(func(o kadm.ListedOffset) { at[consumer.Partition{Topic: o.Topic, Partition: o.Partition}] = o.Offset })
			require.Eventually(t, func() bool {
				behind, err := replicator.Behind(t.Context(), s.db, at)
				return err == nil && behind == 0
			}, time.Minute, 10*time.Millisecond, "the replicator has passed the changes")
		}
	})
	require.Len(t, found, 3)
	_, found = s.verify()
	require.Empty(t, found)
	require.Equal(t, int64(2), s.doc("_customers", ahead.ID)["version"])
	require.Equal(t, int64(2), s.doc("_customers", without.ID)["version"])
}
