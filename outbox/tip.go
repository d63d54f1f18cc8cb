package outbox

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"outflow/domain"
)

const (
	// tipEvents and tipBytes are how much of the log's end is kept for those
	// who wait for it.
	tipEvents = 1000
	tipBytes  = pageBytes
	// pollTime bounds a look at the database.
	pollTime = 10 * time.Second
)

// A tip is the end of the log, as all who wait for more of it share it. One of
// them at a time looks whether there is more, on behalf of all; when that one
// leaves, another takes its turn. So there is no goroutine to start or to stop,
// and nobody asks the database when nobody waits.
//
// What was found is kept for a while, window by window, each beginning with the
// snapshot that the one before ended with. A reader that has come to one of
// these snapshots gets the windows after it from here. Any other reads by
// itself as far as the last one, and then is at one of them.
type tip struct {
	lead  chan struct{} // holds a token while somebody looks
	waits atomic.Int64  // how many wait

	mu      sync.Mutex
	m       moment // the end of the last window
	epoch   int64
	windows []shownWindow // in order, without gaps, up to m
	events  int
	bytes   int
	changed chan struct{} // closed when m changes
}

type shownWindow struct {
	prev, now snapshot
	rows      []shownRow
	bytes     int
}

type shownRow struct {
	event    *domain.Event
	position int64
}

func (t *tip) init() {
	t.lead, t.changed = make(chan struct{}, 1), make(chan struct{})
}

// Next returns the events after a place, as [Feed.Read] does, and waits for
// them. It returns an empty page when there was none for so long, and an error
// when ctx ends.
func (f *Feed) Next(ctx context.Context, at Place, filter FeedFilter, limit int, wait time.Duration) (FeedPage, error) {
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	f.tip.waits.Add(1)
	defer f.tip.waits.Add(-1)
	for ctx.Err() == nil {
		page, behind, changed, err := f.ahead(ctx, at, filter, limit)
		if err != nil || len(page.Events) > 0 {
			return page, err
		}
		at = page.Next
		if waiting.Err() != nil {
			return page, ctx.Err()
		}
		if behind {
			continue
		}
		select {
		case f.tip.lead <- struct{}{}:
			err := f.watch(waiting, at)
			<-f.tip.lead
			if err != nil {
				return FeedPage{}, err
			}
		case <-changed:
		case <-waiting.Done():
		}
	}
	return FeedPage{}, ctx.Err()
}

// Waits returns how many wait in Next at the moment.
func (f *Feed) Waits() int { return int(f.tip.waits.Load()) }

// ahead returns what is known to be after a place. behind says that there may
// be more; if there isn't, changed tells when there is.
func (f *Feed) ahead(ctx context.Context, at Place, filter FeedFilter, limit int) (page FeedPage, behind bool, changed <-chan struct{}, err error) {
	if at.prev.isZero() {
		// Nobody shares the beginning.
		m, err := f.moment(ctx)
		if err == nil {
			err = m.has(&at)
		}
		if err != nil {
			return page, false, nil, err
		}
		page, err = f.read(ctx, at, m, filter, limit)
		if err == nil && page.Next.Equal(at) {
			page.Next.prev = m.now // where there was nothing
		}
		return page, true, nil, err
	}
	t := &f.tip
	t.mu.Lock()
	m, known, changed := t.m, t.m.origin == at.origin, t.changed
	if known && t.epoch == at.epoch {
		for i := range t.windows {
			if w := &t.windows[i]; w.prev.equal(at.prev) && (at.now.isZero() || w.now.equal(at.now)) {
				rows := w.rows
				t.mu.Unlock()
				return pick(rows, w.now, at, filter, limit), true, nil, nil
			}
		}
	}
	t.mu.Unlock()
	switch {
	case !at.now.isZero():
		page, err = f.Read(ctx, at, filter, limit)
		return page, true, nil, err
	case known && at.prev.before(m.now):
		page, err = f.read(ctx, at, m, filter, limit)
		if err == nil && page.Next.Equal(at) {
			page.Next.prev = m.now
		}
		return page, true, nil, err
	case !known && m.origin != 0:
		// One of the two is of the past.
		page, err = f.Read(ctx, at, filter, limit)
		return page, false, changed, err
	}
	return FeedPage{Next: at}, false, changed, nil
}

// pick makes a page of a window.
func pick(rows []shownRow, now snapshot, at Place, filter FeedFilter, limit int) FeedPage {
	page := FeedPage{}
	end := Place{origin: at.origin, prev: now, epoch: at.epoch}
	at.now = now
	for _, r := range rows {
		if r.position <= at.position || !filter.takes(r.event) {
			continue
		}
		if len(page.Events) == limit {
			page.Next = page.Events[limit-1].After
			return page
		}
		at.position = r.position
		page.Events = append(page.Events, FeedEvent{r.event, at, r.position})
	}
	if n := len(page.Events); n > 0 {
		page.Events[n-1].After = end
	}
	page.Next = end
	return page
}

// watch looks for events after a place on behalf of all who wait, until there
// are some. Whoever calls it holds the lead.
func (f *Feed) watch(waiting context.Context, at Place) error {
	f.tip.reach(at)
	for {
		found, err := f.look(waiting)
		if found || err != nil {
			return err
		}
		if pause(waiting, f.every) != nil {
			return nil
		}
	}
}

// reach sees to it that the tip is not before a place.
func (t *tip) reach(at Place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m.origin != at.origin || t.epoch != at.epoch || t.m.now.before(at.prev) {
		t.move(moment{origin: at.origin, now: at.prev}, at.epoch)
	}
}

// move puts the tip elsewhere.
func (t *tip) move(m moment, epoch int64) {
	t.m, t.epoch = m, epoch
	t.windows, t.events, t.bytes = nil, 0, 0
	t.tell()
}

func (t *tip) tell() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// look reads the window from the tip to now, if there is anything in it. It
// doesn't end with the wait of the one who does it for all: that would cost a
// connection each time.
func (f *Feed) look(waiting context.Context) (found bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(waiting), pollTime)
	defer cancel()
	m, err := f.moment(ctx)
	if err != nil {
		return false, err
	}
	t := &f.tip
	t.mu.Lock()
	at := Place{origin: t.m.origin, prev: t.m.now, epoch: t.epoch}
	t.mu.Unlock()
	if err := m.has(&at); err != nil {
		// The one who looks is at this place or before it, with this origin. The
		// others find out for themselves.
		t.mu.Lock()
		defer t.mu.Unlock()
		t.move(m, 0)
		return false, err
	}
	if !at.prev.before(m.now) {
		return false, nil
	}
	r := &pageReader{feed: f, at: at, limit: tipEvents}
	if err := r.begin(ctx, &m); err != nil {
		return false, err
	}
	ended, err := r.window(ctx, func() bool { return false })
	if err != nil || r.rows == 0 {
		return false, err
	}
	if err := f.flushed(ctx, m); err != nil {
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !ended {
		t.move(m, at.epoch) // too much to keep: they read it by themselves
		return true, nil
	}
	w := shownWindow{prev: at.prev, now: m.now, bytes: r.bytes}
	for _, e := range r.page.Events {
		w.rows = append(w.rows, shownRow{e.Event, e.position})
	}
	t.windows = append(t.windows, w)
	t.m, t.events, t.bytes = m, t.events+len(w.rows), t.bytes+w.bytes
	for t.events > tipEvents || t.bytes > tipBytes {
		t.events, t.bytes = t.events-len(t.windows[0].rows), t.bytes-t.windows[0].bytes
		t.windows[0] = shownWindow{}
		t.windows = t.windows[1:]
	}
	t.tell()
	return true, nil
}
