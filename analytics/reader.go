package analytics

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
)

// Reader answers questions. Every answer is about a window that ends with the
// present second; it is empty while nothing was counted. Errors are of
// CodeUnavailable when MongoDB can't be reached.
type Reader struct {
	db  *mongo.Database
	now func() time.Time
}

// NewReader returns a reader of what a worker keeps in a database.
func NewReader(db *mongo.Database, now func() time.Time) *Reader { return &Reader{db, now} }

// Window is what an answer is about: what happened after From and not after To,
// which is the end of the present second.
type Window struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// span is the same with its start and without its end, as hours are.
type span struct{ start, end time.Time }

func (w Window) span() span {
	return span{w.From.Add(time.Millisecond), w.To.Add(time.Millisecond)}
}

func (s span) within(field string) bson.E {
	return bson.E{Key: field, Value: bson.D{{Key: "$gte", Value: s.start}, {Key: "$lt", Value: s.end}}}
}

// parts cuts a span into whole hours and what is left at its two edges. Any of
// them may be empty.
func (s span) parts() (hours span, edges []span) {
	hours = span{hourOf(s.start.Add(time.Hour - 1)), hourOf(s.end)}
	if !hours.start.Before(hours.end) {
		return span{}, []span{s}
	}
	for _, e := range []span{{s.start, hours.start}, {hours.end, s.end}} {
		if e.start.Before(e.end) {
			edges = append(edges, e)
		}
	}
	return hours, edges
}

// view is a question in the making.
type view struct {
	*books
	Window
}

// begin opens the live generation. An unknown one has no documents.
func (r *Reader) begin(ctx context.Context, window time.Duration) (*view, error) {
	to := r.now().UTC().Add(time.Second - 1).Truncate(time.Second)
	s, err := readState(ctx, r.db)
	if err != nil {
		return nil, unavailable(err)
	}
	return &view{&books{r.db, s.Generation}, Window{to.Add(-window), to}}, nil
}

// unavailable gives an error its code when it is about reaching MongoDB and
// not about what was asked.
func unavailable(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if mongo.IsNetworkError(err) || mongo.IsTimeout(err) {
		return &domain.Error{Code: domain.CodeUnavailable, Message: "the figures can't be read at the moment", Err: err}
	}
	return err
}

// Summary is what happened in a window.
type Summary struct {
	Window
	// Orders counts the orders that were placed in the window, by the status
	// that they have now. All statuses are there.
	Orders map[domain.OrderStatus]int64 `json:"orders_by_status"`
	// Revenue has an entry for each currency in which something was confirmed
	// or refunded in the window.
	Revenue []Revenue `json:"revenue"`
	// CustomersActive is how many customers have the status active now.
	CustomersActive int64 `json:"customers_active"`
	// CustomersOrdering is how many placed an order in the window.
	CustomersOrdering int64 `json:"customers_ordering"`
}

// Revenue is what was sold in one currency. Amounts are minor units.
type Revenue struct {
	Currency  string `json:"currency"`
	Amount    int64  `json:"amount"`    // Confirmed less Refunded
	Confirmed int64  `json:"confirmed"` // the totals of the orders that were confirmed and not cancelled
	Refunded  int64  `json:"refunded"`  // the totals of those that were refunded
	Orders    int64  `json:"orders"`    // how many were confirmed and not cancelled
	Refunds   int64  `json:"refunds"`   // how many were refunded
}

// Summary sums up a window.
func (r *Reader) Summary(ctx context.Context, window time.Duration) (Summary, error) {
	v, err := r.begin(ctx, window)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Window: v.Window, Orders: map[domain.OrderStatus]int64{}}
	hourly, err := v.hourly(ctx, true)
	if err != nil {
		return s, unavailable(err)
	}
	sums := total(hourly)
	for _, status := range orderStatuses {
		s.Orders[status] = sums[counterStatus+string(status)]
	}
	s.Revenue = revenue(sums)
	if s.CustomersActive, err = v.customers(ctx, domain.CustomerActive); err != nil {
		return s, unavailable(err)
	}
	s.CustomersOrdering, err = v.ordering(ctx)
	return s, unavailable(err)
}

// total adds up the counters of hours.
func total(hourly map[time.Time]map[string]int64) map[string]int64 {
	sums := map[string]int64{}
	for _, h := range hourly {
		for counter, n := range h {
			sums[counter] += n
		}
	}
	return sums
}

// revenue makes revenues of counters, by currency.
func revenue(sums map[string]int64) []Revenue {
	byCurrency := map[string]*Revenue{}
	for counter, n := range sums {
		what, currency, _ := strings.Cut(counter, ":")
		if what+":" == counterStatus {
			continue
		}
		r := byCurrency[currency]
		if r == nil {
			r = &Revenue{Currency: currency}
			byCurrency[currency] = r
		}
		switch what + ":" {
		case counterOrders:
			r.Orders += n
		case counterConfirmed:
			r.Confirmed += n
			r.Amount += n
		case counterRefunds:
			r.Refunds += n
		case counterRefunded:
			r.Refunded += n
			r.Amount -= n
		}
	}
	all := []Revenue{}
	for _, currency := range slices.Sorted(maps.Keys(byCurrency)) {
		if r := byCurrency[currency]; r.Orders != 0 || r.Refunds != 0 {
			all = append(all, *r)
		}
	}
	return all
}

