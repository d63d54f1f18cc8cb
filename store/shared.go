package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// maxShared is how many changes share a statement at most.
	maxShared = 64

	// sharedLockTimeout is how long a shared statement waits for a lock. Whoever
	// holds one longer than that holds up the one who wants it, and not all who
	// happen to share its statement.
	sharedLockTimeout = "100ms"

	// sharedTimeout bounds a statement when the server can't, because it is
	// away. It is longer than statement_timeout.
	sharedTimeout = 15 * time.Second
)

// committers write the changes that arrive together with one statement. Each
// takes what is waiting and writes it at once; what arrives meanwhile is taken
// by the next one that is free. Nothing waits for a batch to fill up, so a lone
// change is written as quickly as by itself.
//
// Who shares a statement with whom is chance, and must not show. A statement
// that fails for whatever reason has written nothing, and says nothing about
// any of its changes: then each of them is written by its own caller with a
// statement of its own, whose outcome is that caller's. Where the outcome is
// not known, because the connection broke, nothing is tried again, and every
// caller learns just that.
type committers struct {
	lanes   map[*statement]chan *command
	stopped chan struct{} // closed when nothing more is taken
}

// command is a change on its way through a committer.
type command struct {
	change  change
	outcome chan outcome // has room for one: the caller may have left
}

type outcome struct {
	written bool
	err     error
}

// errAlone says that a change was not written, and is to be tried by itself.
var errAlone = errors.New("the shared statement was given up")

// counters are what [Stats] shows.
type counters struct {
	statements, changes, givenUp, readTrips, reads, keysRemoved, cleanErrors atomic.Int64
}

// Stats tells what a store did since it was made.
type Stats struct {
	Running          bool  // whether commits are shared now
	SharedStatements int64 // statements of committers
	SharedChanges    int64 // the changes in them
	GivenUp          int64 // those statements that failed, so that their changes were written one by one
	SharedReadTrips  int64 // round trips of readers
	SharedReads      int64 // the readings in them
	KeysRemoved      int64 // idempotency keys that had expired
	CleanErrors      int64 // failures to remove them; it is tried again
}

// Stats returns the counters as they are now.
func (s *Store) Stats() Stats {
	c := &s.counters
	return Stats{s.shared.Load() != nil, c.statements.Load(), c.changes.Load(), c.givenUp.Load(), c.readTrips.Load(), c.reads.Load(), c.keysRemoved.Load(), c.cleanErrors.Load()}
}

// Run lets changes that arrive together share statements, and readings share
// round trips, and removes expired idempotency keys, until ctx is done. Before
// and after that, each goes by itself: nothing but speed depends on Run. It
// returns nil when everything that it took is written.
// A store runs at most once at a time.
func (s *Store) Run(ctx context.Context) error {
	c := &committers{lanes: map[*statement]chan *command{}, stopped: make(chan struct{})}
	for _, st := range []*statement{createCustomers, updateCustomers, placeOrders, updateOrders, deleteOrders} {
		c.lanes[st] = make(chan *command)
	}
	if !s.shared.CompareAndSwap(nil, c) {
		return errors.New("the store runs already")
	}
	r := &readers{lane: make(chan *asked), stopped: c.stopped}
	var wg sync.WaitGroup
	r.run(s, &wg)
	s.reading.Store(r)
	for st, lane := range c.lanes {
		for range s.cfg.Committers {
			wg.Go(func() { c.serve(s, st, lane) })
		}
	}
	wg.Go(func() { s.cleanKeys(ctx) })
	<-ctx.Done()
	s.shared.Store(nil)
	s.reading.Store(nil)
	close(c.stopped)
	wg.Wait()
	return nil
}

// commit hands a change to a committer. It returns errAlone when the caller is
// to write it without one.
func (c *committers) commit(ctx context.Context, st *statement, ch change) (bool, error) {
	lane, ok := c.lanes[st]
	if !ok {
		return false, errAlone
	}
	cmd := &command{change: ch, outcome: make(chan outcome, 1)}
	select {
	case lane <- cmd: // a committer has it now
	case <-c.stopped:
		return false, errAlone
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case o := <-cmd.outcome:
		return o.written, o.err
	case <-ctx.Done():
		// As with a statement of its own, it may be written all the same.
		return false, ctx.Err()
	}
}

// serve is a committer.
func (c *committers) serve(s *Store, st *statement, lane <-chan *command) {
	for {
		waiting := gather(lane, c.stopped)
		if waiting == nil {
			return
		}
		for len(waiting) > 0 {
			var now []*command
			now, waiting = apart(st, waiting)
			c.write(s, st, now)
		}
	}
}

// apart separates the commands that may share a statement from those that must
// come later: two changes of one entity in one statement are unpredictable
// (PostgreSQL manual, 7.8.4), and of two that want the same email, one would
// make the statement fail for all.
func apart(st *statement, waiting []*command) (now, later []*command) {
	type claim struct{ kind, what string }
	taken := make(map[claim]bool, 2*len(waiting))
	for _, cmd := range waiting {
		claims := []claim{{"entity", string(cmd.change.id[:])}}
		if st.unique != nil {
			claims = append(claims, claim{"unique", st.unique(cmd.change)})
		}
		if r := cmd.change.record; r != nil {
			claims = append(claims, claim{"key", r.key})
		}
		if slices.ContainsFunc(claims, func(c claim) bool { return taken[c] }) {
			later = append(later, cmd)
			continue
		}
		for _, c := range claims {
			taken[c] = true
		}
		now = append(now, cmd)
	}
	return now, later
}

// write runs one statement and tells every caller what came of it.
func (c *committers) write(s *Store, st *statement, commands []*command) {
	s.counters.statements.Add(1)
	s.counters.changes.Add(int64(len(commands)))
	changes := make([]change, len(commands))
	for i, cmd := range commands {
		changes[i] = cmd.change
	}
	// Whichever caller leaves, the others stay.
	ctx, cancel := context.WithTimeout(context.Background(), sharedTimeout)
	defer cancel()
	done := written{}
	b := &pgx.Batch{}
	// Both are one transaction: nothing ends it before the batch does.
	b.Queue(`SELECT set_config('lock_timeout', $1, true)`, sharedLockTimeout)
	st.queue(b, changes).Query(done.read)
	err := s.pool.SendBatch(ctx, b).Close()
	if err != nil && rolledBack(err) {
		s.counters.givenUp.Add(1)
		err = errAlone
	}
	for _, cmd := range commands {
		cmd.outcome <- outcome{err == nil && done[cmd.change.id], err}
	}
}

// rolledBack reports whether err comes from the server, and says that it took
// the whole statement back. A session that ends says nothing of that kind: its
// last commit may have taken place.
func rolledBack(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.SeverityUnlocalized == "ERROR"
}
