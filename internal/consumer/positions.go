package consumer

import (
	"context"
	"fmt"
)

// Partition names a partition of a topic.
type Partition struct {
	Topic     string
	Partition int32
}

func (p Partition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Partition) }

// Position is how far a partition was consumed.
type Position struct {
	Log  string // the identity of the log that Next counts in: the topic's id
	Next int64  // the offset of the first record that wasn't handled yet
}

// Positions keeps positions outside Kafka, beside the effects that they
// cover, so that effects that were lost or put back are noticed and caught up
// on. The group's committed offsets then only tell lag tools.
type Positions interface {
	// Load returns the positions of partitions as they are assigned. A
	// partition without one, or with one in another log, is consumed from its
	// beginning.
	Load(ctx context.Context, partitions []Partition) (map[Partition]Position, error)

	// Save keeps positions, once what is before them was handled. It is also
	// called with unchanged positions, every few seconds. It returns
	// ErrPositionsMoved when what is stored isn't what was last loaded or
	// saved here; the consumer then begins again from what Load returns.
	Save(ctx context.Context, positions map[Partition]Position) error
}
