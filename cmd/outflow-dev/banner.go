package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// banner is what a user sees when the stack is up: where everything is, what
// is kept, and something to try.
type banner struct {
	vars         []variable
	servers      *servers
	data         string
	home         string // --data-dir as given
	ephemeral    bool
	servicesOnly bool
	took         time.Duration
	demo         string // what --seed-demo did; empty when it wasn't given
}

func (b banner) get(name string) string {
	for _, v := range b.vars {
		if v.Name == name {
			return v.Value
		}
	}
	return ""
}

func (b banner) print(w io.Writer) {
	env := self() + " env"
	if b.home != "" {
		env += " --data-dir " + b.home
	}
	api := b.get("OUTFLOW_API_URL")
	line := func(name, value string) { fmt.Fprintf(w, "  %-12s %s\n", name, value) }
	fmt.Fprintf(w, "\noutflow is ready (%.1f s)\n\n", b.took.Seconds())
	if b.servicesOnly {
		line("API", api+" (once you run: outflow api)")
	} else {
		line("API", api+"/api/customers")
		line("API docs", api+"/docs")
	}
	line("Inbox", b.get("OUTFLOW_INBOX_URL"))
	line("PostgreSQL", b.get("OUTFLOW_POSTGRES_URL"))
	line("Kafka", b.get("OUTFLOW_KAFKA_BROKERS"))
	line("MongoDB", b.get("OUTFLOW_MONGO_URI")+"  ("+b.servers.mongoIs+")")
	line("SMTP", b.get("OUTFLOW_SMTP_ADDR"))
	if b.ephemeral {
		line("Data", b.data+" (removed at the end)")
	} else {
		line("Data", b.data+" (kept for the next start)")
	}
	if b.demo != "" {
		line("Demo", b.demo)
	}
	eval := fmt.Sprintf(`eval "$(%s)"`, env)
	if b.servicesOnly {
		fmt.Fprintf(w, "\nRun the parts by hand, each in a shell of its own:\n\n  %s; outflow relay\n", eval)
	} else {
		// Every line works when it is pasted, in whatever order.
		try := fmt.Sprintf(`%s/api/customers -H 'Content-Type: application/json' \
    -d '{"name": "Ada Lovelace", "email": "ada@example.com"}'`, api)
		if b.demo != "" {
			try = api + "/api/orders?status=confirmed"
		}
		fmt.Fprintf(w, `
What to try, in another shell:

  curl -s %s
  psql '%s' -c 'SELECT position, type, aggregate_version FROM outbox ORDER BY 1'

Then look at the inbox, and send the examples of the API docs.
All addresses as variables: %s
`, try, b.get("OUTFLOW_POSTGRES_URL"), eval)
	}
	fmt.Fprint(w, "Ctrl-C stops everything.\n")
}

// self is how the user calls this program: outflow-dev when that is on the
// PATH, go run when it was built for this run alone.
func self() string {
	own, err := os.Executable()
	if err != nil {
		return "outflow-dev"
	}
	if strings.Contains(own, string(filepath.Separator)+"go-build") {
		return "go run ./cmd/outflow-dev"
	}
	if found, err := exec.LookPath(filepath.Base(own)); err == nil && found == own {
		return filepath.Base(own)
	}
	return own
}
