package mongodb_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.uber.org/goleak"

	"outflow/internal/consumer"
	"outflow/internal/mongodb"
	"outflow/internal/mongofake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A collection that was replaced is noticed for partitions that were assigned
// before, also when another partition was assigned in between.
func TestPartitionsRememberWhatTheyFill(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a MongoDB server")
	}
	fake, err := mongofake.Start(t.Context(), mongofake.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, fake.Close()) })
	target, err := mongodb.Parse("mongodb://"+fake.Addr().String()+"/test?directConnection=true", "test")
	require.NoError(t, err)
	db, closing, err := target.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, closing(context.Background())) })

	identify := func(ctx context.Context) (map[string]string, error) {
		found, err := mongodb.Identities(ctx, db)
		return map[string]string{"topic": found["filled"]}, err
	}
	p := &mongodb.Positions{
		Collection: db.Collection("positions"), Logger: slog.New(slog.DiscardHandler), Identify: identify,
		Prepare: func(ctx context.Context) (map[string]string, error) {
			if err := mongodb.Create(ctx, db, "filled"); err != nil {
				return nil, err
			}
			return identify(ctx)
		},
	}
	first, second := consumer.Partition{Topic: "topic", Partition: 1}, consumer.Partition{Topic: "topic", Partition: 2}
	load := func(part consumer.Partition) map[consumer.Partition]consumer.Position {
		found, err := p.Load(t.Context(), []consumer.Partition{part})
		require.NoError(t, err)
		return found
	}
	save := func(part consumer.Partition, next int64) error {
		return p.Save(t.Context(), map[consumer.Partition]consumer.Position{part: {Log: "log", Next: next}})
	}
	require.Empty(t, load(first))
	require.NoError(t, save(first, 7))
	require.NoError(t, db.Collection("filled").Drop(t.Context()))
	require.Empty(t, load(second))
	next := int64(7)
	require.Eventually(t, func() bool {
		next++
		return errors.Is(save(first, next), consumer.ErrPositionsMoved)
	}, time.Minute, 50*time.Millisecond)
	require.Empty(t, load(first), "nothing of it is in the new collection")
	n, err := db.Collection("positions").CountDocuments(t.Context(), bson.D{})
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, save(first, 3))
	require.Equal(t, map[consumer.Partition]consumer.Position{first: {Log: "log", Next: 3}}, load(first))
}

func TestAURINamesADatabase(t *testing.T) {
	t.Parallel()
	for _, uri := range []string{"mongodb://127.0.0.1:1", "mongodb://127.0.0.1:1/", "postgres://x/y", ""} {
		_, err := mongodb.Parse(uri, "test")
		require.Error(t, err, uri)
	}
}
