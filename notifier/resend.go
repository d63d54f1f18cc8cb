package notifier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"outflow/domain"
)

// A resend goes by the same row: the mail stays sent, whatever becomes of it,
// and claimed_until keeps two resends apart. What is counted is what was sent.
const (
	claimResendSQL = `
	UPDATE mail SET claimed_until = clock_timestamp() + $2::interval, attempts = attempts + 1
	WHERE event_id = $1 AND state = 'sent' AND claimed_until <= clock_timestamp()
	RETURNING attempts, resent`

	mailStateSQL = `SELECT state FROM mail WHERE event_id = $1`

	markResentSQL = `
	UPDATE mail SET resent = resent + 1, claimed_until = clock_timestamp(), updated_at = clock_timestamp()
	WHERE event_id = $1`

	endResendSQL = `
	UPDATE mail SET claimed_until = clock_timestamp() WHERE event_id = $1 AND attempts = $2 AND state = 'sent'`
)

// The reasons why a mail isn't sent again.
var (
	ErrNotSent   = errors.New("the mail was not sent yet: the notifier still has to")
	ErrParked    = errors.New("the mail could not be sent, and is parked: see 'outflow dlq list notifier'")
	ErrBeingSent = errors.New("the mail is being sent right now")
	ErrNotAMail  = errors.New("the event doesn't ask for a mail")
)

// Resend sends a mail that was sent before once more, and returns its
// number: 1 for the first resend. It has a Message-ID of its own: mail servers and programs drop what has the
// Message-ID of a mail that they have, which is right for a duplicate, and
// wrong for a mail that someone asks for again. When sending fails, the next
// try has the same one. The limit of the recipient's mails doesn't apply.
func (n *Notifier) Resend(ctx context.Context, e domain.Event) (number int, err error) {
	if e.Type != domain.NotificationRequested {
		return 0, ErrNotAMail
	}
	var request domain.Notification
	if err := json.Unmarshal(e.After, &request); err != nil {
		return 0, fmt.Errorf("notification %s: %w", e.ID, err)
	}
	m, err := Render(e.ID, request)
	if err != nil {
		return 0, fmt.Errorf("render notification %s: %w", e.ID, err)
	}
	attempt, resent, err := n.claims.claimResend(ctx, e.ID)
	if err != nil {
		return 0, err
	}
	m.Resend = resent + 1
	after := context.WithoutCancel(ctx)
	if err := n.sender.Send(ctx, m); err != nil {
		if _, eerr := n.claims.pool.Exec(after, endResendSQL, [16]byte(e.ID), attempt); eerr != nil {
			err = errors.Join(err, fmt.Errorf("end the resend of mail %s: %w", e.ID, eerr))
		}
		return 0, err
	}
	if _, err := n.claims.pool.Exec(after, markResentSQL, [16]byte(e.ID)); err != nil {
		return 0, fmt.Errorf("mail %s was sent again, but that could not be noted: %w", e.ID, err)
	}
	return m.Resend, nil
}

func (c *claims) claimResend(ctx context.Context, event domain.ID) (attempt, resent int, err error) {
	err = c.pool.QueryRow(ctx, claimResendSQL, [16]byte(event), c.lease).Scan(&attempt, &resent)
	if !errors.Is(err, pgx.ErrNoRows) {
		if err != nil {
			err = fmt.Errorf("claim mail %s: %w", event, err)
		}
		return attempt, resent, err
	}
	var state string
	err = c.pool.QueryRow(ctx, mailStateSQL, [16]byte(event)).Scan(&state)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, 0, ErrNotSent
	case err != nil:
		return 0, 0, fmt.Errorf("look at mail %s: %w", event, err)
	case state == "failed":
		return 0, 0, ErrParked
	case state == "claimed":
		return 0, 0, ErrNotSent
	}
	return 0, 0, ErrBeingSent
}
