package e2e_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

// Customers get their mail from a server that refuses, hangs up and comes back,
// no faster than the limit allows, and again when they ask for it.
func TestMailFromAServerInTrouble(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	s := startSystem(t, 0, "--mail-faults", "tempfail:2,drop_after_data:1")
	s.env["OUTFLOW_MAIL_RATE"] = "2/s"
	for _, part := range []string{"relay", "confirm", "notify", "notify"} {
		s.run(part)
	}
	ada := s.createCustomer(map[string]any{"name": "Ada", "email": "ada@example.com"})
	// Two refusals, a mail whose answer is lost, and its duplicate.
	mails := s.mailTo("ada@example.com", 2)
	require.Equal(t, mails[0].MessageID, mails[1].MessageID)

	began := time.Now()
	for range 5 {
		s.order(s.placeOrder(ada.ID).ID, domain.OrderStatusConfirmed)
	}
	mails = s.mailTo("ada@example.com", 7)[2:]
	require.Greater(t, time.Since(began), time.Second, "at two a second, five mails take a second and a half")
	ids := map[string]bool{}
	for _, m := range mails {
		ids[m.MessageID] = true
	}
	require.Len(t, ids, 5, "none of them twice")

	resend := func(what string) (stdout, stderr string, status int) {
		return runOnce(t, s.environ(), "outflow", "mail", "resend", what)
	}
	out, problem, status := resend(mails[0].MessageID)
	require.Zero(t, status, problem)
	require.Equal(t, "sent again, as number 1\n", out)
	again := s.mailTo("ada@example.com", 8)[7]
	require.Equal(t, mails[0].Text, again.Text)
	require.Equal(t, strings.Replace(mails[0].MessageID, "@", ".r1@", 1), again.MessageID)
	_, problem, status = resend("01938f00-0000-7000-8000-000000000001")
	require.Equal(t, 1, status)
	require.Contains(t, problem, "the outbox has no event with this id")
	var placed domain.ID
	for _, e := range s.published(domain.AggregateOrder) {
		placed = e.ID
	}
	_, problem, status = resend(placed.String())
	require.Equal(t, 1, status)
	require.Contains(t, problem, "doesn't ask for a mail")

	// Limits in both the reason that the API gives and the mail.
	s.do("PATCH", "/api/customers/"+ada.ID.String(), map[string]any{"spending_limit": map[string]any{"amount": 5000, "currency": "EUR"}}, http.StatusOK)
	require.Equal(t, domain.ReasonLimitExceeded, s.order(s.placeOrder(ada.ID).ID, domain.OrderStatusRejected).Reason)
	s.do("PATCH", "/api/customers/"+ada.ID.String(), map[string]any{"spending_limit": map[string]any{"amount": 5000, "currency": "USD"}}, http.StatusOK)
	require.Equal(t, domain.ReasonCurrencyNotAccepted, s.order(s.placeOrder(ada.ID).ID, domain.OrderStatusRejected).Reason)
	last := s.mailTo("ada@example.com", 10)[8:]
	require.Contains(t, last[0].Text, "exceed the spending limit")
	require.Contains(t, last[1].Text, "in this currency")

	_, problem, status = runOnce(t, nil, "outflow-dev", "--mail-faults", "fire:1", "--data-dir", t.TempDir())
	require.Equal(t, 2, status)
	require.Contains(t, problem, "--mail-faults")
}
