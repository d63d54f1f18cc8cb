package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
	"outflow/internal/consumer"
)

// The codes of MongoDB's errors that mean something here. Servers differ in
// everything else that they say about an error.
const (
	codeDuplicateKey    = 11000
	codeWriteConflict   = 112
	codeNamespaceExists = 48
)

// refusals are the codes of writes that will be refused however often they are
// tried, because of what is in the document.
var refusals = map[int]bool{
	2:     true, // BadValue
	9:     true, // FailedToParse
	14:    true, // TypeMismatch
	15:    true, // Overflow: nested too deeply
	52:    true, // DollarPrefixedFieldName: in a nested document, before MongoDB 5.0
	55:    true, // InvalidDBRef
	57:    true, // DottedFieldName: in a nested document, before MongoDB 3.6
	121:   true, // DocumentValidationFailure
	10334: true, // BSONObjectTooLarge
}

func hasCode(err error, code int) bool {
	server, ok := errors.AsType[mongo.ServerError](err)
	return ok && server.HasErrorCode(code)
}

// write is the newest state that a batch has of one entity.
type write struct {
	id       string
	version  int64
	document bson.Raw
	messages []int // the messages that it stands for
}

// handle applies a batch: per entity the highest version, unless the replica
// has a higher one.
func (r *Replicator) handle(ctx context.Context, batch []consumer.Message) []error {
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
		for i, err := range r.store(ctx, collection, sorted) {
			w := sorted[i]
			if consumer.IsPermanent(err) && len(w.messages) > 1 {
				r.singly(ctx, batch, w.messages, answers)
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
func (r *Replicator) singly(ctx context.Context, batch []consumer.Message, messages []int, answers []error) {
	for _, n := range messages {
		answers[n] = r.handle(ctx, batch[n:n+1])[0]
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
	if !strings.HasSuffix(e.Type, ".v1") {
		return "", nil, errors.New("event of an unknown version")
	}
	doc, err = document(e)
	return EntityCollections[i].Base, doc, err
}

// conflictTries is how often a write is tried that met another one of the same
// document, before the batch comes again after a pause.
const conflictTries = 5

// store writes documents, each unless there is one of its version or higher,
// and returns an error or nil for each.
//
// The upsert's filter leaves out newer documents, so that the server takes a
// newer one for missing, tries to insert, and reports a duplicate key. A
// duplicate key also comes from two first writes of a document that race: then
// it is not known which one came first, and the newer may be the one that was
// refused. Both are settled by trying once more without upsert: what matches
// no document then is stale.
func (r *Replicator) store(ctx context.Context, collection string, writes []*write) []error {
	errs := make([]error, len(writes))
	todo := make([]int, len(writes))
	for i := range todo {
		todo[i] = i
	}
	upsert := true
	for try := 0; len(todo) > 0; {
		var raced, conflicted []int
		for n, err := range r.bulk(ctx, collection, writes, todo, upsert) {
			i := todo[n]
			errs[i] = nil
			switch {
			case err == nil:
			case upsert && err.code == codeDuplicateKey:
				raced = append(raced, i)
			case err.code == codeWriteConflict && try < conflictTries:
				conflicted = append(conflicted, i)
			case refusals[err.code]:
				errs[i] = consumer.Permanent(fmt.Errorf("write to %s: %w", collection, err))
			default:
				errs[i] = fmt.Errorf("write to %s: %w", collection, err)
			}
		}
		switch {
		case len(conflicted) > 0:
			try++
			todo = conflicted
			if len(raced) > 0 { // settled by the next round of upserts: they are refused again
				todo = append(todo, raced...)
				slices.Sort(todo)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(try) * 5 * time.Millisecond):
			}
		default:
			todo, upsert = raced, false
		}
	}
	return errs
}

// failure is why one write of a bulk failed; without a code when that isn't
// known, or it is the whole bulk that failed.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// bulk tries the writes that todo names, and returns a failure or nil for each.
func (r *Replicator) bulk(ctx context.Context, collection string, writes []*write, todo []int, upsert bool) []*failure {
	models := make([]mongo.WriteModel, len(todo))
	for n, i := range todo {
		w := writes[i]
		models[n] = mongo.NewReplaceOneModel().SetUpsert(upsert).SetReplacement(w.document).
			SetFilter(bson.D{{Key: "_id", Value: w.id}, {Key: "version", Value: bson.D{{Key: "$lt", Value: w.version}}}})
	}
	failures := make([]*failure, len(todo))
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := r.db.Collection(collection).BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
	if err == nil {
		return failures
	}
	each, ok := errors.AsType[mongo.BulkWriteException](err)
	if !ok || each.WriteConcernError != nil || len(each.WriteErrors) == 0 {
		code := 0
		if hasCode(err, codeWriteConflict) {
			code = codeWriteConflict
		}
		for n := range failures {
			failures[n] = &failure{code, err}
		}
		return failures
	}
	for _, e := range each.WriteErrors {
		failures[e.Index] = &failure{e.Code, e}
	}
	return failures
}
