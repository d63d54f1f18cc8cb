package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"outflow/internal/failpoint"
)

// Relay publishes the outbox to Kafka. Of the relays of a group one works and
// the others stand by.
type Relay struct {
	cfg Config

	mu    sync.Mutex
	stats Stats
}

// NewRelay returns a relay that [Relay.Run] runs.
func NewRelay(cfg Config) *Relay {
	return &Relay{cfg: cfg.withDefaults(), stats: Stats{State: StateStopped}}
}

// fatalError is an error that trying again does not mend.
type fatalError struct{ error }

func (e fatalError) Unwrap() error { return e.error }

func fatalf(format string, args ...any) error { return fatalError{fmt.Errorf(format, args...)} }

const (
	// firstRetry and lastRetry bound the wait before a failed session is
	// followed by the next one.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Run relays until ctx is done, and then returns nil once what had been begun
// is committed. When PostgreSQL or Kafka is away, it waits and carries on. It
// returns an error only for what waiting does not mend, such as a topic with
// another number of partitions; the error says what to do.
func (r *Relay) Run(ctx context.Context) error {
	defer r.setState(StateStopped)
	wait := &backoff.ExponentialBackOff{InitialInterval: r.cfg.retry, MaxInterval: min(lastRetry, 50*r.cfg.retry), Multiplier: 2, RandomizationFactor: 0.3}
	wait.Reset()
	for {
		r.setState(StateStarting)
		began := time.Now()
		err := r.session(ctx)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				r.cfg.Logger.Warn("relay stopped with work unfinished; the next one carries on", "err", err)
			}
			return nil
		}
		if fatal, ok := errors.AsType[fatalError](err); ok {
			return fmt.Errorf("relay %s: %w", r.cfg.Group, fatal.error)
		}
		r.interrupted(err)
		if failpoint.Mutant("relay.gives-up") {
			return err
		}
		if time.Since(began) > 2*lastRetry {
			wait.Reset()
		}
		delay := wait.NextBackOff()
		r.cfg.Logger.Warn("relaying interrupted", "err", err, "retry_in", delay)
		if pause(ctx, delay) != nil {
			return nil
		}
	}
}

// pause waits for d, or until ctx is done, and then returns why.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// at passes a failpoint.
func (r *Relay) at(point string) error {
	if r.cfg.hook != nil {
		if err := r.cfg.hook(point); err != nil {
			return err
		}
	}
	return failpoint.Hit(point)
}
