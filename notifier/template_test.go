package notifier

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"outflow/domain"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	testEvent = domain.MustParseID("0198f0aa-0000-7000-8000-000000000001")
	testTime  = time.Date(2026, 3, 3, 9, 20, 30, 0, time.UTC)
	testOrder = domain.MustParseID("0198f0aa-0000-7000-8000-0000000000aa")
)

func notification(template string, o *domain.Order) domain.Notification {
	return domain.Notification{
		ID: testEvent, CustomerID: testOrder, Template: template,
		To: domain.Recipient{Name: "Zoë Čeněk <admin>", Email: "zoe@example.com"}, Order: o, CreatedAt: testTime,
	}
}

func someOrder(currency, reason string, items ...domain.Item) *domain.Order {
	o := &domain.Order{ID: testOrder, Reason: reason, OrderInput: domain.OrderInput{Currency: currency, Items: items}}
	for _, it := range items {
		o.Total += it.Quantity * it.UnitPrice
	}
	return o
}

// golden compares a rendered mail, as it goes over the wire, with its file.
// The HTML is beside it, to be opened in a browser.
func golden(t *testing.T, name string, m Message) {
	t.Helper()
	mailer, err := NewMailer(MailerConfig{Addr: "127.0.0.1:25", From: "Café <orders@shop.example>"})
	require.NoError(t, err)
	to, err := address(m.To.Name, m.To.Email)
	require.NoError(t, err)
	raw, err := mailer.compose(m, to)
	require.NoError(t, err)
	for file, got := range map[string]string{name + ".eml": strings.ReplaceAll(string(raw), "\r\n", "\n"), name + ".txt": m.Text, name + ".html": m.HTML} {
		path := filepath.Join("testdata", file)
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), got, file)
	}
}

func TestMailsLookAsTheyShould(t *testing.T) {
	t.Parallel()
	teapot := domain.Item{SKU: "TEA-01", Name: `Teapot "Blue & White" <1 l>`, Quantity: 2, UnitPrice: 123_950}
	for _, tc := range []struct {
		name string
		n    domain.Notification
	}{
		{"welcome", notification(domain.TemplateWelcome, nil)},
		{"order_confirmed", notification(domain.TemplateOrderConfirmed, someOrder("EUR", "",
			teapot, domain.Item{SKU: "CUP-07", Quantity: 1, UnitPrice: 5}, domain.Item{SKU: "GIFT", Name: "Gift wrap", Quantity: 12, UnitPrice: 0}))},
		{"order_rejected", notification(domain.TemplateOrderRejected, someOrder("KWD", domain.ReasonCustomerSuspended, teapot))},
		{"order_cancelled", notification(domain.TemplateOrderCancelled, someOrder("JPY", "", teapot))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			// Through JSON, which is how a notification arrives.
			data, err := json.Marshal(tc.n)
			require.NoError(t, err)
			var n domain.Notification
			require.NoError(t, json.Unmarshal(data, &n))
			m, err := Render(testEvent, n)
			require.NoError(t, err)
			golden(t, tc.name, m)
		})
	}
}

func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	_, err := Render(testEvent, notification("order_eaten", nil))
	require.EqualError(t, err, `there is no mail template "order_eaten"`)
	_, err = Render(testEvent, notification(domain.TemplateOrderConfirmed, nil))
	require.EqualError(t, err, `mail template "order_confirmed" needs an order`)
}

