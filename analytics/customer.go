package analytics

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
)

// The kinds of transactions.
const (
	KindOrder  = "order"  // an order that was confirmed and not cancelled
	KindRefund = "refund" // its amount is negative
)

// Transaction is a customer's money at a time.
type Transaction struct {
	OrderID domain.ID `json:"order_id"`
	Kind    string    `json:"kind"`
	domain.Money
	At time.Time `json:"at"` // of the confirmation or of the refund
}

// Transactions is what a customer did in a window.
type Transactions struct {
	Window
	Sums         []domain.Money `json:"sums"` // per currency, refunds taken off
	Transactions []Transaction  `json:"data"`
}

// Transactions returns the transactions of a customer, the newest first, and
// their sums.
func (r *Reader) Transactions(ctx context.Context, customer domain.ID, window time.Duration) (Transactions, error) {
	v, err := r.begin(ctx, window)
	if err != nil {
		return Transactions{}, err
	}
	all, err := v.transactions(ctx, customer, v.span(), 0)
	if err != nil {
		return Transactions{}, unavailable(err)
	}
	sums := map[string]int64{}
	for _, t := range all {
		sums[t.Currency] += t.Amount
	}
	t := Transactions{Window: v.Window, Sums: []domain.Money{}, Transactions: all}
	for _, currency := range slices.Sorted(maps.Keys(sums)) {
		t.Sums = append(t.Sums, domain.Money{Amount: sums[currency], Currency: currency})
	}
	return t, nil
}

// latest is how many transactions Latest returns at most.
const latest = 5

// Latest returns the last five transactions of a customer, the newest first.
func (r *Reader) Latest(ctx context.Context, customer domain.ID) ([]Transaction, error) {
	v, err := r.begin(ctx, 0)
	if err != nil {
		return nil, err
	}
	ever := span{time.UnixMilli(0).UTC(), v.span().end}
	all, err := v.transactions(ctx, customer, ever, latest)
	return all[:min(latest, len(all))], unavailable(err)
}

// transactions returns those of a span, the newest first: all of them, or at
// least the first limit.
func (v *view) transactions(ctx context.Context, customer domain.ID, s span, limit int64) ([]Transaction, error) {
	all := []Transaction{}
	for _, what := range []struct {
		kind, at string
		sign     int64
		time     func(fact) time.Time
	}{
		{KindOrder, "confirmed_at", 1, func(f fact) time.Time { return f.ConfirmedAt }},
		{KindRefund, "refunded_at", -1, func(f fact) time.Time { return f.RefundedAt }},
	} {
		cursor, err := v.collection(ofOrders).Find(ctx,
			bson.D{{Key: "customer", Value: customer.String()}, s.within(what.at)},
			options.Find().SetSort(bson.D{{Key: what.at, Value: -1}, {Key: "_id", Value: -1}}).SetLimit(limit))
		if err != nil {
			return nil, fmt.Errorf("read facts: %w", err)
		}
		var found []fact
		if err := cursor.All(ctx, &found); err != nil {
			return nil, fmt.Errorf("read facts: %w", err)
		}
		for _, f := range found {
			id, err := domain.ParseID(f.ID)
			if err != nil {
				return nil, fmt.Errorf("read the id of a fact: %w", err)
			}
			all = append(all, Transaction{
				OrderID: id, Kind: what.kind, Money: domain.Money{Amount: what.sign * f.Total, Currency: f.Currency}, At: what.time(f),
			})
		}
	}
	slices.SortFunc(all, func(a, b Transaction) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(b.OrderID.String(), a.OrderID.String()), cmp.Compare(b.Kind, a.Kind))
	})
	return all, nil
}

// TopCustomer is what one customer brought in one currency.
type TopCustomer struct {
	CustomerID domain.ID `json:"customer_id"`
	domain.Money
	Orders int64 `json:"orders"` // how many were confirmed and not cancelled
}

// Top is the customers who brought the most.
type Top struct {
	Window
	Customers []TopCustomer `json:"data"`
}

