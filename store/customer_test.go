package store_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/store"
)

func TestCreateCustomerLeavesStateEventAndRequest(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 4, 5, 6, 789_654_321, time.FixedZone("", 3600))
	s, pool := openAt(t, func() time.Time { return at })
	c := create(t, s, ada())

	require.Equal(t, byte(7), c.ID[6]>>4, "UUIDv7")
	require.Equal(t, time.Date(2026, 11, 21, 3, 5, 6, 789e6, time.UTC), c.CreatedAt)
	read, err := s.Customer(t.Context(), c.ID)
	require.NoError(t, err)
	require.Equal(t, c, read, "nothing is lost on the way through the database")

	events := log(t, pool)
	require.Len(t, events, 2)
	change, request := events[0], events[1]
	require.Equal(t, domain.CustomerCreated, change.Type)
	require.Equal(t, domain.AggregateCustomer, change.AggregateType)
	require.Equal(t, c.ID, change.AggregateID)
	require.Equal(t, c.ID.String(), change.Key)
	require.Nil(t, change.Before)
	require.Equal(t, marshal(t, c), string(change.After))
	require.Equal(t, marshal(t, by), string(change.Metadata))
	require.Equal(t, c.CreatedAt, change.OccurredAt)

	n := requests(t, events)[0]
	require.Equal(t, domain.Notification{
		ID: n.ID, CustomerID: c.ID, Template: domain.TemplateWelcome,
		To: domain.Recipient{Name: "Ada Lovelace", Email: "Ada@Example.com"}, CreatedAt: c.CreatedAt,
	}, n)
	require.Equal(t, c.CreatedAt, request.OccurredAt)
	var m domain.Metadata
	require.NoError(t, json.Unmarshal(request.Metadata, &m))
	want := by
	want.CausationID = change.ID.String()
	require.Equal(t, want, m, "the change caused the request")
}

func TestCustomerRoundTripIsExact(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	for name, in := range map[string]domain.CustomerInput{
		"least":     {Name: "A", Email: "a@example.com"},
		"no limit":  {Name: "B", Email: "b@example.com", SpendingLimit: &domain.Money{Amount: 0, Currency: "JPY"}},
		"empty":     {Name: "C", Email: "c@example.com", Address: &domain.Address{}, Metadata: map[string]string{}},
		"unicode":   {Name: "Łukasz 😀 \\u0041 \\", Email: "łukasz@exämple.com", Metadata: map[string]string{"null": "null", "": "x"}},
		"array-ish": {Name: `{"a",NULL}`, Email: "e@example.com", Phone: `NULL`, Address: &domain.Address{City: `{NULL,"\"}`}},
	} {
		if name == "unicode" {
			delete(in.Metadata, "")
		}
		c, err := s.CreateCustomer(t.Context(), in, domain.Metadata{})
		require.NoError(t, err, name)
		read, err := s.Customer(t.Context(), c.ID)
		require.NoError(t, err, name)
		require.Equal(t, c, read, name)
	}
}

func TestUpdateCustomer(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, ada())
	updated, err := s.UpdateCustomer(t.Context(), c.ID, store.AtVersion(1), func(c domain.Customer) (domain.CustomerInput, error) {
		c.Metadata["b"] = "edited in place"
		c.Address.City = "Paris"
		c.SpendingLimit = nil
		return c.CustomerInput, nil
	}, by)
	require.NoError(t, err)
	require.Equal(t, int64(2), updated.Version)
	require.Equal(t, "Paris", updated.Address.City)

	events := log(t, pool)
	require.Len(t, events, 3)
	require.Equal(t, domain.CustomerUpdated, events[2].Type)
	require.Equal(t, marshal(t, c), string(events[2].Before), "an edit in place leaves the state before alone")
	require.Equal(t, marshal(t, updated), string(events[2].After))

	same, err := s.UpdateCustomer(t.Context(), c.ID, store.Precondition{}, rename(updated.Name), by)
	require.NoError(t, err)
	require.Equal(t, updated, same)
	require.Len(t, log(t, pool), 3, "no change, no event")
}

