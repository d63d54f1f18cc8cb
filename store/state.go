package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

// The states of rows, deleted ones included, for whoever compares copies with
// them. Both read by primary key, so that a page costs the same anywhere.
const (
	selectCustomerStates = `SELECT ` + customerColumns + `, c.deleted_at FROM customers c`
	selectOrderStates    = `SELECT ` + orderColumns + `, o.deleted_at FROM orders o`
)

// States returns the state of up to limit customers or orders whose ids come
// after one, in the order of their ids, deleted ones included. A state is what
// the entity's last event says, without its id, type, before and metadata:
// After is nil once the entity is deleted.
func (s *Store) States(ctx context.Context, aggregateType string, after domain.ID, limit int) ([]domain.Event, error) {
	return s.states(ctx, aggregateType, ` WHERE %[1]s.id > $1 ORDER BY %[1]s.id LIMIT $2`, uuidOf(after), limit)
}

// StatesOf returns the states of those entities, among those with the ids,
// that there are, in any order.
func (s *Store) StatesOf(ctx context.Context, aggregateType string, ids []domain.ID) ([]domain.Event, error) {
	return s.states(ctx, aggregateType, ` WHERE %[1]s.id = ANY ($1::uuid[])`, uuidsOf(ids))
}

func (s *Store) states(ctx context.Context, aggregateType, where string, args ...any) ([]domain.Event, error) {
	const doing = "read the states of entities"
	var rows pgx.Rows
	var err error
	scan := scanCustomerState
	switch aggregateType {
	case domain.AggregateCustomer:
		rows, err = s.pool.Query(ctx, selectCustomerStates+fmt.Sprintf(where, "c"), args...)
	case domain.AggregateOrder:
		scan = scanOrderState
		rows, err = s.pool.Query(ctx, selectOrderStates+fmt.Sprintf(where, "o"), args...)
	default:
		return nil, fmt.Errorf("%s: there are none of type %s", doing, aggregateType)
	}
	if err != nil {
		return nil, wrap(doing, err)
	}
	found, err := collect(rows, scan)
	return found, wrap(doing, err)
}

func scanCustomerState(row pgx.Row) (domain.Event, error) {
	var deletedAt *time.Time
	c, err := scanCustomer(row, &deletedAt)
	if err != nil {
		return domain.Event{}, err
	}
	return stateOf(domain.AggregateCustomer, c.ID, c.Version, c.UpdatedAt, deletedAt, c)
}

func scanOrderState(row pgx.Row) (domain.Event, error) {
	var deletedAt *time.Time
	var r orderRow
	if err := row.Scan(append(r.targets(), &deletedAt)...); err != nil {
		return domain.Event{}, err
	}
	o := r.order()
	return stateOf(domain.AggregateOrder, o.ID, o.Version, o.UpdatedAt, deletedAt, o)
}

func stateOf(aggregateType string, id domain.ID, version int64, updatedAt time.Time, deletedAt *time.Time, entity any) (domain.Event, error) {
	e := domain.Event{AggregateType: aggregateType, AggregateID: id, AggregateVersion: version, Key: id.String(), OccurredAt: updatedAt}
	if deletedAt != nil {
		e.OccurredAt = deletedAt.UTC()
		return e, nil
	}
	var err error
	e.After, err = json.Marshal(entity)
	return e, err
}

const selectEvents = `SELECT o.event_id, o.aggregate_type, o.aggregate_id, o.aggregate_version, o.type, o.key, o.before, o.after, o.metadata, o.occurred_at
FROM unnest($2::uuid[], $3::bigint[]) AS w (id, version)
JOIN outbox o ON o.aggregate_id = w.id AND o.aggregate_version = w.version AND o.aggregate_type = $1`

// Events returns those events, among the ones that gave entities of a type
// their versions, which the outbox still holds, in any order.
func (s *Store) Events(ctx context.Context, aggregateType string, versions map[domain.ID]int64) ([]domain.Event, error) {
	var ids []pgtype.UUID
	var at []int64
	for id, v := range versions {
		ids, at = append(ids, uuidOf(id)), append(at, v)
	}
	rows, err := s.pool.Query(ctx, selectEvents, aggregateType, ids, at)
	if err != nil {
		return nil, wrap("read events", err)
	}
	found, err := collect(rows, scanEvent)
	return found, wrap("read events", err)
}
