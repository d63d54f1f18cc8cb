package outbox

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
	"outflow/internal/failpoint"
)

// MaxEventSize is how many bytes the JSON of one event may have: before, after
// and metadata together. Kafka's clients send at most 1,000,012 bytes in a
// batch unless they are told otherwise, and brokers take little more; what an
// event's record needs beside that JSON (key, headers, the names in its value,
// the batch around it) is less than the difference. An event that Kafka
// refuses would stop the relay for good, so it must never be stored.
const MaxEventSize = 1_000_000 - 2_000

// Append is the end of a statement that changes entities: it inserts the
// events of those entities which the statement has changed. The statement
// names them in a CTE "changed" with a column "id", and takes [Entries.Args]
// as its first parameters, $1 to $11; its own begin at $[AppendParams]+1. It
// returns the aggregate_id of every event that it inserted: an entity that is
// not among them was not changed, and has left no event.
//
// What was changed is looked up in a hash table, which IS TRUE sees to: without
// it, the condition becomes a join, and the store's connections have nested loops
// alone.
//
// Positions ascend in the order of the entries. The transaction must hold the
// lock of every changed entity (having changed its row is that), or the events
// of one aggregate could be committed out of order.
const Append = `
INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
SELECT e.event_id, e.aggregate_type, e.aggregate_id, e.aggregate_version, e.type, e.key, e.before, e.after, e.metadata, e.occurred_at
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::bigint[], $6::text[], $7::text[], $8::json[], $9::json[], $10::json[], $11::timestamptz[])
    WITH ORDINALITY AS e (entity_id, event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at, n)
WHERE (e.entity_id IN (SELECT id FROM changed)) IS TRUE
ORDER BY e.n
RETURNING aggregate_id`

// AppendParams is how many parameters [Append] takes.
const AppendParams = 11

// Entries collects the events of one statement.
type Entries struct {
	entity, id, aggregate []pgtype.UUID
	aggregateType         []string
	version               []int64
	typ, key              []string
	before, after, meta   [][]byte // nil is NULL
	occurredAt            []pgtype.Timestamptz
}

// Add adds an event that is inserted if the statement changes the entity. The
// event's slices must not change until the statement has run.
func (s *Entries) Add(entity domain.ID, e domain.Event) {
	s.entity = append(s.entity, uuid(entity))
	s.id = append(s.id, uuid(e.ID))
	s.aggregateType = append(s.aggregateType, e.AggregateType)
	s.aggregate = append(s.aggregate, uuid(e.AggregateID))
	s.version = append(s.version, e.AggregateVersion)
	s.typ = append(s.typ, e.Type)
	s.key = append(s.key, e.Key)
	s.before = append(s.before, e.Before)
	s.after = append(s.after, e.After)
	s.meta = append(s.meta, e.Metadata)
	s.occurredAt = append(s.occurredAt, pgtype.Timestamptz{Time: e.OccurredAt, Valid: true})
}

// Args returns the parameters of [Append].
func (s *Entries) Args() []any {
	return []any{
		s.entity, s.id, s.aggregateType, s.aggregate, s.version, s.typ, s.key,
		s.before, s.after, s.meta, s.occurredAt,
	}
}

// CheckSize returns CodeTooLarge for an event of more than [MaxEventSize].
func CheckSize(e domain.Event) error {
	if n := len(e.Before) + len(e.After) + len(e.Metadata); n > MaxEventSize && !failpoint.Mutant("outbox.any-size") {
		return &domain.Error{
			Code:    domain.CodeTooLarge,
			Message: fmt.Sprintf("the change makes an event of %d bytes, which is more than the %d that an event may have", n, MaxEventSize),
		}
	}
	return nil
}

func uuid(id domain.ID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }
