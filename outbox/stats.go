package outbox

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"time"

	"outflow/internal/failpoint"
)

// State is what a relay is doing.
type State string

// The states.
const (
	StateStopped    State = "stopped"
	StateStarting   State = "starting"    // connecting, or waiting before it tries again
	StateStandby    State = "standby"     // another relay of the group is active
	StateCatchingUp State = "catching-up" // publishing a backlog by snapshot difference, the stream comes next
	StatePolling    State = "polling"     // publishing by snapshot difference
	StateStreaming  State = "streaming"   // publishing by logical decoding
)

// Stats is what a relay tells of itself. What is counted is counted since
// [NewRelay]; what concerns the outbox is measured every second by the active
// relay alone.
type Stats struct {
	State  State  `json:"state"`
	Active bool   `json:"active"` // this relay is the one of its group that publishes
	Source Source `json:"source"` // how it reads: SourceWAL or SourcePoll
	Reason string `json:"reason"` // why so

	Published    int64         `json:"published"`     // events committed to Kafka
	Transactions int64         `json:"transactions"`  // Kafka transactions committed
	LeftOut      int64         `json:"left_out"`      // rows that another transaction had written than the one that brought them
	LastCommit   time.Time     `json:"last_commit"`   // of a Kafka transaction
	Checkpoint   time.Time     `json:"checkpoint"`    // of the last one, while streaming
	LSN          string        `json:"lsn,omitempty"` // up to where everything is published, while streaming
	Position     int64         `json:"position"`      // the highest that was published
	Latency      time.Duration `json:"latency_ns"`    // from PostgreSQL's commit to Kafka's, of the last transaction

	Unpublished           int64     `json:"unpublished"`             // events past Position; counted up to 10,000
	OldestUnpublished     time.Time `json:"oldest_unpublished"`      // when the first of them occurred; zero if there is none
	Lag                   float64   `json:"lag_seconds"`             // the age of that one
	RetainedWAL           int64     `json:"retained_wal_bytes"`      // what the slot keeps the server from removing
	OldestTransaction     time.Time `json:"oldest_transaction"`      // when the oldest open write transaction of the cluster began
	EventsPerSecond       float64   `json:"events_per_second"`       // published
	TransactionsPerSecond float64   `json:"transactions_per_second"` // committed to Kafka

	Heals     int64  `json:"heals"`      // slots, progress or topics that were lost and made good
	Fences    int64  `json:"fences"`     // times that the broker refused this relay because another had taken over
	Failures  int64  `json:"failures"`   // interruptions
	LastError string `json:"last_error"` // of the last one
}

// Stats returns what the relay has done and is doing.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// ServeHTTP answers with the relay's [Stats] as JSON.
func (r *Relay) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	body, err := json.MarshalIndent(r.Stats(), "", "  ")
	if err != nil {
		http.Error(w, "the status can't be written as JSON", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // the client is gone
}

func (r *Relay) update(f func(*Stats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.stats)
}

func (r *Relay) setState(s State) {
	changed := false
	r.update(func(st *Stats) {
		changed = st.State != s
		st.State = s
		st.Active = s == StateCatchingUp || s == StatePolling || s == StateStreaming
	})
	if changed {
		r.cfg.Logger.Info("relay state", "state", s)
		if r.cfg.OnState != nil {
			r.cfg.OnState(s)
		}
	}
}

// interrupted notes why a session ended.
func (r *Relay) interrupted(err error) {
	r.update(func(s *Stats) {
		s.Active = false
		s.Failures++
		s.LastError = err.Error()
	})
}

// measureInterval is how often the outbox and the slot are measured.
const measureInterval = time.Second

const measurement = `
SELECT coalesce((SELECT pg_current_wal_lsn() - restart_lsn FROM pg_replication_slots WHERE slot_name = $1), 0)::bigint,
       (SELECT count(*) FROM (SELECT FROM outbox WHERE position > $2 LIMIT 10000) AS o),
       (SELECT occurred_at FROM outbox WHERE position > $2 ORDER BY position LIMIT 1),
       (SELECT min(xact_start) FROM pg_stat_activity WHERE backend_xid IS NOT NULL)`

// measure keeps the figures about the outbox current. That it can't is told
// by the session's other connections.
func (s *session) measure(ctx context.Context) {
	before, at := s.Stats(), time.Now()
	for pause(ctx, measureInterval) == nil {
		st := s.Stats()
		from := st.Position
		if from == 0 {
			from = math.MaxInt64 // nothing published yet by this relay: unknown
		}
		var retained, unpublished int64
		var oldest, transaction *time.Time
		if err := s.db.QueryRow(ctx, measurement, s.cfg.slotName(), from).Scan(&retained, &unpublished, &oldest, &transaction); err != nil {
			continue
		}
		now := time.Now()
		seconds := now.Sub(at).Seconds()
		s.update(func(cur *Stats) {
			cur.RetainedWAL, cur.Unpublished = retained, unpublished
			cur.OldestUnpublished, cur.Lag, cur.OldestTransaction = time.Time{}, 0, time.Time{}
			if oldest != nil {
				cur.OldestUnpublished, cur.Lag = *oldest, max(0, now.Sub(*oldest).Seconds())
			}
			if transaction != nil && !failpoint.Mutant("relay.no-age") {
				cur.OldestTransaction = *transaction
			}
			cur.EventsPerSecond = float64(cur.Published-before.Published) / seconds
			cur.TransactionsPerSecond = float64(cur.Transactions-before.Transactions) / seconds
			before = *cur
		})
		at = now
	}
}
