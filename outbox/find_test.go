package outbox

import (
	"encoding/json"
	"testing"
	"time"

	guuid "github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/pgtest"
)

// idAt is a UUIDv7 of a time.
func idAt(at time.Time) domain.ID {
	id := domain.ID(guuid.Must(guuid.NewV7()))
	ms := at.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id
}

func TestFindByID(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t).Pool
	_, err := Find(t.Context(), pool, idAt(time.Now()))
	require.ErrorIs(t, err, ErrNoEvent)

	// Three days, an event a minute, with gaps between positions and clocks that
	// differ by seconds; and some that are far from where they belong.
	begin := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	var ids []domain.ID
	for i := range 3 * 24 * 60 {
		ids = append(ids, idAt(begin.Add(time.Duration(i)*time.Minute+time.Duration(i%7-3)*time.Second)))
	}
	stray := []domain.ID{idAt(begin.Add(-time.Hour)), idAt(begin.Add(2000*time.Minute + 40*time.Minute)), idAt(begin.Add(20 * time.Minute))}
	for i, id := range stray {
		ids = append(ids[:2000+i], append([]domain.ID{id}, ids[2000+i:]...)...)
	}
	var raw []pgtype.UUID
	for _, id := range ids {
		raw = append(raw, pgtype.UUID{Bytes: id, Valid: true})
	}
	_, err = pool.Exec(t.Context(), `INSERT INTO outbox (position, event_id, aggregate_type, aggregate_id, aggregate_version, type, key, after, metadata, occurred_at)
		OVERRIDING SYSTEM VALUE
		SELECT 100 + 37 * n, id, 'notification', id, 1, 'notification.requested.v1', 'k' || n, '{"n": 1}', '{}',
			to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
		FROM unnest($1::uuid[]) WITH ORDINALITY AS i (id, n)`, raw)
	require.NoError(t, err)
	for i := 0; i < len(ids); i += 97 {
		e, err := Find(t.Context(), pool, ids[i])
		require.NoError(t, err)
		require.Equal(t, ids[i], e.ID)
		require.Equal(t, ids[i], e.AggregateID)
	}
	for _, id := range append(stray, ids[0], ids[len(ids)-1]) {
		e, err := Find(t.Context(), pool, id)
		require.NoError(t, err)
		require.Equal(t, domain.NotificationRequested, e.Type)
		require.Equal(t, json.RawMessage(`{"n": 1}`), e.After)
		require.Nil(t, e.Before)
	}
	for _, id := range []domain.ID{idAt(begin.Add(100 * time.Minute)), idAt(begin.Add(-time.Hour * 1000)), idAt(time.Now().Add(1000 * time.Hour)), {1}, domain.ID(guuid.New())} {
		_, err := Find(t.Context(), pool, id)
		require.ErrorIs(t, err, ErrNoEvent)
	}
}
