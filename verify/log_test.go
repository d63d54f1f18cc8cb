package verify_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"outflow/domain"
	"outflow/internal/kafkatest"
	"outflow/outbox"
	"outflow/store"
	"outflow/verify"
)

// verifyLog returns what a check of the log finds.
func (s *system) verifyLog(change ...func(*verify.Log)) (*verify.LogReport, []verify.LogFault) {
	s.t.Helper()
	var found []verify.LogFault
	l := &verify.Log{
		Store: s.store, PostgresURL: s.pg.URL, Brokers: s.Brokers, Namespace: s.Namespace, Kafka: kafkatest.Opts(),
		Published: func(ctx context.Context) error { return outbox.AwaitPublished(ctx, s.relayConfig()) },
		OnFault:   func(f verify.LogFault) { found = append(found, f) },
	}
	for _, c := range change {
		c(l)
	}
	report, err := l.Run(s.t.Context())
	require.NoError(s.t, err)
	return report, found
}

func (s *system) exec(sql string, args ...any) {
	s.t.Helper()
	_, err := s.pg.Pool.Exec(s.t.Context(), sql, args...)
	require.NoError(s.t, err)
}

func TestALogUnderLoadIsSound(t *testing.T) {
	s := newSystem(t)
	s.relay()
	var all []domain.Customer
	for range 20 {
		all = append(all, s.customer())
	}
	stop := s.load(4, all)
	for range 3 {
		report, found := s.verifyLog()
		require.Empty(t, found)
		require.Positive(t, report.Records)
		require.False(t, report.Partial)
	}
	stop()
	report, found := s.verifyLog()
	require.Empty(t, found)
	require.Equal(t, report.Events, report.Records)
	// Several passes. While the load goes on, each would have more to read than
	// the one before, and the load more time to go on.
	again, found := s.verifyLog(func(l *verify.Log) { l.MaxAggregates = max(1, report.Records/8) })
	require.Empty(t, found)
	require.Equal(t, report.Records, again.Records)
}

func TestFaultsOfTheLogAreTold(t *testing.T) {
	s := newSystem(t)
	var c []domain.Customer
	for range 6 {
		one := s.customer()
		require.NoError(t, s.rename(one.ID))
		require.NoError(t, s.rename(one.ID))
		c = append(c, one)
	}
	local := func(l *verify.Log) { l.Brokers = nil }
	_, found := s.verifyLog(local)
	require.Empty(t, found)
	s.exec(`DELETE FROM outbox WHERE aggregate_id = $1 AND aggregate_version = 2`, c[0].ID.String())
	s.exec(`UPDATE outbox SET before = '{"name":"Eve"}' WHERE aggregate_id = $1 AND aggregate_version = 3`, c[1].ID.String())
	s.exec(`DELETE FROM outbox WHERE aggregate_id = $1 AND aggregate_version = 3`, c[2].ID.String())
	s.exec(`UPDATE customers SET name = 'Eve' WHERE id = $1`, c[3].ID.String())
	s.exec(`UPDATE customers SET version = 2 WHERE id = $1`, c[4].ID.String())
	s.exec(`DELETE FROM outbox WHERE aggregate_id = $1 AND aggregate_version = 1`, c[5].ID.String())
	_, found = s.verifyLog(local)
	fault := func(f verify.Fault, n int, version int64) verify.LogFault {
		return verify.LogFault{Fault: f, Type: "customer", ID: c[n].ID.String(), Version: version}
	}
	require.ElementsMatch(t, []verify.LogFault{
		fault(verify.Gap, 0, 3), fault(verify.Broken, 1, 3), fault(verify.NoEvent, 2, 3), fault(verify.RowDiffers, 3, 3),
		fault(verify.RowBehind, 4, 3), fault(verify.RowDiffers, 4, 2), fault(verify.Gap, 5, 2),
	}, found)
}

// No constraint keeps two events from having one version. They are told wherever
// the pages end that the log is read in.
func TestTwoEventsOfOneVersionAreTold(t *testing.T) {
	s := newSystem(t)
	const events = 10_000
	s.exec(`INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, after, metadata, occurred_at)
		SELECT gen_random_uuid(), 'notification', ('00000000-0000-7000-8000-' || lpad(to_hex(n / 2), 12, '0'))::uuid, 1, 'notification.requested.v1', '', '{}', '{}', now()
		FROM generate_series(1, $1) n`, events)
	report, found := s.verifyLog(func(l *verify.Log) { l.Brokers = nil })
	require.Equal(t, int64(events), report.Events)
	require.Len(t, found, events/2-1)
	require.Equal(t, map[verify.Fault]int64{verify.Gap: events/2 - 1}, report.Faults)
}

