package api

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is how deep arrays and objects of a body may be nested; what the
// API describes needs three levels.
const maxDepth = 16

// kind is a JSON type.
type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	array
	object
)

// value is a JSON value as it was sent.
type value struct {
	kind    kind
	text    string // what a string says; a number or boolean as it was written
	items   []value
	members []member
}

// member is a name and its value in an object.
type member struct {
	name string
	value
}

// parse reads one JSON value as RFC 8259 and I-JSON (RFC 7493) have it, and is
// stricter than encoding/json: a name given twice, bytes that are not UTF-8,
// half a surrogate pair and anything after the value are errors. Two parsers
// that disagree about such a body are a way past validation. Its errors say
// where, never what.
//
// The values share the memory of body.
func parse(body string) (value, error) {
	if !utf8.ValidString(body) {
		return value{}, errors.New("the body is not valid UTF-8")
	}
	p := parser{s: body}
	p.space()
	if p.at == len(p.s) {
		return value{}, errors.New("the body is empty; JSON is expected")
	}
	v, err := p.value(0)
	if err != nil {
		return value{}, err
	}
	if p.space(); p.at < len(p.s) {
		return value{}, p.fail("there is more after the JSON value")
	}
	return v, nil
}

type parser struct {
	s  string
	at int
}

func (p *parser) fail(what string) error { return fmt.Errorf("%s at byte %d", what, p.at+1) }

func (p *parser) unexpected() error {
	if p.at >= len(p.s) {
		return p.fail("the JSON ends too early")
	}
	return p.fail("the JSON is malformed")
}

