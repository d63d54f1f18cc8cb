package outbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"

	"outflow/internal/failpoint"
)

const (
	// readBuffer is that of the replication connection: what the server sends
	// while the relay is busy is then read at once.
	readBuffer = 1 << 20
	// A reader that keeps up makes the server slower: it is woken for every
	// small message. So when events come closer than busyGap, the next read
	// waits for gather.
	busyGap = time.Millisecond
	gather  = 300 * time.Microsecond
	// statusInterval is how often the server hears from the relay, whatever
	// the relay waits for; it ends connections that are silent for
	// wal_sender_timeout (a minute by default).
	statusInterval = time.Second
	// farBehind is from how many bytes on the slot is advanced before it is
	// streamed from: that skips without decoding.
	farBehind = 16 << 20
)

// stream publishes by logical decoding.
func (s *session) stream(soft, hard context.Context, pub *publisher) error {
	from := pub.done
	catchUp, err := s.checkSlot(soft, from.LSN)
	if err != nil {
		return err
	}
	if catchUp {
		return s.fallBack(soft, &pub.done)
	}
	// What an earlier session published past its checkpoint has lower ids.
	points := &checkpoints{}
	if points.floor, err = s.takeXid(soft); err != nil {
		return err
	}
	r, err := s.openStream(soft, from)
	if err != nil {
		return err
	}
	defer closeConn(r.conn)
	s.setState(StateStreaming)
	f := &feedback{session: s, conn: r.conn, wake: make(chan struct{}, 1)}
	f.confirmed.Store(uint64(from.LSN))
	r.answer = f.poke
	confirm := func(p progress) { f.confirmed.Store(uint64(p.LSN)); f.poke() }
	if pub.committed = confirm; failpoint.Mutant("relay.early-confirm") {
		pub.committed, r.early = nil, confirm
	}
	pub.points = points
	defer func() { pub.committed, pub.points = nil, nil }()

	g, hard := errgroup.WithContext(hard)
	telling, done := context.WithCancel(hard)
	g.Go(func() error { return f.run(telling) })
	g.Go(func() error { return points.take(telling, s) })
	g.Go(func() error {
		defer done()
		return s.phase(soft, hard, pub, r.run)
	})
	return g.Wait()
}

// openStream starts the replication after what is published.
func (s *session) openStream(ctx context.Context, from progress) (*streamReader, error) {
	cfg, err := replicationConfig(s.cfg.PostgresURL, s.cfg.name())
	if err != nil {
		return nil, err
	}
	r := &streamReader{session: s, at: from, start: from.LSN}
	cfg.BuildFrontend = func(rd io.Reader, w io.Writer) *pgproto3.Frontend {
		r.ahead = bufio.NewReaderSize(rd, readBuffer)
		return pgproto3.NewFrontend(r.ahead, w)
	}
	if r.conn, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL for replication: %w", err)
	}
	name := s.cfg.slotName()
	err = pglogrepl.StartReplication(ctx, r.conn, name, pglogrepl.LSN(from.LSN), pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: []string{"proto_version '1'", "publication_names '" + name + "'", "binary 'true'"},
	})
	if err != nil {
		err = fmt.Errorf("start to stream from replication slot %s: %w", name, err)
	} else if info, ierr := s.slotInfo(ctx); ierr != nil {
		err = ierr
	} else if info.confirmed > from.LSN && !failpoint.Mutant("relay.trusting-slot") {
		// Now that the slot is in use nobody can replace it. PostgreSQL would
		// silently have begun later than asked.
		err = fmt.Errorf("replication slot %s was moved from %s to %s meanwhile", name, from.LSN, info.confirmed)
	}
	if err != nil {
		closeConn(r.conn)
		return nil, err
	}
	return r, nil
}

// checkSlot compares the slot with the progress that is to be streamed from.
// It reports whether windows must go on from the checkpoint instead: because
// the slot lacks something, or because they are faster.
func (s *session) checkSlot(ctx context.Context, from lsn) (catchUp bool, err error) {
	info, err := s.slotInfo(ctx)
	if err != nil {
		return false, err
	}
	problem := ""
	switch {
	case !info.exists:
		problem = "it is gone"
	case info.lost && !failpoint.Mutant("relay.no-lost"):
		problem = "it is invalidated: it needed more of the log than max_slot_wal_keep_size"
	case info.confirmed > from && !failpoint.Mutant("relay.trusting-slot"):
		problem = fmt.Sprintf("something has moved it to %s", info.confirmed)
	}
	if problem != "" {
		s.log.Error("the replication slot can't be used; what it lacks is published by snapshot difference", "slot", s.cfg.slotName(), "problem", problem, "published", from)
		s.update(func(st *Stats) { st.Heals++ })
		return true, nil
	}
	if err := s.freeSlot(ctx, info.activePID); err != nil {
		return false, err
	}
	var behind uint64
	if err := s.db.QueryRow(ctx, `SELECT greatest(0, pg_current_wal_lsn() - $1::text::pg_lsn)::bigint`, from.String()).Scan(&behind); err != nil {
		return false, fmt.Errorf("read the log position: %w", err)
	}
	if behind > s.cfg.catchUpBytes {
		s.log.Info("catching up by snapshot difference", "bytes_behind", behind)
		return true, nil
	}
	if from-info.confirmed > farBehind {
		if _, err := s.db.Exec(ctx, `SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)`, s.cfg.slotName(), from.String()); err != nil {
			return false, fmt.Errorf("advance replication slot %s: %w", s.cfg.slotName(), err)
		}
	}
	return false, nil
}

