package replicator

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"

	"outflow/domain"
)

func entity(after string) domain.Event {
	e := customer(1, 7)
	e.After = quoted(after)
	return e
}

func decimal(t *testing.T, s string) bson.Decimal128 {
	d, err := bson.ParseDecimal128(s)
	require.NoError(t, err)
	return d
}

func TestFieldsKeepNameOrderAndValue(t *testing.T) {
	t.Parallel()
	e := entity(`{"id":"` + id(1).String() + `","version":7,
		"new":{"z":[1,-1,9223372036854775807,9223372036854775808],"a":[0.5,1.10,0.1234567890123456789,1e3,1e400,-0.0],"n":null,"b":[true,false,[],{}]},
		"created_at":"2026-11-21T05:05:06.789+01:00","updated_at":null}`)
	raw, err := Document(e)
	require.NoError(t, err)
	var got bson.D
	require.NoError(t, bson.Unmarshal(raw, &got))
	require.Equal(t, bson.D{
		{Key: "_id", Value: id(1).String()},
		{Key: "version", Value: int64(7)},
		{Key: "new", Value: bson.D{
			{Key: "z", Value: bson.A{int64(1), int64(-1), int64(9223372036854775807), decimal(t, "9223372036854775808")}},
			{Key: "a", Value: bson.A{0.5, 1.1, decimal(t, "0.1234567890123456789"), 1000.0, decimal(t, "1e400"), got[2].Value.(bson.D)[1].Value.(bson.A)[5]}},
			{Key: "n", Value: nil},
			{Key: "b", Value: bson.A{true, false, bson.A{}, bson.D{}}},
		}},
		{Key: "created_at", Value: bson.NewDateTimeFromTime(start)},
		{Key: "updated_at", Value: nil},
	}, got)
}

func TestWhatCannotBeConvertedIsRefused(t *testing.T) {
	t.Parallel()
	begin := `{"id":"` + id(1).String() + `","version":7`
	for name, after := range map[string]string{
		"not JSON":                    `{`,
		"not an object":               `[1]`,
		"no id":                       `{"version":7}`,
		"another id":                  `{"id":"` + id(2).String() + `"}`,
		"id of another type":          `{"id":1}`,
		"id is an object":             `{"id":{}}`,
		"another version":             `{"id":"` + id(1).String() + `","version":8}`,
		"a field of the replica":      begin + `,"deleted_at":"2026-11-21T04:05:06Z"}`,
		"its key":                     begin + `,"_id":1}`,
		"a time that is none":         begin + `,"created_at":"yesterday"}`,
		"a name twice":                begin + `,"a":1,"a":2}`,
		"a NUL in a name":             begin + `,"a":{"\u0000":1}}`,
		"more digits than fit":        begin + `,"a":12345678901234567890123456789012345}`,
		"an exponent that is too big": begin + `,"a":1e7000}`,
		"more than an object":         begin + `}{}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Document(entity(after))
			require.Error(t, err)
		})
	}
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"a":[1.5,{"b":null}],"c":"\u00e9"}`))
	f.Add([]byte(`{"a":1e-7,"a":true}`))
	f.Fuzz(func(t *testing.T, fields []byte) {
		if len(fields) < 2 || fields[0] != '{' {
			return
		}
		e := customer(1, 7)
		e.After = append([]byte(`{"id":"`+id(1).String()+`",`), fields[1:]...)
		raw, err := Document(e)
		if err != nil {
			return
		}
		if !json.Valid(e.After) {
			t.Fatalf("converted what is not JSON: %q", e.After)
		}
		if err := raw.Validate(); err != nil {
			t.Fatalf("not BSON: %v", err)
		}
	})
}
