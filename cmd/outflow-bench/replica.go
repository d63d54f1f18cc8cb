package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	mongooptions "go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sync/errgroup"

	"outflow/domain"
	"outflow/replicator"
	"outflow/store"
)

var replicaFigures = []figure{
	{
		name: "replicate", what: "the replicator applies the events that Kafka has to an empty replica",
		limit:   "the driver's guarded replacements of the same documents, 1,000 in a bulk write, one after the other",
		goals:   []goal{ofLimit(1, "bulk writes", 0.8), memoryUnder(150)},
		prepare: replicate,
	},
	{
		name: "rebuild", what: "outflow rebuild customers, beside a replicator: filling, catching up and swapping",
		limit:   "the driver's guarded replacements of the same documents, 1,000 in a bulk write, four at a time",
		goals:   []goal{ofLimit(1, "bulk writes", 0.8), memoryUnder(150)},
		prepare: rebuilds,
	},
	{
		name: "verify", what: "outflow verify customers",
		limit:   "reading both sides by the same queries, at the same time, without a look at them",
		goals:   []goal{ofLimit(1, "reading", 0.8), memoryUnder(150)},
		prepare: verifies,
	},
}

const (
	documents = 200_000 // customers in the replica
	bulkSize  = 1000    // writes in a bulk, as the replicator has them
)

// published makes an installation whose customers are all on Kafka.
func (s *stand) published(ctx context.Context, c cluster, n int) (*installation, error) {
	in, err := s.install(ctx, c, "migrated")
	if err != nil {
		return nil, err
	}
	if err := s.customers(ctx, in.database, n); err != nil {
		return nil, err
	}
	events, err := s.queryInt(ctx, in.database, `SELECT count(*) FROM outbox`)
	if err != nil {
		return nil, err
	}
	r, err := in.relay()
	if err != nil {
		return nil, err
	}
	if _, err := r.published(ctx, events); err != nil {
		return nil, err
	}
	return in, r.stop()
}

// customers makes n customers as an import does.
func (s *stand) customers(ctx context.Context, database string, n int) error {
	pool, err := store.Open(ctx, s.url(database), 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	st := store.New(pool, store.Config{})
	const batch = 1000
	for from := 0; from < n; from += batch {
		ins := make([]domain.CustomerInput, min(batch, n-from))
		for i := range ins {
			ins[i] = customer(from + i)
		}
		if _, err := st.CreateCustomers(ctx, ins, benchmark); err != nil {
			return err
		}
	}
	return nil
}

// on is an installation with a replica of its own.
func (in *installation) on(ctx context.Context, server string) (*installation, func() error, error) {
	other := *in
	var drop func() error
	var err error
	other.mongoURI, drop, err = in.replica(ctx, server)
	return &other, drop, err
}

func (in *installation) count(ctx context.Context, db *mongo.Database) (int, error) {
	n, err := db.Collection(customersBase).CountDocuments(ctx, bson.D{})
	return int(n), err
}

// replicated returns once the replica has n customers, and how many a second
// came to it from the first look that found some of them. How many there are is
// what its positions say: a server takes long to count.
func (in *installation) replicated(ctx context.Context, p *process, n int) (out sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	var ends replicator.Ends
	err = withKafka(in.broker, func(_ *kgo.Client, adm *kadm.Client) error {
		ends, err = replicator.EndsOf(ctx, adm, in.ns.Topic(domain.AggregateCustomer))
		return err
	})
	if err != nil {
		return out, err
	}
	var records int64
	for _, end := range ends {
		records += end.Next
	}
	err = withMongo(ctx, in.mongoURI, func(ctx context.Context, db *mongo.Database) error {
		var begun time.Time
		var first int64
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			behind, err := replicator.Behind(ctx, db, ends)
			switch {
			case err != nil:
				return err
			case behind == 0 && first == 0:
				return errors.New("all was replicated before the first look: too little")
			case behind == 0:
				out = rate(int(float64(n)*float64(first)/float64(records)), begun)
				found, err := in.count(ctx, db)
				if err == nil && found != n {
					err = fmt.Errorf("the replica has %d customers, and there are %d", found, n)
				}
				return err
			case behind < records && first == 0:
				first, begun = behind, time.Now()
			}
			select {
			case <-p.exited:
				return fmt.Errorf("%s ended: %s", p.name, &p.output)
			case <-ctx.Done():
				return fmt.Errorf("%d records of %d were not replicated: %w", behind, records, ctx.Err())
			case <-tick.C:
			}
		}
	})
	return out, err
}

func replicate(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(documents)
	c, err := s.cluster(ctx, true)
	if err != nil {
		return nil, err
	}
	in, err := s.published(ctx, c, n)
	if err != nil {
		return nil, err
	}
	docs, err := in.documents(ctx, n)
	return []side{
		{"outflow", func(ctx context.Context) (sample, error) {
			in, drop, err := in.on(ctx, c.mongo)
			if err != nil {
				return sample{}, err
			}
			p, err := in.start("replicate", in.outflow, environ(in.vars()...), "replicate")
			if err != nil {
				return sample{}, err
			}
			out, err := in.replicated(ctx, p, n)
			if err != nil {
				return sample{}, err
			}
			out.Memory, err = memory(p)
			return out, errors.Join(err, drop())
		}},
		{"bulk writes", func(ctx context.Context) (sample, error) { return in.bulkWrites(ctx, c.mongo, docs, 1) }},
	}, err
}

