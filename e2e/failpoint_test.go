package e2e_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/failpoint"
)

// faultPoints are the failpoints that each part passes under ordinary load.
var faultPoints = map[string][]string{
	"relay": {
		failpoint.RelayProduce, failpoint.RelayProduced, failpoint.RelayCommitted,
		failpoint.RelayConfirm, failpoint.RelayConfirmed, failpoint.RelayHandover,
	},
	"replicate": {failpoint.ReplicatorWrite, failpoint.ReplicatorWritten, failpoint.ConsumerSave, failpoint.ConsumerSaved},
	"analyze": {
		failpoint.AnalyticsCount, failpoint.AnalyticsCounted, failpoint.AnalyticsWritten, failpoint.ConsumerSave, failpoint.ConsumerSaved,
	},
	"confirm": {failpoint.ConfirmerDecide, failpoint.ConfirmerDecided, failpoint.ConsumerSave, failpoint.ConsumerSaved},
	"notify": {
		failpoint.NotifierClaimed, failpoint.NotifierData, failpoint.NotifierSent, failpoint.NotifierMarked,
		failpoint.ConsumerSave, failpoint.ConsumerSaved,
	},
}

// faultShare is how many of the faults strike a part: a relay is back at once,
// a worker's partitions wait for its session to run out.
var faultShare = map[string]int{"relay": 36, "replicate": 16, "analyze": 16, "confirm": 16, "notify": 16}

// A fault is what happens to a process that passes a failpoint for the n-th
// time: it is killed, or it is paused, replaced, and woken up as a zombie.
type fault struct {
	point string
	pass  int
	pause bool
}

