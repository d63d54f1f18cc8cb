package notifier

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"outflow/internal/mailsink"
)

func newSink(t *testing.T) *mailsink.Sink {
	t.Helper()
	s, err := mailsink.Start(t.Context(), mailsink.Config{})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func newMailer(t *testing.T, cfg MailerConfig) *Mailer {
	t.Helper()
	if cfg.From == "" {
		cfg.From = "Café <orders@shop.example>"
	}
	if cfg.TLS == "" {
		cfg.TLS = TLSNone
	}
	m, err := NewMailer(cfg)
	require.NoError(t, err)
	t.Cleanup(m.Close)
	return m
}

func someMail(t *testing.T, to string) Message {
	t.Helper()
	n := notification("welcome", nil)
	if to != "" {
		n.To.Email = to
	}
	m, err := Render(testEvent, n)
	require.NoError(t, err)
	return m
}

func mustFail(t *testing.T, err error) *SendError {
	t.Helper()
	e, ok := errors.AsType[*SendError](err)
	require.True(t, ok, "%v", err)
	return e
}

func TestMailArrivesAsItWasWritten(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	m := newMailer(t, MailerConfig{Addr: sink.Addr()})
	sent := someMail(t, "")
	sent.Text += ".\n..dots\n" + strings.Repeat("ü long line ", 200) + "\n"
	require.NoError(t, m.Send(t.Context(), sent))
	got := sink.Messages()[0]
	require.Equal(t, []string{"zoe@example.com"}, got.To)
	require.Equal(t, "Café <orders@shop.example>", got.From)
	require.Equal(t, "Welcome, Zoë Čeněk <admin>", got.Subject)
	require.Equal(t, "<0198f0aa-0000-7000-8000-000000000001@outflow.shop.example>", got.MessageID)
	require.Equal(t, testTime, got.Date)
	require.Equal(t, sent.Text, got.Text)
	require.Equal(t, sent.HTML, got.HTML)
}

func TestInternationalAddresses(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	m := newMailer(t, MailerConfig{Addr: sink.Addr(), From: "orders@bücher.example"})
	require.NoError(t, m.Send(t.Context(), someMail(t, "zoë@bücher.example")))
	got := sink.Messages()[0]
	require.Equal(t, []string{"zoë@xn--bcher-kva.example"}, got.To)
	require.Equal(t, "<0198f0aa-0000-7000-8000-000000000001@outflow.xn--bcher-kva.example>", got.MessageID)

	// A server without SMTPUTF8 never takes the one, and gets no SMTPUTF8 for the other.
	s := newScript(t, nil)
	m = newMailer(t, MailerConfig{Addr: s.addr})
	err := m.Send(t.Context(), someMail(t, "zoë@example.com"))
	require.ErrorContains(t, err, "outside ASCII")
	require.False(t, Temporary(err))
	require.NoError(t, m.Send(t.Context(), someMail(t, "zoe@bücher.example")))
}

func TestBadAddressesArePermanentAndNeverSent(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	m := newMailer(t, MailerConfig{Addr: sink.Addr()})
	for _, to := range []string{
		"nobody", "@example.com", "a@", "a@b@c", "a b@example.com", "Ada <a@example.com>", "a@example.com\r\nRCPT TO:<b@example.com>",
		"a@exa mple.com", "a@example.com>", "<a@example.com>", "a@example.com, b@example.com", `"a\"b"@example.com`, "a@-", "",
	} {
		mail := someMail(t, "")
		mail.To.Email = to
		err := m.Send(t.Context(), mail)
		require.Error(t, err, to)
		require.False(t, Temporary(err), to)
		if to != "" {
			require.NotContains(t, err.Error(), to)
		}
	}
	require.Empty(t, sink.Messages())
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for _, cfg := range []MailerConfig{
		{Addr: "nowhere", From: "a@example.com"}, {Addr: "h:25", From: "nobody"}, {Addr: "h:25", From: "a@example.com", TLS: "perhaps"}, {Addr: ":25", From: "a@example.com"},
	} {
		_, err := NewMailer(cfg)
		require.Error(t, err, "%+v", cfg)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	s := newScript(t, nil)
	m := newMailer(t, MailerConfig{Addr: s.addr, MaxIdle: 2})
	for range 5 {
		require.NoError(t, m.Send(t.Context(), someMail(t, "")))
	}
	require.EqualValues(t, 1, s.connections.Load())

	var group errgroup.Group
	for range 40 {
		group.Go(func() error { return m.Send(t.Context(), someMail(t, "")) })
	}
	require.NoError(t, group.Wait())
	require.EqualValues(t, 45, s.mails.Load())
	require.LessOrEqual(t, len(m.pool.idle), 2)
	m.Close()
	require.Eventually(t, func() bool { return s.open.Load() == 0 }, time.Minute, time.Millisecond)
}

func TestAConnectionThatTheServerEndedIsReplaced(t *testing.T) {
	t.Parallel()
	for _, end := range []string{hangUp, "421 4.4.2 idle for too long"} {
		var mails atomic.Int64
		s := newScript(t, func(cmd string) string {
			if strings.HasPrefix(cmd, "MAIL") && mails.Add(1) == 2 {
				return end
			}
			return ""
		})
		m := newMailer(t, MailerConfig{Addr: s.addr})
		require.NoError(t, m.Send(t.Context(), someMail(t, "")))
		require.NoError(t, m.Send(t.Context(), someMail(t, "")), end)
		require.EqualValues(t, 2, s.mails.Load())
		require.EqualValues(t, 2, s.connections.Load())
	}
}

func TestAnswersAreToldApart(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		command, answer string
		temporary       bool
		step            string
		unsure          bool
	}{
		{"MAIL", "451 4.3.0 later", true, stepMail, false},
		{"MAIL", "550 5.7.1 not from you", false, stepMail, false},
		{"MAIL", "530 5.7.0 authenticate first", true, stepMail, false},
		{"MAIL", hangUp, true, stepMail, false},
		{"RCPT", "450 4.2.0 greylisted", true, stepRcpt, false},
		{"RCPT", "550 5.1.1 <ZOE@example.com>: no such user", false, stepRcpt, false},
		{"RCPT", "421 4.3.2 going down", true, stepRcpt, false},
		{"RCPT", hangUp, true, stepRcpt, false},
		{"DATA", "451 4.3.0 later", true, stepData, false},
		{"DATA", "554 5.5.1 no", false, stepData, false},
		{"DATA", hangUp, true, stepData, false},
		{".", "452 4.3.1 disk full", true, stepEnd, false},
		{".", "554 5.7.1 spam", false, stepEnd, false},
		{".", hangUp, true, stepEnd, true},
		{"greeting", "554 5.3.2 no service", true, stepConnect, false},
		{"greeting", "421 4.3.2 busy", true, stepConnect, false},
		{"greeting", "nonsense", true, stepConnect, false},
		{"greeting", hangUp, true, stepConnect, false},
		{"EHLO", hangUp, true, stepConnect, false},
	} {
		t.Run(tc.command+" "+tc.answer, func(t *testing.T) {
			t.Parallel()
			var once sync.Once
			s := newScript(t, func(cmd string) (answer string) {
				if strings.HasPrefix(cmd, tc.command) {
					once.Do(func() { answer = tc.answer })
				}
				return answer
			})
			m := newMailer(t, MailerConfig{Addr: s.addr})
			err := m.Send(t.Context(), someMail(t, ""))
			e := mustFail(t, err)
			require.Equal(t, tc.temporary, Temporary(err), "%v", err)
			require.Equal(t, tc.step, e.Step)
			require.Equal(t, tc.unsure, e.Unsure)
			require.NotContains(t, strings.ToLower(err.Error()), "zoe@example.com", "no addresses in logs")
			if tc.answer[0] == '5' || tc.answer[0] == '4' {
				require.Contains(t, err.Error(), tc.answer[:9])
				require.Equal(t, tc.answer[:3], strconv.Itoa(e.Code))
			}
			require.NoError(t, m.Send(t.Context(), someMail(t, "")), "the next mail goes out")
		})
	}
}

func TestAnAcceptedMailIsNotReportedAsFailed(t *testing.T) {
	t.Parallel()
	// go-mail's own Send says RSET after the mail, and calls the mail failed when
	// that fails.
	s := newScript(t, func(cmd string) string {
		if strings.HasPrefix(cmd, "RSET") || strings.HasPrefix(cmd, "QUIT") || strings.HasPrefix(cmd, "NOOP") {
			return hangUp
		}
		return ""
	})
	m := newMailer(t, MailerConfig{Addr: s.addr})
	require.NoError(t, m.Send(t.Context(), someMail(t, "")))
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	err = newMailer(t, MailerConfig{Addr: ln.Addr().String()}).Send(t.Context(), someMail(t, ""))
	require.True(t, Temporary(err))
	require.Equal(t, stepConnect, mustFail(t, err).Step)
	require.False(t, Temporary(nil))
}

func TestASilentServerIsGivenUp(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"greeting", "EHLO", "MAIL", "RCPT", "DATA", "."} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			s := newScript(t, func(cmd string) string {
				if strings.HasPrefix(cmd, command) {
					return silence
				}
				return ""
			})
			m := newMailer(t, MailerConfig{Addr: s.addr, Timeout: 100 * time.Millisecond})
			began := time.Now()
			err := m.Send(t.Context(), someMail(t, ""))
			require.True(t, Temporary(err))
			require.True(t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
			require.Less(t, time.Since(began), 5*time.Second)
			require.Equal(t, command == ".", mustFail(t, err).Unsure)
		})
	}
}

