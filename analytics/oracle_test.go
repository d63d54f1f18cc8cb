package analytics

import (
	"cmp"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"outflow/domain"
)

// oracle computes every answer from the events themselves, by their types, and
// with nothing of what the package does.
type oracle struct {
	orders    map[domain.ID]*oracleOrder
	customers map[domain.ID]domain.CustomerStatus // live ones
}

type oracleOrder struct {
	last                        domain.Order
	deleted                     bool
	placed, confirmed, refunded time.Time
}

func oracleOf(all []domain.Event) *oracle {
	o := &oracle{orders: map[domain.ID]*oracleOrder{}, customers: map[domain.ID]domain.CustomerStatus{}}
	for _, e := range all {
		if e.AggregateType == domain.AggregateCustomer {
			var c domain.Customer
			if e.Type == domain.CustomerDeleted {
				delete(o.customers, e.AggregateID)
				continue
			}
			must(json.Unmarshal(e.After, &c))
			o.customers[e.AggregateID] = c.Status
			continue
		}
		x := o.orders[e.AggregateID]
		if x == nil {
			x = &oracleOrder{placed: e.OccurredAt}
			o.orders[e.AggregateID] = x
		}
		switch e.Type {
		case domain.OrderConfirmed:
			x.confirmed = e.OccurredAt
		case domain.OrderCancelled:
			x.confirmed = time.Time{}
		case domain.OrderRefunded:
			x.refunded = e.OccurredAt
		case domain.OrderDeleted:
			x.deleted = true
			continue
		}
		must(json.Unmarshal(e.After, &x.last))
	}
	return o
}

func (w Window) holds(t time.Time) bool { return t.After(w.From) && !t.After(w.To) }

func ending(now time.Time, d time.Duration) Window {
	to := now.Truncate(time.Second)
	if to.Before(now) {
		to = to.Add(time.Second)
	}
	return Window{to.Add(-d), to}
}

func (o *oracle) transactions(w Window, keep func(Transaction, *oracleOrder) bool) []Transaction {
	all := []Transaction{}
	for id, x := range o.orders {
		for _, t := range []Transaction{
			{id, KindOrder, domain.Money{Amount: x.last.Total, Currency: x.last.Currency}, x.confirmed},
			{id, KindRefund, domain.Money{Amount: -x.last.Total, Currency: x.last.Currency}, x.refunded},
		} {
			if !t.At.IsZero() && w.holds(t.At) && keep(t, x) {
				all = append(all, t)
			}
		}
	}
	slices.SortFunc(all, func(a, b Transaction) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(b.OrderID.String(), a.OrderID.String()), cmp.Compare(b.Kind, a.Kind))
	})
	return all
}

func (o *oracle) revenue(w Window) []Revenue {
	sums := map[string]Revenue{}
	for _, t := range o.transactions(w, func(Transaction, *oracleOrder) bool { return true }) {
		r := sums[t.Currency]
		r.Currency = t.Currency
		r.Amount += t.Amount
		if t.Kind == KindOrder {
			r.Orders++
			r.Confirmed += t.Amount
		} else {
			r.Refunds++
			r.Refunded -= t.Amount
		}
		sums[t.Currency] = r
	}
	all := []Revenue{}
	for _, c := range slices.Sorted(maps.Keys(sums)) {
		all = append(all, sums[c])
	}
	return all
}

func (o *oracle) summary(w Window) Summary {
	s := Summary{Window: w, Orders: map[domain.OrderStatus]int64{
		"placed": 0, "confirmed": 0, "rejected": 0, "fulfilled": 0, "refunded": 0, "cancelled": 0,
	}, Revenue: o.revenue(w)}
	ordering := map[domain.ID]bool{}
	for _, x := range o.orders {
		if w.holds(x.placed) && !x.deleted {
			s.Orders[x.last.Status]++
			ordering[x.last.CustomerID] = true
		}
	}
	for _, status := range o.customers {
		if status == domain.CustomerActive {
			s.CustomersActive++
		}
	}
	s.CustomersOrdering = int64(len(ordering))
	return s
}

func (o *oracle) series(metric Metric, by Step, w Window) Series {
	s := Series{Window: w, Metric: metric, Step: by, Points: []Point{}}
	step, err := time.ParseDuration(string(by))
	must(err)
	for at := w.From.Add(1).Truncate(step); at.Before(w.To) || at.Equal(w.To); at = at.Add(step) {
		// What happens at the full hour belongs to the hour that begins.
		part := Window{at.Add(-time.Millisecond), at.Add(step - time.Millisecond)}
		if part.From.Before(w.From) {
			part.From = w.From
		}
		if part.To.After(w.To) {
			part.To = w.To
		}
		if !part.From.Before(part.To) {
			continue
		}
		p := Point{Start: at}
		if metric == MetricOrders {
			p.Orders = new(int64)
		} else {
			p.Revenue = []domain.Money{}
		}
		for _, r := range o.revenue(part) {
			if metric == MetricOrders {
				*p.Orders += r.Orders
			} else {
				p.Revenue = append(p.Revenue, domain.Money{Amount: r.Amount, Currency: r.Currency})
			}
		}
		s.Points = append(s.Points, p)
	}
	return s
}