// faults makes n kills and n/6 pauses, the same for the same seed.
func faults(seed uint64, part string, n int) []fault {
	random := rand.New(rand.NewPCG(seed, uint64(len(part))))
	points := faultPoints[part]
	all := make([]fault, n+(n+5)/6)
	for i := range all {
		all[i] = fault{point: points[i%len(points)], pass: 1 + random.IntN(6), pause: i >= n}
	}
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// TestKilledAtFailpoints kills and pauses relays and workers in the middle of
// what they do, while customers and orders are written, and then compares what
// came out with PostgreSQL. OUTFLOW_TEST_KILLS says how often (a sixth of it
// are pauses beside), OUTFLOW_TEST_SEED where.
func TestKilledAtFailpoints(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	if !failpoint.Enabled {
		t.Skip("needs the build tag failpoints")
	}
	kills, err := strconv.Atoi(cmp.Or(os.Getenv("OUTFLOW_TEST_KILLS"), "24"))
	require.NoError(t, err)
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("OUTFLOW_TEST_SEED"), "1"), 10, 64)
	require.NoError(t, err)
	s := startSystem(t, 0)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	failed := make(chan error, 1)
	var writing sync.WaitGroup
	writing.Go(func() {
		// Few and steady: what counts is that something always happens.
		random := rand.New(rand.NewPCG(seed, 0))
		for batch := 0; ctx.Err() == nil; batch++ {
			if err := writeALot(s.client, random, batch, 10, &killPlan{}); err != nil {
				failed <- err
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	began := time.Now()
	var striking sync.WaitGroup
	struck := map[string]*strikes{}
	for part, share := range faultShare {
		st := &strikes{system: s, part: part, ctx: ctx, stop: stop}
		struck[part] = st
		striking.Go(func() { st.run(faults(seed, part, max(1, (kills*share+50)/100))) })
	}
	striking.Wait()
	stop()
	writing.Wait()
	select {
	case err := <-failed:
		require.NoError(t, err)
	default:
	}
	killed, paused := 0, 0
	for part, st := range struck {
		require.NoError(t, st.err, part)
		t.Logf("%s: %d kills, %d pauses", part, st.kills, st.pauses)
		killed, paused = killed+st.kills, paused+st.pauses
	}
	t.Logf("seed %d: %d kills and %d zombies in %s", seed, killed, paused, time.Since(began).Round(time.Second))
	require.InDelta(t, kills, killed, 2, "shares are rounded")

	requireEveryOrderDecided(t, s.client)
	requireKafkaEqualsOutbox(t, s.client)
	requireReplicaEqualsOutbox(t, s.client, "customers", domain.AggregateCustomer)
	requireReplicaEqualsOutbox(t, s.client, "orders", domain.AggregateOrder)
	requireFiguresEqualPostgreSQL(t, s.client)
	requireEveryMailArrived(t, s.client, struck["notify"].kills+struck["notify"].pauses)
}

// A notifier is killed when a mail that is refused for good, and what comes
// behind it, is in the dead-letter topic, and that its key is parked is not
// written. The next one parks both once, and they are sent in order when an
// operator has them tried again.
func TestKilledAtFailpointsOfParking(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts servers")
	}
	if !failpoint.Enabled {
		t.Skip("needs the build tag failpoints")
	}
	s := startSystem(t, 0)
	s.run("relay")
	s.fault(`{"kind": "permfail", "count": 2, "to": "ada@example.com"}`)
	killed := start(t, s.environ(failpoint.Env+"="+failpoint.ConsumerParked+"=kill"), "outflow", "notify")
	ada := s.createCustomer(map[string]any{"name": "Ada", "email": "ada@example.com"})
	s.do("POST", "/api/orders/"+s.placeOrder(ada.ID).ID.String()+"/cancel", nil, http.StatusOK)
	select {
	case <-killed.done:
	case <-time.After(patience):
		require.Fail(t, "nothing is parked")
	}
	status, ok := killed.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok && status.Signal() == syscall.SIGKILL, "it ended by itself: %v", killed.err)

	s.run("notify")
	require.Eventually(t, func() bool { return len(s.parked("notifier")) == 2 }, patience, 50*time.Millisecond)
	letters := s.parked("notifier")
	require.Contains(t, letters[0].Reason, "550")
	require.Equal(t, letters[0].ID, *letters[1].Behind)
	require.Empty(t, s.mails())
	s.dlq(0, "retry", "notifier", "--all")
	require.Empty(t, s.parked("notifier"))
	mails := s.mailTo("ada@example.com", 2)
	require.Contains(t, mails[0].Subject, "Welcome")
	require.Len(t, s.mails(), 2)
}

// strikes are the faults of one part.
type strikes struct {
	*system
	part          string
	kills, pauses int
	err           error
	ctx           context.Context
	stop          func()
}

func (s *strikes) run(all []fault) {
	for _, f := range all {
		if s.ctx.Err() != nil {
			return
		}
		if s.err = s.strike(f); s.err != nil {
			s.stop() // without this part the others would wait for ever
			return
		}
	}
	start(s.client.t, s.environ(), "outflow", s.part) // the other parts live on it
}

func (s *strikes) strike(f fault) error {
	if f.point == failpoint.RelayHandover {
		// On the way back from a lost slot there is one; it is passed once.
		f.pass = 1
		if err := s.dropSlot(); err != nil {
			return fmt.Errorf("drop the slot: %w", err)
		}
	}
	action := "kill"
	if f.pause {
		action = "stop"
	}
	what := fmt.Sprintf("%s=%s@%d", f.point, action, f.pass)
	p := start(s.client.t, s.environ(failpoint.Env+"="+what), "outflow", s.part)
	for deadline := time.Now().Add(patience); !p.ended() && !p.stopped(); {
		if s.ctx.Err() != nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not passed:\n%s", what, tail(p.out.String(), 30))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if p.ended() {
		if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
			return fmt.Errorf("%s ended by itself: %w\n%s", what, p.err, tail(p.out.String(), 30))
		}
		s.kills++
		return nil
	}
	successor := start(s.client.t, s.environ(), "outflow", s.part)
	if err := successor.awaitWork(); err != nil {
		return fmt.Errorf("after %s: %w", what, err)
	}
	// The zombie goes on where it was, and finds out.
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	before := p.out.String()
	for deadline := time.Now().Add(3 * time.Second); p.out.String() == before && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	s.pauses++
	// Not killed: kfake never forgets a member that dies while it joins.
	if err := p.stop(); err != nil {
		return fmt.Errorf("the zombie of %s: %w", what, err)
	}
	return successor.stop()
}

// dropSlot drops the relay's slot, which a relay that was just killed may seem
// to use still.
func (s *strikes) dropSlot() error {
	const drop = `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL`
	for deadline := time.Now().Add(patience); ; {
		var left int
		_, err := s.client.postgres.Exec(s.client.t.Context(), drop)
		if err == nil {
			_, err = s.client.postgres.Exec(s.client.t.Context(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active`)
		}
		if err == nil {
			err = s.client.postgres.QueryRow(s.client.t.Context(), `SELECT count(*) FROM pg_replication_slots`).Scan(&left)
		}
		if err == nil && left == 0 || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stopped reports whether the process is paused.
func (p *process) stopped() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, rest, ok := strings.Cut(string(stat), ") ")
	return err == nil && ok && strings.HasPrefix(rest, "T")
}

// awaitWork waits until a relay publishes, or a worker has partitions.
func (p *process) awaitWork() error {
	for deadline := time.After(patience); ; {
		more := p.out.changed()
		said := p.out.String()
		for _, sign := range []string{"partitions assigned", "state=streaming", "state=polling", "state=catching-up"} {
			if strings.Contains(said, sign) {
				return nil
			}
		}
		select {
		case <-more:
		case <-p.done:
			return fmt.Errorf("%s ended: %w\n%s", p.name, p.err, tail(said, 30))
		case <-deadline:
			return fmt.Errorf("%s gets nothing to do:\n%s", p.name, tail(said, 30))
		}
	}
}
