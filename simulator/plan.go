package simulator

import (
	"fmt"
	"math/rand/v2"
	"time"

	"outflow/domain"
)

// Kind is what a simulated person does.
type Kind string

// The kinds.
const (
	Register Kind = "register" // POST /api/customers
	Order    Kind = "order"    // POST /api/orders
	Change   Kind = "change"   // PATCH /api/customers/{id}
	Cancel   Kind = "cancel"   // POST /api/orders/{id}/cancel
	Fulfil   Kind = "fulfil"   // POST /api/orders/{id}/fulfil
	Refund   Kind = "refund"   // POST /api/orders/{id}/refund
)

// Kinds lists all kinds.
var Kinds = []Kind{Register, Order, Change, Cancel, Fulfil, Refund}

// Action is one step of a plan.
type Action struct {
	Kind     Kind
	After    time.Duration // the pause before it
	Customer int           // which customer, in the order of their registration
	Order    int           // which order, in the order of their placing
	New      *domain.CustomerInput
	Basket   []domain.Item
	Currency string
	Phone    string
}

// Plan makes actions for ever, the same for the same seed.
type Plan struct {
	random    *rand.Rand
	seed      uint64
	rate      float64
	customers int

	registered int
	orders     []planned
}

type planned struct {
	at                          int // the number of the action that placed it
	cancelled, fulfil, refunded bool
}

// ripe is how many actions an order gets to be confirmed before it is
// fulfilled.
const ripe = 40

// NewPlan plans for so many customers and rate actions a second on average.
func NewPlan(seed uint64, customers int, rate float64) *Plan {
	return &Plan{random: rand.New(rand.NewPCG(seed, 0x6f7574666c6f77)), seed: seed, rate: rate, customers: max(1, customers)}
}

// Next is the next action; n is its number, from 0 on.
func (p *Plan) Next(n int) Action {
	a := Action{After: time.Duration(p.random.ExpFloat64() / p.rate * float64(time.Second))}
	dice := p.random.IntN(100)
	switch {
	// A third of what happens is registrations until all customers are there.
	case p.registered == 0 || p.registered < p.customers && dice < 33:
		a.Kind, a.Customer, a.New = Register, p.registered, p.person()
		p.registered++
	case dice < 70:
		p.place(n, &a)
	case dice < 80:
		a.Kind, a.Customer, a.Phone = Change, p.random.IntN(p.registered), p.phone()
	case dice < 86:
		p.pick(n, 0, &a, Cancel, func(o *planned) bool { return mark(&o.cancelled) })
	case dice < 97:
		p.pick(n, ripe, &a, Fulfil, func(o *planned) bool { return !o.cancelled && mark(&o.fulfil) })
	default:
		p.pick(n, ripe, &a, Refund, func(o *planned) bool { return o.fulfil && mark(&o.refunded) })
	}
	return a
}

func mark(b *bool) bool {
	was := *b
	*b = true
	return !was
}

// pick chooses one of the newer orders that is old enough and fits; when none
// does, the person places an order instead.
func (p *Plan) pick(n, age int, a *Action, kind Kind, fits func(*planned) bool) {
	for try := 0; try < 8 && len(p.orders) > 0; try++ {
		i := len(p.orders) - 1 - p.random.IntN(min(len(p.orders), 200))
		if o := &p.orders[i]; n-o.at >= age && fits(o) {
			a.Kind, a.Order = kind, i
			return
		}
	}
	p.place(n, a)
}

func (p *Plan) place(n int, a *Action) {
	a.Kind, a.Customer, a.Order = Order, p.random.IntN(p.registered), len(p.orders)
	a.Currency = currencies[p.random.IntN(len(currencies))]
	for range 1 + p.random.IntN(3) {
		g := goods[p.random.IntN(len(goods))]
		g.Quantity = 1 + p.random.Int64N(4)
		a.Basket = append(a.Basket, g)
	}
	p.orders = append(p.orders, planned{at: n})
}

func (p *Plan) person() *domain.CustomerInput {
	first, last := firstNames[p.random.IntN(len(firstNames))], lastNames[p.random.IntN(len(lastNames))]
	in := &domain.CustomerInput{
		Name:    first + " " + last,
		Email:   fmt.Sprintf("sim-%d-%d@example.com", p.seed, p.registered),
		Phone:   p.phone(),
		Address: &domain.Address{Line1: fmt.Sprintf("%d %s Street", 1+p.random.IntN(200), last), City: cities[p.random.IntN(len(cities))], Country: "DE"},
	}
	if p.random.IntN(4) == 0 {
		in.SpendingLimit = &domain.Money{Amount: 5_000 * (1 + p.random.Int64N(10)), Currency: "EUR"}
	}
	if p.random.IntN(20) == 0 {
		in.Status = domain.CustomerSuspended
	}
	return in
}

func (p *Plan) phone() string { return fmt.Sprintf("+49 30 %07d", p.random.IntN(10_000_000)) }

var (
	currencies = []string{"EUR", "EUR", "EUR", "EUR", "EUR", "EUR", "EUR", "USD", "USD", "JPY"}
	firstNames = []string{"Ada", "Grace", "Edsger", "Barbara", "Donald", "Radia", "Leslie", "Margaret", "Niklaus", "Frances", "Søren", "Zoë"}
	lastNames  = []string{"Lovelace", "Hopper", "Dijkstra", "Liskov", "Knuth", "Perlman", "Lamport", "Hamilton", "Wirth", "Allen", "Ørsted", "Núñez"}
	cities     = []string{"Berlin", "Hamburg", "Köln", "München", "Leipzig"}
	goods      = []domain.Item{
		{SKU: "TEA-GREEN", Name: "Green tea, 100 g", UnitPrice: 450},
		{SKU: "TEA-BLACK", Name: "Black tea, 100 g", UnitPrice: 390},
		{SKU: "POT-1", Name: "Teapot, 1 l", UnitPrice: 2_490},
		{SKU: "CUP-2", Name: "Two cups", UnitPrice: 1_290},
		{SKU: "BOOK-7", Name: "The Book of Tea", UnitPrice: 1_800},
		{SKU: "CAKE", Name: "Lemon cake", UnitPrice: 720},
	}
)
