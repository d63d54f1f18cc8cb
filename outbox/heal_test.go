package outbox

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/internal/kafkatest"
	"outflow/internal/pgtest"
	"outflow/internal/postgres"
)

// quick makes a relay that tests disturb come back soon.
func quick(c *Config) { c.retry, c.checkpointInterval = 5*time.Millisecond, 10*time.Millisecond }

// slotName of the world's relays.
func (w *world) slotName() string { c := w.config().withDefaults(); return c.slotName() }

// dropSlot drops the slot, from under a relay that streams from it.
func (w *world) dropSlot(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := w.db.Pool.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, w.slotName())
		require.NoError(t, err)
		_, err = w.db.Pool.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, w.slotName())
		return err == nil
	}, patience, time.Millisecond)
}

func TestRow05SlotLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*testing.T, *world){
		"dropped": func(t *testing.T, w *world) { w.dropSlot(t) },
		"moved": func(t *testing.T, w *world) {
			_, err := w.db.Pool.Exec(t.Context(), `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, w.slotName())
			require.NoError(t, err)
		},
		"replaced": func(t *testing.T, w *world) {
			w.dropSlot(t)
			_, err := w.db.Pool.Exec(t.Context(), `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, w.slotName())
			require.NoError(t, err)
		},
	} {
		t.Run(name+" while nobody relays", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			wr := w.writer(t, 5)
			r := w.run(t, quick)
			r.awaitState(t, StateStreaming)
			stop := wr.adverse(t, 4)
			r.await(t, "published", func(s Stats) bool { return s.Published > 200 })
			require.NoError(t, r.stop())
			wr.write(t, 20)
			lose(t, w)
			wr.write(t, 20)
			r = w.run(t, quick)
			r.await(t, "healed", func(s Stats) bool { return s.Heals == 1 && s.State == StateStreaming })
			r.await(t, "published", func(s Stats) bool { return s.Published > 200 })
			stop()
			w.equal(t)
			require.EqualValues(t, 1, r.Stats().Heals)
		})
	}
	t.Run("dropped long after the last checkpoint", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		wr := w.writer(t, 5)
		rarely := func(c *Config) { quick(c); c.checkpointInterval = time.Hour }
		r := w.run(t, rarely)
		r.awaitState(t, StateStreaming)
		wr.write(t, 50)
		r.await(t, "published", func(s Stats) bool { return s.Published == 50 })
		require.NoError(t, r.stop())
		w.dropSlot(t)
		wr.write(t, 50)
		r = w.run(t, rarely)
		r.await(t, "healed", func(s Stats) bool { return s.Heals == 1 && s.State == StateStreaming })
		r.await(t, "published", func(s Stats) bool { return s.Published == 50 })
		w.equal(t)
	})
	t.Run("dropped again and again under load", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		wr := w.writer(t, 5)
		r := w.run(t, quick)
		r.awaitState(t, StateStreaming)
		stop := wr.adverse(t, 4)
		for i := range 8 {
			published := r.Stats().Published
			r.await(t, "published", func(s Stats) bool { return s.Published > published+int64(rand.IntN(100)) })
			w.dropSlot(t)
			r.await(t, "healed", func(s Stats) bool { return s.Heals > int64(i) && s.State == StateStreaming })
		}
		stop()
		w.equal(t)
	})
}

// The server gives the slot up when it needs too much of the log.
func TestRow05SlotInvalidatedByWALLimits(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t, func(c *postgres.Config) {
		c.Settings["max_slot_wal_keep_size"] = "1MB"
		c.Settings["min_wal_size"] = "32MB"
		c.Settings["max_wal_size"] = "48MB"
	})
	w := &world{db: server.DB(t), kafka: kafkatest.Start(t)}
	wr := w.writer(t, 5)
	r := w.run(t, quick)
	r.awaitState(t, StateStreaming)
	wr.write(t, 50)
	r.await(t, "published", func(s Stats) bool { return s.Published == 50 })
	require.NoError(t, r.stop())
	wr.write(t, 50)
	_, err := w.db.Pool.Exec(t.Context(), `CREATE TABLE busy (t text)`)
	require.NoError(t, err)
	lost := func() (lost bool) {
		_, err := w.db.Pool.Exec(t.Context(), `INSERT INTO busy SELECT repeat('x', 1000) FROM generate_series(1, 20000)`)
		require.NoError(t, err)
		_, err = w.db.Pool.Exec(t.Context(), `SELECT pg_switch_wal()`)
		require.NoError(t, err)
		_, err = w.db.Pool.Exec(t.Context(), `CHECKPOINT`)
		require.NoError(t, err)
		require.NoError(t, w.db.Pool.QueryRow(t.Context(), `SELECT wal_status = 'lost' FROM pg_replication_slots`).Scan(&lost))
		return lost
	}
	require.Eventually(t, lost, patience, time.Millisecond)
	r = w.run(t, quick)
	r.await(t, "healed", func(s Stats) bool { return s.Heals == 1 && s.State == StateStreaming })
	wr.write(t, 50)
	w.equal(t)
}

// A backlog is published by windows, and what is written meanwhile with it.
func TestBacklogIsCaughtUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 20)
	small := func(c *Config) { quick(c); c.catchUpBytes = 100 << 10 }
	r := w.run(t, small)
	r.awaitState(t, StateStreaming)
	stop := wr.adverse(t, 4)
	r.await(t, "published", func(s Stats) bool { return s.Published > 200 })
	require.NoError(t, r.stop())
	wr.writeTx(t, 5_000)
	wr.write(t, 100)
	var mu sync.Mutex
	var states []State
	r = w.run(t, small, func(c *Config) {
		c.OnState = func(s State) { mu.Lock(); states = append(states, s); mu.Unlock() }
	})
	r.awaitState(t, StateStreaming)
	mu.Lock()
	require.Equal(t, []State{StateStarting, StateCatchingUp, StateStreaming}, states)
	mu.Unlock()
	require.Zero(t, r.Stats().Heals)
	r.await(t, "published", func(s Stats) bool { return s.Published > 5_300 })
	stop()
	w.equal(t)
}

// Dying at any point, with slots that vanish and backlogs between.
func TestRow05RelayDiesAnywhereOnTheWayBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wr := w.writer(t, 5)
	var mu sync.Mutex
	passes, next, deaths := 0, 1, map[string]int{}
	r := w.run(t, quick, func(c *Config) {
		c.catchUpBytes = 20 << 10
		c.hook = func(point string) error {
			mu.Lock()
			defer mu.Unlock()
			if passes++; passes < next {
				return nil
			}
			passes, next = 0, 1+rand.IntN(40)
			deaths[point]++
			return errKilled
		}
	})
	stop := wr.adverse(t, 4)
	for range 10 {
		st := r.Stats()
		r.await(t, "failures", func(s Stats) bool { return s.Failures > st.Failures+5 && s.Published > st.Published+20 })
		_, err := w.db.Pool.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid), pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, w.slotName())
		if err != nil {
			t.Log(err) // it is being made, or still in use
		}
	}
	stop()
	_ = r.stop()
	t.Log(deaths, r.Stats().Heals)
	w.run(t, quick).awaitState(t, StateStreaming)
	w.equal(t)
}

var errKilled = errors.New("killed")
