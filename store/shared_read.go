package store

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"
)

// readers send the readings that arrive together in one round trip, as
// committers do with changes: what is waiting goes at once, a lone reading too.
// Each is a statement of its own there, which begins after its caller asked, so
// it sees all that was committed before that. One that fails, for whatever
// reason, is done again by its own caller.
type readers struct {
	lane    chan *asked
	stopped chan struct{}
}

// asked is a reading on its way through a reader.
type asked struct {
	reading
	answer chan answer // has room for one: the caller may have left
}

// answer is what was read: put hands it to the caller.
type answer struct {
	put func()
	err error
}

func (r *readers) run(s *Store, wg *sync.WaitGroup) {
	for range sharedReaders {
		wg.Go(func() {
			for {
				waiting := gather(r.lane, r.stopped)
				if waiting == nil {
					return
				}
				r.read(s, waiting)
			}
		})
	}
}

// sharedReaders is how many of those round trips may be under way at once.
const sharedReaders = 4

func (r *readers) read(s *Store, waiting []*asked) {
	s.counters.reads.Add(int64(len(waiting)))
	s.counters.readTrips.Add(1)
	ctx, cancel := context.WithTimeout(context.Background(), sharedTimeout)
	defer cancel()
	b := &pgx.Batch{}
	answers := make([]answer, len(waiting))
	for i, a := range waiting {
		answers[i].err = errAlone
		b.Queue(a.sql, a.args...).QueryRow(func(row pgx.Row) error {
			answers[i].put, answers[i].err = a.scan(row)
			return nil
		})
	}
	// What went wrong is in the answers, or is found by the callers again.
	_ = s.pool.SendBatch(ctx, b).Close()
	for i, a := range waiting {
		a.answer <- answers[i]
	}
}

// read reads one row: pgx.ErrNoRows when there is none.
func (s *Store) read(ctx context.Context, r reading) error {
	if shared := s.reading.Load(); shared != nil {
		a := &asked{r, make(chan answer, 1)}
		select {
		case shared.lane <- a:
			select {
			case got := <-a.answer:
				if got.err == nil {
					got.put()
				}
				if got.err == nil || errors.Is(got.err, pgx.ErrNoRows) {
					return got.err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-shared.stopped:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	put, err := r.scan(s.pool.QueryRow(ctx, r.sql, r.args...))
	if err == nil {
		put()
	}
	return err
}

// gather returns what is waiting, and waits for one if there is nothing; nil
// when it is stopped.
func gather[T any](lane <-chan T, stopped <-chan struct{}) []T {
	var waiting []T
	select {
	case one := <-lane:
		waiting = append(waiting, one)
	case <-stopped:
		return nil
	}
	for len(waiting) < maxShared {
		select {
		case one := <-lane:
			waiting = append(waiting, one)
		default:
			return waiting
		}
	}
	return waiting
}
