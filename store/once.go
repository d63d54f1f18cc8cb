package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
	"outflow/internal/failpoint"
)

// KeyLife is how long the answer to a request with an idempotency key is kept.
const KeyLife = 24 * time.Hour

const (
	keyConstraint = "idempotency_keys_pkey"

	// keyAttempts bounds how often a request is served again because its key
	// was taken by another one that then turned out to have left nothing.
	keyAttempts = 3

	cleanEvery = 10 * time.Minute
	cleanBatch = 1000
)

// Key is the idempotency key of one request, for [Store.Once].
type Key struct {
	Value       string // as the client chose it
	Fingerprint []byte // of the request: another one with this key is refused

	// Answer renders what the client is told when the write has taken place,
	// of the entity as it is then (a domain.Customer or domain.Order, or a slice
	// of them). It is called before the write, because its result is stored by
	// the same statement, and again for every attempt.
	Answer func(result any) Response

	saved bool
}

// Response is the answer to a request.
type Response struct {
	Status int
	Header map[string]string
	Body   []byte
}

// record is a row of idempotency_keys.
type record struct {
	key         string
	fingerprint []byte
	response    Response
	at          time.Time
}

// contextKey is where a Key is on its way through Once's write: which of the
// store's writes that is, and what it writes, is known only inside of it.
type contextKey struct{}

func (s *Store) keyOf(ctx context.Context) keyed {
	k, _ := ctx.Value(contextKey{}).(*Key)
	if failpoint.Mutant("store.no-keys") {
		k = nil
	}
	return keyed{k, s.cfg.Now}
}

// keyed is the key that a write has, if it has one.
type keyed struct {
	*Key
	now func() time.Time
}

// record is what the key was used for, once its write has this result.
func (k keyed) record(result any) *record {
	if k.Key == nil {
		return nil
	}
	return &record{key: k.Value, fingerprint: k.Fingerprint, response: k.Answer(result), at: k.now()}
}

// recordOf is the record of a change of one entity.
func (k keyed) recordOf(c *change) *record {
	switch {
	case c.customer != nil:
		return k.record(*c.customer)
	case c.order != nil:
		return k.record(*c.order)
	}
	return nil
}

// stored says that the write and its record are committed.
func (k keyed) stored() {
	if k.Key != nil {
		k.saved = true
	}
}

// insertKeys is the part of a statement that stores the records of those
// changes that it made, with parameters from $first on. Whoever has the key
// already makes all of the statement fail. Keys are inserted in one order
// everywhere, and after everything that is locked.
func insertKeys(first int) string {
	return fmt.Sprintf(`, recorded AS (
    INSERT INTO idempotency_keys (key, fingerprint, status, header, body, created_at)
    SELECT k.key, k.fingerprint, k.status, k.header, k.body, k.created_at
    FROM unnest($%d::uuid[], $%d::text[], $%d::bytea[], $%d::int[], $%d::json[], $%d::bytea[], $%d::timestamptz[])
        AS k (entity_id, key, fingerprint, status, header, body, created_at)
    WHERE (k.entity_id IN (SELECT id FROM changed)) IS TRUE
    ORDER BY k.key
)`, first, first+1, first+2, first+3, first+4, first+5, first+6)
}

func keyArgs(changes []change) []any {
	var with []change
	for _, c := range changes {
		if c.record != nil {
			with = append(with, c)
		}
	}
	return []any{
		column(with, func(c change) pgtype.UUID { return uuidOf(c.id) }),
		column(with, func(c change) string { return c.record.key }),
		column(with, func(c change) []byte { return c.record.fingerprint }),
		column(with, func(c change) int32 { return int32(c.record.response.Status) }),
		column(with, func(c change) []byte { return jsonOf(c.record.response.Header, false) }),
		column(with, func(c change) []byte { return c.record.response.Body }),
		column(with, func(c change) pgtype.Timestamptz { return timeOf(c.record.at) }),
	}
}

const insertKey = `INSERT INTO idempotency_keys (key, fingerprint, status, header, body, created_at) VALUES ($1, $2, $3, $4, $5, $6)`

func (r *record) args() []any {
	return []any{r.key, r.fingerprint, r.response.Status, jsonOf(r.response.Header, false), r.response.Body, timeOf(r.at)}
}

// settle stores the record of a write that found nothing to change.
func (s *Store) settle(ctx context.Context, result any) error {
	key := s.keyOf(ctx)
	if key.Key == nil || key.saved {
		return nil
	}
	_, err := s.pool.Exec(ctx, insertKey, key.record(result).args()...)
	if err == nil {
		key.stored()
	}
	return err
}

