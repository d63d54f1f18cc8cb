package api_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"html"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/api"
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

// TestEveryVersionOfTheContractIsOne keeps a version of the contract from meaning
// two things: testdata/versions.txt says which document a version stands for,
// and a line of it is never changed. When this fails, the contract has changed:
// raise api.Version (the second number for what clients may ignore, the first
// for what they may not) and run with -update.
func TestEveryVersionOfTheContractIsOne(t *testing.T) {
	t.Parallel()
	s := startWithoutStore(t)
	var b bytes.Buffer
	require.NoError(t, json.Indent(&b, []byte(s.do("GET", "/openapi.json", nil).is(200).Raw), "", "  "))
	now := fmt.Sprintf("%s %x", api.Version, sha256.Sum256(b.Bytes()))
	const file = "testdata/versions.txt"
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	last := lines[len(lines)-1]
	if version, _, _ := strings.Cut(last, " "); *update && version != api.Version {
		require.NoError(t, os.WriteFile(file, append(raw, now+"\n"...), 0o644))
		last = now
	}
	require.Equal(t, last, now, "the contract changed: see this test's comment")
	for i, line := range lines {
		require.Regexp(t, `^[0-9]+\.[0-9]+\.[0-9]+ [0-9a-f]{64}$`, line)
		if i > 0 {
			require.Positive(t, slices.Compare(numbers(line), numbers(lines[i-1])), "versions only rise: %s", line)
		}
	}
}

func numbers(version string) []int {
	var n [3]int
	_, _ = fmt.Sscanf(version, "%d.%d.%d", &n[0], &n[1], &n[2])
	return n[:]
}

// contract is the document that answers are held against.
var contract = sync.OnceValues(func() (d document, err error) {
	w := httptest.NewRecorder()
	api.New(nil, api.Config{}).ServeHTTP(w, httptest.NewRequest("GET", "/openapi.json", nil))
	return d, json.Unmarshal(w.Body.Bytes(), &d)
})

// documented checks that the operation that gave an answer says that it may:
// its status, the type of its problem, its content type. Every answer that the
// tests of this package get is held against this.
func (a answer) documented(method, path string) {
	a.t.Helper()
	d, err := contract()
	require.NoError(a.t, err)
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(strings.TrimSuffix(path, "/"), "/")
	for template, ops := range d.Paths {
		if !slices.EqualFunc(strings.Split(template, "/"), parts, func(t, p string) bool { return t == p || t[:min(len(t), 1)] == "{" && p != "" }) {
			continue
		}
		op, ok := ops[strings.ToLower(strings.Replace(method, "HEAD", "GET", 1))]
		if !ok {
			return // 405, of no operation
		}
		at := fmt.Sprintf("%s %s answers %d", method, template, a.Status)
		r, ok := op.Responses[strconv.Itoa(a.Status)]
		require.True(a.t, ok, "%s, which is not documented: %s", at, a.Raw)
		if method == "HEAD" || a.Raw == "" {
			return
		}
		contentType, _, _ := strings.Cut(a.Header.Get("Content-Type"), ";")
		require.Contains(a.t, r.Content, contentType, at)
		if contentType == "application/problem+json" {
			_, slug, _ := strings.Cut(a.object()["type"].(string), "/problems/")
			require.Contains(a.t, r.Content[contentType].Examples, slug, at)
		}
		return
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
					require.True(t, status == "204" || len(r.Content["application/json"].Examples["example"].Value) > 0 ||
						len(r.Content["application/x-ndjson"].Examples["example"].Value) > 0, at)
					continue
				}
				require.Equal(t, "#/components/schemas/Problem", r.Content["application/problem+json"].Schema.Ref, at+" "+status)
				require.NotEmpty(t, r.Content["application/problem+json"].Examples, at+" "+status)
			}
		}
	}
	require.Len(t, ids, 30)
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
					if plural, batch := strings.CutSuffix(path, "/batch"); batch {
						body = map[string]any{strings.TrimPrefix(plural, "/api/"): []any{body}}
					}
				}
				url := strings.ReplaceAll(path, "{id}", id) + slash
				a := s.do(method, url, body, contentTypeOf(op))
				require.Less(t, a.Status, 300, "%s %s: %s", method, url, a.Raw)
				statuses[slash] = a.Status
				if method == "GET" {
					h := s.do("HEAD", url, nil).is(a.Status)
					require.Empty(t, h.Raw)
					if op.OperationID != "listEvents" { // its cursor tells of a moment
						require.Equal(t, a.Header.Get("Content-Length"), h.Header.Get("Content-Length"))
					}
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

// contentTypeOf is a header of the first type that an operation takes.
func contentTypeOf(op operation) string {
	if op.RequestBody == nil {
		return "X: y"
	}
	return "Content-Type: " + slices.Sorted(maps.Keys(op.RequestBody.Content))[0]
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
	require.Contains(t, page.Raw, `/docs/docs.js`)
	require.Contains(t, s.do("GET", "/docs/docs.js", nil).is(200).Raw, `json("/openapi.json")`)
	script := s.do("GET", "/docs/rapidoc-min.js", nil).is(200)
	require.Equal(t, "text/javascript; charset=utf-8", script.Header.Get("Content-Type"))
	s.do("GET", "/docs/rapidoc-min.js", nil, "If-None-Match: "+script.Header.Get("ETag")).is(304)
	require.Equal(t, "nosniff", script.Header.Get("X-Content-Type-Options"))
}

// TestTheLandingPageLeadsToWhatIsThere follows its links and does what its
// commands do.
func TestTheLandingPageLeadsToWhatIsThere(t *testing.T) {
	t.Parallel()
	s := start(t)
	o := s.order(s.customer("ada@example.com")["id"])
	page := s.do("GET", "/", nil).is(200)
	require.Equal(t, "text/html; charset=utf-8", page.Header.Get("Content-Type"))
	links := regexp.MustCompile(`<a href="([^"]+)"`).FindAllStringSubmatch(page.Raw, -1)
	require.Greater(t, len(links), 8)
	for _, l := range links {
		s.do("GET", l[1], nil).is(200)
	}
	host := strings.TrimPrefix(s.URL, "http://")
	text := html.UnescapeString(page.Raw)
	require.Contains(t, text, "curl -s '"+host+"/api/events?type=order.placed.v1'\n")
	require.Contains(t, s.do("GET", "/api/events?type=order.placed.v1", nil).is(200).Raw, o["id"])
	require.Contains(t, text, "curl -sN "+host+"/api/events -H 'Accept: text/event-stream'\n")
	_, first := s.listen("/api/events", "Accept: text/event-stream").event()
	require.Equal(t, "customer.created.v1", first["type"])
}
