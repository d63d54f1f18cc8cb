package notifier

import (
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/failpoint/mutanttest"
	"outflow/internal/kafkatest"
	"outflow/internal/mailsink"
	"outflow/internal/pgtest"
)

// The mail server is away, comes, and is too busy for a while: every mail
// arrives, once, and none is parked.
func TestRow17SMTPIsDown(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	k := kafkatest.Start(t)
	k.CreateTopics(t, 3)
	n := New(pgtest.New(t).Pool, newMailer(t, MailerConfig{Addr: addr}), Config{Logger: slog.New(slog.DiscardHandler)})
	c := consumer.New(consumer.Config{
		Brokers: k.Brokers, Group: k.Namespace.Group("notifier"), Topics: []string{k.Namespace.Topic(domain.AggregateNotification)},
		Handler: n.Handler(), MinRetry: 10 * time.Millisecond, MaxRetry: 100 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler), Client: kafkatest.Opts(),
	})
	done := make(chan error, 1)
	go func() { done <- c.Run(t.Context()) }()
	t.Cleanup(func() { require.NoError(t, <-done) })
	const mails = 30
	for i := range mails {
		e := requested(t, fmt.Sprintf("c%d@example.com", i))
		e.AggregateType, e.Metadata, e.OccurredAt, e.Key = domain.AggregateNotification, []byte("{}"), testTime, eventID().String()
		k.Publish(t, e)
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, mutanttest.Patience(5*time.Minute), 10*time.Millisecond, what)
	}
	eventually("tries", func() bool { return c.Stats().Retried > 2*mails })
	require.Zero(t, c.Stats().Handled)
	sink, err := mailsink.Start(t.Context(), mailsink.Config{Listen: addr})
	require.NoError(t, err)
	t.Cleanup(sink.Close)
	require.NoError(t, sink.Fail(mailsink.Fault{Kind: mailsink.TempFail, Count: 2 * mails}))
	eventually("all of them", func() bool { return c.Stats().Handled == mails })
	require.Zero(t, c.Stats().Parked)
	to := map[string]int{}
	for _, m := range sink.Messages() {
		to[m.To[0]]++
	}
	require.Len(t, to, mails)
	require.Len(t, sink.Messages(), mails, "some came twice")
}
