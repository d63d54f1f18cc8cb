package consumer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
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

const (
	sessionTimeout = 6 * time.Second        // a member that is silent for this long is dead
	heartbeat      = time.Second            // how often a member shows that it is alive
	fetchBytes     = 2 << 20                // how much one answer of Kafka may hold, unless one record is larger
	requestTimeout = 10 * time.Second       // how long one question to Kafka or to Positions may take
	checkInterval  = 2 * time.Second        // how often topics are looked at
	seekInterval   = 500 * time.Millisecond // how often stored positions are: a rebuild waits for whoever is idle

	// metadataMinAge is how soon a client asks for metadata again when it needs
	// it. The client's own default, 5 s, is how long a topic that was just made,
	// or a leader that just moved, would be waited for.
	metadataMinAge = 100 * time.Millisecond
)

// Consumer is a member of a consumer group. Several may run, in one process
// or many.
type Consumer struct {
	Config

	statsMu sync.Mutex
	stats   Stats
}

// New returns a consumer, which does nothing until it is run.
func New(cfg Config) *Consumer {
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 500
	}
	if cfg.MinRetry == 0 {
		cfg.MinRetry = 100 * time.Millisecond
	}
	if cfg.MaxRetry == 0 {
		cfg.MaxRetry = 10 * time.Second
	}
	if cfg.Grace == 0 {
		cfg.Grace = 20 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Logger = cfg.Logger.With("group", cfg.Group)
	return &Consumer{Config: cfg}
}

// Stats counts what a consumer did since it was made.
type Stats struct {
	Handled     int64     // messages that were done
	Retried     int64     // times that a message was to come again
	Parked      int64     // messages that were parked
	LastHandled time.Time // when a batch was last done
	Joined      bool      // a member of the group, and knows where to begin in all partitions that it got
	Partitions  int       // that the consumer has
	Lag         int64     // records that wait in the partitions that the consumer has
}

// Stats may be called at any time, also while [Consumer.Run] runs.
func (c *Consumer) Stats() Stats {
	c.statsMu.Lock()
	defer c.statsMu.Unlock()
	return c.stats
}

func (c *Consumer) count(change func(*Stats)) {
	c.statsMu.Lock()
	defer c.statsMu.Unlock()
	change(&c.stats)
}

// Run consumes until ctx ends, and then returns nil: it takes no more, lets
// the batch in hand finish (up to Grace), writes positions and leaves the
// group. Kafka being away, topics that don't exist yet, or errors of the
// handler don't end it. It returns an error when Kafka no longer has what was
// to be consumed next ([DataLossError]), when it may not read (authorization),
// or when the configuration is wrong.
func (c *Consumer) Run(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		begun := time.Now()
		err := c.session(ctx)
		restart, ok := errors.AsType[*restartError](err)
		if ctx.Err() != nil && (err == nil || ok) {
			return nil
		}
		if !ok {
			return err
		}
		c.Logger.Warn("beginning again", "reason", restart.err)
		if time.Since(begun) > c.MaxRetry {
			attempt = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.pause(attempt)):
		}
	}
}

// pause is how long to wait after the attempt-th failure in a row: twice as
// long each time, and different for everyone who waits for the same thing.
func (c *Consumer) pause(attempt int) time.Duration {
	d := c.MaxRetry
	if attempt < 30 {
		d = min(c.MaxRetry, c.MinRetry<<attempt)
	}
	return d/2 + rand.N(d/2+1)
}
