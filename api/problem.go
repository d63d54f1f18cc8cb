package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"

	"outflow/domain"
)

// This file alone knows which status answers which error.

// What goes wrong before anything reaches the domain.
const (
	codeInternal         domain.Code = "internal"
	codeMalformed        domain.Code = "malformed_body"
	codeTooLarge         domain.Code = "body_too_large"
	codeMediaType        domain.Code = "unsupported_media_type"
	codeNotAcceptable    domain.Code = "not_acceptable"
	codeNoSuchPath       domain.Code = "no_such_path"
	codeMethodNotAllowed domain.Code = "method_not_allowed"
	codeTimeout          domain.Code = "request_timeout"
	codeCrossOrigin      domain.Code = "cross_origin"

	codePreconditionRequired domain.Code = "precondition_required"
	codeBadRequest           domain.Code = "bad_request"
	codeHeaderTooLarge       domain.Code = "header_too_large"
	codeMalformedPatch       domain.Code = "malformed_patch"
	codePatchConflict        domain.Code = "patch_conflict"
)

// problemType is a type of problem, as RFC 9457 means it: stable, and
// explained under its URI.
type problemType struct {
	code    domain.Code
	status  int
	title   string
	explain string // for people who follow the type's link
}

// problemTypes is in the order in which the types are documented.
var problemTypes = []problemType{
	{domain.CodeInvalid, http.StatusUnprocessableEntity, "The request is not valid",
		"Something in the request breaks a rule. errors lists every problem: location says where (body.items[0].quantity, path.id, query.limit, header.If-Match; resource.name for what a JSON Patch makes of the resource), message what is expected there. Nothing was changed. Correct all of them and send the request again."},
	{codeMalformed, http.StatusBadRequest, "The body is not well-formed JSON",
		"The body is not one JSON value: there is a syntax error, a name twice in one object, bytes that are not UTF-8, something after the value, or too many levels. detail says where. Nothing was changed."},
	{codeBadRequest, http.StatusBadRequest, "The request is not HTTP",
		"The request breaks HTTP's own rules (a bad request line, a bad header, two lengths), so that no part of it was read further. The connection is closed."},
	{codeHeaderTooLarge, http.StatusRequestHeaderFieldsTooLarge, "The header is too large",
		"The request line and the header fields may have at most 32 KiB together. The connection is closed."},
	{codeMalformedPatch, http.StatusBadRequest, "The body is not a JSON Patch",
		"The body is JSON, but not a JSON Patch (RFC 6902): an array of operations that each have an op, a path (a JSON Pointer) and what belongs to the op. detail says what is wrong with which operation, counted from 0. Nothing was changed."},
	{codeMediaType, http.StatusUnsupportedMediaType, "The body's content type is not supported",
		"Send application/json, for imports application/x-ndjson, and for PATCH application/merge-patch+json (RFC 7396; application/json means the same) or application/json-patch+json (RFC 6902), in UTF-8 and without a content encoding. The Content-Type header must be there."},
	{codeTooLarge, http.StatusRequestEntityTooLarge, "The body is too large",
		"A body, and a line of an import, may have at most 64 KiB; the body of a batch 4 MiB. Nothing was changed."},
	{codeTimeout, http.StatusRequestTimeout, "The body came too slowly",
		"The body did not arrive in time. Nothing was changed; send the request again."},
	{codeNotAcceptable, http.StatusNotAcceptable, "No acceptable representation",
		"The Accept header leaves out application/json, the only form that there is."},
	{domain.CodeNotFound, http.StatusNotFound, "No such resource",
		"Nothing has this id, or what had it was deleted. The events of a deleted customer or order stay readable."},
	{codeNoSuchPath, http.StatusNotFound, "No such path",
		"The API has no such path. /docs lists the ones it has."},
	{codeMethodNotAllowed, http.StatusMethodNotAllowed, "The method is not allowed here",
		"The path exists, but not for this method. The Allow header lists the methods that it has."},
	{codeCrossOrigin, http.StatusForbidden, "The request comes from another site",
		"A browser says that a page of another origin caused this request. Such requests may not change anything."},
	{domain.CodeEmailTaken, http.StatusConflict, "The email is taken",
		"Another customer has this email. Emails are compared without regard to case, among customers that are not deleted. Nothing was changed."},
	{domain.CodeOpenOrders, http.StatusConflict, "The customer has open orders",
		"A customer with placed or confirmed orders can't be deleted. Cancel the orders, or wait until they are fulfilled or rejected."},
	{domain.CodeOrderState, http.StatusConflict, "The order's status forbids this",
		"order_status says which status the order has. An order can be changed while it is placed, cancelled while it is placed or confirmed, fulfilled once it is confirmed, refunded once it is fulfilled, and deleted once it is rejected, cancelled, fulfilled or refunded."},
	{codePatchConflict, http.StatusConflict, "The patch does not fit the resource",
		"An operation of the JSON Patch can't be applied to the resource as it is: a test failed, or there is nothing at its path. detail says which one, counted from 0. Nothing was changed, not by the other operations either. Read the resource again."},
	{domain.CodeWriteConflict, http.StatusConflict, "Too many changes at once",
		"Others kept changing the same resource while this request was being served. Nothing was changed; send the request again."},
	{domain.CodeVersionMismatch, http.StatusPreconditionFailed, "The resource has another version",
		"The resource is not at the version that If-Match demands, or is at one that If-None-Match excludes: someone changed it meanwhile. Nothing was changed; read it again."},
	{codePreconditionRequired, http.StatusPreconditionRequired, "The request must name a version",
		"This server takes a PUT, PATCH or DELETE only with If-Match, so that nobody overwrites what they have not seen. Read the resource and send its ETag in If-Match; * takes any version."},
	{domain.CodeHistoryGone, http.StatusGone, "The cursor belongs to another history of the database",
		"The database was restored from a backup, or replaced by a standby, since the cursor was given out: what came after it can't be told any more. Begin at the beginning; events have ids, and versions, to tell those that are known."},
	{domain.CodeKeyReused, http.StatusUnprocessableEntity, "The idempotency key was used for another request",
		"A request with this Idempotency-Key, but with another method, path or body, took place within the last 24 hours. Nothing was changed. A new request needs a new key."},
	{domain.CodeKeyInFlight, http.StatusConflict, "The first request is still being served",
		"A request with this Idempotency-Key came before and is not done yet. Nothing was changed by this one; send it again to learn what came of the first."},
	{domain.CodeTooLarge, http.StatusRequestEntityTooLarge, "The change is too large to be published",
		"The event of this change would be larger than the event log takes. Nothing was changed."},
	{domain.CodeUnavailable, http.StatusServiceUnavailable, "The service is not available",
		"The database can't be reached or takes no writes at the moment. Try again after the seconds in Retry-After. After a write it is not known whether it took place: read before writing again, or send the same request again if it had an Idempotency-Key."},
	{codeInternal, http.StatusInternalServerError, "Internal error",
		"Something went wrong in the server, which has logged it under the request_id."},
}

