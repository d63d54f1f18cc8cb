package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"outflow/internal/failpoint"
)

// session is one membership in the group, from joining to leaving.
//
// One goroutine polls, handles and saves. The client calls assign and revoke
// from its own; kgo.BlockRebalanceOnPoll keeps revoke from running between a
// poll that returned something and AllowRebalance, so that what is being
// handled is always owned.
type session struct {
	*Consumer
	begun     chan struct{} // closed once client, positions and group are set: the client begins to join before it is returned
	client    *kgo.Client
	positions Positions
	group     groupPositions
	side      *kgo.Client // for all that isn't consuming
	parked    *parked
	loads     chan loaded
	tasks     sync.WaitGroup
	logs      map[string]string // topic -> id

	ctx  context.Context // ends with the session; its cause says why
	fail context.CancelCauseFunc

	mu     sync.Mutex
	parts  map[Partition]*part
	joined bool               // the group gave partitions, if only none
	sought map[Partition]bool // partitions that were given, and whose positions are still being looked for
	leash  *leash             // of the batch in hand; nil between batches
	poll   context.CancelFunc // ends the poll in hand; nil between polls
	wakes  bool               // whether the next poll is to end at once

	mirrored time.Time // when the group's offsets last followed Positions
	checked  time.Time // when stored positions were last compared
	unsaved  int       // how often saving failed in a row
	retrySav time.Time // when to save again after that
}

func (c *Consumer) session(ctx context.Context) error {
	s := &session{Consumer: c, begun: make(chan struct{}), parts: map[Partition]*part{}, sought: map[Partition]bool{}, logs: map[string]string{}}
	s.ctx, s.fail = context.WithCancelCause(ctx)
	defer s.fail(nil)
	defer c.count(func(t *Stats) { t.Joined, t.Partitions, t.Lag = false, 0, 0 })
	opts := append([]kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ConsumerGroup(c.Group),
		kgo.ConsumeTopics(c.Topics...),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(heartbeat),
		kgo.RebalanceTimeout(max(time.Minute, c.Grace+30*time.Second)),
		kgo.BlockRebalanceOnPoll(),
		kgo.DisableAutoCommit(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Transaction markers take offsets too: a position that stops before
		// them never reaches the end of the log.
		kgo.KeepControlRecords(),
		kgo.FetchMaxWait(time.Second),
		// What is fetched ahead waits in memory, for every partition.
		kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(fetchBytes / 4),
		kgo.MetadataMaxAge(time.Minute),
		kgo.MetadataMinAge(metadataMinAge),
		// Where to begin is always said by assign. Without this, the client
		// would jump back by a minute when Kafka lost data (its default).
		kgo.ConsumeResetOffset(resetOffset()),
		kgo.AdjustFetchOffsetsFn(s.assign),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) { s.given(got) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { s.revoke(lost, true) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { s.revoke(lost, false) }),
		kgo.OnPartitionsCallbackBlocked(func(context.Context, *kgo.Client) { s.hurry() }),
	}, c.Client...)

	if err := s.open(); err != nil {
		return err
	}
	defer s.side.Close()
	if err := s.awaitTopics(); err != nil || s.ctx.Err() != nil {
		return err
	}
	reader, err := kgo.NewClient(append(s.plain(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{parkedTopic(c.Group): {0: kgo.NewOffset().AtStart()}}))...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer reader.Close()
	// The group's client is made once the topics exist: it would look for
	// missing ones only as often as its metadata gets old.
	if s.client, err = kgo.NewClient(opts...); err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	s.group = groupPositions{s.client, c.Group}
	s.positions = c.Positions
	if s.positions == nil {
		s.positions = s.group
	}
	close(s.begun)
	s.tasks.Go(s.watchTopics)
	s.tasks.Go(func() { s.parked.follow(s.ctx, reader) })

	for s.ctx.Err() == nil {
		s.step()
	}
	s.fail(nil)
	s.leave()
	s.tasks.Wait()
	if cause := context.Cause(s.ctx); ctx.Err() == nil || !errors.Is(cause, ctx.Err()) {
		return cause
	}
	return nil
}

// resetOffset is where to begin when what is next is not there: nowhere.
func resetOffset() kgo.Offset {
	if failpoint.Mutant("consumer.jump") {
		return kgo.NewOffset().AtStart()
	}
	return kgo.NoResetOffset()
}

// plain returns the options of a client that doesn't belong to the group.
func (s *session) plain() []kgo.Opt {
	return append([]kgo.Opt{kgo.SeedBrokers(s.Brokers...), kgo.MetadataMinAge(metadataMinAge)}, s.Client...)
}

func (s *session) open() (err error) {
	s.side, err = kgo.NewClient(append(s.plain(), kgo.ProducerBatchMaxBytes(maxParkedBytes))...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	s.parked = newParked(s.Group, s.side, s.Logger, s.nudge)
	s.loads = make(chan loaded, 1)
	return nil
}

// polling notes how to end the poll that begins, or nil when it ended.
func (s *session) polling(cancel context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.poll = cancel
	if cancel != nil && s.wakes {
		s.wakes = false
		cancel()
	}
}

// nudge lets the loop look after parked keys now.
func (s *session) nudge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakes = s.poll == nil
	if s.poll != nil {
		s.poll()
	}
}

// awaitTopics returns once all topics exist, and notes their ids. The topics
// to park in are the group's own: it makes them.
func (s *session) awaitTopics() error {
	for attempt := 0; ; attempt++ {
		logs, err := s.topicIDs()
		if err == nil {
			err = s.makeParkingTopics()
		}
		if err == nil {
			s.logs = logs
			return nil
		}
		if s.ctx.Err() != nil {
			return nil
		}
		if forbidden(err) {
			return err
		}
		if attempt == 0 || attempt%20 == 0 {
			s.Logger.Info("waiting for topics", "reason", err)
		}
		select {
		case <-s.ctx.Done():
			return nil
		case <-time.After(min(s.pause(attempt), time.Second)):
		}
	}
}

func (s *session) makeParkingTopics() error {
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	return createParkingTopics(ctx, s.side, s.Group)
}

// watchTopics ends the session when a topic is no longer the one it was.
// Otherwise that shows as silence: the client keeps asking for the old one.
func (s *session) watchTopics() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(checkInterval):
		}
		logs, err := s.topicIDs()
		switch {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			s.fail(&restartError{fmt.Errorf("%w: %w", errRecreated, err)})
		case err != nil: // Kafka is away; the poll loop waits for it
		default:
			for t, id := range logs {
				if s.logs[t] != id {
					s.fail(&restartError{fmt.Errorf("%w: %s", errRecreated, t)})
				}
			}
		}
	}
}

