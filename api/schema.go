package api

import (
	"maps"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"outflow/domain"
)

// Version is the version of the API's contract: what it says changes only
// together with it.
const Version = "1.10.0"

const about = `Customers and orders. Every change is committed together with an event that carries the state before and after, and that goes on to Kafka, in order and once.

Errors are problem documents ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) whose type is stable and explained under its URI. A refused body is refused with all its problems at once. Bodies have at most 64 KiB; null means absent.

Amounts of money are integers, in minor units of their currency: 1250 EUR is € 12.50. Times are in UTC and have milliseconds. A request's X-Request-Id (or a new one, when it has none) and traceparent ([W3C Trace Context](https://www.w3.org/TR/trace-context/)) are in its response and in the events that it causes. Every path also answers with a trailing slash.`

// description is the part of the OpenAPI document that is not operations.
func description() huma.Config {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	maps.Copy(registry.Map(), schemas())
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: "outflow", Version: Version, Description: about},
			Servers: []*huma.Server{{URL: "/", Description: "This server"}},
			Tags: []*huma.Tag{
				{Name: "Customers", Description: "Who orders. An email belongs to one customer at a time."},
				{Name: "Orders", Description: "placed → confirmed or rejected; confirmed → fulfilled → refunded; placed or confirmed → cancelled. A new order is placed, and decided within moments."},
				{Name: "Events", Description: "All that was changed, as it goes to Kafka too."},
				{Name: "Analytics", Description: "Figures about windows of time that end now."},
				{Name: "Health", Description: "For whoever watches over the service."},
			},
			Components: &huma.Components{Schemas: registry},
		},
		Formats:       map[string]huma.Format{typeJSON: huma.DefaultJSONFormat},
		DefaultFormat: typeJSON,
	}
}

type properties map[string]*huma.Schema

