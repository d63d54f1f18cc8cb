package mongofake

import (
	"slices"
	"strconv"

	"go.mongodb.org/mongo-driver/v2/bson"
)

func indexName(i int) string { return strconv.Itoa(i) }

// checkEach checks the modifiers of $push and $addToSet (manual pages "$push",
// "$addToSet"). A document without $each is a value to add.
func checkEach(op string, operand any) *serverError {
	d, ok := operand.(bson.D)
	if !ok {
		return nil
	}
	each, ok := lookup(d, "$each")
	if !ok {
		return nil
	}
	if _, ok := each.(bson.A); !ok {
		code := int32(codeBadValue)
		if op == "$addToSet" {
			code = codeTypeMismatch
		}
		return fail(code, "The argument to $each in %s must be an array but it was of type: %s", op, typeName(each))
	}
	for _, e := range d {
		switch {
		case e.Key == "$each":
		case op == "$push" && (e.Key == "$position" || e.Key == "$slice"):
			if _, ok := integer(e.Value); !ok {
				return fail(codeBadValue, "The value for %s must be an integer value but was given type: %s", e.Key, typeName(e.Value))
			}
		case op == "$push" && e.Key == "$sort":
			if _, err := pushOrder(e.Value); err != nil {
				return err
			}
		default:
			return fail(codeBadValue, "Unrecognized clause in %s: %s", op, e.Key)
		}
	}
	return nil
}

// extend adds to a list of the caller's own.
func (c *change) extend(list bson.A) bson.A {
	if list == nil {
		list = bson.A{}
	}
	values := bson.A{c.operand}
	var modifiers bson.D
	if d, ok := c.operand.(bson.D); ok {
		if each, ok := lookup(d, "$each"); ok {
			values, modifiers = each.(bson.A), d
		}
	}
	if c.op == "$addToSet" {
		present := make(map[string]bool, len(list))
		for _, v := range list {
			present[keyOf(v)] = true
		}
		for _, v := range values {
			if k := keyOf(v); !present[k] {
				present[k] = true
				list = append(list, clone(v))
			}
		}
		return list
	}
	at := len(list)
	if v, ok := lookup(modifiers, "$position"); ok {
		position, _ := integer(v)
		if position < 0 {
			at = max(0, at+int(max(position, int64(-at))))
		} else {
			at = int(min(position, int64(at)))
		}
	}
	list = slices.Insert(list, at, clone(values).(bson.A)...)
	if v, ok := lookup(modifiers, "$sort"); ok {
		less, _ := pushOrder(v)
		slices.SortStableFunc(list, less)
	}
	if v, ok := lookup(modifiers, "$slice"); ok {
		n, _ := integer(v)
		switch {
		case n >= 0 && n < int64(len(list)):
			list = list[:n]
		case n < 0 && -n < int64(len(list)):
			list = list[int64(len(list))+n:]
		}
	}
	return list
}

// pushOrder reads $push's $sort: 1 or -1 for whole elements, or a sort document
// for elements that are documents.
func pushOrder(spec any) (func(a, b any) int, *serverError) {
	if n, ok := integer(spec); ok && (n == 1 || n == -1) {
		return func(a, b any) int { return int(n) * compare(a, b) }, nil
	}
	d, ok := spec.(bson.D)
	if !ok {
		return nil, fail(codeBadValue, "The $sort is invalid: use 1/-1 to sort the whole element, or {field:1/-1} to sort embedded fields")
	}
	columns, err := parseSort(d)
	if err != nil {
		return nil, err
	}
	return func(a, b any) int {
		x, _ := a.(bson.D)
		y, _ := b.(bson.D)
		for _, column := range columns {
			if diff := compare(fieldAt(x, column.path), fieldAt(y, column.path)); diff != 0 {
				if column.descending {
					return -diff
				}
				return diff
			}
		}
		return 0
	}, nil
}

// compilePull reads $pull's condition: operators apply to the element, a
// document without operators is a query on elements that are documents, and
// anything else is a value to equal.
func compilePull(operand any) (valuePredicate, *serverError) {
	switch v := operand.(type) {
	case bson.D:
		if _, ok := isOperators(v); ok {
			return compileElement(v)
		}
		p, err := compileQuery(v)
		if err != nil {
			return nil, err
		}
		return func(e any) bool {
			d, ok := e.(bson.D)
			return ok && p(d)
		}, nil
	case bson.Regex:
		return compileRegex(v)
	}
	return func(e any) bool { return compare(e, operand) == 0 }, nil
}

func (c *change) shrink(list bson.A) bson.A {
	switch c.op {
	case "$pop":
		if len(list) == 0 {
			return list
		}
		if n, _ := integer(c.operand); n < 0 {
			return slices.Clone(list[1:])
		}
		return slices.Clone(list[:len(list)-1])
	case "$pullAll":
		remove := map[string]bool{}
		for _, v := range c.operand.(bson.A) {
			remove[keyOf(v)] = true
		}
		return slices.DeleteFunc(slices.Clone(list), func(e any) bool { return remove[keyOf(e)] })
	}
	return slices.DeleteFunc(slices.Clone(list), c.prepared)
}
