package mongofake

import (
	"encoding/binary"
	"math"
	"math/big"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// A key is an encoding of a BSON value whose byte order is MongoDB's order of
// values (manual page "Comparison/Sort Order"), in which values that MongoDB
// holds for equal (1 and 1.0) are equal bytes. No key is a prefix of another,
// so keys can be put one after the other, and turned round for descending
// order by inverting their bytes. _id, indexes, sort, $group and $addToSet all
// compare keys.
//
// The first byte is the value's class. 0 ends documents and arrays and comes
// before every class.
const (
	classMinKey    = 0x01
	classMissing   = 0x02 // undefined, and an empty array where an index wants its elements
	classNull      = 0x05
	classNumber    = 0x0a
	classString    = 0x0f
	classObject    = 0x14
	classArray     = 0x19
	classBinary    = 0x1e
	classObjectID  = 0x23
	classBool      = 0x28
	classDate      = 0x2d
	classTimestamp = 0x2f
	classRegex     = 0x32
	classDBPointer = 0x37
	classCode      = 0x3c
	classScope     = 0x41
	classMaxKey    = 0x7f
)

// missing is the value of a field that is not there.
type missing struct{}

func classOf(v any) byte {
	switch v.(type) {
	case missing, nil:
		return classNull
	case bson.Undefined:
		return classMissing
	case int32, int64, float64, bson.Decimal128:
		return classNumber
	case string, bson.Symbol:
		return classString
	case bson.D:
		return classObject
	case bson.A:
		return classArray
	case bson.Binary:
		return classBinary
	case bson.ObjectID:
		return classObjectID
	case bool:
		return classBool
	case bson.DateTime:
		return classDate
	case bson.Timestamp:
		return classTimestamp
	case bson.Regex:
		return classRegex
	case bson.DBPointer:
		return classDBPointer
	case bson.JavaScript:
		return classCode
	case bson.CodeWithScope:
		return classScope
	case bson.MinKey:
		return classMinKey
	case bson.MaxKey:
		return classMaxKey
	}
	panic("mongofake: no class for a value")
}

func keyOf(v any) string { return string(appendKey(nil, v)) }

func appendKey(dst []byte, v any) []byte {
	return appendKeyPayload(append(dst, classOf(v)), v)
}

// appendDescendingKey orders the other way round.
func appendDescendingKey(dst []byte, v any) []byte {
	start := len(dst)
	dst = appendKey(dst, v)
	for i := start; i < len(dst); i++ {
		dst[i] = ^dst[i]
	}
	return dst
}

func appendKeyPayload(dst []byte, v any) []byte {
	switch v := v.(type) {
	case int32:
		return appendFloatKey(dst, float64(v), nil)
	case int64:
		f := float64(v)
		if f < 1<<63 && int64(f) == v {
			return appendFloatKey(dst, f, nil)
		}
		rest := new(big.Rat).SetInt64(v)
		return appendFloatKey(dst, f, rest.Sub(rest, new(big.Rat).SetFloat64(f)))
	case float64:
		return appendFloatKey(dst, v, nil)
	case bson.Decimal128:
		return appendDecimalKey(dst, v)
	case string:
		return appendStringKey(dst, v)
	case bson.Symbol:
		return appendStringKey(dst, string(v))
	case bson.D:
		for _, e := range v {
			dst = append(dst, classOf(e.Value))
			dst = appendStringKey(dst, e.Key)
			dst = appendKeyPayload(dst, e.Value)
		}
		return append(dst, 0)
	case bson.A:
		for _, e := range v {
			dst = appendKey(dst, e)
		}
		return append(dst, 0)
	case bson.Binary:
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(v.Data)))
		dst = append(dst, v.Subtype)
		return append(dst, v.Data...)
	case bson.ObjectID:
		return append(dst, v[:]...)
	case bool:
		if v {
			return append(dst, 1)
		}
		return append(dst, 0)
	case bson.DateTime:
		return binary.BigEndian.AppendUint64(dst, uint64(v)^(1<<63))
	case bson.Timestamp:
		dst = binary.BigEndian.AppendUint32(dst, v.T)
		return binary.BigEndian.AppendUint32(dst, v.I)
	case bson.Regex:
		return appendStringKey(appendStringKey(dst, v.Pattern), v.Options)
	case bson.DBPointer:
		return append(appendStringKey(dst, v.DB), v.Pointer[:]...)
	case bson.JavaScript:
		return appendStringKey(dst, string(v))
	case bson.CodeWithScope:
		dst = appendStringKey(dst, string(v.Code))
		return appendKeyPayload(dst, v.Scope.(bson.D))
	}
	return dst // one value only: null, MinKey, ...
}