// hourly returns the counters of each hour of the window. Of the hours at the
// edges it counts what is inside the window. Without statuses, only what was
// confirmed and refunded is counted.
func (v *view) hourly(ctx context.Context, statuses bool) (map[time.Time]map[string]int64, error) {
	hours, edges := v.span().parts()
	all := map[time.Time]map[string]int64{}
	add := func(hour time.Time, counter string, n int64) {
		if all[hour] == nil {
			all[hour] = map[string]int64{}
		}
		all[hour][counter] += n
	}
	if hours.start.Before(hours.end) {
		var found []bucket
		cursor, err := v.collection(buckets).Find(ctx, bson.D{{Key: "of", Value: ofOrders}, hours.within("hour")},
			options.Find().SetProjection(bson.D{{Key: "hour", Value: 1}, {Key: "counters", Value: 1}}))
		if err != nil {
			return nil, fmt.Errorf("read buckets: %w", err)
		}
		if err := cursor.All(ctx, &found); err != nil {
			return nil, fmt.Errorf("read buckets: %w", err)
		}
		for _, b := range found {
			for counter, n := range b.Counters {
				add(hourOf(b.Hour), counter, n)
			}
		}
	}
	for _, edge := range edges {
		// An edge may begin in one hour and end in the next, when no whole one
		// is between.
		for start := edge.start; start.Before(edge.end); start = hourOf(start).Add(time.Hour) {
			hour := span{start, hourOf(start).Add(time.Hour)}
			if edge.end.Before(hour.end) {
				hour.end = edge.end
			}
			if err := v.edge(ctx, hour, statuses, func(counter string, n int64) { add(hourOf(start), counter, n) }); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// edge counts the facts of a part of an hour.
func (v *view) edge(ctx context.Context, part span, statuses bool, add func(counter string, n int64)) error {
	type group struct {
		Key    string `bson:"_id"`
		Count  int64  `bson:"count"`
		Amount int64  `bson:"amount"`
	}
	counted := func(filter bson.D, by string) ([]group, error) {
		return aggregate[group](ctx, v.collection(ofOrders), mongo.Pipeline{
			{{Key: "$match", Value: filter}},
			{{Key: "$group", Value: bson.D{{Key: "_id", Value: by}, {Key: "count", Value: sum(int64(1))}, {Key: "amount", Value: sum("$total")}}}},
		})
	}
	if statuses {
		found, err := counted(bson.D{part.within("placed_at"), {Key: "deleted", Value: bson.D{{Key: "$ne", Value: true}}}}, "$status")
		if err != nil {
			return err
		}
		for _, g := range found {
			add(counterStatus+g.Key, g.Count)
		}
	}
	for _, what := range []struct{ at, count, amount string }{
		{"confirmed_at", counterOrders, counterConfirmed},
		{"refunded_at", counterRefunds, counterRefunded},
	} {
		found, err := counted(bson.D{part.within(what.at)}, "$currency")
		if err != nil {
			return err
		}
		for _, g := range found {
			add(what.count+g.Key, g.Count)
			add(what.amount+g.Key, g.Amount)
		}
	}
	return nil
}

func sum(of any) bson.D { return bson.D{{Key: "$sum", Value: of}} }

func aggregate[T any](ctx context.Context, c *mongo.Collection, p mongo.Pipeline) ([]T, error) {
	cursor, err := c.Aggregate(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	var all []T
	if err := cursor.All(ctx, &all); err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	return all, nil
}

// customers is how many customers have a status.
func (v *view) customers(ctx context.Context, status domain.CustomerStatus) (int64, error) {
	cursor, err := v.collection(buckets).Find(ctx, bson.D{{Key: "of", Value: ofCustomers}},
		options.Find().SetProjection(bson.D{{Key: "counters", Value: 1}}))
	if err != nil {
		return 0, fmt.Errorf("read buckets: %w", err)
	}
	var found []bucket
	if err := cursor.All(ctx, &found); err != nil {
		return 0, fmt.Errorf("read buckets: %w", err)
	}
	var n int64
	for _, b := range found {
		n += b.Counters[counterStatus+string(status)]
	}
	return n, nil
}

// ordering is how many customers placed an order in the window.
func (v *view) ordering(ctx context.Context) (int64, error) {
	found, err := aggregate[struct{ N int64 }](ctx, v.collection(ofOrders), mongo.Pipeline{
		{{Key: "$match", Value: bson.D{v.span().within("placed_at"), {Key: "deleted", Value: bson.D{{Key: "$ne", Value: true}}}}}},
		{{Key: "$group", Value: bson.D{{Key: "_id", Value: "$customer"}}}},
		{{Key: "$count", Value: "n"}},
	})
	if err != nil || len(found) == 0 {
		return 0, err
	}
	return found[0].N, nil
}
