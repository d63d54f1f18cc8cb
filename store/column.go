package store

import (
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"outflow/domain"
)

// column makes the array of one column.
func column[T any](changes []change, of func(change) T) []T {
	values := make([]T, len(changes))
	for i, c := range changes {
		values[i] = of(c)
	}
	return values
}

func uuidOf(id domain.ID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func uuidsOf(ids []domain.ID) []pgtype.UUID {
	all := make([]pgtype.UUID, len(ids))
	for i, id := range ids {
		all[i] = uuidOf(id)
	}
	return all
}

func timeOf(t time.Time) pgtype.Timestamptz { return pgtype.Timestamptz{Time: t, Valid: true} }

// jsonOf encodes what can't fail to be encoded: strings and numbers in structs,
// slices and maps. Null becomes NULL.
func jsonOf(v any, null bool) []byte {
	if null {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic("store: encode a column: " + err.Error())
	}
	return b
}

// tombstoneInput is the rows to mark as deleted, as parameters after those of
// outbox.Append.
const tombstoneInput = `
WITH input AS (
    SELECT * FROM unnest($12::uuid[], $13::bigint[], $14::timestamptz[]) AS i (id, version, at)
)`

func tombstoneArgs(changes []change) []any {
	return []any{
		column(changes, func(c change) pgtype.UUID { return uuidOf(c.id) }),
		column(changes, func(c change) int64 { return c.version }),
		column(changes, func(c change) pgtype.Timestamptz { return timeOf(c.at) }),
	}
}
