package store

import (
	"context"
	"time"

	"outflow/outbox"
)

// What the event log is read with; package outbox owns it.
type (
	FeedPlace  = outbox.Place
	FeedFilter = outbox.FeedFilter
	FeedPage   = outbox.FeedPage
)

// Feed returns the events after a place in the event log, at most limit. It
// returns CodeHistoryGone for a place that the database no longer has.
func (s *Store) Feed(ctx context.Context, at FeedPlace, filter FeedFilter, limit int) (FeedPage, error) {
	p, err := s.feed.Read(ctx, at, filter, limit)
	return p, wrap("read the feed", err)
}

// AwaitFeed is Feed that waits for events; the page is empty when there was none
// for so long. Any number of callers may wait at the cost of one.
func (s *Store) AwaitFeed(ctx context.Context, at FeedPlace, filter FeedFilter, limit int, wait time.Duration) (FeedPage, error) {
	p, err := s.feed.Next(ctx, at, filter, limit, wait)
	return p, wrap("wait for events", err)
}

// FeedWaits returns how many callers wait in AwaitFeed at the moment.
func (s *Store) FeedWaits() int { return s.feed.Waits() }
