package analytics

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
)

// A window takes in its end and not its start, wherever full hours are.
func TestWindowsSlide(t *testing.T) {
	s := start(t)
	noon := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	s.deliver(t, placed(id(9), id(1), "EUR", 100, noon.Add(-48*time.Hour)).confirm(noon).events...)
	const ms = time.Millisecond
	for _, row := range []struct {
		now    time.Time
		window time.Duration
		counts bool
	}{
		{noon, time.Second, true},
		{noon.Add(-ms), time.Second, true}, // the present second counts as a whole
		{noon.Add(-time.Second), 24 * time.Hour, false},
		{noon.Add(time.Second), time.Second, false},
		{noon.Add(time.Second), 2 * time.Second, true},
		{noon.Add(ms), time.Second, false},
		{noon.Add(time.Hour), time.Hour, false},
		{noon.Add(time.Hour), time.Hour + time.Second, true},
		{noon.Add(time.Hour - time.Second), time.Hour, true},
		{noon.Add(24 * time.Hour), 24 * time.Hour, false},
		{noon.Add(24*time.Hour - time.Second), 24 * time.Hour, true},
		{noon.Add(36*time.Hour + 17*time.Minute), 36*time.Hour + 17*time.Minute, false},
		{noon.Add(36*time.Hour + 17*time.Minute), 36*time.Hour + 17*time.Minute + time.Second, true},
	} {
		summary, err := s.reader(row.now).Summary(t.Context(), row.window)
		require.NoError(t, err)
		require.Equal(t, row.counts, len(summary.Revenue) == 1, "%s until %s", row.window, row.now)
		series, err := s.reader(row.now).Timeseries(t.Context(), MetricOrders, Hourly, row.window)
		require.NoError(t, err)
		var n int64
		for i, p := range series.Points {
			n += *p.Orders
			require.Equal(t, series.From.Add(ms).Truncate(time.Hour).Add(time.Duration(i)*time.Hour), p.Start)
		}
		require.Equal(t, row.counts, n == 1, "%s until %s", row.window, row.now)
	}
}

func TestNothingWasCountedYet(t *testing.T) {
	s := start(t)
	require.NoError(t, s.db.Drop(t.Context()))
	r := s.reader(epoch)
	summary, err := r.Summary(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, oracleOf(nil).summary(ending(domain.Timestamp(epoch), time.Hour)), summary)
	top, err := r.TopCustomers(t.Context(), time.Hour, 3, "EUR")
	require.NoError(t, err)
	require.Equal(t, []TopCustomer{}, top.Customers)
	transactions, err := r.Transactions(t.Context(), id(1), time.Hour)
	require.NoError(t, err)
	require.Equal(t, []Transaction{}, transactions.Transactions)
	last, err := r.Latest(t.Context(), id(1))
	require.NoError(t, err)
	require.Equal(t, []Transaction{}, last)
}

func TestQuestionsThatMakeNoSense(t *testing.T) {
	s := start(t)
	r := s.reader(epoch)
	_, err := r.Timeseries(t.Context(), "customers", Hourly, time.Hour)
	require.Error(t, err)
	_, err = r.Timeseries(t.Context(), MetricOrders, "1m", time.Hour)
	require.Error(t, err)
	_, err = r.TopCustomers(t.Context(), time.Hour, 0, "EUR")
	require.Error(t, err)
}

func TestMongoDBIsAway(t *testing.T) {
	s := start(t)
	if s.fake == nil {
		t.Skip("stops the in-process MongoDB server")
	}
	r := s.reader(epoch)
	_, err := r.Summary(t.Context(), time.Hour)
	require.NoError(t, err)
	require.NoError(t, s.fake.Close())
	_, err = r.Summary(t.Context(), time.Hour)
	require.Equal(t, domain.CodeUnavailable, domain.CodeOf(err), "%v", err)
	_, err = r.Latest(t.Context(), id(1))
	require.Equal(t, domain.CodeUnavailable, domain.CodeOf(err), "%v", err)
}

// reads is what a server was asked, and how much it answered.
type reads struct {
	mu        sync.Mutex
	commands  []bson.Raw
	documents int
}

func (r *reads) take() (commands []bson.Raw, documents int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.commands, r.documents = nil, 0 }()
	return r.commands, r.documents
}

func (r *reads) monitor() *event.CommandMonitor {
	return &event.CommandMonitor{
		Started: func(_ context.Context, e *event.CommandStartedEvent) {
			if slices.Contains([]string{"find", "aggregate"}, e.CommandName) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.commands = append(r.commands, slices.Clone(e.Command))
			}
		},
		Succeeded: func(_ context.Context, e *event.CommandSucceededEvent) {
			for _, batch := range []string{"firstBatch", "nextBatch"} {
				if v, err := e.Reply.LookupErr("cursor", batch); err == nil {
					all, err := v.Array().Values()
					must(err)
					r.mu.Lock()
					r.documents += len(all)
					r.mu.Unlock()
				}
			}
		},
	}
}

