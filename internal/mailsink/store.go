package mailsink

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// store keeps mails as files, or does nothing when dir is empty.
//
// A file is the mail as it came, behind the header lines that a mail server
// adds at delivery: Return-Path, one Delivered-To per recipient, and at last
// receivedHeader. All behind that line is the sender's.
type store struct {
	dir string
	log *slog.Logger
}

const (
	returnPathHeader  = "Return-Path: "
	deliveredToHeader = "Delivered-To: "
	receivedHeader    = "X-Mailsink-Received: " // RFC 3339 with nanoseconds

	suffix = ".eml"
)

func (s store) path(number int64) string { return filepath.Join(s.dir, id(number)+suffix) }

// load reads every mail of the directory, oldest first, and the greatest
// number that any file has. It makes the directory when it isn't there.
func (s store) load() ([]mail, int64, error) {
	if s.dir == "" {
		return nil, 0, nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, 0, err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, 0, err
	}
	var mails []mail
	var last int64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		number, err := strconv.ParseInt(name, 10, 64)
		if !ok || err != nil || number < 1 || name != id(number) {
			continue // not ours
		}
		last = max(last, number)
		var env envelope
		var raw []byte
		data, err := os.ReadFile(s.path(number))
		if err == nil {
			env, raw, err = parse(data)
		}
		if err != nil {
			s.log.Error("mail file skipped", "file", e.Name(), "error", err)
			continue
		}
		m := mail{Message: decode(env, raw), number: number}
		m.ID = id(number)
		mails = append(mails, m)
	}
	slices.SortFunc(mails, func(a, b mail) int { return strings.Compare(a.ID, b.ID) })
	return mails, last, nil
}

// write stores one mail. A file with the final name is always whole, also when
// the process is killed here: it is written aside and renamed.
func (s store) write(number int64, e envelope, raw []byte) error {
	if s.dir == "" {
		return nil
	}
	tmp := s.path(number) + ".tmp"
	if err := os.WriteFile(tmp, format(e, raw), 0o600); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, s.path(number))
}

func (s store) read(number int64) ([]byte, error) {
	data, err := os.ReadFile(s.path(number))
	if err != nil {
		return nil, err
	}
	_, raw, err := parse(data)
	return raw, err
}

func (s store) remove(number int64) {
	if s.dir == "" {
		return
	}
	if err := os.Remove(s.path(number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("mail file not removed", "error", err)
	}
}

func format(e envelope, raw []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s<%s>\r\n", returnPathHeader, e.from)
	for _, to := range e.to {
		fmt.Fprintf(&b, "%s<%s>\r\n", deliveredToHeader, to)
	}
	fmt.Fprintf(&b, "%s%s\r\n", receivedHeader, e.receivedAt.Format(time.RFC3339Nano))
	b.Write(raw)
	return b.Bytes()
}

// parse takes apart what format put together.
func parse(data []byte) (e envelope, raw []byte, err error) {
	for {
		line, rest, ok := bytes.Cut(data, []byte("\r\n"))
		if !ok {
			return envelope{}, nil, errors.New("not a file of this inbox")
		}
		data = rest
		text := string(line)
		if v, ok := strings.CutPrefix(text, returnPathHeader); ok {
			e.from = trimAngles(v)
		} else if v, ok := strings.CutPrefix(text, deliveredToHeader); ok {
			e.to = append(e.to, trimAngles(v))
		} else if v, ok := strings.CutPrefix(text, receivedHeader); ok {
			e.receivedAt, err = time.Parse(time.RFC3339Nano, v)
			return e, data, err
		} else {
			return envelope{}, nil, errors.New("not a file of this inbox")
		}
	}
}

func trimAngles(s string) string {
	return strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">")
}