// TopCustomers returns the customers with the highest revenue of a currency,
// refunds taken off, the highest first and equal ones by id. Without a currency
// it does so for each, one after the other.
func (r *Reader) TopCustomers(ctx context.Context, window time.Duration, limit int, currency string) (Top, error) {
	v, err := r.begin(ctx, window)
	if err != nil {
		return Top{}, err
	}
	if limit < 1 {
		return Top{}, fmt.Errorf("the first %d customers", limit)
	}
	currencies := []string{currency}
	if currency == "" {
		if currencies, err = v.currencies(ctx); err != nil {
			return Top{}, unavailable(err)
		}
	}
	t := Top{Window: v.Window, Customers: []TopCustomer{}}
	for _, c := range currencies {
		first, err := v.top(ctx, limit, c)
		if err != nil {
			return Top{}, unavailable(err)
		}
		t.Customers = append(t.Customers, first...)
	}
	return t, nil
}

// currencies lists those in which something was confirmed or refunded.
func (v *view) currencies(ctx context.Context) ([]string, error) {
	hourly, err := v.hourly(ctx, false)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, r := range revenue(total(hourly)) {
		all = append(all, r.Currency)
	}
	return all, nil
}

// customerSum is what a customer's orders or refunds add up to.
type customerSum struct {
	ID     string `bson:"_id"`
	Amount int64  `bson:"amount"`
	Count  int64  `bson:"count"`
}

// top reads what was confirmed from the highest sum down, and stops once
// nobody who follows can be among the first: refunds, of which there are few,
// only make sums smaller.
func (v *view) top(ctx context.Context, limit int, currency string) ([]TopCustomer, error) {
	perCustomer := func(at string) mongo.Pipeline {
		return mongo.Pipeline{
			{{Key: "$match", Value: bson.D{v.span().within(at), {Key: "currency", Value: currency}}}},
			{{Key: "$group", Value: bson.D{{Key: "_id", Value: "$customer"}, {Key: "amount", Value: sum("$total")}, {Key: "count", Value: sum(int64(1))}}}},
		}
	}
	refunds, err := aggregate[customerSum](ctx, v.collection(ofOrders), perCustomer("refunded_at"))
	if err != nil {
		return nil, err
	}
	refunded := map[string]int64{}
	for _, r := range refunds {
		refunded[r.ID] = r.Amount
	}
	var first []customerSum // sorted; never more than limit
	place := func(c customerSum) {
		i, _ := slices.BinarySearchFunc(first, c, func(a, b customerSum) int {
			return cmp.Or(cmp.Compare(b.Amount, a.Amount), cmp.Compare(a.ID, b.ID))
		})
		first = slices.Insert(first, i, c)
		first = first[:min(limit, len(first))]
	}
	sorted := append(perCustomer("confirmed_at"), bson.D{{Key: "$sort", Value: bson.D{{Key: "amount", Value: -1}, {Key: "_id", Value: 1}}}})
	cursor, err := v.collection(ofOrders).Aggregate(ctx, sorted)
	if err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	defer cursor.Close(ctx)
	for cursor.Next(ctx) {
		var c customerSum
		if err := cursor.Decode(&c); err != nil {
			return nil, fmt.Errorf("read facts: %w", err)
		}
		if len(first) == limit && c.Amount < first[limit-1].Amount {
			break
		}
		c.Amount -= refunded[c.ID]
		delete(refunded, c.ID)
		place(c)
	}
	if err := cursor.Err(); err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	// Who is left had refunds alone. If not everybody was read, then who is last
	// of the first has more than nothing, and none of these gets a place.
	for id, amount := range refunded {
		place(customerSum{ID: id, Amount: -amount})
	}
	all := make([]TopCustomer, len(first))
	for i, c := range first {
		id, err := domain.ParseID(c.ID)
		if err != nil {
			return nil, fmt.Errorf("read the customer of a fact: %w", err)
		}
		all[i] = TopCustomer{CustomerID: id, Money: domain.Money{Amount: c.Amount, Currency: currency}, Orders: c.Count}
	}
	return all, nil
}
