package mongofake

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

// maxDepth is how deep documents nest in MongoDB ("BSON Document Size" and
// nesting, manual page "MongoDB Limits and Thresholds": 100 levels for
// documents; the server's own decoder stops at 180). Without a limit a small
// message of nothing but brackets would exhaust the stack, which ends the
// process.
const maxDepth = 180

var errMalformed = errors.New("malformed BSON")

// decode reads one document that fills raw exactly. It checks everything on the
// way, so what it returns can be encoded again. Strings are copied, raw may be
// reused.
func decode(raw []byte) (bson.D, error) { return decodeDocument(raw, 0) }

func decodeDocument(raw []byte, depth int) (bson.D, error) {
	var d bson.D
	// A short document is the common case, and grows at most once.
	d = make(bson.D, 0, 8)
	err := decodeElements(raw, depth, func(key []byte, value any) {
		d = append(d, bson.E{Key: string(key), Value: value})
	})
	return d, err
}

func decodeArray(raw []byte, depth int) (bson.A, error) {
	a := bson.A{}
	err := decodeElements(raw, depth, func(_ []byte, value any) { a = append(a, value) })
	return a, err
}

func decodeElements(raw []byte, depth int, yield func(key []byte, value any)) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: nested deeper than %d levels", errMalformed, maxDepth)
	}
	length, rest, ok := bsoncore.ReadLength(raw)
	if !ok || int(length) != len(raw) || length < 5 || raw[length-1] != 0 {
		return fmt.Errorf("%w: length", errMalformed)
	}
	rest = rest[:len(rest)-1]
	for len(rest) > 0 {
		kind := bson.Type(rest[0])
		key, tail, ok := bsoncore.ReadKeyBytes(rest[1:])
		if !ok {
			return fmt.Errorf("%w: key", errMalformed)
		}
		value, tail, err := decodeValue(kind, tail, depth)
		if err != nil {
			return err
		}
		yield(key, value)
		rest = tail
	}
	return nil
}

func decodeValue(kind bson.Type, src []byte, depth int) (value any, rest []byte, err error) {
	ok := true
	switch kind {
	case bson.TypeDouble:
		value, rest, ok = read(bsoncore.ReadDouble(src))
	case bson.TypeString:
		value, rest, ok = read(bsoncore.ReadString(src))
	case bson.TypeEmbeddedDocument, bson.TypeArray:
		var inner bsoncore.Document
		if inner, rest, ok = bsoncore.ReadDocument(src); ok {
			if kind == bson.TypeArray {
				value, err = decodeArray(inner, depth+1)
			} else {
				value, err = decodeDocument(inner, depth+1)
			}
		}
	case bson.TypeBinary:
		value, rest, ok = decodeBinary(src)
	case bson.TypeUndefined:
		value, rest = bson.Undefined{}, src
	case bson.TypeObjectID:
		var id [12]byte
		id, rest, ok = bsoncore.ReadObjectID(src)
		value = bson.ObjectID(id)
	case bson.TypeBoolean:
		if len(src) == 0 || src[0] > 1 {
			return nil, nil, fmt.Errorf("%w: boolean", errMalformed)
		}
		value, rest = src[0] == 1, src[1:]
	case bson.TypeDateTime:
		var ms int64
		ms, rest, ok = bsoncore.ReadDateTime(src)
		value = bson.DateTime(ms)
	case bson.TypeNull:
		rest = src
	case bson.TypeRegex:
		var r bson.Regex
		r.Pattern, r.Options, rest, ok = bsoncore.ReadRegex(src)
		value = r
	case bson.TypeDBPointer:
		var id [12]byte
		var p bson.DBPointer
		p.DB, id, rest, ok = bsoncore.ReadDBPointer(src)
		p.Pointer = id
		value = p
	case bson.TypeJavaScript:
		var code string
		code, rest, ok = bsoncore.ReadJavaScript(src)
		value = bson.JavaScript(code)
	case bson.TypeSymbol:
		var symbol string
		symbol, rest, ok = bsoncore.ReadSymbol(src)
		value = bson.Symbol(symbol)
	case bson.TypeCodeWithScope:
		var code string
		var scope []byte
		code, scope, rest, ok = bsoncore.ReadCodeWithScope(src)
		// Its parts must fill its own length, which bsoncore doesn't check.
		if ok = ok && int(binary.LittleEndian.Uint32(src)) == len(src)-len(rest); ok {
			var d bson.D
			d, err = decodeDocument(scope, depth+1)
			value = bson.CodeWithScope{Code: bson.JavaScript(code), Scope: d}
		}
	case bson.TypeInt32:
		value, rest, ok = read(bsoncore.ReadInt32(src))
	case bson.TypeTimestamp:
		var t bson.Timestamp
		t.T, t.I, rest, ok = bsoncore.ReadTimestamp(src)
		value = t
	case bson.TypeInt64:
		value, rest, ok = read(bsoncore.ReadInt64(src))
	case bson.TypeDecimal128:
		var high, low uint64
		high, low, rest, ok = bsoncore.ReadDecimal128(src)
		value = bson.NewDecimal128(high, low)
	case bson.TypeMinKey:
		value, rest = bson.MinKey{}, src
	case bson.TypeMaxKey:
		value, rest = bson.MaxKey{}, src
	default:
		return nil, nil, fmt.Errorf("%w: type 0x%02x", errMalformed, byte(kind))
	}
	if !ok {
		return nil, nil, fmt.Errorf("%w: %s", errMalformed, kind)
	}
	return value, rest, err
}