const (
	selectKey  = `SELECT fingerprint, status, header, body, created_at FROM idempotency_keys WHERE key = $1`
	deleteKey  = `DELETE FROM idempotency_keys WHERE key = $1 AND created_at = $2`
	deleteKeys = `DELETE FROM idempotency_keys WHERE key = ANY (ARRAY(
    SELECT key FROM idempotency_keys WHERE created_at <= $1 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))`
)

// Once makes one write of the store, which write does with the context that it
// gets, take place at most once per key: the answer is stored by the statement
// that makes the change. For [KeyLife] after that, Once doesn't call write any
// more and returns the answer that was stored; in any other case it returns
// nil and what write returned.
//
// What was refused or failed has changed nothing, leaves nothing behind, and
// is decided anew when it comes again. While a request with the key is being
// served, others with it wait. In one process they wait for its end; in two,
// both are served until their statements meet, and then the second is taken
// back and gets the answer of the first.
//
// Once returns CodeKeyReused when the key was used for another request, and
// CodeKeyInFlight when one with the key takes longer than Config.KeyWait.
func (s *Store) Once(ctx context.Context, key *Key, write func(context.Context) error) (*Response, error) {
	const doing = "look an idempotency key up"
	leave, err := s.keys.enter(ctx, key.Value, s.cfg.KeyWait)
	if err != nil {
		return nil, err
	}
	defer leave()
	for attempt := 1; ; attempt++ {
		answer, err := s.answered(ctx, key)
		if err != nil || answer != nil {
			return answer, wrap(doing, err)
		}
		key.saved = false
		err = write(context.WithValue(ctx, contextKey{}, key))
		if err == nil || ctx.Err() != nil {
			return nil, err
		}
		// Whatever stood in its way: it may be what the same request did, in
		// another process or over a connection that broke when it was committed.
		if answer, aerr := s.answered(ctx, key); aerr == nil && answer != nil || domain.CodeOf(aerr) == domain.CodeKeyReused {
			return answer, aerr
		}
		if !keyTaken(err) || attempt == keyAttempts {
			return nil, err
		}
	}
}

func keyTaken(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == uniqueViolation && pg.ConstraintName == keyConstraint
}

// answered returns the answer that is stored for a key, nil for none.
func (s *Store) answered(ctx context.Context, key *Key) (*Response, error) {
	var r record
	err := s.read(ctx, reading{sql: selectKey, args: []any{key.Value}, scan: func(row pgx.Row) (func(), error) {
		var got record
		err := row.Scan(&got.fingerprint, &got.response.Status, &got.response.Header, &got.response.Body, &got.at)
		return func() { r = got }, err
	}})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !r.at.After(s.cfg.Now().Add(-KeyLife)) {
		_, err := s.pool.Exec(ctx, deleteKey, key.Value, timeOf(r.at))
		return nil, err
	}
	if !bytes.Equal(r.fingerprint, key.Fingerprint) {
		return nil, &domain.Error{Code: domain.CodeKeyReused, Message: "the idempotency key was used for another request"}
	}
	return &r.response, nil
}

// keysInFlight are the keys of the requests that this process is serving.
type keysInFlight struct {
	mu   sync.Mutex
	done map[string]chan struct{} // closed when the request has been served
}

// enter waits until no other request with the key is being served. The caller
// calls leave when its own has been.
func (k *keysInFlight) enter(ctx context.Context, key string, wait time.Duration) (leave func(), err error) {
	var timeout <-chan time.Time
	for {
		k.mu.Lock()
		other := k.done[key]
		if other == nil {
			if k.done == nil {
				k.done = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			k.done[key] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.done, key)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		if timeout == nil {
			t := time.NewTimer(wait)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-other:
		case <-timeout:
			return nil, &domain.Error{Code: domain.CodeKeyInFlight, Message: "a request with this idempotency key is still being served"}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// cleanKeys removes expired keys until ctx is done. A key that is not removed
// yet counts as expired all the same.
func (s *Store) cleanKeys(ctx context.Context) {
	tick := time.NewTicker(cleanEvery)
	defer tick.Stop()
	for {
		n, err := s.RemoveExpiredKeys(ctx)
		s.counters.keysRemoved.Add(n)
		if err != nil && ctx.Err() == nil {
			s.counters.cleanErrors.Add(1)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// RemoveExpiredKeys removes the idempotency keys that have expired, some at a
// time, and returns how many there were. Several processes may do it at once.
func (s *Store) RemoveExpiredKeys(ctx context.Context) (int64, error) {
	var n int64
	for {
		tag, err := s.pool.Exec(ctx, deleteKeys, timeOf(s.cfg.Now().Add(-KeyLife)), cleanBatch)
		n += tag.RowsAffected()
		if err != nil || tag.RowsAffected() < cleanBatch {
			return n, wrap("remove expired idempotency keys", err)
		}
	}
}
