package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// A lease is the advisory lock of a relay group, held on a connection of its
// own. Whoever has it is the active relay; the others stand by, so that
// nobody fences a healthy relay. Exactly once does not depend on it: that is
// what the transactional ids are for.
type lease struct{ conn *pgx.Conn }

// acquireLease waits until no other relay of the group is active.
func (s *session) acquireLease(ctx context.Context) (*lease, error) {
	cfg, err := pgx.ParseConfig(s.cfg.PostgresURL)
	if err != nil {
		return nil, fatalf("PostgreSQL's address: %w", err)
	}
	// The server must notice that this process is gone or paused, or a standby
	// would wait for ever: the first by TCP keepalives, the second by the
	// silence of the session.
	seconds := func(d time.Duration) string { return strconv.Itoa(max(1, int(d/time.Second))) }
	cfg.RuntimeParams["application_name"] = s.cfg.name() + " lease"
	cfg.RuntimeParams["idle_session_timeout"] = strconv.FormatInt(s.cfg.LeaseTimeout.Milliseconds(), 10)
	cfg.RuntimeParams["tcp_keepalives_idle"] = seconds(s.cfg.LeaseTimeout / 2)
	cfg.RuntimeParams["tcp_keepalives_interval"] = "1"
	cfg.RuntimeParams["tcp_keepalives_count"] = seconds(s.cfg.LeaseTimeout / 2)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	l := &lease{conn}
	for {
		// Not pg_advisory_lock: a statement that waits holds a snapshot, and
		// would keep VACUUM from its work for as long as the standby waits.
		var held bool
		err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, s.cfg.lockKey()).Scan(&held)
		if err == nil && held {
			return l, nil
		}
		if err == nil {
			s.setState(StateStandby)
			err = pause(ctx, min(s.cfg.StandbyInterval, s.cfg.LeaseTimeout/4))
		}
		if err != nil {
			l.release()
			return nil, fmt.Errorf("take the relay group's lock: %w", err)
		}
	}
}

var errLeaseLost = errors.New("the relay group's lock is lost: its connection ended")

// watch returns when the lease is lost or ctx is done. A connection that ends
// is noticed at once; a silent one after the time in which the server gives
// the lease to another.
func (l *lease) watch(ctx context.Context, timeout time.Duration) error {
	for {
		look, cancel := context.WithTimeout(ctx, timeout/8)
		_, err := l.conn.WaitForNotification(look)
		quiet := look.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !quiet || l.conn.IsClosed() {
			return fmt.Errorf("%w: %w", errLeaseLost, err)
		}
		ping, cancel := context.WithTimeout(ctx, timeout/2)
		_, err = l.conn.Exec(ping, `SELECT 1`)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errLeaseLost, err)
		}
	}
}

// release lets the next relay go on.
func (l *lease) release() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.conn.Close(ctx) // the server frees the lock either way
}
