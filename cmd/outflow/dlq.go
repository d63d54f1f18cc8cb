package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"outflow/cmd/internal/app"
	"outflow/internal/consumer"
)

// workers are the consumer groups that park what they can't handle, as
// events.Namespace.Group names them.
var workers = []string{"replicator", "confirmer", "notifier", "analytics"}

// dlq is what the subcommands of `outflow dlq` share.
type dlq struct {
	environ []string
	timeout time.Duration
	asJSON  bool
}

func dlqCommand(environ []string) *cobra.Command {
	d := &dlq{environ: environ}
	cmd := &cobra.Command{
		Use: "dlq", Short: "List, show, retry or drop messages that a worker could not handle",
		Long: `A message that a worker can't handle is parked in the worker's dead-letter topic,
and later messages of its key are parked behind it, so that they stay in order.
All other keys flow on. Once the cause is mended, retry the key; or drop what
can never be handled.

A message is named by its worker (` + strings.Join(workers, ", ") + `) and its number
there, as list shows them. What is asked for is done by the worker itself, so
one must run.

Needs:
` + describe([]string{"OUTFLOW_KAFKA_BROKERS"}),
		Example: `  outflow dlq list                    # what is parked, by all workers
  outflow dlq show notifier 12        # one message, and why it was parked
  outflow dlq retry notifier 12       # handle its key again, in order
  outflow dlq retry notifier --all    # every key of that worker
  outflow dlq drop notifier 12        # forget this one message
  outflow dlq drop notifier 12 --key  # and all that is parked behind it`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return app.UsageError(fmt.Errorf("unknown command %q\nSee '%s --help'", args[0], c.CommandPath()))
			}
			return c.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	cmd.PersistentFlags().DurationVar(&d.timeout, "timeout", 30*time.Second, "how long to wait for Kafka and for the worker")
	cmd.AddCommand(d.listCommand(), d.showCommand(), d.retryCommand(), d.dropCommand())
	return cmd
}

func (d *dlq) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list [WORKER]", Short: "List what is parked",
		Long: `Lists the parked messages of a worker, or of all of them, in the order in which
they were parked. BEHIND says which message has to be handled or dropped first.`,
		Example: `  outflow dlq list
  outflow dlq list notifier
  outflow dlq list --json | jq -r '.[] | select(.behind == null) | .reason'`,
		Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			of := workers
			if len(args) == 1 {
				of = args
			}
			var all []parkedMessage
			for _, worker := range of {
				err := d.with(cmd.Context(), worker, func(ctx context.Context, letters *consumer.DeadLetters) error {
					list, err := letters.List(ctx)
					all = append(all, describeAll(worker, list)...)
					return err
				})
				if err != nil {
					return err
				}
			}
			if d.asJSON {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			return writeTable(cmd.OutOrStdout(), all)
		},
	}
	cmd.Flags().BoolVar(&d.asJSON, "json", false, "print JSON")
	return cmd
}

func (d *dlq) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show WORKER ID", Short: "Show a parked message",
		Long: `Shows a parked message with its headers and data, and why it was parked. The data
is that of customers: mind where you paste it.`,
		Example: `  outflow dlq show notifier 12
  outflow dlq show notifier 12 --json | jq .data.after`,
		Args: between(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.one(cmd, args, func(ctx context.Context, letters *consumer.DeadLetters, id int64) error {
				list, err := letters.List(ctx)
				if err != nil {
					return err
				}
				at := slices.IndexFunc(list, func(l consumer.DeadLetter) bool { return l.ID == id })
				if at < 0 {
					return consumer.ErrNoDeadLetter
				}
				m := describeAll(args[0], list)[at]
				m.addContent(list[at])
				if d.asJSON {
					return writeJSON(cmd.OutOrStdout(), m)
				}
				return m.write(cmd.OutOrStdout())
			})
		},
	}
	cmd.Flags().BoolVar(&d.asJSON, "json", false, "print JSON")
	return cmd
}

