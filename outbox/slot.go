package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The SQLSTATEs that this file tells apart.
const (
	insufficientPrivilege = "42501"
	invalidAuthorization  = "28000"
	objectInUse           = "55006"
	objectNotInState      = "55000"
	duplicateObject       = "42710"
)

func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// chooseSource finds out whether the outbox can be read by logical decoding.
func (s *session) chooseSource(ctx context.Context) error {
	if s.cfg.Source == SourcePoll {
		s.update(func(st *Stats) { st.Source, st.Reason = SourcePoll, "configured" })
		info, err := s.slotInfo(ctx)
		if err == nil && info.exists {
			s.log.Warn("the relay polls, and its replication slot keeps the server from removing old log: drop it if polling is to stay", "slot", s.cfg.slotName())
		}
		return err
	}
	problem, err := s.streamProblem(ctx)
	switch {
	case err != nil:
		return err
	case problem == "":
		s.slot = &slotMaker{session: s}
		s.update(func(st *Stats) { st.Source, st.Reason = SourceWAL, "the server and the role allow logical decoding" })
	case s.cfg.Source == SourceWAL:
		return fatalf("the outbox can't be read by logical decoding: %s", problem)
	default:
		s.log.Warn("the outbox is read by polling", "why", problem)
		s.update(func(st *Stats) { st.Source, st.Reason = SourcePoll, problem })
	}
	return nil
}

// streamProblem says why logical decoding is not possible, and what to do
// about it; "" if it is.
func (s *session) streamProblem(ctx context.Context) (string, error) {
	if s.server.walLevel != "logical" {
		return fmt.Sprintf("wal_level is %s: set it to logical in postgresql.conf and restart the server", s.server.walLevel), nil
	}
	conn, err := s.connectReplication(ctx)
	switch sqlState(err) {
	case insufficientPrivilege, invalidAuthorization:
		return fmt.Sprintf("the role may not replicate (%v): as a superuser, ALTER ROLE ... REPLICATION", err), nil
	}
	if err != nil {
		return "", err
	}
	closeConn(conn)
	return s.ensurePublication(ctx)
}

const publicationState = `
SELECT p.pubinsert AND p.pubviaroot, EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = 'outbox'::regclass) OR p.puballtables
FROM pg_publication p WHERE p.pubname = $1`

// ensurePublication makes the publication, and says what is wrong with one
// that is there. It must be there before the slot is: the past can only be
// decoded with a publication that existed then.
func (s *session) ensurePublication(ctx context.Context) (problem string, err error) {
	name := s.cfg.slotName()
	create := `CREATE PUBLICATION ` + pgx.Identifier{name}.Sanitize() + ` FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)`
	for range 2 {
		var options, table bool
		err = s.db.QueryRow(ctx, publicationState, name).Scan(&options, &table)
		switch {
		case err == nil && options && table:
			return "", nil
		case err == nil:
			return fmt.Sprintf("publication %s does not publish the inserts of table outbox via the partition root: drop it, and the relay makes it anew", name), nil
		case !errors.Is(err, pgx.ErrNoRows):
			return "", fmt.Errorf("look for the publication: %w", err)
		}
		_, err = s.db.Exec(ctx, create)
		switch sqlState(err) {
		case insufficientPrivilege:
			return fmt.Sprintf("the role may not create the publication (%v): as the owner of the outbox, run %s", err, create), nil
		case duplicateObject:
			err = nil
		}
		if err != nil {
			return "", fmt.Errorf("create the publication: %w", err)
		}
		s.log.Info("publication created", "publication", name)
	}
	return "", errors.New("the publication vanished while it was made")
}

// slotInfo is what is known of the replication slot.
type slotInfo struct {
	exists    bool
	database  string
	here      bool // it belongs to this database
	plugin    string
	lost      bool
	confirmed lsn
	activePID int
}

const slotState = `
SELECT coalesce(database, ''), database IS NOT DISTINCT FROM current_database(), coalesce(plugin, ''), coalesce(wal_status = 'lost', false),
       coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(active_pid, 0)
FROM pg_replication_slots WHERE slot_name = $1`

