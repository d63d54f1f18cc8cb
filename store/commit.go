package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/domain"
	"outflow/outbox"
)

// statement writes any number of changes of one kind, one per entity, together
// with their events. A change whose guard fails is left out, and its events
// with it; the others are not affected.
type statement struct {
	sql    string               // ends in outbox.Append
	keyed  string               // the same, which also stores what [Key]s were used for
	args   func([]change) []any // the parameters after those of outbox.Append: an array per column
	unique func(change) string  // what no two rows may have in common; nil for nothing
}

// newStatement makes a statement from its part before outbox.Append, which has
// a CTE "changed".
func newStatement(args func([]change) []any, changed string) *statement {
	first := outbox.AppendParams + len(args(nil)) + 1
	return &statement{sql: changed + outbox.Append, keyed: changed + insertKeys(first) + outbox.Append, args: args}
}

// apart tells what no two changes of one statement may have in common.
func (st *statement) apart(unique func(change) string) *statement {
	st.unique = unique
	return st
}

// queue adds the statement to a batch.
func (st *statement) queue(b *pgx.Batch, changes []change) *pgx.QueuedQuery {
	var entries outbox.Entries
	keyed := false
	for _, c := range changes {
		for _, e := range c.events {
			entries.Add(c.id, e)
		}
		keyed = keyed || c.record != nil
	}
	args := append(entries.Args(), st.args(changes)...)
	if keyed {
		return b.Queue(st.keyed, append(args, keyArgs(changes)...)...)
	}
	return b.Queue(st.sql, args...)
}

// change is a decision in the form that the database takes.
type change struct {
	id       domain.ID
	version  int64 // after the change; the row must be at the one before
	at       time.Time
	customer *domain.Customer // the row, unless the change deletes it or is about an order
	order    *domain.Order
	events   []domain.Event
	record   *record // what a request's key was used for; usually nil
}

// newChange encodes the states of a decision and makes its events. It returns
// CodeTooLarge if one of them is more than Kafka takes.
func newChange[T any](s *Store, aggregate string, id domain.ID, d domain.Change[T], m domain.Metadata) (change, error) {
	c := change{id: id, version: d.Version, at: d.At}
	e := domain.Event{
		ID: s.cfg.NewID(), AggregateType: aggregate, AggregateID: id, AggregateVersion: d.Version,
		Type: d.Type, Key: id.String(), OccurredAt: d.At,
	}
	var err error
	if e.Before, err = encode(d.Before); err != nil {
		return c, err
	}
	if e.After, err = encode(d.After); err != nil {
		return c, err
	}
	if e.Metadata, err = encode(&m); err != nil {
		return c, err
	}
	c.events = append(make([]domain.Event, 0, 1+len(d.Notifications)), e)

	// Whoever follows the causes back from a mail passes the change.
	m.CausationID = e.ID.String()
	for _, n := range d.Notifications {
		n.ID = s.cfg.NewID()
		request := domain.Event{
			ID: s.cfg.NewID(), AggregateType: domain.AggregateNotification, AggregateID: n.ID, AggregateVersion: 1,
			Type: domain.NotificationRequested, Key: n.CustomerID.String(), OccurredAt: d.At,
		}
		if request.After, err = encode(&n); err != nil {
			return c, err
		}
		if request.Metadata, err = encode(&m); err != nil {
			return c, err
		}
		c.events = append(c.events, request)
	}
	for _, e := range c.events {
		if err := outbox.CheckSize(e); err != nil {
			return c, err
		}
	}
	return c, nil
}

func encode[T any](v *T) (json.RawMessage, error) {
	if v == nil {
		return nil, nil
	}
	return json.Marshal(v)
}

// commit writes one change, and reports whether the entity was still as the
// decision found it. While the store runs, changes that arrive together share a
// statement; else, and when that fails, the change has one of its own.
func (s *Store) commit(ctx context.Context, st *statement, c change) (bool, error) {
	key := s.keyOf(ctx)
	c.record = key.recordOf(&c)
	written, err := false, errAlone
	if shared := s.shared.Load(); shared != nil {
		written, err = shared.commit(ctx, st, c)
	}
	if errors.Is(err, errAlone) {
		written, err = s.commitAlone(ctx, st, c)
	}
	if written {
		key.stored()
	}
	return written, err
}

