// Command outflow-bench measures outflow, each figure beside its limit: what
// the database, the broker or the driver do alone with the same work, in turns
// with outflow, on the same machine and in the same minutes. A figure is worth
// what its ratio is; the numbers beside it change with the machine.
//
// It starts what it needs on loopback and stops it again: a private PostgreSQL
// that waits for the disk, a broker (kfake, unless --kafka names one), a
// MongoDB server (mongofake, unless --mongo names one), and the processes of
// outflow, built from this source. docs/performance.md explains every figure.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"outflow/cmd/internal/app"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(os.Args[1:], os.Stdout, os.Stderr).ExecuteContext(ctx)
	stop()
	os.Exit(app.ExitStatus(err, os.Stderr))
}

// figures are all that can be measured, in the order of docs/performance.md.
var figures = slices.Concat(apiFigures, relayFigures, deliveryFigures, visibleFigures, replicaFigures, workerFigures)

// options are the flags.
type options struct {
	rounds int
	scale  float64
	json   string
	list   bool
	kafka  string
	mongo  string
	pgBin  string
}

func command(args []string, stdout, stderr io.Writer) *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "outflow-bench [figure...]",
		Args:  cobra.ArbitraryArgs,
		Short: "Measure outflow beside its limits",
		Long: `Measures each figure and its limit in turns, in several rounds after one that
doesn't count, and prints medians with their spread, ratios within the rounds,
peak memory, and whether the goal is met. Without a name it measures all there
is, which takes half an hour; the beginning of a name is enough.

Measure on a machine that does nothing else. What is measured shares its cores
with the load and the servers, in outflow's figures and in their limits alike.`,
		Example: `  go run ./cmd/outflow-bench --list
  go run ./cmd/outflow-bench creates --rounds 3
  go run ./cmd/outflow-bench --json figures.json
  .ci/with-kafka sh -c 'go run ./cmd/outflow-bench relay --kafka $OUTFLOW_TEST_KAFKA'`,
		RunE: func(cmd *cobra.Command, names []string) error {
			if o.list {
				return listFigures(stdout)
			}
			chosen, err := choose(names)
			if err != nil {
				return err
			}
			if o.rounds < 1 || o.scale <= 0 {
				return app.UsageError(fmt.Errorf("--rounds and --scale must be above 0"))
			}
			return measure(cmd.Context(), chosen, o, stdout, stderr)
		},
	}
	f := root.Flags()
	f.IntVar(&o.rounds, "rounds", 5, "how many rounds count")
	f.Float64Var(&o.scale, "scale", 1, "multiplies how much is done in a round")
	f.StringVar(&o.json, "json", "", "write every sample to this file too, as JSON")
	f.BoolVar(&o.list, "list", false, "list the figures and their goals")
	f.StringVar(&o.kafka, "kafka", "", "a broker to measure with (host:port), instead of kfake")
	f.StringVar(&o.mongo, "mongo", "", "a MongoDB server to measure with (a URI without database), instead of mongofake")
	f.StringVar(&o.pgBin, "postgres-bin", "", "the folder of PostgreSQL's programs")
	app.Prepare(root, args, stdout, stderr)
	root.AddCommand(serveCommand(stdout), app.VersionCommand("outflow-bench"))
	return root
}

// choose returns the figures whose names begin so; all without names.
func choose(names []string) ([]figure, error) {
	if len(names) == 0 {
		return figures, nil
	}
	var chosen []figure
	for _, f := range figures {
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(f.name, n) }) {
			chosen = append(chosen, f)
		}
	}
	for _, n := range names {
		if !slices.ContainsFunc(figures, func(f figure) bool { return strings.HasPrefix(f.name, n) }) {
			return nil, app.UsageError(fmt.Errorf("no figure is called %s: see --list", n))
		}
	}
	return chosen, nil
}

func listFigures(w io.Writer) error {
	for _, f := range figures {
		fmt.Fprintf(w, "%s\n    %s\n    beside: %s\n", f.name, f.what, f.limit)
		for _, g := range f.goals {
			fmt.Fprintf(w, "    goal: %s\n", g)
		}
	}
	return nil
}
