package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/consumer"
)

func TestParkedMessagesAsATable(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 4, 5, 6, 0, time.UTC)
	event := domain.Event{ID: domain.ID{1}, AggregateID: domain.ID{2}, AggregateVersion: 3, Type: "order.placed.v1"}
	record := &kgo.Record{Value: []byte("not\x1b[31m json"), Headers: []kgo.RecordHeader{{Key: "ce_type", Value: []byte("a\nb")}}}
	list := []consumer.DeadLetter{
		{ID: 4, Topic: "t", Key: "a", First: true, Reason: `no "such" thing` + strings.Repeat("!", 80), ParkedAt: at, Event: event, Record: record},
		{ID: 5, Topic: "t", Key: "b\x1b[2J", First: true, Reason: "two\nlines", ParkedAt: at, Record: record},
		{ID: 6, Topic: "t", Key: "a", Reason: "an earlier message of its key is parked", ParkedAt: at, Event: event, Record: record},
		{ID: 7, Topic: "t", Partition: 1, Key: "a", First: true, Reason: "of another partition", ParkedAt: at, Event: event, Record: record},
	}
	all := describeAll("notifier", list)
	var b bytes.Buffer
	require.NoError(t, writeTable(&b, all))
	require.Equal(t, strings.TrimLeft(`
WORKER    ID  BEHIND  KEY    EVENT            PARKED               REASON
notifier  4   -       a      order.placed.v1  2026-11-21 04:05:06  no "such" thing!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!...
notifier  5   -       b�[2J  (not an event)   2026-11-21 04:05:06  two�lines
notifier  6   4       a      order.placed.v1  2026-11-21 04:05:06  an earlier message of its key is parked
notifier  7   -       a      order.placed.v1  2026-11-21 04:05:06  of another partition
`, "\n"), b.String())

	b.Reset()
	all[2].addContent(list[2])
	require.NoError(t, all[2].write(&b))
	require.Contains(t, b.String(), "behind:   4, which has to be handled or dropped first\n")
	require.Contains(t, b.String(), "ce_type:  a\uFFFDb\n")
	require.Contains(t, b.String(), `"not\x1b[31m json"`)

	b.Reset()
	require.NoError(t, writeJSON(&b, []parkedMessage(nil)))
	require.Equal(t, "[]\n", b.String())
	b.Reset()
	require.NoError(t, writeTable(&b, nil))
	require.Equal(t, "nothing is parked\n", b.String())
}

func TestWhatIsWrongWithADLQCommandLine(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"dlq eat":                    `unknown command "eat"`,
		"dlq list baker":             `there is no worker "baker": it is one of replicator, confirmer, notifier, analytics`,
		"dlq list notifier 1":        "usage: outflow dlq list [WORKER]",
		"dlq show notifier":          "usage: outflow dlq show WORKER ID",
		"dlq show notifier x":        `"x" is not the number of a message`,
		"dlq retry notifier":         "usage: outflow dlq retry WORKER ID",
		"dlq retry notifier 1 --all": "usage: outflow dlq retry WORKER ID",
		"dlq drop notifier -- -1":    `"-1" is not the number of a message`,
		"dlq list":                   "OUTFLOW_KAFKA_BROKERS is required",
	} {
		var out bytes.Buffer
		err := run(t.Context(), strings.Fields(args), &out, &out, nil)
		require.ErrorContains(t, err, want, args)
		require.Empty(t, out.String())
	}
	var out bytes.Buffer
	err := run(t.Context(), strings.Fields("dlq list notifier --timeout 200ms"), &out, &out, []string{"OUTFLOW_KAFKA_BROKERS=127.0.0.1:1"})
	require.ErrorContains(t, err, "connection refused")
}
