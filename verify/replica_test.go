package verify_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
	"outflow/internal/kafkatest"
	"outflow/internal/mongofake"
	"outflow/outbox"
	"outflow/store"
	"outflow/verify"
)

func TestAReplicaThatFollowsIsClean(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	ada := s.customer()
	require.NoError(t, s.rename(ada.ID))
	o := s.order(ada.ID)
	_, err := s.store.CancelOrder(t.Context(), o.ID, store.Precondition{}, domain.Metadata{})
	require.NoError(t, err)
	require.NoError(t, s.store.DeleteOrder(t.Context(), o.ID, store.Precondition{}, domain.Metadata{}))
	s.order(ada.ID)
	report, found := s.verify()
	require.Empty(t, found)
	require.True(t, report.Clean())
	require.Equal(t, map[string]int64{domain.AggregateCustomer: 1, domain.AggregateOrder: 2}, report.Rows)
	require.NotEmpty(t, s.doc("_orders", o.ID)["deleted_at"], "a tombstone is compared too")
}

func TestEveryKindOfDifferenceIsToldAndRepaired(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	var all []domain.Customer
	for range 10 {
		all = append(all, s.customer())
		require.NoError(t, s.rename(all[len(all)-1].ID))
	}
	_, found := s.verify()
	require.Empty(t, found)
	c := s.db.Collection("_customers")
	try := func(n int, field string, value any) (changed bool) {
		t.Helper()
		done, err := c.UpdateOne(t.Context(), bson.D{{Key: "_id", Value: all[n].ID.String()}}, bson.D{{Key: "$set", Value: bson.D{{Key: field, Value: value}}}})
		require.NoError(t, err)
		require.Equal(t, int64(1), done.MatchedCount)
		return done.ModifiedCount == 1
	}
	set := func(n int, field string, value any) {
		t.Helper()
		require.True(t, try(n, field, value))
	}
	_, err := c.DeleteOne(t.Context(), bson.D{{Key: "_id", Value: all[0].ID.String()}})
	require.NoError(t, err)
	set(1, "version", int64(1))
	set(2, "version", int64(3))
	set(3, "name", "Eve")
	// The same number, of another type; which some servers take for no change.
	if !try(4, "spending_limit.amount", int32(7)) {
		t.Log("the server can't hold an int32 in the place of an equal int64: leaving that out")
		set(4, "spending_limit.amount", int32(8))
	}
	set(5, "version", "2")
	_, err = c.UpdateOne(t.Context(), bson.D{{Key: "_id", Value: all[6].ID.String()}}, bson.D{{Key: "$unset", Value: bson.D{{Key: "version", Value: ""}}}})
	require.NoError(t, err)
	set(7, "extra", true)
	stranger, text, other := uuid.NewString(), "no id", bson.NewObjectID()
	_, err = c.InsertMany(t.Context(), []any{
		bson.D{{Key: "_id", Value: stranger}, {Key: "version", Value: int64(1)}}, bson.D{{Key: "_id", Value: text}}, bson.D{{Key: "_id", Value: ""}},
		bson.D{{Key: "_id", Value: other}, {Key: "version", Value: int64(2)}}, bson.D{{Key: "_id", Value: int32(5)}},
	})
	require.NoError(t, err)

	want := map[string]verify.Kind{
		all[0].ID.String(): verify.Missing, all[1].ID.String(): verify.Stale, all[2].ID.String(): verify.Ahead,
		stranger: verify.Extra, text: verify.Extra, "": verify.Extra,
		fmt.Sprintf(`{"$oid":"%s"}`, other.Hex()): verify.Extra, `{"$numberInt":"5"}`: verify.Extra,
	}
	for n := 3; n <= 7; n++ {
		want[all[n].ID.String()] = verify.Corrupt
	}
	kinds := func(found map[string]verify.Difference, repaired bool) map[string]verify.Kind {
		got := map[string]verify.Kind{}
		for id, d := range found {
			got[id] = d.Kind
			require.Equal(t, repaired, d.Repaired, "%+v", d)
		}
		return got
	}
	report, found := s.verify()
	require.Equal(t, want, kinds(found, false))
	require.False(t, report.Clean())
	require.Equal(t, verify.Difference{Kind: verify.Stale, Type: "customer", ID: all[1].ID.String(), Source: 2, Replica: 1}, found[all[1].ID.String()])

	report, found = s.verify(func(v *verify.Replica) { v.Repair = true })
	require.Equal(t, want, kinds(found, true))
	require.True(t, report.Clean())
	_, found = s.verify()
	require.Empty(t, found)
}

