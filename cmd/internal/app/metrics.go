package app

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"outflow/internal/consumer"
	"outflow/outbox"
)

// Figure is a number that a part tells monitoring.
type Figure struct {
	Name  string // after "outflow_"
	Help  string
	Kind  prometheus.ValueType
	Value float64
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

func relayFigures(s outbox.Stats) []Figure {
	return []Figure{
		{"relay_active", "1 if this relay is the one of its group that publishes.", gauge, truth(s.Active)},
		{"relay_published_total", "Events committed to Kafka.", counter, float64(s.Published)},
		{"relay_transactions_total", "Kafka transactions committed.", counter, float64(s.Transactions)},
		{"relay_last_commit_timestamp_seconds", "When a Kafka transaction was last committed.", gauge, unix(s.LastCommit)},
		{"relay_latency_seconds", "From PostgreSQL's commit to Kafka's, of the last transaction.", gauge, s.Latency.Seconds()},
		{"relay_unpublished_events", "Events that wait in the outbox, counted up to 10,000.", gauge, float64(s.Unpublished)},
		{"relay_lag_seconds", "The age of the oldest event that waits.", gauge, s.Lag},
		{"relay_retained_wal_bytes", "Write-ahead log that the replication slot keeps from being removed.", gauge, float64(s.RetainedWAL)},
		{"relay_oldest_transaction_timestamp_seconds", "When the oldest open write transaction began; 0 if there is none.", gauge, unix(s.OldestTransaction)},
		{"relay_heals_total", "Slots, progress or topics that were lost and made good.", counter, float64(s.Heals)},
		{"relay_fences_total", "Times that another relay had taken over.", counter, float64(s.Fences)},
		{"relay_failures_total", "Interruptions.", counter, float64(s.Failures)},
	}
}

func workerFigures(s consumer.Stats) []Figure {
	return []Figure{
		{"consumer_joined", "1 if the worker is a member of its group and knows its positions.", gauge, truth(s.Joined)},
		{"consumer_partitions", "Partitions that the worker has.", gauge, float64(s.Partitions)},
		{"consumer_lag_records", "Records that wait in those partitions.", gauge, float64(s.Lag)},
		{"consumer_handled_total", "Messages that were done.", counter, float64(s.Handled)},
		{"consumer_retried_total", "Times that a message was to come again.", counter, float64(s.Retried)},
		{"consumer_parked_total", "Messages that were parked.", counter, float64(s.Parked)},
		{"consumer_last_handled_timestamp_seconds", "When a batch was last done; 0 if none was.", gauge, unix(s.LastHandled)},
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// figures collects what parts tell, as it is when Prometheus asks. It describes
// nothing ahead, so the registry does not hold it against a list.
type figures []Part

func (figures) Describe(chan<- *prometheus.Desc) {}

func (parts figures) Collect(out chan<- prometheus.Metric) {
	for _, p := range parts {
		if p.Figures == nil {
			continue
		}
		for _, f := range p.Figures() {
			desc := prometheus.NewDesc("outflow_"+f.Name, f.Help, []string{"part"}, nil)
			out <- prometheus.MustNewConstMetric(desc, f.Kind, f.Value, p.Name)
		}
	}
}

func registry(parts []Part) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(figures(parts), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
