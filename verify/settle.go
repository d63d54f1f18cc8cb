package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"outflow/domain"
	"outflow/internal/failpoint"
	"outflow/internal/mongodb"
	"outflow/replicator"
)

// finding is a difference, and what repairing it needs.
type finding struct {
	Difference
	id      any           // as the document has it
	version bson.RawValue // as the document has it
	want    bson.Raw      // nil when nothing should be there
}

// settle looks at the suspects again once the replica has caught up with what
// they were seen at, and tells those that still differ.
func (v *Replica) settle(ctx context.Context) error {
	for look := 1; len(v.suspects) > 0; look++ {
		if look > maxLooks {
			v.report.Undecided += int64(len(v.suspects))
			break
		}
		if err := v.caughtUp(ctx); err != nil {
			return err
		}
		for ids := range slices.Chunk(slices.Sorted(maps.Keys(v.suspects)), lookRows) {
			if err := v.tell(ctx, ids, look == maxLooks); err != nil {
				return err
			}
		}
	}
	clear(v.suspects)
	clear(v.odd)
	return nil
}

// tell tells, and mends, which of some suspects differ. Those that can't be
// judged, or changed before they were mended, stay suspected.
func (v *Replica) tell(ctx context.Context, ids []string, last bool) error {
	findings, err := v.look(ctx, ids)
	if err != nil {
		return err
	}
	if v.Repair {
		if err := v.bring(ctx, findings); err != nil {
			return err
		}
	}
	var lowered []domain.ID
	for _, f := range findings {
		if v.Repair && !f.behind() {
			if f.Repaired, err = v.put(ctx, f); err != nil {
				return fmt.Errorf("repair %s %s: %w", v.typ, f.ID, err)
			}
			if !f.Repaired && !last { // it has changed since
				v.suspects[f.ID] = suspect{f.Source}
				continue
			}
		}
		if f.Repaired && (f.Kind == Ahead || f.Kind == Corrupt) {
			lowered = append(lowered, domain.MustParseID(f.ID))
		}
		v.report.Differences[f.Kind]++
		if f.Repaired {
			v.report.Repaired++
		}
		if v.OnDifference != nil {
			v.OnDifference(f.Difference)
		}
	}
	return v.raise(ctx, lowered)
}

// look reads some suspects of both sides and judges them. What it can't judge
// stays suspected.
func (v *Replica) look(ctx context.Context, suspects []string) ([]finding, error) {
	var ids bson.A
	var known []domain.ID
	for _, id := range suspects {
		if odd, ok := v.odd[id]; ok {
			ids = append(ids, odd)
			continue
		}
		ids = append(ids, id)
		if parsed, err := domain.ParseID(id); err == nil && parsed.String() == id {
			known = append(known, parsed)
		}
	}
	// The replica first: what it has then, the source has by the time it is
	// read.
	docs, err := v.find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}})
	if err != nil {
		return nil, err
	}
	replica, source := map[string]bson.Raw{}, map[string]domain.Event{}
	for _, d := range docs {
		replica[textOf(d.Lookup("_id"))] = d
	}
	rows, err := v.Store.StatesOf(ctx, v.typ, known)
	if err == nil && ahead(known, replica, rows) {
		// With a synchronous standby, what is in the replica may not be visible
		// yet.
		if err := v.visible(ctx); err != nil {
			return nil, err
		}
		rows, err = v.Store.StatesOf(ctx, v.typ, known)
	}
	if err != nil {
		return nil, err
	}
	versions := map[domain.ID]int64{}
	for _, r := range rows {
		source[r.AggregateID.String()] = r
		if n, ok := versionOf(replica[r.AggregateID.String()]); ok && n <= r.AggregateVersion {
			versions[r.AggregateID] = n
		}
	}
	logged, err := v.Store.Events(ctx, v.typ, versions)
	if err != nil {
		return nil, err
	}
	log := map[string]domain.Event{}
	for _, e := range logged {
		log[e.AggregateID.String()] = e
	}
	var found []finding
	for _, id := range suspects {
		row, there := source[id]
		f, decided, err := judge(v.suspects[id], replica[id], row, there, log[id])
		if err != nil {
			return nil, fmt.Errorf("convert %s %s: %w", v.typ, id, err)
		}
		if !decided {
			v.suspects[id] = suspect{row.AggregateVersion} // the next look comes when the replica has this
			continue
		}
		delete(v.suspects, id)
		if f != nil {
			f.Type, f.ID, f.id = v.typ, id, any(id)
			if odd, ok := v.odd[id]; ok {
				f.id = odd
			}
			found = append(found, *f)
		}
	}
	slices.SortFunc(found, func(a, b finding) int { return bytes.Compare([]byte(a.ID), []byte(b.ID)) })
	return v.steady(ctx, found, replica)
}

