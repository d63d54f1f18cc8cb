package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/internal/failpoint"
)

// ensureTopics makes the topics that are missing, and refuses those whose
// number of partitions is not the configured one: the key of an aggregate
// would then be on another partition than its earlier events.
func (s *session) ensureTopics(ctx context.Context) error {
	adm := kadm.NewClient(s.kafka)
	progress := s.cfg.Namespace.Progress(s.cfg.Group)
	topics := append(s.cfg.Namespace.Topics(), progress)
	forever, compact := "-1", "compact"
	segment, ratio := "16777216", "0.1"
	for {
		found, err := adm.ListTopics(ctx, topics...)
		if err != nil {
			return fmt.Errorf("list topics: %w", err)
		}
		missing := 0
		for _, topic := range topics {
			want, configs := s.cfg.Partitions, map[string]*string{"retention.ms": &forever, "retention.bytes": &forever}
			if topic == progress {
				// Small segments: the active one is never compacted, and a
				// relay that starts may have to read it.
				want, configs = 1, map[string]*string{"cleanup.policy": &compact, "segment.bytes": &segment, "min.cleanable.dirty.ratio": &ratio}
			}
			detail := found[topic]
			switch {
			case detail.Err == nil && len(detail.Partitions) == want:
				continue
			case detail.Err == nil && len(detail.Partitions) > 0 && !failpoint.Mutant("relay.any-partitions"):
				return fatalf("topic %s has %d partitions and the relay is configured for %d: changing the number moves keys to other partitions and breaks their order; "+
					"set OUTFLOW_KAFKA_PARTITIONS to %d if the topic was made so on purpose, or publish to another namespace", topic, len(detail.Partitions), want, len(detail.Partitions))
			case detail.Err != nil && !errors.Is(detail.Err, kerr.UnknownTopicOrPartition) && !kerr.IsRetriable(detail.Err):
				return fmt.Errorf("look for topic %s: %w", topic, detail.Err)
			}
			missing++
			_, err := adm.CreateTopic(ctx, int32(want), -1, configs, topic)
			switch {
			case err == nil:
				s.log.Info("topic created", "topic", topic, "partitions", want)
			case errors.Is(err, kerr.TopicAlreadyExists): // and will be visible soon
			case errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed):
				return fatalf("topic %s is missing and the relay may not create it (%w): create it with %d partitions, or allow it", topic, err, want)
			default:
				return fmt.Errorf("create topic %s: %w", topic, err)
			}
		}
		if missing == 0 {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// A keeper is a partitioner that keeps every key on its partition, whatever
// somebody does to the topic while the relay runs: a partition that was added
// moves nothing, and ends the session before anything more is committed. The
// next one begins with ensureTopics, which refuses.
type keeper struct{ *publisher }

// ForTopic implements [kgo.Partitioner].
func (p keeper) ForTopic(topic string) kgo.TopicPartitioner {
	byKey := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
	if topic == p.cfg.Namespace.Progress(p.cfg.Group) || failpoint.Mutant("relay.any-partitions") {
		return byKey
	}
	return keeping{byKey, p.publisher, topic}
}

type keeping struct {
	kgo.TopicPartitioner
	*publisher
	topic string
}

// Partition implements [kgo.TopicPartitioner].
func (p keeping) Partition(r *kgo.Record, n int) int {
	if n != p.cfg.Partitions {
		err := fmt.Errorf("topic %s has %d partitions and the relay is configured for %d", p.topic, n, p.cfg.Partitions)
		p.failed.CompareAndSwap(nil, &err)
	}
	return p.TopicPartitioner.Partition(r, min(n, p.cfg.Partitions))
}
