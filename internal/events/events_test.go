package events_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"outflow/domain"
	"outflow/internal/events"
)

func event() domain.Event {
	return domain.Event{
		ID:               domain.MustParseID("01938f00-0000-7000-8000-000000000001"),
		AggregateType:    domain.AggregateCustomer,
		AggregateID:      domain.MustParseID("01938f00-0000-7000-8000-000000000002"),
		AggregateVersion: 2,
		Type:             domain.CustomerUpdated,
		Key:              "01938f00-0000-7000-8000-000000000002",
		Before:           json.RawMessage(`{"name":"Ada"}`),
		After:            json.RawMessage(`{"name":"Ada Lovelace", "n":9007199254740993}`),
		Metadata:         json.RawMessage(`{"actor":"api"}`),
		OccurredAt:       time.Date(2026, 11, 21, 4, 5, 6, 7e6, time.UTC),
	}
}

func TestRecordIsACloudEvent(t *testing.T) {
	t.Parallel()
	e := event()
	r := events.DefaultNamespace.Record(&e)
	got := map[string]string{}
	for _, h := range r.Headers {
		got[h.Key] = string(h.Value)
	}
	require.Equal(t, map[string]string{
		"ce_specversion": "1.0",
		"ce_id":          "01938f00-0000-7000-8000-000000000001",
		"ce_source":      "/outflow",
		"ce_type":        "customer.updated.v1",
		"ce_subject":     "01938f00-0000-7000-8000-000000000002",
		"ce_time":        "2026-11-21T04:05:06.007Z",
		"content-type":   "application/json",
	}, got)
	require.Equal(t, "outflow.customer.v1", r.Topic)
	require.Equal(t, e.Key, string(r.Key))
	require.Equal(t, `{"version":2,"before":{"name":"Ada"},"after":{"name":"Ada Lovelace", "n":9007199254740993},"metadata":{"actor":"api"}}`, string(r.Value))
}

func TestDecodeReturnsWhatWasEncoded(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*domain.Event){
		"both states": func(*domain.Event) {},
		"first event": func(e *domain.Event) { e.Before = nil },
		"deletion":    func(e *domain.Event) { e.After = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := event()
			change(&want)
			got, err := events.Decode(events.DefaultNamespace.Record(&want))
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

func TestDecodeNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	set := func(key, value string) func(*kgo.Record) {
		return func(r *kgo.Record) {
			for i := range r.Headers {
				if r.Headers[i].Key == key {
					r.Headers[i].Value = []byte(value)
				}
			}
		}
	}
	drop := func(key string) func(*kgo.Record) {
		return func(r *kgo.Record) {
			var kept []kgo.RecordHeader
			for _, h := range r.Headers {
				if h.Key != key {
					kept = append(kept, h)
				}
			}
			r.Headers = kept
		}
	}
	for name, row := range map[string]struct {
		change func(*kgo.Record)
		want   string
	}{
		"no id":             {drop("ce_id"), "ce_id"},
		"bad id":            {set("ce_id", "x"), "ce_id"},
		"no type":           {drop("ce_type"), "ce_type"},
		"other specversion": {set("ce_specversion", "2.0"), "ce_specversion"},
		"no subject":        {drop("ce_subject"), "ce_subject"},
		"bad time":          {set("ce_time", "yesterday"), "ce_time"},
		"no time":           {drop("ce_time"), "ce_time"},
		"null value":        {func(r *kgo.Record) { r.Value = nil }, "data"},
		"not JSON":          {func(r *kgo.Record) { r.Value = []byte("{") }, "data"},
		"no version":        {func(r *kgo.Record) { r.Value = []byte("{}") }, "version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := event()
			r := events.DefaultNamespace.Record(&e)
			row.change(r)
			_, err := events.Decode(r)
			require.ErrorContains(t, err, row.want)
		})
	}
}

func FuzzDecode(f *testing.F) {
	e := event()
	r := events.DefaultNamespace.Record(&e)
	for _, value := range []string{
		string(r.Value), `{"version":1,"before":null,"after":{"a":"\\\"}{"},"metadata":null}`, `{"version":1,"before":null,"after":null,"metadata":null,"after":{}}`,
		`{"after":{"a":[{}]},"version":2}`, `{"version":1,"before":[],"after":{},"metadata":{}} `, `{"VERSION":7,"Before":{"b":1}}`,
	} {
		f.Add(r.Headers[3].Value, r.Headers[4].Value, []byte(value))
	}
	f.Fuzz(func(t *testing.T, typ, subject, value []byte) {
		r := events.DefaultNamespace.Record(&e)
		r.Headers[3].Value, r.Headers[4].Value, r.Value = typ, subject, value
		got, err := events.Decode(r)
		if err == nil && (got.AggregateVersion < 1 || got.AggregateType == "" && got.Type == "") {
			t.Fatalf("decoded without an error: %+v", got)
		}
		if err != nil {
			return
		}
		// However the value is read, it says what encoding/json says it does.
		var want struct {
			Version                 int64
			Before, After, Metadata json.RawMessage
		}
		require.NoError(t, json.Unmarshal(value, &want))
		require.Equal(t, want.Version, got.AggregateVersion)
		for what, pair := range map[string][2]json.RawMessage{
			"before": {want.Before, got.Before}, "after": {want.After, got.After}, "metadata": {want.Metadata, got.Metadata},
		} {
			if string(pair[0]) == "null" {
				pair[0] = nil
			}
			require.Equal(t, string(pair[0]), string(pair[1]), what)
		}
	})
}
