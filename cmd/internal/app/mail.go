package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"outflow/domain"
	"outflow/notifier"
	"outflow/outbox"
	"outflow/store"
)

// ResendMail sends the mail that an event asked for once more, and returns the
// number of the resend.
func ResendMail(ctx context.Context, cfg Config, id domain.ID, log *slog.Logger) (number int, err error) {
	pool, err := store.Open(ctx, cfg.PostgresURL, cfg.PostgresMaxConns)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	mailer, err := newMailer(cfg)
	if err != nil {
		return 0, err
	}
	defer mailer.Close()
	e, err := outbox.Find(ctx, pool, id)
	if err != nil {
		return 0, err
	}
	number, err = newNotifier(pool, mailer, cfg, log).Resend(ctx, e)
	if errors.Is(err, notifier.ErrNotAMail) {
		return 0, fmt.Errorf("event %s is of type %s: %w; name an event of type %s", id, e.Type, err, domain.NotificationRequested)
	}
	return number, err
}
