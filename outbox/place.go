package outbox

import (
	"encoding/binary"
	"errors"
)

// A Place is where a reader of a [Feed] is in the event log. The zero value is
// its beginning.
type Place struct {
	origin   uint64   // the history of a database that prev and now belong to; 0 at the beginning
	prev     snapshot // everything that it shows was read; zero at the beginning
	now      snapshot // the end of the window that was begun, zero between two windows
	position int64    // in that window, what was read up to
	epoch    int64    // rows up to it came from another cluster: they are in the first window
}

// from is the snapshot that the next window begins with.
func (p Place) from() snapshot {
	if p.prev.isZero() {
		return noTransactions
	}
	return p.prev
}

// Equal reports whether nothing lies between two places.
func (p Place) Equal(o Place) bool {
	return p.origin == o.origin && p.prev.equal(o.prev) && p.now.equal(o.now) && p.position == o.position && p.epoch == o.epoch
}

// placeFormat is the first byte of a place's binary form.
const placeFormat = 1

// MarshalBinary implements [encoding.BinaryMarshaler]. It never fails.
func (p Place) MarshalBinary() ([]byte, error) {
	b := binary.BigEndian.AppendUint64([]byte{placeFormat}, p.origin)
	b = binary.AppendUvarint(b, uint64(p.epoch))
	b = binary.AppendUvarint(b, uint64(p.position))
	for _, s := range [...]snapshot{p.prev, p.now} {
		// Snapshots of a busy server name many transactions, near to each other.
		b = binary.AppendUvarint(b, s.xmax)
		if s.isZero() {
			continue
		}
		b = binary.AppendUvarint(b, s.xmax-s.xmin)
		b = binary.AppendUvarint(b, uint64(len(s.xip)))
		last := s.xmin
		for _, xid := range s.xip {
			b = binary.AppendUvarint(b, xid-last)
			last = xid
		}
	}
	return b, nil
}

var errPlaceFormat = errors.New("not a place in the event log")

// UnmarshalBinary implements [encoding.BinaryUnmarshaler].
func (p *Place) UnmarshalBinary(b []byte) error {
	if len(b) < 9 || b[0] != placeFormat {
		return errPlaceFormat
	}
	d := placeDecoder{rest: b[9:]}
	read := Place{origin: binary.BigEndian.Uint64(b[1:])}
	read.epoch, read.position = int64(d.number()), int64(d.number())
	read.prev, read.now = d.snapshot(), d.snapshot()
	if d.bad || len(d.rest) > 0 || read.epoch < 0 || read.position < 0 {
		return errPlaceFormat
	}
	*p = read
	return nil
}

type placeDecoder struct {
	rest []byte
	bad  bool
}

func (d *placeDecoder) number() uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *placeDecoder) snapshot() snapshot {
	s := snapshot{xmax: d.number()}
	if s.isZero() {
		return s
	}
	back := d.number()
	s.xmin = s.xmax - back
	last := s.xmin
	for n := d.number(); n > 0 && !d.bad; n-- {
		next := last + d.number()
		d.bad = d.bad || next < last || next >= s.xmax || len(s.xip) > 0 && next == last
		s.xip = append(s.xip, next)
		last = next
	}
	d.bad = d.bad || s.xmin == 0 || back >= s.xmax
	return s
}