// appendStringKey escapes NUL, so that the two NULs at the end come before
// whatever a longer string goes on with.
func appendStringKey(dst []byte, s string) []byte {
	for {
		i := strings.IndexByte(s, 0)
		if i < 0 {
			return append(append(dst, s...), 0, 0)
		}
		dst = append(append(dst, s[:i]...), 0, 0xff)
		s = s[i+1:]
	}
}

// appendFloatKey writes the number f+rest, where f is the double nearest to it:
// first f, then whether something is left and on which side, then the rest as
// two more doubles. Rounding to nearest keeps order, so the pieces do too, and
// three doubles tell any two numbers of 34 digits apart.
func appendFloatKey(dst []byte, f float64, rest *big.Rat) []byte {
	dst = appendFloat(dst, f)
	if rest == nil || rest.Sign() == 0 {
		return append(dst, 1)
	}
	if rest.Sign() < 0 {
		dst = append(dst, 0)
	} else {
		dst = append(dst, 2)
	}
	second, _ := rest.Float64()
	third, _ := new(big.Rat).Sub(rest, new(big.Rat).SetFloat64(second)).Float64()
	return appendFloat(appendFloat(dst, second), third)
}

func appendFloat(dst []byte, f float64) []byte {
	if math.IsNaN(f) {
		return binary.BigEndian.AppendUint64(dst, 0) // before every other number
	}
	bits := math.Float64bits(f + 0) // -0 becomes 0
	if bits>>63 == 1 {
		bits = ^bits
	} else {
		bits |= 1 << 63
	}
	return binary.BigEndian.AppendUint64(dst, bits)
}

func appendDecimalKey(dst []byte, v bson.Decimal128) []byte {
	switch {
	case v.IsNaN():
		return appendFloatKey(dst, math.NaN(), nil)
	case v.IsInf() != 0:
		return appendFloatKey(dst, math.Inf(v.IsInf()), nil)
	}
	digits, exponent, err := v.BigInt()
	if err != nil {
		panic(fail(codeBadValue, "invalid Decimal128"))
	}
	if digits.Sign() != 0 && (exponent > 260 || exponent < -280) {
		panic(unsupported("comparing Decimal128 values beyond the range of a double"))
	}
	r := new(big.Rat).SetInt(digits)
	if digits.Sign() != 0 {
		scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(exponent, -exponent))), nil)
		if exponent < 0 {
			r.Quo(r, new(big.Rat).SetInt(scale))
		} else {
			r.Mul(r, new(big.Rat).SetInt(scale))
		}
	}
	f, _ := r.Float64()
	return appendFloatKey(dst, f, r.Sub(r, new(big.Rat).SetFloat64(f)))
}

// compare orders any two values as MongoDB does. The first cases only save
// encoding what is compared most.
func compare(a, b any) int {
	switch x := a.(type) {
	case string:
		if y, ok := b.(string); ok {
			return strings.Compare(x, y)
		}
	case int64:
		switch y := b.(type) {
		case int64:
			return order(x, y)
		case int32:
			return order(x, int64(y))
		}
	case int32:
		switch y := b.(type) {
		case int32:
			return order(x, y)
		case int64:
			return order(int64(x), y)
		}
	case bson.DateTime:
		if y, ok := b.(bson.DateTime); ok {
			return order(x, y)
		}
	}
	if x, y := classOf(a), classOf(b); x != y {
		return order(x, y)
	}
	return strings.Compare(keyOf(a), keyOf(b))
}

func order[T int32 | int64 | byte | bson.DateTime](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func isNaN(v any) bool {
	switch n := v.(type) {
	case float64:
		return math.IsNaN(n)
	case bson.Decimal128:
		return n.IsNaN()
	}
	return false
}
