package domain_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

// paths lists the fields that an error complains about.
func paths(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	var e *domain.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, domain.CodeInvalid, e.Code)
	var all []string
	for _, f := range e.Fields {
		all = append(all, f.Path)
	}
	return all
}

func TestValidateCustomer(t *testing.T) {
	t.Parallel()
	entries := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("k", i)] = "v"
		}
		return m
	}
	for name, row := range map[string]struct {
		edit func(*domain.CustomerInput)
		want []string
	}{
		"as it is":           {func(in *domain.CustomerInput) {}, nil},
		"no name":            {func(in *domain.CustomerInput) { in.Name = "" }, []string{"name"}},
		"blank name":         {func(in *domain.CustomerInput) { in.Name = "\u00a0 " }, []string{"name"}},
		"long name":          {func(in *domain.CustomerInput) { in.Name = strings.Repeat("\u00fc", 201) }, []string{"name"}},
		"longest name":       {func(in *domain.CustomerInput) { in.Name = strings.Repeat("\u00fc", 200) }, nil},
		"NUL":                {func(in *domain.CustomerInput) { in.Name = "a\x00b" }, []string{"name"}},
		"line break":         {func(in *domain.CustomerInput) { in.Name = "a\r\nBcc: all" }, []string{"name"}},
		"line separator":     {func(in *domain.CustomerInput) { in.Name = "a\u2028b" }, []string{"name"}},
		"C1 control":         {func(in *domain.CustomerInput) { in.Name = "a\u0085b" }, []string{"name"}},
		"not UTF-8":          {func(in *domain.CustomerInput) { in.Name = "a\xff" }, []string{"name"}},
		"no email":           {func(in *domain.CustomerInput) { in.Email = "" }, []string{"email"}},
		"phone is free text": {func(in *domain.CustomerInput) { in.Phone = "ext. 7, ask for Bob (+44)" }, nil},
		"long phone":         {func(in *domain.CustomerInput) { in.Phone = strings.Repeat("1", 51) }, []string{"phone"}},
		"NUL in phone":       {func(in *domain.CustomerInput) { in.Phone = "\x00" }, []string{"phone"}},
		"no status":          {func(in *domain.CustomerInput) { in.Status = "" }, nil},
		"unknown status":     {func(in *domain.CustomerInput) { in.Status = "Active" }, []string{"status"}},
		"country":            {func(in *domain.CustomerInput) { in.Address.Country = "gb" }, []string{"address.country"}},
		"no country":         {func(in *domain.CustomerInput) { in.Address.Country = "" }, nil},
		"address parts": {func(in *domain.CustomerInput) {
			long := strings.Repeat("x", 201)
			in.Address = &domain.Address{Line1: long, Line2: long, City: "\x00", Region: "\xff", PostalCode: long, Country: "GBR"}
		}, []string{"address.line1", "address.line2", "address.city", "address.region", "address.postal_code", "address.country"}},
		"negative limit":    {func(in *domain.CustomerInput) { in.SpendingLimit.Amount = -1 }, []string{"spending_limit.amount"}},
		"huge limit":        {func(in *domain.CustomerInput) { in.SpendingLimit.Amount = domain.MaxAmount + 1 }, []string{"spending_limit.amount"}},
		"limit of nothing":  {func(in *domain.CustomerInput) { in.SpendingLimit = &domain.Money{} }, []string{"spending_limit.currency"}},
		"zero limit":        {func(in *domain.CustomerInput) { in.SpendingLimit.Amount = 0 }, nil},
		"metadata":          {func(in *domain.CustomerInput) { in.Metadata = entries(50) }, nil},
		"too much metadata": {func(in *domain.CustomerInput) { in.Metadata = entries(51) }, []string{"metadata"}},
		"long key":          {func(in *domain.CustomerInput) { in.Metadata = map[string]string{strings.Repeat("k", 41): ""} }, []string{"metadata"}},
		"empty key":         {func(in *domain.CustomerInput) { in.Metadata = map[string]string{"": "v"} }, []string{"metadata"}},
		"long value":        {func(in *domain.CustomerInput) { in.Metadata = map[string]string{"k": strings.Repeat("v", 501)} }, []string{"metadata"}},
		"NUL in key":        {func(in *domain.CustomerInput) { in.Metadata = map[string]string{"\x00": ""} }, []string{"metadata"}},
		"value not UTF-8":   {func(in *domain.CustomerInput) { in.Metadata = map[string]string{"k": "\xff"} }, []string{"metadata"}},
		"everything": {func(in *domain.CustomerInput) {
			*in = domain.CustomerInput{Status: "x", SpendingLimit: &domain.Money{Amount: -1}}
		},
			[]string{"name", "email", "status", "spending_limit.amount", "spending_limit.currency"}},
	} {
		in := ada()
		row.edit(&in)
		require.Equal(t, row.want, paths(t, in.Validate()), name)
	}
}

