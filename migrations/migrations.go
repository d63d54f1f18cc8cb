// Package migrations holds the database's schema as goose migrations, and
// applies them.
//
// Migrations are forward-only and immutable once merged, and each is safe
// while the previous binary still runs. Several processes may apply them at
// once: one does, the others wait for it (a PostgreSQL advisory lock).
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"

	_ "github.com/jackc/pgx/v5/stdlib" // registers the driver "pgx"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"outflow/internal/failpoint"
)

// FS holds the migrations: one SQL file each, in goose's format.
//
//go:embed *.sql
var FS embed.FS

// Result tells what Up did.
type Result struct {
	Applied []string // the files that were applied, in order
	Version int64    // the schema's version now
}

// Up brings the database at url to the newest schema.
func Up(ctx context.Context, url string) (_ Result, err error) {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return Result{}, fmt.Errorf("open the database: %w", err)
	}
	defer func() {
		if cerr := db.Close(); err == nil {
			err = cerr
		}
	}()
	// Whoever waits looks every second, for five minutes; the default is every
	// five seconds.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
	if err != nil {
		return Result{}, fmt.Errorf("make the migration lock: %w", err)
	}
	options := []goose.ProviderOption{goose.WithSessionLocker(locker)}
	if failpoint.Mutant("migrations.unlocked") {
		options = nil
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, FS, options...)
	if err != nil {
		return Result{}, fmt.Errorf("read the migrations: %w", err)
	}
	done, err := provider.Up(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("migrate: %w", err)
	}
	var r Result
	for _, m := range done {
		r.Applied = append(r.Applied, m.Source.Path)
	}
	if r.Version, err = provider.GetDBVersion(ctx); err != nil {
		return Result{}, fmt.Errorf("read the schema's version: %w", err)
	}
	return r, nil
}
