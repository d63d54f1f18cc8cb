package api

import (
	"encoding/binary"
	"encoding/json"
	"time"

	"outflow/domain"
)

// event is an event as the API shows it.
type event struct {
	ID            domain.ID       `json:"id"`
	Type          string          `json:"type"`
	AggregateType string          `json:"aggregate_type"`
	AggregateID   domain.ID       `json:"aggregate_id"`
	Version       int64           `json:"version"`
	OccurredAt    time.Time       `json:"occurred_at"`
	Before        json.RawMessage `json:"before"` // null in the first event
	After         json.RawMessage `json:"after"`  // null once it is deleted
	Metadata      json.RawMessage `json:"metadata"`
}

func shown(e *domain.Event) event {
	return event{
		ID: e.ID, Type: e.Type, AggregateType: e.AggregateType, AggregateID: e.AggregateID, Version: e.AggregateVersion,
		OccurredAt: e.OccurredAt.UTC(), Before: e.Before, After: e.After, Metadata: e.Metadata,
	}
}

// handleHistory lists the events of one resource, oldest first. They stay when
// the resource is deleted.
func (e *entity[T, In]) handleHistory(x *exchange) error {
	id, err := x.id()
	if err != nil {
		return err
	}
	limit, after, err := x.page(&params{query: x.query})
	if err != nil {
		return err
	}
	version := int64(0)
	if after != nil {
		version = int64(binary.BigEndian.Uint64(after))
	}
	events, next, err := e.history(x.r.Context(), e.aggregate, id, version, limit)
	if err != nil {
		return err
	}
	body := list[event]{Data: make([]event, len(events))}
	for i := range events {
		body.Data[i] = shown(&events[i])
	}
	if next != 0 {
		if body.NextCursor, err = x.next(binary.BigEndian.AppendUint64(nil, uint64(next))); err != nil {
			return err
		}
	}
	return x.reply(body)
}
