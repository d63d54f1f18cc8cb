package consumer

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
)

// ErrPositionsMoved is what a [Positions] returns from Save when the stored
// positions are not the ones that it loaded or saved last.
var ErrPositionsMoved = errors.New("the stored positions were changed by someone else")

// DataLossError says that Kafka no longer has the record that was to be
// consumed next, so that going on would skip events.
type DataLossError struct {
	Partition  Partition
	Next       int64 // the offset that was to be read
	Start, End int64 // what the log holds: Start up to, not including, End; -1 when not known
	Err        error // what Kafka or its client said, if anything did
}

func (e *DataLossError) Error() string {
	s := fmt.Sprintf("events are missing in Kafka: %s was consumed up to offset %d", e.Partition, e.Next)
	if e.Start >= 0 {
		s += fmt.Sprintf(", but the log holds %d to %d", e.Start, e.End)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *DataLossError) Unwrap() error { return e.Err }

// restartError ends a session so that another begins from stored positions.
type restartError struct{ err error }

func (e *restartError) Error() string { return e.err.Error() }
func (e *restartError) Unwrap() error { return e.err }

var errRecreated = errors.New("a topic was deleted or made anew")

// forbidden reports whether Kafka refused on purpose, so that asking again
// gives the same answer until someone changes the permissions.
func forbidden(err error) bool {
	for _, refusal := range []error{
		kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.SaslAuthenticationFailed,
	} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}
