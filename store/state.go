package store

import (
	"context"
	"encoding/binary"
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
// That is all there is to a state, so no entity is made of a row, which would
// take longer than everything else in a comparison.
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

// State is what the row of a customer or an order says of it.
type State struct {
	ID        domain.ID
	Version   int64
	DeletedAt time.Time // zero while it is there
	Members   []Member  // of its JSON, in their order, without those that it leaves out; none once it is deleted
}

// Member is a member of an entity's JSON.
type Member struct {
	Name  string
	Kind  Kind
	Bytes []byte    // of Text and of JSON
	Long  int64     // of Long
	Time  time.Time // of Time, in UTC
}

// Kind says what the value of a [Member] is.
type Kind byte

// The kinds.
const (
	Text Kind = iota // UTF-8, not quoted
	JSON             // valid JSON
	Long
	Time // text in JSON
)

// EachState calls each with the states of up to limit customers or orders whose
// ids come after one, in the order of their ids, deleted ones included. What
// each gets is its own until it returns.
func (s *Store) EachState(ctx context.Context, aggregateType string, after domain.ID, limit int, each func(*State) error) error {
	return s.states(ctx, aggregateType, each, ` WHERE %[1]s.id > $1 ORDER BY %[1]s.id LIMIT $2`, uuidOf(after), limit)
}

// States is [Store.EachState] with events: each is what the entity's last event
// says, without its id, type, key, before and metadata, and with the time of a
// deletion alone. After is nil once the entity is deleted.
func (s *Store) States(ctx context.Context, aggregateType string, after domain.ID, limit int) ([]domain.Event, error) {
	states := asEvents{aggregateType: aggregateType, found: make([]domain.Event, 0, limit)}
	err := s.EachState(ctx, aggregateType, after, limit, states.add)
	return states.found, err
}

// StatesOf returns the states of those entities, among those with the ids,
// that there are, in any order, as [Store.States] does.
func (s *Store) StatesOf(ctx context.Context, aggregateType string, ids []domain.ID) ([]domain.Event, error) {
	states := asEvents{aggregateType: aggregateType, found: make([]domain.Event, 0, len(ids))}
	err := s.states(ctx, aggregateType, states.add, ` WHERE %[1]s.id = ANY ($1::uuid[])`, uuidsOf(ids))
	return states.found, err
}

func (s *Store) states(ctx context.Context, aggregateType string, each func(*State) error, where string, args ...any) error {
	const doing = "read the states of entities"
	var query string
	switch aggregateType {
	case domain.AggregateCustomer:
		query = selectCustomerStates + fmt.Sprintf(where, "c")
	case domain.AggregateOrder:
		query = selectOrderStates + fmt.Sprintf(where, "o")
	default:
		return fmt.Errorf("%s: there are none of type %s", doing, aggregateType)
	}
	// The values are decoded here, and so have to come in one form, whatever
	// the pool's mode is.
	formats := pgx.QueryResultFormatsByOID{}
	for _, oid := range []uint32{pgtype.UUIDOID, pgtype.TextOID, pgtype.TimestamptzOID, pgtype.JSONOID, pgtype.Int8OID} {
		formats[oid] = pgx.BinaryFormatCode
	}
	rows, err := s.pool.Query(ctx, query, append([]any{pgx.QueryExecModeCacheDescribe, formats}, args...)...)
	if err != nil {
		return wrap(doing, err)
	}
	defer rows.Close()
	var row stateRow
	for rows.Next() {
		if row.columns == nil {
			row.columns = rows.FieldDescriptions()
		}
		if err := row.decode(rows.RawValues()); err != nil {
			return wrap(doing, err)
		}
		if err := each(&row.State); err != nil {
			return err
		}
	}
	return wrap(doing, rows.Err())
}

// About returns about how many customers or orders there are, deleted ones
// included: what PostgreSQL estimates, and counted when it has never looked.
func (s *Store) About(ctx context.Context, aggregateType string) (n int64, err error) {
	const doing = "count rows"
	table, ok := map[string]string{domain.AggregateCustomer: "customers", domain.AggregateOrder: "orders"}[aggregateType]
	if !ok {
		return 0, fmt.Errorf("%s: there are none of type %s", doing, aggregateType)
	}
	if err := s.pool.QueryRow(ctx, `SELECT reltuples::bigint FROM pg_class WHERE oid = $1::regclass`, table).Scan(&n); err != nil || n >= 0 {
		return n, wrap(doing, err)
	}
	err = s.pool.QueryRow(ctx, `SELECT count(*) FROM `+table).Scan(&n)
	return n, wrap(doing, err)
}

// AwaitVisible returns once readings show whatever is in the write-ahead log when
// it is called, and so whatever copies made of events have then. With a
// synchronous standby that may be long after: what waits for it becomes visible
// in the log's order, and so before a commit that is added now.
func (s *Store) AwaitVisible(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// A commit whose wait is cut short is a commit, and others still wait.
		_, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0; SELECT pg_logical_emit_message(true, 'outflow', '')`)
		return err
	})
	return wrap("wait until what is committed is visible", err)
}

// stateRow is one row after the other.
type stateRow struct {
	State
	columns []pgconn.FieldDescription
	ids     []byte // the text of ids among the members
}

func (r *stateRow) decode(values [][]byte) error {
	r.ID, r.Version = domain.ID(values[0]), int64(binary.BigEndian.Uint64(values[1]))
	r.Members, r.ids, r.DeletedAt = r.Members[:0], r.ids[:0], time.Time{}
	if values[2] != nil {
		r.DeletedAt = timestamp(values[2])
		return nil
	}
	for i, c := range r.columns[3:] {
		v := values[3+i]
		if v == nil {
			continue
		}
		m := Member{Name: c.Name}
		switch c.DataTypeOID {
		case pgtype.UUIDOID:
			from := len(r.ids)
			r.ids, _ = domain.ID(v).AppendText(r.ids) // which never fails
			m.Bytes = r.ids[from:]
		case pgtype.TextOID:
			m.Bytes = v
		case pgtype.JSONOID:
			m.Kind, m.Bytes = JSON, v
		case pgtype.Int8OID:
			m.Kind, m.Long = Long, int64(binary.BigEndian.Uint64(v))
		case pgtype.TimestamptzOID:
			m.Kind, m.Time = Time, timestamp(v)
		default:
			return fmt.Errorf("column %s has a type that states don't have", c.Name)
		}
		r.Members = append(r.Members, m)
	}
	return nil
}

// timestamp is a timestamptz as PostgreSQL sends it: microseconds since 2000.
func timestamp(v []byte) time.Time {
	return time.UnixMicro(int64(binary.BigEndian.Uint64(v)) + year2000).UTC()
}

const year2000 = 946684800_000_000 // in microseconds of Unix time

// asEvents makes events of states.
type asEvents struct {
	aggregateType string
	found         []domain.Event
	space         []byte // for the JSON of the next
}

// stateSpace is how much is allocated at a time for the JSON of states: that of
// some dozens.
const stateSpace = 32 << 10

func (a *asEvents) add(s *State) error {
	e := domain.Event{AggregateType: a.aggregateType, AggregateID: s.ID, AggregateVersion: s.Version, OccurredAt: s.DeletedAt}
	if s.DeletedAt.IsZero() {
		if cap(a.space) < stateSpace/16 {
			a.space = make([]byte, 0, stateSpace)
		}
		b := s.appendJSON(a.space)
		e.After, a.space = b[:len(b):len(b)], b[len(b):]
	}
	a.found = append(a.found, e)
	return nil
}

func (s *State) appendJSON(b []byte) []byte {
	for i, m := range s.Members {
		if i == 0 {
			b = append(b, '{')
		} else {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), m.Name...), `":`...)
		switch m.Kind {
		case Text:
			b = appendText(b, m.Bytes)
		case JSON:
			b = append(b, m.Bytes...)
		case Long:
			b = strconv.AppendInt(b, m.Long, 10)
		case Time:
			b = append(m.Time.AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
		}
	}
	return append(b, '}')
}

// appendText appends a text, which PostgreSQL has found to be UTF-8, as JSON.
func appendText(b, text []byte) []byte {
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