// Whatever a document has in the place of its version, it is told and mended.
func TestWhatIsNoVersionIsMended(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	versions := []any{
		nil, int32(1), 1.0, "1", true, int64(0), int64(-5), bson.MinKey{}, bson.MaxKey{}, bson.NewObjectID(), bson.Binary{},
		bson.DateTime(1), bson.Timestamp{T: 1}, bson.Regex{Pattern: "1"}, bson.JavaScript("1"), bson.Undefined{},
		bson.A{}, bson.A{int64(1)}, bson.A{int64(1), "1"}, bson.D{}, bson.D{{Key: "n", Value: int64(1)}}, bson.D{{Key: "$gt", Value: int64(5)}},
	}
	all := make([]domain.Customer, 0, len(versions))
	for range versions {
		all = append(all, s.customer())
	}
	_, found := s.verify()
	require.Empty(t, found)
	wrong := 0
	for n, version := range versions {
		is := bson.D{{Key: "_id", Value: all[n].ID.String()}}
		if !s.bears(version) {
			continue
		}
		if _, err := s.db.Collection("_customers").ReplaceOne(t.Context(), is, bson.D{{Key: "version", Value: version}}); err != nil {
			t.Logf("the server refuses a version that is %v: leaving that out", version)
			continue
		}
		wrong++
	}
	report, found := s.verify(func(v *verify.Replica) { v.Repair = true })
	require.Equal(t, map[verify.Kind]int64{verify.Corrupt: int64(wrong)}, report.Differences)
	require.Equal(t, int64(wrong), report.Repaired)
	require.Zero(t, report.Undecided)
	require.Len(t, found, wrong)
	_, found = s.verify()
	require.Empty(t, found)
}

// bears reports whether the server can do with a value what MongoDB can: sort by it,
// and find it by its type.
func (s *system) bears(value any) bool {
	s.t.Helper()
	if value == nil {
		return true
	}
	probe := s.db.Collection("probe")
	defer func() { require.NoError(s.t, probe.Drop(s.t.Context())) }()
	_, err := probe.InsertMany(s.t.Context(), []any{bson.D{{Key: "of", Value: value}}, bson.D{{Key: "of", Value: "text"}}})
	if err != nil {
		s.t.Logf("the server refuses %T: leaving that out: %v", value, err)
		return false
	}
	kind, _, err := bson.MarshalValue(value)
	require.NoError(s.t, err)
	for _, filter := range []bson.D{{}, {{Key: "of", Value: bson.D{{Key: "$type", Value: int32(int8(kind))}}}}} {
		cursor, err := probe.Find(s.t.Context(), filter, options.Find().SetSort(bson.D{{Key: "of", Value: 1}}))
		if err == nil && !cursor.Next(s.t.Context()) {
			err = errors.New("it is not found")
		}
		if err == nil {
			err = cursor.Close(s.t.Context())
		}
		if err != nil {
			s.t.Logf("the server can't sort or find %T: leaving that out: %v", value, err)
			return false
		}
	}
	return true
}

// Whatever a document has for an id, it is told and removed; also when one's id
// is written as another one's text.
func TestWhatIsNoIDIsMended(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	ada := s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	half, err := bson.ParseDecimal128("0.50")
	require.NoError(t, err)
	ids := []any{
		nil, true, half, 2.5, bson.MinKey{}, bson.MaxKey{}, bson.Binary{Subtype: 4, Data: make([]byte, 16)}, bson.Timestamp{T: 1, I: 2},
		bson.DateTime(5), bson.D{}, bson.D{{Key: "a", Value: int32(1)}}, bson.JavaScript("x"), bson.Symbol("x"), bson.Symbol(ada.ID.String() + "0"),
		"x\x00", "😀", "ZZ", "{", int32(5), `{"$numberInt":"5"}`,
	}
	for _, id := range ids {
		if !s.bears(id) {
			continue
		}
		if _, err := s.db.Collection("_customers").InsertOne(t.Context(), bson.D{{Key: "_id", Value: id}}); err != nil {
			t.Logf("the server refuses the id %v: leaving that out", id)
		}
	}
	n, err := s.db.Collection("_customers").CountDocuments(t.Context(), bson.D{})
	require.NoError(t, err)
	report, _ := s.verify()
	require.Equal(t, map[verify.Kind]int64{verify.Extra: n - 1}, report.Differences)
	report, _ = s.verify(func(v *verify.Replica) { v.Repair = true })
	require.Equal(t, n-1, report.Repaired)
	report, found = s.verify()
	require.Empty(t, found)
	require.Equal(t, map[string]int64{domain.AggregateCustomer: 1}, report.Rows)
	require.NotNil(t, s.doc("_customers", ada.ID))
}

