package replicator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"

	"outflow/domain"
	"outflow/internal/failpoint"
)

// dates are the fields that the replica holds as dates rather than text.
var dates = map[string]bool{"created_at": true, "updated_at": true}

// Document returns what the replica holds of the entity that e is about, once
// e is applied: the entity, or its tombstone. An entity's fields are those of
// e.After, also those that this version of outflow doesn't know.
func Document(e domain.Event) (bson.Raw, error) {
	b := make([]byte, 0, len(e.After)+len(e.After)/2+128)
	_, b = bsoncore.AppendDocumentStart(b)
	b = bsoncore.AppendStringElement(b, "_id", e.AggregateID.String())
	version := e.AggregateVersion
	if e.After == nil && failpoint.Mutant("replicator.weak-tombstone") {
		version = 0
	}
	b = bsoncore.AppendInt64Element(b, "version", version)
	if e.After == nil {
		b = bsoncore.AppendTimeElement(b, "deleted_at", e.OccurredAt)
	} else {
		d := json.NewDecoder(bytes.NewReader(e.After))
		d.UseNumber()
		var err error
		if b, err = appendEntity(b, d, e); err != nil {
			return nil, fmt.Errorf("convert the entity: %w", err)
		}
	}
	return bsoncore.AppendDocumentEnd(b, 0)
}

func appendEntity(b []byte, d *json.Decoder, e domain.Event) ([]byte, error) {
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.Join(errors.New("not a JSON object"), err)
	}
	var named bool
	b, err := appendMembers(b, d, func(b []byte, key string, value json.Token) ([]byte, error) {
		switch key {
		case "id":
			if named = value == e.AggregateID.String(); !named {
				return nil, errors.New("id is another entity's than the event's")
			}
			return b, nil
		case "version":
			if value != json.Number(strconv.FormatInt(e.AggregateVersion, 10)) {
				return nil, errors.New("version is another than the event's")
			}
			return b, nil
		case "_id", "deleted_at":
			return nil, fmt.Errorf("%s means something else in a replica", key)
		}
		if s, ok := value.(string); ok && dates[key] {
			at, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				return nil, fmt.Errorf("%s is not a time", key)
			}
			return bsoncore.AppendTimeElement(b, key, at), nil
		}
		return appendValue(b, d, key, value)
	})
	switch {
	case err != nil:
		return nil, err
	case !named:
		return nil, errors.New("id is missing")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than a JSON object")
	}
	return b, nil
}

// appendMembers appends the members of an object whose opening brace was read,
// and reads its closing one. BSON leaves the meaning of a name that comes twice
// open, so that is an error.
func appendMembers(b []byte, d *json.Decoder, member func(b []byte, key string, value json.Token) ([]byte, error)) ([]byte, error) {
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		key := token.(string) // as the decoder guarantees
		if seen[key] {
			return nil, fmt.Errorf("a name comes twice in an object")
		}
		seen[key] = true
		if bytes.IndexByte([]byte(key), 0) >= 0 {
			return nil, errors.New("a name holds a NUL, which BSON can't")
		}
		value, err := d.Token()
		if err != nil {
			return nil, err
		}
		if b, err = member(b, key, value); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return b, err
}

func appendValue(b []byte, d *json.Decoder, key string, value json.Token) ([]byte, error) {
	switch v := value.(type) {
	case nil:
		return bsoncore.AppendNullElement(b, key), nil
	case bool:
		return bsoncore.AppendBooleanElement(b, key, v), nil
	case string:
		return bsoncore.AppendStringElement(b, key, v), nil
	case json.Number:
		return appendNumber(b, key, string(v))
	case json.Delim:
		var at int32
		var err error
		if v == '{' {
			at, b = bsoncore.AppendDocumentElementStart(b, key)
			b, err = appendMembers(b, d, func(b []byte, key string, value json.Token) ([]byte, error) {
				return appendValue(b, d, key, value)
			})
		} else {
			at, b = bsoncore.AppendArrayElementStart(b, key)
			b, err = appendElements(b, d)
		}
		if err != nil {
			return nil, err
		}
		return bsoncore.AppendDocumentEnd(b, at)
	}
	return nil, fmt.Errorf("unexpected %T", value)
}

func appendElements(b []byte, d *json.Decoder) ([]byte, error) {
	for i := 0; d.More(); i++ {
		value, err := d.Token()
		if err != nil {
			return nil, err
		}
		if b, err = appendValue(b, d, strconv.Itoa(i), value); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return b, err
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
