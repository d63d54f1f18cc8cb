package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/twmb/franz-go/pkg/kfake"

	"outflow/cmd/internal/app"
	"outflow/domain"
)

// TestMain lets the test binary be the servers that a stand starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		main()
	}
	os.Exit(m.Run())
}

func TestSpreadIsTheMedianAndTheEnds(t *testing.T) {
	t.Parallel()
	require.Equal(t, spread{}, spreadOf(nil))
	require.Equal(t, spread{Median: 3, Min: 1, Max: 9}, spreadOf([]float64{9, 1, 3}))
	require.Equal(t, spread{Median: 4, Min: 1, Max: 9}, spreadOf([]float64{9, 5, 1, 3}))
}

func TestLatenciesAreQuantiles(t *testing.T) {
	t.Parallel()
	var took []time.Duration
	for i := 1000; i >= 0; i-- {
		took = append(took, time.Duration(i)*time.Millisecond)
	}
	s := sample{}.withLatency(took)
	require.InDelta(t, 500, s.P50, 0.001)
	require.InDelta(t, 990, s.P99, 0.001)
	require.Zero(t, sample{}.withLatency(nil))
}

func TestGoalsAreTakenOfTheMedianOfRounds(t *testing.T) {
	t.Parallel()
	rounds := [][]sample{
		{{PerSecond: 80, P99: 10, Memory: map[string]int64{"relay": 1e6, "api": 149e6}}, {PerSecond: 100, P99: 8}},
		{{PerSecond: 95, P99: 30}, {PerSecond: 100, P99: 8}},
		{{PerSecond: 95, P99: 12}, {PerSecond: 100, P99: 8}},
	}
	f := figure{goals: []goal{ofLimit(1, "limit", 0.9), ofLimit(1, "limit", 0.96), p99Under(11), p99Over(1, "limit", 4), memoryUnder(150), rateOf(95)}}
	out := conclude(f, []side{{name: "outflow"}, {name: "limit"}}, rounds)
	var met []bool
	for _, g := range out.Goals {
		met = append(met, g.Met)
	}
	require.Equal(t, []bool{true, false, false, true, true, true}, met)
	require.Equal(t, spread{Median: 0.95, Min: 0.8, Max: 0.95}, out.Goals[0].Value)
	require.Equal(t, int64(149e6), out.Sides[0].Memory["api"])
	require.Nil(t, out.Sides[1].P50)
}

func TestFiguresAreChosenByTheBeginningsOfTheirNames(t *testing.T) {
	t.Parallel()
	names := func(chosen []figure) (all []string) {
		for _, f := range chosen {
			all = append(all, f.name)
		}
		return all
	}
	all, err := choose(nil)
	require.NoError(t, err)
	require.Len(t, all, len(figures))
	some, err := choose([]string{"verify", "relay-"})
	require.NoError(t, err)
	require.Equal(t, []string{"relay-stream", "relay-catchup", "verify"}, names(some))
	_, err = choose([]string{"verify", "nothing"})
	require.ErrorContains(t, err, "nothing")
	require.Equal(t, 2, app.ExitStatus(err, io.Discard))

	seen := map[string]bool{}
	for _, f := range figures {
		require.False(t, seen[f.name], f.name)
		seen[f.name] = true
		require.NotEmpty(t, f.goals, f.name)
	}
}

func TestACourseKnowsWhatIsMissing(t *testing.T) {
	t.Parallel()
	c := newCourse(2)
	require.NoError(t, c.arrive(0)) // before its writer knows
	c.ack(0)
	require.ErrorContains(t, c.arrive(0), "twice")
	require.ErrorContains(t, c.arrive(2), "there is none")
	select {
	case <-c.all:
		t.Fatal("write 1 has not arrived")
	default:
	}
	c.ack(1)
	require.NoError(t, c.arrive(1))
	<-c.all
	took := c.latencies(0)
	require.Equal(t, time.Microsecond, took[0])
	require.Greater(t, took[1], time.Duration(0))
	require.Len(t, c.latencies(1), 1)
}

