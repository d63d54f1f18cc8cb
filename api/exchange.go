package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"

	"outflow/domain"
	"outflow/store"
)

// maxBody is the largest body, in bytes.
const maxBody = 64 << 10

const (
	typeJSON       = "application/json"
	typeMergePatch = "application/merge-patch+json"
	typeJSONPatch  = "application/json-patch+json"
)

// exchange is one request and its response.
type exchange struct {
	http.ResponseWriter
	r           *http.Request
	api         *api
	logger      *slog.Logger
	route       *route
	query       url.Values
	requestID   string
	traceparent string
	sent        *string // the body, once it was read
	answered    bool
}

func newExchange(w http.ResponseWriter, r *http.Request, a *api) *exchange {
	x := &exchange{ResponseWriter: w, r: r, api: a, logger: a.logger, requestID: r.Header.Get("X-Request-Id")}
	if !requestID(x.requestID) {
		x.requestID = uuid.Must(uuid.NewV7()).String()
	}
	if all := r.Header["Traceparent"]; len(all) == 1 && traceparent(all[0]) {
		x.traceparent = all[0]
	}
	h := w.Header()
	h.Set("X-Request-Id", x.requestID)
	h.Set("X-Content-Type-Options", "nosniff")
	if x.traceparent != "" {
		h.Set("Traceparent", x.traceparent)
	}
	return x
}

// requestID reports whether a client's request id is one to use: it goes into
// logs, headers and events.
func requestID(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("-_.:~", c) < 0 {
			return false
		}
	}
	return true
}

// traceparent reports whether s is a traceparent header of W3C Trace Context,
// of version 00 or of a later one, which may have more behind it.
func traceparent(s string) bool {
	if len(s) < 55 || len(s) > 512 || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return false
	}
	version, trace, span := s[:2], s[3:35], s[36:52]
	for _, part := range [...]string{version, trace, span, s[53:55]} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return false
		}
	}
	if strings.Trim(trace, "0") == "" || strings.Trim(span, "0") == "" || version == "ff" {
		return false
	}
	if version == "00" {
		return len(s) == 55
	}
	return len(s) == 55 || s[55] == '-' && requestID(s[55:])
}

// metadata is what the events of this request say about it.
func (x *exchange) metadata() domain.Metadata {
	return domain.Metadata{Actor: "api", CorrelationID: x.requestID, Traceparent: x.traceparent}
}

// Unwrap gives [http.ResponseController] the writer below.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

