package notifier

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/domain"
)

// Limit is how many mails one address gets within a time. The zero value is no
// limit.
type Limit struct {
	Mails int
	Per   time.Duration
}

// allowances hold the limit for all notifiers on a database, by its clock, and
// across restarts: memory alone would forget at every rebalance.
//
// An address may get Mails at once, and gets one more for every Per/Mails that
// passes (the generic cell rate algorithm: one time per address says it all).
type allowances struct {
	pool  *pgxpool.Pool
	limit Limit
}

// One statement decides and notes it, so that two notifiers can't both take the
// last of an allowance. It also removes a few rows of addresses whose allowance
// has been whole for long, so that the table holds no more than the addresses
// that were written to lately.
const takeSQL = `
	WITH stale AS (
		DELETE FROM mail_allowances WHERE recipient = ANY (ARRAY(
			SELECT recipient FROM mail_allowances
			WHERE whole_at < statement_timestamp() - interval '1 hour' AND recipient <> $1
			ORDER BY whole_at LIMIT 5 FOR UPDATE SKIP LOCKED))
	)
	INSERT INTO mail_allowances AS a (recipient, whole_at) VALUES ($1, clock_timestamp() + $2::interval)
	ON CONFLICT (recipient) DO UPDATE SET whole_at = greatest(a.whole_at, clock_timestamp()) + $2::interval
	WHERE a.whole_at + $2::interval <= clock_timestamp() + $3::interval
	RETURNING true`

const waitSQL = `
	SELECT whole_at + $2::interval - $3::interval - clock_timestamp() FROM mail_allowances WHERE recipient = $1`

// take uses up one mail of an address's allowance. When there is none, it
// returns how long it takes until there is one.
func (a *allowances) take(ctx context.Context, to string) (wait time.Duration, err error) {
	if a.limit.Mails == 0 {
		return 0, nil
	}
	recipient := sha256.Sum256([]byte(domain.CanonicalEmail(to)))
	each := a.limit.Per / time.Duration(a.limit.Mails)
	var taken bool
	err = a.pool.QueryRow(ctx, takeSQL, recipient[:], each, a.limit.Per).Scan(&taken)
	if errors.Is(err, pgx.ErrNoRows) {
		err = a.pool.QueryRow(ctx, waitSQL, recipient[:], each, a.limit.Per).Scan(&wait)
		if errors.Is(err, pgx.ErrNoRows) { // it became stale just now
			return time.Millisecond, nil
		}
		wait = max(wait, time.Millisecond)
	}
	if err != nil {
		return 0, fmt.Errorf("look at the allowance of a recipient: %w", err)
	}
	return wait, nil
}