func (o *oracle) top(w Window, limit int, currency string) Top {
	sums := map[domain.ID]TopCustomer{}
	o.transactions(w, func(t Transaction, x *oracleOrder) bool {
		if t.Currency == currency {
			c := sums[x.last.CustomerID]
			c.CustomerID, c.Currency = x.last.CustomerID, currency
			c.Amount += t.Amount
			if t.Kind == KindOrder {
				c.Orders++
			}
			sums[x.last.CustomerID] = c
		}
		return false
	})
	all := slices.SortedFunc(maps.Values(sums), func(a, b TopCustomer) int {
		return cmp.Or(cmp.Compare(b.Amount, a.Amount), cmp.Compare(a.CustomerID.String(), b.CustomerID.String()))
	})
	if all == nil {
		all = []TopCustomer{}
	}
	return Top{w, all[:min(limit, len(all))]}
}

func (o *oracle) ofCustomer(id domain.ID, w Window) Transactions {
	t := Transactions{Window: w, Sums: []domain.Money{}}
	t.Transactions = o.transactions(w, func(_ Transaction, x *oracleOrder) bool { return x.last.CustomerID == id })
	sums := map[string]int64{}
	for _, x := range t.Transactions {
		sums[x.Currency] += x.Amount
	}
	for _, c := range slices.Sorted(maps.Keys(sums)) {
		t.Sums = append(t.Sums, domain.Money{Amount: sums[c], Currency: c})
	}
	return t
}

// world makes up a history: orders of a few customers over three days, whose
// times fall on full hours and on each other more often than chance has it.
func world(r *rand.Rand, orders, customers int) []domain.Event {
	moment := func(after time.Time) time.Time {
		d := time.Duration(r.IntN(20*3600*1000)) * time.Millisecond
		switch r.IntN(6) {
		case 0:
			d = 0
		case 1:
			d = d.Truncate(time.Second)
		case 2:
			return after.Add(d).Truncate(time.Hour).Add(time.Hour)
		case 3:
			d %= time.Minute
		}
		return after.Add(d)
	}
	currencies := []string{"EUR", "EUR", "USD", "JPY"}
	var stories []*story
	for n := range orders {
		at := moment(epoch)
		s := placed(id(1000+n), id(1+r.IntN(customers)), currencies[r.IntN(len(currencies))], int64(r.IntN(1000)), at)
		step := func(to func(time.Time) *story) { at = moment(at); to(at) }
		for r.IntN(4) == 0 {
			at = moment(at)
			s.update(int64(r.IntN(1000)), currencies[r.IntN(len(currencies))], at)
		}
		switch r.IntN(10) {
		case 0:
		case 1:
			step(s.reject)
		case 2:
			step(s.cancel)
		default:
			step(s.confirm)
			switch r.IntN(4) {
			case 0:
			case 1:
				step(s.cancel)
			default:
				step(s.fulfil)
				if r.IntN(2) == 0 {
					step(s.refund)
				}
			}
		}
		if !s.order.Status.Open() && r.IntN(3) == 0 {
			step(s.remove)
		}
		stories = append(stories, s)
	}
	var all []domain.Event
	for _, s := range stories {
		all = append(all, s.events...)
	}
	for n := range customers {
		all = append(all, customerStory(r, id(1+n))...)
	}
	return all
}

func customerStory(r *rand.Rand, of domain.ID) []domain.Event {
	in := customer.CustomerInput
	c, err := domain.CreateCustomer(of, in, epoch)
	all := []domain.Event{change(domain.AggregateCustomer, of, c, err)}
	now := *c.After
	for range r.IntN(4) {
		in.Status = []domain.CustomerStatus{domain.CustomerActive, domain.CustomerSuspended, domain.CustomerClosed}[r.IntN(3)]
		in.Phone += "1"
		c, err := domain.UpdateCustomer(now, in, epoch)
		all = append(all, change(domain.AggregateCustomer, of, c, err))
		now = *c.After
	}
	if r.IntN(4) == 0 {
		c, err := domain.DeleteCustomer(now, false, epoch)
		all = append(all, change(domain.AggregateCustomer, of, c, err))
	}
	return all
}
