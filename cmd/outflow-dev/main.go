// Command outflow-dev runs all of outflow in one process, on servers of its
// own: PostgreSQL, Kafka, MongoDB and a mailbox. It is for a first look and for
// development, and listens on loopback alone.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"outflow/cmd/internal/app"
	"outflow/internal/postgres"
)

func main() {
	ctx, stop := app.SignalContext(context.Background(), os.Stderr)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(app.ExitStatus(err, os.Stderr))
}

type flags struct {
	dataDir      string
	ephemeral    bool
	listen       string
	postgresBin  string
	servicesOnly bool
	verbose      bool
	simulate     string
	seedDemo     bool
	mailFaults   string
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var o flags
	root := &cobra.Command{
		Use:   "outflow-dev",
		Short: "Run all of outflow on this machine, with everything it needs",
		Long: `Starts a private PostgreSQL, Kafka (kfake), MongoDB (the machine's own mongod,
else a server in memory), a mailbox, and all parts of outflow: API, relay,
replicator, confirmer, notifier and analytics. Needs nothing but Go on the
machine: when no PostgreSQL (14 or newer) is found, one is fetched from Maven
Central, or from the Maven repository that OUTFLOW_POSTGRES_MIRROR names. Stop it
with Ctrl-C.

The data stays in the data directory and is there at the next start, unless
--ephemeral is given.`,
		Example: `  outflow-dev                                # everything, on http://127.0.0.1:8000
  outflow-dev --seed-demo                    # with a few customers and orders to look at
  outflow-dev --ephemeral --listen :0        # nothing kept, any free port
  outflow-dev reset                          # remove what was kept
  outflow-dev --services-only                # the servers; run the parts by hand:
  eval "$(outflow-dev env)"; outflow relay`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStack(cmd.Context(), o, stdout, stderr) },
	}
	app.Prepare(root, args, stdout, stderr)
	root.Args = app.NoArgs
	set := root.Flags()
	set.BoolVar(&o.ephemeral, "ephemeral", false, "keep nothing: the data is removed at the end")
	set.StringVar(&o.listen, "listen", "127.0.0.1:8000", "address of the API; port 0 picks a free one")
	set.StringVar(&o.postgresBin, "postgres-bin", "", "folder of the PostgreSQL programs to run (default: the machine's own, else fetched ones)")
	set.BoolVar(&o.servicesOnly, "services-only", false, "start the servers and migrate, and leave the parts to be run by hand")
	set.BoolVar(&o.seedDemo, "seed-demo", false, "make a few customers and orders, if the database is empty")
	set.StringVar(&o.simulate, "simulate", "", "keep the demo alive: simulated customers act at this rate, such as 5/s")
	set.StringVar(&o.mailFaults, "mail-faults", "", "how the mail server treats the first mails: tempfail:3,permfail:1 answers 451 to three and 550 to one; drop_after_data:1 takes one and hangs up")
	set.BoolVarP(&o.verbose, "verbose", "v", false, "log what the parts do, not just what goes wrong")
	root.PersistentFlags().StringVar(&o.dataDir, "data-dir", "", "folder of this stack and its data (default "+defaultHint()+")")
	root.AddCommand(envCommand(&o), resetCommand(&o, stdin), app.VersionCommand("outflow-dev"))
	return root.ExecuteContext(ctx)
}

func envCommand(o *flags) *cobra.Command {
	return &cobra.Command{
		Use: "env", Short: "Print the running stack's addresses as export lines", Args: app.NoArgs,
		Long: `Prints the variables that outflow's parts and your own tools need to find the
running stack, as lines for a shell. Exits with 1 while the stack is starting
and when none runs.`,
		Example: `  eval "$(outflow-dev env)"
  psql "$OUTFLOW_POSTGRES_URL" -c 'SELECT position, type FROM outbox'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := o.home()
			if err != nil {
				return err
			}
			s, err := readState(dir)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), exports(s.Env))
			return err
		},
	}
}

// home is the folder of the stack that the flags name.
func (o *flags) home() (string, error) {
	if o.dataDir != "" {
		return filepath.Abs(o.dataDir)
	}
	cache, err := postgres.CacheHome()
	if err != nil {
		return "", fmt.Errorf("find a place for the data (name one with --data-dir): %w", err)
	}
	return filepath.Join(cache, "dev"), nil
}

func defaultHint() string {
	dir, err := (&flags{}).home()
	if err != nil {
		return "none: required here"
	}
	return dir
}
