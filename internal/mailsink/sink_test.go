package mailsink_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"outflow/internal/mailsink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, cfg mailsink.Config) *mailsink.Sink {
	t.Helper()
	s, err := mailsink.Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// send sends one mail over a connection of its own.
func send(s *mailsink.Sink, to []string, mail string) error {
	c, err := smtp.Dial(s.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SendMail("shop@example.com", to, strings.NewReader(crlf(mail))); err != nil {
		return err
	}
	return c.Quit()
}

// within bounds a wait that a bug would make endless.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func subjects(messages []mailsink.Message) (out []string) {
	for _, m := range messages {
		out = append(out, m.Subject)
	}
	return out
}

const full = `From: =?utf-8?q?Caf=C3=A9_Z=C3=BCrich?= <shop@example.com>
To: =?utf-8?b?xIxlbsSbaw==?= <cenek@example.com>
Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= =?utf-8?q?_=E2=9C=93?=
Message-ID: <1@outflow.example.com>
Date: Tue, 03 Mar 2026 10:20:30 +0100
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=outer

--outer
Content-Type: multipart/alternative; boundary=inner

--inner
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Gr=C3=BC=C3=9Fe, a very long line that is so=
ft-wrapped.
.starts with a dot

--inner
Content-Type: text/html; charset=iso-8859-1
Content-Transfer-Encoding: base64

PHA+R3L832U8
L3A+
--inner--
--outer
Content-Type: text/plain
Content-Disposition: attachment; filename=a.txt

not this
--outer--
`

func TestReceivesAndDecodes(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	before := time.Now()
	require.NoError(t, send(s, []string{"cenek@example.com", "copy@example.com"}, full))
	require.Len(t, s.Messages(), 1)
	m := s.Messages()[0]
	require.WithinRange(t, m.ReceivedAt, before, time.Now())
	m.ReceivedAt = time.Time{}
	require.Equal(t, mailsink.Message{
		ID: "0000000001", To: []string{"cenek@example.com", "copy@example.com"},
		From: "Café Zürich <shop@example.com>", Subject: "Grüße ✓", MessageID: "<1@outflow.example.com>",
		Text: "Grüße, a very long line that is soft-wrapped.\n.starts with a dot\n", HTML: "<p>Grüße</p>",
		Date: time.Date(2026, 3, 3, 9, 20, 30, 0, time.UTC),
	}, m)
}

func TestShowsWhatCanNotBeDecoded(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	for _, tc := range []struct{ name, mail, subject, text string }{
		{"no header", "hello", "", "hello\n"},
		{"plain", "Subject: a\n\nhello\n", "a", "hello\n"},
		{"unknown charset", "Subject: =?klingon?q?x?=\nContent-Type: text/plain; charset=klingon\n\nhello\n", "=?klingon?q?x?=", "hello\n"},
		{"bad content type", "Subject: c\nContent-Type: ;;;\n\nhello\n", "c", "hello\n"},
		{"bad base64", "Subject: d\nContent-Transfer-Encoding: base64\n\naGVsbG8=!!\n", "d", "hello"},
		{"not UTF-8", "Subject: e\n\n\xff\xfe\n", "e", "\uFFFD\n"},
		{"multipart cut short", "Subject: f\nContent-Type: multipart/alternative; boundary=x\n\n--x\n\nhello\n", "f", "hello"},
		{"deeply nested", "Subject: g\n" + nested(40), "g", ""},
		{"empty", "", "", ""},
	} {
		require.NoError(t, send(s, []string{"a@example.com"}, tc.mail), tc.name)
		require.Equal(t, tc.subject, s.Messages()[0].Subject, tc.name)
		require.Equal(t, tc.text, s.Messages()[0].Text, tc.name)
	}
}

func nested(depth int) string {
	var b strings.Builder
	for i := range depth {
		fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", i, i)
	}
	return b.String() + "Content-Type: text/plain\n\ndeep\n"
}

func TestNewestFirstAndWait(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	var group errgroup.Group
	for i := range 20 {
		group.Go(func() error { return send(s, []string{"a@example.com"}, fmt.Sprintf("Subject: %d\n\nx", i)) })
	}
	require.NoError(t, s.Wait(within(t, 10*time.Second), func(m []mailsink.Message) bool { return len(m) == 20 }))
	require.NoError(t, group.Wait())
	require.NoError(t, send(s, []string{"a@example.com"}, "Subject: last\n\nx"))
	require.Equal(t, "last", s.Messages()[0].Subject)

	require.ErrorIs(t, s.Wait(within(t, 10*time.Millisecond), func([]mailsink.Message) bool { return false }), context.DeadlineExceeded)
}

func TestKeepsTheNewest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, mailsink.Config{Dir: dir, Max: 3})
	for i := range 5 {
		require.NoError(t, send(s, []string{"a@example.com"}, fmt.Sprintf("Subject: %d\n\nx", i)))
	}
	require.Equal(t, []string{"4", "3", "2"}, subjects(s.Messages()))
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Len(t, files, 3)

	s.Clear()
	require.Empty(t, s.Messages())
	files, err = filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestSurvivesARestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "mail")
	s := start(t, mailsink.Config{Dir: dir})
	require.NoError(t, send(s, []string{"cenek@example.com", "copy@example.com"}, full))
	require.NoError(t, send(s, []string{"a@example.com"}, "Delivered-To: <forged@example.com>\nSubject: 2\n\nx"))
	was := s.Messages()
	s.Close()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "0000000007.eml"), []byte("Subject: stray\r\n\r\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "0000000003.eml.tmp"), []byte("Return-"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.eml"), nil, 0o600))

	s = start(t, mailsink.Config{Dir: dir})
	require.Equal(t, was, s.Messages())
	require.NoError(t, send(s, []string{"a@example.com"}, "Subject: 3\n\nx"))
	require.Equal(t, "0000000008", s.Messages()[0].ID, "a number is never given twice, and no file is overwritten")
}

