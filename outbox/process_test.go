package outbox

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/internal/events"
	"outflow/internal/failpoint"
	"outflow/internal/kafkatest"
	"outflow/internal/pgtest"
)

// relayEnv makes the test binary a relay instead, configured by the JSON that
// it holds: tests that kill relays, stop them or weigh them need processes.
const relayEnv = "OUTFLOW_TEST_RELAY"

func TestMain(m *testing.M) {
	if config := os.Getenv(relayEnv); config != "" {
		os.Exit(relayProcess(config))
	}
	os.Exit(m.Run())
}

type processConfig struct {
	URL       string
	Brokers   []string
	Namespace events.Namespace
}

func relayProcess(config string) int {
	var w processConfig
	if err := json.Unmarshal([]byte(config), &w); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cfg := (&world{db: &pgtest.DB{URL: w.URL}, kafka: &kafkatest.Kafka{Brokers: w.Brokers, Namespace: w.Namespace}}).config()
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg.retry, cfg.checkpointInterval = 10*time.Millisecond, 50*time.Millisecond
	cfg.OnState = func(s State) { fmt.Println(s) }
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := NewRelay(cfg).Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A process is a relay in a process of its own.
type process struct {
	*exec.Cmd
	states chan State
	ended  chan error
}

func (w *world) process(t testing.TB, env ...string) *process {
	t.Helper()
	config, err := json.Marshal(processConfig{w.db.URL, w.kafka.Brokers, w.kafka.Namespace})
	require.NoError(t, err)
	p := &process{Cmd: exec.Command(os.Args[0]), states: make(chan State, 1000), ended: make(chan error, 1)}
	p.Env = append(append(os.Environ(), relayEnv+"="+string(config)), env...)
	log, err := os.CreateTemp(t.TempDir(), "relay")
	require.NoError(t, err)
	p.Stderr = log
	out, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.states <- State(lines.Text())
		}
		close(p.states)
		p.ended <- p.Wait()
		_ = log.Close()
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.ended
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("relay process %d:\n%s", p.Process.Pid, text)
		}
	})
	return p
}

// await waits until the process reports the state, and returns false if it
// ended before.
func (p *process) await(t testing.TB, want State) bool {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case s, ok := <-p.states:
			if !ok || s == want {
				return ok
			}
		case <-timeout:
			t.Fatalf("relay process %d does not become %s", p.Process.Pid, want)
		}
	}
}

// peak is the most memory that the process ever had resident, in bytes.
func (p *process) peak(t testing.TB) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Skip("the peak of resident memory is read from /proc")
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	require.NoError(t, err)
	return kb << 10
}

// Row 9: a transaction of 200,000 events, and a backlog of as many; of a million
// when OUTFLOW_TEST_LONG is set.
func TestRow09MemoryIsBounded(t *testing.T) {
	t.Parallel()
	w := &world{db: pgtest.New(t), kafka: kafkatest.Start(t)}
	wr := w.writer(t, 1000)
	p := w.process(t)
	require.True(t, p.await(t, StateStreaming))
	wr.writeTx(t, 200_000)
	w.equal(t)
	streamed := p.peak(t)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	p.await(t, StateStopped)
	backlog := 1
	if os.Getenv("OUTFLOW_TEST_LONG") != "" {
		backlog = 5
	}
	for range backlog {
		wr.writeTx(t, 200_000)
	}
	p = w.process(t)
	require.True(t, p.await(t, StateStreaming))
	w.equal(t)
	t.Logf("peak: %d MB streaming, %d MB catching up", streamed>>20, p.peak(t)>>20)
	require.Less(t, streamed, int64(memoryBound))
	require.Less(t, p.peak(t), int64(memoryBound))
}

// A standby takes over from a relay that was killed, and from one that was
// paused; that one is fenced when it wakes up.
func TestStandbyTakesOverFromTheDeadAndThePaused(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			wr := w.writer(t, 5)
			first := w.process(t)
			require.True(t, first.await(t, StateStreaming))
			standby := w.process(t)
			require.True(t, standby.await(t, StateStandby))
			stop := wr.adverse(t, 4)
			require.NoError(t, first.Process.Signal(sig))
			began := time.Now()
			require.True(t, standby.await(t, StateStreaming))
			took := time.Since(began)
			t.Log("took over after", took)
			if sig == syscall.SIGKILL {
				require.Less(t, took, time.Minute)
			} else {
				require.NoError(t, first.Process.Signal(syscall.SIGCONT))
				require.True(t, first.await(t, StateStandby))
			}
			stop()
			w.equal(t)
		})
	}
}

// Relays are killed and paused at failpoints, again and again, beside each
// other. How often, and the seed, are in the environment for a longer run.
func TestKilledAtFailpoints(t *testing.T) {
	t.Parallel()
	if !failpoint.Enabled {
		t.Skip("needs the build tag failpoints")
	}
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv("OUTFLOW_TEST_KILLS")); err == nil {
		rounds = n
	}
	points := []string{failpoint.RelayProduce, failpoint.RelayProduced, failpoint.RelayCommitted, failpoint.RelayConfirm, failpoint.RelayConfirmed, failpoint.RelayHandover}
	w := newWorld(t)
	wr := w.writer(t, 5)
	stop := wr.adverse(t, 4)
	var paused sync.WaitGroup
	for i := range rounds {
		action := "kill"
		if i%6 == 5 {
			action = "stop"
		}
		spec := fmt.Sprintf("%s=%s@%d", points[i%len(points)], action, 1+i*7%23)
		p := w.process(t, failpoint.Env+"="+spec)
		if action == "kill" {
			select {
			case <-p.done():
			case <-time.After(3 * time.Second): // it does not pass that point so often
				_ = p.Process.Kill()
				<-p.done()
			}
			continue
		}
		paused.Go(func() {
			// It sleeps until somebody else has its lease.
			time.AfterFunc(2*time.Second, func() { _ = p.Process.Signal(syscall.SIGCONT) })
			<-p.done()
		})
		time.AfterFunc(6*time.Second, func() { _ = p.Process.Signal(syscall.SIGTERM) })
	}
	paused.Wait()
	stop()
	last := w.process(t)
	require.True(t, last.await(t, StateStreaming))
	w.equal(t)
}

// done is closed when the process has ended and its output is read.
func (p *process) done() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		for range p.states {
		}
		close(done)
	}()
	return done
}
