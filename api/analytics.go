package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"outflow/analytics"
	"outflow/domain"
	"outflow/store"
)

const (
	maxWindow        = 31 * 24 * time.Hour
	topLimit         = 10  // customers, when nothing is said
	maxTopLimit      = 100 // more is asked for in vain, but not refused
	analyticsTimeout = 10 * time.Second
)

// figures answers questions about windows; it may be that there is nothing to
// answer them from.
type figures struct {
	reader *analytics.Reader
	store  *store.Store
}

var errNoFigures = &domain.Error{Code: domain.CodeUnavailable, Message: "this server has no figures: OUTFLOW_MONGO_URI is not set"}

// about makes a handler of a question that takes parameters. The parameters
// are checked first, so that a request that is wrong says so everywhere.
func (f *figures) about(ask func(ctx context.Context, x *exchange, p *params) (any, error)) func(*exchange) error {
	return func(x *exchange) error {
		ctx, cancel := context.WithTimeout(x.r.Context(), analyticsTimeout)
		defer cancel()
		answer, err := ask(ctx, x, &params{query: x.query})
		if err != nil {
			return err
		}
		return x.reply(answer)
	}
}

// ready reports what is wrong with the parameters, or with the server.
func (f *figures) ready(p *params) error {
	if err := p.err(); err != nil {
		return err
	}
	if f.reader == nil {
		return errNoFigures
	}
	return nil
}

func (f *figures) summary(ctx context.Context, _ *exchange, p *params) (any, error) {
	window := p.window("24h")
	if err := f.ready(p); err != nil {
		return nil, err
	}
	return f.reader.Summary(ctx, window)
}

func (f *figures) series(ctx context.Context, _ *exchange, p *params) (any, error) {
	metric := p.oneOf("metric", metrics...)
	if metric == "" {
		metric = metrics[0]
	}
	step := p.oneOf("step", steps...)
	if step == "" {
		step = steps[0]
	}
	window := p.window("24h")
	if err := f.ready(p); err != nil {
		return nil, err
	}
	return f.reader.Timeseries(ctx, analytics.Metric(metric), analytics.Step(step), window)
}

func (f *figures) top(ctx context.Context, _ *exchange, p *params) (any, error) {
	window, limit := p.window("24h"), topLimit
	if p.query.Has("limit") {
		limit = min(p.limit(), maxTopLimit)
	}
	currency := p.query.Get("currency")
	if p.query.Has("currency") && (len(currency) != 3 || strings.Trim(currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "") {
		p.refuse("currency", "must be an ISO 4217 code, such as EUR")
	}
	if err := f.ready(p); err != nil {
		return nil, err
	}
	return f.reader.TopCustomers(ctx, window, limit, currency)
}

func (f *figures) transactions(ctx context.Context, x *exchange, p *params) (any, error) {
	window := p.window("6h")
	id, err := f.customer(ctx, x, p)
	if err != nil {
		return nil, err
	}
	return f.reader.Transactions(ctx, id, window)
}

// latest is the last transactions of a customer.
type latest struct {
	Data []analytics.Transaction `json:"data"`
}

func (f *figures) latest(ctx context.Context, x *exchange, p *params) (any, error) {
	id, err := f.customer(ctx, x, p)
	if err != nil {
		return nil, err
	}
	all, err := f.reader.Latest(ctx, id)
	return latest{all}, err
}

// customer returns the customer that the path names, if there is one.
func (f *figures) customer(ctx context.Context, x *exchange, p *params) (domain.ID, error) {
	id, err := x.id()
	if err != nil {
		return id, err
	}
	if err := f.ready(p); err != nil {
		return id, err
	}
	_, err = f.store.Customer(ctx, id)
	return id, err
}

// window reads how long a window is.
func (p *params) window(otherwise string) time.Duration {
	s := otherwise
	if p.query.Has("window") {
		s = p.query.Get("window")
	}
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}
	var n uint64
	var unit time.Duration
	if last := len(s) - 1; last > 0 && strings.Trim(s[:last], "0123456789") == "" {
		n, _ = strconv.ParseUint(s[:last], 10, 64) // out of range gives the largest n
		unit = units[s[last]]
	}
	if n == 0 || unit == 0 || n > uint64(maxWindow/unit) {
		p.refuse("window", "must be a whole number of s, m, h or d from 1s to 31d, such as 6h")
		return 0
	}
	return time.Duration(n) * unit
}

var (
	metrics = []string{string(analytics.MetricOrders), string(analytics.MetricRevenue)}
	steps   = []string{string(analytics.Hourly), string(analytics.Daily)}
)