// schemas are the components of the document. A test holds them against what
// the domain's types have as JSON, and requests against what is decoded.
func schemas() map[string]*huma.Schema {
	computed := properties{
		"id":         readOnly(uuidSchema("Given when it is created: a UUID of version 7.")),
		"version":    readOnly(integer("How often it was changed, beginning with 1. It is also the ETag.", 1, 0)),
		"created_at": readOnly(instant("When it was created.")),
		"updated_at": readOnly(instant("When it was last changed.")),
	}
	computedOfOrder := with(computed, properties{
		"total":  readOnly(integer("The sum of quantity times unit price, in minor units of the currency.", 0, domain.MaxAmount)),
		"status": readOnly(enum("Where the order is on its way.", orderStatuses...)),
		"reason": readOnly(enum("Why it was rejected; absent unless it was.", domain.ReasonCustomerSuspended, domain.ReasonCustomerClosed, domain.ReasonCustomerDeleted,
			domain.ReasonCurrencyNotAccepted, domain.ReasonLimitExceeded)),
	})
	line := func(what string) *huma.Schema { return typed(what, 0, domain.MaxAddressPart) }
	address := properties{
		"line1": line("Street and number."), "line2": line("What doesn't fit in line1."), "city": line("City or town."),
		"region": line("State, province or county."), "postal_code": line("Postal code, as it is written there."),
		"country": pattern("ISO 3166-1 alpha-2 code.", "^[A-Z]{2}$"),
	}
	money := properties{
		"amount":   integer("In minor units: 50000 EUR is € 500.00.", 0, domain.MaxAmount),
		"currency": pattern("ISO 4217 code.", "^[A-Z]{3}$"),
	}
	customer := func(input bool) properties {
		suffix, optional := "", func(s *huma.Schema) *huma.Schema { return s }
		if input {
			suffix, optional = "Input", nullable
		}
		return properties{
			"name":  visible(typed("How the customer is addressed.", 1, domain.MaxName)),
			"email": email(), "phone": optional(typed("Free text: people write 1-800-FLOWERS.", 0, domain.MaxPhone)),
			"address": ref("Address" + suffix), "spending_limit": ref("Money" + suffix),
			"status":   optional(enum("Only the orders of active customers are confirmed.", customerStatuses...)),
			"metadata": optional(metadata(input)),
		}
	}
	input := customer(true)
	input["status"].Default = "active"
	patch := customer(true)
	patch["spending_limit"] = ref("MoneyPatch")
	orderOf := func(item string) properties {
		return properties{
			"customer_id": uuidSchema("Who orders. It can't be changed."), "currency": pattern("ISO 4217 code of all the order's amounts.", "^[A-Z]{3}$"),
			"items": {Type: huma.TypeArray, Description: "The order's lines.", Items: ref(item), MinItems: new(1), MaxItems: new(domain.MaxItems)},
		}
	}
	order, orderInput := orderOf("Item"), orderOf("ItemInput")
	item := properties{
		"sku": typed("What is ordered.", 1, domain.MaxSKU), "name": typed("How a person would call it.", 0, domain.MaxName),
		"quantity": integer("How many.", 1, domain.MaxQuantity), "unit_price": integer("The price of one, in minor units of the order's currency.", 0, domain.MaxAmount),
	}
	all := map[string]*huma.Schema{
		"Address": record("A postal address; every part is optional.", address),
		"AddressInput": nullable(record("A postal address; every part is optional.", nullables(with(address, properties{
			"country": pattern("ISO 3166-1 alpha-2 code, or empty.", "^([A-Z]{2})?$"),
		})))),
		"Money":      record("An amount of money.", money, "amount", "currency"),
		"MoneyInput": nullable(record("An amount of money.", money, "amount", "currency")),
		"MoneyPatch": nullable(record("An amount of money. Both parts are needed where there is no amount yet.", money)),

		"Customer":            record("A customer.", with(customer(false), computed), append(sorted(computed), "name", "email", "status")...),
		"CustomerInput":       record("A new customer.", input, "name", "email"),
		"CustomerReplacement": record("A customer as it shall be. Read-only properties are ignored.", with(input, computed), "name", "email"),
		"CustomerPatch":       record("Changes of a customer (RFC 7396).", with(patch, computed)),

		"Item":             record("One line of an order.", item, "sku", "quantity", "unit_price"),
		"Order":            record("An order.", with(order, computedOfOrder), append(slices.DeleteFunc(sorted(computedOfOrder), isReason), sorted(order)...)...),
		"ItemInput":        record("One line of an order.", with(item, properties{"name": nullable(item["name"])}), "sku", "quantity", "unit_price"),
		"OrderInput":       record("A new order.", orderInput, sorted(order)...),
		"OrderReplacement": record("An order as it shall be. Read-only properties are ignored.", with(orderInput, computedOfOrder), sorted(order)...),
		"OrderPatch":       record("Changes of an order (RFC 7396).", with(orderInput, computedOfOrder)),

		"JSONPatch": jsonPatchSchema(),
		"Event":     eventSchema(),
		"Problem":   problemSchema(),
		"FieldProblem": record("One problem of one part of a request.", properties{
			"location": characters("Where: body.items[0].quantity, path.id, query.limit.", 0, 0),
			"message":  characters("What is expected there.", 0, 0),
		}, "location", "message"),
		"Health": record("How the service is.", properties{"status": enum("What is the case.", "live", "ready")}, "status"),
	}
	maps.Copy(all, analyticsSchemas())
	for _, one := range []string{"Customer", "Order"} {
		plural := strings.ToLower(one) + "s"
		many := &huma.Schema{Type: huma.TypeArray, Items: ref(one + "Input"), Description: "What to create.", MinItems: new(1), MaxItems: new(maxBatch)}
		all[one+"Batch"] = record("Many new "+plural+".", properties{plural: many}, plural)
		all[one+"BatchResult"] = record("What was created.", properties{
			"data": {Type: huma.TypeArray, Items: ref(one), Description: "In the order of the request."},
		}, "data")
	}
	all["ImportedLine"] = record("What became of a line of an import: it has either an id or a problem, or neither if it was only validated.", properties{
		"line":    integer("Which line, beginning with 1.", 1, 0),
		"id":      uuidSchema("The id of what was created."),
		"problem": ref("Problem"),
	}, "line")
	all["EventFeed"] = record("One page of all events.", properties{
		"data":        {Type: huma.TypeArray, Items: ref("Event"), Description: "The events."},
		"next_cursor": characters("The cursor of the next page; the same as before when nothing is new.", 0, 0),
	}, "data", "next_cursor")
	for _, one := range []string{"Customer", "Order", "Event"} {
		page := properties{
			"data":        {Type: huma.TypeArray, Items: ref(one), Description: "The items, in the list's order."},
			"next_cursor": nullable(characters("The cursor of the next page; null on the last one.", 0, 0)),
		}
		if one != "Event" {
			page["total"] = integer("How many the whole list has, if include_total asks for it.", 0, 0)
		}
		all[one+"List"] = record("One page of a list.", page, "data", "next_cursor")
	}
	return all
}

func isReason(name string) bool { return name == "reason" }

func eventSchema() *huma.Schema {
	state := func(description string) *huma.Schema {
		return nullable(&huma.Schema{Type: huma.TypeObject, Description: description, AdditionalProperties: true})
	}
	p := properties{
		"id":             uuidSchema("The event's own id, the same on Kafka (ce_id)."),
		"type":           pattern("What happened, as customer.updated.v1.", `^[a-z]+\.[a-z]+\.v[0-9]+$`),
		"aggregate_type": enum("What it happened to.", domain.AggregateTypes...),
		"aggregate_id":   uuidSchema("Which one it happened to."),
		"version":        integer("The version that it led to; they have no gaps.", 1, 0),
		"occurred_at":    instant("When it was decided."),
		"before":         state("The state before; null in the first event."),
		"after":          state("The state after; null once it is deleted."),
		"metadata": record("On whose behalf it happened.", properties{
			"actor":          characters("Who did it: api, confirmer, ...", 0, 0),
			"correlation_id": characters("The request that began it.", 0, 0),
			"causation_id":   characters("The event that led to it.", 0, 0),
			"traceparent":    characters("W3C Trace Context.", 0, 0),
		}),
	}
	return record("A change, as it was committed and as it goes to Kafka.", p, sorted(p)...)
}

