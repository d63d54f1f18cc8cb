package verify

import "context"

// reader reads one side of a comparison, some pages ahead of who compares.
type reader[T any] struct {
	pages chan []T
	page  []T
	err   error
}

// pages reads until fetch returns nothing. fetch gets what it returned for
// the page before: where that ended.
func pages[T, K any](ctx context.Context, first K, fetch func(context.Context, K) ([]T, K, error)) *reader[T] {
	r := &reader[T]{pages: make(chan []T, 3)}
	go func() {
		defer close(r.pages)
		for last := first; ; {
			var page []T
			// Written before the channel is closed, and read after that.
			if page, last, r.err = fetch(ctx, last); r.err != nil || len(page) == 0 {
				return
			}
			select {
			case r.pages <- page:
			case <-ctx.Done():
				r.err = ctx.Err()
				return
			}
		}
	}()
	return r
}

// next returns the next one, nil after the last or after an error.
func (r *reader[T]) next() *T {
	for len(r.page) == 0 {
		var more bool
		if r.page, more = <-r.pages; !more {
			return nil
		}
	}
	one := &r.page[0]
	r.page = r.page[1:]
	return one
}

// stop ends the reading with cancel, and waits for that.
func (r *reader[T]) stop(cancel func()) {
	cancel()
	for range r.pages {
	}
}
