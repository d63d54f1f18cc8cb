package confirmer_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"outflow/confirmer"
	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/events"
	"outflow/internal/pgtest"
	"outflow/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, pgtest.IgnoreServer()) }

// deliver makes messages of an order's events, through the form that they have
// on Kafka.
func deliver(t *testing.T, s *store.Store, orders ...domain.ID) []consumer.Message {
	t.Helper()
	var batch []consumer.Message
	for _, id := range orders {
		history, _, err := s.History(t.Context(), domain.AggregateOrder, id, 0, 0)
		require.NoError(t, err)
		for _, e := range history {
			r := events.DefaultNamespace.Record(&e)
			e, err := events.Decode(r)
			require.NoError(t, err)
			batch = append(batch, consumer.Message{Event: e, Topic: r.Topic, Offset: int64(len(batch)), Record: r})
		}
	}
	return batch
}

func place(t *testing.T, s *store.Store, status domain.CustomerStatus, m domain.Metadata) domain.Order {
	t.Helper()
	c, err := s.CreateCustomer(t.Context(), domain.CustomerInput{Name: "Ada", Email: uuid.NewString() + "@example.com", Status: status}, m)
	require.NoError(t, err)
	o, err := s.PlaceOrder(t.Context(), domain.OrderInput{
		CustomerID: c.ID, Currency: "EUR", Items: []domain.Item{{SKU: "tea", Quantity: 1, UnitPrice: 450}},
	}, m)
	require.NoError(t, err)
	return o
}

func TestPlacedOrdersAreDecided(t *testing.T) {
	t.Parallel()
	s := store.New(pgtest.New(t).Pool, store.Config{})
	api := domain.Metadata{Actor: "api", CorrelationID: "request-1", CausationID: "none", Traceparent: "00-1-2-01"}
	good, bad := place(t, s, domain.CustomerActive, api), place(t, s, domain.CustomerSuspended, domain.Metadata{})
	cancelled := place(t, s, domain.CustomerActive, api)
	_, err := s.CancelOrder(t.Context(), cancelled.ID, store.Precondition{}, api)
	require.NoError(t, err)

	batch := deliver(t, s, cancelled.ID, good.ID, bad.ID, good.ID)
	require.Len(t, batch, 5)
	c := confirmer.New(s, slog.New(slog.DiscardHandler))
	for range 3 {
		for _, err := range c.Handle(t.Context(), batch) {
			require.NoError(t, err)
		}
	}
	for id, want := range map[domain.ID]domain.OrderStatus{
		good.ID: domain.OrderStatusConfirmed, bad.ID: domain.OrderStatusRejected, cancelled.ID: domain.OrderStatusCancelled,
	} {
		o, err := s.Order(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, want, o.Status)
		require.Equal(t, int64(2), o.Version, "decided once")
	}
	for id, story := range map[domain.ID]domain.Metadata{good.ID: api, bad.ID: {}} {
		history, _, err := s.History(t.Context(), domain.AggregateOrder, id, 0, 0)
		require.NoError(t, err)
		var m domain.Metadata
		require.NoError(t, json.Unmarshal(history[1].Metadata, &m))
		require.Equal(t, domain.Metadata{
			Actor: "confirmer", CausationID: history[0].ID.String(),
			CorrelationID: story.CorrelationID, Traceparent: story.Traceparent,
		}, m)
	}

	others := deliver(t, s, good.ID)[1:]
	require.Empty(t, c.Handle(t.Context(), others), "nothing to decide")
}

func TestRow20HundredDeliveriesOfOnePlacedOrder(t *testing.T) {
	t.Parallel()
	s := store.New(pgtest.New(t).Pool, store.Config{})
	o := place(t, s, domain.CustomerActive, domain.Metadata{})
	batch := deliver(t, s, o.ID)
	var all errgroup.Group
	for range 100 {
		all.Go(func() error { return errors.Join(confirmer.New(s, nil).Handle(t.Context(), batch)...) })
	}
	require.NoError(t, all.Wait())
	history, _, err := s.History(t.Context(), domain.AggregateOrder, o.ID, 0, 0)
	require.NoError(t, err)
	require.Len(t, history, 2, "placed, and confirmed once")
	require.Equal(t, domain.OrderConfirmed, history[1].Type)
}

