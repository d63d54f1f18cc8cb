package mongofake

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

// The wire protocol (specification "OP_MSG" in mongodb/specifications): OP_MSG,
// and for the first hello of older clients OP_QUERY, which is answered with
// OP_REPLY.
const (
	opReply = 1
	opQuery = 2004
	opMsg   = 2013

	headerLength = 16
	maxMessage   = 48_000_000
	// A driver may send a batch of maxMessage and its command around that.
	messageSlack = 16 << 10

	flagChecksum   = 1 << 0
	flagMoreToCome = 1 << 1
	// The lower half of the flags must be understood, the upper may be ignored.
	requiredFlags = 0xffff
)

var errWire = errors.New("malformed message")

// request is one command.
type request struct {
	id int32
	op int32
	// noReply is set by a client that wants no answer (write concern w: 0).
	noReply bool
	body    bson.D
	// documents are the command's document sequences (documents, updates,
	// deletes), by name. They are only read up to the end of the command.
	documents map[string][]bson.Raw
}

// readRequest reads one message. Its error is io.EOF if the client went away
// between two messages.
func readRequest(r io.Reader) (*request, error) {
	var header [headerLength]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	length := int64(binary.LittleEndian.Uint32(header[:]))
	if length < headerLength || length > maxMessage+messageSlack {
		return nil, fmt.Errorf("%w: length %d", errWire, length)
	}
	// A header may lie about the length: read as much as comes, so that a
	// handful of bytes doesn't cost 48 MB.
	message := make([]byte, 0, min(length, 64<<10))
	message = append(message, header[:]...)
	for int64(len(message)) < length {
		if len(message) == cap(message) {
			message = append(message, 0)[:len(message)]
		}
		part := message[len(message):min(int64(cap(message)), length)]
		n, err := io.ReadFull(r, part)
		message = message[:len(message)+n]
		if err != nil {
			return nil, io.ErrUnexpectedEOF
		}
	}
	return parseRequest(message)
}

// parseRequest parses a whole message. message must stay as it is until the
// command has been run.
func parseRequest(message []byte) (*request, error) {
	if len(message) < headerLength+4 {
		return nil, fmt.Errorf("%w: too short", errWire)
	}
	q := &request{
		id: int32(binary.LittleEndian.Uint32(message[4:])),
		op: int32(binary.LittleEndian.Uint32(message[12:])),
	}
	flags := binary.LittleEndian.Uint32(message[headerLength:])
	rest := message[headerLength+4:]
	switch q.op {
	case opQuery:
		return q, q.parseQuery(rest)
	case opMsg:
	default:
		return nil, fmt.Errorf("%w: operation %d", errWire, q.op)
	}
	if flags&requiredFlags&^(flagChecksum|flagMoreToCome) != 0 {
		return nil, fmt.Errorf("%w: flags %#x", errWire, flags)
	}
	q.noReply = flags&flagMoreToCome != 0
	if flags&flagChecksum != 0 {
		if len(rest) < 4 {
			return nil, fmt.Errorf("%w: no checksum", errWire)
		}
		end := len(message) - 4
		if crc32.Checksum(message[:end], crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(message[end:]) {
			return nil, fmt.Errorf("%w: checksum", errWire)
		}
		rest = rest[:len(rest)-4]
	}
	return q, q.parseSections(rest)
}

func (q *request) parseSections(rest []byte) error {
	for len(rest) > 0 {
		kind := rest[0]
		section, tail, ok := bsoncore.ReadDocument(rest[1:])
		if !ok {
			return fmt.Errorf("%w: section", errWire)
		}
		rest = tail
		switch kind {
		case 0:
			if q.body != nil {
				return fmt.Errorf("%w: two bodies", errWire)
			}
			var err error
			if q.body, err = decode(section); err != nil {
				return err
			}
		case 1:
			if err := q.parseSequence(section[4:]); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: section of kind %d", errWire, kind)
		}
	}
	if len(q.body) == 0 {
		return fmt.Errorf("%w: no command", errWire)
	}
	for name := range q.documents {
		if _, twice := lookup(q.body, name); twice {
			return fmt.Errorf("%w: %s comes twice", errWire, name)
		}
	}
	return nil
}

func (q *request) parseSequence(section []byte) error {
	name, rest, ok := bsoncore.ReadKey(section)
	if !ok || q.documents[name] != nil {
		return fmt.Errorf("%w: document sequence", errWire)
	}
	documents := []bson.Raw{}
	for len(rest) > 0 {
		var d bsoncore.Document
		if d, rest, ok = bsoncore.ReadDocument(rest); !ok || len(d) < 5 {
			return fmt.Errorf("%w: document sequence %q", errWire, name)
		}
		documents = append(documents, bson.Raw(d))
	}
	if q.documents == nil {
		q.documents = map[string][]bson.Raw{}
	}
	q.documents[name] = documents
	return nil
}

func (q *request) parseQuery(rest []byte) error {
	collection, rest, ok := bsoncore.ReadKey(rest)
	db, isCommand := strings.CutSuffix(collection, ".$cmd")
	if !ok || !isCommand || len(rest) < 8 {
		return fmt.Errorf("%w: OP_QUERY that is no command", errWire)
	}
	query, tail, ok := bsoncore.ReadDocument(rest[8:])
	if !ok || len(tail) > 0 {
		return fmt.Errorf("%w: OP_QUERY", errWire)
	}
	var err error
	if q.body, err = decode(query); err != nil {
		return err
	}
	if wrapped, ok := lookup(q.body, "$query"); ok { // beside $readPreference
		q.body, _ = wrapped.(bson.D)
	}
	if len(q.body) == 0 {
		return fmt.Errorf("%w: no command", errWire)
	}
	if _, ok := lookup(q.body, "$db"); !ok {
		q.body = append(q.body, bson.E{Key: "$db", Value: db})
	}
	return nil
}

// appendReply encodes the answer to q.
func appendReply(dst []byte, q *request, id int32, reply bson.D) []byte {
	le := binary.LittleEndian
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0) // the length, once it is known
	dst = le.AppendUint32(dst, uint32(id))
	dst = le.AppendUint32(dst, uint32(q.id))
	if q.op == opQuery {
		dst = le.AppendUint32(dst, opReply)
		dst = le.AppendUint32(dst, 8) // AwaitCapable
		dst = le.AppendUint64(dst, 0) // cursor
		dst = le.AppendUint32(dst, 0) // starting from
		dst = le.AppendUint32(dst, 1) // number of documents
	} else {
		dst = le.AppendUint32(dst, opMsg)
		dst = le.AppendUint32(dst, 0) // flags
		dst = append(dst, 0)          // a section with the body
	}
	dst = appendDocument(dst, reply)
	le.PutUint32(dst[start:], uint32(len(dst)-start))
	return dst
}
