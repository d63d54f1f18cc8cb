package replicator

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/mongodb"
	"outflow/internal/mongofake"
)

// Of two first writes that race, the newer is often the one that is refused:
// it must win all the same.
func TestFirstWritesRace(t *testing.T) {
	s := newSystem(t)
	r := s.replicator()
	r.db = s.db
	require.NoError(t, prepare(t.Context(), s.db))
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
				for _, err := range store(t.Context(), s.db.Collection("_customers"), writes) {
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

// What a server reports when the older of two racing writes came first.
func TestADuplicateKeyNeedNotBeStale(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	r := s.replicator()
	r.db = s.db
	at := func(version int64) []*write {
		_, doc, err := plan(customer(1, version))
		require.NoError(t, err)
		return []*write{{id: id(1).String(), version: version, document: doc}}
	}
	require.NoError(t, store(t.Context(), s.db.Collection("_customers"), at(1))[0])
	s.fake.Fault(mongofake.Fault{Command: "update", Count: 1, Code: mongodb.CodeDuplicateKey, Kind: mongofake.WriteError})
	require.NoError(t, store(t.Context(), s.db.Collection("_customers"), at(2))[0])
	require.Equal(t, int64(2), s.version("_customers", id(1)))
	require.NoError(t, store(t.Context(), s.db.Collection("_customers"), at(1))[0], "stale, which is no error")
	require.Equal(t, int64(2), s.version("_customers", id(1)))
}

// The newest state of a document is refused for good: the replica is to have
// the one before.
func TestARefusedDocumentLeavesTheOneBefore(t *testing.T) {
	s := newSystem(t)
	s.needFake()
	r := s.replicator()
	r.db = s.db
	const tooLarge = 10334
	refuse := mongofake.Fault{Command: "update", Collection: "_customers", Count: 1, Code: tooLarge, Kind: mongofake.WriteError}
	s.fake.Fault(refuse) // both in one
	refuse.Skip = 1      // the first alone
	s.fake.Fault(refuse) // the second alone
	var batch []consumer.Message
	for _, e := range []domain.Event{customer(1, 1), customer(2, 5), customer(1, 2)} {
		batch = append(batch, consumer.Message{Event: e})
	}
	answers := r.handle(t.Context(), batch)
	require.NoError(t, answers[0])
	require.NoError(t, answers[1])
	require.True(t, consumer.IsPermanent(answers[2]))
	require.Equal(t, int64(1), s.version("_customers", id(1)))
	require.Equal(t, int64(5), s.version("_customers", id(2)))
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
