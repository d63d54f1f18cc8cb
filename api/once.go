package api

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strconv"
	"strings"

	"outflow/store"
)

// Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a request that
// changes something names itself, so that it can be sent again by whoever
// doesn't know what came of it. Keys belong to the service as a whole, and to
// one request each: its method, path and body. PUT and DELETE need none.
//
// Only what took place is kept and replayed. A request that was refused or
// that failed has changed nothing, so it leaves its key free, and is decided
// anew when it comes again; a client that corrects it may keep the key.
const (
	keyHeader      = "Idempotency-Key"
	replayedHeader = "Idempotency-Replayed"
	maxKey         = 255
)

// takesKey reports whether an operation can be done once per key.
func takesKey(method, path string) bool {
	return (method == http.MethodPost || method == http.MethodPatch) && !strings.HasSuffix(path, "/import")
}

// once handles a request; one that has a key, at most once.
func (x *exchange) once() error {
	name, ok := parseKey(x.r.Header[keyHeader])
	if !ok {
		return badParams(fieldProblem{"header." + keyHeader, "must be 1 to 255 visible ASCII characters, bare or in quotes, and there once"})
	}
	if name == "" {
		return x.route.handle(x)
	}
	body, err := x.read()
	if err != nil {
		return err
	}
	key := &store.Key{Value: name, Fingerprint: fingerprint(x.r, body), Answer: x.answerTo}
	r := x.r
	first, err := x.api.store.Once(r.Context(), key, func(ctx context.Context) error {
		x.r = r.WithContext(ctx)
		return x.route.handle(x)
	})
	if err != nil || first == nil {
		return err
	}
	h := x.Header()
	for name, value := range first.Header {
		h.Set(name, value)
	}
	h.Set(replayedHeader, "true")
	h.Set("Content-Length", strconv.Itoa(len(first.Body)))
	x.WriteHeader(first.Status)
	_, _ = x.Write(first.Body)
	return nil
}

// parseKey reads the header: a string of structured fields (RFC 8941), or the
// same without its quotes, as many clients send it. The key is empty when the
// header isn't there.
func parseKey(lines []string) (string, bool) {
	if len(lines) == 0 {
		return "", true
	}
	key := strings.Trim(lines[0], " \t")
	if inner, quoted := strings.CutPrefix(key, `"`); quoted {
		var b strings.Builder
		closed := false
		for i := 0; i < len(inner) && !closed; i++ {
			switch inner[i] {
			case '"':
				if closed = true; i != len(inner)-1 {
					return "", false
				}
			case '\\':
				if i++; i == len(inner) || inner[i] != '"' && inner[i] != '\\' {
					return "", false
				}
				b.WriteByte(inner[i])
			default:
				b.WriteByte(inner[i])
			}
		}
		if key = b.String(); !closed {
			return "", false
		}
	}
	visible := !strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' })
	return key, len(lines) == 1 && key != "" && len(key) <= maxKey && visible
}

// fingerprint tells requests apart that have the same key.
func fingerprint(r *http.Request, body string) []byte {
	h := sha256.New()
	for _, part := range []string{r.Method, strings.TrimSuffix(r.URL.Path, "/"), body} {
		h.Write([]byte(strconv.Itoa(len(part)) + " " + part))
	}
	return h.Sum(nil)
}

// answerTo is what the operation answers when its write has this result.
func (x *exchange) answerTo(result any) store.Response {
	var kept recorder
	y := *x
	y.ResponseWriter = &kept
	x.route.answer(&y, result)
	response := store.Response{Status: kept.status, Header: map[string]string{}, Body: kept.body}
	for name := range kept.header {
		if name != "Content-Length" {
			response.Header[name] = kept.header.Get(name)
		}
	}
	return response
}

// recorder keeps a response.
type recorder struct {
	header http.Header
	status int
	body   []byte
}

func (r *recorder) Header() http.Header {
	if r.header == nil {
		r.header = http.Header{}
	}
	return r.header
}

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(b []byte) (int, error) {
	r.body = append(r.body, b...)
	return len(b), nil
}
