// Command outflow runs the parts of outflow, each alone: the API, the relay
// and the workers. It is configured by OUTFLOW_ environment variables.
//
// It exits with 0 after a clean stop, 1 when something failed and 2 when the
// command line or the configuration is not usable.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"outflow/cmd/internal/app"
	"outflow/migrations"
)

func main() {
	ctx, stop := app.SignalContext(context.Background(), os.Stderr)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Environ())
	stop()
	os.Exit(app.ExitStatus(err, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer, environ []string) error {
	return command(args, stdout, stderr, environ).ExecuteContext(ctx)
}

// command is outflow with all its subcommands.
func command(args []string, stdout, stderr io.Writer, environ []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "outflow",
		Short: "A customer and order service whose every change leaves PostgreSQL as an event",
		Long: `outflow runs one part of the service per process. Every part reads the same
OUTFLOW_ variables and stops cleanly on SIGINT or SIGTERM; a second signal
stops it at once. Several copies of each part may run: workers share the
partitions, and of the relays one works while the others stand by.`,
		Example: `  eval "$(outflow-dev env)"     # the variables of a running outflow-dev
  outflow migrate               # bring the schema up to date
  outflow api --listen :8000    # serve the REST API
  outflow relay                 # publish the outbox to Kafka`,
	}
	app.Prepare(root, args, stdout, stderr)
	for _, c := range partCommands {
		root.AddCommand(partCommand(c, stderr, environ))
	}
	root.AddCommand(migrateCommand(stderr, environ), rebuildCommand(stdout, stderr, environ), verifyCommand(stdout, stderr, environ),
		restoreCommand(stdout, stderr, environ), dlqCommand(environ), mailCommand(stderr, environ), simulateCommand(stdout, stderr, environ), healthCommand(environ), app.VersionCommand("outflow"))
	return root
}

// partSpec describes a subcommand that runs one part until it is told to stop.
type partSpec struct {
	use, short, long string
	required         []string
	listens          bool
	resyncs          bool
	build            func(app.Config, *slog.Logger) (app.Part, error)
}

var partCommands = []partSpec{
	{
		use: "api", short: "Serve the REST API and its documentation",
		long: `Serves /api/customers and /api/orders, the OpenAPI documents and /docs. Starts
though PostgreSQL is away: requests get 503 until it is back. With
OUTFLOW_MONGO_URI it also answers questions under /api/analytics.`,
		required: []string{"OUTFLOW_POSTGRES_URL"}, listens: true, build: app.APIPart,
	},
	{
		use: "relay", short: "Publish the outbox to Kafka, in commit order and exactly once",
		long: `Streams the outbox by logical decoding and publishes every event in a Kafka
transaction together with its own progress. Makes the topics, the publication
and the replication slot that it needs. One relay of a group works; others wait
for its lock and take over when it is gone. Where the server or the role allow
no logical decoding it polls, and says why; OUTFLOW_RELAY_SOURCE decides.

A database that is not the one that was published from, as after a restore, is
refused: what it holds beside Kafka must be decided by a person. If it is to be
the truth from now on, start the relay once with --resync. It then publishes
every event that Kafka does not hold.

With OUTFLOW_HEALTH_LISTEN, /status/relay tells what it does: lag, retained
write-ahead log, heals, fences.`,
		required: []string{"OUTFLOW_POSTGRES_URL", "OUTFLOW_KAFKA_BROKERS"}, resyncs: true, build: app.RelayPart,
	},
	{
		use: "replicate", short: "Keep the MongoDB replica",
		long: `Applies the events to MongoDB. Every write is guarded by the entity's version,
so redelivery, replay and several replicators at once are harmless. Read the
views customers and orders; the collections behind them hold tombstones too.`,
		required: []string{"OUTFLOW_KAFKA_BROKERS", "OUTFLOW_MONGO_URI"}, build: app.ReplicatePart,
	},
	{
		use: "analyze", short: "Keep the figures about orders and customers",
		long: `Counts orders, revenue and customers in MongoDB, from the events alone and each
once, however often they come. The API answers from there under /api/analytics
when it knows OUTFLOW_MONGO_URI too.`,
		required: []string{"OUTFLOW_KAFKA_BROKERS", "OUTFLOW_MONGO_URI"}, build: app.AnalyzePart,
	},
	{
		use: "confirm", short: "Confirm or reject placed orders",
		long: `Reads order.placed events and decides each order once. It is confirmed for an
active customer, if all that was confirmed within OUTFLOW_VELOCITY_WINDOW and not
cancelled since comes to no more than the spending limit with it; else it is
rejected, with the reason.`,
		required: []string{"OUTFLOW_POSTGRES_URL", "OUTFLOW_KAFKA_BROKERS"}, build: app.ConfirmPart,
	},
	{
		use: "notify", short: "Send the mail that events ask for",
		long: `Sends welcome, confirmation, rejection and cancellation mail over SMTP. A mail
is claimed before and marked after it is sent, and its Message-ID is the
event's: it arrives twice only if the process or the connection dies between
the server's acceptance and the mark (RFC 1047).`,
		required: []string{"OUTFLOW_POSTGRES_URL", "OUTFLOW_KAFKA_BROKERS", "OUTFLOW_SMTP_ADDR"}, build: app.NotifyPart,
	},
}