func TestAStopEndsSendingAtOnce(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"greeting", "EHLO", "MAIL", "RCPT", "DATA"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			s := newScript(t, func(cmd string) string {
				if strings.HasPrefix(cmd, command) {
					cancel()
					return silence
				}
				return ""
			})
			err := newMailer(t, MailerConfig{Addr: s.addr}).Send(ctx, someMail(t, ""))
			require.ErrorIs(t, err, context.Canceled)
			require.True(t, Temporary(err))
		})
	}
}

func TestAStopWaitsForTheAnswerToAMailThatIsOut(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := newScript(t, func(cmd string) string {
		if cmd == "." {
			cancel() // the mail is at the server; it answers all the same
		}
		return ""
	})
	m := newMailer(t, MailerConfig{Addr: s.addr})
	require.NoError(t, m.Send(ctx, someMail(t, "")))
	require.NoError(t, m.Send(t.Context(), someMail(t, "")))
	require.Error(t, m.Send(ctx, someMail(t, "")))
	require.EqualValues(t, 2, s.mails.Load())
}

func TestFaultsOfTheSink(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	m := newMailer(t, MailerConfig{Addr: sink.Addr()})
	send := func() error { return m.Send(t.Context(), someMail(t, "")) }
	require.NoError(t, sink.Fail(mailsink.Fault{Kind: mailsink.TempFail, Count: 1}))
	require.True(t, Temporary(send()))
	require.NoError(t, sink.Fail(mailsink.Fault{Kind: mailsink.PermFail, Count: 1}))
	require.False(t, Temporary(send()))
	require.NoError(t, sink.Fail(mailsink.Fault{Kind: mailsink.DropAfterData, Count: 1}))
	err := send()
	require.True(t, Temporary(err))
	require.True(t, mustFail(t, err).Unsure)
	require.NoError(t, send())
	require.Len(t, sink.Messages(), 2)
	require.Equal(t, sink.Messages()[0].MessageID, sink.Messages()[1].MessageID)
}

