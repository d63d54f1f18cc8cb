package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/internal/failpoint"
)

const (
	// wideWindow is from how many transactions on a window is read in parts by
	// position, each by its own statement: no snapshot is held for long, and
	// the server needn't sort what may be the whole outbox.
	wideWindow = 20_000
	// windowPart is how many rows such a part has at most.
	windowPart = 50_000
	// nearTip is how many bytes of the log a stream may have to catch up with
	// when it takes over from the windows.
	nearTip = 16 << 20
	// handoverTries is how often a window may end farther from the tip than
	// that before the stream takes over all the same.
	handoverTries = 20
)

// windows publishes by snapshot difference. With a slot it ends when the
// stream can take over.
func (s *session) windows(soft, hard context.Context, pub *publisher) error {
	state := StatePolling
	if s.slot != nil {
		state = StateCatchingUp
	}
	s.setState(state)
	return s.phase(soft, hard, pub, func(ctx context.Context, out chan<- chunk) error {
		r := &windowReader{session: s, out: out, at: pub.done}
		var err error
		if r.left, err = s.exclude(ctx, &r.at); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		if s.slot != nil {
			defer s.slot.wait()
		}
		defer cancel()
		return r.run(ctx)
	})
}

// A windowReader reads the outbox one window after the other. A window is
// what one snapshot shows and the one before does not; its rows are the same
// whenever it is read.
type windowReader struct {
	*session
	out chan<- chunk
	at  progress // what has been handed over

	left *exclusion // nil, but on the way from a checkpoint

	highest int64 // position that was read
	buf     chunk // what is being gathered
	bytes   int
	rows    int  // of the part that is being read
	flushed bool // the window's transactions are known to be on disk
}

// A proof lets the stream take over: with log position L read first and then
// a transaction id X taken, all that committed up to L is visible in every
// snapshot whose xmin is past X.
type proof struct {
	lsn lsn
	xid uint64
}

func (w *windowReader) run(ctx context.Context) error {
	var p *proof
	tries := 0
	for {
		ready := false
		if w.slot != nil {
			var err error
			if ready, err = w.slot.ready(ctx); err != nil {
				return err
			}
			if ready && p == nil {
				if p, err = w.prove(ctx); err != nil {
					return err
				}
			}
		}
		n, tip, err := w.window(ctx)
		if err != nil {
			return err
		}
		if ready && p != nil && (w.at.Prev.xmin > p.xid || failpoint.Mutant("relay.no-proof")) {
			if tries++; tip-p.lsn <= nearTip || tries > handoverTries {
				if err := w.Relay.at(failpoint.RelayHandover); err != nil {
					return err
				}
				w.at.Phase, w.at.LSN = phaseStream, p.lsn
				return send(ctx, w.out, chunk{marked: true, force: true, at: w.at})
			}
			p = nil // too long ago; the next one is nearer
			continue
		}
		if n == 0 {
			if err := pause(ctx, w.cfg.PollInterval); err != nil {
				return err
			}
		}
	}
}

func (w *windowReader) prove(ctx context.Context) (*proof, error) {
	var p proof
	var at string
	if err := w.db.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&at); err != nil {
		return nil, fmt.Errorf("read the log position: %w", err)
	}
	if err := p.lsn.UnmarshalText([]byte(at)); err != nil {
		return nil, err
	}
	// A statement of its own, after the first: that order is the proof.
	var err error
	p.xid, err = w.takeXid(ctx)
	return &p, err
}

// window reads what is left of the window that was begun, or the next one. It
// returns how many rows it had, and the tip of the log when it was taken.
func (w *windowReader) window(ctx context.Context) (n int, tip lsn, err error) {
	now := w.at.Now
	taken, tip, err := w.snapshot(ctx)
	if err != nil {
		return 0, 0, err
	}
	if now.isZero() {
		if now = taken; now.equal(w.at.Prev) {
			return 0, tip, nil
		}
		w.at.Position, w.at.PrevLSN = 0, tip
		if w.at.Prev.equal(noTransactions) {
			if now, w.at.PrevLSN, w.at.Epoch, err = w.restored(ctx); err != nil {
				return 0, 0, err
			}
		}
	}
	w.at.Now, w.flushed = now, false
	wide := now.xmax-w.at.Prev.xmax > wideWindow || w.at.Prev.equal(noTransactions)
	for {
		w.rows = 0
		if err := w.part(ctx, wide); err != nil {
			return 0, 0, err
		}
		n += w.rows
		if !wide || w.rows < windowPart {
			break
		}
	}
	w.at.Prev, w.at.Now, w.at.Position = now, snapshot{}, 0
	if w.left != nil && now.xmin > w.at.Until {
		w.left, w.at.Xids, w.at.Offsets, w.at.Until = nil, nil, nil, 0
	}
	w.buf.at = w.at
	return n, tip, w.flush(ctx)
}

// restored takes the snapshot of the first window, and finds how far the rows
// go that came from another cluster: they are visible, and their transaction
// ids have not been given out here. One statement, and so one snapshot.
func (w *windowReader) restored(ctx context.Context) (now snapshot, end lsn, epoch int64, err error) {
	const query = `
SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, coalesce((SELECT max(position) FROM outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())), 0)`
	var text, at string
	if err := w.db.QueryRow(ctx, query).Scan(&text, &at, &epoch); err != nil {
		return now, 0, 0, fmt.Errorf("look for restored rows: %w", err)
	}
	if err := end.UnmarshalText([]byte(at)); err != nil {
		return now, 0, 0, err
	}
	now, err = parseSnapshot(text)
	return now, end, epoch, err
}

