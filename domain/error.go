package domain

import (
	"errors"
	"strings"
)

// Code tells what went wrong, in a word that clients may rely on. The set is
// closed: api maps every code to a status and a problem type.
type Code string

// The codes. What is none of these is an internal error.
const (
	CodeInvalid         Code = "invalid"                   // the input breaks a rule; see Fields
	CodeNotFound        Code = "not_found"                 // no such entity, or it was deleted
	CodeEmailTaken      Code = "email_taken"               // another live customer has this email
	CodeOpenOrders      Code = "open_orders"               // the customer has placed or confirmed orders
	CodeOrderState      Code = "order_state"               // the order's status forbids this
	CodeVersionMismatch Code = "version_mismatch"          // the entity is not at the version the caller named
	CodeWriteConflict   Code = "write_conflict"            // others kept changing the entity; nothing was written
	CodeUnavailable     Code = "unavailable"               // the database can't be reached or refuses writes
	CodeKeyReused       Code = "idempotency_key_reused"    // the key was used for another request
	CodeKeyInFlight     Code = "idempotency_key_in_flight" // a request with the key is still being served
	CodeTooLarge        Code = "event_too_large"           // the change makes an event that Kafka would refuse
	CodeHistoryGone     Code = "history_gone"              // the database is another than the one that was read before
)

// Error is an error that a caller may be told about.
type Error struct {
	Code    Code
	Message string  // one plain sentence without submitted values
	Fields  []Field // with CodeInvalid: every problem that was found
	State   string  // with CodeOrderState: the status that the order has
	Err     error   // the cause; never shown to callers
}

// Field is one problem of one field.
type Field struct {
	Path    string // from the resource's root, as "items[2].quantity"; empty for the whole
	Message string // what is expected, never what was sent
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for i, f := range e.Fields {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		if f.Path != "" {
			b.WriteString(f.Path + " ")
		}
		b.WriteString(f.Message)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first [Error] in err's chain, or "".
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// problems collects what is wrong with one input.
type problems []Field

func (p *problems) add(path, message string) { *p = append(*p, Field{path, message}) }

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return &Error{Code: CodeInvalid, Message: "the input is not valid", Fields: p}
}