// feedback tells the server how far its log is published, and that the relay
// is alive.
type feedback struct {
	*session
	conn      *pgconn.PgConn
	confirmed atomic.Uint64
	wake      chan struct{}
}

// poke has the server told soon.
func (f *feedback) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *feedback) run(ctx context.Context) error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for last := false; ; {
		if err := f.at(failpoint.RelayConfirm); err != nil {
			return err
		}
		at := pglogrepl.LSN(f.confirmed.Load())
		// All three: the library would put the written position, and so what
		// is not committed to Kafka, in the place of a flushed one that is 0.
		err := pglogrepl.SendStandbyStatusUpdate(ctx, f.conn, pglogrepl.StandbyStatusUpdate{
			WALWritePosition: at, WALFlushPosition: at, WALApplyPosition: at,
		})
		if err != nil {
			return fmt.Errorf("confirm to PostgreSQL: %w", err)
		}
		if err := f.at(failpoint.RelayConfirmed); err != nil || last {
			return err
		}
		select {
		case <-f.wake:
		case <-tick.C:
		case <-ctx.Done():
			last = true
		}
	}
}

// A streamReader decodes pgoutput.
type streamReader struct {
	*session
	conn   *pgconn.PgConn
	ahead  *bufio.Reader
	answer func()         // the server wants to hear from us
	early  func(progress) // set in a mutant: what was read is confirmed
	start  lsn            // transactions that committed before are published
	at     progress

	outbox  uint32    // the relation's OID, as announced on this connection
	place   []int     // of the relation's columns among ours, -1 for others
	xid     uint32    // of the transaction that is being read, 0 between two
	skip    bool      // it is published
	wrote   uint64    // its full id, once it has brought an event
	highest int64     // position that was read
	buf     chunk     // what is being gathered
	bytes   int       // of it
	row     row       // scratch
	vals    values    // scratch
	stamp   time.Time // the transaction's commit time
}

func (r *streamReader) run(ctx context.Context, out chan<- chunk) error {
	// A deadline, not a close: what was committed is still to be confirmed.
	defer context.AfterFunc(ctx, func() { _ = r.conn.Conn().SetReadDeadline(time.Unix(1, 0)) })()
	frontend := r.conn.Frontend()
	gathering := failpoint.Mutant("relay.gathers-all")
	var emptied time.Time // when the last event was read and no more was there
	for {
		if (r.buf.marked || len(r.buf.records) > 0 && !gathering) && frontend.ReadBufferLen()+r.ahead.Buffered() == 0 {
			events := len(r.buf.records)
			if err := r.flush(ctx, out); err != nil {
				return err
			}
			if now := time.Now(); events > 0 {
				if now.Sub(emptied) < busyGap {
					time.Sleep(gather)
				}
				emptied = now
			}
		}
		msg, err := frontend.Receive()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("read from the replication slot: %w", err)
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			err = r.message(msg.Data)
		case *pgproto3.ErrorResponse:
			err = fmt.Errorf("read from the replication slot: %w", pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.CopyDone, *pgproto3.ReadyForQuery, *pgproto3.CommandComplete:
			err = errors.New("the server ended the replication")
		}
		if err != nil {
			return err
		}
		if (len(r.buf.records) >= chunkEvents || r.bytes >= chunkBytes) && !gathering {
			if err := r.flush(ctx, out); err != nil {
				return err
			}
		}
	}
}

func (r *streamReader) flush(ctx context.Context, out chan<- chunk) error {
	c := r.buf
	r.buf, r.bytes = chunk{}, 0
	if r.early != nil && c.marked {
		r.early(c.at)
	}
	return send(ctx, out, c)
}

var errPgoutput = errors.New("the server sent what is not pgoutput's format")

// message reads one message of the replication protocol.
func (r *streamReader) message(b []byte) error {
	switch {
	case len(b) >= 18 && b[0] == 'k':
		// All that committed up to here was sent before, but for what a
		// transaction that is being sent still lacks.
		if end := lsn(binary.BigEndian.Uint64(b[1:])); r.xid == 0 && end > r.at.LSN {
			r.mark(end)
		}
		if b[17] != 0 {
			r.answer()
		}
		return nil
	case len(b) > 25 && b[0] == 'w':
		return r.logical(b[25:])
	}
	return errPgoutput
}

