package domain_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

func TestOnlyAConfirmedOrderIsFulfilledAndOnlyAFulfilledOneRefunded(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 4, 5, 6, 789e6, time.UTC)
	for _, row := range []struct {
		name   string
		decide func(domain.Order, time.Time) (domain.Change[domain.Order], error)
		from   domain.OrderStatus
		to     domain.OrderStatus
		event  string
	}{
		{"fulfil", domain.FulfilOrder, domain.OrderStatusConfirmed, domain.OrderStatusFulfilled, "order.fulfilled.v1"},
		{"refund", domain.RefundOrder, domain.OrderStatusFulfilled, domain.OrderStatusRefunded, "order.refunded.v1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			for _, status := range []domain.OrderStatus{
				domain.OrderStatusPlaced, domain.OrderStatusConfirmed, domain.OrderStatusRejected,
				domain.OrderStatusFulfilled, domain.OrderStatusRefunded, domain.OrderStatusCancelled,
			} {
				o := domain.Order{ID: domain.ID{1}, Version: 3, Total: 700, Status: status, CreatedAt: at, UpdatedAt: at}
				change, err := row.decide(o, at.Add(time.Minute+time.Microsecond))
				if status != row.from {
					require.Equal(t, domain.CodeOrderState, domain.CodeOf(err), status)
					continue
				}
				require.NoError(t, err)
				want := o
				want.Status, want.Version, want.UpdatedAt = row.to, 4, at.Add(time.Minute)
				require.Equal(t, domain.Change[domain.Order]{Type: row.event, Before: &o, After: &want, Version: 4, At: want.UpdatedAt}, change)
			}
		})
	}
}
