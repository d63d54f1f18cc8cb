package mongodb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/internal/consumer"
	"outflow/internal/failpoint"
)

// Versioned is a document that has its id in _id and its version in version.
type Versioned struct {
	ID       string
	Version  int64
	Document any
}

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

// conflictTries is how often a write is tried that met another one of the same
// document, before the batch comes again after a pause.
const conflictTries = 5

// ReplaceOlder writes documents, each unless there is one of its version or
// higher, and returns an error or nil for each. An error is
// [consumer.Permanent] when the server would refuse the document each time. To
// lock them in one order, writers that share documents give them in the order
// of their ids.
//
// The upsert's filter leaves out newer documents, so that the server takes a
// newer one for missing, tries to insert, and reports a duplicate key. A
// duplicate key also comes from two first writes of a document that race: then
// it is not known which one came first, and the newer may be the one that was
// refused. Both are settled by trying once more without upsert: what matches
// no document then is stale.
func ReplaceOlder(ctx context.Context, c *mongo.Collection, writes []Versioned) []error {
	errs := make([]error, len(writes))
	todo := make([]int, len(writes))
	for i := range todo {
		todo[i] = i
	}
	upsert := true
	for try := 0; len(todo) > 0; {
		var raced, conflicted []int
		for n, err := range replace(ctx, c, writes, todo, upsert) {
			i := todo[n]
			errs[i] = nil
			switch {
			case err == nil:
			case upsert && err.code == CodeDuplicateKey:
				raced = append(raced, i)
			case err.code == CodeWriteConflict && try < conflictTries:
				conflicted = append(conflicted, i)
			case refusals[err.code]:
				errs[i] = consumer.Permanent(fmt.Errorf("write to %s: %w", c.Name(), err))
			default:
				errs[i] = fmt.Errorf("write to %s: %w", c.Name(), err)
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

// replace tries the writes that todo names, and returns a failure or nil for
// each.
func replace(ctx context.Context, c *mongo.Collection, writes []Versioned, todo []int, upsert bool) []*failure {
	models := make([]mongo.WriteModel, len(todo))
	for n, i := range todo {
		w := writes[i]
		older := bson.D{{Key: "_id", Value: w.ID}, {Key: "version", Value: bson.D{{Key: "$lt", Value: w.Version}}}}
		if failpoint.Mutant("mongodb.unguarded") {
			older = older[:1]
		}
		models[n] = mongo.NewReplaceOneModel().SetUpsert(upsert).SetReplacement(w.Document).SetFilter(older)
	}
	failures := make([]*failure, len(todo))
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := c.BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
	if err == nil {
		return failures
	}
	each, ok := errors.AsType[mongo.BulkWriteException](err)
	if !ok || each.WriteConcernError != nil || len(each.WriteErrors) == 0 {
		code := 0
		if HasCode(err, CodeWriteConflict) {
			code = CodeWriteConflict
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
