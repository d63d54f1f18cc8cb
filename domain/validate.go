package domain

import (
	"fmt"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of what an entity may hold. They keep every event far below the
// broker's limit for a record.
const (
	MaxName          = 200 // characters
	MaxEmail         = 254 // bytes (RFC 5321, 4.5.3.1.3)
	MaxPhone         = 50  // characters
	MaxAddressPart   = 200 // characters
	MaxMetadata      = 50  // entries
	MaxMetadataKey   = 40  // characters
	MaxMetadataValue = 500 // characters
	MaxItems         = 200 // lines of an order
	MaxSKU           = 64  // characters
	MaxQuantity      = 1_000_000
	MaxAmount        = 1_000_000_000_000_00 // minor units: a price, a total, a limit
)

// Validate returns CodeInvalid with every problem of the input, or nil.
func (in CustomerInput) Validate() error {
	var p problems
	text(&p, "name", in.Name, 1, MaxName)
	if strings.TrimSpace(in.Name) == "" && in.Name != "" {
		p.add("name", "must not be blank")
	}
	email(&p, "email", in.Email)
	text(&p, "phone", in.Phone, 0, MaxPhone)
	if a := in.Address; a != nil {
		for _, part := range []struct{ name, value string }{
			{"line1", a.Line1}, {"line2", a.Line2}, {"city", a.City}, {"region", a.Region}, {"postal_code", a.PostalCode},
		} {
			text(&p, "address."+part.name, part.value, 0, MaxAddressPart)
		}
		if a.Country != "" && !upper(a.Country, 2) {
			p.add("address.country", "must be an ISO 3166-1 alpha-2 code, such as DE")
		}
	}
	switch in.Status {
	case "", CustomerActive, CustomerSuspended, CustomerClosed:
	default:
		p.add("status", "must be active, suspended or closed")
	}
	if l := in.SpendingLimit; l != nil {
		amount(&p, "spending_limit.amount", l.Amount)
		currency(&p, "spending_limit.currency", l.Currency)
	}
	if len(in.Metadata) > MaxMetadata {
		p.add("metadata", fmt.Sprintf("must have at most %d entries", MaxMetadata))
	}
	for k, v := range in.Metadata {
		if before := len(p); before < 100 {
			if k == "" {
				p.add("metadata", "must not have an empty name")
			}
			text(&p, "metadata", k, 0, MaxMetadataKey)
			text(&p, "metadata", v, 0, MaxMetadataValue)
		}
	}
	return p.err()
}

// Validate returns CodeInvalid with every problem of the input, or nil.
func (in OrderInput) Validate() error {
	var p problems
	in.validate(&p)
	return p.err()
}

func (in OrderInput) validate(p *problems) {
	if in.CustomerID.IsZero() {
		p.add("customer_id", "is required")
	}
	currency(p, "currency", in.Currency)
	if len(in.Items) == 0 {
		p.add("items", "must have at least one item")
	}
	if len(in.Items) > MaxItems {
		p.add("items", fmt.Sprintf("must have at most %d items", MaxItems))
		return
	}
	for i, it := range in.Items {
		at := fmt.Sprintf("items[%d].", i)
		text(p, at+"sku", it.SKU, 1, MaxSKU)
		text(p, at+"name", it.Name, 0, MaxName)
		if it.Quantity < 1 || it.Quantity > MaxQuantity {
			p.add(at+"quantity", fmt.Sprintf("must be between 1 and %d", MaxQuantity))
		}
		amount(p, at+"unit_price", it.UnitPrice)
	}
	if total, ok := in.total(); len(*p) == 0 && (!ok || total > MaxAmount) {
		p.add("items", fmt.Sprintf("must add up to at most %d minor units", int64(MaxAmount)))
	}
}

// CanonicalEmail is the form in which emails are compared: without case. The
// part before the @ is compared without case too, because no provider that
// people use tells such addresses apart, and people mistype them.
func CanonicalEmail(s string) string { return strings.ToLower(s) }

func email(p *problems, path, s string) {
	if s == "" {
		p.add(path, "is required")
		return
	}
	if len(s) > MaxEmail {
		p.add(path, fmt.Sprintf("must be at most %d bytes long", MaxEmail))
		return
	}
	a, err := mail.ParseAddress(s)
	at := strings.LastIndexByte(s, '@')
	// ParseAddress also takes "Name <a@b>", comments and quoted parts; only the
	// plain form comes back as it was sent.
	if err != nil || a.Address != s || at < 1 || at > 64 || strings.ContainsAny(s, "\"\\ ()<>[]:;,") ||
		strings.ContainsFunc(s, invisible) || !hostname(s[at+1:]) {
		p.add(path, "must be an email address, such as ada@example.com")
	}
}

// invisible runes would make two addresses that look the same differ.
func invisible(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }

func hostname(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if r != '-' && !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsMark(r) {
				return false
			}
		}
	}
	return true
}

// text checks length in characters and refuses what no field of a line may
// hold: control characters (PostgreSQL refuses NUL, mail headers refuse line
// breaks) and bytes that are not UTF-8.
func text(p *problems, path, s string, minLen, maxLen int) {
	if !utf8.ValidString(s) {
		p.add(path, "must be valid UTF-8")
		return
	}
	switch n := utf8.RuneCountInString(s); {
	case n == 0 && minLen > 0:
		p.add(path, "is required")
	case n < minLen || n > maxLen:
		p.add(path, fmt.Sprintf("must be at most %d characters long", maxLen))
	}
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }) {
		p.add(path, "must not contain control characters")
	}
}

func amount(p *problems, path string, n int64) {
	if n < 0 || n > MaxAmount {
		p.add(path, fmt.Sprintf("must be between 0 and %d minor units", int64(MaxAmount)))
	}
}

func currency(p *problems, path, s string) {
	if !upper(s, 3) {
		p.add(path, "must be an ISO 4217 code, such as EUR")
	}
}

func upper(s string, n int) bool {
	return len(s) == n && strings.IndexFunc(s, func(r rune) bool { return r < 'A' || r > 'Z' }) < 0
}