func TestAMailThatCanNotBeStoredIsRefused(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "mail")
	s := start(t, mailsink.Config{Dir: dir})
	require.NoError(t, os.Remove(dir))
	require.Equal(t, 452, code(t, send(s, []string{"a@example.com"}, "Subject: 1\n\nx")))
	require.Empty(t, s.Messages())
}

func code(t *testing.T, err error) int {
	t.Helper()
	smtpErr, ok := errors.AsType[*smtp.SMTPError](err)
	require.True(t, ok, "%v", err)
	return smtpErr.Code
}

func TestLimits(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{MaxBytes: 2000, MaxRecipients: 2})
	require.Equal(t, 552, code(t, send(s, []string{"a@example.com"}, "Subject: 1\n\n"+strings.Repeat("x\n", 2000))))
	require.Equal(t, 452, code(t, send(s, []string{"a@example.com", "b@example.com", "c@example.com"}, "Subject: 2\n\nx")))
	require.Empty(t, s.Messages())
}

func TestFaults(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	mail := func() error { return send(s, []string{"a@example.com"}, "Subject: 1\n\nx") }
	count := func() int { return len(s.Messages()) }

	require.NoError(t, s.Fail(mailsink.Fault{Kind: mailsink.TempFail, Count: 2}))
	require.NoError(t, s.Fail(mailsink.Fault{Kind: mailsink.PermFail, Count: 1, At: mailsink.AtRecipient}))
	require.Equal(t, 550, code(t, mail()), "a fault at RCPT comes before those at the final dot")
	require.Equal(t, 451, code(t, mail()))
	require.Equal(t, []mailsink.Fault{{Kind: mailsink.TempFail, Count: 1, At: mailsink.AtData}}, s.Faults())
	require.Equal(t, 451, code(t, mail()))
	require.Zero(t, count())
	require.NoError(t, mail())
	require.Equal(t, 1, count())

	require.NoError(t, s.Fail(mailsink.Fault{Kind: mailsink.DropAfterData, Count: 1}))
	err := mail()
	require.Error(t, err)
	_, answered := errors.AsType[*smtp.SMTPError](err)
	require.False(t, answered, "%v", err)
	require.Equal(t, 2, count(), "the mail is kept")
	require.NoError(t, s.Fail(mailsink.Fault{Kind: mailsink.DropAfterData, Count: 1, Lose: true}))
	require.Error(t, mail())
	require.Equal(t, 2, count(), "the mail is lost")

	require.NoError(t, s.Fail(mailsink.Fault{Kind: mailsink.PermFail, Count: 1, To: "Other@Example.com"}))
	require.NoError(t, mail())
	require.Equal(t, 550, code(t, send(s, []string{"other@example.com"}, "Subject: 1\n\nx")))
	require.NoError(t, s.Fail(mailsink.Fault{Kind: mailsink.PermFail, Count: 1}))
	s.ClearFaults()
	require.NoError(t, mail())

	for _, bad := range []mailsink.Fault{
		{}, {Kind: "nonsense", Count: 1}, {Kind: mailsink.TempFail}, {Kind: mailsink.TempFail, Count: 1, At: "helo"},
		{Kind: mailsink.DropAfterData, Count: 1, At: mailsink.AtRecipient}, {Kind: mailsink.TempFail, Count: 1, Lose: true},
	} {
		require.Error(t, s.Fail(bad), "%+v", bad)
	}
}

func TestCloseCutsAndWaits(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	idle, err := net.Dial("tcp", s.Addr())
	require.NoError(t, err)
	defer idle.Close()
	greeting := make([]byte, 512)
	_, err = idle.Read(greeting)
	require.NoError(t, err)
	half, err := smtp.Dial(s.Addr())
	require.NoError(t, err)
	defer half.Close()
	require.NoError(t, half.Mail("a@example.com", nil))
	require.NoError(t, half.Rcpt("b@example.com", nil))
	data, err := half.Data()
	require.NoError(t, err)
	_, err = data.Write([]byte("Subject: never finished\r\n"))
	require.NoError(t, err)

	s.Close() // returns although both clients are still there
	_, err = idle.Read(greeting)
	require.Error(t, err)
	_, err = net.Dial("tcp", s.Addr())
	require.Error(t, err)
	require.Empty(t, s.Messages())
	s.Close()
}

func TestContextEndsIt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := mailsink.Start(ctx, mailsink.Config{})
	require.NoError(t, err)
	cancel()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", s.Addr())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, time.Minute, time.Millisecond)
	s.Close()
}

func TestATakenAddressIsAnError(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	_, err := mailsink.Start(t.Context(), mailsink.Config{Listen: s.Addr()})
	require.ErrorContains(t, err, "listen for mail")
}