// What it means that an order was placed may be something else in a newer
// version: the order waits for a confirmer that knows it.
func TestRow24PlacedOrderOfAnUnknownNewerVersionIsLeftAlone(t *testing.T) {
	t.Parallel()
	s := store.New(pgtest.New(t).Pool, store.Config{})
	o := place(t, s, domain.CustomerActive, domain.Metadata{})
	batch := deliver(t, s, o.ID)
	batch[0].Event.Type = "order.placed.v2"
	require.NoError(t, errors.Join(confirmer.New(s, nil).Handle(t.Context(), batch)...))
	o, err := s.Order(t.Context(), o.ID)
	require.NoError(t, err)
	require.Equal(t, domain.OrderStatusPlaced, o.Status)
}

func TestUnreadableMetadataIsNoObstacle(t *testing.T) {
	t.Parallel()
	s := store.New(pgtest.New(t).Pool, store.Config{})
	o := place(t, s, domain.CustomerActive, domain.Metadata{})
	batch := deliver(t, s, o.ID)
	batch[0].Event.Metadata = json.RawMessage(`{"correlation_id":7}`)
	for _, err := range confirmer.New(s, nil).Handle(t.Context(), batch) {
		require.NoError(t, err)
	}
	o, err := s.Order(t.Context(), o.ID)
	require.NoError(t, err)
	require.Equal(t, domain.OrderStatusConfirmed, o.Status)
}

// An event may be on Kafka before its transaction is visible to others.
func TestAnOrderThatIsNotThereIsParkedOnceItsEventIsOld(t *testing.T) {
	t.Parallel()
	s := store.New(pgtest.New(t).Pool, store.Config{})
	o := place(t, s, domain.CustomerActive, domain.Metadata{})
	batch := append(deliver(t, s, o.ID), deliver(t, s, o.ID)...)
	batch[0].Event.AggregateID = domain.ID{1}
	errs := confirmer.New(s, nil).Handle(t.Context(), batch)
	require.Equal(t, domain.CodeNotFound, domain.CodeOf(errs[0]))
	require.False(t, consumer.IsPermanent(errs[0]), "it may appear")
	require.NoError(t, errs[1], "others are decided")

	batch[0].Event.OccurredAt = time.Now().Add(-time.Hour)
	errs = confirmer.New(s, nil).Handle(t.Context(), batch)
	require.True(t, consumer.IsPermanent(errs[0]))
}

// failing is a store whose database is in trouble.
type failing struct{ err error }

func (f failing) DecideOrders(_ context.Context, ids []domain.ID, _ func(domain.ID) domain.Metadata) []error {
	errs := make([]error, len(ids))
	for i := range errs {
		errs[i] = f.err
	}
	return errs
}

func TestOnlyWhatCannotBeMendedIsParked(t *testing.T) {
	t.Parallel()
	other := domain.Event{Type: domain.OrderConfirmed}
	placed := domain.Event{Type: domain.OrderPlaced, AggregateID: domain.ID{1}}
	for code, permanent := range map[domain.Code]bool{
		domain.CodeUnavailable: false, domain.CodeWriteConflict: false, "": false,
		domain.CodeTooLarge: true, domain.CodeNotFound: true,
	} {
		err := errors.New("unknown")
		if code != "" {
			err = &domain.Error{Code: code}
		}
		errs := confirmer.New(failing{err}, nil).Handle(t.Context(), []consumer.Message{
			{Event: other, Record: &kgo.Record{}}, {Event: placed, Record: &kgo.Record{}},
		})
		require.Len(t, errs, 2)
		require.NoError(t, errs[0])
		require.ErrorIs(t, errs[1], err)
		require.Equal(t, permanent, consumer.IsPermanent(errs[1]), "%q", code)
	}
}
