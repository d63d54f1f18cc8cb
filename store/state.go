package store

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

// The states of rows, deleted ones included, for whoever compares copies with
// them: id, version, and when it was deleted; then the members of the entity's
// JSON by their names and in their order, NULL for those that it leaves out.
// That is all there is to a state, so rows become JSON without being decoded,
// which takes as long as everything else in a comparison.
const (
	selectCustomerStates = `SELECT c.id, c.version, c.deleted_at,
    c.id, c.version, c.name, c.email, NULLIF(c.phone, '') AS phone, c.address, c.status,
    CASE WHEN c.spending_limit_amount IS NOT NULL
        THEN json_build_object('amount', c.spending_limit_amount, 'currency', c.spending_limit_currency) END AS spending_limit,
    CASE WHEN c.metadata::text <> '{}' THEN c.metadata END AS metadata, c.created_at, c.updated_at
FROM customers c`
	selectOrderStates = `SELECT o.id, o.version, o.deleted_at,
    o.id, o.version, o.customer_id, o.currency, o.items, o.total, o.status, NULLIF(o.reason, '') AS reason, o.created_at, o.updated_at
FROM orders o`
)

// States returns the state of up to limit customers or orders whose ids come
// after one, in the order of their ids, deleted ones included. A state is what
// the entity's last event says, without its id, type, key, before and metadata, and
// with the time of a deletion alone: After is nil once the entity is deleted.
func (s *Store) States(ctx context.Context, aggregateType string, after domain.ID, limit int) ([]domain.Event, error) {
	return s.states(ctx, aggregateType, limit, ` WHERE %[1]s.id > $1 ORDER BY %[1]s.id LIMIT $2`, uuidOf(after), limit)
}

// StatesOf returns the states of those entities, among those with the ids,
// that there are, in any order.
func (s *Store) StatesOf(ctx context.Context, aggregateType string, ids []domain.ID) ([]domain.Event, error) {
	return s.states(ctx, aggregateType, len(ids), ` WHERE %[1]s.id = ANY ($1::uuid[])`, uuidsOf(ids))
}

func (s *Store) states(ctx context.Context, aggregateType string, most int, where string, args ...any) ([]domain.Event, error) {
	const doing = "read the states of entities"
	var rows pgx.Rows
	var err error
	switch aggregateType {
	case domain.AggregateCustomer:
		rows, err = s.pool.Query(ctx, selectCustomerStates+fmt.Sprintf(where, "c"), args...)
	case domain.AggregateOrder:
		rows, err = s.pool.Query(ctx, selectOrderStates+fmt.Sprintf(where, "o"), args...)
	default:
		return nil, fmt.Errorf("%s: there are none of type %s", doing, aggregateType)
	}
	if err != nil {
		return nil, wrap(doing, err)
	}
	r, err := newStateRow(aggregateType, rows.FieldDescriptions())
	if err != nil {
		rows.Close()
		return nil, wrap(doing, err)
	}
	found, err := collectInto(make([]domain.Event, 0, most), rows, r.scan)
	return found, wrap(doing, err)
}

// stateRow makes events of rows.
type stateRow struct {
	aggregateType string
	id            pgtype.UUID
	version       int64
	deletedAt     pgtype.Timestamptz
	members       []member
	targets       []any  // what a row is scanned into
	space         []byte // for the JSON of the next rows
}

// stateSpace is how much is allocated at a time for the JSON of rows: that of
// some dozens.
const stateSpace = 32 << 10

// member is a member of an entity's JSON.
type member struct {
	name  string                // and the colon after it
	value func(b []byte) []byte // appends it; nothing when it is left out
}

func newStateRow(aggregateType string, columns []pgconn.FieldDescription) (*stateRow, error) {
	r := &stateRow{aggregateType: aggregateType}
	r.targets = []any{&r.id, &r.version, &r.deletedAt}
	for _, c := range columns[len(r.targets):] {
		m := member{name: `"` + c.Name + `":`}
		var target any
		switch c.DataTypeOID {
		case pgtype.UUIDOID:
			var v pgtype.UUID
			target, m.value = &v, func(b []byte) []byte {
				if !v.Valid {
					return b
				}
				return append(append(append(b, '"'), domain.ID(v.Bytes).String()...), '"')
			}
		case pgtype.TextOID:
			var v pgtype.DriverBytes
			target, m.value = &v, func(b []byte) []byte { return appendText(b, v) }
		case pgtype.TimestamptzOID:
			var v pgtype.Timestamptz
			target, m.value = &v, func(b []byte) []byte {
				if !v.Valid {
					return b
				}
				return append(v.Time.UTC().AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
			}
		case pgtype.JSONOID:
			var v pgtype.DriverBytes
			target, m.value = &v, func(b []byte) []byte { return append(b, v...) }
		case pgtype.Int8OID:
			var v pgtype.Int8
			target, m.value = &v, func(b []byte) []byte {
				if !v.Valid {
					return b
				}
				return strconv.AppendInt(b, v.Int64, 10)
			}
		default:
			return nil, fmt.Errorf("column %s has a type that states don't have", c.Name)
		}
		r.targets, r.members = append(r.targets, target), append(r.members, m)
	}
	return r, nil
}

func (r *stateRow) scan(row pgx.Row) (domain.Event, error) {
	if err := row.Scan(r.targets...); err != nil {
		return domain.Event{}, err
	}
	e := domain.Event{AggregateType: r.aggregateType, AggregateID: r.id.Bytes, AggregateVersion: r.version}
	if r.deletedAt.Valid {
		e.OccurredAt = r.deletedAt.Time.UTC()
		return e, nil
	}
	if cap(r.space) < stateSpace/16 {
		r.space = make([]byte, 0, stateSpace)
	}
	b := r.space
	for _, m := range r.members {
		before := len(b)
		b = append(append(b, ','), m.name...)
		value := len(b)
		if b = m.value(b); len(b) == value {
			b = b[:before]
		}
	}
	b[0] = '{' // the first comma
	b = append(b, '}')
	e.After, r.space = b[:len(b):len(b)], b[len(b):]
	return e, nil
}

// appendText appends a text, which PostgreSQL has found to be UTF-8, as JSON;
// nothing for NULL.
func appendText(b, text []byte) []byte {
	if text == nil {
		return b
	}
	for _, c := range text {
		if c < ' ' || c == '"' || c == '\\' {
			return append(b, jsonOf(string(text), false)...)
		}
	}
	return append(append(append(b, '"'), text...), '"')
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
