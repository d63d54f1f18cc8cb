package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"outflow/cmd/internal/app"
	"outflow/simulator"
)

func simulateCommand(stdout, stderr io.Writer, environ []string) *cobra.Command {
	cfg := simulator.Config{}
	var rate string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "simulate", Short: "Make life-like traffic through the API", Args: app.NoArgs,
		Long: `Registers customers, places orders, changes, cancels, fulfils and refunds, at
random (exponentially distributed) intervals. What happens depends on the seed
alone: the same seed makes the same traffic. Ends with what was made, how long
requests took and what the service refused. Some refusals are part of life:
an order that was rejected can't be cancelled.

On a terminal a progress bar shows how far it is; elsewhere, or with --json, a
JSON line a second does, and the report is JSON too.`,
		Example: `  eval "$(outflow-dev env)"
  outflow simulate --customers 100 --rate 50/s --duration 1m --seed 7`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Rate, err = app.ParseRate(rate); err != nil {
				return app.UsageError(fmt.Errorf("--rate: %w", err))
			}
			if cfg.Duration <= 0 || cfg.Customers < 1 {
				return app.UsageError(fmt.Errorf("--duration and --customers must be more than nothing"))
			}
			vars, err := app.LoadConfig(environ)
			if err != nil {
				return err
			}
			cfg.API = strings.TrimRight(cmp.Or(cfg.API, vars.APIURL, "http://"+vars.Listen), "/")
			file, isFile := stderr.(*os.File)
			var finish func()
			if !asJSON && isFile && term.IsTerminal(int(file.Fd())) {
				finish = showBar(&cfg, stderr)
			} else {
				showLines(&cfg, stderr)
			}
			report, err := simulator.Run(cmd.Context(), cfg)
			if finish != nil {
				finish()
			}
			if err != nil {
				return err
			}
			if out, ok := stdout.(*os.File); asJSON || !ok || !term.IsTerminal(int(out.Fd())) {
				return json.NewEncoder(stdout).Encode(report)
			}
			report.Print(stdout)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.API, "api", "", "where the API is: scheme and host (default OUTFLOW_API_URL, else http://127.0.0.1:8000)")
	f.IntVar(&cfg.Customers, "customers", 100, "how many customers register")
	f.StringVar(&rate, "rate", "10/s", "requests per second (50/s) or minute (90/m), on average")
	f.DurationVar(&cfg.Duration, "duration", time.Minute, "for how long")
	f.Uint64Var(&cfg.Seed, "seed", 1, "what decides everything that happens")
	f.BoolVar(&asJSON, "json", false, "JSON lines, also on a terminal")
	return cmd
}

func showBar(cfg *simulator.Config, w io.Writer) (finish func()) {
	bar := progressbar.NewOptions64(int64(cfg.Duration/time.Millisecond),
		progressbar.OptionSetWriter(w), progressbar.OptionFullWidth(), progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetElapsedTime(false), progressbar.OptionClearOnFinish())
	cfg.Progress = func(p simulator.Progress) {
		bar.Describe(fmt.Sprintf("%d requests, %.0f/s, %d refused, %d failed", p.Done, p.PerSecond, p.Refused, p.Failed))
		_ = bar.Set64(int64(min(p.Elapsed, cfg.Duration) / time.Millisecond)) // a terminal that is gone is no reason to stop
	}
	return func() { _ = bar.Finish() }
}

func showLines(cfg *simulator.Config, w io.Writer) {
	enc := json.NewEncoder(w)
	cfg.Every = time.Second
	cfg.Progress = func(p simulator.Progress) {
		_ = enc.Encode(map[string]any{ // whoever reads the lines may have left
			"elapsed_s": p.Elapsed.Seconds(), "remaining_s": max(0, (cfg.Duration - p.Elapsed).Seconds()), "requests": p.Done,
			"requests_per_second": p.PerSecond, "refused": p.Refused, "failed": p.Failed, "in_flight": p.InFlight,
		})
	}
}
