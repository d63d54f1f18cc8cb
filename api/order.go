package api

import (
	"context"
	"fmt"

	"outflow/domain"
	"outflow/store"
)

// orders describes the orders to the handlers.
func orders(s *store.Store) entity[domain.Order, domain.OrderInput] {
	return entity[domain.Order, domain.OrderInput]{
		aggregate: domain.AggregateOrder,
		path:      "/api/orders",
		id:        func(o *domain.Order) domain.ID { return o.ID },
		version:   func(o *domain.Order) int64 { return o.Version },
		input:     func(o *domain.Order) domain.OrderInput { return o.OrderInput },
		decode:    (*decoding).order,
		computed:  computedOfOrder,
		validate:  domain.OrderInput.Validate,
		sample:    exampleOrderInput,
		create:    s.PlaceOrder,
		createAll: s.PlaceOrders,
		importAll: s.ImportOrders,
		get:       s.Order,
		list: func(p *params) lister[domain.Order] {
			f := orderFilter(p)
			return func(ctx context.Context, page store.Page) (store.List[domain.Order], error) {
				return s.Orders(ctx, f, page)
			}
		},
		update:  s.UpdateOrder,
		remove:  s.DeleteOrder,
		history: s.History,
		past:    s.OrderAt,
		docs: entityDocs{
			tag: "Orders", one: "order", One: "Order",
			sorts: orderSorts, filters: orderFilterDocs(),
			creating: "Places an order of a customer. It begins as placed, and is confirmed or rejected within moments; the customer is told by mail.",
			changing: "An order can be changed while it is placed; its customer can't be changed.",
			deleting: "Deletes an order that is in a final state: rejected, cancelled, fulfilled or refunded.",
			input:    exampleOrderInput, change: map[string]any{"currency": "EUR"}, resource: exampleOrder,
			patchOps:       []any{map[string]any{"op": "test", "path": "/items/0/sku", "value": "TEA-250"}, map[string]any{"op": "replace", "path": "/items/0/quantity", "value": 3}},
			createProblems: []domain.Code{domain.CodeWriteConflict},
			updateProblems: []domain.Code{domain.CodeOrderState, domain.CodeWriteConflict},
			deleteProblems: []domain.Code{domain.CodeOrderState, domain.CodeWriteConflict},
		},
	}
}

// orderRoutes are the operations that only orders have.
func orderRoutes(e *entity[domain.Order, domain.OrderInput], s *store.Store) []route {
	ofCustomer := func(x *exchange) error {
		id, err := x.id()
		if err != nil {
			return err
		}
		return replyList(x, e.docs.sorts, func(p *params) lister[domain.Order] {
			f := orderFilter(p)
			return func(ctx context.Context, page store.Page) (store.List[domain.Order], error) {
				return s.OrdersOf(ctx, id, f, page)
			}
		})
	}
	return []route{
		{Operation: e.docs.listOfCustomer("/api/customers/{id}/orders"), handle: ofCustomer},
		{Operation: e.docs.cancel("/api/orders/{id}/cancel"), handle: action(e, s.CancelOrder), answer: e.answer},
		{Operation: e.docs.fulfil("/api/orders/{id}/fulfil"), handle: action(e, s.FulfilOrder), answer: e.answer},
		{Operation: e.docs.refund("/api/orders/{id}/refund"), handle: action(e, s.RefundOrder), answer: e.answer},
	}
}

// action handles an operation that brings an order to another status.
func action(e *entity[domain.Order, domain.OrderInput], do func(context.Context, domain.ID, store.Precondition, domain.Metadata) (domain.Order, error)) func(*exchange) error {
	return func(x *exchange) error {
		id, pre, err := x.target()
		if err != nil {
			return err
		}
		if err := x.noBody(); err != nil {
			return err
		}
		order, err := do(x.r.Context(), id, pre, x.metadata())
		if err != nil {
			return err
		}
		return e.reply(x, &order)
	}
}

// order reads an order over in. current is nil for a POST or PUT.
func (d *decoding) order(v *value, in *domain.OrderInput, current *domain.Order) {
	for i := range d.object(v, nil) {
		m := &v.members[i]
		at := &path{name: m.name}
		switch m.name {
		case "customer_id":
			d.id(&m.value, at, &in.CustomerID)
		case "currency":
			d.text(&m.value, at, &in.Currency)
		case "items":
			in.Items = d.orderItems(&m.value, at)
		default:
			d.computed(m, at, computedOfOrder(m.name, current))
		}
	}
}

// computedOfOrder returns what an order says under the name of a read-only
// property, and nil for any other name.
func computedOfOrder(name string, o *domain.Order) any {
	if o == nil {
		o = &domain.Order{}
	}
	switch name {
	case "id":
		return o.ID
	case "version":
		return o.Version
	case "total":
		return o.Total
	case "status":
		return string(o.Status)
	case "reason":
		return o.Reason
	case "created_at":
		return o.CreatedAt
	case "updated_at":
		return o.UpdatedAt
	}
	return nil
}

// orderItems reads a whole list: an array is never merged into another.
func (d *decoding) orderItems(v *value, at *path) []domain.Item {
	switch {
	case v.kind == null:
		return nil
	case v.kind != array:
		d.bad(at, "must be an array")
		return nil
	case len(v.items) > domain.MaxItems:
		d.bad(at, fmt.Sprintf("must have at most %d items", domain.MaxItems))
		return nil
	}
	items := make([]domain.Item, len(v.items))
	for i := range v.items {
		d.orderItem(&v.items[i], &path{parent: at, index: i}, &items[i])
	}
	return items
}

func (d *decoding) orderItem(v *value, at *path, into *domain.Item) {
	quantity, price := false, false
	for i := range d.object(v, at) {
		m := &v.members[i]
		at := &path{parent: at, name: m.name}
		switch m.name {
		case "sku":
			d.text(&m.value, at, &into.SKU)
		case "name":
			d.text(&m.value, at, &into.Name)
		case "quantity":
			quantity = d.integer(&m.value, at, &into.Quantity)
		case "unit_price":
			price = d.integer(&m.value, at, &into.UnitPrice)
		default:
			d.unknown(m.name, at.parent)
		}
	}
	if v.kind != object {
		return
	}
	if !quantity {
		d.bad(&path{parent: at, name: "quantity"}, "is required")
	}
	if !price {
		d.bad(&path{parent: at, name: "unit_price"}, "is required")
	}
}
