package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/internal/failpoint"
)

// begin makes the progress to go on from out of what was found in Kafka.
func (s *session) begin(ctx context.Context, found *progress, ends offsets) (progress, error) {
	at := progress{Format: progressFormat, System: s.server.system, Timeline: s.server.timeline, Database: s.server.database}
	fresh := func() progress {
		at.Phase, at.Prev = phaseWindow, noTransactions
		return at
	}
	lost := ""
	never := found == nil && ends.empty()
	if found == nil && !never {
		// What a relay wrote that died in its first transaction is there, too,
		// and was never published.
		var err error
		if never, err = s.nothingCommitted(ctx); err != nil {
			return at, err
		}
	}
	switch {
	case never:
		s.log.Info("no progress yet: everything in the outbox is published")
		return fresh(), nil
	case found == nil:
		lost = "the relay's progress is gone from Kafka, where there are events"
	default:
		if err := s.compare(ctx, found); err != nil {
			if !s.cfg.Resync {
				return at, err
			}
			lost = "told to go on with another database"
		} else if topic, i := ends.shorterThan(found.Ends); topic != "" && !failpoint.Mutant("relay.trusting-kafka") {
			lost = fmt.Sprintf("partition %d of topic %s ends at %d, and the relay had published up to %d: Kafka has lost events that it had acknowledged, or the topic was made anew",
				i, topic, ends[topic][i], found.Ends[topic][i])
		}
		at.Events = found.Events
	}
	if lost == "" {
		system := at
		at = *found
		at.Format, at.System, at.Timeline, at.Database = system.Format, system.System, system.Timeline, system.Database
		return at, nil
	}
	s.log.Error("publishing every event of the outbox that Kafka does not hold; consumers may see events of a key that was affected out of order", "why", lost)
	s.update(func(st *Stats) { st.Heals++ })
	if err := s.holdsEverything(ctx); err != nil {
		return at, fatalf("%s; %w", lost, err)
	}
	p := fresh()
	return p, s.fallBack(ctx, &p)
}

// nothingCommitted reports whether the event topics never held a record that a
// consumer would see: they have dropped none, and hold none.
func (s *session) nothingCommitted(ctx context.Context) (bool, error) {
	starts, err := kadm.NewClient(s.kafka).ListStartOffsets(ctx, s.cfg.Namespace.Topics()...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return false, fmt.Errorf("list the topics' beginnings: %w", err)
	}
	dropped := false
	starts.Each(func(o kadm.ListedOffset) { dropped = dropped || o.Offset > 0 })
	if dropped {
		return false, nil
	}
	there := errors.New("a committed record")
	err = s.scan(ctx, nil, func(*kgo.Record) error { return there })
	if errors.Is(err, there) {
		return false, nil
	}
	return err == nil, err
}

// holdsEverything refuses topics that drop events by themselves: what they do
// not hold may have been published all the same.
func (s *session) holdsEverything(ctx context.Context) error {
	adm := kadm.NewClient(s.kafka)
	starts, err := adm.ListStartOffsets(ctx, s.cfg.Namespace.Topics()...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("list the topics' beginnings: %w", err)
	}
	var dropped error
	starts.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			dropped = errors.Join(dropped, fmt.Errorf("topic %s no longer holds its first events, so nobody can tell what was published: publish to another namespace", o.Topic))
		}
	})
	if dropped != nil {
		return dropped
	}
	configs, err := adm.DescribeTopicConfigs(ctx, s.cfg.Namespace.Topics()...)
	if err != nil {
		return fmt.Errorf("describe the topics: %w", err)
	}
	for _, rc := range configs {
		for _, c := range rc.Configs {
			if c.Key == "cleanup.policy" && strings.Contains(c.MaybeValue(), "compact") {
				return fmt.Errorf("topic %s is compacted, so nobody can tell what was published: publish to another namespace", rc.Name)
			}
		}
	}
	return nil
}

// resyncWayOut is how to resolve what only a person can decide.
const resyncWayOut = "publish to another namespace, or run `outflow relay --resync` once, which publishes every event of this database that Kafka does not hold"

// compare refuses progress that was made with another database: its
// transaction ids and log positions mean nothing in this one.
func (s *session) compare(ctx context.Context, p *progress) error {
	switch {
	case p.System != s.server.system:
		return fatalf("this database belongs to cluster %s, and what relay group %s has published came from cluster %s (was it restored from a dump?): connect to that one, or %s",
			s.server.system, s.cfg.Group, p.System, resyncWayOut)
	case p.Database != s.server.database:
		return fatalf("this is database %d of the cluster, and what relay group %s has published came from database %d: connect to that one, or %s",
			s.server.database, s.cfg.Group, p.Database, resyncWayOut)
	case p.Timeline == s.server.timeline:
		return nil
	}
	// A standby was promoted or a backup restored. What is published is safe if
	// the new timeline left the old one only after it: all transaction ids that
	// the progress speaks of are then in the history of this timeline too.
	left, err := s.leftTimeline(ctx, p.Timeline)
	if err != nil {
		return err
	}
	published := max(p.LSN, p.PrevLSN)
	if published <= left {
		s.log.Warn("the cluster has a new timeline that holds all that is published", "timeline", s.server.timeline, "was", p.Timeline, "left_at", left, "published", published)
		return nil
	}
	return fatalf("the cluster is on timeline %d, which left timeline %d at %s, and relay group %s has published up to %s: the events that were committed between the two are in Kafka and not in this database: %s",
		s.server.timeline, p.Timeline, left, s.cfg.Group, published, resyncWayOut)
}

// leftTimeline returns where the server's history left a timeline.
func (s *session) leftTimeline(ctx context.Context, timeline uint32) (lsn, error) {
	conn, err := s.connectReplication(ctx)
	if err != nil {
		return 0, err
	}
	defer closeConn(conn)
	history, err := pglogrepl.TimelineHistory(ctx, conn, int32(s.server.timeline))
	if err != nil {
		return 0, fmt.Errorf("read the history of timeline %d: %w", s.server.timeline, err)
	}
	for line := range strings.Lines(string(history.Content)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if id, err := strconv.ParseUint(fields[0], 10, 32); err != nil || uint32(id) != timeline {
			continue
		}
		var at lsn
		if err := at.UnmarshalText([]byte(fields[1])); err != nil {
			return 0, fmt.Errorf("read the history of timeline %d: %w", s.server.timeline, err)
		}
		return at, nil
	}
	return 0, nil // not an ancestor: nothing of it is here
}

// empty reports whether nothing was ever written.
func (o offsets) empty() bool {
	for _, ends := range o {
		if slices.Max(ends) > 0 {
			return false
		}
	}
	return true
}

// shorterThan names a partition that ends before another time's end.
func (o offsets) shorterThan(before offsets) (topic string, partition int) {
	for topic, ends := range before {
		for i, end := range ends {
			if i < len(o[topic]) && o[topic][i] < end {
				return topic, i
			}
		}
	}
	return "", 0
}
