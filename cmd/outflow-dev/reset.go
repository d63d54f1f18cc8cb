package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"outflow/cmd/internal/app"
)

func resetCommand(o *flags, stdin io.Reader) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "reset", Short: "Remove the stack's data, so that the next start begins anew", Args: app.NoArgs,
		Long: `Removes everything that outflow-dev kept: the database, Kafka's topics, the
replica and the mail. Refuses while an outflow-dev runs on the data directory.
Asks before it does so; elsewhere than on a terminal it wants --yes.`,
		Example: `  outflow-dev reset
  outflow-dev reset --yes && outflow-dev --seed-demo`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := o.home()
			if err != nil {
				return err
			}
			f, isFile := stdin.(*os.File)
			return reset(dir, yes, input{stdin, isFile && term.IsTerminal(int(f.Fd()))}, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// input is where an answer comes from.
type input struct {
	io.Reader
	terminal bool // with a person at it
}

func reset(dir string, yes bool, stdin input, stdout io.Writer) (err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(stdout, "nothing to remove: there is no", dir)
		return nil
	}
	// The lock is held until the end: no outflow-dev runs on the data now, and
	// none can start on what is half removed.
	h, err := openHome(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	data := h.path("data")
	if _, err := os.Stat(data); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(stdout, "nothing to remove: there is no", data)
		return nil
	}
	if !yes {
		if !stdin.terminal {
			return app.UsageError(fmt.Errorf("reset removes %s: say --yes where nobody can be asked", data))
		}
		fmt.Fprintf(stdout, "Remove %s with all its data? [y/N] ", data)
		said, err := bufio.NewReader(stdin).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if s := strings.ToLower(strings.TrimSpace(said)); s != "y" && s != "yes" {
			fmt.Fprintln(stdout, "nothing was removed")
			return nil
		}
	}
	if err := os.RemoveAll(data); err != nil {
		return fmt.Errorf("remove the data: %w", err)
	}
	fmt.Fprintln(stdout, "removed", data)
	return nil
}
