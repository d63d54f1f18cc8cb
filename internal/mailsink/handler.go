package mailsink

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

//go:embed web
var web embed.FS

// pageSize is how many mails the page lists unless ?limit= says otherwise.
const pageSize = 200

// csp keeps the page to its own style and script. A frame made from srcdoc
// inherits it, which is why inline style has to be allowed: mail has no other.
// With no scripts, no network and no forms there is nothing that style could do.
const csp = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

type handler struct {
	sink *Sink
	page *template.Template
}

// Handler serves the inbox. It is to be mounted at /inbox and /inbox/:
//
//	GET    /inbox           the page, or with Accept: application/json the list, newest first; ?limit=n for less
//	GET    /inbox/{id}      one mail, as a page or as JSON
//	GET    /inbox/{id}/raw  one mail as it came over the wire
//	DELETE /inbox           forget every mail
//	GET    /inbox/faults    the faults still to strike, as JSON
//	POST   /inbox/faults    ask for one: a [Fault] as JSON
//	DELETE /inbox/faults    forget them
func (s *Sink) Handler() http.Handler {
	h := &handler{sink: s, page: template.Must(template.New("inbox.html").Funcs(template.FuncMap{
		"when":  func(t time.Time) string { return when(t, time.Now()) },
		"stamp": func(t time.Time) string { return t.Local().Format("Mon, 2 Jan 2006 15:04:05 MST") },
		"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"gist":  gist,
		"join":  func(a []string) string { return strings.Join(a, ", ") },
	}).ParseFS(web, "web/inbox.html"))}
	mux := http.NewServeMux()
	for _, slash := range []string{"", "/{$}"} {
		mux.HandleFunc("GET /inbox"+slash, h.list)
		mux.HandleFunc("DELETE /inbox"+slash, h.clear)
		mux.HandleFunc("GET /inbox/{id}"+slash, h.show)
		mux.HandleFunc("GET /inbox/{id}/raw"+slash, h.raw)
		mux.HandleFunc("GET /inbox/faults"+slash, h.listFaults)
		mux.HandleFunc("POST /inbox/faults"+slash, h.addFault)
		mux.HandleFunc("DELETE /inbox/faults"+slash, h.clearFaults)
	}
	mux.HandleFunc("GET /inbox/inbox.css", asset("web/inbox.css"))
	mux.HandleFunc("GET /inbox/inbox.js", asset("web/inbox.js"))
	// Any page in the developer's browser can reach a server on loopback; only
	// the inbox's own page may change something.
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Security-Policy", csp)
		guarded.ServeHTTP(w, r)
	})
}

// view is what the page shows.
type view struct {
	Messages []Message
	Total    int // of which Messages are the newest
	Selected *Message
	Faults   []Fault
	SMTP     string
}

func (h *handler) list(w http.ResponseWriter, r *http.Request) {
	asJSON := wantsJSON(r)
	limit := pageSize
	if asJSON {
		limit = h.sink.cfg.Max
	}
	limit, err := limitOf(r, limit)
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	v := h.view(limit, nil)
	if asJSON {
		for i := range v.Messages {
			v.Messages[i].HTML = "" // in the mail's own JSON: a list of it would be mostly this
		}
		respond(w, http.StatusOK, v.Messages)
		return
	}
	h.render(w, r, v)
}

func (h *handler) show(w http.ResponseWriter, r *http.Request) {
	m, _, ok := h.sink.find(r.PathValue("id"))
	switch {
	case !ok && wantsJSON(r):
		problem(w, http.StatusNotFound, "there is no such mail")
	case !ok:
		http.Redirect(w, r, "/inbox", http.StatusSeeOther) // the inbox was cleared under an open page
	case wantsJSON(r):
		respond(w, http.StatusOK, m)
	default:
		v := h.view(pageSize, &m)
		h.render(w, r, v)
	}
}

func (h *handler) raw(w http.ResponseWriter, r *http.Request) {
	_, raw, ok := h.sink.find(r.PathValue("id"))
	if !ok {
		problem(w, http.StatusNotFound, "there is no such mail")
		return
	}
	// Not message/rfc822: browsers offer that as a download instead of showing it.
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(raw)
}

func (h *handler) clear(w http.ResponseWriter, _ *http.Request) {
	h.sink.Clear()
	w.WriteHeader(http.StatusNoContent)
}

func (h *handler) listFaults(w http.ResponseWriter, _ *http.Request) {
	faults := h.sink.Faults()
	if faults == nil {
		faults = []Fault{}
	}
	respond(w, http.StatusOK, faults)
}

func (h *handler) addFault(w http.ResponseWriter, r *http.Request) {
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/json" {
		problem(w, http.StatusUnsupportedMediaType, "send application/json")
		return
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096))
	dec.DisallowUnknownFields()
	var f Fault
	if err := dec.Decode(&f); err != nil {
		problem(w, http.StatusBadRequest, `send one JSON object, such as {"kind": "tempfail", "count": 3}`)
		return
	}
	if err := h.sink.Fail(f); err != nil {
		problem(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	respond(w, http.StatusCreated, h.sink.Faults())
}

func (h *handler) clearFaults(w http.ResponseWriter, _ *http.Request) {
	h.sink.ClearFaults()
	w.WriteHeader(http.StatusNoContent)
}

func (h *handler) view(limit int, selected *Message) view {
	s := h.sink
	s.mu.Lock()
	defer s.mu.Unlock()
	return view{
		Messages: s.newest(limit), Total: len(s.mails), Selected: selected,
		Faults: append([]Fault(nil), s.faults...), SMTP: s.Addr(),
	}
}

// render writes the page. Its tag lets the page's script ask every few seconds
// whether something changed, for next to nothing.
func (h *handler) render(w http.ResponseWriter, r *http.Request, v view) {
	h.sink.mu.Lock()
	tag := fmt.Sprintf(`"%x-%d"`, h.sink.started.UnixNano(), h.sink.revision)
	h.sink.mu.Unlock()
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	var b bytes.Buffer
	if err := h.page.Execute(&b, v); err != nil {
		h.sink.cfg.Logger.Error("inbox page", "error", err)
		http.Error(w, "the page can't be shown", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes())
}

func asset(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, web, name) }
}

func respond(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": detail})
}

// wantsJSON reports whether the client asked for JSON before it asked for a
// page: browsers name text/html, and programs that want JSON name that.
func wantsJSON(r *http.Request) bool {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		switch t, _, _ := mime.ParseMediaType(part); t {
		case "application/json", "application/*":
			return true
		case "text/html", "text/*", "application/xhtml+xml":
			return false
		}
	}
	return false
}

func limitOf(r *http.Request, otherwise int) (int, error) {
	text := r.URL.Query().Get("limit")
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, errors.New("limit must be a number from 1 on")
	}
	return n, nil
}

// when is a time as people look for it in a list.
func when(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	switch {
	case t.Year() == now.Year() && t.YearDay() == now.YearDay():
		return t.Format("15:04:05")
	case t.Year() == now.Year():
		return t.Format("2 Jan 15:04")
	}
	return t.Format("2 Jan 2006")
}

// gist is the beginning of a mail's text, on one line.
func gist(text string) string {
	var b strings.Builder
	for word := range strings.FieldsSeq(text) {
		if b.Len() > 140 {
			break
		}
		b.WriteString(word + " ")
	}
	return b.String()
}