func (p *parser) space() {
	for p.at < len(p.s) {
		switch p.s[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// next skips white space and returns the byte after it, or 0 at the end.
func (p *parser) next() byte {
	p.space()
	if p.at == len(p.s) {
		return 0
	}
	return p.s[p.at]
}

func (p *parser) value(depth int) (value, error) {
	switch c := p.next(); {
	case c == '{':
		return p.object(depth + 1)
	case c == '[':
		return p.array(depth + 1)
	case c == '"':
		s, err := p.string()
		return value{kind: text, text: s}, err
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	default:
		return p.word()
	}
}

func (p *parser) word() (value, error) {
	for _, w := range [...]value{{kind: null, text: "null"}, {kind: boolean, text: "true"}, {kind: boolean, text: "false"}} {
		if strings.HasPrefix(p.s[p.at:], w.text) {
			p.at += len(w.text)
			return w, nil
		}
	}
	return value{}, p.unexpected()
}

func (p *parser) object(depth int) (value, error) {
	v := value{kind: object}
	if depth > maxDepth {
		return v, p.fail(fmt.Sprintf("the JSON is nested deeper than %d levels", maxDepth))
	}
	p.at++
	if p.next() == '}' {
		p.at++
		return v, nil
	}
	var names map[string]struct{} // once a walk over the members would take long
	for {
		if p.next() != '"' {
			return v, p.unexpected()
		}
		from := p.at
		name, err := p.string()
		if err != nil {
			return v, err
		}
		if len(v.members) == 16 {
			names = make(map[string]struct{}, 64)
			for i := range v.members {
				names[v.members[i].name] = struct{}{}
			}
		}
		if v.has(name, names) {
			p.at = from
			return v, p.fail("an object has the same name twice")
		}
		if names != nil {
			names[name] = struct{}{}
		}
		if p.next() != ':' {
			return v, p.unexpected()
		}
		p.at++
		m, err := p.value(depth)
		if err != nil {
			return v, err
		}
		v.members = append(v.members, member{name, m})
		switch p.next() {
		case ',':
			p.at++
		case '}':
			p.at++
			return v, nil
		default:
			return v, p.unexpected()
		}
	}
}

func (v *value) has(name string, names map[string]struct{}) bool {
	if names != nil {
		_, ok := names[name]
		return ok
	}
	for i := range v.members {
		if v.members[i].name == name {
			return true
		}
	}
	return false
}

func (p *parser) array(depth int) (value, error) {
	v := value{kind: array}
	if depth > maxDepth {
		return v, p.fail(fmt.Sprintf("the JSON is nested deeper than %d levels", maxDepth))
	}
	p.at++
	if p.next() == ']' {
		p.at++
		return v, nil
	}
	for {
		item, err := p.value(depth)
		if err != nil {
			return v, err
		}
		v.items = append(v.items, item)
		switch p.next() {
		case ',':
			p.at++
		case ']':
			p.at++
			return v, nil
		default:
			return v, p.unexpected()
		}
	}
}

func (p *parser) number() (value, error) {
	from := p.at
	if p.s[p.at] == '-' {
		p.at++
	}
	if p.at < len(p.s) && p.s[p.at] == '0' {
		p.at++
	} else if !p.digits() {
		return value{}, p.unexpected()
	}
	if p.at < len(p.s) && p.s[p.at] == '.' {
		if p.at++; !p.digits() {
			return value{}, p.unexpected()
		}
	}
	if p.at < len(p.s) && p.s[p.at]|0x20 == 'e' {
		p.at++
		if p.at < len(p.s) && (p.s[p.at] == '+' || p.s[p.at] == '-') {
			p.at++
		}
		if !p.digits() {
			return value{}, p.unexpected()
		}
	}
	return value{kind: number, text: p.s[from:p.at]}, nil
}

// digits skips digits and reports whether there was one.
func (p *parser) digits() bool {
	from := p.at
	for p.at < len(p.s) && '0' <= p.s[p.at] && p.s[p.at] <= '9' {
		p.at++
	}
	return p.at > from
}

// string reads the string that begins at p. Without escapes, which is the rule,
// it copies nothing.
func (p *parser) string() (string, error) {
	p.at++
	from := p.at
	for p.at < len(p.s) {
		switch c := p.s[p.at]; {
		case c == '"':
			s := p.s[from:p.at]
			p.at++
			return s, nil
		case c == '\\':
			return p.escaped(from)
		case c < ' ':
			return "", p.fail("a string has a control character that is not escaped")
		default:
			p.at++
		}
	}
	return "", p.unexpected()
}

func (p *parser) escaped(from int) (string, error) {
	b := append(make([]byte, 0, p.at-from+32), p.s[from:p.at]...)
	for p.at < len(p.s) {
		c := p.s[p.at]
		switch {
		case c == '"':
			p.at++
			return string(b), nil
		case c < ' ':
			return "", p.fail("a string has a control character that is not escaped")
		case c != '\\':
			b = append(b, c)
			p.at++
			continue
		}
		if p.at++; p.at == len(p.s) {
			break
		}
		c = p.s[p.at]
		if c == 'u' {
			r, ok := p.unicode()
			if !ok {
				return "", p.fail("a string has a bad \\u escape")
			}
			b = utf8.AppendRune(b, r)
			continue
		}
		i := strings.IndexByte(`"\/bfnrt`, c)
		if i < 0 {
			return "", p.unexpected()
		}
		b = append(b, "\"\\/\b\f\n\r\t"[i])
		p.at++
	}
	return "", p.unexpected()
}

// unicode reads uXXXX, and the second half of a surrogate pair behind it.
func (p *parser) unicode() (rune, bool) {
	first, ok := p.hex()
	if !ok || !utf16.IsSurrogate(first) {
		return first, ok
	}
	if !strings.HasPrefix(p.s[p.at:], `\u`) {
		return 0, false
	}
	p.at++
	second, ok := p.hex()
	r := utf16.DecodeRune(first, second)
	return r, ok && r != utf8.RuneError
}

func (p *parser) hex() (rune, bool) {
	if p.at+5 > len(p.s) {
		return 0, false
	}
	n, err := strconv.ParseUint(p.s[p.at+1:p.at+5], 16, 16)
	p.at += 5
	return rune(n), err == nil
}