func TestTLSAndAuth(t *testing.T) {
	t.Parallel()
	start, trust := newTLSServer(t)
	trusted := &tls.Config{RootCAs: trust}
	for _, tc := range []struct {
		name    string
		cfg     MailerConfig
		problem string
		mails   []string
	}{
		{"mandatory", MailerConfig{TLS: TLSMandatory, TLSConfig: trusted}, "", []string{"tls"}},
		{"opportunistic", MailerConfig{TLS: TLSOpportunistic, TLSConfig: trusted}, "", []string{"tls"}},
		{"none", MailerConfig{TLS: TLSNone}, "", []string{"plain"}},
		{"AUTH", MailerConfig{TLS: TLSMandatory, TLSConfig: trusted, Username: "shop", Password: "secret"}, "", []string{"tls shop"}},
		{"unknown certificate", MailerConfig{TLS: TLSMandatory}, "certificate", nil},
		{"wrong password", MailerConfig{TLS: TLSMandatory, TLSConfig: trusted, Username: "shop", Password: "guess"}, "535", nil},
		{"no AUTH without TLS", MailerConfig{TLS: TLSNone, Username: "shop", Password: "secret"}, "AUTH", nil},
		{"no TLS, no AUTH", MailerConfig{TLS: TLSOpportunistic, Username: "shop", Password: "secret"}, "certificate", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			backend, addr := start()
			tc.cfg.Addr = addr
			err := newMailer(t, tc.cfg).Send(t.Context(), someMail(t, ""))
			if tc.problem == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tc.problem)
				require.True(t, Temporary(err), "the mail is not to blame")
				require.NotContains(t, err.Error(), "secret")
			}
			require.Equal(t, tc.mails, backend.received())
		})
	}
	t.Run("mandatory, not offered", func(t *testing.T) {
		t.Parallel()
		err := newMailer(t, MailerConfig{Addr: newSink(t).Addr(), TLS: TLSMandatory}).Send(t.Context(), someMail(t, ""))
		require.ErrorContains(t, err, "STARTTLS")
		require.True(t, Temporary(err))
	})
	t.Run("opportunistic, not offered", func(t *testing.T) {
		t.Parallel()
		sink := newSink(t)
		require.NoError(t, newMailer(t, MailerConfig{Addr: sink.Addr(), TLS: TLSOpportunistic}).Send(t.Context(), someMail(t, "")))
		require.Len(t, sink.Messages(), 1)
	})
}