func (x *exchange) WriteHeader(status int) {
	x.answered = true
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(b []byte) (int, error) {
	x.answered = true
	return x.ResponseWriter.Write(b)
}

func (x *exchange) logError(message string, args ...any) {
	x.logger.ErrorContext(x.r.Context(), message, append(args, "method", x.r.Method, "route", x.r.Pattern, "request_id", x.requestID)...)
}

// id returns the id that the path names.
func (x *exchange) id() (domain.ID, error) {
	id, err := domain.ParseID(x.r.PathValue("id"))
	if err != nil {
		return id, badParams(fieldProblem{"path.id", "must be a UUID"})
	}
	return id, nil
}

// target returns the id that the path names and what the request demands of
// what has it.
func (x *exchange) target() (domain.ID, store.Precondition, error) {
	id, err := x.id()
	if err != nil {
		return id, store.Precondition{}, err
	}
	pre, err := x.precondition()
	return id, pre, err
}

// body reads the request's body as JSON of one of the types.
func (x *exchange) body(types ...string) (value, error) {
	if err := x.contentType(types); err != nil {
		return value{}, err
	}
	s, err := x.read()
	if err != nil {
		return value{}, err
	}
	v, err := parse(s)
	if err != nil {
		return value{}, &refusal{code: codeMalformed, detail: err.Error()}
	}
	return v, nil
}

// sends reports whether the body is of a type.
func (x *exchange) sends(mediaType string) bool {
	got, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	return err == nil && got == mediaType
}

// noBody accepts what clients send that always send something: no body, or an
// empty object.
func (x *exchange) noBody() error {
	s, err := x.read()
	if err != nil || s == "" {
		return err
	}
	if err := x.contentType([]string{typeJSON}); err != nil {
		return err
	}
	v, err := parse(s)
	if err != nil {
		return &refusal{code: codeMalformed, detail: err.Error()}
	}
	d := decoding{}
	for _, m := range d.object(&v, nil) {
		d.unknown(m.name, nil)
	}
	return d.err(func() error { return nil })
}

// contentType insists on a Content-Type, because browsers send bodies without
// one, or with one of their forms, to other sites without asking them first.
func (x *exchange) contentType(types []string) error {
	got := x.r.Header.Get("Content-Type")
	ok := slices.Contains(types, got)
	if !ok {
		media, params, err := mime.ParseMediaType(got)
		charset := params["charset"]
		ok = err == nil && slices.Contains(types, media) && (charset == "" || strings.EqualFold(charset, "utf-8"))
	}
	if encoding := x.r.Header.Get("Content-Encoding"); !ok || encoding != "" && !strings.EqualFold(encoding, "identity") {
		accepted := [2]string{"Accept", strings.Join(types, ", ")}
		if x.r.Method == http.MethodPatch {
			accepted[0] = "Accept-Patch" // RFC 5789, 2.2
		}
		return &refusal{code: codeMediaType, detail: "the body must be " + strings.Join(types, " or ") + ", in UTF-8 and not compressed", header: accepted}
	}
	return nil
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func buffer() *bytes.Buffer {
	b := buffers.Get().(*bytes.Buffer)
	b.Reset()
	return b
}

// release keeps a buffer for the next exchange, unless a long list made it large.
func release(b *bytes.Buffer) {
	if b.Cap() <= 4*maxBody {
		buffers.Put(b)
	}
}

// read returns the body, unless it is larger than maxBody.
func (x *exchange) read() (string, error) {
	limit := cmp.Or(x.route.maxBody, maxBody)
	tooLarge := &refusal{code: codeTooLarge, detail: "a body may have at most " + strconv.FormatInt(limit, 10) + " bytes"}
	if x.r.ContentLength > limit {
		return "", tooLarge
	}
	if x.sent != nil {
		return *x.sent, nil
	}
	b := buffer()
	defer release(b)
	// The server's own writer, so that it learns to close the connection.
	_, err := b.ReadFrom(http.MaxBytesReader(x.ResponseWriter, x.r.Body, limit))
	if err == nil {
		x.sent = new(b.String())
		return *x.sent, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return "", tooLarge
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "", &refusal{code: codeTimeout, detail: "the body did not arrive in time"}
	}
	return "", &refusal{code: codeMalformed, detail: "the body could not be read to its end"}
}

// send answers with v as JSON.
func (x *exchange) send(status int, contentType string, v any) {
	b := buffer()
	defer release(b)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false) // responses are never part of a page, see X-Content-Type-Options
	if err := e.Encode(v); err != nil {
		panic(err) // only a type that has no JSON: a programmer's mistake
	}
	h := x.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	x.WriteHeader(status)
	_, _ = x.Write(b.Bytes()) // a client that is gone is nobody's error
}

// cacheControl lets clients keep what they got and ask whether it is current.
const cacheControl = "private, no-cache"

// reply answers with the operation's own status.
func (x *exchange) reply(v any) error {
	x.Header().Set("Cache-Control", cacheControl)
	x.send(x.route.DefaultStatus, typeJSON, v)
	return nil
}

// accepts reports whether an Accept header takes a type of application/...
// (RFC 9110, 12.5.1).
func accepts(header []string, mediaType string) bool {
	if len(header) == 0 || len(header) == 1 && (header[0] == "*/*" || header[0] == mediaType || header[0] == "") {
		return true
	}
	best, accepted := -1, false // the most specific range decides
	for _, line := range header {
		for part := range strings.SplitSeq(line, ",") {
			media, params, err := mime.ParseMediaType(part)
			if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
				continue
			}
			specific := slices.Index([]string{"*/*", "application/*", mediaType}, media)
			if specific < best || specific < 0 {
				continue
			}
			q, err := strconv.ParseFloat(params["q"], 64)
			take := err != nil || q > 0
			best, accepted = specific, take || specific == best && accepted
		}
	}
	return accepted
}