func (s *session) topicIDs() (map[string]string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	return TopicIDs(ctx, s.side, s.Topics...)
}

// TopicIDs asks Kafka for the ids of topics. The error wraps
// kerr.UnknownTopicOrPartition when one doesn't exist. It asks afresh, because
// the client's own answers may be some seconds old.
func TopicIDs(ctx context.Context, client *kgo.Client, topics ...string) (map[string]string, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, t := range topics {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(t)
		req.Topics = append(req.Topics, topic)
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("look for the topics: %w", err)
	}
	ids := map[string]string{}
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, fmt.Errorf("topic %s: %w", *t.Topic, err)
		}
		ids[*t.Topic] = kadm.TopicID(t.TopicID).String()
	}
	for _, t := range topics {
		if _, ok := ids[t]; !ok {
			return nil, fmt.Errorf("topic %s: %w", t, kerr.UnknownTopicOrPartition)
		}
	}
	return ids, nil
}

// given notes which partitions the group gave this member. Those are its own
// once assign knows where to begin.
func (s *session) given(partitions map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.joined = true
	for t, ps := range partitions {
		for _, p := range ps {
			if id := (Partition{t, p}); s.parts[id] == nil {
				s.sought[id] = true
			}
		}
	}
	s.tell()
}

// tell updates what Stats says of the partitions; s.mu is held.
func (s *session) tell() {
	var lag int64
	for _, p := range s.parts {
		lag += p.lag
	}
	joined, n := s.joined && len(s.sought) == 0, len(s.parts)
	s.count(func(t *Stats) { t.Joined, t.Partitions, t.Lag = joined, n, lag })
}

// revoke forgets partitions that go to another member. What waits in them
// comes again there.
func (s *session) revoke(partitions map[string][]int32, mine bool) {
	going := map[Partition]Position{}
	s.mu.Lock()
	for t, ps := range partitions {
		for _, p := range ps {
			id := Partition{t, p}
			delete(s.sought, id)
			if part := s.parts[id]; part != nil {
				going[id] = part.position()
				if part.paused {
					s.client.ResumeFetchPartitions(map[string][]int32{t: {p}})
				}
				delete(s.parts, id)
			}
		}
	}
	s.joined = s.joined && mine
	s.tell()
	s.mu.Unlock()
	if len(going) == 0 {
		return
	}
	if mine && s.Positions != nil {
		ctx, cancel := context.WithTimeout(context.Background(), heartbeat)
		defer cancel()
		if err := s.group.Save(ctx, going); err != nil {
			s.Logger.Debug("committing offsets for lag tools", "error", err)
		}
	}
	s.Logger.Info("partitions given up", "partitions", len(going), "lost", !mine)
}

// leave ends the membership. The positions were saved after the last batch.
func (s *session) leave() {
	s.client.AllowRebalance()
	ctx, cancel := context.WithTimeout(context.Background(), sessionTimeout)
	defer cancel()
	if err := s.client.LeaveGroupContext(ctx); err != nil {
		s.Logger.Warn("leaving the group", "error", err)
	}
	s.client.CloseAllowingRebalance()
}

// leash bounds how long a batch may take once someone waits for it.
type leash struct {
	once   sync.Once
	cancel context.CancelFunc
	timer  *time.Timer
	mu     sync.Mutex
}

func (l *leash) tighten(grace time.Duration) {
	l.once.Do(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.timer = time.AfterFunc(grace, l.cancel)
	})
}

func (l *leash) release() {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
}

// hurry is called when a rebalance waits for the batch in hand.
func (s *session) hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leash != nil {
		s.leash.tighten(s.Grace)
	}
}
