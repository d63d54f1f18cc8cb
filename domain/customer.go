package domain

import (
	"maps"
	"time"
)

// CustomerStatus is a customer's standing.
type CustomerStatus string

// The standings. Only an active customer's orders are confirmed.
const (
	CustomerActive    CustomerStatus = "active"
	CustomerSuspended CustomerStatus = "suspended"
	CustomerClosed    CustomerStatus = "closed"
)

// Customer is a customer as the API shows it, as events carry it and as
// replicas hold it.
type Customer struct {
	ID      ID    `json:"id"`
	Version int64 `json:"version"`
	CustomerInput
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// CustomerInput is the part of a customer that callers decide.
type CustomerInput struct {
	Name          string            `json:"name"`
	Email         string            `json:"email"`
	Phone         string            `json:"phone,omitempty"`
	Address       *Address          `json:"address,omitempty"`
	Status        CustomerStatus    `json:"status"`
	SpendingLimit *Money            `json:"spending_limit,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty"`
}

// Address is a postal address; every part is optional.
type Address struct {
	Line1      string `json:"line1,omitempty"`
	Line2      string `json:"line2,omitempty"`
	City       string `json:"city,omitempty"`
	Region     string `json:"region,omitempty"`
	PostalCode string `json:"postal_code,omitempty"`
	Country    string `json:"country,omitempty"` // ISO 3166-1 alpha-2
}

// Clone returns a copy that shares nothing with in, so that it can be edited in
// place while the original still serves as the state before.
func (in CustomerInput) Clone() CustomerInput {
	if in.Address != nil {
		a := *in.Address
		in.Address = &a
	}
	if in.SpendingLimit != nil {
		m := *in.SpendingLimit
		in.SpendingLimit = &m
	}
	in.Metadata = maps.Clone(in.Metadata)
	return in
}

// CreateCustomer makes a customer. It returns CodeInvalid with every problem.
func CreateCustomer(id ID, in CustomerInput, now time.Time) (Change[Customer], error) {
	in = in.normal()
	if err := in.Validate(); err != nil {
		return Change[Customer]{}, err
	}
	now = Timestamp(now)
	c := Customer{ID: id, Version: 1, CustomerInput: in, CreatedAt: now, UpdatedAt: now}
	return Change[Customer]{
		Type: CustomerCreated, After: &c, Version: 1, At: now,
		Notifications: []Notification{c.notification(TemplateWelcome, nil, now)},
	}, nil
}

// UpdateCustomer replaces what callers decide of a customer. It returns
// CodeInvalid with every problem; an input that changes nothing gives a no-op.
func UpdateCustomer(c Customer, in CustomerInput, now time.Time) (Change[Customer], error) {
	in = in.normal()
	if err := in.Validate(); err != nil {
		return Change[Customer]{}, err
	}
	if c.CustomerInput.equal(in) {
		return unchanged(c, c.Version), nil
	}
	next := c
	next.CustomerInput, next.Version, next.UpdatedAt = in, c.Version+1, later(c.UpdatedAt, now)
	return Change[Customer]{Type: CustomerUpdated, Before: &c, After: &next, Version: next.Version, At: next.UpdatedAt}, nil
}

// DeleteCustomer deletes a customer, unless orders of it are still open: then
// it returns CodeOpenOrders.
func DeleteCustomer(c Customer, openOrders bool, now time.Time) (Change[Customer], error) {
	if openOrders {
		return Change[Customer]{}, &Error{Code: CodeOpenOrders, Message: "the customer has open orders: cancel or fulfil them first"}
	}
	return Change[Customer]{Type: CustomerDeleted, Before: &c, Version: c.Version + 1, At: later(c.UpdatedAt, now)}, nil
}

func (c Customer) notification(template string, o *Order, now time.Time) Notification {
	return Notification{CustomerID: c.ID, Template: template, To: Recipient{c.Name, c.Email}, Order: o, CreatedAt: now}
}

// normal fills in defaults and drops what is there but empty, so that equal
// customers have equal JSON.
func (in CustomerInput) normal() CustomerInput {
	if in.Status == "" {
		in.Status = CustomerActive
	}
	if in.Address != nil && *in.Address == (Address{}) {
		in.Address = nil
	}
	if len(in.Metadata) == 0 {
		in.Metadata = nil
	}
	return in
}

func (in CustomerInput) equal(o CustomerInput) bool {
	return in.Name == o.Name && in.Email == o.Email && in.Phone == o.Phone && in.Status == o.Status &&
		equalPtr(in.Address, o.Address) && equalPtr(in.SpendingLimit, o.SpendingLimit) && maps.Equal(in.Metadata, o.Metadata)
}

func equalPtr[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func unchanged[T any](state T, version int64) Change[T] {
	return Change[T]{Before: &state, After: &state, Version: version}
}

// later keeps updated_at from going back when two hosts' clocks differ.
func later(before, now time.Time) time.Time {
	if now = Timestamp(now); now.Before(before) {
		return before
	}
	return now
}
