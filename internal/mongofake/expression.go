package mongofake

import (
	"math"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// expression computes a value from a document; missing if there is none. An
// error in the values is a panic with a *serverError, which fails the command.
type expression func(root bson.D) any

// compileExpression reads an aggregation expression (manual page "Aggregation
// Operators").
func compileExpression(v any) (expression, *serverError) {
	switch v := v.(type) {
	case string:
		if strings.HasPrefix(v, "$") {
			return compileFieldPath(v)
		}
	case bson.A:
		parts, err := compileAllExpressions(v)
		if err != nil {
			return nil, err
		}
		return func(root bson.D) any {
			out := make(bson.A, len(parts))
			for i, x := range parts {
				if out[i] = x(root); out[i] == any(missing{}) {
					out[i] = nil
				}
			}
			return out
		}, nil
	case bson.D:
		if _, ok := isOperators(v); ok {
			if len(v) != 1 {
				return nil, fail(15983, "an expression specification must contain exactly one field, the name of the expression. Found %d fields in %s", len(v), shellText(v))
			}
			return compileOperation(v[0].Key, v[0].Value)
		}
		return compileObject(v)
	}
	return func(bson.D) any { return v }, nil
}

func compileAllExpressions(list bson.A) ([]expression, *serverError) {
	parts := make([]expression, len(list))
	for i, item := range list {
		var err *serverError
		if parts[i], err = compileExpression(item); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

func compileObject(d bson.D) (expression, *serverError) {
	parts := make([]expression, len(d))
	for i, e := range d {
		if e.Key == "" || strings.HasPrefix(e.Key, "$") || strings.Contains(e.Key, ".") {
			return nil, fail(16410, "FieldPath field names may not be empty, start with '$' or contain '.': '%s'", e.Key)
		}
		var err *serverError
		if parts[i], err = compileExpression(e.Value); err != nil {
			return nil, err
		}
	}
	return func(root bson.D) any {
		out := make(bson.D, 0, len(d))
		for i, x := range parts {
			if v := x(root); v != any(missing{}) {
				out = append(out, bson.E{Key: d[i].Key, Value: v})
			}
		}
		return out
	}, nil
}

func compileFieldPath(v string) (expression, *serverError) {
	path := v[1:]
	if strings.HasPrefix(path, "$") {
		name, rest, deeper := strings.Cut(path[1:], ".")
		switch name {
		case "ROOT", "CURRENT":
			if !deeper {
				return func(root bson.D) any { return root }, nil
			}
			path = rest
		case "REMOVE":
			return func(bson.D) any { return missing{} }, nil
		case "NOW", "CLUSTER_TIME", "DESCEND", "PRUNE", "KEEP", "SEARCH_META", "USER_ROLES":
			return nil, unsupported("the variable $$%s", name)
		default:
			return nil, fail(17276, "Use of undefined variable: %s", name)
		}
	}
	segments := strings.Split(path, ".")
	for _, s := range segments {
		if s == "" || strings.HasPrefix(s, "$") {
			return nil, fail(16410, "FieldPath field names may not be empty or start with '$': '%s'", v)
		}
	}
	return func(root bson.D) any { return gather(root, segments) }, nil
}

// gather follows a path through arrays, each of which becomes the array of what
// its documents have.
func gather(v any, path []string) any {
	if len(path) == 0 {
		return v
	}
	switch v := v.(type) {
	case bson.D:
		inner, ok := lookup(v, path[0])
		if !ok {
			return missing{}
		}
		return gather(inner, path[1:])
	case bson.A:
		out := bson.A{}
		for _, e := range v {
			switch e.(type) {
			case bson.D, bson.A:
				if found := gather(e, path); found != any(missing{}) {
					out = append(out, found)
				}
			}
		}
		return out
	}
	return missing{}
}

// operation is an operator on values that have been computed.
type operation struct {
	least, most int // arguments; most < 0 is any number
	run         func(args []any) any
}

var operations = map[string]operation{
	"$add":         {0, -1, func(args []any) any { return sum("$add", args) }},
	"$subtract":    {2, 2, subtract},
	"$multiply":    {0, -1, product},
	"$divide":      {2, 2, divide},
	"$mod":         {2, 2, modulo},
	"$abs":         {1, 1, func(args []any) any { return rounded("$abs", args[0], math.Abs) }},
	"$floor":       {1, 1, func(args []any) any { return rounded("$floor", args[0], math.Floor) }},
	"$ceil":        {1, 1, func(args []any) any { return rounded("$ceil", args[0], math.Ceil) }},
	"$eq":          {2, 2, func(args []any) any { return compareComputed(args) == 0 }},
	"$ne":          {2, 2, func(args []any) any { return compareComputed(args) != 0 }},
	"$gt":          {2, 2, func(args []any) any { return compareComputed(args) > 0 }},
	"$gte":         {2, 2, func(args []any) any { return compareComputed(args) >= 0 }},
	"$lt":          {2, 2, func(args []any) any { return compareComputed(args) < 0 }},
	"$lte":         {2, 2, func(args []any) any { return compareComputed(args) <= 0 }},
	"$cmp":         {2, 2, func(args []any) any { return int32(compareComputed(args)) }},
	"$not":         {1, 1, func(args []any) any { return !truthy(args[0]) }},
	"$concat":      {0, -1, concat},
	"$size":        {1, 1, arraySize},
	"$in":          {2, 2, containedIn},
	"$arrayElemAt": {2, 2, elementAt},
	"$type":        {1, 1, func(args []any) any { return typeName(args[0]) }},
	"$isArray":     {1, 1, func(args []any) any { _, ok := args[0].(bson.A); return ok }},
}

func compileOperation(name string, v any) (expression, *serverError) {
	switch name {
	case "$literal":
		return func(bson.D) any { return v }, nil
	case "$cond":
		return compileCond(v)
	}
	list, ok := v.(bson.A)
	if !ok {
		list = bson.A{v}
	}
	args, err := compileAllExpressions(list)
	if err != nil {
		return nil, err
	}
	switch name {
	case "$and", "$or":
		stop := name == "$or"
		return func(root bson.D) any {
			for _, x := range args {
				if truthy(x(root)) == stop {
					return stop
				}
			}
			return !stop
		}, nil
	case "$ifNull":
		if len(args) < 2 {
			return nil, fail(1257300, "$ifNull needs at least two arguments, had: %d", len(args))
		}
		return func(root bson.D) any {
			for _, x := range args[:len(args)-1] {
				if v := x(root); !nullish(v) {
					return v
				}
			}
			return args[len(args)-1](root)
		}, nil
	case "$min", "$max", "$sum", "$avg":
		// As expressions they take a list, or one array.
		return func(root bson.D) any {
			values := computeAll(args, root)
			if a, ok := values[0].(bson.A); ok && len(values) == 1 {
				values = a
			}
			acc := accumulators[name]()
			for _, v := range values {
				acc.add(v)
			}
			return acc.result()
		}, nil
	}
	op, ok := operations[name]
	if !ok {
		return nil, fail(codeInvalidPipelineOperator, "Unrecognized expression '%s' (or one that mongofake doesn't support)", name)
	}
	if len(args) < op.least || op.most >= 0 && len(args) > op.most {
		return nil, fail(16020, "Expression %s takes exactly %d arguments. %d were passed in.", name, op.least, len(args))
	}
	return func(root bson.D) any { return op.run(computeAll(args, root)) }, nil
}

func computeAll(args []expression, root bson.D) []any {
	values := make([]any, len(args))
	for i, x := range args {
		values[i] = x(root)
	}
	return values
}

func compileCond(v any) (expression, *serverError) {
	parts, ok := v.(bson.A)
	if d, named := v.(bson.D); named {
		ok = len(d) == 3
		for _, key := range []string{"if", "then", "else"} {
			part, there := lookup(d, key)
			if !there {
				return nil, fail(17080, "Missing '%s' parameter to $cond", key)
			}
			parts = append(parts, part)
		}
	}
	if !ok || len(parts) != 3 {
		return nil, fail(16020, "Expression $cond takes exactly 3 arguments. %d were passed in.", len(parts))
	}
	x, err := compileAllExpressions(parts)
	if err != nil {
		return nil, err
	}
	return func(root bson.D) any {
		if truthy(x[0](root)) {
			return x[1](root)
		}
		return x[2](root)
	}, nil
}

func nullish(v any) bool {
	switch v.(type) {
	case nil, missing, bson.Undefined:
		return true
	}
	return false
}

// compareComputed orders missing before null, unlike a query does.
func compareComputed(args []any) int {
	a, b := args[0], args[1]
	_, noA := a.(missing)
	_, noB := b.(missing)
	switch {
	case noA && noB:
		return 0
	case noA:
		return order(classMissing, classOf(b))
	case noB:
		return order(classOf(a), classMissing)
	}
	return compare(a, b)
}

// number refuses, for the whole command, what can't be calculated with.
func number(op string, v any) any {
	switch v.(type) {
	case int32, int64, float64:
		return v
	case bson.Decimal128:
		panic(unsupported("%s with a Decimal128", op))
	case bson.DateTime:
		panic(unsupported("%s with a date", op))
	}
	panic(fail(codeTypeMismatch, "%s only supports numeric types, not %s", op, typeName(v)))
}

func anyNullish(args []any) bool {
	for _, v := range args {
		if nullish(v) {
			return true
		}
	}
	return false
}

func sum(op string, args []any) any {
	if anyNullish(args) {
		return nil
	}
	total := any(int32(0))
	for _, v := range args {
		next, ok := add(total, number(op, v))
		if !ok {
			next = float(total) + float(v)
		}
		total = next
	}
	return total
}

func subtract(args []any) any {
	if anyNullish(args) {
		return nil
	}
	a, ok1 := args[0].(bson.DateTime)
	b, ok2 := args[1].(bson.DateTime)
	if ok1 && ok2 {
		return int64(a) - int64(b)
	}
	x, y := number("$subtract", args[0]), number("$subtract", args[1])
	minus, ok := multiply(y, int32(-1))
	if ok {
		var difference any
		if difference, ok = add(x, minus); ok {
			return difference
		}
	}
	return float(x) - float(y)
}

func product(args []any) any {
	if anyNullish(args) {
		return nil
	}
	total := any(int32(1))
	for _, v := range args {
		next, ok := multiply(total, number("$multiply", v))
		if !ok {
			next = float(total) * float(v)
		}
		total = next
	}
	return total
}

func divide(args []any) any {
	if anyNullish(args) {
		return nil
	}
	by := float(number("$divide", args[1]))
	if by == 0 {
		panic(fail(codeBadValue, "can't $divide by zero"))
	}
	return float(number("$divide", args[0])) / by
}

func modulo(args []any) any {
	if anyNullish(args) {
		return nil
	}
	a, b := number("$mod", args[0]), number("$mod", args[1])
	if float(b) == 0 {
		panic(fail(16610, "can't $mod by zero"))
	}
	if isFloat(a) || isFloat(b) {
		return math.Mod(float(a), float(b))
	}
	x, _ := integer(a)
	y, _ := integer(b)
	if y == -1 {
		return narrow(0, a, b)
	}
	return narrow(x%y, a, b)
}

func rounded(op string, v any, f func(float64) float64) any {
	if nullish(v) {
		return nil
	}
	switch n := number(op, v).(type) {
	case float64:
		return f(n)
	case int32:
		if op == "$abs" && n < 0 {
			return narrow(-int64(n), n)
		}
	case int64:
		if op == "$abs" && n < 0 {
			if n == math.MinInt64 {
				panic(fail(28680, "can't take $abs of long long min"))
			}
			return -n
		}
	}
	return v
}

func concat(args []any) any {
	if anyNullish(args) {
		return nil
	}
	var b strings.Builder
	for _, v := range args {
		s, ok := v.(string)
		if !ok {
			panic(fail(16702, "$concat only supports strings, not %s", typeName(v)))
		}
		b.WriteString(s)
	}
	return b.String()
}

func arraySize(args []any) any {
	a, ok := args[0].(bson.A)
	if !ok {
		panic(fail(17124, "The argument to $size must be an array, but was of type: %s", typeName(args[0])))
	}
	return int32(len(a))
}

func containedIn(args []any) any {
	a, ok := args[1].(bson.A)
	if !ok {
		panic(fail(40081, "$in requires an array as a second argument, found: %s", typeName(args[1])))
	}
	for _, e := range a {
		if compareComputed([]any{args[0], e}) == 0 {
			return true
		}
	}
	return false
}

func elementAt(args []any) any {
	if anyNullish(args) {
		return nil
	}
	a, ok := args[0].(bson.A)
	if !ok {
		panic(fail(28689, "$arrayElemAt's first argument must be an array, but is %s", typeName(args[0])))
	}
	i, ok := integer(args[1])
	if !ok {
		panic(fail(28690, "$arrayElemAt's second argument must be a numeric value, but is %s", typeName(args[1])))
	}
	if i < 0 {
		i += int64(len(a))
	}
	if i < 0 || i >= int64(len(a)) {
		return missing{}
	}
	return a[i]
}
