package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
)

// carried is a place as it comes back from a client.
func carried(t *testing.T, p Place) Place {
	t.Helper()
	b, err := p.MarshalBinary()
	require.NoError(t, err)
	var back Place
	require.NoError(t, back.UnmarshalBinary(b))
	require.True(t, p.Equal(back), "%+v", p)
	return back
}

// feedReader is a way to read a feed from one place on. It returns the events
// and the place behind each.
type feedReader struct {
	name   string
	filter FeedFilter
	read   func(ctx context.Context, t *testing.T, f *Feed, at Place, filter FeedFilter) (FeedPage, error)
}

func feedReaders() []feedReader {
	page := func(limit int) func(context.Context, *testing.T, *Feed, Place, FeedFilter) (FeedPage, error) {
		return func(ctx context.Context, _ *testing.T, f *Feed, at Place, filter FeedFilter) (FeedPage, error) {
			return f.Read(ctx, at, filter, limit)
		}
	}
	next := func(ctx context.Context, _ *testing.T, f *Feed, at Place, filter FeedFilter) (FeedPage, error) {
		return f.Next(ctx, at, filter, 100, 50*time.Millisecond)
	}
	orders := FeedFilter{AggregateType: domain.AggregateOrder}
	return []feedReader{
		{"pages of 1", FeedFilter{}, page(1)},
		{"pages of 7", FeedFilter{}, page(7)},
		{"pages of 500", FeedFilter{}, page(500)},
		{"pages of a type", orders, page(50)},
		{"waiting", FeedFilter{}, next},
		{"waiting too", FeedFilter{}, next},
		{"waiting for a type", orders, next},
		{"waiting in another process", FeedFilter{}, func(ctx context.Context, _ *testing.T, f *Feed, at Place, filter FeedFilter) (FeedPage, error) {
			return NewFeed(f.db, FeedConfig{PollInterval: time.Millisecond}).Next(ctx, at, filter, 3, 50*time.Millisecond)
		}},
		// A client that was cut off goes on behind the first event it got.
		{"cut off", FeedFilter{}, func(ctx context.Context, _ *testing.T, f *Feed, at Place, filter FeedFilter) (FeedPage, error) {
			p, err := f.Next(ctx, at, filter, 100, 50*time.Millisecond)
			if len(p.Events) > 1 {
				p.Events = p.Events[:len(p.Events)/2]
				p.Next = p.Events[len(p.Events)-1].After
			}
			return p, err
		}},
	}
}

// TestFeedConforms reads the feed in many ways beside the load of DESIGN's
// decision 3, each page from the place behind the one before.
func TestFeedConforms(t *testing.T) {
	t.Parallel()
	w := &world{db: pgtest.New(t)}
	wr := w.writer(t, 20)
	f := NewFeed(w.db.Pool, FeedConfig{PollInterval: time.Millisecond})
	done := wr.adverse(t, 12)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var committed atomic.Int64 // once it is known
	var group sync.WaitGroup
	for _, r := range feedReaders() {
		group.Go(func() {
			seen, versions := map[domain.ID]bool{}, map[domain.ID]int64{}
			var at Place
			var wrong error
			for ctx.Err() == nil && (committed.Load() == 0 || int64(len(seen)) < committed.Load()) {
				page, err := r.read(ctx, t, f, at, r.filter)
				if err != nil {
					wrong = err
					break
				}
				for _, e := range page.Events {
					if seen[e.ID] {
						wrong = errTwice
					}
					if e.AggregateVersion != versions[e.AggregateID]+1 {
						wrong = errors.Join(wrong, fmt.Errorf("%w: %d after %d", errOrder, e.AggregateVersion, versions[e.AggregateID]))
					}
					seen[e.ID], versions[e.AggregateID] = true, e.AggregateVersion
				}
				at = carried(t, page.Next)
			}
			if int64(len(seen)) != committed.Load() {
				wrong = errors.Join(wrong, fmt.Errorf("%w: %d of %d were seen", errLost, len(seen), committed.Load()))
			}
			if wrong != nil {
				t.Errorf("%s: %v", r.name, wrong)
			}
			if page, err := r.read(ctx, t, f, at, r.filter); err != nil || len(page.Events) > 0 {
				t.Errorf("%s: more than there are: %v", r.name, err)
			}
		})
	}
	require.Eventually(t, func() bool { return wr.acknowledged.Load() > 5000 }, patience, time.Millisecond)
	done()
	var n int64
	require.NoError(t, w.db.Pool.QueryRow(ctx, `SELECT count(*) FROM outbox`).Scan(&n))
	committed.Store(n)
	group.Wait()
}

