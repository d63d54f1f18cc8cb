package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/store"
)

// Who shares a round trip with whom doesn't show: each gets what it asked for,
// in a copy of its own, and what can't be read is nobody else's trouble.
func TestReadingsShareRoundTrips(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	in := named("ada")
	in.Metadata = map[string]string{"crm": "1"}
	ada := create(t, s, in)
	o := place(t, s, ada.ID)
	broken := create(t, s, named("bob"))
	_, err := pool.Exec(t.Context(), `UPDATE customers SET metadata = '[]' WHERE id = $1`, broken.ID.String())
	require.NoError(t, err)
	before := s.Stats()
	const n = 400
	errs := together(n, func(i int) error {
		switch i % 4 {
		case 0:
			c, err := s.Customer(t.Context(), ada.ID)
			if err != nil || c.ID != ada.ID || c.Metadata["crm"] != "1" {
				return fmt.Errorf("read %+v: %w", c, err)
			}
			c.Metadata["crm"] = "mine"
			return nil
		case 1:
			got, err := s.Order(t.Context(), o.ID)
			if err != nil || got.ID != o.ID {
				return fmt.Errorf("read %+v: %w", got, err)
			}
			return nil
		case 2:
			_, err := s.Customer(t.Context(), o.ID)
			if domain.CodeOf(err) != domain.CodeNotFound {
				return fmt.Errorf("nobody was found: %w", err)
			}
			return nil
		default:
			c, err := s.Customer(t.Context(), broken.ID)
			if err == nil || domain.CodeOf(err) == domain.CodeNotFound {
				return fmt.Errorf("read %+v: %w", c, err)
			}
			return nil
		}
	})
	require.NoError(t, errors.Join(errs...))
	after := s.Stats()
	require.Equal(t, before.SharedReads+n, after.SharedReads)
	require.Less(t, after.SharedReadTrips-before.SharedReadTrips, int64(n), "some shared")
	_, err = pool.Exec(t.Context(), `UPDATE customers SET metadata = NULL WHERE id = $1`, broken.ID.String())
	require.NoError(t, err)
}

// Whoever knows that something was committed reads it, though others have been
// asking all the time.
func TestSharedReadingsAreNotStale(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	c := create(t, s, named("ada"))
	ctx, stop := context.WithCancel(t.Context())
	others := make(chan error, 8)
	for range cap(others) {
		go func() {
			for ctx.Err() == nil {
				if _, err := s.Customer(ctx, c.ID); err != nil && ctx.Err() == nil {
					others <- err
					return
				}
			}
			others <- nil
		}()
	}
	for i := range 200 {
		want, err := s.UpdateCustomer(t.Context(), c.ID, store.Precondition{}, rename(nth("ada", i)), by)
		require.NoError(t, err)
		got, err := s.Customer(t.Context(), c.ID)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	stop()
	for range cap(others) {
		require.NoError(t, <-others)
	}
}

// Whoever leaves takes nobody along, and what it asked for is not written to
// behind its back: the race detector would tell.
func TestLeavingAReadingTakesNobodyAlong(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	c := create(t, s, named("ada"))
	for i, err := range together(200, func(i int) error {
		ctx, leave := context.WithCancel(t.Context())
		if i%2 == 0 {
			go leave()
		}
		defer leave()
		got, err := s.Customer(ctx, c.ID)
		if err == nil && got.ID != c.ID {
			return fmt.Errorf("read %+v", got)
		}
		return err
	}) {
		if i%2 == 1 || !errors.Is(err, context.Canceled) {
			require.NoError(t, err, i)
		}
	}
}
