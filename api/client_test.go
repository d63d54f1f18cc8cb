package api_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"

	apitypes "github.com/oapi-codegen/runtime/types"
	"github.com/stretchr/testify/require"

	"outflow/internal/apiclient"
)

// TestTheClientIsOfThisContract says when the generated client is to be made
// again: go generate ./internal/apiclient.
func TestTheClientIsOfThisContract(t *testing.T) {
	t.Parallel()
	contract, err := os.ReadFile("testdata/openapi-3.0.json")
	require.NoError(t, err)
	of, err := os.ReadFile("../internal/apiclient/contract.sha256")
	require.NoError(t, err)
	sum, _, _ := strings.Cut(string(of), " ")
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(contract)), sum, "the contract changed: go generate ./internal/apiclient")
}

// TestAGeneratedClientWorks takes a customer and an order through their lives
// with code that a generator made of the document.
func TestAGeneratedClientWorks(t *testing.T) {
	t.Parallel()
	s := start(t)
	ctx := t.Context()
	c, err := apiclient.NewClientWithResponses(s.URL, apiclient.WithHTTPClient(s.Client()))
	require.NoError(t, err)

	key := "a key"
	input := apiclient.CustomerInput{
		Name: "Ada Lovelace", Email: "ada@example.com", Address: &apiclient.AddressInput{City: new("London")},
		SpendingLimit: &apiclient.MoneyInput{Amount: 500_00, Currency: "GBP"}, Metadata: &map[string]*string{"tier": new("gold")},
	}
	created, err := c.CreateCustomerWithResponse(ctx, &apiclient.CreateCustomerParams{IdempotencyKey: &key}, input)
	require.NoError(t, err)
	require.Equal(t, 201, created.HTTPResponse.StatusCode, string(created.Body))
	ada := created.JSON201
	require.Equal(t, "London", *ada.Address.City)
	require.EqualValues(t, 500_00, ada.SpendingLimit.Amount)
	require.Equal(t, apiclient.CustomerStatusActive, ada.Status)
	require.EqualValues(t, 1, *ada.Version)
	again, err := c.CreateCustomerWithResponse(ctx, &apiclient.CreateCustomerParams{IdempotencyKey: &key}, input)
	require.NoError(t, err)
	require.Equal(t, ada.Id, again.JSON201.Id)
	require.Equal(t, "true", *again.Headers201.IdempotencyReplayed)
	taken, err := c.CreateCustomerWithResponse(ctx, nil, input)
	require.NoError(t, err)
	require.Equal(t, "/problems/email-taken", taken.ApplicationproblemJSON409.Type)

	got, err := c.GetCustomerWithResponse(ctx, *ada.Id, nil)
	require.NoError(t, err)
	require.Equal(t, ada, got.JSON200)
	same, err := c.GetCustomerWithResponse(ctx, *ada.Id, &apiclient.GetCustomerParams{IfNoneMatch: got.Headers200.ETag})
	require.NoError(t, err)
	require.Equal(t, 304, same.HTTPResponse.StatusCode)

	patched, err := c.UpdateCustomerWithApplicationMergePatchPlusJSONBodyWithResponse(ctx, *ada.Id,
		&apiclient.UpdateCustomerParams{IfMatch: got.Headers200.ETag}, apiclient.CustomerPatch{Phone: new("+44 20 7946 0018")})
	require.NoError(t, err)
	require.EqualValues(t, 2, *patched.JSON200.Version)
	stale, err := c.ReplaceCustomerWithResponse(ctx, *ada.Id, &apiclient.ReplaceCustomerParams{IfMatch: got.Headers200.ETag},
		apiclient.CustomerReplacement{Name: "Eve", Email: "eve@example.com"})
	require.NoError(t, err)
	require.Equal(t, "/problems/version-mismatch", stale.ApplicationproblemJSON412.Type)
	replaced, err := c.ReplaceCustomerWithResponse(ctx, *ada.Id, nil, apiclient.CustomerReplacement{Name: "Ada King", Email: "ada@example.com"})
	require.NoError(t, err)
	require.Equal(t, "Ada King", replaced.JSON200.Name)
	require.Nil(t, replaced.JSON200.Phone)
	invalid, err := c.ReplaceCustomerWithResponse(ctx, *ada.Id, nil, apiclient.CustomerReplacement{Email: "ada@example.com"})
	require.NoError(t, err)
	require.Equal(t, []apiclient.FieldProblem{{Location: "body.name", Message: "is required"}}, *invalid.ApplicationproblemJSON422.Errors)

	placed, err := c.CreateOrderWithResponse(ctx, nil, apiclient.OrderInput{CustomerId: *ada.Id, Currency: "GBP",
		Items: []apiclient.ItemInput{{Sku: "TEA-250", Quantity: 2, UnitPrice: 950}}})
	require.NoError(t, err)
	require.Equal(t, 201, placed.HTTPResponse.StatusCode, string(placed.Body))
	order := placed.JSON201
	require.EqualValues(t, 1900, *order.Total)
	open, err := c.DeleteCustomerWithResponse(ctx, *ada.Id, nil)
	require.NoError(t, err)
	require.Equal(t, "/problems/open-orders", open.ApplicationproblemJSON409.Type)
	cancelled, err := c.CancelOrderWithResponse(ctx, *order.Id, nil)
	require.NoError(t, err)
	require.Equal(t, "cancelled", string(*cancelled.JSON200.Status))
	twice, err := c.CancelOrderWithResponse(ctx, *order.Id, nil)
	require.NoError(t, err)
	require.Equal(t, "cancelled", string(*twice.ApplicationproblemJSON409.OrderStatus))

	for i := range 3 {
		_, err := c.CreateCustomerWithResponse(ctx, nil, apiclient.CustomerInput{Name: "Eve", Email: apitypes.Email(fmt.Sprintf("eve%d@example.com", i))})
		require.NoError(t, err)
	}
	seen := 0
	params := &apiclient.ListCustomersParams{Limit: new(3), Sort: new(apiclient.ListCustomersParamsSort("-created_at"))}
	for {
		page, err := c.ListCustomersWithResponse(ctx, params)
		require.NoError(t, err)
		require.NotNil(t, page.JSON200, string(page.Body))
		seen += len(page.JSON200.Data)
		if params.Cursor = page.JSON200.NextCursor; params.Cursor == nil {
			break
		}
	}
	require.Equal(t, 4, seen)

	deleted, err := c.DeleteCustomerWithResponse(ctx, *ada.Id, &apiclient.DeleteCustomerParams{IfMatch: replaced.Headers200.ETag})
	require.NoError(t, err)
	require.Equal(t, 204, deleted.HTTPResponse.StatusCode)
	gone, err := c.GetCustomerWithResponse(ctx, *ada.Id, nil)
	require.NoError(t, err)
	require.Equal(t, "/problems/not-found", gone.ApplicationproblemJSON404.Type)
	events, err := c.ListEventsWithResponse(ctx, &apiclient.ListEventsParams{AggregateId: ada.Id, Wait: new("1s")})
	require.NoError(t, err)
	require.Len(t, events.JSON200.Data, 4)
	for i, e := range events.JSON200.Data {
		require.EqualValues(t, i+1, e.Version)
	}
	require.Nil(t, events.JSON200.Data[3].After)
	require.Equal(t, "Ada King", (*events.JSON200.Data[3].Before)["name"])
}