// Every question reads a part of an index that the window bounds, or that a
// limit does in the index's order, and nothing else; years of history beside it
// change neither what is asked nor how much is answered.
func TestTheCostOfAnAnswerDoesNotGrowWithHistory(t *testing.T) {
	s := start(t)
	now := epoch.Add(30 * time.Hour)
	for n := range 20 {
		at := epoch.Add(time.Duration(n) * time.Hour)
		s.deliver(t, placed(id(1000+n), id(1+n%3), "EUR", 10, at).confirm(at.Add(time.Minute)).fulfil(at.Add(time.Hour)).refund(at.Add(2*time.Hour)).events...)
	}
	var seen reads
	client, err := mongo.Connect(options.Client().ApplyURI(s.uri).SetMonitor(seen.monitor()))
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Disconnect(context.Background())) }()
	r := NewReader(client.Database(s.db.Name()), func() time.Time { return now })
	ask := func() (answers []any, commands []bson.Raw, documents int) {
		ctx := t.Context()
		summary, err := r.Summary(ctx, 24*time.Hour)
		require.NoError(t, err)
		series, err := r.Timeseries(ctx, MetricRevenue, Hourly, 24*time.Hour)
		require.NoError(t, err)
		top, err := r.TopCustomers(ctx, 24*time.Hour, 2, "EUR")
		require.NoError(t, err)
		transactions, err := r.Transactions(ctx, id(1), 6*time.Hour)
		require.NoError(t, err)
		last, err := r.Latest(ctx, id(1))
		require.NoError(t, err)
		commands, documents = seen.take()
		return []any{summary, series, top, transactions, last}, commands, documents
	}
	answers, commands, documents := ask()

	st, err := readState(t.Context(), s.db)
	require.NoError(t, err)
	b := &books{s.db, st.Generation}
	for _, c := range commands {
		require.NoError(t, bounded(t.Context(), b, c))
	}
	var old []any
	var hours []any
	for n := range 5000 {
		at := epoch.Add(-time.Duration(n+1) * time.Hour)
		old = append(old, fact{
			ID: id(100_000 + n).String(), Version: 4, Status: "refunded", Customer: id(1 + n%3).String(), Currency: "EUR", Total: 1,
			PlacedAt: at, ConfirmedAt: at, RefundedAt: at,
		})
		hours = append(hours, bucket{ID: cell{ofOrders, hourOf(at)}.bucket(9), Of: ofOrders, Hour: hourOf(at), Revision: 1, Counters: map[string]int64{"status:refunded": 1}})
	}
	_, err = b.collection(ofOrders).InsertMany(t.Context(), old)
	require.NoError(t, err)
	_, err = b.collection(buckets).InsertMany(t.Context(), hours)
	require.NoError(t, err)

	again, commandsAgain, documentsAgain := ask()
	require.Equal(t, answers, again)
	require.Len(t, commandsAgain, len(commands))
	require.Equal(t, documents, documentsAgain)
}

// bounded checks that there is an index in which a command's filter bounds what
// has to be looked at.
func bounded(ctx context.Context, b *books, command bson.Raw) error {
	var c struct {
		Find, Aggregate string
		Filter          bson.D
		Pipeline        []bson.D
		Sort            bson.D
		Limit           int64
	}
	if err := bson.Unmarshal(command, &c); err != nil {
		return err
	}
	name, filter := c.Find, c.Filter
	if c.Aggregate != "" {
		name, filter = c.Aggregate, c.Pipeline[0][0].Value.(bson.D)
	}
	equal, ranged := map[string]bool{}, map[string]bool{}
	for _, e := range filter {
		operators, ok := e.Value.(bson.D)
		switch {
		case !ok:
			equal[e.Key] = true
		case operators[0].Key == "$gte" && operators[1].Key == "$lt":
			ranged[e.Key] = true
		}
	}
	if equal["_id"] {
		return nil
	}
	specs, err := b.db.Collection(name).Indexes().ListSpecifications(ctx)
	if err != nil {
		return err
	}
	for _, x := range specs {
		var keys bson.D
		if err := bson.Unmarshal(x.KeysDocument, &keys); err != nil {
			return err
		}
		for len(keys) > 0 && equal[keys[0].Key] {
			keys = keys[1:]
		}
		// The buckets of customers are one per partition.
		if len(keys) > 0 && ranged[keys[0].Key] || len(keys) == 1 && keys[0].Key == "hour" {
			return nil
		}
	}
	return fmt.Errorf("no index bounds what is looked at by %s", command)
}