// analyticsRoutes are the questions about windows of time.
func analyticsRoutes(r *analytics.Reader, s *store.Store) []route {
	f := &figures{r, s}
	const behind = " The figures are made of the events, and follow them within moments."
	question := func(tag, id, path, summary, description, schema string, example any, parameters ...*huma.Param) huma.Operation {
		op := operation(tag, id, http.MethodGet, path, summary, description+behind)
		op.Parameters = append(op.Parameters, parameters...)
		op.Responses["200"] = &huma.Response{Description: "The answer.", Headers: commonHeaders(), Content: content(typeJSON, schema, example)}
		codes := []domain.Code{domain.CodeInvalid}
		if strings.Contains(path, "{id}") {
			codes = append(codes, domain.CodeNotFound)
		}
		return refuses(op, codes...)
	}
	return []route{
		{Operation: question("Analytics", "getSummary", "/api/analytics/summary", "Sum up a window of time",
			"Counts the orders that were placed in the window by the status that they have now, sums up what was confirmed and refunded in it, and counts customers. "+
				"An order counts from its confirmation until it is cancelled; a refund counts at its own time.",
			"Summary", exampleSummary, windowDocs("24h")), handle: f.about(f.summary)},
		{Operation: question("Analytics", "getTimeseries", "/api/analytics/timeseries", "Show a metric over time",
			"Shows the orders that were confirmed, or the revenue per currency, by hours or days of UTC. The first and the last one have what is inside the window, so that they add up to its summary.",
			"Timeseries", exampleSeries, windowDocs("24h"), defaulting(inQuery("metric", "What is shown.", enum("", metrics...)), metrics[0]),
			defaulting(inQuery("step", "By hours or by days.", enum("", steps...)), steps[0])), handle: f.about(f.series)},
		{Operation: question("Analytics", "listTopCustomers", "/api/analytics/top-customers", "List the customers with the highest revenue",
			"Lists customers by what was confirmed for them in the window, refunds taken off, the highest first. Without a currency it does so for each, one after the other: amounts of different currencies can't be compared.",
			"TopCustomers", exampleTop, windowDocs("24h"), inQuery("currency", "Only this currency: an ISO 4217 code.", pattern("", "^[A-Z]{3}$")),
			defaulting(inQuery("limit", fmt.Sprintf("The most customers per currency. More than %d counts as %d.", maxTopLimit, maxTopLimit),
				&huma.Schema{Type: huma.TypeInteger, Minimum: new(1.0)}), topLimit)), handle: f.about(f.top)},
		{Operation: question("Customers", "getCustomerTransactions", "/api/customers/{id}/transactions", "Get a customer's transactions in a window of time",
			"Lists the customer's orders that were confirmed in the window, and refunds with negative amounts, the newest first, with their sum per currency. Cancelled orders are left out.",
			"Transactions", exampleTransactions, windowDocs("6h")), handle: f.about(f.transactions)},
		{Operation: question("Customers", "listLatestTransactions", "/api/customers/{id}/transactions/latest", "List a customer's latest transactions",
			"Lists the customer's last five transactions, whenever they were, the newest first.",
			"LatestTransactions", latest{exampleTransactions.Transactions}), handle: f.about(f.latest)},
	}
}

func windowDocs(otherwise string) *huma.Param {
	s := pattern("", "^0*("+
		"([1-9][0-9]{0,5}|1[0-9]{6}|2[0-5][0-9]{5}|26[0-6][0-9]{4}|267[0-7][0-9]{3}|2678[0-3][0-9]{2}|2678400)s|"+
		"([1-9][0-9]{0,3}|[1-3][0-9]{4}|4[0-3][0-9]{3}|44[0-5][0-9]{2}|446[0-3][0-9]|44640)m|"+
		"([1-9][0-9]?|[1-6][0-9]{2}|7[0-3][0-9]|74[0-4])h|([1-9]|[12][0-9]|3[01])d)$")
	return defaulting(inQuery("window", "How far back: a number of seconds, minutes, hours or days, from 1s to 31d.", s), otherwise)
}

func defaulting(p *huma.Param, otherwise any) *huma.Param {
	p.Schema.Default, p.Example = otherwise, otherwise
	return p
}