// query selects the rows of the window that come after Position.
func (w *windowReader) query(wide bool) string {
	prev, now := w.at.Prev, w.at.Now
	cond := fmt.Sprintf(`xid >= '%d'::xid8`, prev.xmax)
	if len(prev.xip) > 0 && !failpoint.Mutant("relay.no-xip") {
		// By id, so that one long transaction doesn't make every window begin
		// at its beginning.
		cond = fmt.Sprintf(`(%s OR xid = ANY ('{%s}'::xid8[]))`, cond, joinXids(prev.xip))
	}
	cond += fmt.Sprintf(` AND xid < '%d'::xid8 AND pg_visible_in_snapshot(xid, '%s')`, now.xmax, now)
	switch {
	case w.at.Epoch > 0 && prev.equal(noTransactions):
		cond = fmt.Sprintf(`(position <= %d OR %s)`, w.at.Epoch, cond)
	case w.at.Epoch > 0:
		cond += fmt.Sprintf(` AND position > %d`, w.at.Epoch)
	}
	cond += fmt.Sprintf(` AND position > %d`, w.at.Position)
	if wide {
		return fmt.Sprintf(`COPY (SELECT %s FROM outbox WHERE %s ORDER BY position LIMIT %d) TO STDOUT (FORMAT binary)`, columnList, cond, windowPart)
	}
	// Materialised, or the planner might walk through the whole outbox by
	// position to save the sort.
	return fmt.Sprintf(`COPY (WITH w AS MATERIALIZED (SELECT %s FROM outbox WHERE %s) SELECT %s FROM w ORDER BY position) TO STDOUT (FORMAT binary)`, columnList, cond, columnList)
}

func (w *windowReader) part(ctx context.Context, wide bool) error {
	return w.db.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		copied := &copyReader{row: func(v *values) error { return w.row(ctx, v) }}
		if _, err := c.Conn().PgConn().CopyTo(ctx, copied, w.query(wide)); err != nil {
			if copied.err != nil {
				err = copied.err
			}
			return fmt.Errorf("read a window of the outbox: %w", err)
		}
		return copied.finish()
	})
}

func (w *windowReader) row(ctx context.Context, v *values) error {
	if !w.flushed && !failpoint.Mutant("relay.no-barrier") {
		if err := barrier(ctx, w.db); err != nil {
			return err
		}
		w.flushed = true
	}
	var r row
	if err := r.decode(v); err != nil {
		return err
	}
	w.rows++
	w.at.Position, w.highest = r.position, max(w.highest, r.position)
	if w.left.has(&r) {
		return nil
	}
	rec := w.cfg.Namespace.Record(&r.Event)
	w.buf.records = append(w.buf.records, rec)
	w.bytes += len(rec.Value)
	if len(w.buf.records) >= chunkEvents || w.bytes >= chunkBytes {
		w.buf.at = w.at
		return w.flush(ctx)
	}
	return nil
}

// barrier returns when everything that is visible is on disk. A transaction
// that committed with synchronous_commit off is visible before it is, and a
// crash would take it back, with its transaction id to be used again.
func barrier(ctx context.Context, db *pgxpool.Pool) error {
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SELECT set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, 'outflow', '')`)
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the log to be on disk: %w", err)
	}
	return nil
}

// flush hands over what was gathered. Any row of a window is an edge: what
// is left of the window can be read later.
func (w *windowReader) flush(ctx context.Context) error {
	c := w.buf
	c.marked, c.whole, c.position = true, len(c.records), w.highest
	w.buf, w.bytes = chunk{}, 0
	return send(ctx, w.out, c)
}

// copyReader takes apart what COPY ... (FORMAT binary) writes. Its rows point
// into what was written and are valid until row returns.
type copyReader struct {
	row  func(*values) error
	err  error // of row
	rest []byte
	head bool // the header was read
	done bool // the trailer was read
	vals values
}

var copySignature = []byte("PGCOPY\n\xff\r\n\x00")

// Write implements [io.Writer].
func (c *copyReader) Write(p []byte) (int, error) {
	b := p
	if len(c.rest) > 0 {
		c.rest = append(c.rest, p...)
		b = c.rest
	}
	for {
		n, err := c.next(b)
		if err != nil {
			c.err = err
			return 0, err
		}
		if n == 0 {
			break
		}
		b = b[n:]
	}
	c.rest = append(c.rest[:0], b...)
	return len(p), nil
}

var errCopyFormat = errors.New("COPY sent what is not its binary format")

// next reads the header, a row or the trailer at the beginning of b and
// returns its length, 0 if it is not complete.
func (c *copyReader) next(b []byte) (int, error) {
	if !c.head {
		if len(b) < 19 {
			return 0, nil
		}
		if string(b[:11]) != string(copySignature) {
			return 0, errCopyFormat
		}
		n := 19 + int(binary.BigEndian.Uint32(b[15:]))
		if len(b) < n {
			return 0, nil
		}
		c.head = true
		return n, nil
	}
	if len(b) < 2 {
		return 0, nil
	}
	switch int16(binary.BigEndian.Uint16(b)) {
	case -1:
		c.done = true
		return 2, nil
	case numColumns:
	default:
		return 0, errCopyFormat
	}
	at := 2
	for i := range c.vals {
		if len(b) < at+4 {
			return 0, nil
		}
		size := int(int32(binary.BigEndian.Uint32(b[at:])))
		at += 4
		if size < 0 {
			c.vals[i] = nil
			continue
		}
		if len(b) < at+size {
			return 0, nil
		}
		c.vals[i] = b[at : at+size]
		at += size
	}
	return at, c.row(&c.vals)
}

func (c *copyReader) finish() error {
	if !c.done || len(c.rest) > 0 {
		return errCopyFormat
	}
	return nil
}
