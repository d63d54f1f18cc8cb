package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"outflow/internal/postgres"
	"outflow/migrations"
)

// A stand has what is needed to measure: servers, and outflow's binary.
type stand struct {
	options
	dir      string
	bin      postgres.Binaries
	postgres *postgres.Server
	outflow  string // the binary
	self     string // this binary, which also serves brokers and databases
	stderr   io.Writer
	bar      bool // stderr is a terminal

	count  atomic.Int64
	undone []func() error // what the figure at hand leaves, in the order of its making
}

func newStand(ctx context.Context, o options, stderr io.Writer) (_ *stand, err error) {
	s := &stand{options: o, stderr: stderr}
	if f, ok := stderr.(*os.File); ok {
		info, serr := f.Stat()
		s.bar = serr == nil && info.Mode()&os.ModeCharDevice != 0
	}
	if s.dir, err = os.MkdirTemp("", "outflow-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	// PostgreSQL runs as another user when this is root.
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return nil, err
	}
	if s.self, err = os.Executable(); err != nil {
		return nil, err
	}
	s.say("building outflow")
	s.outflow = filepath.Join(s.dir, "outflow")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", s.outflow, "outflow/cmd/outflow").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build outflow, which needs its source's folder: %w\n%s", err, out)
	}
	if o.pgBin != "" {
		s.bin, err = postgres.Find(o.pgBin)
	} else {
		s.bin, err = postgres.FindOrFetch(ctx, "", postgres.Show(stderr))
	}
	if err != nil {
		return nil, err
	}
	s.say("starting PostgreSQL")
	s.postgres, err = postgres.Start(ctx, postgres.Config{
		Dir: filepath.Join(s.dir, "postgres"), Bin: s.bin, Remove: true,
		Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "8GB", "max_connections": "200"},
	})
	if err != nil {
		return nil, err
	}
	if err := s.admin(ctx, `CREATE DATABASE migrated`); err != nil {
		return nil, err
	}
	if _, err = migrations.Up(ctx, s.postgres.DatabaseURL("migrated")); err != nil {
		return nil, err
	}
	err = s.durable(ctx)
	return s, err
}

func (s *stand) close() error {
	errs := []error{s.tidy()}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// later notes what is to be undone when the figure is measured.
func (s *stand) later(f func() error) { s.undone = append(s.undone, f) }

func (s *stand) tidy() error {
	var errs []error
	for len(s.undone) > 0 {
		last := len(s.undone) - 1
		f := s.undone[last]
		s.undone = s.undone[:last]
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// say tells what is being done: in one line that changes, on a terminal.
func (s *stand) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	switch {
	case s.bar:
		fmt.Fprintf(s.stderr, "\r\x1b[K%s", text)
	case text != "":
		fmt.Fprintln(s.stderr, text)
	}
}

// n is how many things to do, by --scale.
func (s *stand) n(of int) int { return max(1, int(float64(of)*s.scale)) }

func (s *stand) admin(ctx context.Context, sql string) (err error) {
	conn, err := pgx.Connect(ctx, s.postgres.URL())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

// database makes a database like another one, "migrated" being an empty one,
// and returns its name. It is dropped by drop, or when the figure is measured.
func (s *stand) database(ctx context.Context, like string) (name string, drop func() error, err error) {
	name = fmt.Sprintf("bench%d", s.count.Add(1))
	strategy := ""
	if s.bin.Major >= 15 {
		strategy = " STRATEGY file_copy"
	}
	if err := s.admin(ctx, `CREATE DATABASE `+name+` TEMPLATE `+like+strategy); err != nil {
		return "", nil, err
	}
	dropped := false
	drop = func() error {
		if dropped {
			return nil
		}
		dropped = true
		ctx := context.WithoutCancel(ctx)
		const slots = `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '%s'`
		return errors.Join(s.freeSlots(ctx, name), s.admin(ctx, fmt.Sprintf(slots, name)), s.admin(ctx, `DROP DATABASE `+name+` WITH (FORCE)`))
	}
	s.later(drop)
	return name, drop, nil
}

// freeSlots returns when nobody uses the slots of a database: the server notices
// late that whoever read from one has left.
func (s *stand) freeSlots(ctx context.Context, database string) error {
	const end = `SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE database = '%s' AND active`
	for begun := time.Now(); ; {
		n, err := s.queryInt(ctx, "postgres", fmt.Sprintf(end, database))
		if n == 0 || err != nil {
			return err
		}
		if time.Since(begun) > patience {
			return fmt.Errorf("%d replication slots of %s are in use", n, database)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *stand) url(database string) string { return s.postgres.DatabaseURL(database) }

func (s *stand) kafkaIs() string {
	if s.kafka != "" {
		return "a broker at " + s.kafka
	}
	return "kfake"
}

func (s *stand) mongoIs() string {
	if u, err := url.Parse(s.mongo); s.mongo != "" && err == nil {
		return "a server at " + u.Host
	}
	return "mongofake"
}

// environ is this process's environment without outflow's variables, but those
// that are given.
func environ(vars ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "OUTFLOW_") {
			env = append(env, kv)
		}
	}
	return append(env, vars...)
}
