package store

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

const (
	selectHistory = `SELECT event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at
FROM outbox WHERE aggregate_id = $1 AND aggregate_type = $2 AND aggregate_version > $3 ORDER BY aggregate_version LIMIT $4`
	selectHasHistory = `SELECT EXISTS (SELECT FROM outbox WHERE aggregate_id = $1 AND aggregate_type = $2)`
)

// History returns the events of one aggregate after a version (0 for the
// beginning), oldest first, at most limit (50 when 0); next is the version to
// go on after, 0 when these were the last. It still answers when the aggregate
// is deleted. It returns CodeNotFound if the aggregate has no events at all.
func (s *Store) History(ctx context.Context, aggregateType string, id domain.ID, afterVersion int64, limit int) (events []domain.Event, next int64, err error) {
	const doing = "read the events of an aggregate"
	limit = Page{Limit: limit}.limit()
	var exists bool
	b := &pgx.Batch{}
	b.Queue(selectHistory, uuidOf(id), aggregateType, afterVersion, limit+1).Query(func(rows pgx.Rows) (err error) {
		events, err = collect(rows, scanEvent)
		return err
	})
	b.Queue(selectHasHistory, uuidOf(id), aggregateType).QueryRow(func(row pgx.Row) error { return row.Scan(&exists) })
	if err := s.pool.SendBatch(ctx, b).Close(); err != nil {
		return nil, 0, wrap(doing, err)
	}
	if !exists {
		return nil, 0, notFound(aggregateType)
	}
	if len(events) > limit {
		events = events[:limit]
		next = events[limit-1].AggregateVersion
	}
	return events, next, nil
}

func scanEvent(row pgx.Row) (domain.Event, error) {
	var e domain.Event
	var id, aggregate pgtype.UUID
	var before, after, metadata []byte
	err := row.Scan(&id, &e.AggregateType, &aggregate, &e.AggregateVersion, &e.Type, &e.Key, &before, &after, &metadata, &e.OccurredAt)
	e.ID, e.AggregateID = id.Bytes, aggregate.Bytes
	e.Before, e.After, e.Metadata = before, after, metadata
	e.OccurredAt = e.OccurredAt.UTC()
	return e, err
}
