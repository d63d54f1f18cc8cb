package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kfake"

	"outflow/internal/mongofake"
)

// serveCommand runs a server in a process of its own, so that its memory and
// its garbage collection are not the load's. It prints where it listens.
func serveCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "serve kafka|mongodb [folder]", Hidden: true, Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "kafka":
				c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(args[1]))
				if err != nil {
					return err
				}
				defer c.Close()
				fmt.Fprintln(stdout, "at", c.ListenAddrs()[0])
			case "mongodb":
				m, err := mongofake.Start(cmd.Context(), mongofake.Config{})
				if err != nil {
					return err
				}
				defer m.Close()
				fmt.Fprintln(stdout, "at", m.Addr())
			}
			<-cmd.Context().Done()
			return nil
		},
	}
}