func TestUpdateCustomerRefuses(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, named("ada"))
	other := create(t, s, named("grace"))
	gone := create(t, s, named("gone"))
	require.NoError(t, s.DeleteCustomer(t.Context(), gone.ID, store.Precondition{}, by))
	before := log(t, pool)

	own := errors.New("the caller's own")
	for name, row := range map[string]struct {
		id   domain.ID
		pre  store.Precondition
		edit func(domain.Customer) (domain.CustomerInput, error)
		want domain.Code
	}{
		"unknown":        {domain.ID{1}, store.Precondition{}, rename("x"), domain.CodeNotFound},
		"deleted":        {gone.ID, store.Precondition{}, rename("x"), domain.CodeNotFound},
		"other version":  {c.ID, store.AtVersion(2), rename("x"), domain.CodeVersionMismatch},
		"invalid":        {c.ID, store.Precondition{}, rename("nul\x00"), domain.CodeInvalid},
		"invalid UTF-8":  {c.ID, store.Precondition{}, rename("\xff"), domain.CodeInvalid},
		"email is taken": {c.ID, store.Precondition{}, func(domain.Customer) (domain.CustomerInput, error) { return named("GRACE"), nil }, domain.CodeEmailTaken},
	} {
		_, err := s.UpdateCustomer(t.Context(), row.id, row.pre, row.edit, by)
		require.Equal(t, row.want, domain.CodeOf(err), "%s: %v", name, err)
	}
	_, err := s.UpdateCustomer(t.Context(), c.ID, store.Precondition{}, func(domain.Customer) (domain.CustomerInput, error) {
		return domain.CustomerInput{}, own
	}, by)
	require.ErrorIs(t, err, own)
	require.Equal(t, before, log(t, pool), "nothing was written")
	require.NotEqual(t, c.ID, other.ID)
}

func TestEmailIsFreeAgainAfterDeletion(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, named("ada"))
	_, err := s.CreateCustomer(t.Context(), named("Ada"), by)
	requireCode(t, domain.CodeEmailTaken, err)
	require.NotContains(t, err.Error(), "@example.com", "no submitted value in the error")
	require.NoError(t, s.DeleteCustomer(t.Context(), c.ID, store.AtVersion(1), by))
	again := create(t, s, named("Ada"))
	require.NotEqual(t, c.ID, again.ID)
	require.Len(t, log(t, pool), 5)
}

func TestDeleteCustomer(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, ada())
	o := place(t, s, c.ID)

	requireCode(t, domain.CodeVersionMismatch, s.DeleteCustomer(t.Context(), c.ID, store.AtVersion(2), by))
	requireCode(t, domain.CodeOpenOrders, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by))
	decide(t, s, o.ID)
	requireCode(t, domain.CodeOpenOrders, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by))
	_, err := s.CancelOrder(t.Context(), o.ID, store.Precondition{}, by)
	require.NoError(t, err)
	require.NoError(t, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by))

	events := log(t, pool)
	last := events[len(events)-1]
	require.Equal(t, domain.CustomerDeleted, last.Type)
	require.Equal(t, int64(2), last.AggregateVersion)
	require.Equal(t, marshal(t, c), string(last.Before))
	require.Nil(t, last.After)
	requireCode(t, domain.CodeNotFound, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by))
	_, err = s.PlaceOrder(t.Context(), tea(c.ID), by)
	requireCode(t, domain.CodeInvalid, err)
	require.Len(t, log(t, pool), len(events))
	_, err = s.Order(t.Context(), o.ID)
	require.NoError(t, err, "a deleted customer's orders stay")
}

func TestCustomersPages(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	empty, err := s.Customers(t.Context(), store.CustomerFilter{}, store.Page{})
	require.NoError(t, err)
	require.Equal(t, store.List[domain.Customer]{Items: []domain.Customer{}}, empty)

	var want []domain.Customer
	for i := range 7 {
		c := create(t, s, named(nth("c", i)))
		if i == 3 {
			require.NoError(t, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, by))
			continue
		}
		want = append(want, c)
	}
	for limit := 1; limit <= 7; limit++ {
		var got []domain.Customer
		page := store.Page{Limit: limit}
		for {
			l, err := s.Customers(t.Context(), store.CustomerFilter{}, page)
			require.NoError(t, err)
			require.LessOrEqual(t, len(l.Items), limit)
			got = append(got, l.Items...)
			if l.Next == nil {
				break
			}
			page.After = l.Next
		}
		require.Equal(t, want, got, "limit %d", limit)
	}
	all, err := s.Customers(t.Context(), store.CustomerFilter{}, store.Page{})
	require.NoError(t, err)
	require.Equal(t, want, all.Items)
	require.Nil(t, all.Next)
}

func TestTooLargeEventIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	c := create(t, s, ada())
	before := log(t, pool)
	big := by
	big.Traceparent = strings.Repeat("x", 1_000_000)
	_, err := s.CreateCustomer(t.Context(), named("b"), big)
	requireCode(t, domain.CodeTooLarge, err)
	_, err = s.UpdateCustomer(t.Context(), c.ID, store.Precondition{}, rename("b"), big)
	requireCode(t, domain.CodeTooLarge, err)
	requireCode(t, domain.CodeTooLarge, s.DeleteCustomer(t.Context(), c.ID, store.Precondition{}, big))
	require.Equal(t, before, log(t, pool))

	big.Traceparent = strings.Repeat("x", 990_000)
	_, err = s.CreateCustomer(t.Context(), named("b"), big)
	require.NoError(t, err, "what Kafka takes is stored")
}