// decodeBinary reads a length, a subtype and that many bytes. Those of the old
// subtype 2 begin with their length again; bsoncore believes that one, also when
// it reaches beyond the value.
func decodeBinary(src []byte) (value any, rest []byte, ok bool) {
	length, rest, ok := bsoncore.ReadLength(src)
	if !ok || len(rest) < 1 || int(length) > len(rest)-1 {
		return nil, nil, false
	}
	subtype, data, rest := rest[0], rest[1:1+length], rest[1+length:]
	if subtype == 2 {
		inner, tail, ok := bsoncore.ReadLength(data)
		if !ok || int(inner) != len(tail) {
			return nil, nil, false
		}
		data = tail
	}
	return bson.Binary{Subtype: subtype, Data: bytes.Clone(data)}, rest, true
}

func read[T any](value T, rest []byte, ok bool) (any, []byte, bool) { return value, rest, ok }

// encode is the inverse of decode. It also takes bson.Raw for a document and
// []bson.Raw for an array of documents, which are copied as they are.
func encode(d bson.D) bson.Raw { return appendDocument(nil, d) }

func appendDocument(dst []byte, d bson.D) []byte {
	start, dst := bsoncore.AppendDocumentStart(dst)
	for _, e := range d {
		dst = appendElement(dst, e.Key, e.Value)
	}
	return endDocument(dst, start)
}

func endDocument(dst []byte, start int32) []byte {
	dst = append(dst, 0)
	return bsoncore.UpdateLength(dst, start, int32(len(dst))-start)
}

