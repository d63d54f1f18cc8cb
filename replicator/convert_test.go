package replicator

import (
	"bytes"
	"encoding/json"
	"strconv"
	"testing"
	"time"

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
	f.Add([]byte(`{ "a" : [ ] , "\"\\" : { } , "b" : "\ud800\"", "c":"` + "\xff" + `" , "d":[[-0.0e+1 ,2]] }`))
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
		if err := raw.Validate(); err != nil {
			t.Fatalf("not BSON: %v", err)
		}
		d := json.NewDecoder(bytes.NewReader(e.After))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil || d.More() {
			t.Fatalf("converted what is not JSON: %q: %v", e.After, err)
		}
		want["_id"], want["version"] = want["id"], json.Number("7")
		delete(want, "id")
		requireSays(t, want, bson.RawValue{Type: bson.TypeEmbeddedDocument, Value: raw})
	})
}

// requireSays compares what encoding/json makes of JSON with what it became in
// BSON.
func requireSays(t *testing.T, want any, got bson.RawValue) {
	t.Helper()
	switch want := want.(type) {
	case map[string]any:
		elements, err := got.Document().Elements()
		require.NoError(t, err)
		require.Len(t, elements, len(want))
		for _, e := range elements {
			requireSays(t, want[e.Key()], e.Value())
		}
	case []any:
		values, err := got.Array().Values()
		require.NoError(t, err)
		require.Len(t, values, len(want))
		for i, v := range values {
			requireSays(t, want[i], v)
		}
	case string:
		if at, ok := got.TimeOK(); ok {
			then, err := time.Parse(time.RFC3339Nano, want)
			require.NoError(t, err)
			require.Equal(t, then.UnixMilli(), at.UnixMilli())
			return
		}
		require.Equal(t, want, got.StringValue())
	case json.Number:
		exact, err := bson.ParseDecimal128(string(want))
		require.NoError(t, err)
		number := got.String()
		if f, ok := got.DoubleOK(); ok {
			number = strconv.FormatFloat(f, 'g', -1, 64)
		} else if n, ok := got.Int64OK(); ok {
			number = strconv.FormatInt(n, 10)
		} else if d, ok := got.Decimal128OK(); ok {
			number = d.String()
		}
		same, err := bson.ParseDecimal128(number)
		require.NoError(t, err)
		require.True(t, equal(exact, same), "%s became %s", want, number)
	case bool:
		require.Equal(t, want, got.Boolean())
	case nil:
		require.Equal(t, bson.TypeNull, got.Type)
	}
}

func BenchmarkDocument(b *testing.B) {
	e := entity(`{'id':'` + id(1).String() + `','version':7,'name':'Ada Lovelace','email':'ada@example.com','phone':'+44 20 7946 0000',
		'address':{'line1':'12 St James Square','city':'London','postal_code':'SW1Y 4LE','country':'GB'},'status':'active',
		'spending_limit':{'amount':100000,'currency':'EUR'},'created_at':'2026-11-21T05:05:06.789Z','updated_at':'2026-11-21T05:05:06.789Z'}`)
	for b.Loop() {
		if _, err := Document(e); err != nil {
			b.Fatal(err)
		}
	}
}
