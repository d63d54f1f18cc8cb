package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files")

// TestOpenAPIIsTheContract holds the documents against testdata. A change of
// them is a change of the contract: raise api.Version and run with -update.
func TestOpenAPIIsTheContract(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	for _, name := range []string{"openapi.json", "openapi-3.0.json", "openapi.yaml"} {
		got := []byte(s.do("GET", "/"+name, nil).is(200).Raw)
		if strings.HasSuffix(name, ".json") {
			var b bytes.Buffer
			require.NoError(t, json.Indent(&b, got, "", "  "))
			got = append(b.Bytes(), '\n')
		}
		golden := filepath.Join("testdata", name)
		if *update {
			require.NoError(t, os.MkdirAll("testdata", 0o755))
			require.NoError(t, os.WriteFile(golden, got, 0o644))
			continue
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), "the contract changed: see this test's comment")
	}
}

// document is what these tests read of OpenAPI.
type document struct {
	OpenAPI    string
	Paths      map[string]map[string]operation
	Components struct {
		Schemas map[string]schema
	}
}

type operation struct {
	OperationID, Summary, Description string
	Tags                              []string
	Parameters                        []struct {
		Name, In, Description string
		Schema                schema
	}
	RequestBody *struct{ Content map[string]media }
	Responses   map[string]struct {
		Description string
		Headers     map[string]any
		Content     map[string]media
	}
}

type media struct {
	Schema   schema
	Examples map[string]struct{ Value json.RawMessage }
}

type schema struct {
	Ref                  string `json:"$ref"`
	Type                 any
	Properties           map[string]schema
	Required             []string
	AdditionalProperties any
	Items                *schema
	ReadOnly             bool
	Enum                 []any
}

func (s *server) document(path string) document {
	var d document
	require.NoError(s.t, json.Unmarshal([]byte(s.do("GET", path, nil).is(200).Raw), &d))
	return d
}

func TestEveryOperationIsDocumented(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	d := s.document("/openapi.json")
	require.Equal(t, "3.1.0", d.OpenAPI)
	require.Equal(t, "3.0.3", s.document("/openapi-3.0.json").OpenAPI)
	ids := map[string]bool{}
	for path, ops := range d.Paths {
		for method, op := range ops {
			at := method + " " + path
			require.NotEmpty(t, op.OperationID, at)
			require.False(t, ids[op.OperationID], at)
			ids[op.OperationID] = true
			require.NotEmpty(t, op.Summary, at)
			require.NotEmpty(t, op.Description, at)
			require.NotEmpty(t, op.Tags, at)
			for _, p := range op.Parameters {
				require.NotEmpty(t, p.Description, at)
			}
			if op.RequestBody != nil {
				for _, m := range op.RequestBody.Content {
					require.NotEmpty(t, m.Examples["example"].Value, at)
				}
			}
			require.Contains(t, op.Responses, "500", at)
			for status, r := range op.Responses {
				require.NotEmpty(t, r.Description, at+" "+status)
				require.Contains(t, r.Headers, "X-Request-Id", at)
				if status == "304" {
					require.Empty(t, r.Content, at)
					continue
				}
				if status[0] == '2' {
					require.True(t, status == "204" || len(r.Content["application/json"].Examples["example"].Value) > 0, at)
					continue
				}
				require.Equal(t, "#/components/schemas/Problem", r.Content["application/problem+json"].Schema.Ref, at+" "+status)
				require.NotEmpty(t, r.Content["application/problem+json"].Examples, at+" "+status)
			}
		}
	}
	require.Len(t, ids, 25)
}

// TestExamplesAreTrue takes the documented requests at their word.
func TestExamplesAreTrue(t *testing.T) {
	t.Parallel()
	s := start(t)
	d := s.document("/openapi.json")
	example := func(method, path, mediaType string) string {
		return string(d.Paths[path][method].RequestBody.Content[mediaType].Examples["example"].Value)
	}
	c := s.do("POST", customers, example("post", customers, "application/json")).is(201).object()
	one := at("/api/customers/%s", c)
	s.do("PUT", one, example("put", "/api/customers/{id}", "application/json")).is(200)
	for _, mediaType := range []string{"application/json", "application/merge-patch+json", "application/json-patch+json"} {
		s.do("PATCH", one, example("patch", "/api/customers/{id}", mediaType), "Content-Type: "+mediaType).is(200)
	}
	order := strings.ReplaceAll(example("post", "/api/orders", "application/json"), someID, c["id"].(string))
	o := s.do("POST", "/api/orders", order).is(201).object()
	one = at("/api/orders/%s", o)
	s.do("PUT", one, order).is(200)
	for _, mediaType := range []string{"application/json", "application/merge-patch+json"} {
		s.do("PATCH", one, example("patch", "/api/orders/{id}", mediaType), "Content-Type: "+mediaType).is(200)
	}
	s.do("PATCH", one, example("patch", "/api/orders/{id}", "application/json-patch+json"), "Content-Type: application/json-patch+json").is(200)
}

