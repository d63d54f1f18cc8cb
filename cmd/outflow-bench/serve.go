package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kfake"

	"outflow/internal/mongofake"
)

// nothing is what an HTTP server answers that does nothing, as long as a customer.
var nothing = []byte(`{"nothing":"` + strings.Repeat("x", 380) + `"}`)

// serveCommand runs a server in a process of its own, so that its memory and
// its garbage collection are not the load's. It prints where it listens.
func serveCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "serve kafka|mongodb|http [folder]", Hidden: true, Args: cobra.RangeArgs(1, 2),
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
			case "http":
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				srv := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/json")
					_, _ = w.Write(nothing)
				})}
				defer srv.Close()
				go func() { _ = srv.Serve(ln) }()
				fmt.Fprintln(stdout, "at", ln.Addr())
			}
			<-cmd.Context().Done()
			return nil
		},
	}
}
