package replicator

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
)

// Of two first writes that race, the newer is often the one that is refused:
// it must win all the same.
func TestFirstWritesRace(t *testing.T) {
	s := newSystem(t)
	r := s.replicator()
	r.db = s.db
	_, err := prepare(t.Context(), s.db)
	require.NoError(t, err)
	const rounds, width = 50, 20
	for round := range rounds {
		var racing sync.WaitGroup
		for version := range int64(3) {
			racing.Go(func() {
				var writes []*write
				for n := range width {
					collection, doc, err := plan(customer(round*width+n, version+1))
					if err != nil || collection != "_customers" {
						t.Error(collection, err)
					}
					writes = append(writes, &write{id: id(round*width + n).String(), version: version + 1, document: doc})
				}
				for _, err := range r.store(t.Context(), "_customers", writes) {
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		racing.Wait()
	}
	for n := range rounds * width {
		require.Equal(t, int64(3), s.version("_customers", id(n)))
	}
}

func TestAnEventOfAnUnknownKindIsRefused(t *testing.T) {
	t.Parallel()
	newer := customer(1, 1)
	newer.Type = "customer.updated.v2"
	_, _, err := plan(newer)
	require.Error(t, err)
	other := customer(1, 1)
	other.AggregateType = "invoice"
	_, _, err = plan(other)
	require.Error(t, err)
	verb := customer(1, 1)
	verb.Type = "customer.merged.v1"
	_, _, err = plan(verb)
	require.NoError(t, err, "every event carries the whole state")
	require.NotEqual(t, domain.CustomerUpdated, verb.Type)
}