func partCommand(spec partSpec, stderr io.Writer, environ []string) *cobra.Command {
	var listen string
	var resync bool
	cmd := &cobra.Command{
		Use: spec.use, Short: spec.short, Args: app.NoArgs,
		Long: spec.long + "\n\nNeeds:\n" + describe(spec.required),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if listen != "" {
				environ = append(environ, "OUTFLOW_LISTEN="+listen)
			}
			cfg, err := app.LoadConfig(environ, spec.required...)
			if err != nil {
				return err
			}
			cfg.RelayResync = resync
			log := cfg.Logger(stderr)
			status, err := app.ListenStatus(cfg)
			if err != nil {
				return err
			}
			if unknown := app.Unknown(environ); len(unknown) > 0 {
				log.Warn("these variables mean nothing to outflow", "names", strings.Join(unknown, " "))
			}
			part, err := spec.build(cfg, log)
			if err != nil {
				return err
			}
			parts := []app.Part{part}
			if status != nil {
				parts = append(parts, app.StatusPart(status, log, part))
			}
			return app.RunParts(cmd.Context(), parts...)
		},
	}
	if spec.listens {
		cmd.Flags().StringVar(&listen, "listen", "", "address to listen on (default OUTFLOW_LISTEN, else 127.0.0.1:8000)")
	}
	if spec.resyncs {
		cmd.Flags().BoolVar(&resync, "resync", false, "go on with a database that is not the one published from so far, as after a restore")
	}
	return cmd
}

func describe(names []string) string {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "  %-22s %s\n", n, app.Doc(n))
	}
	return strings.TrimRight(b.String(), "\n")
}

func migrateCommand(stderr io.Writer, environ []string) *cobra.Command {
	return &cobra.Command{
		Use: "migrate", Short: "Bring the database's schema up to date", Args: app.NoArgs,
		Long: `Applies the migrations that are missing. Several may start at once: one works,
the others wait for it.` + "\n\nNeeds:\n" + describe([]string{"OUTFLOW_POSTGRES_URL"}),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := app.LoadConfig(environ, "OUTFLOW_POSTGRES_URL")
			if err != nil {
				return err
			}
			done, err := migrations.Up(cmd.Context(), cfg.PostgresURL)
			if errors.Is(err, context.Canceled) {
				return nil
			}
			if err != nil {
				return err
			}
			for _, name := range done.Applied {
				fmt.Fprintln(cmd.OutOrStdout(), "applied", name)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the schema is at version", done.Version)
			return nil
		},
	}
}
