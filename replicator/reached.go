package replicator

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/internal/consumer"
	"outflow/internal/mongodb"
)

// Ends is where topics end for readers of committed records.
type Ends map[consumer.Partition]consumer.Position

// EndsOf asks Kafka for the ends of topics.
func EndsOf(ctx context.Context, kafka *kadm.Client, topics ...string) (Ends, error) {
	found, err := kafka.ListTopics(ctx, topics...)
	if err == nil {
		err = found.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("look for the topics: %w", err)
	}
	listed, err := kafka.ListCommittedOffsets(ctx, topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find the end of the events: %w", err)
	}
	ends := Ends{}
	listed.Each(func(o kadm.ListedOffset) {
		ends[consumer.Partition{Topic: o.Topic, Partition: o.Partition}] = consumer.Position{Log: found[o.Topic].ID.String(), Next: o.Offset}
	})
	return ends, nil
}

// Behind returns how many records, of those before the given ends, the replica
// has yet to see. It has seen what it holds and what was parked.
func Behind(ctx context.Context, db *mongo.Database, ends Ends) (int64, error) {
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
		id := consumer.Partition{Topic: p.Topic, Partition: p.Partition}
		if p.Log == ends[id].Log { // else a topic's that was replaced
			next[id] = p.Next
		}
	}
	var behind int64
	for id, end := range ends {
		behind += max(0, end.Next-next[id])
	}
	return behind, nil
}
