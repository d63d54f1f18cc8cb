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
` + "`outflow-dev env`" + ` prints those that find a running development stack.

## For development and tests

What runs in production reads none of these.

| variable | read by | meaning |
|---|---|---|
`)
	for _, v := range development {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.name, v.readBy, v.doc)
	}
	b.WriteString(`
This page is made from the code; ` + "`go test ./cmd/internal/app -update`" + ` writes it.
`)
	return b.String()
}

func forDevelopment(name string) bool {
	for _, v := range development {
		if v.name == name {
			return true
		}
	}
	return false
}

// development are the variables that only outflow-dev and the tests read, where
// they read them. A test keeps the list whole.
var development = []struct{ name, readBy, doc string }{
	{"OUTFLOW_POSTGRES_MIRROR", "outflow-dev, tests", "the Maven repository to fetch PostgreSQL from where the machine has none, instead of Maven Central: an http, https or file URL " +
		"(file:///home/me/.m2/repository); off to fetch nothing. What is fetched must have the checksum that the code has"},
	{"OUTFLOW_TEST_POSTGRES", "tests", "a running PostgreSQL to test against instead of a private one: the libpq URI of a superuser"},
	{"OUTFLOW_TEST_KAFKA", "tests", "running Kafka brokers to test against instead of kfake: host:port, separated by commas"},
	{"OUTFLOW_TEST_MONGO", "tests", "a running MongoDB to test against instead of the stand-in: its URI"},
	{"OUTFLOW_TEST_FETCH", "tests", "1 has a test fetch the real PostgreSQL and run it"},
	{"OUTFLOW_TEST_LONG", "tests", "1 has the relay's tests under load take the volume that its guarantees were tried with"},
	{"OUTFLOW_TEST_KILLS", "tests", "how often tests kill the relay, or the parts of a whole system"},
	{"OUTFLOW_TEST_SEED", "tests", "where the parts of a whole system are killed: another number, other places"},
	{"OUTFLOW_TEST_LOG", "tests", "1 shows what the relay logs in its tests"},
	{"OUTFLOW_TEST_FAILPOINTS", "binaries and tests built with -tags failpoints", "what happens at which failpoint, as relay.produced=kill@3;relay.committed=error@1"},
	{"OUTFLOW_TEST_MUTANT", "tests built with -tags failpoints", "the defence that is left out, for tests to notice"},
}