// Each wait for the relay may take seconds, so what is missing by the ten thousand
// isn't waited for by the thousand.
func TestWhatDiffersIsWaitedForTogether(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	const missing = 20_000
	s.exec(`INSERT INTO customers (id, version, name, email, email_canonical, status, created_at, updated_at)
		SELECT gen_random_uuid(), 1, 'Ada', n::text, n::text, 'active', now(), now() FROM generate_series(1, $1) n`, missing)
	waits := 0
	report, found := s.verify(func(v *verify.Replica) {
		published := v.Published
		v.Published = func(ctx context.Context) error { waits++; return published(ctx) }
	})
	require.Len(t, found, missing)
	require.Equal(t, map[verify.Kind]int64{verify.Missing: missing}, report.Differences)
	require.Equal(t, 1, waits)
}

// Nothing tells the replica of a row that somebody changed by hand: the event log
// agrees with the replica then, and the source doesn't.
func TestARowThatWasChangedWithoutAnEventDiffers(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	ada, gone := s.customer(), s.customer()
	require.NoError(t, s.store.DeleteCustomer(t.Context(), gone.ID, store.Precondition{}, domain.Metadata{}))
	o := s.order(ada.ID)
	_, found := s.verify()
	require.Empty(t, found)
	s.exec(`UPDATE customers SET name = 'Eve' WHERE id = $1`, ada.ID.String())
	s.exec(`UPDATE customers SET deleted_at = NULL WHERE id = $1`, gone.ID.String())
	s.exec(`UPDATE orders SET total = total + 1 WHERE id = $1`, o.ID.String())
	report, found := s.verify(func(v *verify.Replica) { v.Repair = true })
	require.Equal(t, map[verify.Kind]int64{verify.Corrupt: 3}, report.Differences)
	require.Len(t, found, 3)
	require.True(t, report.Clean())
	require.Equal(t, "Eve", s.doc("_customers", ada.ID)["name"])
	_, found = s.verify()
	require.Empty(t, found)
}

// A newer version of outflow has added a member, whose column this one doesn't
// know. That is no difference, and isn't to be taken away; a known one that was
// taken from the row is.
func TestWhatANewerVersionHasAddedIsNotAccused(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	ada, bob := s.customer(), s.customer()
	newer := func(id domain.ID) {
		s.exec(`WITH changed AS (UPDATE customers SET version = version + 1 WHERE id = $1 RETURNING id, version)
INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
SELECT gen_random_uuid(), 'customer', c.id, c.version, 'customer.updated.v1', c.id::text, o.after,
    (o.after::jsonb || jsonb_build_object('version', c.version, 'loyalty', 'gold'))::json, '{}', now()
FROM changed c JOIN outbox o ON o.aggregate_id = c.id AND o.aggregate_version = c.version - 1`, id.String())
	}
	newer(ada.ID)
	newer(bob.ID)
	_, found := s.verify(func(v *verify.Replica) { v.Repair = true })
	require.Empty(t, found)
	require.Equal(t, "gold", s.doc("_customers", ada.ID)["loyalty"])
	s.exec(`UPDATE customers SET spending_limit_amount = NULL, spending_limit_currency = NULL WHERE id = $1`, bob.ID.String())
	report, _ := s.verify()
	require.Equal(t, map[verify.Kind]int64{verify.Corrupt: 1}, report.Differences)
}

func TestAReplicaThatStandsStillIsNotAccused(t *testing.T) {
	s := newSystem(t)
	s.relay()
	stop := s.replicate()
	ada := s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	stop()
	require.NoError(t, s.rename(ada.ID))
	requireBehind(s)
}

