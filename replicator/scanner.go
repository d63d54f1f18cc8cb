package replicator

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// scanner walks through JSON that was found valid, so that it has no errors to
// report. A replica is rebuilt and verified as fast as events are converted, and
// the tokens of encoding/json take ten times as long.
type scanner struct {
	json  string
	at    int
	names []string // of the members of the objects that are open
}

// next returns the first byte of what comes next.
func (s *scanner) next() byte {
	for {
		switch c := s.json[s.at]; c {
		case ' ', '\t', '\n', '\r', ',', ':':
			s.at++
		default:
			return c
		}
	}
}

// open passes the bracket of an object or an array.
func (s *scanner) open() {
	s.next()
	s.at++
}

// more reports whether another member or element comes, and passes the closing
// bracket when none does.
func (s *scanner) more(closing byte) bool {
	if s.next() != closing {
		return true
	}
	s.at++
	return false
}

// skip passes a literal.
func (s *scanner) skip(literal string) { s.at += len(literal) }

// text returns the string that comes next.
func (s *scanner) text() string {
	s.next()
	from := s.at + 1
	for end := from; ; end++ {
		switch c := s.json[end]; {
		case c == '"':
			s.at = end + 1
			if plain := s.json[from:end]; utf8.ValidString(plain) {
				return plain
			}
			return decoded(s.json[from-1 : s.at])
		case c == '\\':
			for ; s.json[end] != '"'; end++ {
				if s.json[end] == '\\' {
					end++
				}
			}
			s.at = end + 1
			return decoded(s.json[from-1 : s.at])
		}
	}
}

// decoded returns what a string of JSON says. What isn't UTF-8 is replaced, as
// encoding/json does.
func decoded(quoted string) string {
	var text string
	if err := json.Unmarshal([]byte(quoted), &text); err != nil {
		panic("replicator: decode a string that was found valid: " + err.Error())
	}
	return text
}

// number returns the number that comes next, as it is written; empty when
// something else does.
func (s *scanner) number() string {
	s.next()
	from := s.at
	for s.at < len(s.json) && strings.IndexByte("+-.0123456789Ee", s.json[s.at]) >= 0 {
		s.at++
	}
	return s.json[from:s.at]
}
