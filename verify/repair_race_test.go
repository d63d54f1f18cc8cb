package verify_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
	"outflow/internal/mongofake"
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
			ends, err := replicator.EndsOf(t.Context(), s.Admin(), s.Namespace.Topic(domain.AggregateCustomer))
			require.NoError(t, err)
			require.Eventually(t, func() bool {
				behind, err := replicator.Behind(t.Context(), s.db, ends)
				return err == nil && behind == 0
			}, 5*time.Minute, 10*time.Millisecond, "the replicator has passed the changes")
		}
	})
	require.Len(t, found, 3)
	_, found = s.verify()
	require.Empty(t, found)
	require.Equal(t, int64(2), s.doc("_customers", ahead.ID)["version"])
	require.Equal(t, int64(2), s.doc("_customers", without.ID)["version"])
}

// What was changed between the look and the repair is looked at again: it may be
// right by then, and nothing is left to be said of it.
func TestWhatChangesBeforeItsRepairIsLookedAtAgain(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	first, mended, changed := s.customer(), s.customer(), s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	c := s.db.Collection("_customers")
	set := func(id domain.ID, version int64) {
		t.Helper()
		done, err := c.UpdateOne(t.Context(), bson.D{{Key: "_id", Value: id.String()}}, bson.D{{Key: "$set", Value: bson.D{{Key: "version", Value: version}}}})
		require.NoError(t, err)
		require.EqualValues(t, 1, done.ModifiedCount)
	}
	set(first.ID, 1000)
	set(mended.ID, 1000)
	set(changed.ID, 1000)
	report, found := s.verify(func(v *verify.Replica) {
		v.Repair = true
		told := v.OnDifference
		v.OnDifference = func(d verify.Difference) {
			told(d)
			if d.ID == first.ID.String() {
				set(mended.ID, 1)
				set(changed.ID, 2000)
			}
		}
	})
	require.True(t, report.Clean())
	require.Len(t, found, 2)
	for _, d := range found {
		require.NotEqual(t, mended.ID.String(), d.ID)
		require.True(t, d.Repaired)
	}
	_, found = s.verify()
	require.Empty(t, found)
}

// What differed at every look, and was changed each time before it could be
// mended, still differs.
func TestWhatCanNotBeMendedIsTold(t *testing.T) {
	s := newSystem(t)
	if s.mongo == nil {
		t.Skip("holds a command in the in-process MongoDB server")
	}
	s.relay()
	s.replicate()
	ada := s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	version := int64(1000)
	spoil := func() error {
		version++
		_, err := s.db.Collection("_customers").UpdateOne(t.Context(), bson.D{{Key: "_id", Value: ada.ID.String()}},
			bson.D{{Key: "$set", Value: bson.D{{Key: "version", Value: version}}}})
		return err
	}
	require.NoError(t, spoil())
	fault := mongofake.Fault{Command: "update", Collection: "_customers", Hold: true, Count: 1}
	held := s.mongo.Fault(fault)
	spoiling := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for {
			if held.Wait(ctx, 1) != nil {
				spoiling <- nil
				return
			}
			if err := spoil(); err != nil {
				spoiling <- err
				return
			}
			next := s.mongo.Fault(fault)
			held.Release()
			held = next
		}
	}()
	report, found := s.verify(func(v *verify.Replica) { v.Repair = true })
	cancel()
	require.NoError(t, <-spoiling)
	require.False(t, report.Clean())
	require.Equal(t, map[verify.Kind]int64{verify.Ahead: 1}, report.Differences)
	require.False(t, found[ada.ID.String()].Repaired)
	require.Zero(t, report.Undecided)
}

// What is half old and half new at one look, as some servers show it while it is
// replaced, is not accused.
func TestWhatLooksCorruptIsReadTwice(t *testing.T) {
	s := newSystem(t)
	if s.mongo == nil {
		t.Skip("holds a command in the in-process MongoDB server")
	}
	s.relay()
	s.replicate()
	ada := s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	set := func(name string) {
		t.Helper()
		_, err := s.db.Collection("_customers").UpdateOne(t.Context(), bson.D{{Key: "_id", Value: ada.ID.String()}}, bson.D{{Key: "$set", Value: bson.D{{Key: "name", Value: name}}}})
		require.NoError(t, err)
	}
	set("half")
	// The first reads all, the second what is suspected.
	again := s.mongo.Fault(mongofake.Fault{Command: "find", Collection: "_customers", Skip: 2, Count: 1, Hold: true})
	held := make(chan error, 1)
	go func() {
		held <- again.Wait(t.Context(), 1)
		set(ada.Name)
		again.Release()
	}()
	_, found = s.verify()
	require.NoError(t, <-held)
	require.Empty(t, found)
}
