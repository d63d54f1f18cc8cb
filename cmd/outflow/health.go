package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"outflow/cmd/internal/app"
)

func healthCommand(environ []string) *cobra.Command {
	var live bool
	cmd := &cobra.Command{
		Use: "health", Short: "Ask the process that runs here whether it is ready", Args: app.NoArgs,
		Long: `Asks the part that runs with the same environment: on OUTFLOW_HEALTH_LISTEN,
else where the API listens (OUTFLOW_LISTEN). Exits with 0 when the part is ready,
else with 1 and the reason. For images without a shell.

The API is ready when PostgreSQL answers, also while Kafka is away. A relay is
ready when it publishes or stands by, a worker when it is a member of its group
and knows where to go on; a backlog does not make it unready.`,
		Example: `  OUTFLOW_HEALTH_LISTEN=127.0.0.1:9100 outflow relay &
  OUTFLOW_HEALTH_LISTEN=127.0.0.1:9100 outflow health
  curl -s 127.0.0.1:9100/metrics`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := app.LoadConfig(environ)
			if err != nil {
				return err
			}
			path := "/readyz"
			if live {
				path = "/livez"
			}
			said, err := app.AskHealth(cmd.Context(), cfg, path)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), said)
			return nil
		},
	}
	cmd.Flags().BoolVar(&live, "live", false, "ask only whether it is alive")
	return cmd
}
