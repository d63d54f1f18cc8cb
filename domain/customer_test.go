package domain_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

var (
	id    = domain.MustParseID("01938f00-0000-7000-8000-000000000001")
	owner = domain.MustParseID("01938f00-0000-7000-8000-000000000002")
	t0    = time.Date(2026, 11, 21, 4, 5, 6, 7e6, time.UTC)
	t1    = t0.Add(time.Minute)
)

func ada() domain.CustomerInput {
	return domain.CustomerInput{
		Name: "Ada", Email: "Ada@example.com", Phone: "1-800-FLOWERS", Status: domain.CustomerActive,
		Address:       &domain.Address{City: "London", Country: "GB"},
		SpendingLimit: &domain.Money{Amount: 100, Currency: "EUR"},
		Metadata:      map[string]string{"k": "v"},
	}
}

func customer(t *testing.T) domain.Customer {
	t.Helper()
	c, err := domain.CreateCustomer(owner, ada(), t0)
	require.NoError(t, err)
	return *c.After
}

func TestCreateCustomer(t *testing.T) {
	t.Parallel()
	got, err := domain.CreateCustomer(id, ada(), t0.Add(999*time.Microsecond))
	require.NoError(t, err)
	want := domain.Customer{ID: id, Version: 1, CustomerInput: ada(), CreatedAt: t0, UpdatedAt: t0}
	require.Equal(t, domain.Change[domain.Customer]{
		Type: domain.CustomerCreated, After: &want, Version: 1, At: t0,
		Notifications: []domain.Notification{{
			CustomerID: id, Template: domain.TemplateWelcome, To: domain.Recipient{Name: "Ada", Email: "Ada@example.com"}, CreatedAt: t0,
		}},
	}, got)
	require.False(t, got.NoOp())

	_, err = domain.CreateCustomer(id, domain.CustomerInput{}, t0)
	require.Equal(t, domain.CodeInvalid, domain.CodeOf(err))
}

func TestEqualCustomersHaveEqualJSON(t *testing.T) {
	t.Parallel()
	least := domain.CustomerInput{Name: "Ada", Email: "a@example.com"}
	padded := domain.CustomerInput{
		Name: "Ada", Email: "a@example.com", Status: domain.CustomerActive, Address: &domain.Address{}, Metadata: map[string]string{},
	}
	a, err := domain.CreateCustomer(id, least, t0)
	require.NoError(t, err)
	b, err := domain.CreateCustomer(id, padded, t0)
	require.NoError(t, err)
	require.Equal(t, a, b)
	require.Equal(t, domain.CustomerActive, a.After.Status)
	state, err := json.Marshal(a.After)
	require.NoError(t, err)
	require.Equal(t, `{"id":"01938f00-0000-7000-8000-000000000001","version":1,"name":"Ada","email":"a@example.com",`+
		`"status":"active","created_at":"2026-11-21T04:05:06.007Z","updated_at":"2026-11-21T04:05:06.007Z"}`, string(state))
}

func TestUpdateCustomer(t *testing.T) {
	t.Parallel()
	before := customer(t)
	for name, edit := range map[string]func(*domain.CustomerInput){
		"name":           func(in *domain.CustomerInput) { in.Name = "Grace" },
		"email":          func(in *domain.CustomerInput) { in.Email = "ada@example.com" },
		"phone":          func(in *domain.CustomerInput) { in.Phone = "" },
		"address":        func(in *domain.CustomerInput) { in.Address = nil },
		"city":           func(in *domain.CustomerInput) { in.Address.City = "Paris" },
		"status":         func(in *domain.CustomerInput) { in.Status = domain.CustomerClosed },
		"limit":          func(in *domain.CustomerInput) { in.SpendingLimit.Amount++ },
		"no limit":       func(in *domain.CustomerInput) { in.SpendingLimit = nil },
		"metadata":       func(in *domain.CustomerInput) { in.Metadata["k"] = "w" },
		"more metadata":  func(in *domain.CustomerInput) { in.Metadata["l"] = "" },
		"other metadata": func(in *domain.CustomerInput) { in.Metadata = map[string]string{"l": "v"} },
	} {
		in := before.Clone()
		edit(&in)
		got, err := domain.UpdateCustomer(before, in, t1)
		require.NoError(t, err, name)
		require.Equal(t, customer(t), *got.Before, name)
		want := domain.Customer{ID: before.ID, Version: 2, CustomerInput: in, CreatedAt: t0, UpdatedAt: t1}
		require.Equal(t, domain.Change[domain.Customer]{
			Type: domain.CustomerUpdated, Before: &before, After: &want, Version: 2, At: t1,
		}, got, name)
	}

	same, err := domain.UpdateCustomer(before, ada(), t1)
	require.NoError(t, err)
	require.True(t, same.NoOp())
	require.Equal(t, int64(1), same.Version)
	require.Equal(t, before, *same.After)
	empty := before
	empty.Address, empty.Metadata = nil, nil
	in := empty.Clone()
	in.Address, in.Metadata, in.Status = &domain.Address{}, map[string]string{}, ""
	same, err = domain.UpdateCustomer(empty, in, t1)
	require.NoError(t, err)
	require.True(t, same.NoOp(), "what is empty is what is missing")

	_, err = domain.UpdateCustomer(before, domain.CustomerInput{}, t1)
	require.Equal(t, domain.CodeInvalid, domain.CodeOf(err))
}

func TestTimeNeverGoesBack(t *testing.T) {
	t.Parallel()
	c, earlier := customer(t), t0.Add(-time.Hour)
	in := c.Clone()
	in.Name = "Grace"
	updated, err := domain.UpdateCustomer(c, in, earlier)
	require.NoError(t, err)
	require.Equal(t, t0, updated.At)
	require.Equal(t, t0, updated.After.UpdatedAt)
	deleted, err := domain.DeleteCustomer(c, false, earlier)
	require.NoError(t, err)
	require.Equal(t, t0, deleted.At)
	require.Equal(t, t0, domain.DecideOrder(order(t), &c, 0, earlier).At)
}

func TestDeleteCustomer(t *testing.T) {
	t.Parallel()
	c := customer(t)
	got, err := domain.DeleteCustomer(c, false, t1)
	require.NoError(t, err)
	require.Equal(t, domain.Change[domain.Customer]{Type: domain.CustomerDeleted, Before: &c, Version: 2, At: t1}, got)
	_, err = domain.DeleteCustomer(c, true, t1)
	require.Equal(t, domain.CodeOpenOrders, domain.CodeOf(err))
}

func TestClonesShareNothing(t *testing.T) {
	t.Parallel()
	in := ada()
	clone := in.Clone()
	require.Equal(t, in, clone)
	clone.Address.City, clone.SpendingLimit.Amount, clone.Metadata["k"] = "x", 7, "x"
	require.Equal(t, ada(), in)
	require.Equal(t, domain.CustomerInput{}, domain.CustomerInput{}.Clone())

	o := tea()
	items := o.Clone()
	require.Equal(t, o, items)
	items.Items[0].Quantity = 99
	require.Equal(t, tea(), o)
}
