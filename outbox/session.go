package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

const (
	// stopGrace is how long a relay that is told to stop may take to commit
	// what it has begun.
	stopGrace = 10 * time.Second
	// upkeepInterval is how often partitions are made ahead.
	upkeepInterval = time.Minute
)

// A session is a relay's work from taking the lock to the first failure.
// Nothing of it is used again: after a failure it is unknown what was
// committed, and only initialising and reading progress anew tells.
type session struct {
	*Relay
	log   *slog.Logger
	db    *pgxpool.Pool
	kafka *kgo.Client // for questions; the producers are the publisher's

	server server
	slot   *slotMaker // nil when polling
}

// server is what identifies the database that is read.
type server struct {
	system   string
	timeline uint32
	database uint32
	walLevel string
}

func (r *Relay) session(ctx context.Context) (err error) {
	s := &session{Relay: r, log: r.cfg.Logger}
	if s.kafka, err = kgo.NewClient(r.cfg.kafkaOpts()...); err != nil {
		return fatalf("Kafka's address: %w", err)
	}
	defer s.kafka.Close()
	pool, err := pgxpool.ParseConfig(r.cfg.PostgresURL)
	if err != nil {
		return fatalf("PostgreSQL's address: %w", err)
	}
	pool.ConnConfig.RuntimeParams["application_name"] = r.cfg.name()
	pool.MaxConns = 4
	if s.db, err = pgxpool.NewWithConfig(ctx, pool); err != nil {
		return fatalf("PostgreSQL's address: %w", err)
	}
	defer s.db.Close()

	lease, err := s.acquireLease(ctx)
	if err != nil {
		return err
	}
	defer lease.release()

	// soft ends the reading and hard everything; soft ends with ctx, and hard
	// when what was begun then had its time. A failure ends both.
	soft, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	hard, kill := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(stopGrace, func() { kill(errors.New("what was begun took too long to finish")) })
	})()
	defer context.AfterFunc(hard, func() { stop(context.Cause(hard)) })()
	g, hard := errgroup.WithContext(hard)
	defer context.AfterFunc(hard, func() { stop(context.Cause(hard)) })()
	watching, done := context.WithCancel(hard)
	if !s.cfg.deaf {
		g.Go(func() error { return lease.watch(watching, s.cfg.LeaseTimeout) })
	}
	g.Go(func() error { s.upkeep(watching); return nil })
	g.Go(func() error { s.measure(watching); return nil })
	g.Go(func() error {
		defer done()
		return s.work(soft, hard)
	})
	err = g.Wait()
	kill(nil)
	return err
}

// work is what the active relay does.
func (s *session) work(soft, hard context.Context) error {
	var err error
	if s.server, err = s.identify(soft); err != nil {
		return err
	}
	if err := s.chooseSource(soft); err != nil {
		return err
	}
	if err := s.ensureTopics(soft); err != nil {
		return err
	}
	pub, err := s.newPublisher(soft)
	if err != nil {
		return err
	}
	defer pub.close()
	found, err := s.readProgress(soft)
	if err != nil {
		return err
	}
	if pub.ends, err = s.topicEnds(soft); err != nil {
		return err
	}
	pub.before = pub.ends.clone()
	if pub.done, err = s.begin(soft, found, pub.ends); err != nil {
		return err
	}
	if pub.done.Phase == phaseStream && s.slot == nil {
		if err := s.fallBack(soft, &pub.done); err != nil {
			return err
		}
	}
	for soft.Err() == nil {
		if pub.done.Phase == phaseStream {
			err = s.stream(soft, hard, pub)
		} else {
			err = s.windows(soft, hard, pub)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const identifyServer = `
SELECT (SELECT system_identifier::text FROM pg_control_system()), (SELECT oid FROM pg_database WHERE datname = current_database()),
       current_setting('wal_level'), pg_is_in_recovery(), to_regclass('outbox') IS NOT NULL`

func (s *session) identify(ctx context.Context) (server, error) {
	var srv server
	var standby, migrated bool
	if err := s.db.QueryRow(ctx, identifyServer).Scan(&srv.system, &srv.database, &srv.walLevel, &standby, &migrated); err != nil {
		return srv, fmt.Errorf("identify the PostgreSQL server: %w", err)
	}
	if standby {
		// Its snapshots leave out running transactions.
		return srv, errors.New("the PostgreSQL server is a hot standby: the relay waits for it to be promoted, or needs the primary's address")
	}
	if !migrated {
		return srv, errors.New("the database has no outbox: run the migrations (outflow migrate)")
	}
	var file string
	if err := s.db.QueryRow(ctx, `SELECT pg_walfile_name(pg_current_wal_insert_lsn())`).Scan(&file); err != nil {
		return srv, fmt.Errorf("identify the PostgreSQL server: %w", err)
	}
	timeline, err := strconv.ParseUint(file[:min(8, len(file))], 16, 32)
	if err != nil {
		return srv, fmt.Errorf("identify the PostgreSQL server: WAL file %q", file)
	}
	srv.timeline = uint32(timeline)
	return srv, nil
}

// upkeep makes partitions ahead. That it can't is no reason to stop relaying.
func (s *session) upkeep(ctx context.Context) {
	for {
		err := s.db.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return EnsurePartitions(ctx, c.Conn()) })
		if err != nil && ctx.Err() == nil {
			s.log.Error("outbox partitions can't be made ahead: inserts will fail when the last one is full", "err", err)
		}
		if pause(ctx, upkeepInterval) != nil {
			return
		}
	}
}

// phase runs a reader and the publisher until the reader has ended and all it
// read is published.
func (s *session) phase(soft, hard context.Context, pub *publisher, read func(ctx context.Context, out chan<- chunk) error) error {
	out := make(chan chunk, chunksAhead)
	g, hard := errgroup.WithContext(hard)
	reading, stop := context.WithCancelCause(soft)
	defer stop(nil)
	defer context.AfterFunc(hard, func() { stop(context.Cause(hard)) })()
	g.Go(func() error {
		defer close(out)
		err := read(reading, out)
		if soft.Err() != nil {
			return nil // told to stop: whatever the reader says, it was cut off
		}
		return err
	})
	g.Go(func() error { return pub.run(hard, out) })
	return g.Wait()
}

// send hands a chunk to the publisher.
func send(ctx context.Context, out chan<- chunk, c chunk) error {
	select {
	case out <- c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