func TestNumbersAreInIDs(t *testing.T) {
	t.Parallel()
	for _, i := range []int{0, 1, 255, 1 << 20} {
		n, err := numberOf(numbered(i).String())
		require.NoError(t, err)
		require.Equal(t, i, n)
	}
	_, err := numberOf("x")
	require.Error(t, err)
}

func TestTheLastLineThatTellsIsDecoded(t *testing.T) {
	t.Parallel()
	var into struct{ N int }
	require.NoError(t, lastLine("{\"n\":1}\n{\"n\":2}\n{\"m\":3}\n", "n", &into))
	require.Equal(t, 2, into.N)
	require.Error(t, lastLine("nothing", "n", &into))
}

// A figure is not taken of events that are not all there.
func TestAnAuditFindsWhatIsMissingOrTwice(t *testing.T) {
	t.Parallel()
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	in := &installation{broker: c.ListenAddrs()[0], ns: "audited"}
	k, err := in.producer(t.Context(), in.ns.Topic(domain.AggregateCustomer))
	require.NoError(t, err)
	t.Cleanup(k.Close)
	produce := func(customer, version int) {
		id := numbered(customer)
		e := domain.Event{AggregateType: domain.AggregateCustomer, AggregateID: id, AggregateVersion: int64(version), Key: id.String(), Type: domain.CustomerUpdated}
		require.NoError(t, k.ProduceSync(t.Context(), in.ns.Record(&e)).FirstErr())
	}
	audit := func(n int) error { return in.audit(t.Context(), domain.AggregateCustomer, n) }
	produce(1, 1)
	produce(2, 1)
	produce(1, 2)
	require.NoError(t, audit(3))
	require.ErrorContains(t, audit(4), "3 events of 4")
	produce(2, 1)
	require.ErrorContains(t, audit(4), "version 1 of "+numbered(2).String()+" comes after version 1")
}

func TestVersionsAreReadFromValues(t *testing.T) {
	t.Parallel()
	v, err := versionOf([]byte(`{"version":12,"before":null}`))
	require.NoError(t, err)
	require.EqualValues(t, 12, v)
	for _, bad := range []string{"", `{"version":`, `{"version":x,`, `{"n":1,`} {
		_, err := versionOf([]byte(bad))
		require.Error(t, err, bad)
	}
}

func TestColumnsAreReadFromPgoutput(t *testing.T) {
	t.Parallel()
	m := []byte("R\x00\x00\x00\x01public\x00outbox\x00d\x00\x02" +
		"\x01position\x00\x00\x00\x00\x14\xff\xff\xff\xff" + "\x00event_id\x00\x00\x00\x0b\x86\xff\xff\xff\xff")
	require.Equal(t, []string{"position", "event_id"}, relationColumns(m))
}

func TestAFigureIsTaken(t *testing.T) {
	if testing.Short() {
		t.Skip("builds outflow and starts PostgreSQL, a broker and a relay")
	}
	t.Parallel()
	file := filepath.Join(t.TempDir(), "figures.json")
	args := []string{"relay-stream", "--scale", "0.01", "--rounds", "1", "--json", file}
	cmd := command(args, t.Output(), t.Output())
	cmd.SetArgs(args)
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var rep report
	require.NoError(t, json.Unmarshal(text, &rep))
	require.Len(t, rep.Figures, 1)
	require.Len(t, rep.Figures[0].Sides, 2)
	for _, s := range rep.Figures[0].Sides {
		require.Positive(t, s.Rate.Median, s.Name)
	}
	require.Positive(t, rep.Figures[0].Sides[0].Memory["relay"])
	require.Len(t, rep.Figures[0].Goals, 3)
}

func TestNothingIsMeasuredThatDoesNotWaitForTheDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("builds outflow and starts PostgreSQL")
	}
	t.Parallel()
	_, err := newStand(t.Context(), options{pgBin: t.TempDir()}, t.Output())
	require.ErrorContains(t, err, "postgres is not there")
	s, err := newStand(t.Context(), options{}, t.Output())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.close()) })
	require.NoError(t, s.durable(t.Context()))
	require.NoError(t, s.admin(t.Context(), `ALTER DATABASE migrated SET synchronous_commit = off`))
	require.ErrorContains(t, s.durable(t.Context()), "synchronous_commit is off")
}
