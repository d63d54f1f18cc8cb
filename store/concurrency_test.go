package store_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/store"
)

func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	t.Parallel()
	const writers = 50
	s, pool := open(t)
	c := create(t, s, named("ada"))
	for _, err := range together(writers, func(i int) error {
		_, err := s.UpdateCustomer(t.Context(), c.ID, store.Precondition{}, func(c domain.Customer) (domain.CustomerInput, error) {
			if c.Metadata == nil {
				c.Metadata = map[string]string{}
			}
			c.Metadata[nth("w", i)] = "was here"
			return c.CustomerInput, nil
		}, by)
		return err
	}) {
		require.NoError(t, err)
	}
	now, err := s.Customer(t.Context(), c.ID)
	require.NoError(t, err)
	require.Len(t, now.Metadata, writers)
	require.Equal(t, int64(1+writers), now.Version)
	require.Len(t, types(log(t, pool), c.ID), 1+writers)
}

func TestConcurrentUpdatesOfOneVersionHaveOneWinner(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	c := create(t, s, named("ada"))
	won := 0
	for _, err := range together(20, func(i int) error {
		_, err := s.UpdateCustomer(t.Context(), c.ID, store.AtVersion(1), rename(nth("w", i)), by)
		return err
	}) {
		if err == nil {
			won++
		} else {
			requireCode(t, domain.CodeVersionMismatch, err)
		}
	}
	require.Equal(t, 1, won)
}

func TestConcurrentCreatesOfOneEmailHaveOneWinner(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	won := 0
	for _, err := range together(40, func(i int) error {
		in := named("ada")
		if i%2 == 0 {
			in.Email = "ADA@example.COM"
		}
		_, err := s.CreateCustomer(t.Context(), in, by)
		return err
	}) {
		if err == nil {
			won++
		} else {
			requireCode(t, domain.CodeEmailTaken, err)
		}
	}
	require.Equal(t, 1, won)
	require.Len(t, log(t, pool), 2, "those who lost left nothing")
}

// An order is never open while its customer is deleted, however the two writes
// meet.
func TestPlacingRacesWithDeletingTheCustomer(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	rnd := rand.New(rand.NewPCG(7, 7))
	placed, deleted := 0, 0
	for round := range 150 {
		c := create(t, s, named(nth("c", round)))
		deleter := rnd.IntN(4)
		errs := together(4, func(i int) error {
			if i == deleter {
				return s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by)
			}
			_, err := s.PlaceOrder(t.Context(), tea(c.ID), by)
			return err
		})
		orders := 0
		for i, err := range errs {
			switch {
			case i == deleter && err != nil:
				requireCode(t, domain.CodeOpenOrders, err)
			case i != deleter && err != nil:
				requireCode(t, domain.CodeInvalid, err)
			case i != deleter:
				orders++
			}
		}
		if errs[deleter] == nil {
			deleted++
			require.Zero(t, orders, "an order was placed for a deleted customer")
		} else {
			placed++
			require.Positive(t, orders, "the deletion was refused without an open order")
		}
	}
	t.Logf("%d deletions won, %d orders", deleted, placed)
	var wrong int
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM orders o JOIN customers c ON c.id = o.customer_id
		WHERE c.deleted_at IS NOT NULL AND o.status IN ('placed', 'confirmed')`).Scan(&wrong))
	require.Zero(t, wrong)
}

// Everything at once on a few entities: every outcome is one that the rules
// allow, and the log holds (checkLog, when the test ends).
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	var customers, orders []domain.ID
	for i := range 4 {
		c := create(t, s, named(nth("c", i)))
		customers = append(customers, c.ID)
		for range 3 {
			orders = append(orders, place(t, s, c.ID).ID)
		}
	}
	allowed := []domain.Code{
		"", domain.CodeNotFound, domain.CodeEmailTaken, domain.CodeOpenOrders, domain.CodeOrderState, domain.CodeInvalid,
	}
	for _, err := range together(16, func(i int) error {
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		some := func(ids []domain.ID) domain.ID { return ids[rnd.IntN(len(ids))] }
		for range 40 {
			var err error
			switch rnd.IntN(7) {
			case 0:
				_, err = s.UpdateCustomer(t.Context(), some(customers), store.Precondition{}, rename(nth("n", rnd.IntN(9))), by)
			case 1:
				_, err = s.CancelOrder(t.Context(), some(orders), store.Precondition{}, by)
			case 2:
				_, err = s.UpdateOrder(t.Context(), some(orders), store.Precondition{}, func(o domain.Order) (domain.OrderInput, error) {
					o.Items[0].Quantity++
					return o.OrderInput, nil
				}, by)
			case 3:
				err = s.DeleteOrder(t.Context(), some(orders), store.Precondition{}, by)
			case 4:
				for _, e := range s.DecideOrders(t.Context(), []domain.ID{some(orders), some(orders), some(orders)},
					func(domain.ID) domain.Metadata { return by }) {
					if e != nil {
						err = e
					}
				}
			case 5:
				_, err = s.PlaceOrder(t.Context(), tea(some(customers)), by)
			case 6:
				err = s.DeleteCustomer(t.Context(), some(customers), store.Precondition{}, by)
			}
			if code := domain.CodeOf(err); err != nil && (code == "" || !slices.Contains(allowed, code)) {
				return err
			}
		}
		return nil
	}) {
		require.NoError(t, err)
	}
	require.Greater(t, len(log(t, pool)), 100)
}