// analyticsSchemas are the components that only answers about windows have.
func analyticsSchemas() map[string]*huma.Schema {
	window := properties{
		"from": instant("What happened after this is in the window."),
		"to":   instant("What happened until this is in the window: the end of the second of the request."),
	}
	whole := func(description string) *huma.Schema { return integer(description, 0, 0) }
	signed := func(description string) *huma.Schema {
		return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Description: description}
	}
	currency := pattern("ISO 4217 code.", "^[A-Z]{3}$")
	array := func(description, of string) *huma.Schema {
		return &huma.Schema{Type: huma.TypeArray, Description: description, Items: ref(of)}
	}
	all := func(description string, p properties) *huma.Schema { return record(description, p, sorted(p)...) }

	counts := properties{}
	for _, s := range orderStatuses {
		counts[s] = whole("How many are " + s + " now.")
	}
	customer, order := uuidSchema("Whose they are."), uuidSchema("Which order it belongs to.")
	return map[string]*huma.Schema{
		"OrderCounts": all("Orders by status.", counts),
		"Balance":     all("A sum that may be negative.", properties{"amount": signed("In minor units."), "currency": currency}),
		"Revenue": all("What was sold in one currency.", properties{
			"currency": currency, "amount": signed("confirmed less refunded, in minor units."),
			"confirmed": whole("The totals of the orders that were confirmed and not cancelled."), "refunded": whole("The totals of the orders that were refunded."),
			"orders": whole("How many were confirmed and not cancelled."), "refunds": whole("How many were refunded."),
		}),
		"Summary": all("What happened in a window of time.", with(window, properties{
			"orders_by_status": ref("OrderCounts"), "revenue": array("By currency.", "Revenue"),
			"customers_active":   whole("How many customers have the status active now."),
			"customers_ordering": whole("How many customers placed an order in the window."),
		})),
		"TimeseriesPoint": record("One hour or day.", properties{
			"start":  instant("When the hour or day began."),
			"orders": whole("With the metric orders: how many were confirmed and not cancelled."), "revenue": array("With the metric revenue: by currency, refunds taken off.", "Balance"),
		}, "start"),
		"Timeseries": all("A metric over time.", with(window, properties{
			"metric": enum("What is shown.", metrics...), "step": enum("By hours or by days.", steps...), "data": array("The hours or days, without gaps.", "TimeseriesPoint"),
		})),
		"TopCustomer": all("A customer and what it brought.", properties{
			"customer_id": customer, "amount": signed("In minor units, refunds taken off."), "currency": currency, "orders": whole("How many were confirmed and not cancelled."),
		}),
		"TopCustomers": all("The customers with the highest revenue.", with(window, properties{"data": array("The highest first.", "TopCustomer")})),
		"Transaction": all("An order that was confirmed, or a refund.", properties{
			"order_id": order, "kind": enum("What it is.", analytics.KindOrder, analytics.KindRefund),
			"amount": signed("In minor units; negative for a refund."), "currency": currency, "at": instant("When it was confirmed or refunded."),
		}),
		"Transactions": all("A customer's transactions in a window of time.", with(window, properties{
			"sums": array("By currency, refunds taken off.", "Balance"), "data": array("The newest first.", "Transaction"),
		})),
		"LatestTransactions": all("A customer's latest transactions.", properties{"data": array("The newest first.", "Transaction")}),
	}
}

var (
	exampleWindow  = analytics.Window{From: exampleAt.Truncate(time.Second).Add(-24 * time.Hour), To: exampleAt.Truncate(time.Second)}
	exampleSummary = analytics.Summary{
		Window: exampleWindow, CustomersActive: 5210, CustomersOrdering: 61,
		Orders: map[domain.OrderStatus]int64{
			domain.OrderStatusPlaced: 2, domain.OrderStatusConfirmed: 31, domain.OrderStatusRejected: 4,
			domain.OrderStatusFulfilled: 28, domain.OrderStatusRefunded: 1, domain.OrderStatusCancelled: 3,
		},
		Revenue: []analytics.Revenue{{Currency: "GBP", Amount: 1_947_00, Confirmed: 1_980_00, Refunded: 33_00, Orders: 60, Refunds: 1}},
	}
	exampleSeries = analytics.Series{
		Window: exampleWindow, Metric: analytics.MetricRevenue, Step: analytics.Hourly,
		Points: []analytics.Point{
			{Start: exampleAt.Truncate(time.Hour).Add(-24 * time.Hour), Revenue: []domain.Money{{Amount: 66_00, Currency: "GBP"}}},
			{Start: exampleAt.Truncate(time.Hour).Add(-23 * time.Hour), Revenue: []domain.Money{}},
		},
	}
	exampleTop = analytics.Top{Window: exampleWindow, Customers: []analytics.TopCustomer{
		{CustomerID: exampleID, Money: domain.Money{Amount: 99_00, Currency: "GBP"}, Orders: 3},
	}}
	exampleTransactions = analytics.Transactions{
		Window: analytics.Window{From: exampleWindow.To.Add(-6 * time.Hour), To: exampleWindow.To},
		Sums:   []domain.Money{{Amount: 0, Currency: "GBP"}},
		Transactions: []analytics.Transaction{
			{OrderID: exampleOrder.ID, Kind: analytics.KindRefund, Money: domain.Money{Amount: -33_00, Currency: "GBP"}, At: exampleAt},
			{OrderID: exampleOrder.ID, Kind: analytics.KindOrder, Money: domain.Money{Amount: 33_00, Currency: "GBP"}, At: exampleAt.Add(-time.Hour)},
		},
	}
)
