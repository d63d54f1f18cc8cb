package mongofake

import (
	"math"
	"regexp"
	"regexp/syntax"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// predicate is a compiled query. Compiling refuses what is wrong or not
// supported, whether or not there is a document to match.
type predicate func(bson.D) bool

// valuePredicate tests one of the values that a path leads to.
type valuePredicate func(any) bool

func compileQuery(query bson.D) (predicate, *serverError) {
	var all []predicate
	for _, e := range query {
		p, err := compileClause(e)
		if err != nil {
			return nil, err
		}
		if p != nil {
			all = append(all, p)
		}
	}
	return conjunction(all), nil
}

func conjunction(all []predicate) predicate {
	switch len(all) {
	case 0:
		return func(bson.D) bool { return true }
	case 1:
		return all[0]
	}
	return func(d bson.D) bool {
		for _, p := range all {
			if !p(d) {
				return false
			}
		}
		return true
	}
}

func compileClause(e bson.E) (predicate, *serverError) {
	switch e.Key {
	case "$and", "$or", "$nor":
		return compileLogical(e)
	case "$comment":
		return nil, nil
	case "$expr":
		x, err := compileExpression(e.Value)
		if err != nil {
			return nil, err
		}
		return func(d bson.D) bool { return truthy(x(d)) }, nil
	case "$where", "$text", "$jsonSchema", "$sampleRate", "$alwaysTrue", "$alwaysFalse":
		return nil, unsupported("the query operator %s", e.Key)
	}
	if strings.HasPrefix(e.Key, "$") {
		return nil, fail(codeBadValue, "unknown top level operator: %s. If you have a field name that starts with a '$' symbol, consider using $getField or $setField.", e.Key)
	}
	return compileField(e.Key, e.Value)
}

func compileLogical(e bson.E) (predicate, *serverError) {
	list, ok := e.Value.(bson.A)
	if !ok {
		return nil, fail(codeBadValue, "%s must be an array", e.Key)
	}
	if len(list) == 0 {
		return nil, fail(codeBadValue, "$and/$or/$nor must be a nonempty array")
	}
	parts := make([]predicate, len(list))
	for i, item := range list {
		q, ok := item.(bson.D)
		if !ok {
			return nil, fail(codeBadValue, "$or/$and/$nor entries need to be full objects")
		}
		var err *serverError
		if parts[i], err = compileQuery(q); err != nil {
			return nil, err
		}
	}
	if e.Key == "$and" {
		return conjunction(parts), nil
	}
	want := e.Key == "$or"
	return func(d bson.D) bool {
		for _, p := range parts {
			if p(d) {
				return want
			}
		}
		return !want
	}, nil
}

// isOperators tells {$gt: 1} from a document to be compared with.
func isOperators(v any) (bson.D, bool) {
	d, ok := v.(bson.D)
	return d, ok && len(d) > 0 && strings.HasPrefix(d[0].Key, "$")
}

func compileField(path string, condition any) (predicate, *serverError) {
	operators, ok := isOperators(condition)
	if !ok {
		return compileOperator(path, "$eq", condition, nil)
	}
	var all []predicate
	for _, op := range operators {
		p, err := compileOperator(path, op.Key, op.Value, operators)
		if err != nil {
			return nil, err
		}
		if p != nil {
			all = append(all, p)
		}
	}
	return conjunction(all), nil
}

func anyValue(path string, leaf arrayLeaf, p valuePredicate) predicate {
	if !strings.Contains(path, ".") {
		// The common case, without a closure for each document.
		return func(d bson.D) bool {
			v, ok := lookup(d, path)
			if !ok {
				return p(missing{})
			}
			if _, ok := v.(bson.A); !ok {
				return p(v)
			}
			return yieldLeaf(v, leaf, p)
		}
	}
	return func(d bson.D) bool { return walk(d, path, leaf, p) }
}

func not(p predicate) predicate { return func(d bson.D) bool { return !p(d) } }

// compileOperator compiles one operator on a field. siblings are all operators
// on that field: $regex and $options belong together.
func compileOperator(path, op string, operand any, siblings bson.D) (predicate, *serverError) {
	switch op {
	case "$eq", "$gt", "$gte", "$lt", "$lte", "$ne":
		p, err := compileComparison(op, operand)
		if err != nil {
			return nil, err
		}
		if op == "$ne" {
			return not(anyValue(path, leafBoth, p)), nil
		}
		return anyValue(path, leafBoth, p), nil
	case "$in", "$nin":
		p, err := compileIn(op, operand)
		if err != nil {
			return nil, err
		}
		if op == "$nin" {
			return not(anyValue(path, leafBoth, p)), nil
		}
		return anyValue(path, leafBoth, p), nil
	case "$not":
		return compileNot(path, operand)
	case "$exists":
		found := anyValue(path, leafWhole, func(v any) bool { return v != any(missing{}) })
		if truthy(operand) {
			return found, nil
		}
		return not(found), nil
	case "$type":
		return compileType(path, operand)
	case "$size":
		n, ok := integer(operand)
		if !ok || n < 0 {
			return nil, fail(codeBadValue, "Failed to parse $size. Expected a non-negative number in: $size: %s", shellText(operand))
		}
		return anyValue(path, leafWhole, func(v any) bool {
			a, ok := v.(bson.A)
			return ok && int64(len(a)) == n
		}), nil
	case "$all":
		return compileAll(path, operand)
	case "$elemMatch":
		return compileElemMatch(path, operand)
	case "$mod":
		return compileMod(path, operand)
	case "$regex":
		return compileRegexOperator(path, operand, siblings)
	case "$options":
		if _, ok := lookup(siblings, "$regex"); !ok {
			return nil, fail(codeBadValue, "$options needs a $regex")
		}
		return nil, nil
	case "$comment":
		return nil, nil
	case "$bitsAllSet", "$bitsAllClear", "$bitsAnySet", "$bitsAnyClear", "$geoWithin", "$geoIntersects", "$near", "$nearSphere", "$ref", "$id", "$db":
		return nil, unsupported("the query operator %s", op)
	}
	return nil, fail(codeBadValue, "unknown operator: %s", op)
}

func compileComparison(op string, operand any) (valuePredicate, *serverError) {
	if r, ok := operand.(bson.Regex); ok {
		if op == "$eq" {
			return compileRegex(r)
		}
		return nil, fail(codeBadValue, "Can't have RegEx as arg to predicate over field with %s.", op)
	}
	if _, ok := operand.(bson.Undefined); ok {
		return nil, fail(codeBadValue, "cannot compare to undefined")
	}
	class := classOf(operand)
	keyOf(operand) // refuses here what can't be compared
	if isNaN(operand) {
		equal := op != "$gt" && op != "$lt"
		return func(v any) bool { return equal && isNaN(v) }, nil
	}
	var accept func(c int) bool
	switch op {
	case "$eq", "$ne":
		accept = func(c int) bool { return c == 0 }
	case "$gt":
		accept = func(c int) bool { return c > 0 }
	case "$gte":
		accept = func(c int) bool { return c >= 0 }
	case "$lt":
		accept = func(c int) bool { return c < 0 }
	case "$lte":
		accept = func(c int) bool { return c <= 0 }
	}
	// Only values of the operand's own class compare ("type bracketing"), but
	// everything lies between MinKey and MaxKey.
	edge := class == classMinKey || class == classMaxKey
	return func(v any) bool {
		if c := classOf(v); c != class {
			if class == classNull && c == classMissing {
				return accept(0)
			}
			return edge && op != "$eq" && op != "$ne" && accept(order(c, class))
		}
		return !isNaN(v) && accept(compare(v, operand))
	}, nil
}

func compileIn(op string, operand any) (valuePredicate, *serverError) {
	list, ok := operand.(bson.A)
	if !ok {
		return nil, fail(codeBadValue, "%s needs an array", op)
	}
	values := make(map[string]bool, len(list))
	var patterns []valuePredicate
	for _, v := range list {
		if r, ok := v.(bson.Regex); ok {
			p, err := compileRegex(r)
			if err != nil {
				return nil, err
			}
			patterns = append(patterns, p)
			continue
		}
		if d, ok := isOperators(v); ok {
			return nil, fail(codeBadValue, "cannot nest $ under %s: %s", op, d[0].Key)
		}
		values[keyOf(v)] = true
	}
	return func(v any) bool {
		if classOf(v) == classMissing {
			v = nil
		}
		if len(values) > 0 && values[keyOf(v)] {
			return true
		}
		for _, p := range patterns {
			if p(v) {
				return true
			}
		}
		return false
	}, nil
}

func compileNot(path string, operand any) (predicate, *serverError) {
	if r, ok := operand.(bson.Regex); ok {
		p, err := compileRegex(r)
		if err != nil {
			return nil, err
		}
		return not(anyValue(path, leafBoth, p)), nil
	}
	d, ok := operand.(bson.D)
	if !ok {
		return nil, fail(codeBadValue, "$not needs a regex or a document")
	}
	if len(d) == 0 {
		return nil, fail(codeBadValue, "$not cannot be empty")
	}
	if _, ok := isOperators(d); !ok {
		return nil, fail(codeBadValue, "unknown operator: %s", d[0].Key)
	}
	p, err := compileField(path, d)
	if err != nil {
		return nil, err
	}
	return not(p), nil
}

// typeNumbers maps the aliases of manual page "$type" and their numbers to what
// typeName answers.
var typeNumbers = map[int64]string{
	1: "double", 2: "string", 3: "object", 4: "array", 5: "binData", 6: "undefined",
	7: "objectId", 8: "bool", 9: "date", 10: "null", 11: "regex", 12: "dbPointer",
	13: "javascript", 14: "symbol", 15: "javascriptWithScope", 16: "int",
	17: "timestamp", 18: "long", 19: "decimal", -1: "minKey", 127: "maxKey",
}

func compileType(path string, operand any) (predicate, *serverError) {
	list, ok := operand.(bson.A)
	if !ok {
		list = bson.A{operand}
	}
	if len(list) == 0 {
		return nil, fail(codeFailedToParse, "%s must match at least one type", path)
	}
	names := map[string]bool{}
	for _, v := range list {
		if alias, ok := v.(string); ok {
			known := alias == "number"
			for _, name := range typeNumbers {
				known = known || name == alias
			}
			if !known {
				return nil, fail(codeBadValue, "Unknown type name alias: %s", alias)
			}
			names[alias] = true
			continue
		}
		n, ok := integer(v)
		if !ok || typeNumbers[n] == "" {
			return nil, fail(codeBadValue, "Invalid numerical type code: %s", shellText(v))
		}
		names[typeNumbers[n]] = true
	}
	return anyValue(path, leafBoth, func(v any) bool {
		return names[typeName(v)] || names["number"] && classOf(v) == classNumber
	}), nil
}

func compileAll(path string, operand any) (predicate, *serverError) {
	list, ok := operand.(bson.A)
	if !ok {
		return nil, fail(codeBadValue, "$all needs an array")
	}
	if len(list) == 0 {
		return func(bson.D) bool { return false }, nil
	}
	var all []predicate
	for _, v := range list {
		op, value := "$eq", v
		if d, ok := isOperators(v); ok {
			if d[0].Key != "$elemMatch" || len(d) != 1 {
				return nil, fail(codeBadValue, "no $ expressions in $all")
			}
			op, value = "$elemMatch", d[0].Value
		}
		p, err := compileOperator(path, op, value, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return conjunction(all), nil
}

func compileElemMatch(path string, operand any) (predicate, *serverError) {
	match, err := compileElement(operand)
	if err != nil {
		return nil, err
	}
	return anyValue(path, leafWhole, func(v any) bool {
		a, ok := v.(bson.A)
		if !ok {
			return false
		}
		for _, e := range a {
			if match(e) {
				return true
			}
		}
		return false
	}), nil
}

// compileElement compiles $elemMatch's condition on one element: operators
// apply to the element itself, fields to the element as a document.
func compileElement(operand any) (valuePredicate, *serverError) {
	d, ok := operand.(bson.D)
	if !ok {
		return nil, fail(codeBadValue, "$elemMatch needs an Object")
	}
	if _, ok := isOperators(d); ok {
		switch d[0].Key {
		case "$and", "$or", "$nor", "$expr", "$where":
		default:
			const element = "e"
			p, err := compileField(element, d)
			if err != nil {
				return nil, err
			}
			return func(v any) bool { return p(bson.D{{Key: element, Value: v}}) }, nil
		}
	}
	p, err := compileQuery(d)
	if err != nil {
		return nil, err
	}
	return func(v any) bool {
		switch v := v.(type) {
		case bson.D:
			return p(v)
		case bson.A: // an array is a document whose fields are its indexes
			fields := make(bson.D, len(v))
			for i, e := range v {
				fields[i] = bson.E{Key: indexName(i), Value: e}
			}
			return p(fields)
		}
		return false
	}, nil
}

func compileMod(path string, operand any) (predicate, *serverError) {
	list, ok := operand.(bson.A)
	if !ok || len(list) != 2 {
		return nil, fail(codeBadValue, "malformed mod, needs to be an array of two elements")
	}
	divisor, ok1 := truncated(list[0])
	remainder, ok2 := truncated(list[1])
	if !ok1 || !ok2 {
		return nil, fail(codeBadValue, "malformed mod, divisor and remainder must be numbers")
	}
	if divisor == 0 {
		return nil, fail(codeBadValue, "divisor cannot be 0")
	}
	return anyValue(path, leafBoth, func(v any) bool {
		n, ok := truncated(v)
		if !ok {
			return false
		}
		if divisor == -1 {
			return remainder == 0 // the smallest int64 has no opposite
		}
		return n%divisor == remainder
	}), nil
}

func truncated(v any) (int64, bool) {
	if f, ok := v.(float64); ok {
		return integer(math.Trunc(f))
	}
	return integer(v)
}

func compileRegexOperator(path string, operand any, siblings bson.D) (predicate, *serverError) {
	var r bson.Regex
	switch v := operand.(type) {
	case string:
		r.Pattern = v
	case bson.Regex:
		r = v
	default:
		return nil, fail(codeBadValue, "$regex has to be a string")
	}
	if options, ok := lookup(siblings, "$options"); ok {
		text, ok := options.(string)
		if !ok {
			return nil, fail(codeBadValue, "$options has to be a string")
		}
		if r.Options != "" {
			return nil, fail(51074, "options set in both $regex and $options")
		}
		r.Options = text
	}
	p, err := compileRegex(r)
	if err != nil {
		return nil, err
	}
	return anyValue(path, leafBoth, p), nil
}

// compileRegex runs MongoDB's PCRE patterns on Go's engine. What Go doesn't
// know (lookaround, back references) is refused. Where both know a pattern
// they agree, but for "$", which in PCRE also matches before a last newline.
func compileRegex(r bson.Regex) (valuePredicate, *serverError) {
	flags := syntax.Perl
	for _, option := range r.Options {
		switch option {
		case 'i':
			flags |= syntax.FoldCase
		case 'm':
			flags &^= syntax.OneLine
		case 's':
			flags |= syntax.DotNL
		case 'u':
		default:
			return nil, unsupported("the regular expression option %q", option)
		}
	}
	parsed, err := syntax.Parse(r.Pattern, flags)
	if err != nil {
		return nil, unsupported("the regular expression %q: %v", r.Pattern, err)
	}
	widenEnd(parsed)
	compiled, err := regexp.Compile(parsed.String())
	if err != nil {
		return nil, unsupported("the regular expression %q: %v", r.Pattern, err)
	}
	return func(v any) bool {
		switch v := v.(type) {
		case string:
			return compiled.MatchString(v)
		case bson.Symbol:
			return compiled.MatchString(string(v))
		case bson.Regex:
			return v == r
		}
		return false
	}, nil
}

func widenEnd(re *syntax.Regexp) {
	if re.Op == syntax.OpEndText && re.Flags&syntax.WasDollar != 0 {
		end := &syntax.Regexp{Op: syntax.OpEndText}
		newline := &syntax.Regexp{Op: syntax.OpQuest, Sub: []*syntax.Regexp{{Op: syntax.OpLiteral, Rune: []rune{'\n'}}}}
		*re = syntax.Regexp{Op: syntax.OpConcat, Sub: []*syntax.Regexp{newline, end}}
		return
	}
	for _, sub := range re.Sub {
		widenEnd(sub)
	}
}
