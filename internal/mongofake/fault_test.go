package mongofake_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/mongofake"
)

func faulty(t *testing.T) (*mongofake.Server, *mongo.Collection) {
	t.Helper()
	s := start(t)
	return s, connect(t, s.URI()).Collection("c")
}

func TestFaultCommandError(t *testing.T) {
	t.Parallel()
	s, c := faulty(t)
	f := s.Fault(mongofake.Fault{Command: "insert", Code: 112, Skip: 1, Count: 2})
	insert(t, c, D("_id", 1))
	for range 2 {
		_, err := c.InsertOne(t.Context(), D("_id", 2))
		require.Equal(t, 112, code(t, err))
		require.ErrorContains(t, err, "WriteConflict")
	}
	insert(t, c, D("_id", 2))
	require.Equal(t, 2, f.Hits())

	f = s.Fault(mongofake.Fault{Command: "find", Collection: "c", Code: 91})
	require.Equal(t, 91, code(t, c.FindOne(t.Context(), D()).Err()))
	require.ErrorIs(t, c.Database().Collection("other").FindOne(t.Context(), D()).Err(), mongo.ErrNoDocuments)
	f.Remove()
	require.NoError(t, c.FindOne(t.Context(), D()).Err())
	f.Remove()

	s.Fault(mongofake.Fault{Command: "getMore", Collection: "c", Code: 43, Count: 1})
	s.Fault(mongofake.Fault{Command: "renameCollection", Collection: "c", Code: 112, Count: 1})
	cursor, err := c.Find(t.Context(), D(), options.Find().SetBatchSize(1))
	require.NoError(t, err)
	var docs []bson.D
	require.Equal(t, 43, code(t, cursor.All(t.Context(), &docs)))
	require.Equal(t, 112, code(t, rename(t, c.Database(), "c", "d", false)))
	require.NoError(t, rename(t, c.Database(), "c", "d", false))
}

func TestFaultWriteError(t *testing.T) {
	t.Parallel()
	s, c := faulty(t)
	s.Fault(mongofake.Fault{Command: "update", Kind: mongofake.WriteError, Code: 112, Index: 1, Count: 2})
	models := []mongo.WriteModel{versioned("a", 1), versioned("b", 1), versioned("c", 1)}
	_, err := c.BulkWrite(t.Context(), models)
	require.Equal(t, 112, code(t, err))
	require.Equal(t, A{"a"}, ids(t, c, D()))
	_, err = c.BulkWrite(t.Context(), []mongo.WriteModel{versioned("a", 2), versioned("b", 2), versioned("c", 2)}, options.BulkWrite().SetOrdered(false))
	require.Equal(t, 112, code(t, err))
	require.Equal(t, A{"a", "c"}, ids(t, c, D("version", 2)))
}

func TestFaultWriteConcernError(t *testing.T) {
	t.Parallel()
	s, c := faulty(t)
	s.Fault(mongofake.Fault{Command: "insert", Kind: mongofake.WriteConcernError, Code: 64, Count: 1})
	_, err := c.InsertOne(t.Context(), D("_id", 1))
	var write mongo.WriteException
	require.ErrorAs(t, err, &write)
	require.Equal(t, 64, write.WriteConcernError.Code)
	require.Equal(t, A{int32(1)}, ids(t, c, D()))
}

func TestFaultLostConnection(t *testing.T) {
	t.Parallel()
	s, c := faulty(t)
	for _, after := range []bool{false, true} {
		f := s.Fault(mongofake.Fault{Command: "insert", CloseConn: true, After: after, Count: 1})
		_, err := c.InsertOne(t.Context(), D("_id", after))
		require.True(t, mongo.IsNetworkError(err), "%v", err)
		require.Equal(t, 1, f.Hits())
		want := A{}
		if after {
			want = A{true}
		}
		require.Equal(t, want, ids(t, c, D()))
	}
}

func TestFaultHold(t *testing.T) {
	t.Parallel()
	s, c := faulty(t)
	f := s.Fault(mongofake.Fault{Command: "insert", Hold: true})
	done := make(chan error, 1)
	go func() {
		_, err := c.InsertOne(t.Context(), D("_id", 1))
		done <- err
	}()
	require.NoError(t, f.Wait(t.Context(), 1))
	require.Equal(t, 1, f.Inside())
	require.Empty(t, ids(t, c, D()))
	f.Release()
	require.NoError(t, <-done)
	require.Equal(t, A{int32(1)}, ids(t, c, D()))
	insert(t, c, D("_id", 2)) // released for good

	// Held after it was applied, and given up on by the client: the write is there.
	f.Remove()
	f = s.Fault(mongofake.Fault{Command: "insert", Hold: true, After: true})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := c.InsertOne(ctx, D("_id", 3))
		done <- err
	}()
	require.NoError(t, f.Wait(t.Context(), 1))
	require.Eventually(t, func() bool { return len(ids(t, c, D("_id", 3))) == 1 }, time.Minute, time.Millisecond)
	cancel()
	require.Error(t, <-done)
	f.Remove()
	require.Eventually(t, func() bool { return f.Inside() == 0 }, time.Minute, time.Millisecond)
	require.Error(t, f.Wait(ctx, 2))
}

func TestCloseEndsHeldCommands(t *testing.T) {
	t.Parallel()
	s, err := mongofake.Start(t.Context(), mongofake.Config{})
	require.NoError(t, err)
	c := connect(t, s.URI()+"&retryReads=false").Collection("c")
	f := s.Fault(mongofake.Fault{Hold: true})
	done := make(chan error, 1)
	go func() { done <- c.FindOne(t.Context(), D()).Err() }()
	require.NoError(t, f.Wait(t.Context(), 1))
	require.NoError(t, c.Database().Client().Ping(t.Context(), nil), "the driver's own commands pass")
	require.NoError(t, s.Close())
	require.Error(t, <-done)
	require.NoError(t, s.Close())
}

func TestFaultDelay(t *testing.T) {
	t.Parallel()
	s, c := faulty(t)
	f := s.Fault(mongofake.Fault{Command: "find", Delay: 30 * time.Millisecond, Count: 1})
	begin := time.Now()
	require.Equal(t, []bson.D{}, all(t, c, D()))
	require.GreaterOrEqual(t, time.Since(begin), 30*time.Millisecond)
	require.Equal(t, 1, f.Hits())
}
