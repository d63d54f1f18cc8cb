package outbox

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/domain"
)

const (
	// pageBytes is how many bytes of events end a page, whatever its limit.
	pageBytes = 4 << 20
	// pageRows is how many rows one statement reads at most: each may have
	// MaxEventSize bytes.
	pageRows = 100
	// scanRows is how many rows a statement looks at for those of a filter.
	scanRows = 10_000
	// scanTime is after how long a page ends for which little was found.
	scanTime = 3 * time.Second
	// barrierTime bounds the wait for the log to be on disk.
	barrierTime = 5 * time.Second
)

// errGone says that a [Place] is in a history that the database does not have:
// it was restored from a backup, or replaced by a standby. What came after the
// place can't be told, so a reader must begin again.
var errGone = &domain.Error{Code: domain.CodeHistoryGone, Message: "the database has another history than the one that was read: it was restored or replaced"}

// errStandby: the snapshots of a hot standby leave out running transactions,
// and events would be lost.
var errStandby = &domain.Error{Code: domain.CodeUnavailable, Message: "the database is a standby, which can't tell the order of events"}

// FeedConfig is what a [Feed] can be told. The zero value is useful.
type FeedConfig struct {
	// PollInterval is how often the database is asked for new events while
	// somebody waits for them; 100 ms when 0.
	PollInterval time.Duration
}

// A Feed hands out the event log in pages: every committed event once to a
// reader that goes from page to page, the events of an aggregate in their order.
// It reads windows, as the relay does without a slot: what one snapshot shows
// and the one before did not. Readers whose windows differ see the events of
// different aggregates in different orders.
//
// Any number of readers may wait for events: all together they ask the
// database once per interval, see [Feed.Next].
type Feed struct {
	db    *pgxpool.Pool
	every time.Duration
	tip   tip
}

// NewFeed returns a feed of the database's outbox.
func NewFeed(db *pgxpool.Pool, cfg FeedConfig) *Feed {
	f := &Feed{db: db, every: cfg.PollInterval}
	if f.every == 0 {
		f.every = 100 * time.Millisecond
	}
	f.tip.init()
	return f
}

// FeedFilter selects events; a field that is empty selects all.
type FeedFilter struct {
	Type          string
	AggregateType string
	Aggregate     *domain.ID
}

func (f FeedFilter) takes(e *domain.Event) bool {
	return (f.Type == "" || f.Type == e.Type) && (f.AggregateType == "" || f.AggregateType == e.AggregateType) &&
		(f.Aggregate == nil || *f.Aggregate == e.AggregateID)
}

// A FeedEvent is an event, and the place behind it.
type FeedEvent struct {
	*domain.Event
	After Place

	position int64
}

// A FeedPage is some events and the place to go on from. Next is equal to
// where the page began if there was nothing new. A page that is not full, or
// even empty, may have others after it.
type FeedPage struct {
	Events []FeedEvent
	Next   Place
}

// Read returns the events after a place, at most limit. It returns CodeHistoryGone
// for a place that the database's history doesn't have.
func (f *Feed) Read(ctx context.Context, at Place, filter FeedFilter, limit int) (FeedPage, error) {
	m, err := f.moment(ctx)
	if err != nil {
		return FeedPage{}, err
	}
	if err := m.has(&at); err != nil {
		return FeedPage{}, err
	}
	return f.read(ctx, at, m, filter, limit)
}

// read is Read with a moment up to which it reads at least.
func (f *Feed) read(ctx context.Context, at Place, m moment, filter FeedFilter, limit int) (FeedPage, error) {
	r := &pageReader{feed: f, at: at, page: FeedPage{Next: at}, filter: filter, limit: limit}
	began := time.Now()
	for {
		fresh := r.at.now.isZero()
		if fresh {
			if !r.at.from().before(m.now) {
				return r.page, nil
			}
			if err := r.begin(ctx, &m); err != nil {
				return r.page, err
			}
		}
		ended, err := r.window(ctx, func() bool { return time.Since(began) > scanTime })
		if err != nil {
			return r.page, err
		}
		if ended && r.rows == 0 && fresh {
			// Nothing that concerns the log happened: the place stays what it
			// is, which readers take for "nothing new".
			return r.page, nil
		}
		if fresh {
			if err := f.flushed(ctx, m); err != nil {
				return FeedPage{}, err
			}
		}
		r.page.Next = r.at
		if len(r.page.Events) > 0 || fresh || !ended {
			return r.page, nil
		}
	}
}

// A moment is what the database was at a time.
type moment struct {
	origin uint64
	now    snapshot
	end    lsn // everything that now shows is before it in the log
}

const selectMoment = `
SELECT pg_current_snapshot()::text, pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_control_system()),
       (SELECT oid FROM pg_database WHERE datname = current_database()),
       CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END,
       CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_insert_lsn()::text END`

