package outbox

import (
	"cmp"
	"hash/fnv"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/internal/events"
)

// Source is how a relay reads the outbox.
type Source string

// The sources.
const (
	SourceAuto Source = "auto" // logical decoding where the server and the role allow it
	SourceWAL  Source = "wal"  // logical decoding, or an error that says what is missing
	SourcePoll Source = "poll" // snapshot difference
)

// Config is what a [Relay] needs. The zero value of a field means its default;
// PostgresURL and Brokers have none.
type Config struct {
	PostgresURL string
	Brokers     []string
	Namespace   events.Namespace // default events.DefaultNamespace
	Group       string           // relays of one group stand by for each other; default "main"
	Partitions  int              // of every topic of events; a contract; default 6
	Source      Source           // default SourceAuto
	Logger      *slog.Logger     // default: nothing is logged

	// PollInterval is how long to wait between two windows when the last one
	// was empty; default 50 ms.
	PollInterval time.Duration
	// IdleInterval is how often progress is committed, and the slot let go on,
	// while there are no events; default 5 s.
	IdleInterval time.Duration
	// StandbyInterval is how often a standby tries to take over; default 500 ms.
	StandbyInterval time.Duration
	// LeaseTimeout is after how long without a sign of life PostgreSQL ends the
	// session that makes a relay the active one; default 6 s.
	LeaseTimeout time.Duration
	// TransactionTimeout is after how long the broker aborts a transaction that
	// nobody ends. It bounds how long relaying one huge PostgreSQL transaction
	// may take; brokers refuse more than transaction.max.timeout.ms, 15 minutes
	// by default. Default 5 min.
	TransactionTimeout time.Duration

	// Resync lets the relay go on with a database that is not the one it has
	// published from so far, as after a restore: it then publishes every event
	// that Kafka does not hold. Not to be left on.
	Resync bool

	// KafkaOptions are added to those of every Kafka client.
	KafkaOptions []kgo.Opt
	// OnState is called at every change of [Stats.State], if set.
	OnState func(State)

	// hook is called at every failpoint; its error ends the session as if the
	// relay had been killed there.
	hook func(point string) error
	// checkpointInterval is how often the stream takes a checkpoint, and
	// catchUpBytes how much of the log a slot may be behind before windows
	// publish the backlog; defaults below.
	checkpointInterval time.Duration
	catchUpBytes       uint64
	// deaf makes the relay not notice that it lost its lease.
	deaf bool
	// retry is the wait after the first failure in a row; default firstRetry.
	retry time.Duration
}

func (c Config) withDefaults() Config {
	c.Namespace = cmp.Or(c.Namespace, events.DefaultNamespace)
	c.Group = cmp.Or(c.Group, "main")
	c.Partitions = cmp.Or(c.Partitions, 6)
	c.Source = cmp.Or(c.Source, SourceAuto)
	c.PollInterval = cmp.Or(c.PollInterval, 50*time.Millisecond)
	c.IdleInterval = cmp.Or(c.IdleInterval, 5*time.Second)
	c.StandbyInterval = cmp.Or(c.StandbyInterval, 500*time.Millisecond)
	c.LeaseTimeout = cmp.Or(c.LeaseTimeout, 6*time.Second)
	c.TransactionTimeout = cmp.Or(c.TransactionTimeout, 5*time.Minute)
	c.checkpointInterval = cmp.Or(c.checkpointInterval, time.Second)
	c.catchUpBytes = cmp.Or(c.catchUpBytes, 64<<20)
	c.retry = cmp.Or(c.retry, firstRetry)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c *Config) kafkaOpts(opts ...kgo.Opt) []kgo.Opt {
	// The client's own default, 5 s, is how long a topic that was just made, or
	// a leader that just moved, would be waited for.
	all := []kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.ClientID("outflow-relay"), kgo.MetadataMinAge(100 * time.Millisecond)}
	return append(append(all, opts...), c.KafkaOptions...)
}

// name is the relay group's name, unique where namespaces are.
func (c *Config) name() string { return string(c.Namespace) + ".relay." + c.Group }

var notSlotName = regexp.MustCompile(`[^a-z0-9_]+`)

// slotName is the name of the replication slot and of the publication.
func (c *Config) slotName() string {
	name := notSlotName.ReplaceAllString(strings.ToLower(string(c.Namespace)+"_"+c.Group), "_")
	return name[:min(len(name), 63)]
}

// lockKey is the key of the advisory lock that makes a relay the active one.
func (c *Config) lockKey() int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(c.name())) // never fails
	return int64(h.Sum64())
}
