package replicator

import (
	"encoding/binary"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"

	"outflow/domain"
)

// Builder makes the documents that [Document] makes, one after the other at the
// end of Bytes, for whoever has an entity's members apart and not as JSON:
// Begin, then Deleted or the members in the order of the JSON, then End. Names
// have to be those that the entity's type gives them, so they are not looked at.
type Builder struct {
	Bytes []byte

	at int32
	id []byte
	s  scanner
}

// Begin begins the document of a version of an entity.
func (d *Builder) Begin(id domain.ID, version int64) {
	d.id, _ = id.AppendText(d.id[:0]) // which never fails
	d.at, d.Bytes = bsoncore.AppendDocumentStart(d.Bytes)
	d.text("_id", d.id)
	d.Bytes = bsoncore.AppendInt64Element(d.Bytes, "version", version)
}

// Deleted makes the document a tombstone.
func (d *Builder) Deleted(at time.Time) { d.time(deletedAt, at) }

// Text adds a member that is a string of UTF-8.
func (d *Builder) Text(name string, text []byte) {
	if name != "id" { // which is _id
		d.text(name, text)
	}
}

func (d *Builder) text(name string, text []byte) {
	b := bsoncore.AppendHeader(d.Bytes, bsoncore.TypeString, name)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)+1))
	d.Bytes = append(append(b, text...), 0)
}

// Long adds a member that is a whole number.
func (d *Builder) Long(name string, n int64) {
	if name != "version" { // which comes first
		d.Bytes = bsoncore.AppendInt64Element(d.Bytes, name, n)
	}
}

// Time adds a member that is a time.
func (d *Builder) Time(name string, at time.Time) {
	if isDate(name) {
		d.time(name, at)
		return
	}
	d.text(name, at.AppendFormat(nil, time.RFC3339Nano))
}

func (d *Builder) time(name string, at time.Time) {
	d.Bytes = bsoncore.AppendDateTimeElement(d.Bytes, name, at.UnixMilli())
}

// JSON adds a member that is valid JSON. It returns an error for what BSON can't
// hold.
func (d *Builder) JSON(name string, value []byte) error {
	d.s.json, d.s.at, d.s.names = string(value), 0, d.s.names[:0]
	b, err := appendValue(d.Bytes, &d.s, name)
	if err != nil {
		return fmt.Errorf("convert %s: %w", name, err)
	}
	d.Bytes = b
	return nil
}

// End ends the document.
func (d *Builder) End() {
	d.Bytes = append(d.Bytes, 0)
	d.Bytes = bsoncore.UpdateLength(d.Bytes, d.at, int32(len(d.Bytes))-d.at)
}