// mark notes that all that was gathered is whole.
func (r *streamReader) mark(end lsn) {
	r.at.LSN = end
	r.buf.marked, r.buf.whole, r.buf.at = true, len(r.buf.records), r.at
}

func (r *streamReader) logical(b []byte) error {
	switch b[0] {
	case 'B':
		if len(b) < 21 {
			return errPgoutput
		}
		r.skip = lsn(binary.BigEndian.Uint64(b[1:])) < r.start
		r.stamp = pgTime(int64(binary.BigEndian.Uint64(b[9:])))
		r.xid, r.wrote = binary.BigEndian.Uint32(b[17:]), 0
	case 'C':
		if len(b) < 26 {
			return errPgoutput
		}
		r.xid = 0
		if end := lsn(binary.BigEndian.Uint64(b[10:])); end > r.at.LSN {
			r.mark(end)
			r.buf.committedAt = r.stamp
			if r.wrote != 0 {
				r.buf.xids = append(r.buf.xids, r.wrote)
				r.buf.position = max(r.buf.position, r.highest)
			}
		}
	case 'R':
		return r.relation(b)
	case 'I':
		return r.insert(b)
	}
	return nil // types, origins, messages
}

// relation learns in what order the columns of the outbox come.
func (r *streamReader) relation(b []byte) error {
	p := parser{b: b[1:]}
	oid := p.uint32()
	_, name := p.text(), p.text()
	p.skip(1)
	n := int(p.uint16())
	place, have := make([]int, n), 0
	for i := range n {
		p.skip(1)
		column, typ := p.text(), p.uint32()
		p.skip(4)
		place[i] = -1
		for ours := range columns {
			if columns[ours] != column || p.bad {
				continue
			}
			if columnTypes[ours] != typ && name == "outbox" {
				return fatalf("column %s of the outbox has a type (OID %d) that this relay does not know: run the relay that belongs to the schema", column, typ)
			}
			place[i] = ours
			have++
		}
	}
	if p.bad {
		return errPgoutput
	}
	if name != "outbox" {
		return nil
	}
	if have != numColumns {
		return fatalf("the outbox lacks columns that this relay needs: run the relay that belongs to the schema")
	}
	r.outbox, r.place = oid, place
	return nil
}

func (r *streamReader) insert(b []byte) error {
	p := parser{b: b[1:]}
	oid := p.uint32()
	if p.bad || oid != r.outbox || r.outbox == 0 {
		return nil // of a table that somebody added to the publication
	}
	p.skip(1)
	if int(p.uint16()) != len(r.place) {
		return errPgoutput
	}
	r.vals = values{}
	for _, ours := range r.place {
		switch kind := p.byte(); kind {
		case 'n', 'u':
		case 'b', 't':
			v := p.bytes(int(p.uint32()))
			if ours >= 0 {
				if kind == 't' {
					return fmt.Errorf("the server sent column %s of the outbox as text", columns[ours])
				}
				r.vals[ours] = v
			}
		default:
			return errPgoutput
		}
	}
	if p.bad {
		return errPgoutput
	}
	if err := r.row.decode(&r.vals); err != nil {
		return err
	}
	switch {
	case uint32(r.row.xid) != r.xid && !failpoint.Mutant("relay.any-xid"):
		// Moved or restored: the event was published by the transaction it
		// names, or belongs to another cluster's history.
		r.update(func(s *Stats) { s.LeftOut++ })
		return nil
	case r.skip || r.at.Prev.shows(r.row.xid):
		return nil
	}
	rec := r.cfg.Namespace.Record(&r.row.Event)
	r.wrote, r.highest = r.row.xid, max(r.highest, r.row.position)
	r.buf.records = append(r.buf.records, rec)
	r.bytes += len(rec.Value)
	return nil
}

// A parser reads the parts of a message; bad tells that it was too short.
type parser struct {
	b   []byte
	bad bool
}

func (p *parser) bytes(n int) []byte {
	if n < 0 || n > len(p.b) {
		p.bad, p.b = true, nil
		return nil
	}
	v := p.b[:n:n]
	p.b = p.b[n:]
	return v
}

func (p *parser) skip(n int) { p.bytes(n) }

func (p *parser) byte() byte {
	if v := p.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (p *parser) uint16() uint16 {
	if v := p.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (p *parser) uint32() uint32 {
	if v := p.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (p *parser) text() string {
	for i, c := range p.b {
		if c == 0 {
			s := string(p.b[:i])
			p.b = p.b[i+1:]
			return s
		}
	}
	p.bad, p.b = true, nil
	return ""
}
