package verify

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
	"outflow/internal/mongotest"
	"outflow/internal/pgtest"
	"outflow/replicator"
	"outflow/store"
)

// What is compared with documents is what events become, to the byte, so that
// equal ones are told without a look at their fields.
func TestRowsBecomeWhatTheirStatesBecome(t *testing.T) {
	t.Parallel()
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := store.New(pool, store.Config{})
	var made []domain.Customer
	for i, in := range []domain.CustomerInput{
		{Name: "Ada", Phone: "+44 20 7946 0000", Metadata: map[string]string{"b": "2", "a.x": "\"<&>\" \\ ü \U0001F600"},
			Address: &domain.Address{Line1: "1 \"A\" Street", City: "Berlin"}, SpendingLimit: &domain.Money{Amount: 1e14, Currency: "EUR"}},
		{Name: "a back\\slash, \"quoted\" <&> ü", Status: domain.CustomerSuspended, Metadata: map[string]string{}},
		{Name: "é", Address: &domain.Address{}},
		{Name: "gone"},
	} {
		in.Email = fmt.Sprintf("c%d@example.com", i)
		c, err := s.CreateCustomer(t.Context(), in, domain.Metadata{})
		require.NoError(t, err)
		made = append(made, c)
	}
	require.NoError(t, s.DeleteCustomer(t.Context(), made[3].ID, store.Precondition{}, domain.Metadata{}))
	for _, c := range made[:2] {
		_, err := s.PlaceOrder(t.Context(), domain.OrderInput{CustomerID: c.ID, Currency: "EUR", Items: []domain.Item{{SKU: "A", Name: "é", Quantity: 2, UnitPrice: 5}, {SKU: "B", Quantity: 1}}}, domain.Metadata{})
		require.NoError(t, err)
	}
	for typ, n := range map[string]int{domain.AggregateCustomer: 4, domain.AggregateOrder: 2} {
		r := rows{of: s, typ: typ}
		page, last, err := r.page(t.Context(), domain.ID{})
		require.NoError(t, err)
		require.Len(t, page, n)
		states, err := s.States(t.Context(), typ, domain.ID{}, pageRows)
		require.NoError(t, err)
		for i, e := range states {
			want, err := replicator.Document(e)
			require.NoError(t, err)
			require.Equal(t, want.String(), page[i].want.String())
			require.Equal(t, want, page[i].want)
			require.Equal(t, e.AggregateID, page[i].id)
			require.Equal(t, e.AggregateVersion, page[i].version)
		}
		page, _, err = r.page(t.Context(), last)
		require.NoError(t, err)
		require.Empty(t, page)
	}
}

// Pages of both sides wait in memory, so large rows and documents make short ones.
func TestPagesAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	pool, err := store.Open(t.Context(), pgtest.New(t).URL, 4)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s := store.New(pool, store.Config{})
	client, err := mongo.Connect(options.Client().ApplyURI(mongotest.URI(t, "bytes")))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(context.Background()) })
	const n = 12
	for i := range n {
		_, err := s.CreateCustomer(t.Context(), domain.CustomerInput{Name: "Ada", Email: fmt.Sprintf("c%d@example.com", i)}, domain.Metadata{})
		require.NoError(t, err)
	}
	_, err = pool.Exec(t.Context(), `UPDATE customers SET metadata = json_build_object('a', repeat('x', 1000000))`)
	require.NoError(t, err)
	r, d := rows{of: s, typ: domain.AggregateCustomer}, documents{base: client.Database("bytes").Collection("c")}
	t.Cleanup(d.close)
	var all []any
	for last, asked := (domain.ID{}), 0; ; asked++ {
		page, next, err := r.page(t.Context(), last)
		require.NoError(t, err)
		if len(page) == 0 {
			require.Len(t, all, n)
			break
		}
		require.Less(t, r.bytes, pageBytes+1_100_000)
		require.Less(t, asked, 4)
		for _, one := range page {
			all = append(all, one.want)
		}
		last = next
	}
	_, err = d.base.InsertMany(t.Context(), all)
	require.NoError(t, err)
	for last, found := "", 0; ; {
		page, next, err := d.page(t.Context(), last)
		require.NoError(t, err)
		if len(page) == 0 {
			require.Equal(t, n, found)
			break
		}
		require.Less(t, d.bytes, pageBytes+1_100_000)
		for _, one := range page {
			require.Equal(t, all[found], one)
			found++
		}
		last = next
	}
}

// A cursor that the server gives up in the middle is no end, and nothing comes
// twice.
func TestABrokenCursorIsGoneOnWith(t *testing.T) {
	t.Parallel()
	client, err := mongo.Connect(options.Client().ApplyURI(mongotest.URI(t, "pages")))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(t.Context()) })
	db := client.Database("pages")
	var all []any
	for n := range 3*pageRows + 10 {
		all = append(all, bson.D{{Key: "_id", Value: fmt.Sprintf("%06d", n)}})
	}
	_, err = db.Collection("c").InsertMany(t.Context(), append(all, bson.D{{Key: "_id", Value: int32(5)}}))
	require.NoError(t, err)

	d := documents{base: db.Collection("c")}
	t.Cleanup(d.close)
	last, found, killed := "", 0, 0
	for {
		page, end, err := d.page(t.Context(), last)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		for _, doc := range page {
			require.Equal(t, all[found], bson.D{{Key: "_id", Value: doc.Lookup("_id").StringValue()}})
			found++
		}
		if last = end; d.cursor.ID() != 0 {
			kill := bson.D{{Key: "killCursors", Value: "c"}, {Key: "cursors", Value: bson.A{d.cursor.ID()}}}
			require.NoError(t, db.RunCommand(t.Context(), kill).Err())
			killed++
		}
	}
	require.Equal(t, len(all), found)
	require.GreaterOrEqual(t, killed, 2)
}
