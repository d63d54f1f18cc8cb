package store_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/store"
)

// What a row says is what the event said that made it so, and in the same order,
// in which equal things are compared fastest.
func TestStatesAreWhatTheLastEventsSay(t *testing.T) {
	t.Parallel()
	s, pool := open(t)
	plain := create(t, s, ada())
	bare := create(t, s, domain.CustomerInput{Name: "a back\\slash, \"quoted\" <&> ü", Email: "bare@example.com", Status: domain.CustomerSuspended, Metadata: map[string]string{}})
	empty := create(t, s, domain.CustomerInput{Name: "é", Email: "empty@example.com", Status: domain.CustomerActive, Address: &domain.Address{}})
	gone := create(t, s, named("gone"))
	require.NoError(t, s.DeleteCustomer(t.Context(), gone.ID, store.Precondition{}, domain.Metadata{}))
	placed, decided := place(t, s, plain.ID), place(t, s, bare.ID)
	decide(t, s, decided.ID)

	last := map[domain.ID]event{}
	for _, e := range log(t, pool) {
		last[e.AggregateID] = e
	}
	found := map[domain.ID]bool{}
	for _, typ := range []string{domain.AggregateCustomer, domain.AggregateOrder} {
		states, err := s.States(t.Context(), typ, domain.ID{}, 100)
		require.NoError(t, err)
		for _, state := range states {
			e := last[state.AggregateID]
			found[state.AggregateID] = true
			require.Equal(t, e.AggregateVersion, state.AggregateVersion)
			require.Equal(t, typ, state.AggregateType)
			if e.After == nil {
				require.Nil(t, state.After)
				require.Equal(t, e.OccurredAt.UTC(), state.OccurredAt)
				continue
			}
			require.Equal(t, tokens(t, e.After), tokens(t, state.After))
		}
	}
	for _, id := range []domain.ID{plain.ID, bare.ID, empty.ID, gone.ID, placed.ID, decided.ID} {
		require.True(t, found[id])
	}
}

func tokens(t *testing.T, raw []byte) (all []json.Token) {
	t.Helper()
	require.True(t, json.Valid(raw), "%s", raw)
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	for {
		token, err := d.Token()
		if err != nil {
			return all
		}
		all = append(all, token)
	}
}
