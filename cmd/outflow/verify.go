package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"outflow/cmd/internal/app"
	"outflow/domain"
	"outflow/outbox"
	"outflow/store"
	"outflow/verify"
)

// errDifferences ends a verification that found something: status 1.
var errDifferences = errors.New("not equal")

func verifyCommand(stdout, stderr io.Writer, environ []string) *cobra.Command {
	var repair, log, asJSON bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "verify [customers|orders]", Short: "Compare the replica with PostgreSQL, or the event log with Kafka",
		Long: `Reads customers and orders in PostgreSQL and in the replica side by side, and
lists what differs: missing, stale, ahead, extra, and corrupt (the same version,
other content). It may run at any time, under load too: what is only late isn't
accused. It waits for the relay and the replicator to catch up with what it saw.

--repair writes what PostgreSQL holds, unless the document has changed since.

--log checks the event log instead: that versions have no gaps, that each event
begins where the one before ended, that rows are what their last events say, and
that Kafka holds each event once and in order (lost, phantom, duplicated,
out_of_order). Without OUTFLOW_KAFKA_BROKERS, Kafka is left out.

The exit status is 1 when something differs and was not repaired.

Needs:
` + describe([]string{"OUTFLOW_POSTGRES_URL", "OUTFLOW_KAFKA_BROKERS", "OUTFLOW_MONGO_URI"}),
		Example: `  outflow verify
  outflow verify customers --json | jq -r 'select(.kind == "corrupt") | .id'
  outflow verify --repair
  outflow verify --log`,
		ValidArgs: []string{"customers", "orders"},
		Args:      between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var types []string
			if len(args) == 1 {
				if !slices.Contains([]string{"customers", "orders"}, args[0]) || log {
					return app.UsageError(fmt.Errorf("verify customers, orders, or both; --log takes no names"))
				}
				types = []string{strings.TrimSuffix(args[0], "s")}
			}
			if wait <= 0 {
				return app.UsageError(errors.New("--wait is a time, such as 30s"))
			}
			if log && repair {
				return app.UsageError(errors.New("--repair is for the replica: the event log is never changed"))
			}
			required := []string{"OUTFLOW_POSTGRES_URL"}
			if !log {
				required = append(required, "OUTFLOW_KAFKA_BROKERS", "OUTFLOW_MONGO_URI")
			}
			vars, err := app.LoadConfig(environ, required...)
			if err != nil {
				return err
			}
			pool, err := store.Open(cmd.Context(), vars.PostgresURL, 4)
			if err != nil {
				return err
			}
			defer pool.Close()
			published := func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, wait)
				defer cancel()
				return outbox.AwaitPublished(ctx, outbox.Config{
					PostgresURL: vars.PostgresURL, Brokers: vars.KafkaBrokers, Namespace: vars.Namespace(),
					Group: vars.RelayGroup, Partitions: vars.KafkaPartitions,
				})
			}
			unit := "rows"
			if log {
				unit = "" // it counts one thing after the other
			}
			m := newMeter(stderr, unit, asJSON)
			defer m.finish()
			p := printer{stdout, asJSON, m}
			if log {
				l := &verify.Log{
					Store: store.New(pool, store.Config{}), PostgresURL: vars.PostgresURL, Brokers: vars.KafkaBrokers,
					Namespace: vars.Namespace(), Published: published, Patience: wait,
					OnFault: func(f verify.LogFault) {
						p.print(f, "%-12s %s %s version %d %s", f.Fault, f.Type, f.ID, f.Version, f.Where)
					},
					OnProgress: m.show,
				}
				report, err := l.Run(cmd.Context())
				if err != nil {
					return err
				}
				p.print(report, "%d events, %d records, %d rows: %s", report.Events, report.Records, report.Rows, counts(report.Faults))
				if len(report.Faults) > 0 {
					return errDifferences
				}
				return nil
			}
			v := &verify.Replica{
				Store: store.New(pool, store.Config{}), MongoURI: vars.MongoURI, Brokers: vars.KafkaBrokers, Namespace: vars.Namespace(),
				Published: published, Patience: wait, Repair: repair, Types: types,
				OnDifference: func(d verify.Difference) { p.print(d, "%s", differing(d)) },
				OnProgress:   func(aggregateType string, rows, total int64) { m.show(aggregateType+" rows", rows, total) },
			}
			report, err := v.Run(cmd.Context())
			if err != nil {
				return err
			}
			done := ""
			if repair && len(report.Differences) > 0 {
				done = fmt.Sprintf("; %d repaired", report.Repaired)
			}
			if report.Undecided > 0 {
				done += fmt.Sprintf("; %d changed at every look, and were not decided", report.Undecided)
			}
			p.print(report, "%d customers and %d orders: %s%s", report.Rows[domain.AggregateCustomer], report.Rows[domain.AggregateOrder], counts(report.Differences), done)
			if !report.Clean() {
				return errDifferences
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&repair, "repair", false, "mend the replica where it differs")
	f.BoolVar(&log, "log", false, "check the event log instead of the replica")
	f.BoolVar(&asJSON, "json", false, "JSON lines")
	f.DurationVar(&wait, "wait", time.Minute, "how long the relay and the replicator may take to catch up")
	return cmd
}

// differing tells of a difference in a line.
func differing(d verify.Difference) string {
	side := func(version int64) string {
		if version == 0 {
			return "no version"
		}
		return fmt.Sprintf("version %d", version)
	}
	what := fmt.Sprintf("%s in PostgreSQL, %s in the replica", side(d.Source), side(d.Replica))
	switch {
	case d.Kind == verify.Missing:
		what = side(d.Source) + " in PostgreSQL, not in the replica"
	case d.Kind == verify.Extra:
		what = "not in PostgreSQL, " + side(d.Replica) + " in the replica"
	case d.Kind == verify.Corrupt && d.Source == d.Replica:
		what = side(d.Source) + " in both, with other content"
	}
	if d.Repaired {
		what += "; repaired"
	}
	return fmt.Sprintf("%-8s %s %s: %s", d.Kind, d.Type, printable(d.ID), what)
}

// printer prints findings as text or JSON lines.
type printer struct {
	w      io.Writer
	asJSON bool
	meter  *meter
}

func (p printer) print(v any, format string, args ...any) {
	p.meter.clear()
	if p.asJSON {
		_ = json.NewEncoder(p.w).Encode(v) // who reads it may have left
		return
	}
	fmt.Fprintln(p.w, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

func counts[K ~string](found map[K]int64) string {
	if len(found) == 0 {
		return "equal"
	}
	var parts []string
	for k, n := range found {
		parts = append(parts, fmt.Sprintf("%d %s", n, string(k)))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
