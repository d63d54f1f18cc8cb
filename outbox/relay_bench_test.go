package outbox

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkBacklog publishes a backlog of one-event transactions, which the
// stream decodes or the windows copy:
//
//	go test ./outbox -run '^$' -bench Backlog -benchtime 100000x
func BenchmarkBacklog(b *testing.B) {
	for name, bytes := range map[string]uint64{"stream": math.MaxUint64, "windows": 1} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			wr := w.writer(b, 1000)
			only := func(c *Config) { c.catchUpBytes = bytes }
			r := w.run(b, only)
			r.awaitState(b, StateStreaming)
			require.NoError(b, r.stop())
			_, err := w.db.Pool.Exec(b.Context(), `CREATE PROCEDURE fill(n int, ids text[]) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..n LOOP
        INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
        VALUES (gen_random_uuid(), 'order', ids[1 + i % array_length(ids, 1)]::uuid, i, 'order.updated.v1', ids[1 + i % array_length(ids, 1)],
                json_build_object('n', i, 'text', repeat('x', 180)), json_build_object('n', i, 'text', repeat('y', 180)), '{"actor":"bench"}', clock_timestamp());
        COMMIT;
    END LOOP;
END $$`)
			require.NoError(b, err)
			_, err = w.db.Pool.Exec(b.Context(), `CALL fill($1, $2)`, b.N, wr.aggregates)
			require.NoError(b, err)
			b.ResetTimer()
			began := time.Now()
			r = w.run(b, only)
			r.await(b, "published", func(s Stats) bool { return s.Published >= int64(b.N) })
			b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "events/s")
			b.ReportMetric(float64(r.Stats().Transactions), "transactions")
		})
	}
}
