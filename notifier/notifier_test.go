package notifier

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/mailsink"
	"outflow/internal/pgtest"
)

// newNotifier returns a notifier that sends to a sink.
func newNotifier(t *testing.T, cfg Config) (*Notifier, *mailsink.Sink) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts PostgreSQL")
	}
	sink := newSink(t)
	cfg.Logger = slog.New(slog.DiscardHandler)
	return New(pgtest.New(t).Pool, newMailer(t, MailerConfig{Addr: sink.Addr()}), cfg), sink
}

func requested(t *testing.T, to string) domain.Event {
	t.Helper()
	n := notification(domain.TemplateWelcome, nil)
	n.To.Email = to
	after, err := json.Marshal(n)
	require.NoError(t, err)
	return domain.Event{ID: eventID(), Type: domain.NotificationRequested, AggregateID: n.ID, AggregateVersion: 1, Key: n.CustomerID.String(), After: after}
}

func (n *Notifier) deliver(t *testing.T, e domain.Event) error {
	t.Helper()
	return errors.Join(n.Handler()(t.Context(), []consumer.Message{{Event: e}})...)
}

func TestMailsAreSentOnceHoweverOftenTheyAreDelivered(t *testing.T) {
	t.Parallel()
	n, sink := newNotifier(t, Config{Limit: Limit{Mails: 1, Per: time.Hour}})
	e := requested(t, "ada@example.com")
	for range 3 {
		require.NoError(t, n.deliver(t, e), "what was sent takes nothing of the limit")
	}
	require.Len(t, sink.Messages(), 1)
	var wg sync.WaitGroup
	e = requested(t, "eve@example.com")
	for range 20 {
		wg.Go(func() { _ = n.deliver(t, e) })
	}
	wg.Wait()
	require.Len(t, sink.Messages(), 2)
}

func TestRefusedMailIsTriedAgainOrParked(t *testing.T) {
	t.Parallel()
	n, sink := newNotifier(t, Config{})
	e := requested(t, "ada@example.com")
	require.NoError(t, sink.Fail(mailsink.Fault{Kind: mailsink.TempFail, Count: 1}))
	err := n.deliver(t, e)
	require.ErrorContains(t, err, "451")
	require.False(t, consumer.IsPermanent(err))
	require.NoError(t, sink.Fail(mailsink.Fault{Kind: mailsink.PermFail, Count: 1}))
	err = n.deliver(t, e)
	require.ErrorContains(t, err, "550")
	require.True(t, consumer.IsPermanent(err))
	require.NoError(t, n.deliver(t, e), "once it is retried from the dead letters")
	require.Len(t, sink.Messages(), 1)

	// The server has it, and could not say so.
	require.NoError(t, sink.Fail(mailsink.Fault{Kind: mailsink.DropAfterData, Count: 1}))
	e = requested(t, "eve@example.com")
	err = n.deliver(t, e)
	require.Error(t, err)
	require.False(t, consumer.IsPermanent(err))
	require.NoError(t, n.deliver(t, e))
	all := sink.Messages()
	require.Len(t, all, 3)
	require.Equal(t, all[0].MessageID, all[1].MessageID, "a duplicate that can be told as one")

	for name, e := range map[string]domain.Event{
		"of another type": {ID: eventID(), Type: domain.OrderPlaced},
		"not JSON":        {ID: eventID(), Type: domain.NotificationRequested, After: []byte("{")},
		"no template":     {ID: eventID(), Type: domain.NotificationRequested, After: []byte("{}")},
	} {
		require.True(t, consumer.IsPermanent(n.deliver(t, e)), name)
	}
}

