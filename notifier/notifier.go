package notifier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/failpoint"
)

// Config says how mail is sent. The zero value is for production.
type Config struct {
	// Lease is how long a claim keeps others from sending the same mail; it
	// must be longer than the sender may take. 45 s when 0.
	Lease   time.Duration
	Workers int          // mails sent at once; 4 when 0
	Limit   Limit        // of the mails that one address gets
	Logger  *slog.Logger // slog.Default when nil
}

// Sender hands a mail to a mail server. A [*Mailer] is one.
type Sender interface {
	Send(ctx context.Context, m Message) error
}

// Notifier sends the mail that notification.requested events ask for.
type Notifier struct {
	claims     claims
	allowances allowances
	sender     Sender
	cfg        Config
}

// New returns a notifier that keeps its claims in table mail of pool's
// database.
func New(pool *pgxpool.Pool, sender Sender, cfg Config) *Notifier {
	if cfg.Lease == 0 {
		cfg.Lease = 45 * time.Second
	}
	if cfg.Workers == 0 {
		cfg.Workers = 4
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Notifier{claims: claims{pool, cfg.Lease}, allowances: allowances{pool, cfg.Limit}, sender: sender, cfg: cfg}
}

// Handler is what the consumer loop calls.
func (n *Notifier) Handler() consumer.Handler { return consumer.Each(n.cfg.Workers, n.handle) }

// errHeld is answered while another notifier holds the claim: it is sending the
// mail right now, or it died and its lease has to run out.
var errHeld = errors.New("another notifier holds the claim on this mail")

// errLimit is answered while an address has had its share of mail.
var errLimit = errors.New("the recipient has got as much mail as the limit allows for now")

func (n *Notifier) handle(ctx context.Context, m consumer.Message) error {
	e := m.Event
	if e.Type != domain.NotificationRequested {
		return consumer.Permanent(fmt.Errorf("events of type %s can't be sent as mail", e.Type))
	}
	var request domain.Notification
	if err := json.Unmarshal(e.After, &request); err != nil {
		return consumer.Permanent(fmt.Errorf("notification %s: %w", e.ID, err))
	}
	message, err := Render(e.ID, request)
	if err != nil {
		return consumer.Permanent(fmt.Errorf("render notification %s: %w", e.ID, err))
	}
	got, attempt, err := n.claims.claim(ctx, e.ID)
	switch {
	case err != nil:
		return err
	case got == alreadySent:
		return nil
	case got == heldByOther:
		return errHeld
	}
	// What follows the claim ends it, also when a stop or a rebalance cuts the
	// sending short: otherwise the mail would wait for its lease.
	after := context.WithoutCancel(ctx)
	if err := failpoint.Hit(failpoint.NotifierClaimed); err != nil {
		return err
	}
	// Only now, so that mails which were sent long ago and are merely delivered
	// again take nothing of it.
	switch wait, err := n.allowances.take(ctx, message.To.Email); {
	case err != nil:
		return errors.Join(err, n.claims.release(after, e.ID, attempt, err.Error()))
	case wait > 0:
		return errors.Join(consumer.After(wait, errLimit), n.claims.release(after, e.ID, attempt, errLimit.Error()))
	}
	if err := n.sender.Send(ctx, message); err != nil {
		if Temporary(err) {
			return errors.Join(err, n.claims.release(after, e.ID, attempt, err.Error()))
		}
		if ferr := n.claims.fail(after, e.ID, attempt, err.Error()); ferr != nil {
			return errors.Join(err, ferr) // try again rather than park what is not noted
		}
		return consumer.Permanent(err)
	}
	// Dying here sends the mail twice: nobody can know that it was sent
	// (RFC 1047). Its Message-ID stays the same.
	if err := failpoint.Hit(failpoint.NotifierSent); err != nil {
		return err
	}
	if err := n.claims.mark(after, e.ID); err != nil {
		return err
	}
	return failpoint.Hit(failpoint.NotifierMarked)
}
