package outbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A snapshot is a pg_snapshot: which transactions had ended when it was taken.
type snapshot struct {
	xmin, xmax uint64   // all below xmin have ended, none from xmax on
	xip        []uint64 // those between that had not, ascending
}

// noTransactions is a snapshot from before any transaction: 3 is the first
// ordinary transaction id.
var noTransactions = snapshot{xmin: 3, xmax: 3}

// shows reports whether a transaction had ended in s: whether its rows are
// visible, unless it was rolled back.
func (s snapshot) shows(xid uint64) bool {
	switch {
	case xid < s.xmin:
		return true
	case xid >= s.xmax:
		return false
	}
	_, running := slices.BinarySearch(s.xip, xid)
	return !running
}

func (s snapshot) equal(o snapshot) bool {
	return s.xmin == o.xmin && s.xmax == o.xmax && slices.Equal(s.xip, o.xip)
}

// isZero reports whether s stands for no snapshot at all.
func (s snapshot) isZero() bool { return s.xmax == 0 }

// String is the text form of pg_snapshot: xmin:xmax:xip,xip,...
func (s snapshot) String() string {
	if s.isZero() {
		return ""
	}
	return fmt.Sprintf("%d:%d:%s", s.xmin, s.xmax, joinXids(s.xip))
}

func joinXids(xids []uint64) string {
	var b []byte
	for i, x := range xids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, x, 10)
	}
	return string(b)
}

func parseSnapshot(text string) (snapshot, error) {
	bad := func() (snapshot, error) { return snapshot{}, fmt.Errorf("not a pg_snapshot: %q", text) }
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return bad()
	}
	var s snapshot
	var err error
	if s.xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return bad()
	}
	if s.xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil || s.xmin == 0 || s.xmax < s.xmin {
		return bad()
	}
	if parts[2] == "" {
		return s, nil
	}
	last := s.xmin
	for i, x := range strings.Split(parts[2], ",") {
		xid, err := strconv.ParseUint(x, 10, 64)
		if err != nil || xid < last || xid >= s.xmax || i > 0 && xid == last {
			return bad()
		}
		s.xip = append(s.xip, xid)
		last = xid
	}
	return s, nil
}

// MarshalText implements [encoding.TextMarshaler].
func (s snapshot) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *snapshot) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*s = snapshot{}
		return nil
	}
	*s, err = parseSnapshot(string(b))
	return err
}
