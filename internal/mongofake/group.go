package mongofake

import (
	"math"
	"math/big"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// accumulator gathers the values of one field of one group (manual page
// "$group (aggregation)", "Accumulator Operator").
type accumulator interface {
	add(v any)
	result() any
}

var accumulators = map[string]func() accumulator{
	"$sum":      func() accumulator { return &sumAccumulator{} },
	"$avg":      func() accumulator { return &averageAccumulator{} },
	"$min":      func() accumulator { return &extremeAccumulator{sign: -1} },
	"$max":      func() accumulator { return &extremeAccumulator{sign: 1} },
	"$first":    func() accumulator { return &edgeAccumulator{} },
	"$last":     func() accumulator { return &edgeAccumulator{last: true} },
	"$push":     func() accumulator { return &listAccumulator{list: bson.A{}} },
	"$addToSet": func() accumulator { return &listAccumulator{list: bson.A{}, seen: map[string]bool{}} },
}

// sumAccumulator adds exactly while everything is an integer; the result has the
// widest type that was added, or wider if it doesn't fit.
type sumAccumulator struct {
	whole    big.Int
	fraction float64
	carry    float64 // what adding doubles has rounded away
	long     bool
	double   bool
}

func (s *sumAccumulator) add(v any) {
	switch n := v.(type) {
	case int32:
		s.whole.Add(&s.whole, big.NewInt(int64(n)))
	case int64:
		s.long = true
		s.whole.Add(&s.whole, big.NewInt(n))
	case float64:
		s.double = true
		total := s.fraction + n
		if !math.IsInf(total, 0) && !math.IsNaN(total) {
			if math.Abs(s.fraction) >= math.Abs(n) {
				s.carry += (s.fraction - total) + n
			} else {
				s.carry += (n - total) + s.fraction
			}
		}
		s.fraction = total
	case bson.Decimal128:
		panic(unsupported("adding Decimal128 values"))
	}
}

func (s *sumAccumulator) double64() float64 {
	whole, _ := new(big.Float).SetInt(&s.whole).Float64()
	return whole + (s.fraction + s.carry)
}

func (s *sumAccumulator) result() any {
	if s.double || !s.whole.IsInt64() {
		return s.double64()
	}
	n := s.whole.Int64()
	if s.long || n < math.MinInt32 || n > math.MaxInt32 {
		return n
	}
	return int32(n)
}

type averageAccumulator struct {
	sum sumAccumulator
	n   int
}

func (a *averageAccumulator) add(v any) {
	if classOf(v) == classNumber {
		a.n++
		a.sum.add(v)
	}
}

func (a *averageAccumulator) result() any {
	if a.n == 0 {
		return nil
	}
	return a.sum.double64() / float64(a.n)
}

type extremeAccumulator struct {
	sign int
	best any
}

func (e *extremeAccumulator) add(v any) {
	if !nullish(v) && (e.best == nil || compare(v, e.best)*e.sign > 0) {
		e.best = v
	}
}

func (e *extremeAccumulator) result() any { return e.best }

type edgeAccumulator struct {
	last, set bool
	value     any
}

func (e *edgeAccumulator) add(v any) {
	if e.last || !e.set {
		e.value, e.set = v, true
	}
}

func (e *edgeAccumulator) result() any {
	if e.value == any(missing{}) {
		return nil
	}
	return e.value
}

type listAccumulator struct {
	list bson.A
	seen map[string]bool // nil: all values, not only distinct ones
}

func (l *listAccumulator) add(v any) {
	if v == any(missing{}) {
		return
	}
	if l.seen != nil {
		k := keyOf(v)
		if l.seen[k] {
			return
		}
		l.seen[k] = true
	}
	l.list = append(l.list, v)
}

func (l *listAccumulator) result() any { return l.list }

// groupField is one computed field of $group.
type groupField struct {
	name    string
	input   expression
	factory func() accumulator
}

type group struct {
	id   any
	accs []accumulator
}

func compileGroup(v any) (stage, *serverError) {
	spec, ok := v.(bson.D)
	if !ok {
		return nil, fail(15947, "a group's fields must be specified in an object")
	}
	var id expression
	var fields []groupField
	for _, e := range spec {
		var err *serverError
		if e.Key == "_id" {
			if id, err = compileExpression(e.Value); err != nil {
				return nil, err
			}
			continue
		}
		f, err := compileGroupField(e)
		if err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	if id == nil {
		return nil, fail(15955, "a group specification must include an _id")
	}
	return func(in []bson.D) []bson.D { return groupBy(in, id, fields) }, nil
}

func compileGroupField(e bson.E) (groupField, *serverError) {
	d, ok := isOperators(e.Value)
	if !ok {
		return groupField{}, fail(40234, "The field '%s' must be an accumulator object", e.Key)
	}
	if len(d) != 1 {
		return groupField{}, fail(40238, "The field '%s' must specify one accumulator", e.Key)
	}
	op, operand := d[0].Key, d[0].Value
	if op == "$count" {
		if inner, ok := operand.(bson.D); !ok || len(inner) > 0 {
			return groupField{}, fail(codeTypeMismatch, "$count takes no arguments, i.e. $count:{}")
		}
		op, operand = "$sum", int32(1)
	}
	factory := accumulators[op]
	if factory == nil {
		return groupField{}, fail(15952, "unknown group operator '%s' (or one that mongofake doesn't support)", op)
	}
	input, err := compileExpression(operand)
	return groupField{e.Key, input, factory}, err
}

// groupBy keeps the groups in the order in which they first appear; MongoDB
// promises none.
func groupBy(in []bson.D, id expression, fields []groupField) []bson.D {
	groups := map[string]*group{}
	var order []*group
	for _, d := range in {
		value := id(d)
		if value == any(missing{}) {
			value = nil
		}
		key := keyOf(value)
		g := groups[key]
		if g == nil {
			g = &group{id: value, accs: make([]accumulator, len(fields))}
			for i, f := range fields {
				g.accs[i] = f.factory()
			}
			groups[key] = g
			order = append(order, g)
		}
		for i, f := range fields {
			g.accs[i].add(f.input(d))
		}
	}
	out := make([]bson.D, len(order))
	for i, g := range order {
		out[i] = bson.D{{Key: "_id", Value: g.id}}
		for j, f := range fields {
			out[i] = append(out[i], bson.E{Key: f.name, Value: g.accs[j].result()})
		}
	}
	return out
}