// documents are the customers as the replica has them, in the order of their
// events.
func (in *installation) documents(ctx context.Context, n int) (docs []bson.Raw, err error) {
	pool, err := store.Open(ctx, in.url(in.database), 1)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	st := store.New(pool, store.Config{})
	last := domain.ID{}
	for {
		page, err := st.States(ctx, domain.AggregateCustomer, last, 5000)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			doc, err := replicator.Document(e)
			if err != nil {
				return nil, err
			}
			docs = append(docs, doc)
		}
		last = page[len(page)-1].AggregateID
	}
	if len(docs) != n {
		return nil, fmt.Errorf("the database has %d customers of %d", len(docs), n)
	}
	return docs, nil
}

// bulkWrites writes documents as the replica's are written, from memory.
func (in *installation) bulkWrites(ctx context.Context, server string, docs []bson.Raw, atOnce int) (out sample, err error) {
	in, drop, err := in.on(ctx, server)
	if err != nil {
		return out, err
	}
	err = withMongo(ctx, in.mongoURI, func(ctx context.Context, db *mongo.Database) error {
		base := db.Collection(customersBase)
		// The indexes that the replica has.
		_, err := base.Indexes().CreateMany(ctx, []mongo.IndexModel{{Keys: bson.D{{Key: "email", Value: 1}}}, {Keys: bson.D{{Key: "status", Value: 1}}}})
		if err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(atOnce)
		begun := time.Now()
		for from := 0; from < len(docs); from += bulkSize {
			part := docs[from:min(from+bulkSize, len(docs))]
			g.Go(func() error {
				models := make([]mongo.WriteModel, len(part))
				for i, d := range part {
					models[i] = guarded(d.Lookup("_id").StringValue(), d.Lookup("version").AsInt64(), d)
				}
				_, err := base.BulkWrite(ctx, models, mongooptions.BulkWrite().SetOrdered(false))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		out = rate(len(docs), begun)
		found, err := in.count(context.WithoutCancel(ctx), db)
		if err == nil && found != len(docs) {
			err = fmt.Errorf("%d documents of %d were written", found, len(docs))
		}
		return err
	})
	return out, errors.Join(err, drop())
}

// finished runs a command of outflow to its end, and returns what it printed.
func (in *installation) finished(ctx context.Context, args ...string) (printed string, peak int64, err error) {
	p, err := in.start(args[0], in.outflow, environ(in.vars()...), args...)
	if err != nil {
		return "", 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		peak = max(peak, peakMemory(p.cmd.Process.Pid))
		select {
		case <-p.exited:
			return p.output.String(), peak, p.stop()
		case <-ctx.Done():
			return "", 0, fmt.Errorf("%s takes too long: %s", args[0], &p.output)
		case <-tick.C:
		}
	}
}

// lastLine decodes the last line of what was printed that has a member.
func lastLine(printed, member string, into any) error {
	lines := strings.Split(printed, "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.Contains(lines[i], `"`+member+`":`) {
			return json.Unmarshal([]byte(lines[i]), into)
		}
	}
	return fmt.Errorf("no line tells of %s: %s", member, printed)
}

// withReplica makes an installation with n customers and a replica of them.
func (s *stand) withReplica(ctx context.Context, n int) (c cluster, in *installation, err error) {
	if c, err = s.cluster(ctx, true); err != nil {
		return c, nil, err
	}
	if in, err = s.published(ctx, c, n); err != nil {
		return c, nil, err
	}
	p, err := in.start("replicate", in.outflow, environ(in.vars()...), "replicate")
	if err != nil {
		return c, nil, err
	}
	if _, err := in.replicated(ctx, p, n); err != nil {
		return c, nil, err
	}
	// Its position is there once it has stopped.
	return c, in, p.stop()
}

func rebuilds(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(500_000) // a pause at the end takes a second, however many they are
	c, in, err := s.withReplica(ctx, n)
	if err != nil {
		return nil, err
	}
	docs, err := in.documents(ctx, n)
	return []side{
		{"outflow", func(ctx context.Context) (sample, error) {
			p, err := in.worker(ctx, "replicate")
			if err != nil {
				return sample{}, err
			}
			printed, peak, err := in.finished(ctx, "rebuild", "customers", "--json")
			if err != nil {
				return sample{}, err
			}
			var done struct {
				Events  int
				Seconds float64
			}
			if err := lastLine(printed, "rebuilt", &done); err != nil {
				return sample{}, err
			}
			found := 0
			err = withMongo(ctx, in.mongoURI, func(ctx context.Context, db *mongo.Database) error {
				found, err = in.count(ctx, db)
				return err
			})
			if err == nil && (done.Events != n || found != n) {
				err = fmt.Errorf("%d events of %d were applied, and there are %d documents", done.Events, n, found)
			}
			if err != nil {
				return sample{}, err
			}
			out := sample{PerSecond: float64(n) / done.Seconds}
			out.Memory, err = memory(p)
			out.Memory["rebuild"] = peak
			return out, err
		}},
		{"bulk writes", func(ctx context.Context) (sample, error) { return in.bulkWrites(ctx, c.mongo, docs, 4) }},
	}, err
}
