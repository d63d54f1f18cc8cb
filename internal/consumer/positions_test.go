package consumer_test

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/internal/consumer"
	"outflow/internal/kafkatest"
)

// kept are positions that can't be saved at first.
type kept struct {
	mu       sync.Mutex
	refusals int
	saved    map[consumer.Partition]consumer.Position
}

func (k *kept) Load(context.Context, []consumer.Partition) (map[consumer.Partition]consumer.Position, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.saved), nil
}

func (k *kept) Save(_ context.Context, moved map[consumer.Partition]consumer.Position) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refusals > 0 {
		k.refusals--
		return errors.New("not now")
	}
	maps.Copy(k.saved, moved)
	return nil
}

func (k *kept) holds(m consumer.Message) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.saved[consumer.Partition{Topic: m.Topic, Partition: m.Partition}]
	return ok
}

// Before anything of a partition is handled, where it begins is saved: from
// then on, whoever keeps the positions can tell what is stored from what was
// stored before, in a backup for one.
func TestWhereToBeginIsSavedFirst(t *testing.T) {
	server(t)
	k := kafkatest.Start(t)
	k.CreateTopics(t, 2)
	for n := range 10 {
		k.Publish(t, event(n, 1))
	}
	var j journal
	positions := &kept{refusals: 3, saved: map[consumer.Partition]consumer.Position{}}
	cfg := config(t, k, consumer.Each(1, func(ctx context.Context, m consumer.Message) error {
		if !positions.holds(m) {
			t.Errorf("%s/%d is handled before it is saved where it begins", m.Topic, m.Partition)
		}
		return j.one(ctx, m)
	}))
	cfg.Positions = positions
	stop := run(t, consumer.New(cfg))
	eventually(t, "all", func() bool {
		for n := range 10 {
			if len(j.of(n)) == 0 {
				return false
			}
		}
		return true
	})
	require.NoError(t, stop())
}