func (d *dlq) retryCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "retry WORKER ID | retry WORKER --all", Short: "Have parked messages handled again, in order",
		Long: `Has the key of a parked message handled again: everything that is parked of it,
in order, and then what came meanwhile. With --all, every key of the worker that
has something parked. Waits until it is done. Exits with 1 when a message failed
again, which is then parked as before.`,
		Example: `  outflow dlq retry notifier 12
  outflow dlq retry notifier --all`,
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return between(1, 1)(cmd, args)
			}
			return between(2, 2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				return d.retryAll(cmd.Context(), args[0], cmd.OutOrStdout())
			}
			return d.one(cmd, args, func(ctx context.Context, letters *consumer.DeadLetters, id int64) error {
				if err := letters.Retry(ctx, id); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "done: nothing of its key is parked any more")
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every key of the worker")
	return cmd
}

// retryAll retries the first message of every key, each within the timeout. One
// key that fails again doesn't keep the others waiting.
func (d *dlq) retryAll(ctx context.Context, worker string, w io.Writer) error {
	var list []consumer.DeadLetter
	err := d.with(ctx, worker, func(ctx context.Context, letters *consumer.DeadLetters) (err error) {
		list, err = letters.List(ctx)
		return err
	})
	if err != nil {
		return err
	}
	done, failed := 0, 0
	for _, l := range list {
		if !l.First {
			continue
		}
		err := d.with(ctx, worker, func(ctx context.Context, letters *consumer.DeadLetters) error { return letters.Retry(ctx, l.ID) })
		again, parked := errors.AsType[*consumer.ParkedAgainError](err)
		switch {
		case parked:
			failed++
			fmt.Fprintf(w, "%d: %s\n", l.ID, printable(again.Error()))
		case errors.Is(err, consumer.ErrNoDeadLetter): // someone else was quicker
		case err != nil:
			return err
		default:
			done++
		}
	}
	fmt.Fprintf(w, "keys that flow again: %d, parked again: %d\n", done, failed)
	if failed > 0 {
		return fmt.Errorf("%d of %d keys were parked again", failed, done+failed)
	}
	return nil
}

func (d *dlq) dropCommand() *cobra.Command {
	var key bool
	cmd := &cobra.Command{
		Use: "drop WORKER ID", Short: "Forget a parked message",
		Long: `Forgets a parked message: this worker never handles it. What is parked behind it
stays parked, until it is retried or dropped too; with --key, all of it is
forgotten, and the key flows again. The event itself stays in the outbox and in
its topic.`,
		Example: `  outflow dlq drop notifier 12
  outflow dlq drop notifier 12 --key`,
		Args: between(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.one(cmd, args, func(ctx context.Context, letters *consumer.DeadLetters, id int64) error {
				drop := letters.Drop
				if key {
					drop = letters.DropKey
				}
				if err := drop(ctx, id); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "dropped")
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&key, "key", false, "also all that is parked of the same key")
	return cmd
}

// one runs f for the message that args name.
func (d *dlq) one(cmd *cobra.Command, args []string, f func(context.Context, *consumer.DeadLetters, int64) error) error {
	id, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil || id < 0 {
		return app.UsageError(fmt.Errorf("%q is not the number of a message: see 'outflow dlq list'", args[1]))
	}
	err = d.with(cmd.Context(), args[0], func(ctx context.Context, letters *consumer.DeadLetters) error {
		return f(ctx, letters, id)
	})
	if errors.Is(err, consumer.ErrNoDeadLetter) {
		return fmt.Errorf("the %s has no parked message %d: see 'outflow dlq list %s'", args[0], id, args[0])
	}
	return err
}

// with opens a worker's parked messages for f, which has until the timeout.
func (d *dlq) with(ctx context.Context, worker string, f func(context.Context, *consumer.DeadLetters) error) error {
	if !slices.Contains(workers, worker) {
		return app.UsageError(fmt.Errorf("there is no worker %q: it is one of %s", worker, strings.Join(workers, ", ")))
	}
	cfg, err := app.LoadConfig(d.environ, "OUTFLOW_KAFKA_BROKERS")
	if err != nil {
		return err
	}
	letters, err := consumer.OpenDeadLetters(cfg.KafkaBrokers, cfg.Namespace().Group(worker))
	if err != nil {
		return err
	}
	defer letters.Close()
	limited, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	err = f(limited, letters)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("gave up after %s (see --timeout); is Kafka up, and does 'outflow %s' run? %w", d.timeout, commandOf(worker), err)
	}
	return err
}

// commandOf is the subcommand that runs a worker.
func commandOf(worker string) string {
	return map[string]string{"replicator": "replicate", "confirmer": "confirm", "notifier": "notify", "analytics": "analyze"}[worker]
}

func between(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.RangeArgs(least, most)(cmd, args); err != nil {
			return app.UsageError(fmt.Errorf("usage: %s\nSee '%s --help'", cmd.UseLine(), cmd.CommandPath()))
		}
		return nil
	}
}

