// Package app is what outflow and outflow-dev share: the configuration, the
// parts that it wires together, and how parts run and stop.
package app

import (
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"outflow/internal/events"
)

// Config is all that outflow reads from its environment. Every part reads the
// same struct; which variables a part can't do without is said in its [Part].
type Config struct {
	PostgresURL      string        `env:"OUTFLOW_POSTGRES_URL" doc:"PostgreSQL, as a libpq URI: postgres://user:password@host:5432/database"`
	PostgresMaxConns int           `env:"OUTFLOW_POSTGRES_MAX_CONNS" envDefault:"16" doc:"connections of one process to PostgreSQL at most"`
	KafkaBrokers     []string      `env:"OUTFLOW_KAFKA_BROKERS" doc:"Kafka's seed brokers: host:port, separated by commas"`
	KafkaNamespace   string        `env:"OUTFLOW_KAFKA_NAMESPACE" envDefault:"outflow" doc:"what the names of topics and consumer groups begin with"`
	KafkaPartitions  int           `env:"OUTFLOW_KAFKA_PARTITIONS" envDefault:"6" doc:"partitions of an event topic; a contract that can't change later"`
	MongoURI         string        `env:"OUTFLOW_MONGO_URI" doc:"MongoDB, with the database's name: mongodb://host:27017/outflow"`
	SMTPAddr         string        `env:"OUTFLOW_SMTP_ADDR" doc:"the mail server: host:port"`
	SMTPTLS          string        `env:"OUTFLOW_SMTP_TLS" envDefault:"opportunistic" doc:"STARTTLS: none, opportunistic or mandatory"`
	SMTPUsername     string        `env:"OUTFLOW_SMTP_USERNAME" doc:"user name for AUTH; none means no AUTH"`
	SMTPPassword     string        `env:"OUTFLOW_SMTP_PASSWORD" doc:"password for AUTH"`
	SMTPTimeout      time.Duration `env:"OUTFLOW_SMTP_TIMEOUT" envDefault:"30s" doc:"how long sending one mail may take; a notifier that died holds its mail up a little longer"`
	MailFrom         string        `env:"OUTFLOW_MAIL_FROM" envDefault:"outflow <orders@outflow.example>" doc:"the sender of every mail"`
	MailRate         string        `env:"OUTFLOW_MAIL_RATE" doc:"how many mails one address gets at most in a second, minute or hour, as 20/m; what is more waits; no limit when unset"`
	VelocityWindow   time.Duration `env:"OUTFLOW_VELOCITY_WINDOW" envDefault:"6h" doc:"the time until now over which a customer's confirmed orders are held against the spending limit"`
	Listen           string        `env:"OUTFLOW_LISTEN" envDefault:"127.0.0.1:8000" doc:"where the API listens, unless --listen says otherwise"`
	HealthListen     string        `env:"OUTFLOW_HEALTH_LISTEN" doc:"where a part answers /livez, /readyz and /metrics; nowhere when unset, though the API has the first two on its own address"`
	RequireIfMatch   bool          `env:"OUTFLOW_REQUIRE_IF_MATCH" envDefault:"false" doc:"refuse a PUT, PATCH or DELETE that doesn't say in If-Match which version it is for"`
	RelaySource      string        `env:"OUTFLOW_RELAY_SOURCE" envDefault:"auto" doc:"how the outbox is read: wal (logical decoding), poll (snapshot difference), or auto: wal where the server and the role allow it"`
	RelayGroup       string        `env:"OUTFLOW_RELAY_GROUP" envDefault:"main" doc:"relays of one group stand by for each other and share a replication slot"`
	LogLevel         string        `env:"OUTFLOW_LOG_LEVEL" envDefault:"info" doc:"debug, info, warn or error"`
	LogFormat        string        `env:"OUTFLOW_LOG_FORMAT" envDefault:"text" doc:"text or json"`

	RelayResync bool `env:"-"` // outflow relay --resync: nothing to be left on in an environment

	// Printed by outflow-dev env for people and scripts; no part reads them.
	APIURL   string `env:"OUTFLOW_API_URL" doc:"where clients find the API: scheme and host, no path"`
	InboxURL string `env:"OUTFLOW_INBOX_URL" doc:"where outflow-dev shows the mail it received"`
}

// ConfigError is one or more problems of the configuration, each told by the
// variable's name.
type ConfigError struct{ Problems []string }

func (e *ConfigError) Error() string {
	return "the configuration is not usable:\n  " + strings.Join(e.Problems, "\n  ")
}

// LoadConfig reads the configuration from environ (as os.Environ gives it) and
// checks it, and that the variables named in required are set. It returns a
// *ConfigError with every problem there is.
func LoadConfig(environ []string, required ...string) (Config, error) {
	vars := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if v != "" {
			vars[k] = v
		}
	}
	var c Config
	bad := map[string]string{}
	err := env.ParseWithOptions(&c, env.Options{Environment: vars})
	if agg, ok := errors.AsType[env.AggregateError](err); ok {
		for _, e := range agg.Errors {
			if p, ok := errors.AsType[env.ParseError](e); ok {
				f, _ := reflect.TypeFor[Config]().FieldByName(p.Name)
				bad[f.Tag.Get("env")] = "is not a " + f.Type.String() + noun(f.Type)
				continue
			}
			bad["?"] = e.Error()
		}
	} else if err != nil {
		bad["?"] = err.Error()
	}
	c.check(bad)
	for _, name := range required {
		if vars[name] == "" {
			bad[name] = "is required: " + Doc(name)
		}
	}
	if len(bad) == 0 {
		return c, nil
	}
	ce := &ConfigError{}
	for name, what := range bad {
		ce.Problems = append(ce.Problems, name+" "+what)
	}
	slices.Sort(ce.Problems)
	return c, ce
}