func (s *Store) commitAlone(ctx context.Context, st *statement, c change) (bool, error) {
	done := written{}
	b := &pgx.Batch{}
	st.queue(b, []change{c}).Query(done.read)
	err := s.pool.SendBatch(ctx, b).Close()
	return err == nil && done[c.id], err
}

// written holds the aggregates that a statement has left events of.
type written map[domain.ID]bool

func (w written) read(rows pgx.Rows) error {
	defer rows.Close()
	for rows.Next() {
		var id pgtype.UUID
		if err := rows.Scan(&id); err != nil {
			return err
		}
		w[id.Bytes] = true
	}
	return rows.Err()
}

// reading is a query of one row, and what to do with it.
type reading struct {
	what string // for CodeNotFound
	sql  string
	lock string // the clause that locks the row for a change
	args []any
	// scan reads a row into what is its own; put hands that to whoever asked.
	scan func(pgx.Row) (put func(), err error)
}

// queue has the row read with a lock, in a batch that its caller waits for.
func (r reading) queue(b *pgx.Batch) {
	b.Queue(r.sql+r.lock, r.args...).QueryRow(func(row pgx.Row) error {
		put, err := r.scan(row)
		if err == nil {
			put()
		}
		return found(r.what, err)
	})
}

// optimisticAttempts is how often a change is tried without locking first: the
// usual case is that nobody else changes the entity. On a busy one everybody
// but the first would lose each time, so after that one waits in line.
const optimisticAttempts = 2

// modify reads an entity, decides, and writes if the entity is still what was
// decided on; else it does so again. decide returns nil for nothing to write.
func (s *Store) modify(ctx context.Context, r reading, st *statement, decide func() (*change, error)) error {
	attempt := 0
	return retry(ctx, func() error {
		attempt++
		if attempt > optimisticAttempts {
			return s.lockAndWrite(ctx, r.queue, st, func() ([]change, error) {
				c, err := decide()
				if err != nil || c == nil {
					return nil, err
				}
				return []change{*c}, nil
			})
		}
		if err := s.read(ctx, r); err != nil {
			return found(r.what, err)
		}
		c, err := decide()
		if err != nil || c == nil {
			return err
		}
		ok, err := s.commit(ctx, st, *c)
		if err == nil && !ok {
			return errMoved
		}
		return err
	})
}

// lockAndWrite runs a transaction in two round trips: what read queues (it
// locks, then reads) goes with the BEGIN, and the write of what decide returns
// goes with the COMMIT. decide returns no changes for nothing to write; what it
// returns must be about rows that are locked.
func (s *Store) lockAndWrite(ctx context.Context, read func(*pgx.Batch), st *statement, decide func() ([]change, error)) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	defer rollBack(ctx, conn)

	b := &pgx.Batch{}
	b.Queue("BEGIN")
	read(b)
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	changes, err := decide()
	if err != nil || len(changes) == 0 {
		return err
	}
	key := s.keyOf(ctx)
	changes[0].record = key.recordOf(&changes[0])
	done := written{}
	b = &pgx.Batch{}
	st.queue(b, changes).Query(done.read)
	b.Queue("COMMIT")
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	for _, c := range changes {
		if !done[c.id] {
			// Not possible while the row was locked. Neither its state nor its
			// events are there, so nothing is half-written even so.
			return fmt.Errorf("entity %s was locked at version %d, but not written", c.id, c.version-1)
		}
	}
	key.stored()
	return nil
}

// rollBack ends a transaction that is still open, so that the connection can
// go back to the pool. Release closes it if that fails.
func rollBack(ctx context.Context, conn *pgxpool.Conn) {
	if pg := conn.Conn().PgConn(); pg.IsClosed() || pg.TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	_, _ = conn.Exec(ctx, "ROLLBACK") // Release looks at what came of it
}