// The limit holds for an address, however it is written, and for all notifiers
// of a database together.
func TestOneAddressGetsNoMoreMailThanTheLimit(t *testing.T) {
	t.Parallel()
	const most = 5
	limit := Limit{Mails: most, Per: time.Hour}
	first, sink := newNotifier(t, Config{Limit: limit})
	second := New(first.claims.pool, first.sender, Config{Limit: limit})
	var wg sync.WaitGroup
	var mu sync.Mutex
	later := 0
	for i := range 20 {
		n := []*Notifier{first, second}[i%2]
		e := requested(t, []string{"ada@example.com", "Ada@Example.com"}[i/2%2])
		wg.Go(func() {
			if err := n.deliver(t, e); err != nil {
				mu.Lock()
				defer mu.Unlock()
				later++
				if !errors.Is(err, errLimit) || consumer.IsPermanent(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, sink.Messages(), most)
	require.Equal(t, 20-most, later)
	require.NoError(t, first.deliver(t, requested(t, "eve@example.com")), "others get theirs")

	// It grows again with time.
	a := first.allowances
	wait, err := a.take(t.Context(), "ada@example.com")
	require.NoError(t, err)
	require.InDelta(t, (time.Hour / most).Seconds(), wait.Seconds(), 60)
	_, err = a.pool.Exec(t.Context(), `UPDATE mail_allowances SET whole_at = whole_at - interval '25 minutes'`)
	require.NoError(t, err)
	for _, want := range []bool{true, true, false} {
		wait, err := a.take(t.Context(), "ada@example.com")
		require.NoError(t, err)
		require.Equal(t, want, wait == 0)
	}
}

func TestAllowancesThatAreWholeAreForgotten(t *testing.T) {
	t.Parallel()
	n, _ := newNotifier(t, Config{Limit: Limit{Mails: 1, Per: time.Second}})
	a := n.allowances
	for i := range 12 {
		_, err := a.take(t.Context(), fmt.Sprint(i, "@example.com"))
		require.NoError(t, err)
	}
	_, err := a.pool.Exec(t.Context(), `UPDATE mail_allowances SET whole_at = whole_at - interval '2 hours'`)
	require.NoError(t, err)
	for range 3 {
		_, err := a.take(t.Context(), "ada@example.com")
		require.NoError(t, err)
		_, err = a.pool.Exec(t.Context(), `UPDATE mail_allowances SET whole_at = whole_at - interval '2 hours'`)
		require.NoError(t, err)
	}
	var left int
	require.NoError(t, a.pool.QueryRow(t.Context(), `SELECT count(*) FROM mail_allowances`).Scan(&left))
	require.Equal(t, 1, left)
}

func TestResend(t *testing.T) {
	t.Parallel()
	n, sink := newNotifier(t, Config{Limit: Limit{Mails: 1, Per: time.Hour}})
	e := requested(t, "ada@example.com")
	_, err := n.Resend(t.Context(), e)
	require.ErrorIs(t, err, ErrNotSent)
	require.NoError(t, sink.Fail(mailsink.Fault{Kind: mailsink.PermFail, Count: 1}))
	require.Error(t, n.deliver(t, e))
	_, err = n.Resend(t.Context(), e)
	require.ErrorIs(t, err, ErrParked)
	_, err = n.claims.pool.Exec(t.Context(), `DELETE FROM mail_allowances`)
	require.NoError(t, err)
	require.NoError(t, n.deliver(t, e))

	number, err := n.Resend(t.Context(), e)
	require.NoError(t, err, "the limit is for what nobody asked for")
	require.Equal(t, 1, number)
	for _, fault := range []string{mailsink.TempFail, mailsink.PermFail} {
		require.NoError(t, sink.Fail(mailsink.Fault{Kind: fault, Count: 1}))
		_, err = n.Resend(t.Context(), e)
		require.Error(t, err)
		require.NoError(t, n.deliver(t, e), "it stays sent")
	}
	number, err = n.Resend(t.Context(), e)
	require.NoError(t, err)
	require.Equal(t, 2, number)
	all := sink.Messages()
	require.Len(t, all, 3)
	for i, suffix := range []string{".r2", ".r1", ""} { // newest first
		require.Equal(t, "<"+e.ID.String()+suffix+"@outflow.shop.example>", all[i].MessageID)
		require.Equal(t, all[0].Text, all[i].Text)
	}

	_, err = n.claims.pool.Exec(t.Context(), `UPDATE mail SET claimed_until = now() + interval '1 minute'`)
	require.NoError(t, err)
	_, err = n.Resend(t.Context(), e)
	require.ErrorIs(t, err, ErrBeingSent)
	_, err = n.Resend(t.Context(), domain.Event{Type: domain.OrderPlaced})
	require.ErrorIs(t, err, ErrNotAMail)
}
