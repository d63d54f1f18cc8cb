package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"outflow/domain"
)

// A Moment of an aggregate's past: a version of it, or a time when Version is
// 0.
type Moment struct {
	Version int64
	Time    time.Time
}

// Versions ascend with commits, and times nearly so: clocks of several
// processes differ. So a time means the highest version that was made up to it.
const (
	selectVersion = `SELECT after FROM outbox WHERE aggregate_id = $1 AND aggregate_type = $2 AND aggregate_version = $3`
	selectAsOf    = `SELECT after FROM outbox WHERE aggregate_id = $1 AND aggregate_type = $2 AND occurred_at <= $3
ORDER BY aggregate_version DESC LIMIT 1`
)

// CustomerAt returns a customer as it was. It returns CodeNotFound if there was
// none then: not yet, no more, or never.
func (s *Store) CustomerAt(ctx context.Context, id domain.ID, m Moment) (domain.Customer, error) {
	return past[domain.Customer](ctx, s, domain.AggregateCustomer, id, m)
}

// OrderAt returns an order as it was. It returns CodeNotFound if there was none
// then: not yet, no more, or never.
func (s *Store) OrderAt(ctx context.Context, id domain.ID, m Moment) (domain.Order, error) {
	return past[domain.Order](ctx, s, domain.AggregateOrder, id, m)
}

func past[T any](ctx context.Context, s *Store, aggregateType string, id domain.ID, m Moment) (t T, err error) {
	sql, when := selectVersion, any(m.Version)
	if m.Version == 0 {
		sql, when = selectAsOf, any(m.Time)
	}
	var after []byte
	err = s.pool.QueryRow(ctx, sql, uuidOf(id), aggregateType, when).Scan(&after)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && after == nil: // not there, or deleted by that event
		return t, notFound(aggregateType)
	case err != nil:
		return t, wrap("read the past of "+aggregateType, err)
	}
	if err := json.Unmarshal(after, &t); err != nil {
		return t, fmt.Errorf("read %s %s as it was: %w", aggregateType, id, err)
	}
	return t, nil
}