// steady reads corrupt documents once more, and suspects those again that are
// something else by then. A server that doesn't replace documents in one step
// (mongo-java-server) shows some of them half old and half new.
func (v *Replica) steady(ctx context.Context, found []finding, replica map[string]bson.Raw) ([]finding, error) {
	var ids bson.A
	for _, f := range found {
		if f.Kind == Corrupt {
			ids = append(ids, f.id)
		}
	}
	if len(ids) == 0 {
		return found, nil
	}
	docs, err := v.find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}})
	if err != nil {
		return nil, err
	}
	again := make(map[string]bson.Raw, len(docs))
	for _, d := range docs {
		again[textOf(d.Lookup("_id"))] = d
	}
	return slices.DeleteFunc(found, func(f finding) bool {
		moved := f.Kind == Corrupt && !bytes.Equal(again[f.ID], replica[f.ID])
		if moved {
			v.suspects[f.ID] = suspect{f.Source}
		}
		return moved
	}), nil
}

// ahead reports whether the replica has what the source has not.
func ahead(known []domain.ID, replica map[string]bson.Raw, rows []domain.Event) bool {
	source := make(map[domain.ID]int64, len(rows))
	for _, r := range rows {
		source[r.AggregateID] = r.AggregateVersion
	}
	return slices.ContainsFunc(known, func(id domain.ID) bool {
		n, ok := versionOf(replica[id.String()])
		return ok && n > source[id]
	})
}

// judge tells how a document differs from its source; nil when it doesn't. The
// document was read before the row, and both after the replica had caught up
// with the version that the suspect was seen at. logged is the event that made
// the document's version, zero when the log doesn't hold it. It is not decided
// when the row has moved on and there is nothing else to compare with.
func judge(s suspect, doc bson.Raw, row domain.Event, there bool, logged domain.Event) (f *finding, decided bool, err error) {
	if !there {
		if doc == nil {
			return nil, true, nil
		}
		f := &finding{version: doc.Lookup("version")}
		f.Kind = Extra
		f.Replica, _ = versionOf(doc)
		return f, true, nil
	}
	want, err := replicator.Document(row)
	if err != nil {
		return nil, false, err
	}
	f = &finding{want: want}
	f.Source = row.AggregateVersion
	if doc == nil {
		// Missing only if it was committed before the replica caught up.
		f.Kind = Missing
		return f, s.source > 0, nil
	}
	version, ok := versionOf(doc)
	f.Replica, f.version = version, doc.Lookup("version")
	switch {
	case !ok:
		f.Kind = Corrupt
		return f, true, nil
	case version < s.source:
		f.Kind = Stale
		return f, true, nil
	case version > row.AggregateVersion:
		f.Kind = Ahead
		return f, true, nil
	case version == row.AggregateVersion && (same(want, doc) || failpoint.Mutant("verify.versions-only")):
		return nil, true, nil
	case logged.AggregateVersion == version:
		told, err := replicator.Document(logged)
		if err != nil || !same(told, doc) {
			break
		}
		// The row may have been changed without an event, and is what the replica
		// ought to hold all the same. But what a newer version of outflow has
		// added is not in rows as this one reads them.
		if version < row.AggregateVersion || same(want, known(told, row.AggregateType)) {
			return nil, true, nil
		}
	case version < row.AggregateVersion:
		return nil, false, nil
	}
	f.Kind = Corrupt
	return f, true, nil
}

// behind reports whether what is to be written is newer than what is there.
func (f *finding) behind() bool { return f.Kind == Missing || f.Kind == Stale }