func TestFaultsOfKafkaAreTold(t *testing.T) {
	s := newSystem(t)
	s.relay()
	var c []domain.Customer
	for range 5 {
		one := s.customer()
		require.NoError(t, s.rename(one.ID))
		require.NoError(t, s.rename(one.ID))
		c = append(c, one)
	}
	_, found := s.verifyLog()
	require.Empty(t, found)
	history := func(n int) []domain.Event {
		events, _, err := s.store.History(t.Context(), domain.AggregateCustomer, c[n].ID, 0, 10)
		require.NoError(t, err)
		return events
	}
	s.Publish(t, history(0)[1]) // again
	stranger := history(1)[2]
	stranger.ID = stranger.AggregateID
	stranger.AggregateVersion = 4
	s.Publish(t, stranger)
	s.exec(`INSERT INTO outbox (xid, event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
		SELECT '5'::xid8, gen_random_uuid(), aggregate_type, aggregate_id, 4, type, key, after, after, metadata, occurred_at
		FROM outbox WHERE aggregate_id = $1 AND aggregate_version = 3`, c[2].ID.String()) // the relay leaves it out: it is another transaction's
	s.Produce(t, &kgo.Record{Topic: s.Namespace.Topic("customer"), Key: []byte("x"), Value: []byte("no event")})
	_, found = s.verifyLog()
	byFault := map[verify.Fault][]verify.LogFault{}
	for _, f := range found {
		byFault[f.Fault] = append(byFault[f.Fault], f)
	}
	require.Len(t, byFault[verify.Duplicated], 1)
	require.Equal(t, c[0].ID.String(), byFault[verify.Duplicated][0].ID)
	require.NotEmpty(t, byFault[verify.Duplicated][0].Where)
	require.Len(t, byFault[verify.Phantom], 2)
	require.Len(t, byFault[verify.Lost], 1)
	require.Equal(t, verify.LogFault{Fault: verify.Lost, Type: "customer", ID: c[2].ID.String(), Version: 4}, byFault[verify.Lost][0])
	require.NotEmpty(t, byFault[verify.RowBehind])
}

// Whatever of an event is another in Kafka: consumers go by all of it. The time of
// a deletion, for one, is in the replica.
func TestWhatIsNotSoInKafkaIsTold(t *testing.T) {
	s := newSystem(t)
	s.CreateTopics(t, 1) // one with another key would come in any order
	changes := []func(*domain.Event){
		func(*domain.Event) {}, // equal
		func(e *domain.Event) { e.ID[15]++ },
		func(e *domain.Event) { e.Type = domain.CustomerUpdated },
		func(e *domain.Event) { e.Key = "another" },
		func(e *domain.Event) { e.OccurredAt = e.OccurredAt.Add(time.Millisecond) },
		func(e *domain.Event) { e.Before = nil },
		func(e *domain.Event) { e.After = e.Before },
		func(e *domain.Event) { e.Metadata = json.RawMessage(`{"actor":"eve"}`) },
	}
	var want []string
	for n, change := range changes {
		one := s.customer()
		require.NoError(t, s.store.DeleteCustomer(t.Context(), one.ID, store.Precondition{}, domain.Metadata{}))
		events, _, err := s.store.History(t.Context(), domain.AggregateCustomer, one.ID, 0, 10)
		require.NoError(t, err)
		change(&events[1])
		s.Publish(t, events...)
		if n > 0 {
			want = append(want, one.ID.String())
		}
	}
	_, found := s.verifyLog(func(l *verify.Log) { l.Published = func(context.Context) error { return nil } })
	var got []string
	for _, f := range found {
		if f.Type == domain.AggregateCustomer {
			require.Equal(t, verify.Phantom, f.Fault)
			require.Equal(t, int64(2), f.Version)
			got = append(got, f.ID)
		}
	}
	require.ElementsMatch(t, want, got)
}

// Rows that were restored from another cluster carry its transaction ids, which
// may be higher than those of this one.
func TestRestoredEventsThatKafkaLacksAreTold(t *testing.T) {
	s := newSystem(t)
	s.CreateTopics(t, 1)
	ada := s.customer()
	events, _, err := s.store.History(t.Context(), domain.AggregateCustomer, ada.ID, 0, 10)
	require.NoError(t, err)
	s.Publish(t, events...) // without the notification
	s.exec(`UPDATE outbox SET xid = '1000000000000'`)
	_, found := s.verifyLog(func(l *verify.Log) { l.Published = func(context.Context) error { return nil } })
	require.Len(t, found, 1)
	require.Equal(t, verify.Lost, found[0].Fault)
	require.Equal(t, domain.AggregateNotification, found[0].Type)
}

func TestVersionsOutOfOrderInKafkaAreTold(t *testing.T) {
	s := newSystem(t)
	one := s.customer()
	require.NoError(t, s.rename(one.ID))
	require.NoError(t, s.rename(one.ID))
	events, _, err := s.store.History(t.Context(), domain.AggregateCustomer, one.ID, 0, 10)
	require.NoError(t, err)
	s.CreateTopics(t, 3)
	s.Publish(t, events[0], events[2], events[1])
	_, found := s.verifyLog(func(l *verify.Log) { l.Published = func(context.Context) error { return nil } })
	require.Len(t, found, 2)
	require.Equal(t, verify.OutOfOrder, found[0].Fault)
	require.Equal(t, int64(2), found[0].Version)
	require.Equal(t, verify.Lost, found[1].Fault)
	require.Equal(t, domain.AggregateNotification, found[1].Type)
}

