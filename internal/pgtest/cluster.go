package pgtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"outflow/migrations"
)

// A cluster is a server with a template database on it.
type cluster struct {
	admin    string // URL of a database to give commands from
	template string
	copy     string // the clause of CREATE DATABASE that copies files

	// token is in the names of this process's databases, counter numbers them.
	token   string
	counter atomic.Int64
	// held is a session that locks the token for as long as this process lives.
	held *pgx.Conn
}

// newCluster makes the template on the server that admin names, unless it is
// there already: the template is named for the migrations it was made by.
func newCluster(admin string) (*cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	sum, err := sumFS(migrations.FS)
	if err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	c := &cluster{admin: admin, template: "outflow_template_" + sum, token: strings.ToLower(rand.Text()[:tokenLen])}
	if err := c.do(ctx, c.prepare); err != nil {
		return nil, fmt.Errorf("prepare the template database: %w", err)
	}
	return c, nil
}

// joinCluster is newCluster on a server that outlives this process, and that
// other test processes use at the same time.
func joinCluster(admin string) (*cluster, error) {
	c, err := newCluster(admin)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if c.held, err = pgx.Connect(ctx, admin); err != nil {
		return nil, err
	}
	if _, err := c.held.Exec(ctx, `SELECT pg_advisory_lock(hashtextextended($1, 0))`, databasePrefix+c.token); err != nil {
		return nil, err
	}
	if err := c.do(ctx, c.sweep); err != nil {
		return nil, fmt.Errorf("drop the databases of killed tests: %w", err)
	}
	return c, nil
}

// sweep drops the databases of processes that were killed before they could do
// it: nobody holds the lock on their token any more. A replication slot left in
// one would keep the server from ever removing WAL.
func (c *cluster) sweep(ctx context.Context, conn *pgx.Conn) error {
	const list = `SELECT datname FROM pg_database WHERE datname ~ $1 ORDER BY datname`
	rows, err := conn.Query(ctx, list, "^"+databasePrefix+"[a-z0-9]{"+strconv.Itoa(tokenLen)+"}_")
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		var free bool
		const try = `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`
		if err := conn.QueryRow(ctx, try, name[:len(databasePrefix)+tokenLen]).Scan(&free); err != nil {
			return err
		}
		if !free {
			continue
		}
		if err := c.drop(ctx, conn, name); err != nil {
			return err
		}
	}
	return nil // the locks go with the connection
}

func sumFS(fsys fs.FS) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(fsys, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(fsys, path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(text), text)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:8]), err
}

// do runs f with a connection to the admin database. There is no pool, whose
// goroutines would look like the tests' leaks.
func (c *cluster) do(ctx context.Context, f func(context.Context, *pgx.Conn) error) (err error) {
	conn, err := pgx.Connect(ctx, c.admin)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := conn.Close(ctx); err == nil {
			err = cerr
		}
	}()
	return f(ctx, conn)
}

// prepare makes the template. On a server that many test processes use, one
// makes it and the others wait: the advisory lock goes with the connection. It
// gets its name when it is complete.
func (c *cluster) prepare(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtext('outflow pgtest template'))`); err != nil {
		return err
	}
	var version int
	var found bool
	const look = `SELECT current_setting('server_version_num')::int, EXISTS (SELECT FROM pg_database WHERE datname = $1)`
	if err := conn.QueryRow(ctx, look, c.template).Scan(&version, &found); err != nil {
		return err
	}
	if version >= 150000 {
		c.copy = " STRATEGY file_copy" // 14 has only that, and no word for it
	}
	if found {
		return nil
	}
	building := c.template + "_new"
	url, err := c.url(building)
	if err != nil {
		return err
	}
	for _, sql := range []string{
		`DROP DATABASE IF EXISTS ` + building + ` WITH (FORCE)`, // of one who was killed here
		`CREATE DATABASE ` + building + ` TEMPLATE template0`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if _, err := migrations.Up(ctx, url); err != nil {
		return err
	}
	for _, sql := range []string{
		// A database somebody is connected to can't be cloned.
		`ALTER DATABASE ` + building + ` ALLOW_CONNECTIONS false`,
		`ALTER DATABASE ` + building + ` RENAME TO ` + c.template,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// url is the admin URL with another database.
func (c *cluster) url(name string) (string, error) {
	u, err := url.Parse(c.admin)
	if err != nil || u.Scheme == "" {
		return "", fmt.Errorf("%s is not a URI (postgres://user@host:port/database)", Env)
	}
	u.Path = "/" + name
	return u.String(), nil
}

func (c *cluster) newDB(t testing.TB, drop bool) *DB {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()

	name := c.databaseName(t.Name())
	url, err := c.url(name)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	err = c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error { return c.clone(ctx, conn, name) })
	if err != nil {
		t.Fatalf("pgtest: make database %s: %v", name, err)
	}
	db := &DB{Name: name, URL: url}
	if drop {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
			defer cancel()
			err := c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error { return c.drop(ctx, conn, name) })
			if err != nil {
				t.Errorf("pgtest: drop database %s: %v", name, err)
			}
		})
	}

	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	cfg.MaxConns = poolSize()
	if db.Pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() { closePool(t, db.Pool) })
	return db
}

// closePool closes the pool, which waits for connections that are in use, and
// says so when a test has forgotten one.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
		t.Errorf("pgtest: %d connections of the pool were not released (rows not closed, a transaction not ended)",
			pool.Stat().AcquiredConns())
	}
}

const (
	databasePrefix = "outflow_test_"
	tokenLen       = 10
)

// databaseName is a name that tells the test, and that nobody else has. It fits
// PostgreSQL's 63 bytes and needs no quotes.
func (c *cluster) databaseName(test string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return '_'
		}
	}, test)
	return fmt.Sprintf("%s%s_%d_%s", databasePrefix, c.token, c.counter.Add(1), clean[:min(len(clean), 30)])
}

// clone copies the template. Copying its files takes a tenth of the time that
// copying through the WAL does.
func (c *cluster) clone(ctx context.Context, conn *pgx.Conn, name string) error {
	_, err := conn.Exec(ctx, `CREATE DATABASE `+name+` TEMPLATE `+c.template+c.copy)
	return err
}

// drop removes the database. FORCE disconnects sessions, but not a walsender
// that holds a slot of the database; slots that nobody holds go with it.
func (c *cluster) drop(ctx context.Context, conn *pgx.Conn, name string) error {
	const (
		disconnect  = `SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE database = $1 AND active`
		objectInUse = "55006"
	)
	for {
		if _, err := conn.Exec(ctx, disconnect, name); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`)
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != objectInUse {
			return err
		}
		// A walsender takes a moment to end, and its client may come back.
		timer := time.NewTimer(10 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, context.Cause(ctx))
		}
	}
}