// bring writes what the source holds of documents that are behind, which are in
// the order of their ids. Whatever else came meanwhile is newer than what was
// seen, and what is newer than the source's version stays.
func (v *Replica) bring(ctx context.Context, findings []finding) error {
	var writes []mongodb.Versioned
	var places []int
	for i, f := range findings {
		if f.behind() {
			writes, places = append(writes, mongodb.Versioned{ID: f.ID, Version: f.Source, Document: f.want}), append(places, i)
		}
	}
	for n, err := range mongodb.ReplaceOlder(ctx, v.base, writes) {
		f := &findings[places[n]]
		if err != nil {
			return fmt.Errorf("repair %s %s: %w", v.typ, f.ID, err)
		}
		f.Repaired = true
	}
	return nil
}

// put puts what the source holds in the place of a document, unless somebody
// changed that since it was seen.
func (v *Replica) put(ctx context.Context, f finding) (bool, error) {
	seen := bson.D{{Key: "_id", Value: f.id}, {Key: "version", Value: f.version}}
	switch f.version.Type {
	case 0:
		seen[1].Value = bson.D{{Key: "$exists", Value: false}}
	case bson.TypeInt64:
	default:
		// What is no version needn't be a value that a query can name: it may be
		// undefined, or look like operators. One that took its place is a long.
		seen[1].Value = bson.D{{Key: "$type", Value: int32(int8(f.version.Type))}} // MinKey is -1
	}
	if f.want == nil {
		done, err := v.base.DeleteOne(ctx, seen)
		return err == nil && done.DeletedCount == 1, err
	}
	var done *mongo.UpdateResult
	done, err := v.base.ReplaceOne(ctx, seen, f.want)
	return err == nil && done.MatchedCount == 1, err
}

// raise writes what the source holds by now of documents that were repaired. One
// that has no version, or one that is too high, refuses the changes that come
// between the look at its row and its repair, and the replicator has passed them
// then.
func (v *Replica) raise(ctx context.Context, ids []domain.ID) error {
	if len(ids) == 0 {
		return nil
	}
	rows, err := v.Store.StatesOf(ctx, v.typ, ids)
	if err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b domain.Event) int { return bytes.Compare(a.AggregateID[:], b.AggregateID[:]) })
	writes := make([]mongodb.Versioned, len(rows))
	for i, row := range rows {
		doc, err := replicator.Document(row)
		if err != nil {
			return fmt.Errorf("convert %s %s: %w", v.typ, row.AggregateID, err)
		}
		writes[i] = mongodb.Versioned{ID: row.AggregateID.String(), Version: row.AggregateVersion, Document: doc}
	}
	if err := errors.Join(mongodb.ReplaceOlder(ctx, v.base, writes)...); err != nil {
		return fmt.Errorf("repair %s: %w", v.typ, err)
	}
	return nil
}

// versionOf returns a document's version, if it has what is one.
func versionOf(doc bson.Raw) (int64, bool) {
	n, ok := doc.Lookup("version").Int64OK()
	return n, ok && n > 0
}

func textOf(id bson.RawValue) string {
	if s, ok := id.StringValueOK(); ok {
		return s
	}
	return id.String()
}

// same compares documents without regard to the order of their fields, which
// no reader of the replica relies on.
func same(a, b bson.Raw) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, err := a.Elements()
	if err != nil {
		return false
	}
	y, err := b.Elements()
	if err != nil || len(x) != len(y) {
		return false
	}
	other := make(map[string]bson.RawValue, len(y))
	for _, e := range y {
		other[e.Key()] = e.Value()
	}
	for _, e := range x {
		v, ok := other[e.Key()]
		if !ok || !sameValue(e.Value(), v) {
			return false
		}
		delete(other, e.Key())
	}
	return len(other) == 0
}

func sameValue(a, b bson.RawValue) bool {
	if a.Type != b.Type {
		return false
	}
	switch a.Type {
	case bson.TypeEmbeddedDocument:
		return same(bson.Raw(a.Value), bson.Raw(b.Value))
	case bson.TypeArray:
		return sameArray(a, b)
	}
	return bytes.Equal(a.Value, b.Value)
}

// sameArray compares arrays element by element: readers take them in the order in
// which they are stored, whatever their names say.
func sameArray(a, b bson.RawValue) bool {
	x, err := bson.Raw(a.Value).Elements()
	if err != nil {
		return false
	}
	y, err := bson.Raw(b.Value).Elements()
	return err == nil && slices.EqualFunc(x, y, func(a, b bson.RawElement) bool {
		return a.Key() == b.Key() && sameValue(a.Value(), b.Value())
	})
}