// TestFeedReadsWideWindows begins where a window has more transactions than are
// sorted, and goes through one again from every place in it.
func TestFeedReadsWideWindows(t *testing.T) {
	t.Parallel()
	w := &world{db: pgtest.New(t)}
	f := NewFeed(w.db.Pool, FeedConfig{})
	wr := w.writer(t, 5)
	wr.write(t, 10)
	first, err := f.Read(t.Context(), Place{}, FeedFilter{}, 500)
	require.NoError(t, err)
	require.Len(t, first.Events, 10)
	_, err = w.db.Pool.Exec(t.Context(), `CREATE PROCEDURE burn(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..n LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`)
	require.NoError(t, err)
	wr.write(t, 20)
	_, err = w.db.Pool.Exec(t.Context(), fmt.Sprintf(`CALL burn(%d)`, wideWindow))
	require.NoError(t, err)
	wr.write(t, 20)
	all, err := f.Read(t.Context(), carried(t, first.Next), FeedFilter{}, 500)
	require.NoError(t, err)
	require.Len(t, all.Events, 40)
	for i, e := range all.Events {
		rest, err := f.Read(t.Context(), carried(t, e.After), FeedFilter{}, 500)
		require.NoError(t, err)
		require.Len(t, rest.Events, 40-i-1)
	}
	again, err := f.Read(t.Context(), Place{}, FeedFilter{}, 500)
	require.NoError(t, err)
	require.Len(t, again.Events, 50)
	one := all.Events[7]
	filter := FeedFilter{Type: one.Type, AggregateType: one.AggregateType, Aggregate: &one.AggregateID}
	some, err := f.Read(t.Context(), Place{}, filter, 500)
	require.NoError(t, err)
	require.NotEmpty(t, some.Events)
	for i, e := range some.Events {
		require.Equal(t, one.AggregateID, e.AggregateID)
		require.EqualValues(t, i+1, e.AggregateVersion)
	}
	nothing, err := f.Read(t.Context(), Place{}, FeedFilter{Type: "order.exploded.v1"}, 500)
	require.NoError(t, err)
	require.Empty(t, nothing.Events)
	nothing, err = f.Read(t.Context(), carried(t, nothing.Next), FeedFilter{}, 500)
	require.NoError(t, err)
	require.Empty(t, nothing.Events, "a filter goes on behind what it has looked at")
}

// TestFeedStaysWhereItIsWhenNothingHappens: a place that comes back unchanged
// says so, whatever else the server does.
func TestFeedStaysWhereItIsWhenNothingHappens(t *testing.T) {
	t.Parallel()
	w := &world{db: pgtest.New(t)}
	f := NewFeed(w.db.Pool, FeedConfig{PollInterval: time.Millisecond})
	wr := w.writer(t, 1)
	wr.write(t, 1)
	page, err := f.Read(t.Context(), Place{}, FeedFilter{}, 10)
	require.NoError(t, err)
	require.Len(t, page.Events, 1)
	at := page.Next
	_, err = w.db.Pool.Exec(t.Context(), `UPDATE hot SET version = version`)
	require.NoError(t, err)
	page, err = f.Read(t.Context(), at, FeedFilter{}, 10)
	require.NoError(t, err)
	require.Empty(t, page.Events)
	require.True(t, at.Equal(page.Next))
	page, err = f.Next(t.Context(), at, FeedFilter{}, 10, 20*time.Millisecond)
	require.NoError(t, err)
	require.Empty(t, page.Events)
	require.True(t, at.Equal(page.Next))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = f.Next(ctx, at, FeedFilter{}, 10, time.Minute)
	require.ErrorIs(t, err, context.Canceled)
}

