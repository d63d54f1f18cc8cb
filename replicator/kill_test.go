package replicator

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"outflow/domain"
	"outflow/internal/events"
	"outflow/internal/failpoint"
	"outflow/internal/kafkatest"
)

// processEnv makes the test binary a replicator instead, configured by the JSON
// that it holds.
const processEnv = "OUTFLOW_TEST_REPLICATOR"

func TestMain(m *testing.M) {
	if config := os.Getenv(processEnv); config != "" {
		os.Exit(replicate(config))
	}
	goleak.VerifyTestMain(m)
}

type processConfig struct {
	Brokers   []string
	Namespace events.Namespace
	MongoURI  string
}

func replicate(config string) int {
	var p processConfig
	if err := json.Unmarshal([]byte(config), &p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cfg := Config{
		Brokers: p.Brokers, Namespace: p.Namespace, MongoURI: p.MongoURI, MaxBatch: 20,
		Kafka: kafkatest.Opts(), Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	r, err := New(cfg)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = r.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// process starts a replicator in a process of its own.
func (s *system) process(points string) *exec.Cmd {
	config, err := json.Marshal(processConfig{s.Brokers, s.Namespace, s.uri})
	require.NoError(s.t, err)
	p := exec.Command(os.Args[0])
	p.Env = append(os.Environ(), processEnv+"="+string(config), failpoint.Env+"="+points)
	p.Stderr = s.t.Output()
	require.NoError(s.t, p.Start())
	s.t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	return p
}

// Killed before and after the effect, and before and after the position of it
// is written: everything is applied.
func TestRow15WorkerKilledBetweenEffectAndOffset(t *testing.T) {
	if !failpoint.Enabled {
		t.Skip("needs the build tag failpoints")
	}
	s := newSystem(t)
	entities := 0
	// Entities of one version each: what was missed stays missed.
	publish := func() {
		var all []domain.Event
		for range 10 {
			entities++
			all = append(all, customer(entities, 1))
		}
		s.Publish(t, all...)
	}
	for i, point := range []string{failpoint.ReplicatorWrite, failpoint.ReplicatorWritten, failpoint.ConsumerSave, failpoint.ConsumerSaved} {
		p := s.process(fmt.Sprintf("%s=kill@%d", point, 1+i%3))
		ended := make(chan error, 1)
		go func() { ended <- p.Wait() }()
		for killed := false; !killed; {
			publish() // until it has passed the point often enough
			select {
			case err := <-ended:
				require.EqualError(t, err, "signal: killed", point)
				killed = true
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	s.run()
	s.eventually("all of them", func() bool { return s.count("customers") == entities })
}
