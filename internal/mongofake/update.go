package mongofake

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// updater is a compiled update document: a replacement, or operators.
type updater struct {
	replacement bson.D
	raw         bson.Raw // the replacement as it came, if there was such a thing
	changes     []change
}

// change is one operator on one path.
type change struct {
	op      string
	path    []string
	operand any
	filters map[string]valuePredicate // array filters by identifier
	// prepared is what compiling made of the operand: $pull's predicate.
	prepared valuePredicate
}

// compileUpdate reads the u of an update. Field order matters: MongoDB applies
// operators in the order of the paths, not of the document (manual page
// "Update Operators": "process document fields with string-based names in
// lexicographic order", numbers in theirs).
func compileUpdate(u any, raw bson.Raw, arrayFilters bson.A) (*updater, *serverError) {
	if _, ok := u.(bson.A); ok {
		return nil, unsupported("updates with an aggregation pipeline")
	}
	d, ok := u.(bson.D)
	if !ok {
		return nil, fail(codeFailedToParse, "Update argument must be either an object or an array")
	}
	if _, ok := isOperators(d); !ok {
		if len(arrayFilters) > 0 {
			return nil, fail(codeFailedToParse, "arrayFilters may not be specified for a replacement-style update")
		}
		for _, e := range d {
			if strings.HasPrefix(e.Key, "$") {
				return nil, fail(codeDollarPrefixedFieldName, "The dollar ($) prefixed field '%s' in '%s' is not allowed in the context of an update's replacement document. Consider using an aggregation pipeline with $replaceWith.", e.Key, e.Key)
			}
		}
		return &updater{replacement: d, raw: raw}, nil
	}
	filters, err := compileArrayFilters(arrayFilters)
	if err != nil {
		return nil, err
	}
	up := &updater{}
	used := map[string]bool{}
	for _, op := range d {
		if !updateOperators[op.Key] {
			return nil, fail(codeFailedToParse, "Unknown modifier: %s. Expected a valid update modifier or pipeline-style update specified as an array", op.Key)
		}
		fields, ok := op.Value.(bson.D)
		if !ok {
			return nil, fail(codeFailedToParse, "Modifiers operate on fields but we found type %s instead. For example: {$mod: {<field>: ...}} not {%s: %s}", typeName(op.Value), op.Key, shellText(op.Value))
		}
		for _, e := range fields {
			if err := up.add(op.Key, e, filters, used); err != nil {
				return nil, err
			}
		}
	}
	for identifier := range filters {
		if !used[identifier] {
			return nil, fail(codeFailedToParse, "The array filter for identifier '%s' was not used in the update %s", identifier, shellText(d))
		}
	}
	return up, up.order()
}

var updateOperators = map[string]bool{
	"$set": true, "$setOnInsert": true, "$unset": true, "$inc": true, "$mul": true,
	"$min": true, "$max": true, "$currentDate": true, "$rename": true, "$push": true,
	"$addToSet": true, "$pop": true, "$pull": true, "$pullAll": true,
}

func (up *updater) add(op string, e bson.E, filters map[string]valuePredicate, used map[string]bool) *serverError {
	if err := checkPath(e.Key); err != nil {
		return err
	}
	c := change{op: op, path: strings.Split(e.Key, "."), operand: e.Value, filters: filters}
	for i, segment := range c.path {
		if !strings.HasPrefix(segment, "$") {
			continue
		}
		identifier, ok := positional(segment)
		switch {
		case segment == "$":
			return unsupported("the positional operator $")
		case !ok:
			return fail(codeDollarPrefixedFieldName, "The dollar ($) prefixed field '%s' in '%s' is not allowed in the context of an update's replacement document. Consider using an aggregation pipeline with $replaceWith.", segment, e.Key)
		case i == 0:
			return fail(codeBadValue, "Cannot have array filter identifier (i.e. '$[<id>]') element in the first position in path '%s'", e.Key)
		case op == "$rename":
			return fail(codeBadValue, "The source field for $rename may not be dynamic: %s", e.Key)
		case identifier != "" && filters[identifier] == nil:
			return fail(codeBadValue, "No array filter found for identifier '%s' in path '%s'", identifier, e.Key)
		}
		used[identifier] = true
	}
	switch op {
	case "$inc", "$mul":
		switch e.Value.(type) {
		case int32, int64, float64:
		case bson.Decimal128:
			return unsupported("%s by a Decimal128", op)
		default:
			return fail(codeTypeMismatch, "Cannot %s with non-numeric argument: {%s: %s}", map[string]string{"$inc": "increment", "$mul": "multiply"}[op], e.Key, shellText(e.Value))
		}
	case "$pull":
		p, err := compilePull(e.Value)
		if err != nil {
			return err
		}
		c.prepared = p
	case "$pullAll":
		if _, ok := e.Value.(bson.A); !ok {
			return fail(codeBadValue, "$pullAll requires an array argument but was given a %s", typeName(e.Value))
		}
	case "$pop":
		if n, ok := integer(e.Value); !ok || n != 1 && n != -1 {
			return fail(codeFailedToParse, "$pop expects 1 or -1, found: %s", shellText(e.Value))
		}
	case "$currentDate":
		if err := checkCurrentDate(e.Value); err != nil {
			return err
		}
	case "$rename":
		target, ok := e.Value.(string)
		if !ok {
			return fail(codeBadValue, "The 'to' field for $rename must be a string: %s: %s", e.Key, shellText(e.Value))
		}
		if err := checkPath(target); err != nil {
			return err
		}
		if strings.Contains(target, "$") {
			return fail(codeBadValue, "The destination field for $rename may not be dynamic: %s", target)
		}
		if target == e.Key {
			return fail(codeBadValue, "The source and target field for $rename must differ: %s: %q", e.Key, target)
		}
		// The target counts as a path of its own when conflicts are looked for.
		up.changes = append(up.changes, change{op: "", path: strings.Split(target, ".")})
	case "$push", "$addToSet":
		if err := checkEach(op, e.Value); err != nil {
			return err
		}
	}
	up.changes = append(up.changes, c)
	return nil
}