func TestEmails(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"a@b", "ada@example.com", "Ada.Lovelace+x@sub.example.co.uk", "o'hara_1-2@example.com", "ünï@exämple.com",
		strings.Repeat("a", 64) + "@example.com", "!#$%&'*+-/=?^_`{|}~@example.com",
	} {
		in := ada()
		in.Email = good
		require.NoError(t, in.Validate(), good)
	}
	for _, bad := range []string{
		" ", "ada", "@example.com", "ada@", "ada@example.com ", " ada@example.com", "Ada <ada@example.com>", "<ada@example.com>",
		"ada@@example.com", "a b@example.com", `"a b"@example.com`, "ada@example..com", "ada@.example.com", "ada@example.com.",
		"ada@-example.com", "ada@example-.com", "ada@exa_mple.com", "ada@[127.0.0.1]", "ada.@example.com", ".ada@example.com",
		"ada(comment)@example.com", "ada@example.com, eve@example.com", "ada@example.com\r\nBcc: eve@example.com", "ada\x00@example.com",
		"a\u0085da@example.com", "a\u200bda@example.com", "a\u00a0da@example.com", "a\u202eda@example.com", "ad\xff@example.com", "ada@ex\x00ample.com",
		strings.Repeat("a", 65) + "@example.com", "a@" + strings.Repeat("b", 64) + ".com", strings.Repeat("a", 60) + "@" + strings.Repeat("b.", 100) + "com",
	} {
		in := ada()
		in.Email = bad
		err := in.Validate()
		require.Equal(t, []string{"email"}, paths(t, err), "%q", bad)
		require.Contains(t, []string{
			"the input is not valid: email must be an email address, such as ada@example.com",
			"the input is not valid: email must be at most 254 bytes long",
		}, err.Error(), "submitted values are not repeated")
	}
	require.Equal(t, domain.CanonicalEmail("ADA@Example.COM"), domain.CanonicalEmail("ada@example.com"))
	require.NotEqual(t, domain.CanonicalEmail("ada@example.com"), domain.CanonicalEmail("ada+x@example.com"))
}

func TestValidateOrder(t *testing.T) {
	t.Parallel()
	lines := func(n int) []domain.Item {
		items := make([]domain.Item, n)
		for i := range items {
			items[i] = domain.Item{SKU: "s", Quantity: 1}
		}
		return items
	}
	for name, row := range map[string]struct {
		edit func(*domain.OrderInput)
		want []string
	}{
		"as it is":       {func(in *domain.OrderInput) {}, nil},
		"no customer":    {func(in *domain.OrderInput) { in.CustomerID = domain.ID{} }, []string{"customer_id"}},
		"small currency": {func(in *domain.OrderInput) { in.Currency = "eur" }, []string{"currency"}},
		"long currency":  {func(in *domain.OrderInput) { in.Currency = "EURO" }, []string{"currency"}},
		"odd currency":   {func(in *domain.OrderInput) { in.Currency = "EÜ" }, []string{"currency"}},
		"no items":       {func(in *domain.OrderInput) { in.Items = nil }, []string{"items"}},
		"most items":     {func(in *domain.OrderInput) { in.Items = lines(200) }, nil},
		"too many items": {func(in *domain.OrderInput) { in.Items = lines(201) }, []string{"items"}},
		"no SKU":         {func(in *domain.OrderInput) { in.Items[1].SKU = "" }, []string{"items[1].sku"}},
		"long SKU":       {func(in *domain.OrderInput) { in.Items[0].SKU = strings.Repeat("s", 65) }, []string{"items[0].sku"}},
		"NUL in SKU":     {func(in *domain.OrderInput) { in.Items[0].SKU = "\x00" }, []string{"items[0].sku"}},
		"long name":      {func(in *domain.OrderInput) { in.Items[0].Name = strings.Repeat("n", 201) }, []string{"items[0].name"}},
		"name not UTF-8": {func(in *domain.OrderInput) { in.Items[0].Name = "\xff" }, []string{"items[0].name"}},
		"no quantity":    {func(in *domain.OrderInput) { in.Items[0].Quantity = 0 }, []string{"items[0].quantity"}},
		"much quantity":  {func(in *domain.OrderInput) { in.Items[0].Quantity = domain.MaxQuantity + 1 }, []string{"items[0].quantity"}},
		"negative price": {func(in *domain.OrderInput) { in.Items[0].UnitPrice = -1 }, []string{"items[0].unit_price"}},
		"huge price":     {func(in *domain.OrderInput) { in.Items[0].UnitPrice = domain.MaxAmount + 1 }, []string{"items[0].unit_price"}},
		"huge total":     {func(in *domain.OrderInput) { in.Items[0].UnitPrice = domain.MaxAmount }, []string{"items"}},
		"free":           {func(in *domain.OrderInput) { in.Items[0].UnitPrice, in.Items[1].UnitPrice = 0, 0 }, nil},
		"everything": {func(in *domain.OrderInput) { *in = domain.OrderInput{Items: []domain.Item{{}, {UnitPrice: -1}}} },
			[]string{"customer_id", "currency", "items[0].sku", "items[0].quantity", "items[1].sku", "items[1].quantity", "items[1].unit_price"}},
	} {
		in := tea()
		row.edit(&in)
		require.Equal(t, row.want, paths(t, in.Validate()), name)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	err := fmt.Errorf("doing: %w", &domain.Error{
		Code: domain.CodeInvalid, Message: "not valid", Err: cause, Fields: []domain.Field{{Path: "name", Message: "is required"}, {Message: "is odd"}},
	})
	require.EqualError(t, err, "doing: not valid: name is required; is odd: cause")
	require.ErrorIs(t, err, cause)
	require.Equal(t, domain.CodeInvalid, domain.CodeOf(err))
	require.Empty(t, domain.CodeOf(cause))
	require.Empty(t, domain.CodeOf(nil))
}
