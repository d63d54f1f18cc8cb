package analytics

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"outflow/domain"
	"outflow/internal/mongofake"
)

// agree compares answers about many windows with the oracle's.
func (s *system) agree(t require.TestingT, r *rand.Rand, all []domain.Event, customers int) {
	ctx := context.Background()
	want := oracleOf(all)
	at := all[r.IntN(len(all))].OccurredAt
	near := at.Add(time.Duration(r.IntN(3)-1) * time.Millisecond)
	times := []time.Time{epoch.Add(80 * time.Hour), []time.Time{near, at.Truncate(time.Hour)}[r.IntN(2)]}
	for _, now := range times {
		read := s.reader(now)
		windows := []time.Duration{
			100 * time.Hour,
			[]time.Duration{time.Second, time.Hour, 6 * time.Hour, 24 * time.Hour}[r.IntN(4)],
			time.Duration(1+r.IntN(90_000_000)) * time.Millisecond,
			now.Sub(all[r.IntN(len(all))].OccurredAt).Abs() + time.Duration(r.IntN(2))*time.Millisecond,
		}
		for _, d := range windows {
			if d == 0 {
				continue
			}
			w := ending(now, d)
			summary, err := read.Summary(ctx, d)
			require.NoError(t, err)
			require.Equal(t, want.summary(w), summary, "%s to %s", d, now)
			for _, metric := range []Metric{MetricOrders, MetricRevenue} {
				for _, step := range []Step{Hourly, Daily} {
					series, err := read.Timeseries(ctx, metric, step, d)
					require.NoError(t, err)
					require.Equal(t, want.series(metric, step, w), series)
				}
			}
			limit := 1 + r.IntN(customers+1)
			top, err := read.TopCustomers(ctx, d, limit, "EUR")
			require.NoError(t, err)
			require.Equal(t, want.top(w, limit, "EUR"), top, "the first %d, %s to %s", limit, d, now)
			top, err = read.TopCustomers(ctx, d, limit, "")
			require.NoError(t, err)
			all := Top{w, []TopCustomer{}}
			for _, c := range []string{"EUR", "JPY", "USD"} {
				all.Customers = append(all.Customers, want.top(w, limit, c).Customers...)
			}
			require.Equal(t, all, top)
			for n := range customers {
				transactions, err := read.Transactions(ctx, id(1+n), d)
				require.NoError(t, err)
				require.Equal(t, want.ofCustomer(id(1+n), w), transactions)
			}
		}
		for n := range customers {
			last, err := read.Latest(ctx, id(1+n))
			require.NoError(t, err)
			wanted := want.ofCustomer(id(1+n), ending(now, 10_000*time.Hour)).Transactions
			require.Equal(t, wanted[:min(5, len(wanted))], last)
		}
	}
}

// Whatever the loop and the network do, the figures are those of the events.
func TestFiguresAreThoseOfTheEvents(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a MongoDB server")
	}
	server := startServer(t)
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		customers := 1 + r.IntN(4)
		all := world(r, 1+r.IntN(20), customers)
		sys, end := server.newSystem(t)
		defer end()
		d := deliveriesOf(r, all)
		for !d.done() {
			var f *mongofake.ActiveFault
			if sys.fake != nil && r.IntN(3) == 0 {
				f = sys.fake.Fault(interference(r))
			}
			err := d.next(context.Background(), sys.worker)
			if f != nil {
				f.Remove()
			} else {
				require.NoError(t, err)
			}
			if r.IntN(10) == 0 { // another one takes over
				sys.worker = sys.newWorker(t, Config{})
			}
		}
		sys.agree(t, r, all, customers)

		// All of it again, in another interleaving, changes nothing.
		again := deliveriesOf(r, all)
		for !again.done() {
			require.NoError(t, again.next(context.Background(), sys.worker))
		}
		sys.agree(t, r, all, customers)
	})
}

// interference is something that goes wrong with one of the next commands: it
// fails, or it is done and nobody hears of it. Lost connections are few, because
// the driver waits half a second after one.
func interference(r *rand.Rand) mongofake.Fault {
	f := mongofake.Fault{Command: []string{"insert", "update", "find"}[r.IntN(3)], Skip: r.IntN(3), Count: 1, After: r.IntN(2) == 0}
	switch n := r.IntN(40); {
	case n == 0:
		f.CloseConn = true
	case n < 30 || f.Command == "find":
		f.Code = 8 // UnknownError
	default:
		f.Code, f.Kind, f.Index, f.After = 112, mongofake.WriteError, -1, false // WriteConflict
	}
	return f
}

// Workers that don't know of each other count the same events at once.
func TestZombiesCountNothingTwice(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a MongoDB server")
	}
	server := startServer(t)
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 2))
		const customers = 3
		all := world(r, 30, customers)
		sys, end := server.newSystem(t)
		var racing sync.WaitGroup
		for n := range uint64(3) {
			w := sys.newWorker(t, Config{})
			d := deliveriesOf(rand.New(rand.NewPCG(seed, 3+n)), all)
			racing.Go(func() {
				for !d.done() {
					// Who loses too often answers an error, and gets it again.
					_ = d.next(context.Background(), w)
				}
			})
		}
		racing.Wait()
		sys.agree(t, r, all, customers)
		end()
	}
}