// The driver's error, which comes when the time is over too, is not what is told.
func TestAReplicaThatDoesNotAnswerIsNotAccused(t *testing.T) {
	s := newSystem(t)
	if s.mongo == nil {
		t.Skip("holds a command in the in-process MongoDB server")
	}
	s.relay()
	stop := s.replicate()
	s.customer()
	_, found := s.verify()
	require.Empty(t, found)
	stop()
	s.customer()
	held := s.mongo.Fault(mongofake.Fault{Command: "find", Collection: "_positions", Hold: true})
	defer held.Release()
	requireBehind(s)
}

func requireBehind(s *system) {
	t := s.t
	t.Helper()
	v := &verify.Replica{
		Store: s.store, MongoURI: s.uri, Brokers: s.Brokers, Namespace: s.Namespace, Kafka: kafkatest.Opts(), Patience: time.Second,
		Published:    func(ctx context.Context) error { return outbox.AwaitPublished(ctx, s.relayConfig()) },
		OnDifference: func(verify.Difference) { t.Error("nothing can be told") },
	}
	_, err := v.Run(t.Context())
	require.ErrorIs(t, err, verify.ErrBehind)
}

// Row 19 of the failure table: verify with 1,000 injected corruptions under
// load. All are found, none invented.
func TestRow19CorruptionsUnderLoad(t *testing.T) {
	s := newSystem(t)
	s.relay()
	s.replicate()
	s.replicate()
	const still, hot, wrong = 3000, 50, 1000
	stillest := make([]domain.Customer, 0, still)
	for range still {
		stillest = append(stillest, s.customer())
	}
	for _, c := range stillest[:still/2] {
		require.NoError(t, s.rename(c.ID))
	}
	var busy []domain.Customer
	for range hot {
		busy = append(busy, s.customer())
	}
	stop := s.load(4, busy)
	_, found := s.verify()
	require.Empty(t, found, "none invented")

	random := rand.New(rand.NewPCG(3, 4))
	c := s.db.Collection("_customers")
	want := map[string]verify.Kind{}
	for n, i := range random.Perm(still)[:wrong] {
		id := stillest[i].ID.String()
		is := bson.D{{Key: "_id", Value: id}}
		var err error
		switch n % 5 {
		case 0:
			want[id] = verify.Missing
			_, err = c.DeleteOne(t.Context(), is)
		case 1:
			if i < still/2 {
				want[id] = verify.Stale
				_, err = c.UpdateOne(t.Context(), is, bson.D{{Key: "$set", Value: bson.D{{Key: "version", Value: int64(1)}}}})
				break
			}
			want[id] = verify.Ahead
			_, err = c.UpdateOne(t.Context(), is, bson.D{{Key: "$set", Value: bson.D{{Key: "version", Value: int64(9)}}}})
		case 2:
			want[id] = verify.Corrupt
			_, err = c.UpdateOne(t.Context(), is, bson.D{{Key: "$set", Value: bson.D{{Key: "name", Value: "Eve"}}}})
		case 3:
			want[id] = verify.Corrupt
			_, err = c.UpdateOne(t.Context(), is, bson.D{{Key: "$unset", Value: bson.D{{Key: "address.city", Value: ""}}}})
		default:
			id = uuid.Must(uuid.NewV7()).String()
			want[id] = verify.Extra
			_, err = c.InsertOne(t.Context(), bson.D{{Key: "_id", Value: id}, {Key: "version", Value: int64(1)}, {Key: "name", Value: "Nobody"}})
		}
		require.NoError(t, err)
	}
	_, found = s.verify()
	require.Len(t, want, wrong)
	got := map[string]verify.Kind{}
	for id, d := range found {
		got[id] = d.Kind
	}
	require.Equal(t, want, got)

	report, found := s.verify(func(v *verify.Replica) { v.Repair = true })
	require.Len(t, found, wrong)
	require.Equal(t, int64(wrong), report.Repaired)
	_, found = s.verify()
	require.Empty(t, found)
	stop()
	report, found = s.verify()
	require.Empty(t, found)
	require.Greater(t, report.Rows[domain.AggregateCustomer], int64(still+hot))
	require.Positive(t, report.Rows[domain.AggregateOrder])
	require.Zero(t, report.Undecided)
}
