package api

import (
	"encoding/json"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"outflow/domain"
)

// The examples of the documentation are values of the real types, so that they
// can't show what the API doesn't.

const exampleRequestID = "0193a5c2-7b1e-7d3a-9c4f-2e6b8a1d0f35"

const exampleKey = "7f1c2f0e-5b0d-4f5e-9d43-0b6a2a3c9e11"

var (
	exampleID = domain.MustParseID("0193a5c2-7c00-7a52-8f3e-5d1c9b7e4a60")
	exampleAt = time.Date(2026, 12, 8, 9, 30, 15, 125e6, time.UTC)

	exampleCustomerInput = domain.CustomerInput{
		Name: "Ada Lovelace", Email: "ada@example.com", Phone: "+44 20 7946 0018",
		Address: &domain.Address{Line1: "12 St James's Square", City: "London", PostalCode: "SW1Y 4JH", Country: "GB"},
		Status:  domain.CustomerActive, SpendingLimit: &domain.Money{Amount: 500_00, Currency: "GBP"},
		Metadata: map[string]string{"crm_id": "A-1842"},
	}
	exampleCustomer = domain.Customer{ID: exampleID, Version: 1, CustomerInput: exampleCustomerInput, CreatedAt: exampleAt, UpdatedAt: exampleAt}

	exampleOrderInput = domain.OrderInput{
		CustomerID: exampleID, Currency: "GBP",
		Items: []domain.Item{{SKU: "TEA-250", Name: "Darjeeling, 250 g", Quantity: 2, UnitPrice: 9_50}, {SKU: "CUP-01", Quantity: 1, UnitPrice: 14_00}},
	}
	exampleOrder = domain.Order{
		ID: domain.MustParseID("0193a5c3-11d4-7e08-b2a9-6f0d3c8e5b71"), Version: 2, OrderInput: exampleOrderInput,
		Total: 33_00, Status: domain.OrderStatusConfirmed, CreatedAt: exampleAt, UpdatedAt: exampleAt.Add(40 * time.Millisecond),
	}
)

// exampleEvent is the first event of an example.
func exampleEvent(d *entityDocs) event {
	id, kind := exampleCustomer.ID, domain.CustomerCreated
	after, before := any(exampleCustomer), any(nil)
	version := int64(1)
	if d.one == domain.AggregateOrder {
		placed := exampleOrder
		placed.Version, placed.Status, placed.UpdatedAt = 1, domain.OrderStatusPlaced, placed.CreatedAt
		id, kind, version, before, after = exampleOrder.ID, domain.OrderConfirmed, 2, placed, exampleOrder
	}
	return event{
		ID: domain.MustParseID("0193a5c2-7c01-7b90-a4d2-1f8e7c6b5a49"), Type: kind, AggregateType: d.one, AggregateID: id,
		Version: version, OccurredAt: exampleAt, Before: mustJSON(before), After: mustJSON(after),
		Metadata: mustJSON(domain.Metadata{Actor: "api", CorrelationID: exampleRequestID}),
	}
}

func exampleProblem(t *problemType, op *huma.Operation) problem {
	p := problem{Type: t.uri(), Title: t.title, Status: t.status, Detail: t.title + ".", Instance: op.Path, RequestID: exampleRequestID}
	if t.code == domain.CodeOrderState {
		p.State = string(domain.OrderStatusCancelled)
	}
	if t.code == domain.CodeInvalid {
		switch {
		case op.RequestBody != nil:
			p.Errors = []fieldProblem{{"body.currency", "must be an ISO 4217 code, such as EUR"}, {"body.items[0].quantity", "must be an integer"}}
			if op.Tags[0] == "Customers" {
				p.Errors = []fieldProblem{{"body.name", "is required"}, {"body.address.country", "must be an ISO 3166-1 alpha-2 code, such as DE"}}
			}
		case len(op.Parameters) > 0 && op.Parameters[0].In == "path":
			p.Errors = []fieldProblem{{"path.id", "must be a UUID"}}
		default:
			p.Errors = []fieldProblem{{"query.limit", "must be an integer of at least 1"}}
		}
	}
	return p
}

func mustJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
