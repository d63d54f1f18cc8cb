package mailsink

import (
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// FuzzDecode throws anything at the decoder: it must come back, and what it
// says must be fit for JSON and a page. A file must give back the mail.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("Subject: =?utf-8?b?xIw=?=\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n"))
	f.Add([]byte("Subject: a\r\nContent-Type: text/html; charset=iso-2022-jp\r\nContent-Transfer-Encoding: base64\r\n\r\nGyRC\r\n"))
	f.Add([]byte("Content-Transfer-Encoding: quoted-printable\r\n\r\n=C3=\r\n=BC =ZZ"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e := envelope{from: "a@example.com", to: []string{"b@example.com"}, receivedAt: time.Unix(1_000_000_000, 5).UTC()}
		m := decode(e, raw)
		for _, s := range []string{m.From, m.Subject, m.MessageID, m.Text, m.HTML} {
			require.True(t, utf8.ValidString(s))
		}
		back, body, err := parse(format(e, raw))
		require.NoError(t, err)
		require.Equal(t, e, back)
		require.Equal(t, string(raw), string(body))
	})
}
