package api

import (
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	urlpath "path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"outflow/analytics"
	"outflow/store"
)

// Config is what the API can be told. The zero value is useful.
type Config struct {
	Logger *slog.Logger // slog.Default() when nil

	// RequireIfMatch refuses a PUT, PATCH or DELETE that doesn't say which
	// version it is for.
	RequireIfMatch bool

	// ImportIdle is how long the client of an import may neither send nor take
	// anything; a minute when 0.
	ImportIdle time.Duration

	// Heartbeat is after how much silence a stream of events says that it is
	// there; 15 s when 0.
	Heartbeat time.Duration

	// Analytics answers questions about windows of time; they are answered
	// with 503 when nil.
	Analytics *analytics.Reader
}

// api routes requests to operations and pages.
type api struct {
	mux         *http.ServeMux
	store       *store.Store
	huma        huma.API
	logger      *slog.Logger
	cfg         Config
	cursors     *cursors
	crossOrigin *http.CrossOriginProtection
	methods     map[string][]string // of each path, without the trailing slash
}

// route is an operation of the API and what serves it.
type route struct {
	huma.Operation
	handle func(*exchange) error
	query  []string // the parameters that the query may have

	maxBody  int64  // the largest body, in bytes; maxBody when 0
	produces string // the type of what it answers; JSON when empty
	streams  bool   // whether it also answers with server-sent events

	// answer answers with the result of the operation's write. Operations that
	// take an idempotency key have it.
	answer func(x *exchange, result any)
}

// New returns the API over a store, with its documentation.
func New(s *store.Store, cfg Config) http.Handler {
	a := &api{
		mux:         http.NewServeMux(),
		store:       s,
		logger:      cfg.Logger,
		cfg:         cfg,
		cursors:     &cursors{secret: s.Secret},
		crossOrigin: http.NewCrossOriginProtection(),
		methods:     map[string][]string{},
	}
	if a.cfg.ImportIdle == 0 {
		a.cfg.ImportIdle = time.Minute
	}
	if a.logger == nil {
		a.logger = slog.Default()
	}
	a.huma = humago.New(a.mux, description())
	c, o := customers(s), orders(s)
	for _, r := range slices.Concat(c.routes(), o.routes(), c.bulkRoutes(), o.bulkRoutes(), orderRoutes(&o, s), feedRoutes(s, cmp.Or(cfg.Heartbeat, defaultHeartbeat)), analyticsRoutes(cfg.Analytics, s), healthRoutes(s)) {
		a.add(r)
	}
	a.addPages()
	a.refuseTheRest()
	return a
}

// add attaches an operation to its path, with and without a trailing slash.
func (a *api) add(r route) {
	for _, p := range r.Parameters {
		if p.In == "query" {
			r.query = append(r.query, p.Name)
		}
	}
	a.huma.OpenAPI().AddOperation(&r.Operation)
	a.methods[r.Path] = append(a.methods[r.Path], r.Method)
	serve := func(ctx huma.Context) {
		_, w := humago.Unwrap(ctx)
		x := w.(*exchange)
		x.route = &r
		if err := a.serve(x); err != nil {
			x.fail(err)
		}
	}
	slash := r.Operation
	slash.Path += "/{$}"
	a.huma.Adapter().Handle(&r.Operation, serve)
	a.huma.Adapter().Handle(&slash, serve)
}

func (a *api) serve(x *exchange) (err error) {
	if err := a.crossOrigin.Check(x.r); err != nil {
		return &refusal{code: codeCrossOrigin, detail: "a page of another site may not change anything here"}
	}
	if x.r.Method != http.MethodDelete && !accepts(x.r.Header["Accept"], cmp.Or(x.route.produces, typeJSON)) && !(x.route.streams && wantsStream(x.r.Header["Accept"])) {
		return &refusal{code: codeNotAcceptable, detail: "the response can only be " + cmp.Or(x.route.produces, typeJSON)}
	}
	if x.query, err = parseQuery(x.r.URL.RawQuery, x.route.query); err != nil {
		return err
	}
	if x.route.answer != nil {
		return x.once()
	}
	return x.route.handle(x)
}

// page attaches a page for people to a path, with and without a trailing slash.
func (a *api) page(at string, serve http.HandlerFunc) {
	a.methods[at] = append(a.methods[at], http.MethodGet)
	a.mux.HandleFunc("GET "+strings.TrimSuffix(at, "/")+"/{$}", serve)
	if at != "/" {
		a.mux.HandleFunc("GET "+at, serve)
	}
}

// refuseTheRest answers for methods that a path doesn't have and for paths that
// there aren't, in place of the router's plain text.
func (a *api) refuseTheRest() {
	for p, methods := range a.methods {
		if slices.Contains(methods, http.MethodGet) {
			methods = append(methods, http.MethodHead)
		}
		slices.Sort(methods)
		a.methods[p] = methods
	}
	for p, methods := range a.methods {
		refuse := func(w http.ResponseWriter, r *http.Request) {
			// A path of its own, such as /api/orders/batch, may have come here as
			// one of those with an id.
			allowed, own := a.methods[strings.TrimSuffix(r.URL.Path, "/")]
			if !own {
				allowed = methods
			}
			allow := strings.Join(allowed, ", ")
			w.(*exchange).fail(&refusal{code: codeMethodNotAllowed, detail: "this path has " + allow, header: [2]string{"Allow", allow}})
		}
		// Those with an id have a handler for each of their methods, which would
		// be in doubt about a path of its own for all methods.
		which := []string{""}
		if among, ok := a.methods[urlpath.Dir(p)+"/{id}"]; ok && urlpath.Base(p) != "{id}" {
			which = nil
			for _, m := range among {
				if m != http.MethodHead && !slices.Contains(methods, m) {
					which = append(which, m+" ")
				}
			}
		}
		for _, m := range which {
			a.mux.HandleFunc(m+strings.TrimSuffix(p, "/")+"/{$}", refuse)
			if p != "/" {
				a.mux.HandleFunc(m+p, refuse)
			}
		}
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.(*exchange).fail(errNoSuchPath) })
}

var errNoSuchPath = &refusal{code: codeNoSuchPath, detail: "there is no such path"}

// ServeHTTP implements [http.Handler].
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := newExchange(w, r, a)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(p)
		}
		x.logError("panic in a handler", "panic", p, "stack", string(debug.Stack()))
		x.fail(errPanic)
	}()
	// The router would redirect these to a path that the client didn't ask for.
	if p := r.URL.EscapedPath(); !clean(p) {
		x.fail(errNoSuchPath)
		return
	}
	a.mux.ServeHTTP(x, r)
}

var errPanic = errors.New("panic")

func clean(p string) bool {
	return strings.HasPrefix(p, "/") && (p == "/" || urlpath.Clean(p) == strings.TrimSuffix(p, "/"))
}

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
