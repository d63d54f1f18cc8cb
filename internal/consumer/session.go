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
)

// session is one membership in the group, from joining to leaving.
//
// One goroutine polls, handles and saves. The client calls assign and revoke
// from its own; kgo.BlockRebalanceOnPoll keeps revoke from running between a
// poll that returned something and AllowRebalance, so that what is being
// handled is always owned.
type session struct {
	*Consumer
	client    *kgo.Client
	positions Positions
	group     groupPositions
	logs      map[string]string // topic -> id

	ctx  context.Context // ends with the session; its cause says why
	fail context.CancelCauseFunc

	mu    sync.Mutex
	parts map[Partition]*part
	leash *leash // of the batch in hand; nil between batches

	mirrored time.Time // when the group's offsets last followed Positions
	checked  time.Time // when stored positions were last compared
	unsaved  int       // how often saving failed in a row
	retrySav time.Time // when to save again after that
}

func (c *Consumer) session(ctx context.Context) error {
	s := &session{Consumer: c, parts: map[Partition]*part{}, logs: map[string]string{}}
	s.ctx, s.fail = context.WithCancelCause(ctx)
	defer s.fail(nil)
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
		kgo.MetadataMaxAge(time.Minute),
		// Where to begin is always said by assign. Without this, the client
		// would jump back by a minute when Kafka lost data (its default).
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.AdjustFetchOffsetsFn(s.assign),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { s.revoke(lost, true) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { s.revoke(lost, false) }),
		kgo.OnPartitionsCallbackBlocked(func(context.Context, *kgo.Client) { s.hurry() }),
	}, c.Client...)

	waiter, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.Brokers...)}, c.Client...)...)
	if err != nil {
		return fmt.Errorf("configure the Kafka client: %w", err)
	}
	defer waiter.Close()
	if err := s.awaitTopics(waiter); err != nil {
		return err
	}
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
	var watching sync.WaitGroup
	watching.Go(func() { s.watchTopics(waiter) })

	for s.ctx.Err() == nil {
		s.step()
	}
	s.fail(nil)
	watching.Wait()
	s.leave()
	if cause := context.Cause(s.ctx); ctx.Err() == nil || !errors.Is(cause, ctx.Err()) {
		return cause
	}
	return nil
}

// awaitTopics returns once all topics exist, and notes their ids.
func (s *session) awaitTopics(client *kgo.Client) error {
	for attempt := 0; ; attempt++ {
		logs, err := s.topicIDs(client)
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

// watchTopics ends the session when a topic is no longer the one it was.
// Otherwise that shows as silence: the client keeps asking for the old one.
func (s *session) watchTopics(client *kgo.Client) {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(checkInterval):
		}
		logs, err := s.topicIDs(client)
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

func (s *session) topicIDs(client *kgo.Client) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	meta, err := kadm.NewClient(client).Metadata(ctx, s.Topics...)
	if err != nil {
		return nil, fmt.Errorf("look for the topics: %w", err)
	}
	ids := map[string]string{}
	for _, t := range s.Topics {
		d, ok := meta.Topics[t]
		if !ok {
			return nil, fmt.Errorf("topic %s: %w", t, kerr.UnknownTopicOrPartition)
		}
		if d.Err != nil {
			return nil, fmt.Errorf("topic %s: %w", t, d.Err)
		}
		ids[t] = d.ID.String()
	}
	return ids, nil
}

// revoke forgets partitions that go to another member. What waits in them
// comes again there.
func (s *session) revoke(partitions map[string][]int32, mine bool) {
	going := map[Partition]Position{}
	s.mu.Lock()
	for t, ps := range partitions {
		for _, p := range ps {
			id := Partition{t, p}
			if part := s.parts[id]; part != nil {
				going[id] = part.position()
				if part.paused {
					s.client.ResumeFetchPartitions(map[string][]int32{t: {p}})
				}
				delete(s.parts, id)
			}
		}
	}
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