// retryAfter is what Retry-After says, in seconds.
const retryAfter = "2"

func typeOf(code domain.Code) *problemType {
	for i := range problemTypes {
		if problemTypes[i].code == code {
			return &problemTypes[i]
		}
	}
	return typeOf(codeInternal)
}

func (t *problemType) slug() string { return strings.ReplaceAll(string(t.code), "_", "-") }

func (t *problemType) uri() string { return "/problems/" + t.slug() }

// refusal is an error that the API itself finds with a request.
type refusal struct {
	code   domain.Code
	detail string
	errors []fieldProblem
	state  string    // with CodeOrderState: the order's status
	header [2]string // a header that belongs to it, and its value
}

func (r *refusal) Error() string { return string(r.code) + ": " + r.detail }

// fieldProblem is one problem of one part of a request.
type fieldProblem struct {
	Location string `json:"location"`
	Message  string `json:"message"`
}

// problem is the document that clients get.
type problem struct {
	Type      string         `json:"type"`
	Title     string         `json:"title"`
	Status    int            `json:"status"`
	Detail    string         `json:"detail"`
	Instance  string         `json:"instance"`
	RequestID string         `json:"request_id"`
	State     string         `json:"order_status,omitempty"`
	Errors    []fieldProblem `json:"errors,omitempty"`
}

const problemJSON = "application/problem+json"

// fail answers with the problem that err is. What nobody foresaw is logged,
// and told to the client as an internal error without a detail.
func (x *exchange) fail(err error) {
	r := refused(err)
	t := typeOf(r.code)
	if t.code == codeInternal {
		x.logError("request failed", "error", err)
	}
	if x.answered {
		return // the response has begun: there is no way to take it back
	}
	h := x.Header()
	if r.header[0] != "" {
		h.Set(r.header[0], r.header[1])
	}
	if t.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", retryAfter)
	}
	h.Set("Cache-Control", "no-store")
	x.send(t.status, problemJSON, x.document(r))
}

// document is the problem document of a refusal.
func (x *exchange) document(r *refusal) problem {
	t := typeOf(r.code)
	return problem{
		Type: t.uri(), Title: t.title, Status: t.status, Detail: sentence(r.detail),
		Instance: x.r.URL.EscapedPath(), RequestID: x.requestID, Errors: r.errors, State: r.state,
	}
}

// problem is what a client is told about an error of a part of its request.
func (x *exchange) problem(err error) problem {
	r := refused(err)
	if typeOf(r.code).code == codeInternal {
		x.logError("part of a request failed", "error", err)
	}
	return x.document(r)
}

// refused makes a refusal of any error.
func refused(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if errors.Is(err, context.Canceled) {
		// Either the client is gone, and nobody reads this, or the server is
		// shutting down.
		return &refusal{code: domain.CodeUnavailable, detail: "the request was given up before it was done"}
	}
	e, ok := errors.AsType[*domain.Error](err)
	if !ok {
		return &refusal{code: codeInternal, detail: "the request could not be served; the server has logged why"}
	}
	r := &refusal{code: e.Code, detail: e.Message, state: e.State}
	seen := make(map[domain.Field]bool, len(e.Fields))
	for _, f := range e.Fields {
		// What is missing has no other problem worth telling.
		if seen[f] || f.Message != isRequired && seen[domain.Field{Path: f.Path, Message: isRequired}] {
			continue
		}
		seen[f] = true
		r.errors = append(r.errors, fieldProblem{bodyLocation(f.Path), f.Message})
	}
	return r
}

// patchProblem says of what isn't valid once a JSON Patch is applied that it is
// in the resource: the body has no such places.
func (x *exchange) patchProblem(err error) error {
	if domain.CodeOf(err) != domain.CodeInvalid || !x.sends(typeJSONPatch) {
		return err
	}
	r := refused(err)
	r.detail = "the patch would make the resource invalid"
	for i, e := range r.errors {
		r.errors[i].Location = "resource" + strings.TrimPrefix(e.Location, "body")
	}
	return r
}

const isRequired = "is required"

func bodyLocation(path string) string {
	if path == "" || path[0] == '[' {
		return "body" + path
	}
	return "body." + path
}

// sentence makes a sentence of an error's text.
func sentence(s string) string {
	s = cmp.Or(s, "no detail")
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// badParams refuses a request for its parameters.
func badParams(errors ...fieldProblem) error {
	return &refusal{code: domain.CodeInvalid, detail: "the request's parameters are not valid", errors: errors}
}
