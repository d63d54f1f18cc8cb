package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

// ErrNoEvent says that the outbox has no event with this id.
var ErrNoEvent = errors.New("the outbox has no event with this id")

// querier is a pool, a connection or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const (
	edgesSQL = `SELECT coalesce(min(position), 0), coalesce(max(position), -1) + 1 FROM outbox`
	afterSQL = `SELECT position, occurred_at FROM outbox WHERE position >= $1 ORDER BY position LIMIT 1`
	findSQL  = `SELECT aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at
FROM outbox WHERE position >= $1 AND position < $2 AND event_id = $3`
)

// Find returns the event with an id, or ErrNoEvent. There is no index of ids,
// which every write would have to pay for: an id tells when it was made
// (UUIDv7), positions ascend with time but for the clocks of hosts and for
// transactions that took long, and so the event is looked for around its time,
// first in the minute before and after.
func Find(ctx context.Context, db querier, id domain.ID) (domain.Event, error) {
	made, err := madeAt(id)
	if err != nil {
		return domain.Event{}, err
	}
	var first, end int64
	if err := db.QueryRow(ctx, edgesSQL).Scan(&first, &end); err != nil {
		return domain.Event{}, fmt.Errorf("look at the edges of the outbox: %w", err)
	}
	for _, margin := range []time.Duration{time.Minute, time.Hour, 100 * 365 * 24 * time.Hour} {
		from, err := reached(ctx, db, made.Add(-margin), first, end)
		if err != nil {
			return domain.Event{}, err
		}
		to, err := reached(ctx, db, made.Add(margin), first, end)
		if err != nil {
			return domain.Event{}, err
		}
		e := domain.Event{ID: id}
		var aggregate pgtype.UUID
		var before, after, metadata []byte
		err = db.QueryRow(ctx, findSQL, from, to, pgtype.UUID{Bytes: id, Valid: true}).Scan(
			&e.AggregateType, &aggregate, &e.AggregateVersion, &e.Type, &e.Key, &before, &after, &metadata, &e.OccurredAt)
		if err == nil {
			e.AggregateID, e.Before, e.After, e.Metadata, e.OccurredAt = aggregate.Bytes, before, after, metadata, e.OccurredAt.UTC()
			return e, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return domain.Event{}, fmt.Errorf("look for event %s: %w", id, err)
		}
	}
	return domain.Event{}, ErrNoEvent
}

// reached returns a position at which the events of a time begin, between first
// and end.
func reached(ctx context.Context, db querier, at time.Time, first, end int64) (int64, error) {
	for first < end {
		middle := first + (end-first)/2
		var position int64
		var occurred time.Time
		err := db.QueryRow(ctx, afterSQL, middle).Scan(&position, &occurred)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			end = middle
		case err != nil:
			return 0, fmt.Errorf("look for a time in the outbox: %w", err)
		case occurred.Before(at):
			first = position + 1
		default:
			end = middle
		}
	}
	return first, nil
}

// madeAt is the time in a UUIDv7.
func madeAt(id domain.ID) (time.Time, error) {
	if id[6]>>4 != 7 {
		return time.Time{}, ErrNoEvent
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(append([]byte{0, 0}, id[:6]...)))), nil
}
