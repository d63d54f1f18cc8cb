package notifier

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"
	"golang.org/x/net/idna"
)

// DefaultTimeout is how long sending one mail may take.
const DefaultTimeout = 30 * time.Second

// The TLS policies: whether mail goes over an encrypted connection (STARTTLS).
const (
	TLSNone          = "none"
	TLSOpportunistic = "opportunistic" // when the server offers it; its certificate must be valid even so
	TLSMandatory     = "mandatory"
)

// MailerConfig says which server takes the mail, and whose mail it is.
type MailerConfig struct {
	Addr      string      // host:port of the mail server
	From      string      // the sender, as "Shop <orders@shop.example>"
	HelloName string      // what to say in EHLO; "" means the machine's host name
	Username  string      // for AUTH PLAIN, which is refused without TLS unless the server is on this machine; "" means no AUTH
	Password  string      //
	TLS       string      // a TLS policy; "" means TLSMandatory
	TLSConfig *tls.Config // nil means the system's certificates and the server's name
	// Timeout is the longest that Send takes, connecting included, whatever the
	// server does; 0 means DefaultTimeout. A claim's lease must be longer, or
	// two notifiers could send the same mail.
	Timeout time.Duration
	MaxIdle int // connections kept for the next mail; 0 means 4
}

// Mailer sends mail to one server, over connections that it keeps for a while.
// Send may be called from several goroutines.
type Mailer struct {
	cfg    MailerConfig
	from   netmail.Address
	domain string // of from, in ASCII
	host   string // the server's name, as certificates and AUTH know it
	pool   pool
	dialer net.Dialer
}

