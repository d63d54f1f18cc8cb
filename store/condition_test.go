package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/store"
)

func TestPreconditions(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		pre  store.Precondition
		want domain.Code
	}{
		"none":                {store.Precondition{}, ""},
		"this version":        {store.AtVersion(3), ""},
		"another version":     {store.AtVersion(2), domain.CodeVersionMismatch},
		"one of some":         {store.Precondition{OneOf: []int64{1, 3}}, ""},
		"one of others":       {store.Precondition{OneOf: []int64{1, 2}}, domain.CodeVersionMismatch},
		"one of none":         {store.Precondition{OneOf: []int64{}}, domain.CodeVersionMismatch},
		"not this version":    {store.Precondition{NoneOf: []int64{3}}, domain.CodeVersionMismatch},
		"not another version": {store.Precondition{NoneOf: []int64{2}}, ""},
		"this and not this":   {store.Precondition{OneOf: []int64{3}, NoneOf: []int64{3}}, domain.CodeVersionMismatch},
		"not there":           {store.Precondition{Absent: true}, domain.CodeVersionMismatch},
	} {
		require.Equal(t, row.want, domain.CodeOf(row.pre.Check(3)), name)
	}
}

func TestOrdersAreFulfilledAndRefunded(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	o := place(t, s, create(t, s, ada()).ID)
	_, err := s.FulfilOrder(t.Context(), o.ID, store.Precondition{}, by)
	requireCode(t, domain.CodeOrderState, err)
	decide(t, s, o.ID)
	_, err = s.RefundOrder(t.Context(), o.ID, store.Precondition{}, by)
	requireCode(t, domain.CodeOrderState, err)
	_, err = s.FulfilOrder(t.Context(), o.ID, store.AtVersion(1), by)
	requireCode(t, domain.CodeVersionMismatch, err)
	fulfilled, err := s.FulfilOrder(t.Context(), o.ID, store.AtVersion(2), by)
	require.NoError(t, err)
	require.Equal(t, domain.OrderStatusFulfilled, fulfilled.Status)
	refunded, err := s.RefundOrder(t.Context(), o.ID, store.AtVersion(3), by)
	require.NoError(t, err)
	require.Equal(t, domain.OrderStatusRefunded, refunded.Status)
	read, err := s.Order(t.Context(), o.ID)
	require.NoError(t, err)
	require.Equal(t, read, refunded)
	require.Equal(t, []string{domain.OrderPlaced, domain.OrderConfirmed, domain.OrderFulfilled, domain.OrderRefunded}, types(log(t, pool), o.ID))
	_, err = s.FulfilOrder(t.Context(), domain.ID{1}, store.Precondition{}, by)
	requireCode(t, domain.CodeNotFound, err)
}

// TestConcurrentRefundsHaveOneWinner: money goes back once.
func TestConcurrentRefundsHaveOneWinner(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	o := place(t, s, create(t, s, ada()).ID)
	decide(t, s, o.ID)
	_, err := s.FulfilOrder(t.Context(), o.ID, store.Precondition{}, by)
	require.NoError(t, err)
	won := 0
	for _, err := range together(20, func(int) error {
		_, err := s.RefundOrder(t.Context(), o.ID, store.Precondition{}, by)
		return err
	}) {
		if err == nil {
			won++
		} else {
			requireCode(t, domain.CodeOrderState, err)
		}
	}
	require.Equal(t, 1, won)
	require.Len(t, types(log(t, pool), o.ID), 4)
}

func TestSecretsAreShared(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	secret, err := s.Secret(t.Context(), "cursors")
	require.NoError(t, err)
	require.Len(t, secret, 32)
	again, err := store.New(pool, store.Config{}).Secret(t.Context(), "cursors")
	require.NoError(t, err)
	require.Equal(t, secret, again)
	_, err = s.Secret(t.Context(), "none")
	require.Error(t, err)
	require.Empty(t, domain.CodeOf(err), "a programmer's mistake")
}
