package outbox

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

// Copy inserts events by COPY, in their order: the way for many at once. As
// with [Append], the transaction must hold the lock of every entity whose event
// is among them; having inserted its row is that.
func Copy(ctx context.Context, tx pgx.Tx, events []domain.Event) error {
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"outbox"}, []string{
		"event_id", "aggregate_type", "aggregate_id", "aggregate_version", "type", "key", "before", "after", "metadata", "occurred_at",
	}, pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
		e := &events[i]
		return []any{
			uuid(e.ID), e.AggregateType, uuid(e.AggregateID), e.AggregateVersion, e.Type, e.Key,
			[]byte(e.Before), []byte(e.After), []byte(e.Metadata), pgtype.Timestamptz{Time: e.OccurredAt, Valid: true},
		}, nil
	}))
	return err
}