// script is a mail server that does as it is told.
type script struct {
	addr                     string
	answer                   func(cmd string) string
	connections, open, mails atomic.Int64
}

// What a script may answer beside a line of SMTP; "" is what a good server says.
const (
	hangUp  = "hang up"
	silence = "silence"
)

func newScript(t *testing.T, answer func(cmd string) string) *script {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &script{addr: ln.Addr().String(), answer: answer}
	if answer == nil {
		s.answer = func(string) string { return "" }
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.connections.Add(1)
			s.open.Add(1)
			stop := context.AfterFunc(t.Context(), func() { _ = c.Close() })
			wg.Go(func() {
				defer s.open.Add(-1)
				defer stop()
				defer c.Close()
				s.serve(c)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return s
}

func (s *script) serve(c net.Conn) {
	r := bufio.NewScanner(c)
	// say answers a command and reports what was said, and whether the
	// conversation goes on.
	say := func(cmd, otherwise string) (string, bool) {
		answer := s.answer(cmd)
		switch answer {
		case hangUp:
			return "", false
		case silence:
			return "", r.Scan() // until the client has had enough
		case "":
			answer = otherwise
		}
		if cmd == "." && strings.HasPrefix(answer, "250") {
			s.mails.Add(1) // whoever hears of it may count at once
		}
		fmt.Fprint(c, answer+"\r\n")
		return answer, !strings.HasPrefix(answer, "421")
	}
	if _, ok := say("greeting", "220 script"); !ok {
		return
	}
	open := false // a transaction
	for r.Scan() {
		cmd := r.Text()
		verb, _, _ := strings.Cut(cmd, " ")
		otherwise := "250 ok"
		switch verb {
		case "MAIL":
			if open {
				otherwise = "503 5.5.1 nested MAIL"
			} else if strings.Contains(cmd, "SMTPUTF8") {
				otherwise = "555 5.5.4 SMTPUTF8 not supported"
			}
			open = true
		case "RSET":
			open = false
		case "DATA":
			otherwise = "354 go"
		case "QUIT":
			otherwise = "221 bye"
		}
		said, ok := say(cmd, otherwise)
		if strings.HasPrefix(said, "354") {
			for r.Scan() && r.Text() != "." {
			}
			_, ok = say(".", "250 taken")
			open = false
		}
		if !ok || verb == "QUIT" {
			return
		}
	}
}

// tlsBackend is a mail server that notes how each mail came: "plain" or "tls",
// and whose it was.
type tlsBackend struct {
	mu    sync.Mutex
	mails []string
}

func (b *tlsBackend) received() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mails
}

type tlsSession struct {
	backend *tlsBackend
	conn    *smtp.Conn
	user    string
}

func (s *tlsSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *tlsSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, username, password string) error {
		if username != "shop" || password != "secret" {
			return smtp.ErrAuthFailed
		}
		s.user = username
		return nil
	}), nil
}

func (s *tlsSession) Reset()                               {}
func (s *tlsSession) Logout() error                        { return nil }
func (s *tlsSession) Mail(string, *smtp.MailOptions) error { return nil }
func (s *tlsSession) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (s *tlsSession) Data(r io.Reader) error {
	how := "plain"
	if _, ok := s.conn.TLSConnectionState(); ok {
		how = "tls"
	}
	s.backend.mu.Lock()
	defer s.backend.mu.Unlock()
	s.backend.mails = append(s.backend.mails, strings.TrimSpace(how+" "+s.user))
	_, err := io.Copy(io.Discard, r)
	return err
}

// newTLSServer makes a certificate for 127.0.0.1, and returns what starts a
// server with it and the pool of those who trust it.
func newTLSServer(t *testing.T) (start func() (*tlsBackend, string), trust *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	trust = x509.NewCertPool()
	trust.AddCert(cert)
	start = func() (*tlsBackend, string) {
		backend := &tlsBackend{}
		server := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
			return &tlsSession{backend: backend, conn: c}, nil
		}))
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
		server.ErrorLog = log.New(io.Discard, "", 0)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() { _ = server.Serve(ln) }()
		t.Cleanup(func() { _ = server.Close() })
		return backend, ln.Addr().String()
	}
	return start, trust
}
