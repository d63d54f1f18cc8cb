package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

func many(prefix string, n int) []domain.CustomerInput {
	ins := make([]domain.CustomerInput, n)
	for i := range ins {
		ins[i] = named(fmt.Sprint(prefix, i))
	}
	return ins
}

func TestManyAreCreatedAsOneByOne(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	ins := many("c", 999)
	ins = append(ins, ada())
	customers, err := s.CreateCustomers(t.Context(), ins, by)
	require.NoError(t, err)
	require.Len(t, customers, 1000)
	orders := make([]domain.OrderInput, 1000)
	for i := range orders {
		orders[i] = tea(customers[i/2].ID)
	}
	placed, err := s.PlaceOrders(t.Context(), orders, by)
	require.NoError(t, err)
	events := log(t, pool)
	require.Len(t, events, 3000)
	require.Len(t, requests(t, events), 1000, "every customer is welcomed")
	for i, o := range placed {
		require.Equal(t, customers[i/2].ID, o.CustomerID)
		got, err := s.Order(t.Context(), o.ID)
		require.NoError(t, err)
		require.Equal(t, o, got)
	}
	got, err := s.Customer(t.Context(), customers[999].ID)
	require.NoError(t, err)
	require.Equal(t, customers[999], got)
	for i, c := range customers {
		require.Equal(t, c.ID, events[2*i].AggregateID, "events are in the order of the request")
	}
}

func TestManyAreCreatedTogetherOrNotAtAll(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, named("taken"))
	before := log(t, pool)
	ins := many("c", 10)
	ins[3] = named("taken")
	ins[7].Email = "C1@Example.com"
	_, err := s.CreateCustomers(t.Context(), ins, by)
	requireCode(t, domain.CodeEmailTaken, err)
	require.ErrorContains(t, err, "[3].email is the email of another customer; [7].email is the email of another customer")
	ins[5].Name = ""
	_, err = s.CreateCustomers(t.Context(), ins, by)
	requireCode(t, domain.CodeInvalid, err)
	require.ErrorContains(t, err, "[3].email is the email of another customer; [5].name is required; [7].email")

	orders := []domain.OrderInput{tea(c.ID), tea(domain.ID{9}), tea(c.ID), {}}
	_, err = s.PlaceOrders(t.Context(), orders[:3], by)
	requireCode(t, domain.CodeInvalid, err)
	require.ErrorContains(t, err, "[1].customer_id must be the id of an existing customer")
	_, err = s.PlaceOrders(t.Context(), orders, by)
	require.ErrorContains(t, err, "[1].customer_id must be the id of an existing customer")
	require.ErrorContains(t, err, "[3].currency")
	breakTable(t, pool, "outbox", "NEW.aggregate_type = 'notification'", "XX000")
	_, err = s.CreateCustomers(t.Context(), many("d", 3), by)
	require.Error(t, err)
	breakTable(t, pool, "outbox", "false", "XX000")
	require.Equal(t, before, log(t, pool))
}

func TestImportedAreThoseThatCanBe(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, named("taken"))
	before := log(t, pool)
	ins := many("c", 100)
	ins[3], ins[5].Name, ins[7].Email = named("taken"), "", "C1@Example.com"
	want := map[int]domain.Code{3: domain.CodeEmailTaken, 5: domain.CodeInvalid, 7: domain.CodeEmailTaken}
	for _, validateOnly := range []bool{true, false} {
		results := s.ImportCustomers(t.Context(), ins, validateOnly, by)
		require.Len(t, results, 100)
		for i, r := range results {
			require.Equal(t, want[i], domain.CodeOf(r.Err), "%d: %v", i, r.Err)
			require.Equal(t, r.Err != nil || validateOnly, r.ID.IsZero(), i)
		}
		if validateOnly {
			require.Equal(t, before, log(t, pool))
		}
	}
	require.Len(t, log(t, pool), 2+2*97)
	orders := []domain.OrderInput{tea(c.ID), tea(domain.ID{9}), {}, tea(c.ID)}
	for _, validateOnly := range []bool{true, false} {
		for i, r := range s.ImportOrders(t.Context(), orders, validateOnly, by) {
			require.Equal(t, i == 1 || i == 2, domain.CodeOf(r.Err) == domain.CodeInvalid, i)
		}
	}
	require.Len(t, log(t, pool), 2+2*97+2)
}

// One line that can't be written, for a reason that no rule tells, is found and
// fails alone.
func TestImportFindsTheOneThatFails(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	breakTable(t, pool, "customers", "NEW.name IN ('c13', 'c77')", "XX000")
	for i, r := range s.ImportCustomers(t.Context(), many("c", 100), false, by) {
		require.Equal(t, i == 13 || i == 77, r.Err != nil, "%d: %v", i, r.Err)
	}
	breakTable(t, pool, "customers", "false", "XX000")

	// So is one that must wait for somebody's lock.
	locked, other := create(t, s, named("locked")), create(t, s, named("other"))
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), `SELECT FROM customers WHERE id = $1 FOR UPDATE`, locked.ID.String())
	require.NoError(t, err)
	results := s.ImportOrders(t.Context(), []domain.OrderInput{tea(other.ID), tea(locked.ID), tea(other.ID)}, false, by)
	require.NoError(t, results[0].Err)
	requireCode(t, domain.CodeWriteConflict, results[1].Err)
	require.NoError(t, results[2].Err)
}

// Imports, batches and single writes that want the same emails: each email has
// one winner, and nobody fails for another reason.
func TestBulkBesideSingleWrites(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	won := make([]int, 8)
	for _, err := range together(8, func(i int) error {
		ins := many("c", 60)
		switch i % 3 {
		case 0:
			for _, r := range s.ImportCustomers(t.Context(), ins, false, by) {
				if r.Err == nil {
					won[i]++
				} else if domain.CodeOf(r.Err) != domain.CodeEmailTaken {
					return r.Err
				}
			}
		case 1:
			for n := range ins {
				if _, err := s.CreateCustomer(t.Context(), ins[len(ins)-1-n], by); err == nil {
					won[i]++
				} else if domain.CodeOf(err) != domain.CodeEmailTaken {
					return err
				}
			}
		case 2:
			if _, err := s.CreateCustomers(t.Context(), ins[10*i:][:10], by); err == nil {
				won[i] += 10
			} else if domain.CodeOf(err) != domain.CodeEmailTaken {
				return err
			}
		}
		return nil
	}) {
		require.NoError(t, err)
	}
	sum := 0
	for _, n := range won {
		sum += n
	}
	require.Equal(t, 60, sum)
}

func TestImportIsFast(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 20,000 customers")
	}
	s, _ := open(t)
	start := time.Now()
	for i := range 20 {
		for _, r := range s.ImportCustomers(t.Context(), many(fmt.Sprint("b", i, "-"), 1000), false, by) {
			require.NoError(t, r.Err)
		}
	}
	t.Logf("%.0f customers/s", 20_000/time.Since(start).Seconds())
}
