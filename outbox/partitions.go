package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

const (
	// partitionSize is how many positions a partition holds.
	partitionSize = 1 << 24
	// partitionsAhead is how many empty partitions are kept ready.
	partitionsAhead = 2
)

const partitionState = `
SELECT coalesce(s.last_value, 0), current_schema(),
       array(SELECT pg_get_expr(c.relpartbound, c.oid)
             FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent = 'outbox'::regclass)
FROM pg_sequences s
WHERE (quote_ident(s.schemaname) || '.' || quote_ident(s.sequencename))::regclass = pg_get_serial_sequence('outbox', 'position')::regclass`

// EnsurePartitions makes the partitions that the outbox will need next, so
// that an insert never finds none. It may run at any time and in several
// processes at once, and blocks neither writers nor readers.
//
// It returns an error if conn's role doesn't own the outbox.
func EnsurePartitions(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// One at a time; and rather give up than queue behind somebody's long
		// lock, with every insert queueing behind us.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('outflow outbox partitions')), set_config('lock_timeout', '2s', true)`); err != nil {
			return fmt.Errorf("make outbox partitions: %w", err)
		}
		var last int64
		var schema string
		var bounds []string
		if err := tx.QueryRow(ctx, partitionState).Scan(&last, &schema, &bounds); err != nil {
			return fmt.Errorf("make outbox partitions: read what there is: %w", err)
		}
		var end int64 // where the last partition ends
		for _, b := range bounds {
			to, err := upperBound(b)
			if err != nil {
				return fmt.Errorf("make outbox partitions: %w", err)
			}
			end = max(end, to)
		}
		if end%partitionSize != 0 {
			return fmt.Errorf("make outbox partitions: the last one ends at %d, not at a multiple of %d", end, partitionSize)
		}
		for k := end / partitionSize; k <= last/partitionSize+partitionsAhead; k++ {
			// CREATE TABLE ... PARTITION OF would lock out writers; attaching
			// a table doesn't.
			name := pgx.Identifier{schema, "outbox_p" + strconv.FormatInt(k, 10)}.Sanitize()
			sql := fmt.Sprintf(`CREATE TABLE %s (LIKE outbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE);
ALTER TABLE outbox ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%d)`, name, name, k*partitionSize, (k+1)*partitionSize)
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("make outbox partition %d: %w", k, err)
			}
		}
		return nil
	})
}

// upperBound reads the end of "FOR VALUES FROM (a) TO (b)".
func upperBound(bound string) (int64, error) {
	_, to, ok := strings.Cut(bound, " TO (")
	if !ok {
		return 0, fmt.Errorf("a partition has bounds that outflow didn't make: %s", bound)
	}
	n, err := strconv.ParseInt(strings.Trim(to, "')"), 10, 64)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("a partition has bounds that outflow didn't make: %s", bound), err)
	}
	return n, nil
}
