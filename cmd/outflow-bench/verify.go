package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	mongooptions "go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sync/errgroup"

	"outflow/domain"
	"outflow/store"
)

func verifies(ctx context.Context, s *stand) ([]side, error) {
	n := s.n(documents)
	_, in, err := s.withReplica(ctx, n)
	if err != nil {
		return nil, err
	}
	query, err := in.statesQuery(ctx)
	return []side{
		{"outflow", func(ctx context.Context) (sample, error) {
			printed, peak, err := in.finished(ctx, "verify", "customers", "--json")
			if err != nil {
				return sample{}, err
			}
			var report struct {
				Rows map[string]int
				Took time.Duration `json:"took_ns"`
			}
			if err := lastLine(printed, "took_ns", &report); err != nil {
				return sample{}, err
			}
			if found := report.Rows[domain.AggregateCustomer]; found != n {
				return sample{}, fmt.Errorf("%d customers of %d were compared", found, n)
			}
			return sample{PerSecond: float64(n) / report.Took.Seconds(), Memory: map[string]int64{"verify": peak}}, nil
		}},
		{"reading", func(ctx context.Context) (sample, error) { return in.readBoth(ctx, query, n) }},
	}, err
}

const verifyPage = 2000 // rows that verify reads at a time

// statesQuery is the statement by which the store reads the states of
// customers, as it is sent.
func (in *installation) statesQuery(ctx context.Context) (string, error) {
	pool, err := openTraced(ctx, in.url(in.database))
	if err != nil {
		return "", err
	}
	defer pool.Close()
	var r recording
	if _, err := store.New(pool, store.Config{}).States(context.WithValue(ctx, recordingKey{}, &r), domain.AggregateCustomer, domain.ID{}, verifyPage); err != nil {
		return "", err
	}
	return r.trips[0][0].sql, nil
}

// readBoth reads both sides as verify does.
func (in *installation) readBoth(ctx context.Context, query string, n int) (sample, error) {
	var rows, docs int
	begun := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		rows, err = in.readRows(ctx, query)
		return err
	})
	g.Go(func() (err error) {
		docs, err = in.readDocuments(ctx)
		return err
	})
	err := g.Wait()
	out := rate(n, begun)
	if err == nil && (rows != n || docs != n) {
		err = fmt.Errorf("%d rows and %d documents of %d were read", rows, docs, n)
	}
	return out, err
}

// readRows is what the driver does for a page and nothing more: values stay as
// the server sent them.
func (in *installation) readRows(ctx context.Context, query string) (n int, err error) {
	conn, err := pgx.Connect(ctx, in.url(in.database))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	last := pgtype.UUID{Valid: true}
	for {
		rows, err := conn.Query(ctx, query, last, verifyPage)
		if err != nil {
			return n, err
		}
		before := n
		for rows.Next() {
			copy(last.Bytes[:], rows.RawValues()[0])
			n++
		}
		if err := rows.Err(); err != nil || n == before {
			return n, err
		}
	}
}

// readDocuments reads all through one cursor, as verify does.
func (in *installation) readDocuments(ctx context.Context) (n int, err error) {
	err = withMongo(ctx, in.mongoURI, func(ctx context.Context, db *mongo.Database) error {
		cursor, err := db.Collection(customersBase).Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$gte", Value: ""}}}},
			mongooptions.Find().SetSort(bson.D{{Key: "_id", Value: 1}}).SetBatchSize(verifyPage))
		if err != nil {
			return err
		}
		defer func() { _ = cursor.Close(context.WithoutCancel(ctx)) }()
		for cursor.Next(ctx) {
			n++
		}
		return cursor.Err()
	})
	return n, err
}