func (f *Feed) moment(ctx context.Context) (m moment, err error) {
	var text, system, file, end string
	var standby bool
	var database uint32
	if err := f.db.QueryRow(ctx, selectMoment).Scan(&text, &standby, &system, &database, &file, &end); err != nil {
		return m, fmt.Errorf("take a snapshot: %w", err)
	}
	if standby {
		return m, errStandby
	}
	if m.now, err = parseSnapshot(text); err != nil {
		return m, err
	}
	// A timeline that branched off may have given the ids of transactions that
	// were read to others since.
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s %d %.8s", system, database, file)
	m.origin = h.Sum64()
	return m, m.end.UnmarshalText([]byte(end))
}

// has returns errGone unless the place is in the moment's history. It gives a
// place at the beginning its origin.
func (m moment) has(at *Place) error {
	if at.origin == 0 {
		at.origin = m.origin
	}
	if at.origin != m.origin || m.now.before(at.prev) || m.now.before(at.now) {
		return errGone
	}
	return nil
}

// before reports whether o shows more than s does. Snapshots of one server
// follow each other: what one shows, all later ones show.
func (s snapshot) before(o snapshot) bool {
	return s.xmax < o.xmax || s.xmax == o.xmax && len(s.xip) > len(o.xip)
}

// flushed returns when everything that a moment shows is on disk. Whatever is
// visible before that could be taken back by a crash, and its transaction id be
// used again.
func (f *Feed) flushed(ctx context.Context, m moment) error {
	var text string
	var at lsn
	if err := f.db.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&text); err != nil {
		return fmt.Errorf("read the log position: %w", err)
	}
	if err := at.UnmarshalText([]byte(text)); err != nil || at >= m.end {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, barrierTime)
	defer cancel()
	return barrier(ctx, f.db)
}

// A pageReader gathers a page.
type pageReader struct {
	feed   *Feed
	at     Place
	filter FeedFilter
	limit  int

	page  FeedPage
	bytes int
	rows  int // that were looked at, events of the filter or not
}

// wide reports whether the window has so many transactions that its rows are
// found by walking along the positions.
func (r *pageReader) wide() bool {
	return r.at.prev.isZero() || r.at.now.xmax-r.at.prev.xmax > wideWindow
}

// begin begins the window that ends with a moment.
func (r *pageReader) begin(ctx context.Context, m *moment) error {
	if r.at.prev.isZero() {
		if err := r.restored(ctx, m); err != nil {
			return err
		}
	}
	r.at.now, r.at.position = m.now, 0
	if r.at.prev.isZero() || !r.wide() {
		return nil
	}
	// The walk begins where the window's positions do.
	query := fmt.Sprintf(`SELECT coalesce(min(position) - 1, 0) FROM outbox WHERE %s`, r.at.condition())
	if err := r.feed.db.QueryRow(ctx, query, pgx.QueryExecModeDescribeExec).Scan(&r.at.position); err != nil {
		return fmt.Errorf("look for the beginning of a window: %w", err)
	}
	return nil
}

// restored moves the end of the first window to now, and finds how far the rows
// go that came from another cluster, see [windowReader.restored].
func (r *pageReader) restored(ctx context.Context, m *moment) error {
	const query = `
SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, coalesce((SELECT max(position) FROM outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())), 0)`
	var text, end string
	err := r.feed.db.QueryRow(ctx, query).Scan(&text, &end, &r.at.epoch)
	if err != nil {
		return fmt.Errorf("look for restored rows: %w", err)
	}
	if m.now, err = parseSnapshot(text); err != nil {
		return err
	}
	return m.end.UnmarshalText([]byte(end))
}

// condition selects the rows of the window, see [windowReader.query].
func (p Place) condition() string {
	prev, now := p.from(), p.now
	cond := fmt.Sprintf(`xid >= '%d'::xid8`, prev.xmax)
	if len(prev.xip) > 0 {
		cond = fmt.Sprintf(`(%s OR xid = ANY ('{%s}'::xid8[]))`, cond, joinXids(prev.xip))
	}
	cond += fmt.Sprintf(` AND xid < '%d'::xid8 AND pg_visible_in_snapshot(xid, '%s')`, now.xmax, now)
	switch {
	case p.epoch > 0 && p.prev.isZero():
		cond = fmt.Sprintf(`(position <= %d OR %s)`, p.epoch, cond)
	case p.epoch > 0:
		cond += fmt.Sprintf(` AND position > %d`, p.epoch)
	}
	return cond
}

// window reads on in the window until the page is full or enough is enough. It
// reports whether the window ended.
func (r *pageReader) window(ctx context.Context, enough func() bool) (ended bool, err error) {
	for len(r.page.Events) < r.limit && r.bytes < pageBytes {
		if ended, err = r.part(ctx); err != nil {
			return false, err
		}
		if ended {
			r.at.prev, r.at.now, r.at.position = r.at.now, snapshot{}, 0
			r.ends()
			return true, nil
		}
		if enough() {
			break
		}
	}
	return false, nil
}