// appendElement panics on a type that decode never makes: a mistake in this
// package.
func appendElement(dst []byte, key string, value any) []byte {
	switch v := value.(type) {
	case nil:
		return bsoncore.AppendNullElement(dst, key)
	case bool:
		return bsoncore.AppendBooleanElement(dst, key, v)
	case int32:
		return bsoncore.AppendInt32Element(dst, key, v)
	case int64:
		return bsoncore.AppendInt64Element(dst, key, v)
	case float64:
		return bsoncore.AppendDoubleElement(dst, key, v)
	case string:
		return bsoncore.AppendStringElement(dst, key, v)
	case bson.D:
		return appendDocument(bsoncore.AppendHeader(dst, bsoncore.TypeEmbeddedDocument, key), v)
	case bson.Raw:
		return append(bsoncore.AppendHeader(dst, bsoncore.TypeEmbeddedDocument, key), v...)
	case bson.A:
		start, dst := bsoncore.AppendArrayElementStart(dst, key)
		for i, e := range v {
			dst = appendElement(dst, strconv.Itoa(i), e)
		}
		return endDocument(dst, start)
	case []bson.Raw:
		start, dst := bsoncore.AppendArrayElementStart(dst, key)
		for i, e := range v {
			dst = append(bsoncore.AppendHeader(dst, bsoncore.TypeEmbeddedDocument, strconv.Itoa(i)), e...)
		}
		return endDocument(dst, start)
	case bson.Binary:
		return bsoncore.AppendBinaryElement(dst, key, v.Subtype, v.Data)
	case bson.Undefined:
		return bsoncore.AppendUndefinedElement(dst, key)
	case bson.ObjectID:
		return bsoncore.AppendObjectIDElement(dst, key, v)
	case bson.DateTime:
		return bsoncore.AppendDateTimeElement(dst, key, int64(v))
	case bson.Regex:
		return bsoncore.AppendRegexElement(dst, key, v.Pattern, v.Options)
	case bson.DBPointer:
		return bsoncore.AppendDBPointerElement(dst, key, v.DB, v.Pointer)
	case bson.JavaScript:
		return bsoncore.AppendJavaScriptElement(dst, key, string(v))
	case bson.Symbol:
		return bsoncore.AppendSymbolElement(dst, key, string(v))
	case bson.CodeWithScope:
		return bsoncore.AppendCodeWithScopeElement(dst, key, string(v.Code), encode(v.Scope.(bson.D)))
	case bson.Timestamp:
		return bsoncore.AppendTimestampElement(dst, key, v.T, v.I)
	case bson.Decimal128:
		high, low := v.GetBytes()
		return bsoncore.AppendDecimal128Element(dst, key, high, low)
	case bson.MinKey:
		return bsoncore.AppendMinKeyElement(dst, key)
	case bson.MaxKey:
		return bsoncore.AppendMaxKeyElement(dst, key)
	}
	panic(fmt.Sprintf("mongofake: cannot encode %T", value))
}

// clone copies documents and arrays, so that the copy can be changed in place.
// All other values are never changed in place.
func clone(value any) any {
	switch v := value.(type) {
	case bson.D:
		return cloneDocument(v)
	case bson.A:
		c := make(bson.A, len(v))
		for i, e := range v {
			c[i] = clone(e)
		}
		return c
	}
	return value
}

func cloneDocument(d bson.D) bson.D {
	c := make(bson.D, len(d), len(d)+1)
	for i, e := range d {
		c[i] = bson.E{Key: e.Key, Value: clone(e.Value)}
	}
	return c
}

// lookup finds a field of d by its exact name.
func lookup(d bson.D, key string) (any, bool) {
	for i := range d {
		if d[i].Key == key {
			return d[i].Value, true
		}
	}
	return nil, false
}

// integer takes any number without a fraction that fits in an int64.
func integer(v any) (int64, bool) {
	switch n := v.(type) {
	case int32:
		return int64(n), true
	case int64:
		return n, true
	case float64:
		if n == math.Trunc(n) && n >= -(1<<63) && n < 1<<63 {
			return int64(n), true
		}
	}
	return 0, false
}

// truthy is how MongoDB reads a value where it wants a boolean.
func truthy(v any) bool {
	switch b := v.(type) {
	case nil, bson.Undefined, missing:
		return false
	case bool:
		return b
	case int32:
		return b != 0
	case int64:
		return b != 0
	case float64:
		return b != 0
	case bson.Decimal128:
		n, _, err := b.BigInt()
		return err != nil || n.Sign() != 0
	}
	return true
}
