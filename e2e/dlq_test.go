package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

// fault asks the mail sink to misbehave.
func (c *client) fault(fault string) {
	c.t.Helper()
	resp, err := http.Post(c.inbox+"/faults", "application/json", bytes.NewReader([]byte(fault)))
	require.NoError(c.t, err)
	require.NoError(c.t, resp.Body.Close())
	require.Equal(c.t, http.StatusCreated, resp.StatusCode)
}

// parkedMail is what `outflow dlq list --json` tells.
type parkedMail struct {
	Worker string
	ID     int64
	Behind *int64
	Key    string
	Reason string
	Type   string
	Data   struct{ After domain.Notification }
}

// dlq runs `outflow dlq`, which must end with the given status.
func (s *system) dlq(status int, args ...string) (stdout, stderr string) {
	s.stack.t.Helper()
	stdout, stderr, got := runOnce(s.stack.t, s.environ(), "outflow", append([]string{"dlq"}, args...)...)
	require.Equal(s.stack.t, status, got, "%s%s", stdout, stderr)
	return stdout, stderr
}

func (s *system) parked(worker string) []parkedMail {
	s.stack.t.Helper()
	out, _ := s.dlq(0, "list", worker, "--json")
	var all []parkedMail
	require.NoError(s.stack.t, json.Unmarshal([]byte(out), &all))
	return all
}

// Mail that the server refuses for good is parked, and what else the customer
// is to be told waits behind it, while all others get theirs. Operators find
// it, and have it sent in order or dropped.
func TestParkedMailIsListedRetriedAndDropped(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	s := startSystem(t, 1)
	out, _ := s.dlq(0, "list")
	require.Equal(t, "nothing is parked\n", out)

	s.fault(`{"kind": "permfail", "count": 2, "to": "ada@example.com"}`)
	ada := s.createCustomer(map[string]any{"name": "Ada", "email": "ada@example.com"})
	orders := []domain.Order{s.placeOrder(ada.ID), s.placeOrder(ada.ID)}
	for _, o := range orders {
		s.order(o.ID, domain.OrderStatusConfirmed)
	}
	eve := s.createCustomer(map[string]any{"name": "Eve", "email": "eve@example.com"})
	s.mailTo("eve@example.com", 1)

	require.Eventually(t, func() bool { return len(s.parked("notifier")) == 3 }, patience, 50*time.Millisecond)
	letters := s.parked("notifier")
	require.Nil(t, letters[0].Behind)
	require.Contains(t, letters[0].Reason, "550")
	for _, l := range letters[1:] {
		require.Equal(t, letters[0].ID, *l.Behind)
	}
	for _, l := range letters {
		require.Equal(t, ada.ID.String(), l.Key)
		require.Equal(t, domain.NotificationRequested, l.Type)
	}
	for _, worker := range []string{"replicator", "confirmer", "analytics"} {
		require.Empty(t, s.parked(worker))
	}
	out, _ = s.dlq(0, "list")
	require.Equal(t, 4, strings.Count(out, "\n"), "%s", out)
	first := fmt.Sprint(letters[0].ID)
	out, _ = s.dlq(0, "show", "notifier", first)
	require.Contains(t, out, "550")
	require.Contains(t, out, `"template": "welcome"`)
	var about []domain.ID // the orders of the parked mails, in order
	for _, l := range letters[1:] {
		out, _ = s.dlq(0, "show", "notifier", fmt.Sprint(l.ID), "--json")
		var shown parkedMail
		require.NoError(t, json.Unmarshal([]byte(out), &shown))
		require.Equal(t, "ada@example.com", shown.Data.After.To.Email)
		about = append(about, shown.Data.After.Order.ID)
	}
	require.ElementsMatch(t, []domain.ID{orders[0].ID, orders[1].ID}, about)

	_, problem := s.dlq(1, "retry", "notifier", first)
	require.Contains(t, problem, "parked again", "the server refuses once more")
	require.Len(t, s.parked("notifier"), 3)
	out, _ = s.dlq(0, "retry", "notifier", fmt.Sprint(s.parked("notifier")[2].ID))
	require.Contains(t, out, "done")
	require.Empty(t, s.parked("notifier"))
	mails := s.mailTo("ada@example.com", 3)
	require.Contains(t, mails[0].Subject, "Welcome")
	for i, id := range about {
		require.Contains(t, mails[i+1].Text, id.String(), "in the order in which they were parked")
	}

	// The next ones are refused for good, and given up.
	s.fault(`{"kind": "permfail", "count": 2, "to": "ada@example.com"}`)
	s.fault(`{"kind": "permfail", "count": 1, "to": "eve@example.com"}`)
	for _, o := range orders {
		s.do("POST", "/api/orders/"+o.ID.String()+"/cancel", nil, http.StatusOK)
	}
	s.placeOrder(eve.ID)
	require.Eventually(t, func() bool { return len(s.parked("notifier")) == 3 }, patience, 50*time.Millisecond)
	for _, l := range s.parked("notifier") {
		if l.Behind == nil && l.Key == ada.ID.String() {
			out, _ = s.dlq(0, "drop", "notifier", fmt.Sprint(l.ID))
			require.Equal(t, "dropped\n", out)
			_, problem = s.dlq(1, "show", "notifier", fmt.Sprint(l.ID))
			require.Contains(t, problem, "has no parked message")
		}
	}
	require.Len(t, s.parked("notifier"), 2)
	_, problem = s.dlq(1, "retry", "notifier", "--all")
	require.Contains(t, problem, "1 of 2 keys were parked again")
	left := s.parked("notifier")
	require.Len(t, left, 1)
	require.Equal(t, ada.ID.String(), left[0].Key)
	s.mailTo("eve@example.com", 2)
	s.dlq(0, "drop", "notifier", fmt.Sprint(left[0].ID), "--key")
	require.Empty(t, s.parked("notifier"))
	s.placeOrder(ada.ID)
	s.mailTo("ada@example.com", 4)
}
