package outbox

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

const (
	eventColumns = `event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at`
	scanPage     = 5000

	selectByPosition = `SELECT ` + eventColumns + `, position FROM outbox
WHERE position > $1 AND position <= $2 AND aggregate_type = ANY ($3) ORDER BY position LIMIT $4`
	// A row of a transaction that is still to come was restored from another
	// cluster: it was there before the snapshot.
	selectByAggregate = `SELECT ` + eventColumns + `, position,
    pg_visible_in_snapshot(xid, $5::pg_snapshot) OR xid >= pg_snapshot_xmax(pg_current_snapshot()) FROM outbox
WHERE (aggregate_id, aggregate_version, position) > ($1, $2, $3) ORDER BY aggregate_id, aggregate_version, position LIMIT $4`
	selectByVersion = `SELECT ` + eventColumns + `, true FROM unnest($1::uuid[], $2::bigint[]) AS w (id, version)
JOIN outbox o ON o.aggregate_id = w.id AND o.aggregate_version = w.version`
)

// Log reads the event log as it is stored. None of its readings is one snapshot:
// each page shows what was committed when it was read. Of one aggregate, none
// shows an event without those before it.
type Log struct{ conn *pgx.Conn }

// OpenLog connects. Close it after use.
func OpenLog(ctx context.Context, url string) (*Log, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	return &Log{conn}, nil
}

// Close ends the connection.
func (l *Log) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.conn.Close(ctx)
}

// Extent says what the log holds.
type Extent struct {
	Events   int64 // of the types that were asked for
	Last     int64 // the last position
	Complete bool  // whether it begins where the log began: nothing was dropped
}

// Extent counts.
func (l *Log) Extent(ctx context.Context, aggregateTypes ...string) (x Extent, err error) {
	err = l.conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE aggregate_type = ANY ($1)), coalesce(max(position), 0) FROM outbox`, aggregateTypes).Scan(&x.Events, &x.Last)
	if err != nil {
		return x, fmt.Errorf("count the outbox: %w", err)
	}
	var bounds []string
	err = l.conn.QueryRow(ctx, `SELECT array(SELECT pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'outbox'::regclass)`).Scan(&bounds)
	if err != nil {
		return x, fmt.Errorf("look at the outbox's partitions: %w", err)
	}
	for _, b := range bounds {
		x.Complete = x.Complete || strings.Contains(b, "MINVALUE")
	}
	return x, nil
}

// AwaitVisible returns once readings show whatever is in Kafka when it is called.
// A transaction is in the WAL, and so published, before it is visible: with a
// synchronous standby, as long before as that takes. They become visible in the
// order of the WAL, so those that are in it already do before one that is
// committed now.
func (l *Log) AwaitVisible(ctx context.Context) error {
	if _, err := l.conn.Exec(ctx, `SELECT pg_logical_emit_message(true, 'outflow', '')`); err != nil {
		return fmt.Errorf("wait until what is published is visible: %w", err)
	}
	return nil
}

// ByPosition calls each with the events of some aggregate types after a
// position, a page at a time, up to the end as it is now, and with the position
// of the last. Events of one aggregate come in their order. Whatever is in Kafka
// when it is called is among them.
func (l *Log) ByPosition(ctx context.Context, aggregateTypes []string, after int64, each func(events []domain.Event, last int64) error) error {
	if err := l.AwaitVisible(ctx); err != nil {
		return err
	}
	var end int64
	if err := l.conn.QueryRow(ctx, `SELECT coalesce(max(position), 0) FROM outbox`).Scan(&end); err != nil {
		return fmt.Errorf("read the end of the outbox: %w", err)
	}
	for {
		rows, err := l.conn.Query(ctx, selectByPosition, after, end, aggregateTypes, scanPage)
		if err != nil {
			return fmt.Errorf("read the outbox: %w", err)
		}
		page, err := collectEvents(rows, &after)
		switch {
		case err != nil:
			return err
		case len(page) == 0:
			return nil
		}
		if err := each(page, after); err != nil {
			return err
		}
	}
}

// Snapshot is the text of what is committed now, for ByAggregate.
func (l *Log) Snapshot(ctx context.Context) (text string, err error) {
	if err = l.conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&text); err != nil {
		err = fmt.Errorf("take a snapshot: %w", err)
	}
	return text, err
}

// ByAggregate calls each for all events, ordered by aggregate, version and
// position: nothing but who writes them keeps two from having one version. shown
// says whether the event was committed when the snapshot was taken.
func (l *Log) ByAggregate(ctx context.Context, snapshot string, each func(e domain.Event, shown bool) error) error {
	var id domain.ID
	version, position := int64(-1), int64(0)
	for {
		rows, err := l.conn.Query(ctx, selectByAggregate, uuid(id), version, position, scanPage, snapshot)
		if err != nil {
			return fmt.Errorf("read the outbox: %w", err)
		}
		var shown []bool
		var one bool
		var page []domain.Event
		for rows.Next() {
			e, err := scanEvent(rows, &position, &one)
			if err != nil {
				rows.Close()
				return err
			}
			page, shown = append(page, e), append(shown, one)
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("read the outbox: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		for i, e := range page {
			if err := each(e, shown[i]); err != nil {
				return err
			}
		}
		id, version = page[len(page)-1].AggregateID, page[len(page)-1].AggregateVersion
	}
}

// At returns those events that gave aggregates their versions; ids and versions
// go in pairs.
func (l *Log) At(ctx context.Context, ids []domain.ID, versions []int64) ([]domain.Event, error) {
	keys := make([]pgtype.UUID, len(ids))
	for i, id := range ids {
		keys[i] = uuid(id)
	}
	rows, err := l.conn.Query(ctx, selectByVersion, keys, versions)
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	var ok bool
	return collectEvents(rows, &ok)
}

// collectEvents reads events and, after each, what extra points to.
func collectEvents(rows pgx.Rows, extra any) ([]domain.Event, error) {
	defer rows.Close()
	var page []domain.Event
	for rows.Next() {
		e, err := scanEvent(rows, extra)
		if err != nil {
			return nil, err
		}
		page = append(page, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	return page, nil
}

func scanEvent(row pgx.Row, extra ...any) (domain.Event, error) {
	var e domain.Event
	var id, aggregate pgtype.UUID
	var before, after, metadata []byte
	targets := []any{&id, &e.AggregateType, &aggregate, &e.AggregateVersion, &e.Type, &e.Key, &before, &after, &metadata, &e.OccurredAt}
	if err := row.Scan(append(targets, extra...)...); err != nil {
		return e, fmt.Errorf("read the outbox: %w", err)
	}
	e.ID, e.AggregateID = id.Bytes, aggregate.Bytes
	e.Before, e.After, e.Metadata = before, after, metadata
	e.OccurredAt = e.OccurredAt.UTC()
	return e, nil
}
