package replicator

import (
	"cmp"
	"context"
	"errors"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
	"outflow/internal/consumer"
	"outflow/internal/failpoint"
	"outflow/internal/mongodb"
)

// write is the newest state that a batch has of one entity.
type write struct {
	id       string
	version  int64
	document bson.Raw
	messages []int // the messages that it stands for
}

type collectionOption = options.Lister[options.CollectionOptions]

// collections finds a collection.
type collections = func(base string, _ ...collectionOption) *mongo.Collection

// handle applies a batch: per entity the highest version, unless the replica
// has a higher one. A large one is applied in parts, so that some documents are
// made while others are written; no key is in two of them.
func (r *Replicator) handle(ctx context.Context, batch []consumer.Message) []error {
	if len(batch) < parts*minPart {
		return apply(ctx, r.db.Collection, batch)
	}
	var messages [parts][]consumer.Message
	var places [parts][]int
	for i, m := range batch {
		p := crc32.ChecksumIEEE([]byte(m.Event.Key)) % parts
		messages[p], places[p] = append(messages[p], m), append(places[p], i)
	}
	answers := make([]error, len(batch))
	var panics [parts]any // the consumer finds the message that was not borne
	var wg sync.WaitGroup
	for p := range parts {
		wg.Go(func() {
			defer func() { panics[p] = recover() }()
			for i, err := range apply(ctx, r.db.Collection, messages[p]) {
				answers[places[p][i]] = err
			}
		})
	}
	wg.Wait()
	for _, v := range panics {
		if v != nil {
			panic(v)
		}
	}
	return answers
}

const (
	parts   = 4
	minPart = 50 // messages; below that, another request costs more than it saves
)

// apply is handle for collections that in finds by the base collection's name.
func apply(ctx context.Context, in collections, batch []consumer.Message) []error {
	answers := make([]error, len(batch))
	writes := map[string]map[domain.ID]*write{} // by collection
	stopped := map[string]bool{}                // keys of which a message failed
	for i, m := range batch {
		if stopped[m.Event.Key] {
			continue
		}
		collection, doc, err := plan(m.Event)
		if err != nil {
			answers[i], stopped[m.Event.Key] = consumer.Permanent(err), true
			continue
		}
		if writes[collection] == nil {
			writes[collection] = map[domain.ID]*write{}
		}
		w := writes[collection][m.Event.AggregateID]
		if w == nil {
			w = &write{id: m.Event.AggregateID.String()}
			writes[collection][m.Event.AggregateID] = w
		}
		if m.Event.AggregateVersion >= w.version {
			w.version, w.document = m.Event.AggregateVersion, doc
		}
		w.messages = append(w.messages, i)
	}
	for collection, byID := range writes {
		// In the order of their ids, so that writers that share documents
		// lock them in one order.
		sorted := slices.SortedFunc(maps.Values(byID), func(a, b *write) int { return cmp.Compare(a.id, b.id) })
		for i, err := range store(ctx, in(collection), sorted) {
			w := sorted[i]
			if consumer.IsPermanent(err) && len(w.messages) > 1 {
				singly(ctx, in, batch, w.messages, answers)
				continue
			}
			for _, n := range w.messages {
				answers[n] = err
			}
		}
	}
	return answers
}

// singly applies the messages of one entity one by one: the newest was refused,
// and the replica is to have what came before it.
func singly(ctx context.Context, in collections, batch []consumer.Message, messages []int, answers []error) {
	for _, n := range messages {
		answers[n] = apply(ctx, in, batch[n:n+1])[0]
		if answers[n] != nil {
			return
		}
	}
}

// plan returns where an event's state goes, and the document.
func plan(e domain.Event) (collection string, doc bson.Raw, err error) {
	i := slices.IndexFunc(EntityCollections, func(c EntityCollection) bool { return c.Aggregate == e.AggregateType })
	if i < 0 {
		return "", nil, errors.New("event of an unknown aggregate type")
	}
	// A new type of event is applied like any other, because its state is
	// complete; a new version of a type may mean something else by it.
	if !strings.HasSuffix(e.Type, ".v1") && !failpoint.Mutant("replicator.any-version") {
		return "", nil, consumer.ErrUnknownVersion
	}
	// What was decoded is valid JSON.
	doc, err = appendDocument(make([]byte, 0, len(e.After)+len(e.After)/4+128), e)
	return EntityCollections[i].Base, doc, err
}

// store writes documents, each unless there is one of its version or higher,
// and returns an error or nil for each.
func store(ctx context.Context, into *mongo.Collection, writes []*write) []error {
	versions := make([]mongodb.Versioned, len(writes))
	for i, w := range writes {
		versions[i] = mongodb.Versioned{ID: w.id, Version: w.version, Document: w.document}
	}
	if err := failpoint.Hit(failpoint.ReplicatorWrite); err != nil {
		return slices.Repeat([]error{err}, len(writes))
	}
	errs := mongodb.ReplaceOlder(ctx, into, versions)
	if err := failpoint.Hit(failpoint.ReplicatorWritten); err != nil {
		return slices.Repeat([]error{err}, len(writes))
	}
	return errs
}