func TestReasonsAreInWords(t *testing.T) {
	t.Parallel()
	for code, words := range map[string]string{
		domain.ReasonCustomerSuspended: "Your account is suspended, and we can't accept orders until it is active again.",
		domain.ReasonCustomerClosed:    "Your account is closed.",
		"limit_exceeded":               "Together with your recent orders it would exceed the spending limit of your account.",
		"currency_not_accepted":        "We can't accept orders in this currency.",
		"moon_too_full":                "The reason is: moon too full.",
	} {
		m, err := Render(testEvent, notification(domain.TemplateOrderRejected, someOrder("EUR", code, domain.Item{SKU: "A", Quantity: 1, UnitPrice: 1})))
		require.NoError(t, err)
		require.Contains(t, m.Text, "\n\n"+words+"\n\n")
		require.Contains(t, m.HTML, strings.ReplaceAll(words, "'", "&#39;"))
	}
	m, err := Render(testEvent, notification(domain.TemplateOrderRejected, someOrder("EUR", "", domain.Item{SKU: "A", Quantity: 1, UnitPrice: 1})))
	require.NoError(t, err)
	require.NotContains(t, m.Text, "reason")
}

func TestMoneyHasTheDecimalsOfItsCurrency(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		amount   int64
		currency string
		want     string
	}{
		{0, "EUR", "EUR 0.00"}, {5, "EUR", "EUR 0.05"}, {50, "EUR", "EUR 0.50"}, {1_234_567_89, "EUR", "EUR 1,234,567.89"},
		{100_000, "USD", "USD 1,000.00"}, {99_999, "USD", "USD 999.99"}, {-1_050, "GBP", "GBP -10.50"},
		{0, "JPY", "JPY 0"}, {1_234, "JPY", "JPY 1,234"}, {1_234, "KRW", "KRW 1,234"}, {7, "KWD", "KWD 0.007"},
		{1_234_567, "BHD", "BHD 1,234.567"}, {12_345, "CLF", "CLF 1.2345"}, {1_234, "RSD", "RSD 12.34"}, {1_234, "IQD", "IQD 1.234"},
		{1_234, "ZZZ", "ZZZ 12.34"}, {-9_223_372_036_854_775_808, "EUR", "EUR -92,233,720,368,547,758.08"},
	} {
		require.Equal(t, tc.want, formatMoney(tc.amount, tc.currency))
	}
}

func TestNothingInANameActsInTheMail(t *testing.T) {
	t.Parallel()
	n := notification(domain.TemplateOrderConfirmed, someOrder("EUR", "", domain.Item{SKU: "<script>a</script>", Name: "x\r\n\r\nPay here: evil.example", Quantity: 1, UnitPrice: 1}))
	n.To.Name = "Ada\r\nBcc: victim@example.com\r\n\r\n<script>alert(1)</script>\u2028"
	m, err := Render(testEvent, n)
	require.NoError(t, err)
	require.NotContains(t, m.HTML, "<script>")
	require.Contains(t, m.Text, "Hello Ada  Bcc: victim@example.com    <script>alert(1)</script>,\n")
	require.NotContains(t, m.Text, "\nPay here")
	require.NotContains(t, m.To.Name, "\n")
	require.NotContains(t, m.Subject, "\n")
}

func TestTheSameNotificationGivesTheSameMail(t *testing.T) {
	t.Parallel()
	mailer, err := NewMailer(MailerConfig{Addr: "127.0.0.1:25", From: "orders@shop.example"})
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		n := notification(domain.TemplateOrderConfirmed, someOrder(rapid.StringMatching(`[A-Z]{3}`).Draw(t, "currency"), "",
			domain.Item{SKU: rapid.String().Draw(t, "sku"), Name: rapid.String().Draw(t, "item"), Quantity: 3, UnitPrice: rapid.Int64Range(0, 1e15).Draw(t, "price")}))
		n.To.Name = rapid.String().Draw(t, "name")
		var mails [2]string
		for i := range mails {
			m, err := Render(testEvent, n)
			require.NoError(t, err)
			to, err := address(m.To.Name, m.To.Email)
			require.NoError(t, err)
			raw, err := mailer.compose(m, to)
			require.NoError(t, err)
			mails[i] = string(raw)
		}
		require.Equal(t, mails[0], mails[1])
		for line := range strings.SplitSeq(mails[0], "\r\n") {
			require.LessOrEqual(t, len(line), 998, "RFC 5322, 2.1.1")
			require.NotContains(t, line, "\n")
			require.NotContains(t, line, "\r")
		}
	})
}
