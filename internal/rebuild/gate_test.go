package rebuild

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/consumer"
	"outflow/internal/mongotest"
)

func newTestJob(t *testing.T) *Job {
	t.Helper()
	client, err := mongo.Connect(options.Client().ApplyURI(mongotest.URI(t, "gate")))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(context.Background()) })
	return &Job{Name: "customers", DB: client.Database("gate"), Topics: []string{"t"}}
}

// A worker reads that a rebuild pauses, and is held up until that rebuild is
// over: what it answers then is about nothing, and leaves nothing.
func TestALateAnswerLeavesNothing(t *testing.T) {
	t.Parallel()
	j := newTestJob(t)
	mine := []consumer.Partition{{Topic: "t", Partition: 1}}
	c := &control{ID: j.Name, Run: "one", Owner: "me", Beat: 1, Phase: filling}
	require.NoError(t, j.create(t.Context(), c))
	require.NoError(t, j.write(t.Context(), c, func(c *control) { c.Phase, c.Attempt = pausing, 2 }))
	gate := &Gate{Job: *j}
	require.NoError(t, gate.answer(t.Context(), c, mine))
	require.NoError(t, j.write(t.Context(), c, nil), "an answer doesn't take the record from its owner")
	now, err := j.read(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{c.answer(mine[0])}, now.Answers, "and its owner's beat doesn't undo it")
	require.Equal(t, int64(3), now.Beat)

	require.NoError(t, j.forget(t.Context(), c.Run))
	require.NoError(t, gate.answer(t.Context(), c, mine))
	n, err := j.controls().CountDocuments(t.Context(), bson.D{})
	require.NoError(t, err)
	require.Zero(t, n)
}
