package domain

import (
	"encoding/hex"
	"fmt"
	"time"
)

// ID identifies an entity or an event: a UUID (RFC 9562), version 7 where
// outflow makes it.
type ID [16]byte

// ParseID reads the canonical text form, in either case: 36 characters, no
// braces, no "urn:uuid:". It returns an error that does not repeat the input.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, errID
	}
	var compact [32]byte
	n := 0
	for i := range len(s) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			continue
		}
		compact[n] = s[i]
		n++
	}
	if _, err := hex.Decode(id[:], compact[:]); err != nil {
		return ID{}, errID
	}
	return id, nil
}

var errID = fmt.Errorf("not a UUID")

// MustParseID is [ParseID] for constants; it panics on anything but a UUID.
func MustParseID(s string) ID {
	id, err := ParseID(s)
	if err != nil {
		panic(fmt.Sprintf("domain.MustParseID(%q): %v", s, err))
	}
	return id
}

// String returns the canonical text form, in lower case.
func (id ID) String() string {
	return string(id.appendText(make([]byte, 0, 36)))
}

// IsZero reports whether id was never set.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements [encoding.TextMarshaler].
func (id ID) MarshalText() ([]byte, error) {
	return id.appendText(make([]byte, 0, 36)), nil
}

// AppendText implements [encoding.TextAppender].
func (id ID) AppendText(b []byte) ([]byte, error) { return id.appendText(b), nil }

func (id ID) appendText(b []byte) []byte {
	b = hex.AppendEncode(b, id[:4])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[4:6])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[6:8])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[8:10])
	b = append(b, '-')
	return hex.AppendEncode(b, id[10:])
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (id *ID) UnmarshalText(b []byte) error {
	parsed, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// Timestamp returns t in UTC, cut to the milliseconds that every store of
// outflow can hold.
func Timestamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
