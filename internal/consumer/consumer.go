// Package consumer is the loop that every worker runs: it reads events from
// Kafka as a member of a consumer group, hands them to the worker's [Handler]
// in batches, and lets the group's offsets follow what was handled.
package consumer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Config says what to consume and how. Brokers, Group, Topics and Handler are
// required.
type Config struct {
	Brokers []string
	Group   string   // the consumer group, as from events.Namespace.Group
	Topics  []string // as from events.Namespace.Topic; Run waits until they exist
	Handler Handler

	MaxBatch int           // most messages in a batch; 500 when 0
	MinRetry time.Duration // the first pause before a message comes again; 100 ms when 0
	MaxRetry time.Duration // the longest such pause; 10 s when 0
	Grace    time.Duration // how long a rebalance or a stop waits for the batch in hand; 20 s when 0

	Positions Positions    // where positions are kept; the group's committed offsets when nil
	Logger    *slog.Logger // slog.Default when nil
	Client    []kgo.Opt    // further options of the Kafka clients: TLS, SASL, what tests need
}

// Consumer is a member of a consumer group. Several may run, in one process
// or many.
type Consumer struct {
	cfg Config
}

// New returns a consumer, which does nothing until it is run.
func New(cfg Config) *Consumer {
	return &Consumer{cfg: cfg}
}

// Stats counts what a consumer did since it was made.
type Stats struct {
	Handled     int64     // messages that were done
	Retried     int64     // times a message came again
	Parked      int64     // messages that were parked
	LastHandled time.Time // when a batch was last done
}

// Stats may be called at any time, also while [Consumer.Run] runs.
func (c *Consumer) Stats() Stats { return Stats{} }

// Run consumes until ctx ends, and then returns nil: it takes no more, lets
// the batch in hand finish (up to Grace), writes positions and leaves the
// group. Kafka being away, topics that don't exist yet, or errors of the
// handler don't end it. It returns an error when Kafka no longer has what was
// to be consumed next ([DataLossError]), when it may not read (authorization),
// or when the configuration is wrong.
func (c *Consumer) Run(ctx context.Context) error {
	return errors.ErrUnsupported
}