// TestHundredsWaitAtTheCostOfOne counts what those who wait ask the database.
func TestHundredsWaitAtTheCostOfOne(t *testing.T) {
	t.Parallel()
	w := &world{db: pgtest.New(t)}
	wr := w.writer(t, 1)
	wr.write(t, 1)
	var asked counting
	cfg := w.db.Pool.Config()
	cfg.ConnConfig.Tracer = &asked
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	f := NewFeed(pool, FeedConfig{PollInterval: 20 * time.Millisecond})
	page, err := f.Read(t.Context(), Place{}, FeedFilter{}, 10)
	require.NoError(t, err)
	const clients = 500
	var group sync.WaitGroup
	var got atomic.Int64
	asked.Store(0)
	began := time.Now()
	for range clients {
		group.Go(func() {
			p, err := f.Next(t.Context(), page.Next, FeedFilter{}, 10, patience)
			if err == nil && len(p.Events) == 1 && p.Events[0].AggregateVersion == 2 {
				got.Add(1)
			}
		})
	}
	require.Eventually(t, func() bool { return asked.Load() > 20 }, patience, time.Millisecond)
	wr.write(t, 1)
	group.Wait()
	require.EqualValues(t, clients, got.Load())
	// A snapshot and at most a window per interval, and then the events once.
	require.Less(t, asked.Load(), 3*int64(time.Since(began)/f.every)+10)
}

// counting counts statements.
type counting struct{ atomic.Int64 }

func (c *counting) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.Add(1)
	return ctx
}

func (c *counting) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestPlacesOfAnotherHistoryAreGone: a place in the feed of another database
// means nothing in this one, nor does one that is ahead of it.
func TestPlacesOfAnotherHistoryAreGone(t *testing.T) {
	t.Parallel()
	here, there := &world{db: pgtest.New(t)}, &world{db: pgtest.New(t)}
	here.writer(t, 1).write(t, 1)
	there.writer(t, 1).write(t, 1)
	f := NewFeed(here.db.Pool, FeedConfig{PollInterval: time.Millisecond})
	mine, err := f.Read(t.Context(), Place{}, FeedFilter{}, 10)
	require.NoError(t, err)
	other, err := NewFeed(there.db.Pool, FeedConfig{}).Read(t.Context(), Place{}, FeedFilter{}, 10)
	require.NoError(t, err)
	ahead := mine.Next
	ahead.prev.xmax += 1 << 40
	for _, at := range []Place{other.Next, ahead} {
		_, err = f.Read(t.Context(), at, FeedFilter{}, 10)
		require.Equal(t, domain.CodeHistoryGone, domain.CodeOf(err))
		_, err = f.Next(t.Context(), at, FeedFilter{}, 10, patience)
		require.Equal(t, domain.CodeHistoryGone, domain.CodeOf(err))
	}
	// It is no matter to those who are in the right place.
	page, err := f.Next(t.Context(), mine.Next, FeedFilter{}, 10, 20*time.Millisecond)
	require.NoError(t, err)
	require.Empty(t, page.Events)
}

// TestFeedOfRestoredRows: rows that a dump brought have the transaction ids of
// another cluster.
func TestFeedOfRestoredRows(t *testing.T) {
	t.Parallel()
	w := &world{db: pgtest.New(t)}
	wr := w.writer(t, 1)
	wr.write(t, 30)
	_, err := w.db.Pool.Exec(t.Context(), `UPDATE outbox SET xid = (xid::text::bigint + 1000000000)::text::xid8`)
	require.NoError(t, err)
	f := NewFeed(w.db.Pool, FeedConfig{})
	wr.write(t, 30)
	var at Place
	for want := int64(1); want <= 80; {
		page, err := f.Read(t.Context(), at, FeedFilter{}, 7)
		require.NoError(t, err)
		for _, e := range page.Events {
			require.Equal(t, want, e.AggregateVersion)
			want++
		}
		at = carried(t, page.Next)
		if want == 61 {
			wr.write(t, 20)
		}
	}
}

func FuzzPlace(f *testing.F) {
	for _, p := range []Place{{}, {origin: 7, prev: snapshot{xmin: 5, xmax: 9, xip: []uint64{5, 8}}, now: snapshot{xmin: 9, xmax: 9}, position: 3, epoch: 2}} {
		b, _ := p.MarshalBinary()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p, again Place
		if p.UnmarshalBinary(b) != nil {
			return
		}
		for _, s := range []snapshot{p.prev, p.now} {
			if !s.isZero() {
				back, err := parseSnapshot(s.String())
				require.NoError(t, err)
				require.True(t, s.equal(back))
			}
		}
		out, err := p.MarshalBinary()
		require.NoError(t, err)
		require.NoError(t, again.UnmarshalBinary(out))
		require.True(t, p.Equal(again))
	})
}
