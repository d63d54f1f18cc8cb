package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"outflow/domain"
)

// demoTimeout bounds how long the demo's orders may take to be decided.
const demoTimeout = 30 * time.Second

// A demoOrder is placed by a customer of the demo and taken to its last status.
type demoOrder struct {
	items   []domain.Item
	actions []string // what is done once the order is decided
}

// demo is what --seed-demo makes: enough that every page and every list shows
// something, and an order of every status that lasts.
var demo = []struct {
	customer domain.CustomerInput
	currency string
	orders   []demoOrder
}{
	{
		domain.CustomerInput{
			Name: "Ada Lovelace", Email: "ada@example.com", Phone: "+44 20 7946 0018", Status: domain.CustomerActive,
			Address:       &domain.Address{Line1: "12 St James's Square", City: "London", PostalCode: "SW1Y 4JH", Country: "GB"},
			SpendingLimit: &domain.Money{Amount: 500_00, Currency: "GBP"}, Metadata: map[string]string{"tier": "gold"},
		}, "GBP",
		[]demoOrder{
			{items: []domain.Item{{SKU: "TEA-250", Name: "Darjeeling, 250 g", Quantity: 2, UnitPrice: 9_50}, {SKU: "CUP-01", Name: "Cup", Quantity: 1, UnitPrice: 14_00}}},
			{items: []domain.Item{{SKU: "POT-02", Name: "Teapot", Quantity: 1, UnitPrice: 38_00}}, actions: []string{"fulfil"}},
		},
	},
	{
		domain.CustomerInput{
			Name: "Grace Hopper", Email: "grace@example.com", Phone: "1-800-FLOWERS", Status: domain.CustomerActive,
			Address: &domain.Address{Line1: "1 Navy Way", City: "Arlington", Region: "VA", PostalCode: "22202", Country: "US"},
		}, "USD",
		[]demoOrder{
			{items: []domain.Item{{SKU: "MUG-07", Name: "Mug", Quantity: 4, UnitPrice: 12_99}}, actions: []string{"fulfil", "refund"}},
			{items: []domain.Item{{SKU: "TEA-100", Name: "Assam, 100 g", Quantity: 1, UnitPrice: 6_75}}, actions: []string{"cancel"}},
		},
	},
	{
		domain.CustomerInput{Name: "Konrad Zuse", Email: "konrad@example.com", Status: domain.CustomerActive, Address: &domain.Address{City: "Berlin", Country: "DE"}}, "EUR",
		[]demoOrder{{items: []domain.Item{{SKU: "TEA-250", Name: "Grüner Tee, 250 g", Quantity: 3, UnitPrice: 8_90}}}},
	},
	{
		domain.CustomerInput{Name: "富岳 太郎", Email: "taro@example.com", Status: domain.CustomerActive, Address: &domain.Address{City: "神戸", Country: "JP"}}, "JPY",
		[]demoOrder{{items: []domain.Item{{SKU: "MATCHA-40", Name: "抹茶 40 g", Quantity: 2, UnitPrice: 1800}}}},
	},
	{
		domain.CustomerInput{Name: "Mallory", Email: "mallory@example.com", Status: domain.CustomerSuspended}, "EUR",
		[]demoOrder{{items: []domain.Item{{SKU: "POT-02", Name: "Teapot", Quantity: 9, UnitPrice: 42_00}}}},
	},
}

// seedDemo makes the demo's customers and orders through the API, and returns
// what it did in a few words. It leaves a database alone that was ever written
// to.
func seedDemo(ctx context.Context, api, postgresURL string) (string, error) {
	used, err := everWritten(ctx, postgresURL)
	if err != nil {
		return "", fmt.Errorf("look whether the database is empty: %w", err)
	}
	if used {
		return "left out: the database is not empty", nil
	}
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	customers, orders := 0, 0
	for _, d := range demo {
		var c domain.Customer
		if err := call(ctx, http.MethodPost, api+"/api/customers", d.customer, &c); err != nil {
			return "", fmt.Errorf("make the demo's customers: %w", err)
		}
		customers++
		for _, o := range d.orders {
			if err := o.play(ctx, api, domain.OrderInput{CustomerID: c.ID, Currency: d.currency, Items: o.items}); err != nil {
				return "", fmt.Errorf("make the demo's orders: %w", err)
			}
			orders++
		}
	}
	return fmt.Sprintf("%d customers and %d orders", customers, orders), nil
}

func everWritten(ctx context.Context, url string) (used bool, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM outbox)").Scan(&used)
	return used, err
}

// play places an order, waits for the decision and does what follows.
func (o demoOrder) play(ctx context.Context, api string, in domain.OrderInput) error {
	var order domain.Order
	if err := call(ctx, http.MethodPost, api+"/api/orders", in, &order); err != nil {
		return err
	}
	url := api + "/api/orders/" + order.ID.String()
	for order.Status == domain.OrderStatusPlaced {
		select {
		case <-ctx.Done():
			return fmt.Errorf("order %s is not decided: %w", order.ID, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
		if err := call(ctx, http.MethodGet, url, nil, &order); err != nil {
			return err
		}
	}
	for _, action := range o.actions {
		if err := call(ctx, http.MethodPost, url+"/"+action, nil, &order); err != nil {
			return err
		}
	}
	return nil
}

// call asks the API and reads its answer into out.
func call(ctx context.Context, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, bytes.TrimSpace(b))
	}
	return json.Unmarshal(b, out)
}