// ends puts the place behind the window's last event where it is behind the
// window, so that whoever goes on from there needn't look for more of it.
func (r *pageReader) ends() {
	if n := len(r.page.Events); n > 0 {
		r.page.Events[n-1].After = r.at
	}
}

// part reads some rows of the window. It reports whether they were the last.
func (r *pageReader) part(ctx context.Context) (ended bool, err error) {
	most := min(pageRows, r.limit-len(r.page.Events))
	cond := fmt.Sprintf("%s AND position > %d", r.at.condition(), r.at.position)
	var args []any
	where := func(column string, value any) {
		args = append(args, value)
		cond += fmt.Sprintf(" AND %s = $%d", column, len(args))
	}
	if r.filter.Aggregate != nil {
		// By the aggregate's own index: it has few events.
		where("aggregate_id", uuid(*r.filter.Aggregate))
		if r.filter.Type != "" {
			where("type", r.filter.Type)
		}
		if r.filter.AggregateType != "" {
			where("aggregate_type", r.filter.AggregateType)
		}
		query := fmt.Sprintf(`WITH w AS MATERIALIZED (SELECT %s FROM outbox WHERE %s) SELECT %s FROM w ORDER BY position LIMIT %d`, columnList, cond, columnList, most)
		n, err := r.query(ctx, query, args)
		return n < most, err
	}
	look := most
	if r.filter != (FeedFilter{}) {
		look = scanRows
	}
	rows := fmt.Sprintf(`SELECT position FROM outbox WHERE %s ORDER BY position LIMIT %d`, cond, look)
	if !r.wide() {
		// The window's positions come from the index on (xid, position), and
		// not from a walk through the whole outbox that saves the sort.
		rows = fmt.Sprintf(`SELECT position FROM (WITH w AS MATERIALIZED (SELECT position FROM outbox WHERE %s) SELECT position FROM w) w ORDER BY position LIMIT %d`, cond, look)
	}
	if r.filter == (FeedFilter{}) {
		n, err := r.query(ctx, fmt.Sprintf(`WITH p AS MATERIALIZED (%s) SELECT %s FROM p JOIN outbox USING (position) ORDER BY position LIMIT %d`, rows, columnList, most), nil)
		return n < most, err
	}
	cond = "true"
	if r.filter.Type != "" {
		where("type", r.filter.Type)
	}
	if r.filter.AggregateType != "" {
		where("aggregate_type", r.filter.AggregateType)
	}
	n, err := r.query(ctx, fmt.Sprintf(`WITH p AS MATERIALIZED (%s) SELECT %s FROM p JOIN outbox USING (position) WHERE %s ORDER BY position LIMIT %d`, rows, columnList, cond, most), args)
	if err != nil || n >= most {
		return false, err
	}
	// All that were looked at are behind us.
	var looked int
	var last int64
	query := fmt.Sprintf(`SELECT count(*), coalesce(max(position), 0) FROM (%s) p`, rows)
	if err := r.feed.db.QueryRow(ctx, query, pgx.QueryExecModeDescribeExec).Scan(&looked, &last); err != nil {
		return false, fmt.Errorf("read a window of the outbox: %w", err)
	}
	r.rows += looked
	r.at.position = max(r.at.position, last)
	return looked < look, nil
}

// query reads rows into the page, and returns how many there were.
func (r *pageReader) query(ctx context.Context, query string, args []any) (n int, err error) {
	args = append([]any{pgx.QueryExecModeDescribeExec, pgx.QueryResultFormats(slices.Repeat([]int16{pgx.BinaryFormatCode}, numColumns))}, args...)
	rows, err := r.feed.db.Query(ctx, query, args...)
	if err != nil {
		return 0, fmt.Errorf("read a window of the outbox: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		for i, f := range rows.FieldDescriptions() {
			if f.DataTypeOID != columnTypes[i] {
				return n, fmt.Errorf("outbox column %s has type %d instead of %d", columns[i], f.DataTypeOID, columnTypes[i])
			}
		}
		v := values(rows.RawValues())
		var one row
		if err := one.decode(&v); err != nil {
			return n, err
		}
		e := one.Event
		e.Before, e.After, e.Metadata = slices.Clone(e.Before), slices.Clone(e.After), slices.Clone(e.Metadata)
		n++
		r.rows++
		r.at.position = one.position
		r.bytes += len(e.Before) + len(e.After) + len(e.Metadata)
		r.page.Events = append(r.page.Events, FeedEvent{&e, r.at, one.position})
		if r.bytes >= pageBytes {
			// The rest is read again by whoever goes on.
			return pageRows + 1, nil
		}
	}
	if err := rows.Err(); err != nil {
		return n, fmt.Errorf("read a window of the outbox: %w", err)
	}
	return n, nil
}