func (s *session) slotInfo(ctx context.Context) (slotInfo, error) {
	i := slotInfo{exists: true}
	var confirmed string
	err := s.db.QueryRow(ctx, slotState, s.cfg.slotName()).Scan(&i.database, &i.here, &i.plugin, &i.lost, &confirmed, &i.activePID)
	if errors.Is(err, pgx.ErrNoRows) {
		return slotInfo{}, nil
	}
	if err == nil {
		err = i.confirmed.UnmarshalText([]byte(confirmed))
	}
	if err != nil {
		return i, fmt.Errorf("look for the replication slot: %w", err)
	}
	if !i.here || i.plugin != "pgoutput" {
		return i, fatalf("replication slot %s belongs to database %q with plugin %q: slots are shared by the databases of a cluster; use another namespace or relay group for one of the two", s.cfg.slotName(), i.database, i.plugin)
	}
	return i, nil
}

// A slotMaker makes the replication slot while windows are published: the
// server waits for every open write transaction before a slot is ready.
type slotMaker struct {
	*session
	made chan error // of the attempt that runs, nil if none does
}

// ready reports whether the slot is there, and otherwise sees to it that it
// is being made.
func (m *slotMaker) ready(ctx context.Context) (bool, error) {
	if m.made == nil {
		info, err := m.slotInfo(ctx)
		if err != nil || info.exists && !info.lost && info.confirmed != 0 {
			return info.exists, err
		}
		if info.exists && !info.lost {
			// A relay that is gone had begun to make it.
			return false, m.freeSlot(ctx, info.activePID)
		}
		if info.lost {
			if _, err := m.db.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, m.cfg.slotName()); err != nil {
				return false, fmt.Errorf("drop the invalidated replication slot: %w", err)
			}
		}
		m.made = make(chan error, 1)
		go func() { m.made <- m.create(ctx) }()
	}
	select {
	case err := <-m.made:
		m.made = nil
		if err != nil && ctx.Err() == nil {
			m.log.Warn("the replication slot can't be made yet; publishing goes on by polling", "err", err)
			m.update(func(st *Stats) { st.LastError = err.Error() })
			return false, nil
		}
		return err == nil, nil
	default:
		return false, nil
	}
}

// wait returns when no attempt runs any more. Its context has ended.
func (m *slotMaker) wait() {
	if m.made != nil {
		<-m.made
		m.made = nil
	}
}

func (m *slotMaker) create(ctx context.Context) error {
	conn, err := m.connectReplication(ctx)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	_, err = pglogrepl.CreateReplicationSlot(ctx, conn, m.cfg.slotName(), "pgoutput", pglogrepl.CreateReplicationSlotOptions{
		Mode: pglogrepl.LogicalReplication, SnapshotAction: "NOEXPORT_SNAPSHOT",
	})
	if err != nil && sqlState(err) != duplicateObject {
		return fmt.Errorf("create replication slot %s: %w", m.cfg.slotName(), err)
	}
	m.log.Info("replication slot created", "slot", m.cfg.slotName())
	return nil
}

// freeSlot ends the connection of the relay that used the slot before: this
// one has the lock.
func (s *session) freeSlot(ctx context.Context, pid int) error {
	if pid == 0 {
		return nil
	}
	if _, err := s.db.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid); err != nil {
		return fmt.Errorf("end the connection that holds the replication slot: %w", err)
	}
	for range 100 {
		info, err := s.slotInfo(ctx)
		if err != nil || info.activePID != pid {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("the replication slot is held by process %d of the server, which does not end", pid)
}

func (s *session) connectReplication(ctx context.Context) (*pgconn.PgConn, error) {
	cfg, err := replicationConfig(s.cfg.PostgresURL, s.cfg.name())
	if err != nil {
		return nil, err
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL for replication: %w", err)
	}
	return conn, nil
}

func replicationConfig(url, name string) (*pgconn.Config, error) {
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		return nil, fatalf("PostgreSQL's address: %w", err)
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = name
	return cfg, nil
}

func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the server ends its side either way
}
