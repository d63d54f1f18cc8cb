package main

import (
	"fmt"
	"io"
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
	env := "outflow-dev env"
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
	if b.servicesOnly {
		fmt.Fprintf(w, "\nRun the parts by hand, each in a shell of its own:\n\n  eval \"$(%s)\"; outflow relay\n", env)
	} else {
		fmt.Fprintf(w, `
Try it (then look at the inbox):

  curl -s %s/api/customers -H 'Content-Type: application/json' \
    -d '{"name": "Ada Lovelace", "email": "ada@example.com"}'
`, api)
		fmt.Fprintf(w, "\nAddresses for your shell: eval \"$(%s)\"\n", env)
	}
	fmt.Fprint(w, "Ctrl-C stops everything.\n")
}
