package mailsink

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"net/textproto"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"
)

// Limits that keep a hostile mail from taking more than its size: nested
// multiparts are followed this deep, and so many parts are looked at.
const (
	maxDepth = 10
	maxParts = 200
)

var words = mime.WordDecoder{CharsetReader: charset}

// decode makes a mail readable. It never fails: what can't be decoded is shown
// as it came, since the one who looks wants to know just that.
func decode(e envelope, raw []byte) Message {
	m := Message{To: slices.Clone(e.to), From: e.from, ReceivedAt: e.receivedAt}
	if m.To == nil {
		m.To = []string{}
	}
	msg, err := netmail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		m.Text = plain(raw)
		return m
	}
	if from := header(msg.Header.Get("From")); from != "" {
		m.From = from
	}
	m.Subject = header(msg.Header.Get("Subject"))
	m.MessageID = strings.TrimSpace(valid(msg.Header.Get("Message-Id")))
	if date, err := msg.Header.Date(); err == nil {
		m.Date = date.UTC()
	}
	parts := maxParts
	(&parser{message: &m, parts: &parts}).part(textproto.MIMEHeader(msg.Header), msg.Body, 0)
	return m
}

type parser struct {
	message *Message
	parts   *int
}

// part takes the first text and the first HTML that it comes by, in the order
// of the mail; attachments are left out.
func (p *parser) part(h textproto.MIMEHeader, body io.Reader, depth int) {
	if *p.parts--; *p.parts < 0 {
		return
	}
	mediaType, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		mediaType, params = "text/plain", nil // RFC 2045, 5.2
	}
	if strings.HasPrefix(mediaType, "multipart/") && params["boundary"] != "" {
		if depth >= maxDepth {
			return
		}
		for r := multipart.NewReader(body, params["boundary"]); ; {
			sub, err := r.NextRawPart()
			if err != nil {
				return
			}
			p.part(sub.Header, sub, depth+1)
		}
	}
	if disposition, _, _ := mime.ParseMediaType(h.Get("Content-Disposition")); disposition == "attachment" {
		return
	}
	var into *string
	switch mediaType {
	case "text/plain":
		into = &p.message.Text
	case "text/html":
		into = &p.message.HTML
	default:
		return
	}
	if *into != "" {
		return
	}
	switch strings.ToLower(strings.TrimSpace(h.Get("Content-Transfer-Encoding"))) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	if r, err := charset(params["charset"], body); err == nil {
		body = r
	}
	data, _ := io.ReadAll(body) // on an error the part up to it
	*into = plain(data)
}

// charset decodes to UTF-8 from whatever browsers know.
func charset(name string, r io.Reader) (io.Reader, error) {
	switch strings.ToLower(name) {
	case "", "utf-8", "us-ascii":
		return r, nil
	}
	enc, err := htmlindex.Get(name)
	if err != nil {
		return nil, err
	}
	return enc.NewDecoder().Reader(r), nil
}

// header decodes RFC 2047 words, and takes the value as it is when it can't.
func header(s string) string {
	if decoded, err := words.DecodeHeader(s); err == nil {
		s = decoded
	}
	return strings.TrimSpace(valid(s))
}

func plain(data []byte) string {
	return valid(strings.ReplaceAll(string(data), "\r\n", "\n"))
}

func valid(s string) string { return strings.ToValidUTF8(s, string(utf8.RuneError)) }
