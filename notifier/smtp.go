package notifier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/wneessen/go-mail/smtp"

	"outflow/internal/failpoint"
)

// The steps of sending that a [SendError] names.
const (
	stepCompose = "compose"
	stepConnect = "connect" // with the greeting, STARTTLS and AUTH
	stepMail    = "MAIL"
	stepRcpt    = "RCPT"
	stepData    = "DATA"
	stepEnd     = "end of data"
)

// SendError says why a mail wasn't sent. Its text names no address.
type SendError struct {
	Step   string // what was being done: "connect", "RCPT", ...
	Code   int    // the server's answer; 0 when there was none
	Unsure bool   // the whole mail went out and the answer never came: the server may have it
	Err    error

	permanent bool
	gone      bool // the connection had ended before anything was said
}

func (e *SendError) Error() string { return fmt.Sprintf("send mail, at %s: %v", e.Step, e.Err) }

func (e *SendError) Unwrap() error { return e.Err }

// Temporary reports whether an error of Send may go away by itself: the server
// is away, busy, or wants the mail later, or it doesn't let us in. That last is
// for the operator to mend and says nothing about the mail. What remains is
// permanent: the server refuses the mail or its address for good, or the mail
// can't be made.
func Temporary(err error) bool {
	if e, ok := errors.AsType[*SendError](err); ok {
		return !e.permanent && !failpoint.Mutant("notifier.gives-up")
	}
	return err != nil
}

func isGone(err error) bool {
	e, ok := errors.AsType[*SendError](err)
	return ok && e.gone
}

// sendError tells what an error of SMTP means. to is the recipient, which
// servers like to repeat and which doesn't belong in logs.
func sendError(ctx context.Context, step string, err error, to string) *SendError {
	e := &SendError{Step: step, Err: err}
	reply, answered := errors.AsType[*textproto.Error](err)
	switch {
	case answered:
		e.Code = reply.Code
		e.permanent = e.Code >= 500 && step != stepConnect && !notAboutTheMail(e.Code)
		e.gone = step == stepMail && e.Code == 421
		e.Err = fmt.Errorf("%d %s", reply.Code, redact(reply.Msg, to))
	case ctx.Err() != nil:
		e.Err = ctx.Err() // the connection was closed because of it
		e.Unsure = step == stepEnd
	default:
		e.gone = step == stepMail
		e.Unsure = step == stepEnd
	}
	return e
}

// notAboutTheMail tells answers that ask for AUTH or STARTTLS (RFC 4954, 3207),
// which servers also give to MAIL: no mail is to be given up for a wrong
// password.
func notAboutTheMail(code int) bool { return slices.Contains([]int{530, 534, 535, 538}, code) }

// redact makes a server's answer fit for a log: one short line without the
// recipient.
func redact(msg, to string) string {
	if to != "" {
		msg = regexp.MustCompile("(?i)"+regexp.QuoteMeta(to)).ReplaceAllLiteralString(msg, "recipient")
	}
	msg = line(msg)
	if len(msg) > 200 {
		msg = strings.ToValidUTF8(msg[:200], "") + "..."
	}
	return msg
}

// stopGrace is how long a stopping notifier waits for the answer to a mail that
// is out already. Without it every restart would make duplicates.
const stopGrace = 5 * time.Second

// connection is one SMTP session that is past its greeting. client talks over
// raw, through TLS where that is on.
type connection struct {
	client *smtp.Client
	raw    net.Conn
	since  time.Time // when it became idle
	late   bool      // the context ended; a deadline may still be set on raw
}

// send runs one mail transaction. go-mail's own Client.Send is not used: it
// takes connection errors for permanent ones, reports a failed RSET after a
// mail was accepted as a failure of the mail, and leaves the transaction open
// when DATA is refused.
func (c *connection) send(ctx context.Context, from, to string, raw []byte) error {
	deadline, _ := ctx.Deadline()
	_ = c.raw.SetDeadline(deadline)
	cut := context.AfterFunc(ctx, func() { _ = c.raw.Close() })
	defer cut()
	fail := func(step string, err error) error { return sendError(ctx, step, err, to) }

	ascii := isASCII(from) && isASCII(to)
	if ok, _ := c.client.Extension("SMTPUTF8"); !ok && !ascii {
		return &SendError{Step: stepMail, Err: errors.New("the server takes no addresses outside ASCII"), permanent: true}
	}
	c.client.SkipSMTPUTF8(ascii) // asked for without need it makes later servers refuse the mail
	if err := c.client.Mail("<" + from + ">"); err != nil {
		return fail(stepMail, err)
	}
	if err := c.client.Rcpt("<" + to + ">"); err != nil {
		return fail(stepRcpt, err)
	}
	w, err := c.client.Data()
	if err != nil {
		return fail(stepData, err)
	}
	if _, err := w.Write(raw); err != nil {
		return fail(stepData, err)
	}
	// From here on the server may have the mail. To know, the answer is waited
	// for even when the notifier is told to stop.
	if !cut() {
		return fail(stepData, ctx.Err())
	}
	if err := failpoint.Hit(failpoint.NotifierData); err != nil {
		return fail(stepData, err)
	}
	hurry := context.AfterFunc(ctx, func() { _ = c.raw.SetDeadline(earlier(deadline, time.Now().Add(stopGrace))) })
	err = w.Close()
	c.late = !hurry()
	if err != nil {
		return fail(stepEnd, err)
	}
	return nil
}

// reusable reports whether another mail can go over the connection after this
// result. A refusal leaves a transaction open, which RSET ends.
func (c *connection) reusable(err error) bool {
	if c.late {
		return false
	}
	e, ok := errors.AsType[*SendError](err)
	if !ok {
		return err == nil
	}
	return e.Code >= 400 && e.Code != 421 && c.client.Reset() == nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// maxIdle is how long an unused connection is kept; servers end it after some
// minutes.
const maxIdle = time.Minute

// pool keeps connections for the next mail, the latest used on top.
type pool struct {
	mu     sync.Mutex
	idle   []*connection
	closed bool
}

// take returns a connection, or nil when there is none worth a try.
func (p *pool) take() *connection {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if time.Since(c.since) < maxIdle {
			return c
		}
		_ = c.raw.Close()
	}
	return nil
}

func (p *pool) put(c *connection, keep int) {
	c.since = time.Now()
	p.mu.Lock()
	full := p.closed || len(p.idle) >= keep
	if !full {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if full {
		c.quit()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, c := range idle {
		c.quit()
	}
}

// quit says goodbye, but not for long.
func (c *connection) quit() {
	_ = c.raw.SetDeadline(time.Now().Add(time.Second))
	_ = c.client.Quit()
	_ = c.raw.Close()
}
