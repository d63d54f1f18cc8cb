package api

import (
	"time"

	"github.com/danielgtaylor/huma/v2"

	"outflow/domain"
	"outflow/store"
)

// period reads a period, of which name_from is the first moment and name_before
// the first one after it.
func (p *params) period(name string) store.Period {
	return store.Period{From: p.instant(name + "_from"), Before: p.instant(name + "_before")}
}

func (p *params) instant(name string) *time.Time {
	if !p.query.Has(name) {
		return nil
	}
	t, err := time.Parse(time.RFC3339, p.query.Get(name))
	if err != nil {
		p.refuse(name, "must be an RFC 3339 time, such as 2026-12-08T09:30:00Z")
	}
	return &t
}

var (
	customerSorts    = []string{string(store.SortCreated), string(store.SortUpdated), string(store.SortName), string(store.SortEmail)}
	customerStatuses = []string{string(domain.CustomerActive), string(domain.CustomerSuspended), string(domain.CustomerClosed)}
	orderSorts       = []string{string(store.SortCreated), string(store.SortUpdated), string(store.SortTotal)}
	orderStatuses    = []string{string(domain.OrderStatusPlaced), string(domain.OrderStatusConfirmed), string(domain.OrderStatusRejected),
		string(domain.OrderStatusFulfilled), string(domain.OrderStatusRefunded), string(domain.OrderStatusCancelled)}
)

func customerFilter(p *params) store.CustomerFilter {
	return store.CustomerFilter{
		Status: domain.CustomerStatus(p.oneOf("status", customerStatuses...)),
		Email:  p.text("email", domain.MaxEmail), NamePrefix: p.text("name_prefix", domain.MaxName),
		Created: p.period("created"), Updated: p.period("updated"),
	}
}

func orderFilter(p *params) store.OrderFilter {
	return store.OrderFilter{
		Customer: p.id("customer_id"), Status: domain.OrderStatus(p.oneOf("status", orderStatuses...)),
		Created: p.period("created"), Updated: p.period("updated"),
		MinTotal: p.amount("total_min"), MaxTotal: p.amount("total_max"),
	}
}

// The filters as they are documented; whatever is not documented is refused.
func customerFilterDocs() []*huma.Param {
	return append([]*huma.Param{
		inQuery("status", "Only customers of this standing.", enum("", customerStatuses...)),
		inQuery("email", "Only the customer with this email, without regard to case.", typed("", 1, domain.MaxEmail)),
		inQuery("name_prefix", "Only customers whose names begin with this, without regard to case.", typed("", 1, domain.MaxName)),
	}, periodDocs()...)
}

func orderFilterDocs() []*huma.Param {
	return append([]*huma.Param{
		inQuery("status", "Only orders of this status.", enum("", orderStatuses...)),
		inQuery("total_min", "Only orders of at least this total, in minor units of their currency.", integer("", 0, 0)),
		inQuery("total_max", "Only orders of at most this total, in minor units of their currency.", integer("", 0, 0)),
	}, periodDocs()...)
}

func periodDocs() []*huma.Param {
	return []*huma.Param{
		inQuery("created_from", "Only what was created at this time or later.", instant("")),
		inQuery("created_before", "Only what was created before this time.", instant("")),
		inQuery("updated_from", "Only what was last changed at this time or later.", instant("")),
		inQuery("updated_before", "Only what was last changed before this time.", instant("")),
	}
}

func inQuery(name, description string, schema *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: description, Schema: schema}
}
