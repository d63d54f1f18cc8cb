package app

import (
	"fmt"
	"reflect"
	"strings"
)

// Reference is docs/configuration.md: every variable, made from [Config].
func Reference() string {
	var b strings.Builder
	b.WriteString(`# Configuration

outflow is configured by environment variables. Each part reads those it needs and ignores the others, so one set can serve all. An empty variable counts as unset. A part that finds its configuration unusable names every problem at once and exits with status 2; ` + "`outflow COMMAND --help`" + ` says which variables a part can't do without.

Durations are written as 500ms, 30s or 5m.

| variable | default | meaning |
|---|---|---|
`)
	for f := range reflect.TypeFor[Config]().Fields() {
		if f.Tag.Get("env") == "-" {
			continue
		}
		def := f.Tag.Get("envDefault")
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Tag.Get("env"), def, f.Tag.Get("doc"))
	}
	b.WriteString(`
` + "`outflow-dev env`" + ` prints those that find a running development stack. Variables that begin with ` + "`OUTFLOW_TEST_`" + ` are for the tests: ` + "`OUTFLOW_TEST_POSTGRES`, `OUTFLOW_TEST_KAFKA` and `OUTFLOW_TEST_MONGO`" + ` name running servers to test against instead of embedded ones.

This page is made from the code; ` + "`go test ./cmd/internal/app -update`" + ` writes it.
`)
	return b.String()
}
