package notifier

import (
	"bytes"
	"embed"
	"fmt"
	htmltemplate "html/template"
	"io"
	"path"
	"strings"
	texttemplate "text/template"
	"time"
	"unicode"

	"outflow/domain"
)

// Message is a mail, ready to be sent. The same notification always gives the
// same message, so that a duplicate is one to the byte.
type Message struct {
	EventID domain.ID // the Message-ID is made of it
	Resend  int       // and of this: 0 for the first mail of the event, 1 for the first resend
	To      domain.Recipient
	Subject string
	Text    string
	HTML    string
	Date    time.Time
}

// Render writes the mail that a notification asks for. Its errors are final:
// the same notification fails again.
func Render(event domain.ID, n domain.Notification) (Message, error) {
	t, ok := templates[n.Template]
	if !ok {
		return Message{}, fmt.Errorf("there is no mail template %q", n.Template)
	}
	v := content{Name: line(n.To.Name)}
	if t.needsOrder {
		if n.Order == nil {
			return Message{}, fmt.Errorf("mail template %q needs an order", n.Template)
		}
		v.Order = viewOrder(*n.Order)
	}
	m := Message{EventID: event, To: domain.Recipient{Name: v.Name, Email: n.To.Email}, Date: n.CreatedAt}
	var b strings.Builder
	for _, part := range []struct {
		into *string
		run  func(io.Writer, any) error
	}{
		{&v.Subject, t.subject.Execute}, {&m.Text, t.text.Execute}, {&m.HTML, t.html.Execute},
	} {
		b.Reset()
		if err := part.run(&b, &v); err != nil {
			return Message{}, fmt.Errorf("mail template %q: %w", n.Template, err)
		}
		*part.into = strings.TrimSpace(b.String()) + "\n"
		v.Subject = strings.TrimSpace(v.Subject) // the HTML shows it too
	}
	m.Subject = v.Subject
	return m, nil
}

// content is what the templates see. Every string in it is one line.
type content struct {
	Subject string
	Name    string
	Order   *order
}

type order struct {
	ID     string
	Items  []item
	Total  string
	Reason string // a sentence, or ""
}

type item struct {
	Name     string // the SKU, where the item has no name
	SKU      string // "" where Name is it
	Quantity int64
	Each     string
	Sum      string
}

func viewOrder(o domain.Order) *order {
	currency := line(o.Currency)
	v := &order{ID: o.ID.String(), Total: formatMoney(o.Total, currency), Reason: reason(o.Reason)}
	for _, it := range o.Items {
		shown := item{
			Name: line(it.Name), SKU: line(it.SKU), Quantity: it.Quantity,
			Each: formatMoney(it.UnitPrice, currency),
			Sum:  formatMoney(it.Quantity*it.UnitPrice, currency),
		}
		if shown.Name == "" || shown.Name == shown.SKU {
			shown.Name, shown.SKU = shown.SKU, ""
		}
		v.Items = append(v.Items, shown)
	}
	return v
}

// reason puts a rejection in words. A reason that is newer than this program
// is still readable: its code, with spaces.
func reason(code string) string {
	switch code {
	case "":
		return ""
	case domain.ReasonCustomerSuspended:
		return "Your account is suspended, and we can't accept orders until it is active again."
	case domain.ReasonCustomerClosed:
		return "Your account is closed."
	case domain.ReasonLimitExceeded:
		return "Together with your recent orders it would exceed the spending limit of your account."
	case domain.ReasonCurrencyNotAccepted:
		return "We can't accept orders in this currency."
	}
	return "The reason is: " + strings.ReplaceAll(line(code), "_", " ") + "."
}

// line makes one line of a value: a line break in a name must neither start a
// header nor pass for a sentence of ours.
func line(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s))
}

// A mail template is two files: NAME.txt, which defines "subject" and "text",
// and NAME.html, which defines "body" for layout.html. A file with the word
// .Order in it needs an order.
//
//go:embed templates
var templateFiles embed.FS

type mailTemplate struct {
	subject, text *texttemplate.Template
	html          *htmltemplate.Template
	needsOrder    bool
}

// templates are the templates by name. They are part of the program, so that
// one that doesn't parse is found by the first test.
var templates = map[string]mailTemplate{
	domain.TemplateWelcome:        parseTemplate(domain.TemplateWelcome),
	domain.TemplateOrderConfirmed: parseTemplate(domain.TemplateOrderConfirmed),
	domain.TemplateOrderRejected:  parseTemplate(domain.TemplateOrderRejected),
	domain.TemplateOrderCancelled: parseTemplate(domain.TemplateOrderCancelled),
}

func parseTemplate(name string) mailTemplate {
	file := func(ext string) string { return path.Join("templates", name+ext) }
	text := texttemplate.Must(texttemplate.ParseFS(templateFiles, "templates/layout.txt", file(".txt")))
	source, err := templateFiles.ReadFile(file(".txt"))
	if err != nil {
		panic(err)
	}
	return mailTemplate{
		subject:    text.Lookup("subject"),
		text:       text.Lookup("layout.txt"),
		html:       htmltemplate.Must(htmltemplate.ParseFS(templateFiles, "templates/layout.html", file(".html"))),
		needsOrder: bytes.Contains(source, []byte(".Order")),
	}
}
