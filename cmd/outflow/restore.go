package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"outflow/cmd/internal/app"
	"outflow/store"
)

func restoreCommand(stdout, stderr io.Writer, environ []string) *cobra.Command {
	var schema string
	var inPlace, asJSON bool
	cmd := &cobra.Command{
		Use: "restore", Short: "Make customers and orders anew from the event log, and compare", Args: app.NoArgs,
		Long: `Makes the tables customers and orders in another schema of the same database,
from the outbox alone, and compares them with the live ones as of one moment:
that they are equal shows that the event log is the record. With --in-place it
fills the live tables, which have to be empty, as after they were lost.

The exit status is 1 when something differs.

Needs:
` + describe([]string{"OUTFLOW_POSTGRES_URL"}),
		Example: `  outflow restore                    # into the schema outflow_restored
  outflow restore --schema check
  outflow restore --in-place         # when customers and orders are empty`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case inPlace && cmd.Flags().Changed("schema"):
				return app.UsageError(errors.New("name a schema or restore in place"))
			case inPlace:
				schema = ""
			case schema == "":
				return app.UsageError(errors.New("--schema needs a name"))
			}
			vars, err := app.LoadConfig(environ, "OUTFLOW_POSTGRES_URL")
			if err != nil {
				return err
			}
			pool, err := store.Open(cmd.Context(), vars.PostgresURL, 2)
			if err != nil {
				return err
			}
			defer pool.Close()
			m := newMeter(stderr, "rows", asJSON)
			res, err := store.New(pool, store.Config{}).Restore(cmd.Context(), schema, func(n, total int64) { m.show("rows", n, total) })
			m.finish()
			switch {
			case errors.Is(err, store.ErrNotEmpty) && inPlace:
				return fmt.Errorf("%w: --in-place fills tables that are empty", err)
			case errors.Is(err, store.ErrLiveSchema):
				return fmt.Errorf("%w: name another one than %s with --schema, or say --in-place", err, schema)
			case errors.Is(err, store.ErrNotEmpty):
				return fmt.Errorf("%w: name another schema with --schema, or drop %s first", err, schema)
			case err != nil:
				return err
			}
			if asJSON {
				err = json.NewEncoder(stdout).Encode(res)
			} else {
				for _, d := range res.Differences {
					fmt.Fprintf(stdout, "%s %s: version %d, restored %d\n", d.Table, d.ID, d.Live, d.Restored)
				}
				_, err = fmt.Fprintln(stdout, restored(res, inPlace))
			}
			if err == nil && len(res.Differences) > 0 {
				err = errDifferences
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&schema, "schema", "outflow_restored", "where to restore; it is made if it isn't there")
	f.BoolVar(&inPlace, "in-place", false, "fill the live tables, which have to be empty")
	f.BoolVar(&asJSON, "json", false, "JSON lines")
	return cmd
}

// restored tells of a restore in a line.
func restored(res store.Restored, inPlace bool) string {
	done := fmt.Sprintf("%d customers and %d orders restored", res.Customers, res.Orders)
	if inPlace { // and there was nothing to compare them with
		return done
	}
	of, more := map[string]int{}, ""
	for _, d := range res.Differences {
		if of[d.Table]++; of[d.Table] == store.MaxRowDifferences {
			more = " or more"
		}
	}
	return fmt.Sprintf("%s, %d%s differ", done, len(res.Differences), more)
}
