package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"outflow/domain"
)

// json writes a value.
func (v *value) json() string {
	switch v.kind {
	case text:
		return string(mustJSON(v.text))
	case array:
		all := make([]string, len(v.items))
		for i := range v.items {
			all[i] = v.items[i].json()
		}
		return "[" + strings.Join(all, ",") + "]"
	case object:
		all := make([]string, len(v.members))
		for i := range v.members {
			all[i] = string(mustJSON(v.members[i].name)) + ":" + v.members[i].json()
		}
		return "{" + strings.Join(all, ",") + "}"
	case null:
		return "null"
	}
	return v.text
}

// patch applies a JSON Patch to a document.
func patch(doc, patch string) (string, error) {
	d, err := parse(doc)
	if err != nil {
		return "", err
	}
	p, err := parse(patch)
	if err != nil {
		return "", err
	}
	ops, err := parsePatch(&p)
	if err != nil {
		return "", err
	}
	before := d.json()
	got, err := applyPatch(d, ops)
	if d.json() != before {
		return "", fmt.Errorf("the document itself became %s", d.json())
	}
	return got.json(), err
}

// TestJSONPatchAsTheRFCHasIt holds the rules of RFC 6902, among them the
// examples of its appendix A.
func TestJSONPatchAsTheRFCHasIt(t *testing.T) {
	t.Parallel()
	const conflict, malformed = codePatchConflict, codeMalformedPatch
	for _, row := range []struct {
		rule, doc, patch string
		want             string
		code             domain.Code
	}{
		{"A.1 add a member", `{"foo":"bar"}`, `[{"op":"add","path":"/baz","value":"qux"}]`, `{"foo":"bar","baz":"qux"}`, ""},
		{"A.2 add an element", `{"foo":["bar","baz"]}`, `[{"op":"add","path":"/foo/1","value":"qux"}]`, `{"foo":["bar","qux","baz"]}`, ""},
		{"A.3 remove a member", `{"baz":"qux","foo":"bar"}`, `[{"op":"remove","path":"/baz"}]`, `{"foo":"bar"}`, ""},
		{"A.4 remove an element", `{"foo":["bar","qux","baz"]}`, `[{"op":"remove","path":"/foo/1"}]`, `{"foo":["bar","baz"]}`, ""},
		{"A.5 replace", `{"baz":"qux","foo":"bar"}`, `[{"op":"replace","path":"/baz","value":"boo"}]`, `{"baz":"boo","foo":"bar"}`, ""},
		{"A.6 move a member", `{"foo":{"bar":"baz","waldo":"fred"},"qux":{"corge":"grault"}}`, `[{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]`,
			`{"foo":{"bar":"baz"},"qux":{"corge":"grault","thud":"fred"}}`, ""},
		{"A.7 move an element", `{"foo":["all","grass","cows","eat"]}`, `[{"op":"move","from":"/foo/1","path":"/foo/3"}]`, `{"foo":["all","cows","eat","grass"]}`, ""},
		{"A.8 test", `{"baz":"qux","foo":["a",2,"c"]}`, `[{"op":"test","path":"/baz","value":"qux"},{"op":"test","path":"/foo/1","value":2}]`, `{"baz":"qux","foo":["a",2,"c"]}`, ""},
		{"A.9 test that fails", `{"baz":"qux"}`, `[{"op":"test","path":"/baz","value":"bar"}]`, ``, conflict},
		{"A.10 add an object", `{"foo":"bar"}`, `[{"op":"add","path":"/child","value":{"grandchild":{}}}]`, `{"foo":"bar","child":{"grandchild":{}}}`, ""},
		{"A.11 unknown members", `{"foo":"bar"}`, `[{"op":"add","path":"/baz","value":"qux","xyz":123}]`, `{"foo":"bar","baz":"qux"}`, ""},
		{"A.12 no parent", `{"foo":"bar"}`, `[{"op":"add","path":"/baz/bat","value":"qux"}]`, ``, conflict},
		{"A.13 op twice", `{}`, `[{"op":"add","path":"/baz","value":"qux","op":"remove"}]`, ``, "parse"},
		{"A.14 escapes", `{"/":9,"~1":10}`, `[{"op":"test","path":"/~01","value":10},{"op":"test","path":"/~1","value":9}]`, `{"/":9,"~1":10}`, ""},
		{"A.15 strings are not numbers", `{"/":9,"~1":10}`, `[{"op":"test","path":"/~01","value":"10"}]`, ``, conflict},
		{"A.16 append", `{"foo":["bar"]}`, `[{"op":"add","path":"/foo/-","value":["abc","def"]}]`, `{"foo":["bar",["abc","def"]]}`, ""},
		{"the whole", `{"a":1}`, `[{"op":"test","path":"","value":{"a":1.0}},{"op":"replace","path":"","value":[]},{"op":"add","path":"","value":{"b":2}}]`, `{"b":2}`, ""},
		{"the whole is gone", `{"a":1}`, `[{"op":"remove","path":""}]`, `null`, ""},
		{"the whole into itself", `{"a":1}`, `[{"op":"copy","from":"","path":"/b"}]`, `{"a":1,"b":{"a":1}}`, ""},
		{"empty", `{"a":1}`, `[]`, `{"a":1}`, ""},
		{"an empty name", `{"":1}`, `[{"op":"replace","path":"/","value":2}]`, `{"":2}`, ""},
		{"add takes the place of what is there", `{"a":1,"b":2}`, `[{"op":"add","path":"/a","value":null}]`, `{"a":null,"b":2}`, ""},
		{"add at the end by its index", `[1]`, `[{"op":"add","path":"/1","value":2}]`, `[1,2]`, ""},
		{"add beyond the end", `[1]`, `[{"op":"add","path":"/2","value":2}]`, ``, conflict},
		{"negative index", `[1,2]`, `[{"op":"remove","path":"/-1"}]`, ``, conflict},
		{"leading zero", `[1,2]`, `[{"op":"remove","path":"/01"}]`, ``, conflict},
		{"plus sign", `[1,2]`, `[{"op":"remove","path":"/+1"}]`, ``, conflict},
		{"a name in an array", `[1,2]`, `[{"op":"add","path":"/a","value":1}]`, ``, conflict},
		{"huge index", `[1,2]`, `[{"op":"remove","path":"/99999999999999999999"}]`, ``, conflict},
		{"past the end", `[1,2]`, `[{"op":"test","path":"/-","value":2}]`, ``, conflict},
		{"into a text", `{"a":"b"}`, `[{"op":"add","path":"/a/b","value":1}]`, ``, conflict},
		{"remove nothing", `{}`, `[{"op":"remove","path":"/a"}]`, ``, conflict},
		{"replace nothing", `{}`, `[{"op":"replace","path":"/a","value":1}]`, ``, conflict},
		{"move nothing", `{}`, `[{"op":"move","from":"/a","path":"/b"}]`, ``, conflict},
		{"copy nothing", `{}`, `[{"op":"copy","from":"/a","path":"/b"}]`, ``, conflict},
		{"test null where nothing is", `{}`, `[{"op":"test","path":"/a","value":null}]`, ``, conflict},
		{"test null where null is", `{"a":null}`, `[{"op":"test","path":"/a","value":null}]`, `{"a":null}`, ""},
		{"move onto itself", `{"a":{"b":1}}`, `[{"op":"move","from":"/a","path":"/a"}]`, `{"a":{"b":1}}`, ""},
		{"move into itself", `{"a":{"b":1}}`, `[{"op":"move","from":"/a","path":"/a/c"}]`, ``, malformed},
		{"move to a namesake", `{"a":1}`, `[{"op":"move","from":"/a","path":"/ab"}]`, `{"ab":1}`, ""},
		{"a copy is one of its own", `{"a":{"b":1}}`, `[{"op":"copy","from":"/a","path":"/c"},{"op":"replace","path":"/c/b","value":2}]`, `{"a":{"b":1},"c":{"b":2}}`, ""},
		{"a value that is patched on", `{}`, `[{"op":"add","path":"/a","value":{"b":[1]}},{"op":"add","path":"/a/b/0","value":0}]`, `{"a":{"b":[0,1]}}`, ""},
		{"numbers by value", `{"a":[1,100,0.5,-0,1e400]}`, `[{"op":"test","path":"/a","value":[1.0,1e2,5E-1,0,1E+400]}]`, `{"a":[1,100,0.5,-0,1e400]}`, ""},
		{"other numbers", `{"a":1}`, `[{"op":"test","path":"/a","value":-1}]`, ``, conflict},
		{"huge exponents", `{"a":1e99999999999}`, `[{"op":"test","path":"/a","value":1e99999999998}]`, ``, conflict},
		{"objects without order", `{"a":{"b":1,"c":[true]}}`, `[{"op":"test","path":"/a","value":{"c":[true],"b":1}}]`, `{"a":{"b":1,"c":[true]}}`, ""},
		{"arrays with order", `{"a":[1,2]}`, `[{"op":"test","path":"/a","value":[2,1]}]`, ``, conflict},
		{"more members", `{"a":{"b":1}}`, `[{"op":"test","path":"/a","value":{"b":1,"c":2}}]`, ``, conflict},
		{"all or nothing", `{"a":1}`, `[{"op":"replace","path":"/a","value":2},{"op":"remove","path":"/x"}]`, ``, conflict},
		{"an object", `{}`, `{"op":"add","path":"/a","value":1}`, ``, malformed},
		{"not objects", `{}`, `[1]`, ``, malformed},
		{"no op", `{}`, `[{"path":"/a"}]`, ``, malformed},
		{"an op that isn't one", `{}`, `[{"op":"merge","path":"/a"}]`, ``, malformed},
		{"an op in other case", `{}`, `[{"op":"Add","path":"/a","value":1}]`, ``, malformed},
		{"no path", `{}`, `[{"op":"add","value":1}]`, ``, malformed},
		{"path is null", `{}`, `[{"op":"add","path":null,"value":1}]`, ``, malformed},
		{"path without a slash", `{"a":1}`, `[{"op":"remove","path":"a"}]`, ``, malformed},
		{"a bad escape", `{"~a":1}`, `[{"op":"remove","path":"/~a"}]`, ``, malformed},
		{"an escape that ends", `{"a":1}`, `[{"op":"remove","path":"/a~"}]`, ``, malformed},
		{"no value", `{"a":1}`, `[{"op":"replace","path":"/a"}]`, ``, malformed},
		{"no from", `{"a":1}`, `[{"op":"copy","path":"/a"}]`, ``, malformed},
		{"a bad one after good ones", `{"a":1}`, `[{"op":"remove","path":"/a"},{"op":"none","path":"/a"}]`, ``, malformed},
	} {
		got, err := patch(row.doc, row.patch)
		switch row.code {
		case "":
			require.NoError(t, err, row.rule)
			require.Equal(t, row.want, got, row.rule)
		case "parse":
			require.ErrorContains(t, err, "same name twice", row.rule)
		default:
			require.Error(t, err, row.rule)
			require.Equal(t, row.code, refused(err).code, "%s: %v", row.rule, err)
		}
	}
}