// NewMailer returns a mailer. It connects when there is something to send.
func NewMailer(cfg MailerConfig) (*Mailer, error) {
	host, _, err := net.SplitHostPort(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("mail server address: %w", err)
	}
	parsed, err := netmail.ParseAddress(cfg.From)
	if err != nil {
		return nil, fmt.Errorf("sender of mail: %w", err)
	}
	from, err := address(parsed.Name, parsed.Address)
	if err != nil {
		return nil, fmt.Errorf("sender of mail: %w", err)
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	cfg.TLS = cmp.Or(cfg.TLS, TLSMandatory)
	cfg.MaxIdle = cmp.Or(cfg.MaxIdle, 4)
	m := &Mailer{cfg: cfg, from: from, domain: from.Address[strings.LastIndexByte(from.Address, '@')+1:], host: host}
	if _, err := m.client(); err != nil {
		return nil, fmt.Errorf("mail client: %w", err)
	}
	return m, nil
}

// Close ends the connections that are kept. Send may still be called; it
// connects anew and keeps nothing.
func (m *Mailer) Close() { m.pool.close() }

// Send hands a mail to the server and returns nil once the server has taken it.
// [Temporary] tells from an error whether it is worth another try. When the
// connection breaks between the end of the mail and the server's answer, the
// server may have it all the same, and another try makes a duplicate with the
// same Message-ID: [SendError.Unsure].
func (m *Mailer) Send(ctx context.Context, msg Message) error {
	to, err := address(msg.To.Name, msg.To.Email)
	if err != nil {
		return &SendError{Step: stepCompose, Err: err, permanent: true}
	}
	raw, err := m.compose(msg, to)
	if err != nil {
		return &SendError{Step: stepCompose, Err: err, permanent: true}
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	// A server ends idle connections when it likes, which shows only at the
	// next command. MAIL is the first: nothing of the mail has gone out by
	// then, so that it may go over the next connection.
	for {
		c := m.pool.take()
		if c == nil {
			break
		}
		if err := m.sendOver(ctx, c, to, raw); !isGone(err) {
			return err
		}
	}
	c, err := m.connect(ctx)
	if err != nil {
		return err
	}
	return m.sendOver(ctx, c, to, raw)
}

// compose makes the MIME form of a message: text and HTML as alternatives.
func (m *Mailer) compose(msg Message, to netmail.Address) ([]byte, error) {
	id := msg.EventID.String()
	// The boundary can't stand in the bodies by accident, nor does whoever chose
	// the names in them know the event's id beforehand.
	g := mail.NewMsg(mail.WithNoDefaultUserAgent(), mail.WithBoundary("outflow-"+id))
	g.FromMailAddress(&m.from)
	g.ToMailAddress(&to)
	g.Subject(line(msg.Subject))
	g.SetMessageIDWithValue(m.messageID(msg))
	g.SetDateWithValue(msg.Date.UTC())
	g.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no out-of-office answers
	g.SetBodyString(mail.TypeTextPlain, msg.Text)
	g.AddAlternativeString(mail.TypeTextHTML, msg.HTML)
	var b bytes.Buffer
	_, err := g.WriteTo(&b)
	return b.Bytes(), err
}

// messageID is the Message-ID of a message, without angle brackets.
func (m *Mailer) messageID(msg Message) string {
	id := msg.EventID.String()
	if msg.Resend > 0 {
		id += ".r" + strconv.Itoa(msg.Resend)
	}
	return id + "@outflow." + m.domain
}

// address checks a mail address and puts its domain into ASCII, which every
// server understands.
func address(name, email string) (netmail.Address, error) {
	at := strings.LastIndexByte(email, '@')
	parsed, err := netmail.ParseAddress("<" + email + ">")
	if at < 1 || err != nil || parsed.Address != email || strings.ContainsAny(email, "\r\n") {
		return netmail.Address{}, errors.New("not a mail address")
	}
	domain, err := idna.Lookup.ToASCII(email[at+1:])
	if err != nil || domain == "" {
		return netmail.Address{}, errors.New("not a mail domain")
	}
	return netmail.Address{Name: line(name), Address: email[:at+1] + domain}, nil
}

// client is go-mail's part in it: STARTTLS, AUTH and what SMTP says. The
// connection it works on is ours.
func (m *Mailer) client(opts ...mail.Option) (*mail.Client, error) {
	opts = append(opts, mail.WithTimeout(m.cfg.Timeout))
	switch m.cfg.TLS {
	case TLSNone:
		opts = append(opts, mail.WithTLSPolicy(mail.NoTLS))
	case TLSOpportunistic:
		opts = append(opts, mail.WithTLSPolicy(mail.TLSOpportunistic))
	case TLSMandatory:
		opts = append(opts, mail.WithTLSPolicy(mail.TLSMandatory))
	default:
		return nil, fmt.Errorf("TLS policy %q is none of %s, %s, %s", m.cfg.TLS, TLSNone, TLSOpportunistic, TLSMandatory)
	}
	if m.cfg.TLSConfig != nil {
		config := m.cfg.TLSConfig.Clone()
		config.ServerName = cmp.Or(config.ServerName, m.host)
		opts = append(opts, mail.WithTLSConfig(config))
	}
	if m.cfg.HelloName != "" {
		opts = append(opts, mail.WithHELO(m.cfg.HelloName))
	}
	if m.cfg.Username != "" {
		opts = append(opts, mail.WithSMTPAuth(mail.SMTPAuthPlain), mail.WithUsername(m.cfg.Username), mail.WithPassword(m.cfg.Password))
	}
	return mail.NewClient(m.host, opts...)
}

func (m *Mailer) connect(ctx context.Context) (*connection, error) {
	c := &connection{}
	stop := func() bool { return true }
	client, err := m.client(mail.WithDialContextFunc(func(dial context.Context, _, _ string) (net.Conn, error) {
		raw, err := m.dialer.DialContext(dial, "tcp", m.cfg.Addr)
		if err != nil {
			return nil, err
		}
		c.raw = raw
		// What go-mail does next, greeting, STARTTLS and AUTH, doesn't look at
		// the context. Closing the connection under it is what ends it.
		stop = context.AfterFunc(ctx, func() { _ = raw.Close() })
		return raw, nil
	}))
	if err != nil {
		return nil, &SendError{Step: stepConnect, Err: err}
	}
	c.client, err = client.DialToSMTPClientWithContext(ctx)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		if c.raw != nil {
			_ = c.raw.Close() // go-mail leaves it open
		}
		return nil, sendError(ctx, stepConnect, err, "")
	}
	return c, nil
}

func (m *Mailer) sendOver(ctx context.Context, c *connection, to netmail.Address, raw []byte) error {
	err := c.send(ctx, m.from.Address, to.Address, raw)
	if c.reusable(err) {
		m.pool.put(c, m.cfg.MaxIdle)
	} else {
		_ = c.raw.Close()
	}
	return err
}
