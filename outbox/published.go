package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// AwaitPublished returns once every event that was committed before the call is
// in Kafka, by what the relay group says of its progress; an error when ctx ends
// before, with what stood in the way. The relay itself need not run in this
// process.
func AwaitPublished(ctx context.Context, cfg Config) error {
	s := &session{Relay: NewRelay(cfg)}
	s.log = s.cfg.Logger
	m, err := takeMark(ctx, s.cfg.PostgresURL)
	if err != nil {
		return err
	}
	if s.kafka, err = kgo.NewClient(s.cfg.kafkaOpts()...); err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer s.kafka.Close()
	var why error
	for {
		p, err := s.readProgress(ctx)
		switch {
		case ctx.Err() != nil:
			return errors.Join(fmt.Errorf("wait for the relay %s to publish what is committed: %w", s.cfg.Group, context.Cause(ctx)), why)
		case err != nil: // no topic yet, or no broker: the relay may be about to start
			why = err
		case p == nil:
			why = errors.New("it has not begun")
		case p.System != m.system || p.Database != m.database:
			// As after a restore: where it was in the other one says nothing.
			why = errors.New("it has last published from another database")
		case m.passed(p):
			return nil
		default:
			why = nil
		}
		_ = pause(ctx, 100*time.Millisecond)
	}
}

// A mark is a moment in the outbox's database.
type mark struct {
	system   string
	database uint32

	lsn lsn    // of everything that was visible then, the commit is before it
	xid uint64 // and whatever shows this transaction shows that too
}

// takeMark also writes a little, so that a relay that has nothing to publish
// gets past the mark.
func takeMark(ctx context.Context, url string) (m mark, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return m, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var at string
	const place = `SELECT (SELECT system_identifier::text FROM pg_control_system()), (SELECT oid FROM pg_database WHERE datname = current_database()),
    pg_current_wal_insert_lsn()::text`
	if err := conn.QueryRow(ctx, place).Scan(&m.system, &m.database, &at); err != nil {
		return m, fmt.Errorf("read the log position: %w", err)
	}
	if err := m.lsn.UnmarshalText([]byte(at)); err != nil {
		return m, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint FROM pg_logical_emit_message(true, 'outflow', '')`).Scan(&m.xid)
	})
	if err != nil {
		return m, fmt.Errorf("mark the log: %w", err)
	}
	return m, nil
}

func (m mark) passed(p *progress) bool {
	if p.Phase == phaseStream {
		return p.LSN >= m.lsn
	}
	return p.Prev.shows(m.xid)
}
