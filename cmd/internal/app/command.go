package app

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// usageError marks what was wrong with the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// UsageError marks an error as one of the command line.
func UsageError(err error) error { return usageError{err} }

// Prepare gives a root command the manners that both binaries share: errors
// are told once, without the whole usage text, and flags that don't exist are
// usage errors.
func Prepare(root *cobra.Command, args []string, stdout, stderr io.Writer) {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w\nSee '%s --help'", err, c.CommandPath())}
	})
	if root.RunE == nil {
		root.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q\nSee '%s --help'", args[0], c.CommandPath())}
			}
			return c.Help()
		}
		root.Args = cobra.ArbitraryArgs
	}
}

// NoArgs refuses positional arguments, as a usage error.
func NoArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())}
	}
	return nil
}

// VersionCommand prints the binary's version.
func VersionCommand(name string) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), name, Version())
			return nil
		},
	}
}

// ExitStatus tells err, if there is one, and returns the process's status: 0
// without an error, 2 when the command line or the configuration was at fault,
// else 1.
func ExitStatus(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "error:", err)
	if _, ok := errors.AsType[*ConfigError](err); ok {
		return 2
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return 2
	}
	return 1
}