// TestEveryOperationAnswersWithATrailingSlash walks all documented operations.
func TestEveryOperationAnswersWithATrailingSlash(t *testing.T) {
	t.Parallel()
	s := start(t)
	for path, ops := range s.document("/openapi.json").Paths {
		for method, op := range ops {
			method = strings.ToUpper(method)
			statuses := map[string]int{}
			for i, slash := range []string{"", "/"} {
				c := s.customer(strings.ToLower(op.OperationID) + strconv.Itoa(i) + "@example.com")
				o := s.order(c["id"])
				id := c["id"].(string)
				switch {
				case strings.HasPrefix(path, "/api/orders"):
					id = o["id"].(string)
				case method == "DELETE":
					s.do("POST", at("/api/orders/%s/cancel", o), nil).is(200)
				}
				if op.OperationID == "fulfilOrder" || op.OperationID == "refundOrder" {
					s.confirm(o)
				}
				if op.OperationID == "refundOrder" {
					s.do("POST", at("/api/orders/%s/fulfil", o), nil).is(200)
				}
				if method == "DELETE" && strings.HasPrefix(path, "/api/orders") {
					s.do("POST", at("/api/orders/%s/cancel", o), nil).is(200)
				}
				var body any
				if op.RequestBody != nil {
					body = map[string]any{"name": "Eve", "email": strings.ToLower(op.OperationID) + strconv.Itoa(i) + "@new.example.com"}
					if strings.HasPrefix(path, "/api/orders") {
						body = orderOf(c["id"])
					}
				}
				url := strings.ReplaceAll(path, "{id}", id) + slash
				a := s.do(method, url, body)
				require.Less(t, a.Status, 300, "%s %s: %s", method, url, a.Raw)
				statuses[slash] = a.Status
				if method == "GET" {
					h := s.do("HEAD", url, nil).is(a.Status)
					require.Empty(t, h.Raw)
					require.Equal(t, a.Header.Get("Content-Length"), h.Header.Get("Content-Length"))
					require.Equal(t, a.Header.Get("ETag"), h.Header.Get("ETag"))
				}
			}
			require.Equal(t, statuses[""], statuses["/"])
			require.Contains(t, op.Responses, strconv.Itoa(statuses[""]), "%s %s", method, path)
		}
	}
	for _, path := range []string{"/", "/docs", "/openapi.json", "/openapi.yaml", "/openapi-3.0.json", "/problems", "/problems/invalid", "/docs/style.css"} {
		s.do("GET", strings.TrimSuffix(path, "/")+"/", nil).is(200)
		s.do("HEAD", path, nil).is(200)
	}
}

// TestProblemTypesAreExplained follows the type of every problem that the
// documents show.
func TestProblemTypesAreExplained(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	index := s.do("GET", "/problems", nil).is(200).Raw
	seen := 0
	for _, ops := range s.document("/openapi.json").Paths {
		for _, op := range ops {
			for _, r := range op.Responses {
				for slug := range r.Content["application/problem+json"].Examples {
					page := s.do("GET", "/problems/"+slug, nil).is(200)
					require.Equal(t, "text/html; charset=utf-8", page.Header.Get("Content-Type"))
					require.Contains(t, index, "/problems/"+slug)
					seen++
				}
			}
		}
	}
	require.Greater(t, seen, 50)
}

func TestTheDocumentationNeedsNoNetwork(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	page := s.do("GET", "/docs", nil).is(200)
	require.NotContains(t, page.Raw, "://")
	require.Contains(t, page.Header.Get("Content-Security-Policy"), "default-src 'none'; script-src 'self'")
	require.Contains(t, page.Raw, `/docs/rapidoc-min.js`)
	script := s.do("GET", "/docs/rapidoc-min.js", nil).is(200)
	require.Equal(t, "text/javascript; charset=utf-8", script.Header.Get("Content-Type"))
	s.do("GET", "/docs/rapidoc-min.js", nil, "If-None-Match: "+script.Header.Get("ETag")).is(304)
	require.Equal(t, "nosniff", script.Header.Get("X-Content-Type-Options"))
}