// order sorts the changes by path and refuses two on one path, or on a path and
// one inside it.
func (up *updater) order() *serverError {
	slices.SortStableFunc(up.changes, func(a, b change) int { return slices.CompareFunc(a.path, b.path, compareSegments) })
	for i := 1; i < len(up.changes); i++ {
		a, b := up.changes[i-1].path, up.changes[i].path
		if len(a) <= len(b) && slices.Equal(a, b[:len(a)]) {
			return fail(codeConflictingUpdates, "Updating the path '%s' would create a conflict at '%s'", strings.Join(b, "."), strings.Join(a, "."))
		}
	}
	up.changes = slices.DeleteFunc(up.changes, func(c change) bool { return c.op == "" })
	return nil
}

func compareSegments(a, b string) int {
	if i, j := arrayIndex(a), arrayIndex(b); i >= 0 && j >= 0 {
		return i - j
	}
	return strings.Compare(a, b)
}

// positional reads $[] and $[identifier].
func positional(segment string) (identifier string, ok bool) {
	if !strings.HasPrefix(segment, "$[") || !strings.HasSuffix(segment, "]") {
		return "", false
	}
	return segment[2 : len(segment)-1], true
}

func compileArrayFilters(list bson.A) (map[string]valuePredicate, *serverError) {
	filters := map[string]valuePredicate{}
	for _, item := range list {
		d, ok := item.(bson.D)
		if !ok || len(d) == 0 {
			return nil, fail(codeFailedToParse, "Array filter must be a non-empty object")
		}
		identifier, _, _ := strings.Cut(d[0].Key, ".")
		if strings.HasPrefix(identifier, "$") {
			return nil, unsupported("%s at the top of an array filter", identifier)
		}
		for _, e := range d {
			if head, _, _ := strings.Cut(e.Key, "."); head != identifier {
				return nil, fail(codeFailedToParse, "Error parsing array filter :: caused by :: Expected a single top-level field name, found '%s' and '%s'", identifier, head)
			}
		}
		if filters[identifier] != nil {
			return nil, fail(codeFailedToParse, "Found multiple array filters with the same top-level field name %s", identifier)
		}
		p, err := compileQuery(d)
		if err != nil {
			return nil, err
		}
		filters[identifier] = func(v any) bool { return p(bson.D{{Key: identifier, Value: v}}) }
	}
	return filters, nil
}

func checkCurrentDate(v any) *serverError {
	if _, ok := v.(bool); ok {
		return nil
	}
	if d, ok := v.(bson.D); ok && len(d) == 1 && d[0].Key == "$type" {
		if d[0].Value == "date" || d[0].Value == "timestamp" {
			return nil
		}
		return fail(codeBadValue, "The '$type' string field is required to be 'date' or 'timestamp': {$currentDate: {field : {$type: 'date'}}}")
	}
	return fail(codeBadValue, "%s is not valid type for $currentDate. Please use a boolean ('true') or a $type expression ({$type: 'timestamp/date'}).", typeName(v))
}

