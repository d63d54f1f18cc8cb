package outbox

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/events"
	"outflow/internal/pgtest"
)

// A reader hands over the events of the outbox until its context ends.
type reader func(ctx context.Context, out chan<- chunk) error

// readers are the ways to read the outbox that the relay has. prepare is
// called before there are events.
var readers = map[string]func(t *testing.T, s *session) reader{
	"wal": func(t *testing.T, s *session) reader {
		var err error
		s.server, err = s.identify(t.Context())
		require.NoError(t, err)
		problem, err := s.streamProblem(t.Context())
		require.NoError(t, err)
		require.Empty(t, problem)
		require.NoError(t, (&slotMaker{session: s}).create(t.Context()))
		info, err := s.slotInfo(t.Context())
		require.NoError(t, err)
		return func(ctx context.Context, out chan<- chunk) error {
			r, err := s.openStream(ctx, progress{Phase: phaseStream, Prev: noTransactions, LSN: info.confirmed})
			if err != nil {
				return err
			}
			defer closeConn(r.conn)
			r.answer = func() {}
			return r.run(ctx, out)
		}
	},
	"poll": func(_ *testing.T, s *session) reader {
		return func(ctx context.Context, out chan<- chunk) error {
			return (&windowReader{session: s, out: out, at: progress{Phase: phaseWindow, Prev: noTransactions}}).run(ctx)
		}
	},
}

// mutants are ways to read that look right and are not; the suite must find
// that out, or it proves nothing about the others.
var mutants = map[string]func(t *testing.T, s *session) reader{
	// The classic: sequence numbers are taken before the commit, so a lower one
	// can appear after a higher one was read.
	"sequence cursor": func(_ *testing.T, s *session) reader {
		var last int64
		return polling(s, func() string {
			return fmt.Sprintf(`SELECT %s FROM outbox WHERE position > %d ORDER BY position`, columnList, last)
		}, func(r row) { last = max(last, r.position) })
	},
	// Loses nothing, but transaction ids are taken before the locks: of two
	// changes of one aggregate, the later one may have the lower id.
	"xmin window": func(_ *testing.T, s *session) reader {
		xid, position := uint64(0), int64(0)
		return polling(s, func() string {
			return fmt.Sprintf(`SELECT %s FROM outbox WHERE (xid, position) > ('%d'::xid8, %d) AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, position`, columnList, xid, position)
		}, func(r row) { xid, position = r.xid, r.position })
	},
}

func polling(s *session, query func() string, seen func(row)) reader {
	return func(ctx context.Context, out chan<- chunk) error {
		for ctx.Err() == nil {
			rows, err := s.db.Query(ctx, query(), pgx.QueryResultFormats{pgx.BinaryFormatCode})
			if err != nil {
				return err
			}
			var c chunk
			for rows.Next() {
				var r row
				v := values(rows.RawValues())
				if err := r.decode(&v); err != nil {
					return err
				}
				seen(r)
				c.records = append(c.records, s.cfg.Namespace.Record(&r.Event))
			}
			if err := rows.Err(); err != nil {
				return err
			}
			c.marked, c.whole = true, len(c.records)
			if err := send(ctx, out, c); err != nil {
				return err
			}
		}
		return nil
	}
}

// conform runs a reader beside the load of DESIGN's decision 3 and says what
// it did wrong: hot aggregates, pauses between taking the position and the
// commit, rollbacks, and a long transaction in another database of the cluster.
func conform(t *testing.T, prepare func(*testing.T, *session) reader) error {
	t.Helper()
	w := &world{db: pgtest.New(t)}
	other := pgtest.New(t)
	cfg := Config{PostgresURL: w.db.URL, Namespace: events.Namespace(w.db.Name), PollInterval: time.Millisecond}.withDefaults()
	read := prepare(t, &session{Relay: &Relay{cfg: cfg}, log: cfg.Logger, db: w.db.Pool})

	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	out, ended := make(chan chunk, chunksAhead), make(chan error, 1)
	reading, stop := context.WithCancel(ctx)
	go func() { ended <- read(reading, out) }()
	defer func() { stop(); <-ended }()

	wr := w.writer(t, 20)
	long, err := other.Pool.Begin(ctx)
	require.NoError(t, err)
	defer func() { _ = long.Rollback(context.Background()) }()
	_, err = long.Exec(ctx, `CREATE TABLE t (n int)`)
	require.NoError(t, err)
	done := wr.adverse(t, 24)

	// What is read, and what is wrong with it.
	seen, versions := map[domain.ID]bool{}, map[domain.ID]int64{}
	var wrong error
	take := func(wait time.Duration) bool {
		select {
		case c := <-out:
			for _, r := range c.records {
				e, err := events.Decode(r)
				require.NoError(t, err)
				if seen[e.ID] {
					wrong = errors.Join(wrong, errTwice)
				}
				if e.AggregateVersion <= versions[e.AggregateID] {
					wrong = errors.Join(wrong, errOrder)
				}
				seen[e.ID], versions[e.AggregateID] = true, e.AggregateVersion
			}
			return true
		case <-time.After(wait):
			return false
		}
	}
	// Others flow on while the long transaction is open.
	for until := time.Now().Add(5 * time.Second); len(seen) < 4000 && time.Now().Before(until); {
		take(10 * time.Millisecond)
	}
	if len(seen) == 0 {
		wrong = errors.Join(wrong, errHeldUp)
	}
	require.NoError(t, long.Rollback(ctx))
	for until := time.Now().Add(3 * time.Second); len(seen) < 8000 && time.Now().Before(until); {
		take(10 * time.Millisecond)
	}
	done()
	var committed int
	require.NoError(t, w.db.Pool.QueryRow(ctx, `SELECT count(*) FROM outbox`).Scan(&committed))
	quiet := time.Now()
	for time.Since(quiet) < 2*time.Second && len(seen) < committed {
		if take(10*time.Millisecond) && len(out) > 0 {
			quiet = time.Now()
		}
	}
	take(100 * time.Millisecond)
	if len(seen) < committed {
		wrong = errors.Join(wrong, fmt.Errorf("%w: %d of %d", errLost, committed-len(seen), committed))
	}
	require.Greater(t, committed, 1000)
	return wrong
}

var (
	errTwice  = errors.New("an event came twice")
	errOrder  = errors.New("the versions of an aggregate did not ascend")
	errHeldUp = errors.New("a long transaction in another database held everything up")
	errLost   = errors.New("events are lost")
)

// Both readers beside the adversarial load, and beside a long transaction in
// another database.
func TestRow01CommitsInAnotherOrderThanTheirNumbers(t *testing.T) {
	t.Parallel()
	for name, prepare := range readers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, conform(t, prepare))
		})
	}
}

func TestConformanceCatchesMutants(t *testing.T) {
	t.Parallel()
	want := map[string]error{"sequence cursor": errLost, "xmin window": errHeldUp}
	for name, prepare := range mutants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := conform(t, prepare)
			require.Error(t, err)
			require.ErrorIs(t, err, want[name])
			if name == "xmin window" {
				require.ErrorIs(t, err, errOrder)
			}
		})
	}
}
