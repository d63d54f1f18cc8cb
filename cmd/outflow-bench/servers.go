package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/internal/events"
	"outflow/internal/mongodb"
)

// partitions is how many a topic of events has by default.
const partitions = 6

var listensAt = regexp.MustCompile(`(?m)^at (\S+)$`)

// serve runs a server in a process of its own until the figure is measured.
func (s *stand) serve(ctx context.Context, kind string) (addr string, err error) {
	dir := filepath.Join(s.dir, fmt.Sprintf("%s%d", kind, s.count.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	s.later(func() error { return os.RemoveAll(dir) })
	p, err := s.start(kind, s.self, environ(), "serve", kind, dir)
	if err != nil {
		return "", err
	}
	return addr, p.await(ctx, func() bool {
		m := listensAt.FindStringSubmatch(p.output.String())
		if m != nil {
			addr = m[1]
		}
		return m != nil
	})
}

// An installation is all that belongs to one outflow: a database, a namespace
// on a broker and, where a figure needs it, a database for the replica.
type installation struct {
	*stand
	database string
	broker   string
	ns       events.Namespace
	mongoURI string // with the database; "" without a replica
	drop     func() error
}

// cluster is where installations are put.
type cluster struct {
	broker string
	mongo  string
}

// cluster starts a broker, and a MongoDB server if that is wanted, unless there
// are some.
func (s *stand) cluster(ctx context.Context, withMongo bool) (c cluster, err error) {
	if c.broker = s.kafka; c.broker == "" {
		if c.broker, err = s.serve(ctx, "kafka"); err != nil {
			return c, err
		}
	}
	if !withMongo {
		return c, nil
	}
	if c.mongo = s.mongo; c.mongo == "" {
		addr, err := s.serve(ctx, "mongodb")
		if err != nil {
			return c, err
		}
		c.mongo = "mongodb://" + addr
	}
	return c, nil
}

// durable refuses to measure a server that doesn't wait for the disk.
func (s *stand) durable(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.url("migrated"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, name := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		var value string
		if err := conn.QueryRow(ctx, `SELECT current_setting($1)`, name).Scan(&value); err != nil {
			return err
		}
		if value != "on" {
			return fmt.Errorf("%s is %s: no figure is taken like that", name, value)
		}
	}
	return nil
}

// install makes an installation with a copy of a database.
func (s *stand) install(ctx context.Context, c cluster, like string) (*installation, error) {
	database, dropDatabase, err := s.database(ctx, like)
	if err != nil {
		return nil, err
	}
	in := &installation{stand: s, database: database, broker: c.broker}
	// A broker that lives on has seen the names of other runs.
	in.ns = events.Namespace(fmt.Sprintf("%s-%d", database, time.Now().UnixNano()))
	dropTopics := s.once(func() error { return in.dropTopics(context.WithoutCancel(ctx)) })
	dropReplica := func() error { return nil }
	if c.mongo != "" {
		if in.mongoURI, dropReplica, err = s.replica(ctx, c.mongo); err != nil {
			return nil, err
		}
	}
	in.drop = func() error { return errors.Join(dropTopics(), dropReplica(), dropDatabase()) }
	return in, nil
}

// once makes f run now or when the figure is measured, and not twice.
func (s *stand) once(f func() error) func() error {
	done := false
	g := func() error {
		if done {
			return nil
		}
		done = true
		return f()
	}
	s.later(g)
	return g
}

// replica makes up a database for a replica.
func (s *stand) replica(ctx context.Context, server string) (uri string, drop func() error, err error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", nil, err
	}
	u.Path = fmt.Sprintf("/bench%d_%d", s.count.Add(1), time.Now().UnixNano())
	uri = u.String()
	return uri, s.once(func() error {
		return withMongo(context.WithoutCancel(ctx), uri, func(ctx context.Context, db *mongo.Database) error { return db.Drop(ctx) })
	}), nil
}

func withMongo(ctx context.Context, uri string, do func(ctx context.Context, db *mongo.Database) error) (err error) {
	target, err := mongodb.Parse(uri, "outflow-bench")
	if err != nil {
		return err
	}
	db, closing, err := target.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closing(ctx)) }()
	return do(ctx, db)
}

func (in *installation) dropTopics(ctx context.Context) error {
	return withKafka(in.broker, func(_ *kgo.Client, adm *kadm.Client) error {
		all, err := adm.ListTopicsWithInternal(ctx)
		if err != nil {
			return err
		}
		var names []string
		for _, t := range all.Names() {
			if strings.HasPrefix(t, string(in.ns)+".") {
				names = append(names, t)
			}
		}
		if len(names) == 0 {
			return nil
		}
		gone, err := adm.DeleteTopics(ctx, names...)
		return errors.Join(err, gone.Error())
	})
}

func withKafka(broker string, do func(*kgo.Client, *kadm.Client) error) error {
	k, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer k.Close()
	return do(k, kadm.NewClient(k))
}

// vars are what outflow's processes of this installation need.
func (in *installation) vars() []string {
	vars := []string{
		"OUTFLOW_POSTGRES_URL=" + in.url(in.database), "OUTFLOW_KAFKA_BROKERS=" + in.broker,
		"OUTFLOW_KAFKA_NAMESPACE=" + string(in.ns), "OUTFLOW_RELAY_SOURCE=wal", "OUTFLOW_LOG_LEVEL=warn",
	}
	if in.mongoURI != "" {
		vars = append(vars, "OUTFLOW_MONGO_URI="+in.mongoURI)
	}
	return vars
}

// worker starts a part that reads events, and returns when it does.
func (in *installation) worker(ctx context.Context, name string, more ...string) (*process, error) {
	return in.part(ctx, name, append(in.vars(), more...)...)
}