// TestCopiesAreBounded copies the whole into itself, again and again.
func TestCopiesAreBounded(t *testing.T) {
	t.Parallel()
	var ops []string
	for i := range 1000 {
		ops = append(ops, fmt.Sprintf(`{"op":"copy","from":"","path":"/c%d"}`, i))
	}
	_, err := patch(`{"a":1}`, "["+strings.Join(ops, ",")+"]")
	require.Equal(t, domain.CodeInvalid, domain.CodeOf(err))
}

// TestJSONPatchAsTheLibraryHasIt holds random patches against evanphx/json-patch,
// where it is as strict as the RFC.
func TestJSONPatchAsTheLibraryHasIt(t *testing.T) {
	t.Parallel()
	options := jsonpatch.NewApplyOptions()
	options.SupportNegativeIndices = false
	rapid.Check(t, func(t *rapid.T) {
		place := rapid.SampledFrom([]string{"/a", "/b", "/a/b", "/a/0", "/a/1", "/a/-", "/b/a", "/b/a/1", "/a/b/a", "/b/2/a", "/~0~1", "/c"})
		values := rapid.SampledFrom([]any{1, "x", true, []any{1, []any{}, "y"}, map[string]any{"a": 1}, map[string]any{"a": []any{1, 2}, "b": map[string]any{}}, []any{}})
		doc := string(mustJSON(map[string]any{"a": values.Draw(t, "a"), "b": values.Draw(t, "b"), "~/": values.Draw(t, "c")}))
		var ops []any
		for range rapid.IntRange(1, 5).Draw(t, "ops") {
			o := map[string]any{"op": rapid.SampledFrom([]string{"add", "remove", "replace", "move", "copy", "test"}).Draw(t, "op"), "path": place.Draw(t, "path")}
			switch o["op"] {
			case "add", "replace", "test":
				o["value"] = values.Draw(t, "value")
			case "move", "copy":
				o["from"] = place.Draw(t, "from")
			}
			ops = append(ops, o)
		}
		theirs, err := jsonpatch.DecodePatch(mustJSON(ops))
		require.NoError(t, err)
		want, wantErr := theirs.ApplyWithOptions([]byte(doc), options)
		got, err := patch(doc, string(mustJSON(ops)))
		if refused(err).code == codeMalformedPatch && err != nil {
			return // a move into itself, which the library tries
		}
		require.Equal(t, wantErr != nil, err != nil, "%s + %s: %v, %v", doc, mustJSON(ops), wantErr, err)
		if err == nil {
			require.JSONEq(t, string(want), got, "%s + %s", doc, mustJSON(ops))
		}
	})
}

func FuzzJSONPatch(f *testing.F) {
	f.Add(`{"a":[1]}`, `[{"op":"move","from":"/a/0","path":"/b"}]`)
	f.Add(`[]`, `[{"op":"test","path":"","value":[]}]`)
	f.Fuzz(func(t *testing.T, doc, ops string) {
		got, err := patch(doc, ops)
		if err == nil {
			require.True(t, json.Valid([]byte(got)), got)
		}
	})
}
