package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A decoding reads a database's outbox by logical decoding and knows nothing
// of what it reads: the least that a relay can do.
type decoding struct {
	*stand
	database string
	slot     string
}

// decoding makes a publication of the outbox and a slot: what is committed from
// now on can be read.
func (s *stand) decoding(ctx context.Context, database string) (*decoding, error) {
	d := &decoding{stand: s, database: database, slot: database + "_limit"}
	return d, s.exec(ctx, database,
		`CREATE PUBLICATION `+d.slot+` FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)`,
		`SELECT pg_create_logical_replication_slot('`+d.slot+`', 'pgoutput')`)
}

const (
	readAhead = 1 << 20
	// lazily is how long a drain sleeps before it reads: a reader that is woken
	// for every message takes time from the process that decodes.
	lazily = 400 * time.Microsecond
)

// A lazyReader sleeps before it reads.
type lazyReader struct {
	io.Reader
	sleep time.Duration
}

func (r lazyReader) Read(b []byte) (int, error) {
	if r.sleep > 0 {
		time.Sleep(r.sleep)
	}
	return r.Reader.Read(b)
}

// messages calls each with every message of pgoutput until it returns false.
func (d *decoding) messages(ctx context.Context, sleep time.Duration, each func(m []byte) (more bool, err error)) error {
	cfg, err := pgconn.ParseConfig(d.url(d.database))
	if err != nil {
		return err
	}
	cfg.RuntimeParams["replication"] = "database"
	lazy := &lazyReader{}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		lazy.Reader = r
		return pgproto3.NewFrontend(bufio.NewReaderSize(lazy, readAhead), w)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // the server may be in the middle of a message
	}()
	err = pglogrepl.StartReplication(ctx, conn, d.slot, 0, pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication, PluginArgs: []string{"proto_version '1'", "publication_names '" + d.slot + "'", "binary 'true'"},
	})
	if err != nil {
		return err
	}
	lazy.sleep = sleep
	defer context.AfterFunc(ctx, func() { _ = conn.Conn().SetReadDeadline(time.Unix(1, 0)) })()
	for {
		msg, err := conn.Frontend().Receive()
		if err != nil {
			if _, late := errors.AsType[net.Error](err); late && ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		data, ok := msg.(*pgproto3.CopyData)
		switch {
		case !ok:
			return fmt.Errorf("the server ended the replication with %T", msg)
		case data.Data[0] == 'k' && data.Data[17] != 0:
			// That something was read keeps the connection; the slot stays.
			if err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: 1, WALFlushPosition: 1, WALApplyPosition: 1}); err != nil {
				return err
			}
		case data.Data[0] == 'w':
			if more, err := each(data.Data[25:]); err != nil || !more {
				return err
			}
		}
	}
}

// drain reads n transactions as fast as the server decodes them, and drops them.
func (d *decoding) drain(ctx context.Context, n int) (sample, error) {
	var begun time.Time
	commits, inserts := 0, 0
	err := d.messages(ctx, lazily, func(m []byte) (bool, error) {
		switch m[0] {
		case 'B':
			if begun.IsZero() {
				begun = time.Now()
			}
		case 'I':
			inserts++
		case 'C':
			if inserts > commits {
				commits++
			}
		}
		return commits < n, nil
	})
	if err == nil && inserts != n {
		err = fmt.Errorf("%d events of %d were decoded", inserts, n)
	}
	return rate(n, begun), err
}

// An insertion is a row of the outbox, as pgoutput sends it.
type insertion struct{ values map[string][]byte }

// insertions calls each with the rows that are committed, until it returns false.
func (d *decoding) insertions(ctx context.Context, each func(insertion) (more bool, err error)) error {
	var columns []string
	return d.messages(ctx, 0, func(m []byte) (bool, error) {
		switch m[0] {
		case 'R':
			columns = relationColumns(m)
		case 'I':
			row := insertion{map[string][]byte{}}
			at := m[8:]
			for _, name := range columns {
				kind := at[0]
				at = at[1:]
				if kind == 'b' || kind == 't' {
					size := binary.BigEndian.Uint32(at)
					row.values[name] = append([]byte(nil), at[4:4+size]...)
					at = at[4+size:]
				}
			}
			return each(row)
		}
		return true, nil
	})
}

// relationColumns are the names in a relation's message: oid, schema, name,
// replica identity, and for each column flags, name, type and modifier.
func relationColumns(m []byte) (names []string) {
	text := func(b []byte) (string, []byte) {
		s, _, _ := strings.Cut(string(b), "\x00")
		return s, b[len(s)+1:]
	}
	_, rest := text(m[5:])
	_, rest = text(rest)
	n := binary.BigEndian.Uint16(rest[1:])
	rest = rest[3:]
	for range n {
		var name string
		name, rest = text(rest[1:])
		names, rest = append(names, name), rest[8:]
	}
	return names
}
