package api

import (
	"context"

	"outflow/domain"
	"outflow/store"
)

// customers describes the customers to the handlers.
func customers(s *store.Store) entity[domain.Customer, domain.CustomerInput] {
	return entity[domain.Customer, domain.CustomerInput]{
		aggregate: domain.AggregateCustomer,
		path:      "/api/customers",
		id:        func(c *domain.Customer) domain.ID { return c.ID },
		version:   func(c *domain.Customer) int64 { return c.Version },
		input:     func(c *domain.Customer) domain.CustomerInput { return c.CustomerInput },
		decode:    (*decoding).customer,
		computed:  computedOfCustomer,
		validate:  domain.CustomerInput.Validate,
		sample:    mergeableCustomer(),
		create:    s.CreateCustomer,
		createAll: s.CreateCustomers,
		importAll: s.ImportCustomers,
		get:       s.Customer,
		list: func(p *params) lister[domain.Customer] {
			f := customerFilter(p)
			return func(ctx context.Context, page store.Page) (store.List[domain.Customer], error) {
				return s.Customers(ctx, f, page)
			}
		},
		update:  s.UpdateCustomer,
		remove:  s.DeleteCustomer,
		history: s.History,
		past:    s.CustomerAt,
		docs: entityDocs{
			tag: "Customers", one: "customer", One: "Customer",
			sorts: customerSorts, filters: customerFilterDocs(),
			creating: "Creates a customer, who is welcomed by mail.",
			deleting: "Deletes a customer without open orders (placed, confirmed).",
			input:    exampleCustomerInput, change: map[string]any{"phone": nil, "address": map[string]any{"city": "Oxford"}}, resource: exampleCustomer,
			patchOps:       []any{map[string]any{"op": "replace", "path": "/name", "value": "Ada King"}, map[string]any{"op": "add", "path": "/metadata", "value": map[string]any{"tier": "gold"}}},
			createProblems: []domain.Code{domain.CodeEmailTaken, domain.CodeWriteConflict},
			updateProblems: []domain.Code{domain.CodeEmailTaken, domain.CodeWriteConflict},
			deleteProblems: []domain.Code{domain.CodeOpenOrders, domain.CodeWriteConflict},
		},
	}
}

// mergeableCustomer has a spending limit, because half of one can be merged only
// into another, and no metadata, of which there is room for so much.
func mergeableCustomer() domain.CustomerInput {
	in := exampleCustomerInput
	in.Metadata = nil
	return in
}

// customer reads a customer over in. current is nil for a POST or PUT.
func (d *decoding) customer(v *value, in *domain.CustomerInput, current *domain.Customer) {
	for i := range d.object(v, nil) {
		m := &v.members[i]
		at := &path{name: m.name}
		switch m.name {
		case "name":
			d.text(&m.value, at, &in.Name)
		case "email":
			d.text(&m.value, at, &in.Email)
		case "phone":
			d.text(&m.value, at, &in.Phone)
		case "address":
			in.Address = d.address(&m.value, at, in.Address)
		case "status":
			d.text(&m.value, at, (*string)(&in.Status))
		case "spending_limit":
			in.SpendingLimit = d.money(&m.value, at, in.SpendingLimit)
		case "metadata":
			d.texts(&m.value, at, &in.Metadata)
		default:
			d.computed(m, at, computedOfCustomer(m.name, current))
		}
	}
}

// computedOfCustomer returns what a customer says under the name of a
// read-only property, and nil for any other name.
func computedOfCustomer(name string, c *domain.Customer) any {
	if c == nil {
		c = &domain.Customer{}
	}
	switch name {
	case "id":
		return c.ID
	case "version":
		return c.Version
	case "created_at":
		return c.CreatedAt
	case "updated_at":
		return c.UpdatedAt
	}
	return nil
}

func (d *decoding) address(v *value, at *path, before *domain.Address) *domain.Address {
	if v.kind == null {
		return nil
	}
	var a domain.Address
	if before != nil {
		a = *before
	}
	for i := range d.object(v, at) {
		m := &v.members[i]
		at := &path{parent: at, name: m.name}
		switch m.name {
		case "line1":
			d.text(&m.value, at, &a.Line1)
		case "line2":
			d.text(&m.value, at, &a.Line2)
		case "city":
			d.text(&m.value, at, &a.City)
		case "region":
			d.text(&m.value, at, &a.Region)
		case "postal_code":
			d.text(&m.value, at, &a.PostalCode)
		case "country":
			d.text(&m.value, at, &a.Country)
		default:
			d.unknown(m.name, at.parent)
		}
	}
	return &a
}

func (d *decoding) money(v *value, at *path, before *domain.Money) *domain.Money {
	if v.kind == null {
		return nil
	}
	var money domain.Money
	known := before != nil
	if known {
		money = *before
	}
	for i := range d.object(v, at) {
		m := &v.members[i]
		at := &path{parent: at, name: m.name}
		switch m.name {
		case "amount":
			known = d.integer(&m.value, at, &money.Amount)
		case "currency":
			d.text(&m.value, at, &money.Currency)
		default:
			d.unknown(m.name, at.parent)
		}
	}
	if v.kind == object && !known {
		d.bad(&path{parent: at, name: "amount"}, "is required")
	}
	return &money
}
