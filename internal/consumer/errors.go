package consumer

import (
	"errors"
	"fmt"
)

// ErrPositionsMoved is what a [Positions] returns from Save when the stored
// positions are not the ones that it loaded or saved last.
var ErrPositionsMoved = errors.New("the stored positions were changed by someone else")

// DataLossError says that Kafka no longer has the record that was to be
// consumed next, so that going on would skip events.
type DataLossError struct {
	Partition  Partition
	Next       int64 // the offset that was to be read
	Start, End int64 // what the log holds: Start up to, not including, End
	Err        error // what Kafka or its client said, if anything did
}

func (e *DataLossError) Error() string {
	s := fmt.Sprintf("events are missing in Kafka: %s was consumed up to offset %d, but the log holds %d to %d", e.Partition, e.Next, e.Start, e.End)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *DataLossError) Unwrap() error { return e.Err }
