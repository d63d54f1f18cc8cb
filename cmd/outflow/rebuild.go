package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"outflow/analytics"
	"outflow/cmd/internal/app"
	"outflow/domain"
	"outflow/internal/rebuild"
	"outflow/outbox"
	"outflow/replicator"
)

// rebuildable is what can be rebuilt, by name.
var rebuildable = []string{"customers", "orders", "analytics"}

func rebuildCommand(stdout, stderr io.Writer, environ []string) *cobra.Command {
	var from, until string
	var dryRun, asJSON bool
	cmd := &cobra.Command{
		Use: "rebuild [customers|orders|analytics|all]", Short: "Make a replica anew from the events, beside live traffic",
		Long: `Applies all events to a shadow of what people read, catches up with the workers,
has them wait at a batch's edge (some seconds, in which nobody notices more than
that the replica is not newer), and puts the shadow in its place. Readers see
the old one or the new one, complete, and nothing goes back. A cursor that is
open at that moment ends. Mail and commands are never sent again by this.

It can be interrupted at any point, by kill -9 too: started again it goes on
where it was, once the record of the one that is gone was silent for 4 seconds.
While another one is at it, it says so and waits.

--from outbox reads PostgreSQL instead of Kafka: when Kafka was lost, or its
retention has passed the oldest events. --until makes the replica as it was at
a time, in a collection of its own, and leaves the live one alone.

Needs:
` + describe([]string{"OUTFLOW_KAFKA_BROKERS", "OUTFLOW_MONGO_URI", "OUTFLOW_POSTGRES_URL"}) + `
                         (OUTFLOW_POSTGRES_URL only with --from outbox)`,
		Example: `  outflow rebuild --dry-run                # what it would read
  outflow rebuild orders
  outflow rebuild all --from outbox
  outflow rebuild customers --until 2026-11-20T00:00:00Z`,
		ValidArgs: append(slices.Clone(rebuildable), "all"),
		Args:      between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := rebuildable
			if len(args) == 1 && args[0] != "all" {
				if !slices.Contains(rebuildable, args[0]) {
					return app.UsageError(fmt.Errorf("%q can't be rebuilt: name one of %s, or all", args[0], strings.Join(rebuildable, ", ")))
				}
				names = args
			}
			if from != string(rebuild.FromKafka) && from != string(rebuild.FromOutbox) {
				return app.UsageError(fmt.Errorf("--from is kafka or outbox, not %q", from))
			}
			required := []string{"OUTFLOW_KAFKA_BROKERS", "OUTFLOW_MONGO_URI"}
			if from == string(rebuild.FromOutbox) {
				required = append(required, "OUTFLOW_POSTGRES_URL")
			}
			vars, err := app.LoadConfig(environ, required...)
			if err != nil {
				return err
			}
			r := rebuilding{
				vars: vars, from: rebuild.Source(from), dryRun: dryRun, meter: newMeter(stderr, "events", asJSON),
			}
			r.log = vars.Logger(r.meter)
			r.out = printer{stdout, asJSON || !isTerminal(stdout), r.meter}
			if !r.meter.terminal { // whoever reads the lines wants no others among them
				r.log = slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			}
			if until != "" {
				if r.until, err = time.Parse(time.RFC3339Nano, until); err != nil {
					return app.UsageError(fmt.Errorf("--until is a time such as 2026-11-20T00:00:00Z"))
				}
				if slices.Contains(names, "analytics") {
					return app.UsageError(errors.New("--until is for customers or orders: analytics answers for any time as it is"))
				}
			}
			defer r.meter.finish()
			for _, name := range names {
				err := r.one(cmd.Context(), name)
				if cmd.Context().Err() != nil {
					return fmt.Errorf("rebuild %s: interrupted; what is done is kept, and the next rebuild goes on with it", name)
				}
				if err != nil {
					return fmt.Errorf("rebuild %s: %w", name, err)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "kafka", "where to read the events: kafka or outbox")
	f.StringVar(&until, "until", "", "leave out what happened after this time (RFC 3339)")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be read, and write nothing")
	f.BoolVar(&asJSON, "json", false, "JSON lines, also on a terminal")
	return cmd
}

type rebuilding struct {
	vars   app.Config
	from   rebuild.Source
	until  time.Time
	dryRun bool
	meter  *meter
	log    *slog.Logger
	out    printer
}

// rebuiltLine is what is printed of each.
type rebuiltLine struct {
	Rebuilt    string  `json:"rebuilt"`
	Collection string  `json:"collection,omitempty"`
	Events     int64   `json:"events"`
	LeftOut    int     `json:"keys_left_out"`
	Resumed    bool    `json:"resumed"`
	ByOther    bool    `json:"by_another"`
	Seconds    float64 `json:"seconds"`
	Stood      float64 `json:"workers_stood_seconds"`
	AsOf       bool    `json:"-"` // whether the live one was left alone
}

func (r *rebuilding) one(ctx context.Context, name string) error {
	cfg := rebuild.Config{
		From: r.from, Brokers: r.vars.KafkaBrokers, Until: r.until, Logger: r.log,
		OnProgress: func(p rebuild.Progress) { r.meter.show(name+" "+p.Phase, p.Done, p.Total) },
		OnWait:     func(who string) { r.meter.say("%s is being rebuilt by %s: waiting", name, who) },
	}
	types := []string{domain.AggregateOrder, domain.AggregateCustomer}
	i := slices.IndexFunc(replicator.EntityCollections, func(e replicator.EntityCollection) bool { return e.View == name })
	if i >= 0 {
		types = []string{replicator.EntityCollections[i].Aggregate}
	}
	if r.from == rebuild.FromOutbox {
		log, err := outbox.OpenLog(ctx, r.vars.PostgresURL)
		if err != nil {
			return err
		}
		defer log.Close()
		extent, err := log.Extent(ctx, types...)
		if err != nil {
			return err
		}
		if !extent.Complete {
			r.meter.say("the oldest events were dropped from the outbox: what has not changed since will be missing until outflow verify --repair")
		}
		cfg.Total = extent.Events
		cfg.Outbox = func(ctx context.Context, after int64, each func([]domain.Event, int64) error) error {
			return log.ByPosition(ctx, types, after, each)
		}
	}
	if r.dryRun {
		plan, err := rebuild.Plan(ctx, cfg, topicsOf(r.vars, types)...)
		if err != nil {
			return err
		}
		r.out.print(map[string]any{"would_rebuild": name, "from": r.from, "events": plan}, "%s: about %d events from %s", name, plan, r.from)
		return nil
	}
	line := rebuiltLine{Rebuilt: name, AsOf: !r.until.IsZero()}
	var res rebuild.Result
	var err error
	if i >= 0 {
		res, line.Collection, err = replicator.Rebuild(ctx, replicator.EntityCollections[i], r.vars.MongoURI, r.vars.Namespace(), cfg)
	} else {
		res, err = analytics.Rebuild(ctx, r.vars.MongoURI, r.vars.Namespace(), cfg)
	}
	if err != nil {
		return err
	}
	line.Events, line.LeftOut, line.Resumed, line.ByOther, line.Seconds = res.Events, res.LeftOut, res.Resumed, res.ByOther, res.Took.Seconds()
	line.Stood = res.Stood.Seconds()
	r.out.print(line, "%s", line)
	return nil
}

func (l rebuiltLine) String() string {
	if l.ByOther {
		return l.Rebuilt + ": rebuilt by the other one"
	}
	s := fmt.Sprintf("%s: rebuilt from %d events in %.1f s", l.Rebuilt, l.Events, l.Seconds)
	if l.Stood > 0 {
		s += fmt.Sprintf(", for %.1f s of which the workers stood still", l.Stood)
	}
	if l.Resumed {
		s += ", going on with what was done before"
	}
	if l.LeftOut > 0 {
		s += fmt.Sprintf("; %d keys have events that can't be applied: see outflow dlq list", l.LeftOut)
	}
	if l.AsOf {
		s += ", in the collection " + l.Collection
	}
	return s
}

func topicsOf(vars app.Config, aggregateTypes []string) []string {
	var topics []string
	for _, t := range aggregateTypes {
		topics = append(topics, vars.Namespace().Topic(t))
	}
	return topics
}