// parkedMessage is a dead letter as it is printed.
type parkedMessage struct {
	Worker    string    `json:"worker"`
	ID        int64     `json:"id"`
	Behind    *int64    `json:"behind"` // the first message of its key; null when this is it
	Key       string    `json:"key"`
	Reason    string    `json:"reason"`
	ParkedAt  time.Time `json:"parked_at"`
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	EventID   string    `json:"event_id,omitempty"` // this and what follows are missing when it is no event
	Type      string    `json:"type,omitempty"`
	Aggregate string    `json:"aggregate_id,omitempty"`
	Version   int64     `json:"version,omitempty"`

	Headers map[string]string `json:"headers,omitempty"` // this and Data are shown for single messages
	Data    any               `json:"data,omitempty"`    // JSON; text where it is none
}

func describeAll(worker string, list []consumer.DeadLetter) []parkedMessage {
	type pile struct {
		topic     string
		partition int32
		key       string
	}
	first := map[pile]int64{}
	for _, l := range list {
		if l.First {
			first[pile{l.Topic, l.Partition, l.Key}] = l.ID
		}
	}
	all := make([]parkedMessage, 0, len(list))
	for _, l := range list {
		m := parkedMessage{
			Worker: worker, ID: l.ID, Key: l.Key, Reason: l.Reason, ParkedAt: l.ParkedAt.UTC(),
			Topic: l.Topic, Partition: l.Partition, Offset: l.Offset,
		}
		if id, ok := first[pile{l.Topic, l.Partition, l.Key}]; ok && !l.First {
			m.Behind = &id
		}
		if !l.Event.ID.IsZero() {
			m.EventID, m.Type = l.Event.ID.String(), l.Event.Type
			m.Aggregate, m.Version = l.Event.AggregateID.String(), l.Event.AggregateVersion
		}
		all = append(all, m)
	}
	return all
}

func (m *parkedMessage) addContent(l consumer.DeadLetter) {
	m.Headers = map[string]string{}
	for _, h := range l.Record.Headers {
		m.Headers[h.Key] = string(h.Value)
	}
	m.Data = string(l.Record.Value)
	if json.Valid(l.Record.Value) {
		m.Data = json.RawMessage(l.Record.Value)
	}
}

func writeJSON(w io.Writer, v any) error {
	if list, ok := v.([]parkedMessage); ok && list == nil {
		v = []parkedMessage{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// reasonWidth keeps a line of the table on a wide terminal's line.
const reasonWidth = 60

func writeTable(w io.Writer, all []parkedMessage) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "nothing is parked")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WORKER\tID\tBEHIND\tKEY\tEVENT\tPARKED\tREASON")
	for _, m := range all {
		behind := "-"
		if m.Behind != nil {
			behind = strconv.FormatInt(*m.Behind, 10)
		}
		event := m.Type
		if event == "" {
			event = "(not an event)"
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", m.Worker, m.ID, behind, printable(m.Key), printable(event),
			m.ParkedAt.Format(time.DateTime), cut(printable(m.Reason), reasonWidth))
	}
	return t.Flush()
}

func (m *parkedMessage) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, value string) { fmt.Fprintf(t, "%s:\t%s\n", name, value) }
	row("message", fmt.Sprintf("%d of %s", m.ID, m.Worker))
	row("reason", printable(m.Reason))
	row("parked", m.ParkedAt.Format(time.RFC3339))
	if m.Behind != nil {
		row("behind", fmt.Sprintf("%d, which has to be handled or dropped first", *m.Behind))
	}
	row("key", printable(m.Key))
	row("record", fmt.Sprintf("%s, partition %d, offset %d", m.Topic, m.Partition, m.Offset))
	names := make([]string, 0, len(m.Headers))
	for name := range m.Headers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		row(printable(name), printable(m.Headers[name]))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if text, ok := m.Data.(string); ok {
		_, err := fmt.Fprintf(w, "\n%q\n", text)
		return err
	}
	fmt.Fprintln(w)
	return writeJSON(w, m.Data)
}

// printable makes one line of a text that may come from anyone: nothing in it
// can act on a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

func cut(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return string(r[:width-3]) + "..."
}
