package e2e_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// stableOffsets is where each partition that holds anything ends for a
// read_committed consumer. A partition's last record is a control record here
// (the relay publishes in transactions), so readers must keep those.
func stableOffsets(ctx context.Context, t *testing.T, k *kgo.Client, topic string) map[int32]int64 {
	t.Helper()
	adm := kadm.NewClient(k)
	listed, err := adm.ListCommittedOffsets(ctx, topic)
	require.NoError(t, err)
	require.NoError(t, listed.Error())
	ends := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			ends[o.Partition] = o.Offset
		}
	})
	return ends
}
