// Package confirmer decides orders: it hears that an order was placed, and has
// it confirmed if the customer is in good standing and rejected if not.
//
// The decision is made by the database's state at that moment, under locks
// ([outflow/store.Store.DecideOrders]), not by what the event says. An order
// that was decided or cancelled meanwhile is left alone, so redelivery, any
// number of confirmers and a replay from the beginning change nothing twice.
package confirmer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/failpoint"
)

// Actor is what the confirmer's decisions name as who did it.
const Actor = "confirmer"

// Decider decides orders, as [outflow/store.Store] does: it returns an error,
// or nil, for each id.
type Decider interface {
	DecideOrders(ctx context.Context, ids []domain.ID, metadata func(domain.ID) domain.Metadata) []error
}

// Confirmer handles the events of orders. Its zero value can't be used.
type Confirmer struct {
	store Decider
	log   *slog.Logger
}

// New returns a confirmer. A nil logger is slog.Default.
func New(store Decider, log *slog.Logger) *Confirmer {
	if log == nil {
		log = slog.Default()
	}
	return &Confirmer{store: store, log: log}
}

// Handle is the confirmer's [consumer.Handler]: the placed orders among the
// messages are decided together, in one transaction, and all other events are
// none of its business.
func (c *Confirmer) Handle(ctx context.Context, batch []consumer.Message) []error {
	var ids []domain.ID
	var at []int // where in the batch
	placed := map[domain.ID]domain.Event{}
	for i, m := range batch {
		if m.Event.Type == domain.OrderPlaced {
			ids = append(ids, m.Event.AggregateID)
			at = append(at, i)
			placed[m.Event.AggregateID] = m.Event
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if err := failpoint.Hit(failpoint.ConfirmerDecide); err != nil {
		return slices.Repeat([]error{err}, len(batch))
	}
	began := time.Now()
	errs := make([]error, len(batch))
	failed := 0
	for i, err := range c.store.DecideOrders(ctx, ids, func(id domain.ID) domain.Metadata { return metadata(placed[id]) }) {
		if err != nil {
			failed++
			errs[at[i]] = classify(batch[at[i]].Event, fmt.Errorf("decide order %s: %w", ids[i], err))
		}
	}
	if err := failpoint.Hit(failpoint.ConfirmerDecided); err != nil {
		return slices.Repeat([]error{err}, len(batch))
	}
	c.log.DebugContext(ctx, "orders decided", "orders", len(ids), "failed", failed, "took", time.Since(began))
	return errs
}

// metadata carries on the story that the placed order belongs to. Metadata
// that can't be read is no reason to leave an order undecided.
func metadata(placed domain.Event) domain.Metadata {
	var story domain.Metadata
	if err := json.Unmarshal(placed.Metadata, &story); err != nil {
		story = domain.Metadata{}
	}
	return domain.Metadata{
		Actor: Actor, CausationID: placed.ID.String(),
		CorrelationID: story.CorrelationID, Traceparent: story.Traceparent,
	}
}

// settled is how old the event of an order that isn't there must be for the
// order to be missing for good. The relay reads the log of PostgreSQL, where a
// transaction is before others can see it: for a moment, when its process has to
// wait for a processor before it can say that it has committed, or for as long as
// a synchronous standby keeps its commit waiting.
const settled = 15 * time.Minute

// classify marks what trying again can't mend: the order doesn't exist (the
// database was restored from an older backup), or its decision is too large to
// be published. Everything else may pass. An order that isn't there yet is no
// failure on a busy machine, and is looked for again at once, then less often
// the longer it takes.
func classify(placed domain.Event, err error) error {
	switch domain.CodeOf(err) {
	case domain.CodeTooLarge:
		return consumer.Permanent(err)
	case domain.CodeNotFound:
		age := time.Since(placed.OccurredAt)
		if age > settled {
			return consumer.Permanent(err)
		}
		return consumer.After(min(max(age/4, 2*time.Millisecond), 10*time.Second), err)
	}
	return err
}