// apply runs the operators on a document that the caller may change.
func (up *updater) apply(d bson.D, inserting bool, now time.Time) (bson.D, *serverError) {
	var root any = d
	for _, c := range up.changes {
		if c.op == "$setOnInsert" && !inserting {
			continue
		}
		err := c.expand(root, nil, c.path, func(path []string) *serverError {
			var err *serverError
			root, err = c.run(root, path, now)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return root.(bson.D), nil
}

// expand turns $[] and $[identifier] into indexes.
func (c *change) expand(root any, done, rest []string, run func([]string) *serverError) *serverError {
	at := slices.IndexFunc(rest, func(s string) bool { return strings.HasPrefix(s, "$[") })
	if at < 0 {
		return run(append(slices.Clone(done), rest...))
	}
	done = append(slices.Clone(done), rest[:at]...)
	list, ok := get(root, done).(bson.A)
	if !ok {
		return fail(codeBadValue, "The path '%s' must exist in the document in order to apply array updates.", strings.Join(done, "."))
	}
	identifier, _ := positional(rest[at])
	for i, e := range slices.Clone(list) {
		if identifier != "" && !c.filters[identifier](e) {
			continue
		}
		if err := c.expand(root, append(slices.Clone(done), strconv.Itoa(i)), rest[at+1:], run); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) run(root any, path []string, now time.Time) (any, *serverError) {
	current := get(root, path)
	absent := current == any(missing{})
	switch c.op {
	case "$set", "$setOnInsert":
		return put(root, path, clone(c.operand))
	case "$unset":
		if absent {
			return root, nil
		}
		return unset(root, path), nil
	case "$inc", "$mul":
		value, err := c.calculate(current)
		if err != nil {
			return root, err
		}
		return put(root, path, value)
	case "$min", "$max":
		if !absent {
			diff := compare(c.operand, current)
			if diff == 0 || (diff > 0) != (c.op == "$max") {
				return root, nil
			}
		}
		return put(root, path, clone(c.operand))
	case "$currentDate":
		if d, ok := c.operand.(bson.D); ok && d[0].Value == "timestamp" {
			return put(root, path, bson.Timestamp{T: uint32(now.Unix()), I: 1})
		}
		return put(root, path, bson.NewDateTimeFromTime(now))
	case "$rename":
		return c.rename(root, path, current)
	case "$push", "$addToSet":
		list, ok := current.(bson.A)
		if !ok && !absent {
			return root, fail(codeBadValue, "The field '%s' must be an array but is of type %s", strings.Join(path, "."), typeName(current))
		}
		return put(root, path, c.extend(slices.Clone(list)))
	}
	// $pop, $pull, $pullAll leave alone what is not there.
	if absent {
		return root, nil
	}
	list, ok := current.(bson.A)
	if !ok {
		code := int32(codeBadValue)
		if c.op == "$pop" {
			code = codeTypeMismatch
		}
		return root, fail(code, "Cannot apply %s to a non-array value: '%s' is of type %s", c.op, strings.Join(path, "."), typeName(current))
	}
	return put(root, path, c.shrink(list))
}

func (c *change) calculate(current any) (any, *serverError) {
	switch current.(type) {
	case missing:
		if c.op == "$inc" {
			return c.operand, nil
		}
		current = int32(0)
	case int32, int64, float64:
	case bson.Decimal128:
		return nil, unsupported("%s on a Decimal128", c.op)
	default:
		return nil, fail(codeTypeMismatch, "Cannot apply %s to a value of non-numeric type. The field '%s' is of non-numeric type %s", c.op, strings.Join(c.path, "."), typeName(current))
	}
	operation := add
	if c.op == "$mul" {
		operation = multiply
	}
	value, ok := operation(current, c.operand)
	if !ok {
		return nil, fail(codeBadValue, "Failed to apply %s operations to current value (%s) for the field '%s': the result does not fit in 64 bits", c.op, shellText(current), strings.Join(c.path, "."))
	}
	return value, nil
}

// add keeps the wider of two number types, widens an int that overflows, and
// reports a long that does.
func add(a, b any) (any, bool) {
	if isFloat(a) || isFloat(b) {
		return float(a) + float(b), true
	}
	x, _ := integer(a)
	y, _ := integer(b)
	sum := x + y
	if (sum > x) != (y > 0) && y != 0 {
		return nil, false
	}
	return narrow(sum, a, b), true
}

func multiply(a, b any) (any, bool) {
	if isFloat(a) || isFloat(b) {
		return float(a) * float(b), true
	}
	x, _ := integer(a)
	y, _ := integer(b)
	product := x * y
	if x != 0 && (product/x != y || x == -1 && y == math.MinInt64) {
		return nil, false
	}
	return narrow(product, a, b), true
}

func narrow(n int64, operands ...any) any {
	for _, v := range operands {
		if _, ok := v.(int32); !ok {
			return n
		}
	}
	if n < math.MinInt32 || n > math.MaxInt32 {
		return n
	}
	return int32(n)
}

func isFloat(v any) bool {
	_, ok := v.(float64)
	return ok
}

func float(v any) float64 {
	switch n := v.(type) {
	case int32:
		return float64(n)
	case int64:
		return float64(n)
	case float64:
		return n
	}
	return math.NaN()
}

func (c *change) rename(root any, path []string, current any) (any, *serverError) {
	target := strings.Split(c.operand.(string), ".")
	for _, p := range [][]string{path, target} {
		for i := range p {
			if _, ok := get(root, p[:i]).(bson.A); ok {
				return root, fail(codeBadValue, "The field of $rename cannot be an array element: '%s'", strings.Join(p, "."))
			}
		}
	}
	if current == any(missing{}) {
		return root, nil
	}
	return put(unset(root, path), target, current)
}
