package mongofake

import (
	"strconv"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// arrayLeaf says what walk yields for an array at the end of the path.
type arrayLeaf int

const (
	leafBoth     arrayLeaf = iota // its elements, then the array: what queries compare
	leafWhole                     // the array alone: $exists, $size, $elemMatch
	leafElements                  // its elements, or undefined if it has none: what indexes hold
)

// walk yields the values at path, through arrays of documents on the way, until
// yield returns true; it returns whether one did. A field that is not there
// yields missing. It goes where MongoDB's matcher goes (manual page "Query an
// Array of Embedded Documents"): in an array on the way only its documents
// count, and a number in the path is both an index and a field name.
func walk(d bson.D, path string, leaf arrayLeaf, yield func(any) bool) bool {
	head, tail, deeper := strings.Cut(path, ".")
	value, ok := lookup(d, head)
	if !ok {
		return yield(missing{})
	}
	return descend(value, tail, deeper, leaf, yield)
}

func descend(value any, path string, deeper bool, leaf arrayLeaf, yield func(any) bool) bool {
	if !deeper {
		return yieldLeaf(value, leaf, yield)
	}
	switch v := value.(type) {
	case bson.D:
		return walk(v, path, leaf, yield)
	case bson.A:
		head, tail, more := strings.Cut(path, ".")
		index := arrayIndex(head)
		for i, e := range v {
			if d, ok := e.(bson.D); ok && walk(d, path, leaf, yield) {
				return true
			}
			if i != index {
				continue
			}
			if !more {
				if yield(e) {
					return true
				}
				continue
			}
			switch e.(type) {
			case bson.D, bson.A:
				if descend(e, tail, true, leaf, yield) {
					return true
				}
			}
		}
		return false
	}
	return yield(missing{})
}

func yieldLeaf(value any, leaf arrayLeaf, yield func(any) bool) bool {
	a, ok := value.(bson.A)
	if !ok || leaf == leafWhole {
		return yield(value)
	}
	for _, e := range a {
		if yield(e) {
			return true
		}
	}
	if leaf == leafElements {
		return len(a) == 0 && yield(bson.Undefined{})
	}
	return yield(a)
}

// arrayIndex reads a path segment as an array index; -1 if it is none. "01" is
// a field name.
func arrayIndex(segment string) int {
	if segment == "" || segment[0] < '0' || segment[0] > '9' || len(segment) > 1 && segment[0] == '0' {
		return -1
	}
	i, err := strconv.Atoi(segment)
	if err != nil {
		return -1
	}
	return i
}

// fieldAt follows path without looking into arrays; missing if it ends early.
func fieldAt(d bson.D, path string) any {
	head, tail, deeper := strings.Cut(path, ".")
	value, ok := lookup(d, head)
	switch {
	case !ok:
		return missing{}
	case !deeper:
		return value
	}
	if inner, ok := value.(bson.D); ok {
		return fieldAt(inner, tail)
	}
	return missing{}
}

// checkPath refuses what MongoDB refuses in an update path.
func checkPath(path string) *serverError {
	if path == "" {
		return fail(codeEmptyFieldName, "An empty update path is not valid.")
	}
	for _, segment := range strings.Split(path, ".") {
		if segment == "" {
			return fail(codeEmptyFieldName, "The update path '%s' contains an empty field name, which is not allowed.", path)
		}
	}
	return nil
}

// get follows an update path: numbers index arrays, and nothing is looked
// through.
func get(value any, path []string) any {
	for _, segment := range path {
		switch v := value.(type) {
		case bson.D:
			var ok bool
			if value, ok = lookup(v, segment); !ok {
				return missing{}
			}
		case bson.A:
			i := arrayIndex(segment)
			if i < 0 || i >= len(v) {
				return missing{}
			}
			value = v[i]
		default:
			return missing{}
		}
	}
	return value
}

// maxPadding is how many nulls one update may put into an array to reach an
// index beyond its end, as in MongoDB.
const maxPadding = 1500000

// put sets the value at path in a document or array that the caller may change,
// making what is missing on the way, and returns the container, which may have
// moved.
func put(container any, path []string, value any) (any, *serverError) {
	if len(path) == 0 {
		return value, nil
	}
	switch c := container.(type) {
	case missing:
		inner, err := put(missing{}, path[1:], value)
		return bson.D{{Key: path[0], Value: inner}}, err
	case bson.D:
		for i := range c {
			if c[i].Key == path[0] {
				inner, err := put(c[i].Value, path[1:], value)
				if err == nil {
					c[i].Value = inner
				}
				return c, err
			}
		}
		inner, err := put(missing{}, path[1:], value)
		if err != nil {
			return c, err
		}
		return append(c, bson.E{Key: path[0], Value: inner}), nil
	case bson.A:
		i := arrayIndex(path[0])
		if i < 0 {
			return c, notViable(path[0], c)
		}
		if i < len(c) {
			inner, err := put(c[i], path[1:], value)
			if err == nil {
				c[i] = inner
			}
			return c, err
		}
		if i-len(c) > maxPadding {
			return c, fail(codeBadValue, "can't backfill more than %d elements", maxPadding)
		}
		inner, err := put(missing{}, path[1:], value)
		if err != nil {
			return c, err
		}
		for len(c) < i {
			c = append(c, nil)
		}
		return append(c, inner), nil
	}
	return container, notViable(path[0], container)
}

func notViable(field string, in any) *serverError {
	return fail(codePathNotViable, "Cannot create field '%s' in element of type %s", field, typeName(in))
}

// unset removes the field at path. An element of an array becomes null, so that
// the others keep their places.
func unset(container any, path []string) any {
	switch c := container.(type) {
	case bson.D:
		for i := range c {
			if c[i].Key != path[0] {
				continue
			}
			if len(path) == 1 {
				return append(c[:i], c[i+1:]...)
			}
			c[i].Value = unset(c[i].Value, path[1:])
			return c
		}
	case bson.A:
		if i := arrayIndex(path[0]); i >= 0 && i < len(c) {
			if len(path) == 1 {
				c[i] = nil
			} else {
				c[i] = unset(c[i], path[1:])
			}
		}
	}
	return container
}

// typeName is a type's alias (manual page "BSON Types").
func typeName(v any) string {
	switch v.(type) {
	case missing:
		return "missing"
	case nil:
		return "null"
	case bson.Undefined:
		return "undefined"
	case int32:
		return "int"
	case int64:
		return "long"
	case float64:
		return "double"
	case bson.Decimal128:
		return "decimal"
	case string:
		return "string"
	case bson.Symbol:
		return "symbol"
	case bson.D:
		return "object"
	case bson.A:
		return "array"
	case bson.Binary:
		return "binData"
	case bson.ObjectID:
		return "objectId"
	case bool:
		return "bool"
	case bson.DateTime:
		return "date"
	case bson.Timestamp:
		return "timestamp"
	case bson.Regex:
		return "regex"
	case bson.DBPointer:
		return "dbPointer"
	case bson.JavaScript:
		return "javascript"
	case bson.CodeWithScope:
		return "javascriptWithScope"
	case bson.MinKey:
		return "minKey"
	case bson.MaxKey:
		return "maxKey"
	}
	return "unknown"
}

// shellText writes a value roughly as the shell shows it, for error messages.
func shellText(v any) string {
	switch v := v.(type) {
	case bson.D:
		if len(v) == 0 {
			return "{}"
		}
		fields := make([]string, len(v))
		for i, e := range v {
			fields[i] = e.Key + ": " + shellText(e.Value)
		}
		return "{ " + strings.Join(fields, ", ") + " }"
	case bson.A:
		elements := make([]string, len(v))
		for i, e := range v {
			elements[i] = shellText(e)
		}
		return "[ " + strings.Join(elements, ", ") + " ]"
	case string:
		return strconv.Quote(v)
	case nil, missing:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case int32:
		return strconv.FormatInt(int64(v), 10)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case bson.ObjectID:
		return "ObjectId('" + v.Hex() + "')"
	case bson.DateTime:
		return "new Date(" + strconv.FormatInt(int64(v), 10) + ")"
	}
	return typeName(v)
}
