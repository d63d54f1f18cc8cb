package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/domain"
	"outflow/outbox"
)

// Config is what a [Store] can be told. The zero value is for production.
type Config struct {
	Now   func() time.Time // the clock of created_at, updated_at and events; time.Now when nil
	NewID func() domain.ID // makes the ids of entities and events; UUIDv7 when nil

	// Committers is how many shared statements of one kind may be under way at
	// once; 3 when 0. See [Store.Run].
	Committers int

	// KeyWait is how long a request waits for another one with the same
	// idempotency key; 5 s when 0. See [Store.Once].
	KeyWait time.Duration

	// VelocityWindow is the time over which spending limits hold, until now; 6 h
	// when 0. See [Store.DecideOrders].
	VelocityWindow time.Duration
}

// Store reads and writes customers and orders. Any number of goroutines and
// processes may use one database.
type Store struct {
	pool *pgxpool.Pool
	cfg  Config

	shared   atomic.Pointer[committers] // nil while the store doesn't run
	reading  atomic.Pointer[readers]    // the same
	counters counters
	keys     keysInFlight
	feed     *outbox.Feed
}

// New returns a store over a pool that [Open] made, or one that is configured
// like it.
func New(pool *pgxpool.Pool, cfg Config) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.NewID == nil {
		cfg.NewID = func() domain.ID { return domain.ID(uuid.Must(uuid.NewV7())) }
	}
	if cfg.Committers == 0 {
		cfg.Committers = 3
	}
	if cfg.KeyWait == 0 {
		cfg.KeyWait = 5 * time.Second
	}
	if cfg.VelocityWindow == 0 {
		cfg.VelocityWindow = 6 * time.Hour
	}
	return &Store{pool: pool, cfg: cfg, feed: outbox.NewFeed(pool, outbox.FeedConfig{})}
}

// Ping returns CodeUnavailable unless the database answers.
func (s *Store) Ping(ctx context.Context) error {
	return wrap("ping the database", s.pool.Ping(ctx))
}

// Precondition is what a caller demands of the entity that it changes. The
// zero value demands nothing.
type Precondition struct {
	OneOf  []int64 // the versions that it may have; any when nil, none when empty
	NoneOf []int64 // the versions that it may not have
	Absent bool    // it must not be there
}

// AtVersion demands one version.
func AtVersion(version int64) Precondition { return Precondition{OneOf: []int64{version}} }

// Check returns CodeVersionMismatch if an entity that is at this version is
// not what is demanded.
func (p Precondition) Check(version int64) error {
	if p.Absent || p.OneOf != nil && !slices.Contains(p.OneOf, version) || slices.Contains(p.NoneOf, version) {
		return &domain.Error{Code: domain.CodeVersionMismatch, Message: fmt.Sprintf("the entity is at version %d, which the request does not accept", version)}
	}
	return nil
}

// maxAttempts bounds how often a write is tried again.
const maxAttempts = 8

// retry runs a write again as long as it returns an error that says that
// nothing was written and that trying again may help. When it still doesn't,
// the error is CodeWriteConflict.
func retry(ctx context.Context, write func() error) error {
	for attempt := 1; ; attempt++ {
		err := write()
		if err == nil || !retryable(err) {
			return err
		}
		if attempt == maxAttempts {
			return conflict(err)
		}
		// Those who collided must not collide again.
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(attempt) * int64(4*time.Millisecond))))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}

// retryable reports whether err says that nothing was written and that the
// same write may succeed now.
func retryable(err error) bool {
	return errors.Is(err, errMoved) || rolledBackByOthers(err) || pgconn.SafeToRetry(err)
}

// errMoved says that an entity's version changed between reading and writing.
var errMoved = errors.New("others changed the entity meanwhile")

// collect reads all rows of a query. The slice is never nil.
func collect[T any](rows pgx.Rows, scan func(pgx.Row) (T, error)) ([]T, error) {
	items := []T{}
	defer rows.Close()
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, rows.Err()
}
