package notifier

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/domain"
)

// claims are the rows of table mail: who may send which mail, and which were
// sent.
//
//	(none) --claim--> claimed --mark--> sent
//	                  claimed --release--> claimed, but up for anyone
//	                  claimed --fail--> failed --claim--> claimed   (a retried dead letter)
//	                  sent --resend--> sent, once more             (see Notifier.Resend)
//
// A claim is a lease: when its holder dies, it is up for anyone once
// claimed_until has passed. The database's clock decides, for all notifiers.
type claims struct {
	pool  *pgxpool.Pool
	lease time.Duration
}

// claimed tells what came of a claim.
type claimed int

const (
	granted     claimed = iota // send it
	alreadySent                // nothing to do
	heldByOther                // someone else is sending it, or died doing so
)

// The insert and the guarded update are one statement, so that of two
// notifiers that want the same mail one gets a row back. state and
// claimed_until of the row that refused are read in a second statement: the
// first one's snapshot may be older than the row that it waited for.
const claimSQL = `
	INSERT INTO mail AS m (event_id, state, attempts, claimed_until)
	VALUES ($1, 'claimed', 1, clock_timestamp() + $2::interval)
	ON CONFLICT (event_id) DO UPDATE
	SET state = 'claimed', attempts = m.attempts + 1, error = '',
	    claimed_until = EXCLUDED.claimed_until, updated_at = clock_timestamp()
	WHERE m.state = 'failed' OR m.state = 'claimed' AND m.claimed_until <= clock_timestamp()
	RETURNING attempts`

const claimStateSQL = `SELECT state = 'sent' FROM mail WHERE event_id = $1`

// claim takes the lease on a mail. The attempt it returns names the claim: a
// holder whose lease ran out must not end its successor's.
func (c *claims) claim(ctx context.Context, event domain.ID) (_ claimed, attempt int, err error) {
	err = c.pool.QueryRow(ctx, claimSQL, [16]byte(event), c.lease).Scan(&attempt)
	if err == nil {
		return granted, attempt, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return 0, 0, fmt.Errorf("claim mail %s: %w", event, err)
	}
	var sent bool
	if err := c.pool.QueryRow(ctx, claimStateSQL, [16]byte(event)).Scan(&sent); err != nil {
		return 0, 0, fmt.Errorf("look at mail %s: %w", event, err)
	}
	if sent {
		return alreadySent, 0, nil
	}
	return heldByOther, 0, nil
}

const markSQL = `
	UPDATE mail SET state = 'sent', error = '', claimed_until = clock_timestamp(), updated_at = clock_timestamp()
	WHERE event_id = $1`

// mark notes that the server took the mail. It does so whoever holds the claim
// by now: the mail was sent, and that ends the matter for all.
func (c *claims) mark(ctx context.Context, event domain.ID) error {
	if _, err := c.pool.Exec(ctx, markSQL, [16]byte(event)); err != nil {
		return fmt.Errorf("mark mail %s as sent: %w", event, err)
	}
	return nil
}

const releaseSQL = `
	UPDATE mail SET claimed_until = clock_timestamp(), error = $3, updated_at = clock_timestamp()
	WHERE event_id = $1 AND attempts = $2 AND state = 'claimed'`

// release gives a claim back after an attempt that may be repeated.
func (c *claims) release(ctx context.Context, event domain.ID, attempt int, why string) error {
	if _, err := c.pool.Exec(ctx, releaseSQL, [16]byte(event), attempt, why); err != nil {
		return fmt.Errorf("release mail %s: %w", event, err)
	}
	return nil
}

const failSQL = `
	UPDATE mail SET state = 'failed', error = $3, updated_at = clock_timestamp()
	WHERE event_id = $1 AND attempts = $2 AND state = 'claimed'`

// fail notes that the mail can't be sent; its event is about to be parked.
func (c *claims) fail(ctx context.Context, event domain.ID, attempt int, why string) error {
	if _, err := c.pool.Exec(ctx, failSQL, [16]byte(event), attempt, why); err != nil {
		return fmt.Errorf("note that mail %s failed: %w", event, err)
	}
	return nil
}
