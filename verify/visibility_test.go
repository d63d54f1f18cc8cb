package verify_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/failpoint/mutanttest"
	"outflow/internal/kafkatest"
	"outflow/internal/pgtest"
	"outflow/outbox"
	"outflow/store"
	"outflow/verify"
)

// standby is a system that follows, and whose PostgreSQL waits for a synchronous
// standby, from wait to release, when it commits what slow does, or others who
// connect with url. That is in the log then, and visible to nobody.
func standby(t *testing.T) (s *system, url string, slow *store.Store, wait, release func()) {
	t.Helper()
	t.Parallel()
	server := pgtest.NewServer(t)
	s = &system{t: t, pg: server.DB(t), Kafka: kafkatest.Start(t)}
	s.connect()
	url = s.pg.URL + "?options=-csynchronous_commit%3Don"
	if strings.Contains(s.pg.URL, "?") {
		url = s.pg.URL + "&options=-csynchronous_commit%3Don"
	}
	pool, err := store.Open(t.Context(), url, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	admin, err := pgx.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	t.Cleanup(func() { _ = admin.Close(context.Background()) })
	run := func(statements ...string) func() {
		return func() {
			for _, sql := range append(statements, `SELECT pg_reload_conf()`) {
				_, err := admin.Exec(context.Background(), sql)
				require.NoError(t, err)
			}
		}
	}
	configure := run(`ALTER SYSTEM SET synchronous_commit = local`, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	wait = func() {
		configure()
		s.awaitStandby(url)
	}
	release = run(`ALTER SYSTEM SET synchronous_standby_names = ''`)
	t.Cleanup(release)
	relay := outbox.NewRelay(s.relayConfig())
	s.run(relay.Run)
	require.Eventually(t, func() bool { return relay.Stats().State == outbox.StateStreaming }, 5*time.Minute, 10*time.Millisecond)
	s.replicate()
	return s, url, store.New(pool, store.Config{}), wait, release
}

// awaitStandby returns once commits wait: PostgreSQL's processes read their
// configuration when they come round to it.
func (s *system) awaitStandby(url string) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), url)
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	seen, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			if _, err := conn.Exec(context.Background(), `SELECT pg_current_xact_id()`); err != nil {
				ended <- err
				return
			}
			select {
			case <-seen:
				ended <- nil
				return
			default:
			}
		}
	}()
	s.awaitWaiting(1)
	close(seen)
	// It is committed all the same.
	_, err = s.pg.Pool.Exec(context.Background(), `SELECT pg_cancel_backend($1)`, conn.PgConn().PID())
	require.NoError(s.t, err)
	require.NoError(s.t, <-ended)
}

// waiting commits n changes that become visible when it is released.
func (s *system) waiting(n int, changes func() error) <-chan error {
	s.t.Helper()
	committed := make(chan error, 1)
	go func() { committed <- changes() }()
	s.awaitWaiting(n)
	return committed
}

// awaitWaiting returns once n commits wait for the standby.
func (s *system) awaitWaiting(n int) {
	assert.Eventually(s.t, func() bool {
		var waits int
		err := s.pg.Pool.QueryRow(context.Background(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&waits)
		return err == nil && waits >= n
	}, mutanttest.Patience(5*time.Minute), time.Millisecond)
}

// Neither is what is in the replica before it is visible in its source a fault,
// nor is it to be put back.
func TestWhatIsNotVisibleYetIsNotAccused(t *testing.T) {
	s, _, slow, wait, release := standby(t)
	ada := s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	wait()
	renamed := s.waiting(1, func() error {
		_, err := slow.UpdateCustomer(context.Background(), ada.ID, store.Precondition{}, func(c domain.Customer) (domain.CustomerInput, error) {
			c.Name = "Eve"
			return c.CustomerInput, nil
		}, domain.Metadata{})
		return err
	})
	created := s.waiting(2, func() error {
		_, err := slow.CreateCustomer(context.Background(), domain.CustomerInput{Name: "Bob", Email: "bob@example.com"}, domain.Metadata{})
		return err
	})
	require.Eventually(t, func() bool {
		n, err := s.db.Collection("_customers").CountDocuments(t.Context(), map[string]any{})
		return err == nil && n == 2 && s.doc("_customers", ada.ID)["version"] == int64(2)
	}, 5*time.Minute, 10*time.Millisecond)

	// A commit of verify's own comes after those that wait already.
	released := make(chan struct{})
	go func() {
		defer close(released)
		s.awaitWaiting(3)
		release()
	}()
	_, found = s.verify(func(v *verify.Replica) { v.Store, v.Repair = slow, true })
	<-released
	require.NoError(t, <-renamed)
	require.NoError(t, <-created)
	require.Empty(t, found)
	require.Equal(t, int64(2), s.doc("_customers", ada.ID)["version"])
}

func TestWhatIsNotVisibleYetIsNoPhantom(t *testing.T) {
	s, url, slow, wait, release := standby(t)
	s.customer()
	wait()
	created := s.waiting(1, func() error {
		_, err := slow.CreateCustomer(context.Background(), domain.CustomerInput{Name: "Bob", Email: "bob@example.com"}, domain.Metadata{})
		return err
	})
	require.Eventually(t, func() bool {
		n, err := s.db.Collection("_customers").CountDocuments(t.Context(), map[string]any{})
		return err == nil && n == 2
	}, 5*time.Minute, 10*time.Millisecond)
	released := make(chan struct{})
	go func() {
		defer close(released)
		s.awaitWaiting(2)
		release()
	}()
	_, found := s.verifyLog(func(l *verify.Log) {
		l.PostgresURL, l.Published = url, func(context.Context) error { return nil }
	})
	<-released
	require.NoError(t, <-created)
	require.Empty(t, found)
}
