package replicator

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"

	"outflow/domain"
	"outflow/internal/failpoint"
)

// isDate names the fields that the replica holds as dates rather than text.
func isDate(name string) bool { return name == "created_at" || name == "updated_at" }

const deletedAt = "deleted_at" // the field that tombstones alone have

// Document returns what the replica holds of the entity that e is about, once
// e is applied: the entity, or its tombstone. An entity's fields are those of
// e.After, also those that this version of outflow doesn't know.
func Document(e domain.Event) (bson.Raw, error) {
	if e.After != nil && !json.Valid(e.After) {
		var v any
		return nil, fmt.Errorf("convert the entity: %w", json.Unmarshal(e.After, &v))
	}
	return appendDocument(make([]byte, 0, len(e.After)+len(e.After)/4+128), e)
}

// appendDocument appends what [Document] returns to b, which has to be empty.
// Here e.After has to be valid JSON.
func appendDocument(b []byte, e domain.Event) (bson.Raw, error) {
	id := e.AggregateID.String()
	version := e.AggregateVersion
	if e.After == nil && failpoint.Mutant("replicator.weak-tombstone") {
		version = 0
	}
	_, b = bsoncore.AppendDocumentStart(b)
	b = bsoncore.AppendStringElement(b, "_id", id)
	b = bsoncore.AppendInt64Element(b, "version", version)
	if e.After == nil {
		b = bsoncore.AppendTimeElement(b, deletedAt, e.OccurredAt)
	} else {
		var err error
		if b, err = appendEntity(b, e.After, id, e.AggregateVersion); err != nil {
			return nil, fmt.Errorf("convert the entity: %w", err)
		}
	}
	return bsoncore.AppendDocumentEnd(b, 0)
}

func appendEntity(b []byte, after json.RawMessage, id string, version int64) ([]byte, error) {
	s := &scanner{json: string(after), names: make([]string, 0, 24)}
	if s.next() != '{' {
		return nil, errors.New("not a JSON object")
	}
	var named bool
	b, err := appendMembers(b, s, func(b []byte, key string) ([]byte, error) {
		switch key {
		case "id":
			if named = s.next() == '"' && s.text() == id; !named {
				return nil, errors.New("id is another entity's than the event's")
			}
			return b, nil
		case "version":
			if s.number() != strconv.FormatInt(version, 10) {
				return nil, errors.New("version is another than the event's")
			}
			return b, nil
		case "_id", deletedAt:
			return nil, fmt.Errorf("%s means something else in a replica", key)
		}
		if isDate(key) && s.next() == '"' {
			at, err := time.Parse(time.RFC3339Nano, s.text())
			if err != nil {
				return nil, fmt.Errorf("%s is not a time", key)
			}
			return bsoncore.AppendTimeElement(b, key, at), nil
		}
		return appendValue(b, s, key)
	})
	if err == nil && !named {
		err = errors.New("id is missing")
	}
	return b, err
}

// appendMembers appends the members of an object. BSON leaves the meaning of a
// name that comes twice open, so that is an error.
func appendMembers(b []byte, s *scanner, member func(b []byte, key string) ([]byte, error)) ([]byte, error) {
	first := len(s.names)
	for s.open(); s.more('}'); {
		key := s.text()
		if strings.IndexByte(key, 0) >= 0 {
			return nil, errors.New("a name holds a NUL, which BSON can't")
		}
		s.names = append(s.names, key)
		var err error
		if b, err = member(b, key); err != nil {
			return nil, err
		}
	}
	if twice(s.names[first:]) {
		return nil, errors.New("a name comes twice in an object")
	}
	s.names = s.names[:first]
	return b, nil
}

// twice reports whether a name comes twice; the names are in another order then.
func twice(names []string) bool {
	if len(names) > 20 {
		slices.Sort(names)
		return len(slices.Compact(names)) < len(names)
	}
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return true
		}
	}
	return false
}

func appendValue(b []byte, s *scanner, key string) ([]byte, error) {
	switch s.next() {
	case 'n':
		s.skip("null")
		return bsoncore.AppendNullElement(b, key), nil
	case 't':
		s.skip("true")
		return bsoncore.AppendBooleanElement(b, key, true), nil
	case 'f':
		s.skip("false")
		return bsoncore.AppendBooleanElement(b, key, false), nil
	case '"':
		return bsoncore.AppendStringElement(b, key, s.text()), nil
	case '{':
		at, b := bsoncore.AppendDocumentElementStart(b, key)
		b, err := appendMembers(b, s, func(b []byte, key string) ([]byte, error) { return appendValue(b, s, key) })
		if err != nil {
			return nil, err
		}
		return bsoncore.AppendDocumentEnd(b, at)
	case '[':
		at, b := bsoncore.AppendArrayElementStart(b, key)
		s.open()
		for i := 0; s.more(']'); i++ {
			var err error
			if b, err = appendValue(b, s, strconv.Itoa(i)); err != nil {
				return nil, err
			}
		}
		return bsoncore.AppendArrayEnd(b, at)
	}
	return appendNumber(b, key, s.number())
}

// appendNumber keeps numbers exact: a long when it is one, a double when that
// prints as the same number, else a decimal.
func appendNumber(b []byte, key, s string) ([]byte, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return bsoncore.AppendInt64Element(b, key, n), nil
	}
	exact, err := bson.ParseDecimal128(s)
	if err != nil {
		return nil, errors.New("a number has more digits than BSON can hold")
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		same, err := bson.ParseDecimal128(strconv.FormatFloat(f, 'g', -1, 64))
		if err == nil && equal(exact, same) {
			return bsoncore.AppendDoubleElement(b, key, f), nil
		}
	}
	h, l := exact.GetBytes()
	return bsoncore.AppendDecimal128Element(b, key, h, l), nil
}

// equal compares decimals by value: 1.50 is 1.5.
func equal(a, b bson.Decimal128) bool {
	x, xe, errX := a.BigInt()
	y, ye, errY := b.BigInt()
	if errX != nil || errY != nil {
		return false
	}
	return strip(x.String(), xe) == strip(y.String(), ye)
}

type digits struct {
	text     string
	exponent int
}

func strip(text string, exponent int) digits {
	n := len(text)
	for n > 1 && text[n-1] == '0' {
		n--
	}
	if text[:n] == "0" {
		return digits{"0", 0}
	}
	return digits{text[:n], exponent + len(text) - n}
}