// jsonPatchSchema says what each op needs; what there must be at a path is known
// only to the resource.
func jsonPatchSchema() *huma.Schema {
	place := func(what string) *huma.Schema { return pattern(what, "^(/([^~]|~[01])*)*$") }
	op := func(description string, more properties, required []string, ops ...string) *huma.Schema {
		s := record(description, with(more, properties{"op": enum("What to do.", ops...), "path": place("Where, as a JSON Pointer (RFC 6901).")}), append(required, "op", "path")...)
		s.AdditionalProperties = true
		return s
	}
	return &huma.Schema{Type: huma.TypeArray, Description: "Operations, applied in turn (RFC 6902).", Items: &huma.Schema{
		Description: "One operation.",
		OneOf: []*huma.Schema{
			op("Puts or compares a value.", properties{"value": {Description: "The value."}}, []string{"value"}, "add", "replace", "test"),
			op("Takes what is there away.", nil, nil, "remove"),
			op("Takes the value from elsewhere.", properties{"from": place("From where, as a JSON Pointer.")}, []string{"from"}, "move", "copy"),
		},
	}}
}

func problemSchema() *huma.Schema {
	s := record("What went wrong (RFC 9457).", properties{
		"type":         {Type: huma.TypeString, Format: "uri-reference", Description: "Which kind of problem; explained under this URI."},
		"title":        characters("The kind of problem, for people.", 0, 0),
		"status":       integer("The status of the response.", 400, 599),
		"detail":       characters("This problem, for people.", 0, 0),
		"instance":     {Type: huma.TypeString, Format: "uri-reference", Description: "The path that was asked for."},
		"request_id":   characters("The request's id, as in X-Request-Id and in the server's log.", 0, 0),
		"order_status": enum("With order-state: the status that the order has.", orderStatuses...),
		"errors":       {Type: huma.TypeArray, Items: ref("FieldProblem"), Description: "All that is wrong with the request, when it is not valid."},
	}, "type", "title", "status", "detail", "instance", "request_id")
	return s
}

func ref(name string) *huma.Schema { return &huma.Schema{Ref: "#/components/schemas/" + name} }

func record(description string, p properties, required ...string) *huma.Schema {
	slices.Sort(required)
	return &huma.Schema{Type: huma.TypeObject, Description: description, Properties: p, Required: required, AdditionalProperties: false}
}

func characters(description string, least, most int) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString, Description: description}
	if least > 0 {
		s.MinLength = &least
	}
	if most > 0 {
		s.MaxLength = &most
	}
	return s
}

// typed is characters that a person could have typed: none of them are controls.
func typed(description string, least, most int) *huma.Schema {
	s := characters(description, least, most)
	s.Pattern = `^[^\u0000-\u001F\u007F-\u009F\u2028\u2029]*$`
	return s
}

// visible is what is typed and has something to see in it.
func visible(s *huma.Schema) *huma.Schema {
	const typed = `[^\u0000-\u001F\u007F-\u009F\u2028\u2029]*`
	s.Pattern = "^" + typed + `[^\u0000-\u0020\u007F-\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]` + typed + "$"
	return s
}

func email() *huma.Schema {
	s := characters("The only one among customers, compared without regard to case.", 3, domain.MaxEmail)
	s.Format = "email"
	return s
}

// propertyNames is a keyword of JSON Schema that huma has no field for, and
// OpenAPI 3.0 no place.
const propertyNames = "propertyNames"

func metadata(input bool) *huma.Schema {
	values := typed("", 0, domain.MaxMetadataValue)
	if input {
		values = nullable(values)
	}
	return &huma.Schema{Type: huma.TypeObject, Description: "Whatever callers want to keep with it: names of at most 40 characters, strings as values.",
		AdditionalProperties: values, MaxProperties: new(domain.MaxMetadata), Extensions: map[string]any{propertyNames: typed("", 1, domain.MaxMetadataKey)}}
}

func pattern(description, regexp string) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: description, Pattern: regexp}
}

func enum(description string, values ...string) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString, Description: description}
	for _, v := range values {
		s.Enum = append(s.Enum, v)
	}
	return s
}

// integer has no maximum when most is 0.
func integer(description string, least, most float64) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeInteger, Format: "int64", Description: description, Minimum: &least}
	if most > 0 {
		s.Maximum = &most
	}
	return s
}

func instant(description string) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time", Description: description}
}

func uuidSchema(description string) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "uuid", Description: description}
}

func readOnly(s *huma.Schema) *huma.Schema {
	s.ReadOnly = true
	return s
}

// nullable is s with null as another value.
func nullable(s *huma.Schema) *huma.Schema {
	n := *s
	n.Nullable = true
	if n.Enum != nil {
		n.Enum = append(slices.Clone(n.Enum), nil)
	}
	return &n
}

func nullables(p properties) properties {
	all := properties{}
	for name, s := range p {
		all[name] = nullable(s)
	}
	return all
}

func with(a, b properties) properties {
	all := properties{}
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}
