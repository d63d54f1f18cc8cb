package outbox

import "time"

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

// Stats is what a relay tells of itself.
type Stats struct {
	State  State
	Active bool   // this relay is the one of its group that publishes
	Source Source // how it reads: SourceWAL or SourcePoll
	Reason string // why so

	Published    int64     // events that this relay has committed to Kafka
	Transactions int64     // Kafka transactions that this relay has committed
	LeftOut      int64     // rows that another transaction had written than the one that brought them
	LastCommit   time.Time // of a Kafka transaction
	Checkpoint   time.Time // of the last one, while streaming
	LSN          string    // up to where everything is published, while streaming
	Lag          time.Duration
	Heals        int64  // slots that were lost and replaced
	Failures     int64  // interruptions so far
	LastError    string // of the last one
}

// Stats returns what the relay has done and is doing.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
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
