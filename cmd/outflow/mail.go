package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"outflow/cmd/internal/app"
	"outflow/domain"
)

func mailCommand(stderr io.Writer, environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "mail", Short: "Send a mail again", Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return app.UsageError(fmt.Errorf("unknown command %q\nSee '%s --help'", args[0], c.CommandPath()))
			}
			return c.Help()
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use: "resend EVENT", Short: "Send a mail again that was sent", Args: between(1, 1),
		Long: `Sends the mail of a notification.requested event once more, as it was, to the
address that it went to. EVENT is the event's id, or the mail's Message-ID, which
begins with it.

The new mail has a Message-ID of its own, with .r1, .r2 ... behind the event's id:
mail servers drop what has the Message-ID of a mail that they have. OUTFLOW_MAIL_RATE
doesn't apply. A mail that was refused for good is parked instead: see
'outflow dlq list notifier'.` + "\n\nNeeds:\n" + describe([]string{"OUTFLOW_POSTGRES_URL", "OUTFLOW_SMTP_ADDR"}),
		Example: `  outflow mail resend 01938f00-0000-7000-8000-000000000001
  outflow mail resend '<01938f00-0000-7000-8000-000000000001@outflow.shop.example>'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseMessageID(args[0])
			if err != nil {
				return app.UsageError(err)
			}
			cfg, err := app.LoadConfig(environ, "OUTFLOW_POSTGRES_URL", "OUTFLOW_SMTP_ADDR")
			if err != nil {
				return err
			}
			number, err := app.ResendMail(cmd.Context(), cfg, id, cfg.Logger(stderr))
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "sent again, as number %d\n", number)
			return nil
		},
	})
	return cmd
}

// parseMessageID reads an event's id, or the Message-ID of a mail, whose first
// part it is.
func parseMessageID(s string) (domain.ID, error) {
	text, _, _ := strings.Cut(strings.Trim(s, "<>"), "@")
	text, _, _ = strings.Cut(text, ".")
	id, err := domain.ParseID(text)
	if err != nil {
		return id, fmt.Errorf("%q is neither an event's id nor the Message-ID of a mail of outflow", s)
	}
	return id, nil
}
