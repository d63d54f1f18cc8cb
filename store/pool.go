package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Open returns a pool for a [Store], of at most maxConns connections (pgx's
// default when 0). It doesn't connect yet: a database that is away shows when
// something is asked of it. What the URL says wins over what is set here.
func Open(ctx context.Context, url string, maxConns int) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read the database's URL: %w", err) // pgx leaves the password out
	}
	if maxConns > 0 {
		cfg.MaxConns = int32(maxConns)
	}
	for name, value := range map[string]string{
		"application_name": "outflow",
		// The decisions of this package rely on a snapshot per statement.
		"default_transaction_isolation": "read committed",
		// Nobody waits longer for an answer, and nobody should keep a lock
		// because its process was stopped in the middle of a transaction.
		"statement_timeout":                   "10s",
		"idle_in_transaction_session_timeout": "30s",
		// Every statement here finds its rows by an index. A plan is kept while
		// the tables grow, so one that was made when they were empty, and read
		// them whole, would hold the service up until the next ANALYZE.
		"enable_seqscan":   "off",
		"enable_hashjoin":  "off",
		"enable_mergejoin": "off",
		"jit":              "off",
	} {
		if _, set := cfg.ConnConfig.RuntimeParams[name]; !set {
			cfg.ConnConfig.RuntimeParams[name] = value
		}
	}
	if cfg.ConnConfig.ConnectTimeout == 0 || cfg.ConnConfig.ConnectTimeout > connectTimeout {
		cfg.ConnConfig.ConnectTimeout = connectTimeout
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return pool, nil
}

const connectTimeout = 5 * time.Second
