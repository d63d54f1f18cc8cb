package outbox

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"outflow/domain"
)

// The columns that both readers decode, in the order in which COPY is asked
// for them; pgoutput sends them in the table's order, by name.
const (
	colPosition = iota
	colXid
	colEventID
	colAggregateType
	colAggregateID
	colAggregateVersion
	colType
	colKey
	colBefore
	colAfter
	colMetadata
	colOccurredAt
	numColumns
)

var columns = [numColumns]string{
	"position", "xid", "event_id", "aggregate_type", "aggregate_id", "aggregate_version",
	"type", "key", "before", "after", "metadata", "occurred_at",
}

// columnTypes are the types in which PostgreSQL must send the columns (OIDs):
// in its binary form another type would be read as something it is not.
var columnTypes = [numColumns]uint32{20, 5069, 2950, 25, 2950, 20, 25, 25, 114, 114, 114, 1184}

var columnList = strings.Join(columns[:], ", ")

// A row is one row of the outbox.
type row struct {
	domain.Event
	position int64
	xid      uint64
}

// values are a row's columns in PostgreSQL's binary form; nil is NULL.
type values [numColumns][]byte

// sizes are the lengths of the columns that have a fixed one.
var sizes = [numColumns]int{colPosition: 8, colXid: 8, colEventID: 16, colAggregateID: 16, colAggregateVersion: 8, colOccurredAt: 8}

// microseconds from the Unix epoch to PostgreSQL's, 2000-01-01 UTC.
const epoch2000 = 946_684_800_000_000

func pgTime(micros int64) time.Time { return time.UnixMicro(micros + epoch2000).UTC() }

// decode reads v into r. The event's JSON is that of v, not a copy.
func (r *row) decode(v *values) error {
	for i, size := range sizes {
		if size != 0 && len(v[i]) != size {
			return fmt.Errorf("outbox column %s: %d bytes instead of %d", columns[i], len(v[i]), size)
		}
	}
	r.position = int64(binary.BigEndian.Uint64(v[colPosition]))
	r.xid = binary.BigEndian.Uint64(v[colXid])
	copy(r.ID[:], v[colEventID])
	r.AggregateType = intern(v[colAggregateType])
	copy(r.AggregateID[:], v[colAggregateID])
	r.AggregateVersion = int64(binary.BigEndian.Uint64(v[colAggregateVersion]))
	r.Type = string(v[colType])
	r.Key = string(v[colKey])
	r.Before, r.After, r.Metadata = v[colBefore], v[colAfter], v[colMetadata]
	r.OccurredAt = pgTime(int64(binary.BigEndian.Uint64(v[colOccurredAt])))
	return nil
}

// intern saves an allocation for the few names that there are.
func intern(b []byte) string {
	for _, t := range domain.AggregateTypes {
		if string(b) == t {
			return t
		}
	}
	return string(b)
}
