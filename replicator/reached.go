package replicator

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/internal/consumer"
	"outflow/internal/mongodb"
)

// Behind returns how many records, of those before the given offsets, the
// replica has yet to see. It has seen what it holds and what was parked.
func Behind(ctx context.Context, db *mongo.Database, ends map[consumer.Partition]int64) (int64, error) {
	cursor, err := db.Collection(positionsCollection).Find(ctx, bson.D{})
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", positionsCollection, err)
	}
	var stored []mongodb.Position
	if err := cursor.All(ctx, &stored); err != nil {
		return 0, fmt.Errorf("read %s: %w", positionsCollection, err)
	}
	next := map[consumer.Partition]int64{}
	for _, p := range stored {
		next[consumer.Partition{Topic: p.Topic, Partition: p.Partition}] = p.Next
	}
	var behind int64
	for p, end := range ends {
		behind += max(0, end-next[p])
	}
	return behind, nil
}
