package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A copied is the rows of a table in COPY's binary format.
type copied struct {
	table string
	rows  []byte
}

func (s *stand) copyOut(ctx context.Context, database string, tables ...string) (all []copied, err error) {
	conn, err := pgx.Connect(ctx, s.url(database))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	for _, t := range tables {
		var b bytes.Buffer
		// A partitioned table is copied by a query.
		if _, err := conn.PgConn().CopyTo(ctx, &b, `COPY (SELECT * FROM `+t+`) TO STDOUT (FORMAT binary)`); err != nil {
			return nil, err
		}
		all = append(all, copied{t, b.Bytes()})
	}
	return all, nil
}

// copyIn brings rows in, in one transaction.
func (s *stand) copyIn(ctx context.Context, database string, all []copied) (err error) {
	conn, err := pgx.Connect(ctx, s.url(database))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	if _, err := conn.Exec(ctx, `BEGIN`); err != nil {
		return err
	}
	for _, c := range all {
		if _, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(c.rows), `COPY `+c.table+` FROM STDIN (FORMAT binary)`); err != nil {
			return fmt.Errorf("copy into %s: %w", c.table, err)
		}
	}
	_, err = conn.Exec(ctx, `COMMIT`)
	return err
}

// streamLines posts NDJSON and counts the lines of the answer that tell of an
// entity that was made.
func streamLines(ctx context.Context, url string, body []byte) (done int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the import was answered %s", resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if !strings.Contains(lines.Text(), `"id":`) {
			return done, fmt.Errorf("a line was answered %s", lines.Text())
		}
		done++
	}
	return done, lines.Err()
}
