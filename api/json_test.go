package api

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// plain is a value as encoding/json would have it.
func plain(v *value) any {
	switch v.kind {
	case null:
		return nil
	case boolean:
		return v.text == "true"
	case number:
		return json.Number(v.text)
	case text:
		return v.text
	case array:
		all := []any{}
		for i := range v.items {
			all = append(all, plain(&v.items[i]))
		}
		return all
	}
	all := map[string]any{}
	for i := range v.members {
		all[v.members[i].name] = plain(&v.members[i].value)
	}
	return all
}

func TestParseReadsJSON(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`null`, `true`, ` false `, `0`, `-0.5e-3`, `12E+7`, `""`, `"a\"\\\/\b\f\n\r\tz"`, `"\u00e9\ud83d\ude00é😀"`, `[]`, `[1,[2,{"a":[]}]]`,
		"{\"a\":1,\t\"b\":{\"a\":\"x\"}}\r\n", `{"":1}`, `"` + "\u007f" + `"`,
		strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
	} {
		v, err := parse(body)
		require.NoError(t, err, body)
		var want any
		d := json.NewDecoder(strings.NewReader(body))
		d.UseNumber()
		require.NoError(t, d.Decode(&want))
		require.Equal(t, want, plain(&v), body)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	many := `"a0":0`
	for i := range 40 {
		many += `,"a` + strings.Repeat("x", i+1) + `":0`
	}
	for body, want := range map[string]string{
		``: "empty", " \n": "empty", `{`: "ends too early at byte 2", `{"a"`: "ends too early", `{"a":`: "ends too early", `[1,`: "ends too early", `"a`: "ends too early", `"\`: "ends too early",
		`{"a":1,}`: "malformed at byte 8", `[1,]`: "malformed", `{a:1}`: "malformed", `'a'`: "malformed", `nul`: "malformed", `NaN`: "malformed", `+1`: "malformed", `.5`: "malformed",
		`[1 2]`: "malformed", `{"a" 1}`: "malformed", `{"a":1 "b":2}`: "malformed", `{1:2}`: "malformed", `"\x"`: "malformed", "\ufeff{}": "malformed",
		`1.`: "ends too early", `1e`: "ends too early", `-`: "ends too early", `-a`: "malformed",
		`01`: "more after", `{} {}`: "more after the JSON value at byte 4", `1,`: "more after", `nullx`: "more after", "{}\x00": "more after",
		`{"a":1,"b":2,"a":3}`: "same name twice at byte 14", `{"x":{"a":1,"\u0061":2}}`: "same name twice", `{` + many + `,"a0":1}`: "same name twice",
		"\"a\xff\"": "not valid UTF-8", "\"\xed\xa0\x80\"": "not valid UTF-8", `"\ud83d"`: "escape", `"\ude00\ud83d"`: "escape", `"\ud83dx"`: "escape", `"\ud83d\n"`: "escape", `"\u12g4"`: "escape", `"\u12`: "escape", `"\u+123"`: "escape",
		"\"a\nb\"": "control character", "\"\\n\x01\"": "control character",
		strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1):           "deeper than 16 levels",
		strings.Repeat(`{"a":`, maxDepth+1) + `1` + strings.Repeat("}", maxDepth+1): "deeper than 16 levels",
		strings.Repeat("[", 60_000): "deeper",
	} {
		_, err := parse(body)
		require.ErrorContains(t, err, want, body)
	}
}

// FuzzParse holds the parser against encoding/json: it takes nothing that
// encoding/json doesn't, reads the same where both do, and refuses more only
// for the reasons that it states.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"name":"Ada","n":[1,2.5e3,null,true],"s":"\ud83d\ude00\n"}`, `{"a":1,"a":2}`, `[[[]]]`, `"\ud83d"`, "\xff", ` 0 0`, `"\u0000"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := parse(string(body))
		if err != nil {
			excused := !utf8.Valid(body) || strings.Contains(err.Error(), "same name twice") ||
				strings.Contains(err.Error(), "deeper") || strings.Contains(err.Error(), `bad \u escape`)
			if json.Valid(body) && !excused {
				t.Fatalf("%q: refused: %v", body, err)
			}
			return
		}
		var want any
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		if err := d.Decode(&want); err != nil || !json.Valid(body) {
			t.Fatalf("%q: taken, but encoding/json says %v", body, err)
		}
		require.Equal(t, want, plain(&v))
	})
}

func BenchmarkDecodeCustomer(b *testing.B) {
	body := string(mustJSON(exampleCustomerInput))
	e := customers(nil)
	b.ReportAllocs()
	for b.Loop() {
		v, err := parse(body)
		if err != nil {
			b.Fatal(err)
		}
		in := exampleCustomerInput
		if err := e.read(creating, &v, &in, nil); err != nil {
			b.Fatal(err)
		}
	}
}