func noun(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[int]():
		return " (a whole number)"
	case reflect.TypeFor[bool]():
		return " (true or false)"
	case reflect.TypeFor[time.Duration]():
		return " (such as 30s or 5m)"
	}
	return ""
}

// Doc is the sentence that explains a variable.
func Doc(name string) string {
	for f := range reflect.TypeFor[Config]().Fields() {
		if f.Tag.Get("env") == name {
			return f.Tag.Get("doc")
		}
	}
	return ""
}

// Unknown lists the OUTFLOW_ variables of environ that mean nothing to
// outflow: most likely they are misspelt.
func Unknown(environ []string) []string {
	var names []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "OUTFLOW_") && !strings.HasPrefix(name, "OUTFLOW_TEST_") && Doc(name) == "" && !forDevelopment(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// check puts what is wrong with set values into bad. Values may hold
// passwords, so it never repeats one.
func (c *Config) check(bad map[string]string) {
	report := func(name, what string) {
		if bad[name] == "" {
			bad[name] = what
		}
	}
	if c.PostgresURL != "" && !hasScheme(c.PostgresURL, "postgres", "postgresql") {
		report("OUTFLOW_POSTGRES_URL", "is not a libpq URI such as postgres://user@host:5432/database")
	}
	if c.MongoURI != "" {
		u, err := url.Parse(c.MongoURI)
		// A URI with several hosts is no URL to net/url when a port is missing
		// in the last one only; the driver says more about such a URI later.
		switch {
		case !hasScheme(c.MongoURI, "mongodb", "mongodb+srv"):
			report("OUTFLOW_MONGO_URI", "is not a MongoDB URI such as mongodb://host:27017/outflow")
		case err == nil && strings.Trim(u.Path, "/") == "":
			report("OUTFLOW_MONGO_URI", "names no database: mongodb://host:27017/outflow")
		}
	}
	for _, b := range c.KafkaBrokers {
		if !hostPort(b) {
			report("OUTFLOW_KAFKA_BROKERS", "is not a list of host:port, separated by commas")
		}
	}
	if c.SMTPAddr != "" && !hostPort(c.SMTPAddr) {
		report("OUTFLOW_SMTP_ADDR", "is not host:port")
	}
	if !hostPort(c.Listen) {
		report("OUTFLOW_LISTEN", "is not host:port")
	}
	if c.HealthListen != "" && !hostPort(c.HealthListen) {
		report("OUTFLOW_HEALTH_LISTEN", "is not host:port")
	}
	if _, err := mail.ParseAddress(c.MailFrom); err != nil {
		report("OUTFLOW_MAIL_FROM", "is not a mail address such as Shop <orders@shop.example>")
	}
	if c.PostgresMaxConns < 2 {
		report("OUTFLOW_POSTGRES_MAX_CONNS", "must be at least 2")
	}
	if c.SMTPTimeout < time.Second {
		report("OUTFLOW_SMTP_TIMEOUT", "must be at least 1s")
	}
	if _, _, err := ParseLimit(c.MailRate); err != nil {
		report("OUTFLOW_MAIL_RATE", err.Error())
	}
	if c.VelocityWindow < time.Second {
		report("OUTFLOW_VELOCITY_WINDOW", "must be at least 1s")
	}
	if c.KafkaPartitions < 1 {
		report("OUTFLOW_KAFKA_PARTITIONS", "must be at least 1")
	}
	for name, v := range map[string]string{"OUTFLOW_KAFKA_NAMESPACE": c.KafkaNamespace, "OUTFLOW_RELAY_GROUP": c.RelayGroup} {
		if !plainName(v) {
			report(name, "must be 1 to 40 of a-z, 0-9 and -")
		}
	}
	oneOf := func(name, v string, allowed ...string) {
		if !slices.Contains(allowed, v) {
			report(name, "must be one of "+strings.Join(allowed, ", "))
		}
	}
	oneOf("OUTFLOW_SMTP_TLS", c.SMTPTLS, "none", "opportunistic", "mandatory")
	oneOf("OUTFLOW_RELAY_SOURCE", c.RelaySource, "auto", "wal", "poll")
	oneOf("OUTFLOW_LOG_LEVEL", c.LogLevel, "debug", "info", "warn", "error")
	oneOf("OUTFLOW_LOG_FORMAT", c.LogFormat, "text", "json")
}

// Namespace is the configured namespace of topics and groups.
func (c *Config) Namespace() events.Namespace { return events.Namespace(c.KafkaNamespace) }

func hasScheme(s string, schemes ...string) bool {
	return slices.ContainsFunc(schemes, func(p string) bool { return strings.HasPrefix(s, p+"://") })
}

func hostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = net.LookupPort("tcp", port)
	return err == nil
}

// plainName accepts what is valid in the name of a topic, a slot (after - is
// made _) and a consumer group alike.
func plainName(s string) bool {
	return len(s) >= 1 && len(s) <= 40 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Hostname names this process to others: in group members, locks and claims.
func Hostname() string {
	h, err := os.Hostname()
	if err != nil {
		h = "unknown"
	}
	return fmt.Sprintf("%s-%d", h, os.Getpid())
}