func TestOrdersAreNotRestoredWithoutTheirCustomers(t *testing.T) {
	s := newSystem(t)
	ada := s.customer()
	s.order(ada.ID)
	s.exec(`DELETE FROM outbox WHERE aggregate_id = $1`, ada.ID.String())
	_, err := s.store.Restore(t.Context(), "one", nil)
	require.ErrorIs(t, err, store.ErrCustomersGone)
	s.exec(`TRUNCATE customers, orders`)
	_, err = s.store.Restore(t.Context(), "", nil)
	require.ErrorIs(t, err, store.ErrCustomersGone)
}

// The service doesn't name a schema for its tables: it must not find restored
// ones before its own.
func TestNothingIsRestoredWhereTheLiveTablesAreLookedFor(t *testing.T) {
	s := newSystem(t)
	s.customer()
	var user string
	require.NoError(t, s.pg.Pool.QueryRow(t.Context(), `SELECT current_user`).Scan(&user))
	for _, schema := range []string{user, "public"} {
		_, err := s.store.Restore(t.Context(), schema, nil)
		require.ErrorIs(t, err, store.ErrLiveSchema)
	}
	var there bool
	require.NoError(t, s.pg.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, user).Scan(&there))
	require.False(t, there)
}

func TestTheEventLogIsTheRecord(t *testing.T) {
	s := newSystem(t)
	var all []domain.Customer
	for range 20 {
		all = append(all, s.customer())
	}
	var rows int64
	stop := s.load(4, all)
	for _, schema := range []string{"one", "two"} {
		res, err := s.store.Restore(t.Context(), schema, func(n, total int64) {
			rows = n
			require.Positive(t, total)
		})
		require.NoError(t, err)
		require.Empty(t, res.Differences)
		require.GreaterOrEqual(t, res.Customers, int64(20))
		require.Equal(t, res.Customers+res.Orders, rows)
	}
	o := s.order(all[0].ID)
	for _, err := range s.store.DecideOrders(t.Context(), []domain.ID{o.ID}, func(domain.ID) domain.Metadata { return domain.Metadata{} }) {
		require.NoError(t, err)
	}
	stop()
	_, err := s.store.Restore(t.Context(), "one", nil)
	require.ErrorIs(t, err, store.ErrNotEmpty)
	_, err = s.store.Restore(t.Context(), "", nil)
	require.ErrorIs(t, err, store.ErrNotEmpty)

	// What the log doesn't say.
	s.exec(`UPDATE customers SET phone = '1' WHERE id = $1`, all[3].ID.String())
	res, err := s.store.Restore(t.Context(), "three", nil)
	require.NoError(t, err)
	require.Equal(t, []store.RowDifference{{Table: "customers", ID: all[3].ID, Live: res.Differences[0].Live, Restored: res.Differences[0].Live}}, res.Differences)

	// The tables are lost, and come back.
	s.exec(`TRUNCATE customers, orders`)
	back, err := s.store.Restore(t.Context(), "", nil)
	require.NoError(t, err)
	require.Equal(t, res.Customers, back.Customers)
	require.NoError(t, s.rename(all[3].ID), "and can be changed again")
	report, found := s.verifyLog(func(l *verify.Log) { l.Brokers = nil })
	require.Empty(t, found)
	require.Equal(t, back.Customers+back.Orders, report.Rows)
}

// A broker that is gone is told, and not waited for.
func TestAKafkaThatDeliversNothingIsTold(t *testing.T) {
	s := newSystem(t)
	if s.Fake == nil {
		t.Skip("silences the in-process broker")
	}
	s.relay()
	s.customer()
	require.NoError(t, outbox.AwaitPublished(t.Context(), s.relayConfig()))
	s.Fake.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		s.Fake.KeepControl()
		return nil, errors.New("silence"), true
	})
	l := &verify.Log{
		Store: s.store, PostgresURL: s.pg.URL, Brokers: s.Brokers, Namespace: s.Namespace, Kafka: kafkatest.Opts(),
		Published: func(context.Context) error { return nil }, Patience: 300 * time.Millisecond,
	}
	_, err := l.Run(t.Context())
	require.ErrorContains(t, err, "delivered nothing")
}

// Retention that drops the oldest events during a check makes no faults of it.
func TestALogThatLosesItsBeginningMeanwhileIsToBeCheckedAgain(t *testing.T) {
	s := newSystem(t)
	s.customer()
	l := &verify.Log{
		Store: s.store, PostgresURL: s.pg.URL, Namespace: s.Namespace,
		OnProgress: func(phase string, _, _ int64) {
			if phase == "rows" {
				s.exec(`DROP TABLE IF EXISTS outbox_p0`)
			}
		},
	}
	_, err := l.Run(t.Context())
	require.ErrorIs(t, err, verify.ErrDropped)
	_, found := s.verifyLog(func(l *verify.Log) { l.Brokers = nil })
	require.Empty(t, found)
}
