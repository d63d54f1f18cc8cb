package api

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"html/template"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs
var files embed.FS

var pageTemplate = template.Must(template.ParseFS(files, "docs/page.html"))

// page is a page of text.
type page struct {
	Title, URI string
	Text       []string
	Links      []link
	Try        []string // commands
}

type link struct{ Href, Name, Note string }

// contentPolicy lets the pages load what this server has and nothing else. The
// documentation's script brings styles of its own.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// addPages attaches all that is not an operation: the OpenAPI documents, the
// documentation and the explanations of problems. Each is made once: the
// documents, which take longer than all else at a start, when they are first asked
// for.
func (a *api) addPages() {
	o := a.huma.OpenAPI()
	a.page("/openapi.json", onDemand(func() ([]byte, error) { return json.Marshal(o) }, typeJSON))
	a.page("/openapi.yaml", onDemand(o.YAML, "application/yaml"))
	a.page("/openapi-3.0.json", onDemand(func() ([]byte, error) { return older(o) }, typeJSON))

	for path, f := range map[string]struct{ name, contentType string }{
		"/docs":                            {"docs.html", "text/html; charset=utf-8"},
		"/docs/docs.js":                    {"docs.js", "text/javascript; charset=utf-8"},
		"/docs/style.css":                  {"style.css", "text/css; charset=utf-8"},
		"/docs/rapidoc-min.js":             {"rapidoc-min.js", "text/javascript; charset=utf-8"},
		"/docs/rapidoc-min.js.LICENSE.txt": {"rapidoc-min.js.LICENSE.txt", "text/plain; charset=utf-8"},
	} {
		b, err := files.ReadFile("docs/" + f.name)
		must(err)
		a.page(path, static(b, f.contentType))
	}

	a.page("/", func(w http.ResponseWriter, r *http.Request) { html(landing(r.Host))(w, r) })
	all := page{Title: "Problems", Text: []string{"Errors are problem documents (RFC 9457). These are the types they have."}}
	for i := range problemTypes {
		t := &problemTypes[i]
		all.Links = append(all.Links, link{t.uri(), t.title, strconv.Itoa(t.status)})
		a.page(t.uri(), html(page{Title: t.title, URI: strconv.Itoa(t.status) + " " + t.uri(), Text: []string{t.explain}}))
	}
	a.page("/problems", html(all))
}

// landing is what a person finds first. The commands are for the host that the
// page was asked from.
func landing(host string) page {
	return page{
		Title: "outflow",
		Text:  []string{"Customers and orders over HTTP. Every change is committed together with its event."},
		Links: []link{
			{"/docs", "Documentation", "of every operation, to try out"},
			{"/openapi.json", "OpenAPI 3.1", "as JSON"}, {"/openapi.yaml", "OpenAPI 3.1", "as YAML"}, {"/openapi-3.0.json", "OpenAPI 3.0", "for tools that need it"},
			{"/problems", "Problems", "that the API reports"},
			{"/api/customers", "Customers", ""}, {"/api/orders", "Orders", ""},
			{"/api/events", "Events", "from the first on, page by page or as a stream, as below"},
			{"/api/analytics/summary", "Figures", "counted from the events"},
		},
		Try: []string{
			"curl -s '" + host + "/api/events?type=order.placed.v1'",
			"curl -sN " + host + "/api/events -H 'Accept: text/event-stream'",
		},
	}
}

// older is the document in OpenAPI 3.0.
func older(o *huma.OpenAPI) ([]byte, error) {
	raw, err := o.Downgrade()
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, err
	}
	dropPropertyNames(tree)
	return json.Marshal(tree)
}

// dropPropertyNames leaves out what OpenAPI 3.0 doesn't know and huma leaves in.
func dropPropertyNames(v any) {
	switch v := v.(type) {
	case map[string]any:
		delete(v, propertyNames)
		for _, inner := range v {
			dropPropertyNames(inner)
		}
	case []any:
		for _, inner := range v {
			dropPropertyNames(inner)
		}
	}
}

func html(p page) http.HandlerFunc {
	var b bytes.Buffer
	must(pageTemplate.Execute(&b, p))
	return static(b.Bytes(), "text/html; charset=utf-8")
}

// onDemand serves what is made when it is first asked for.
func onDemand(content func() ([]byte, error), contentType string) http.HandlerFunc {
	serve := sync.OnceValue(func() http.HandlerFunc {
		b, err := content()
		must(err)
		return static(b, contentType)
	})
	return func(w http.ResponseWriter, r *http.Request) { serve()(w, r) }
}

// static serves bytes that stay the same while the process runs.
func static(content []byte, contentType string) http.HandlerFunc {
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("ETag", tag)
		h.Set("Cache-Control", "no-cache")
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("Referrer-Policy", "no-referrer")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

// must stops on what only a programmer can have got wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
