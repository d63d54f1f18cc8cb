package mailsink

import (
	"io"
	"slices"
	"time"

	"github.com/emersion/go-smtp"
)

// envelope is what SMTP says about a mail beside the mail itself.
type envelope struct {
	from       string
	to         []string
	receivedAt time.Time
}

var (
	errStopped = &smtp.SMTPError{Code: 421, EnhancedCode: smtp.EnhancedCode{4, 3, 2}, Message: "Shutting down"}
	errStorage = &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "Can't store the mail"}
)

// session is one client's connection.
type session struct {
	sink *Sink
	conn *smtp.Conn
	env  envelope
}

func (s *Sink) session(c *smtp.Conn) (smtp.Session, error) {
	return &session{sink: s, conn: c}, nil
}

func (s *session) Reset()        { s.env = envelope{} }
func (s *session) Logout() error { return nil }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.env = envelope{from: from}
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if f, ok := s.sink.takeFault(AtRecipient, []string{to}); ok {
		return f.reply()
	}
	s.env.to = append(s.env.to, to)
	return nil
}

// Data is called for DATA and for BDAT; it returns what the final dot is
// answered with.
func (s *session) Data(r io.Reader) error {
	// go-smtp resets the session from another goroutine when a client that
	// sends by BDAT goes away, so the envelope is taken first.
	env := s.env
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	env.to = slices.Clone(env.to)
	env.receivedAt = time.Now().UTC()

	fault, faulty := s.sink.takeFault(AtData, env.to)
	if faulty && !fault.keeps() {
		return s.end(fault)
	}
	if err := s.sink.keep(env, raw); err != nil {
		if err != errStopped {
			s.sink.cfg.Logger.Error("mail not stored", "error", err)
			return errStorage
		}
		return err
	}
	if faulty {
		return s.end(fault)
	}
	return nil
}

// end answers as the fault wants, or cuts the connection before the answer.
func (s *session) end(f Fault) error {
	if f.Kind == DropAfterData {
		_ = s.conn.Conn().Close()
		return errStopped // nobody hears it
	}
	return f.reply()
}
