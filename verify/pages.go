package verify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"outflow/domain"
	"outflow/replicator"
	"outflow/store"
)

// reader reads one side of a comparison, some pages ahead of who compares.
type reader[T any] struct {
	pages chan []T
	page  []T
	err   error
}

// pages reads until fetch returns nothing. fetch gets what it returned for
// the page before: where that ended.
func pages[T, K any](ctx context.Context, first K, fetch func(context.Context, K) ([]T, K, error)) *reader[T] {
	r := &reader[T]{pages: make(chan []T, 3)}
	go func() {
		defer close(r.pages)
		for last := first; ; {
			var page []T
			// Written before the channel is closed, and read after that.
			if page, last, r.err = fetch(ctx, last); r.err != nil || len(page) == 0 {
				return
			}
			select {
			case r.pages <- page:
			case <-ctx.Done():
				r.err = ctx.Err()
				return
			}
		}
	}()
	return r
}

// next returns the next one, nil after the last or after an error.
func (r *reader[T]) next() *T {
	for len(r.page) == 0 {
		var more bool
		if r.page, more = <-r.pages; !more {
			return nil
		}
	}
	one := &r.page[0]
	r.page = r.page[1:]
	return one
}

// stop ends the reading with cancel, and waits for that.
func (r *reader[T]) stop(cancel func()) {
	cancel()
	for range r.pages {
	}
}

// row is a row of the source.
type row struct {
	id      domain.ID
	version int64
	want    bson.Raw // what the replica should hold of it
}

// rows reads the rows of a type in the order of their ids.
type rows struct {
	of    *store.Store
	typ   string
	bytes int // of the documents of the last page
	each  int // bytes of one of them, on average
}

// pageBytes is how large a page gets, but for its last row or document: an order
// may have a megabyte, and some pages of both sides are in memory.
const pageBytes = 4 << 20

// errFull ends the reading of rows that would not fit into a page.
var errFull = errors.New("the page is full")

// page returns the next page, from after an id on; an empty one at the end. Its
// documents share a buffer: a page is kept as a whole, and then not.
func (r *rows) page(ctx context.Context, last domain.ID) ([]row, domain.ID, error) {
	limit := min(pageRows, pageBytes/max(1, r.each)+1) // what would not fit isn't asked for
	page := make([]row, 0, limit)
	ends := make([]int, 0, limit)
	d := replicator.Builder{Bytes: make([]byte, 0, r.bytes+r.bytes/16)}
	err := r.of.EachState(ctx, r.typ, last, limit, func(s *store.State) error {
		if len(d.Bytes) >= pageBytes {
			return errFull
		}
		page = append(page, row{id: s.ID, version: s.Version})
		err := build(&d, s)
		ends = append(ends, len(d.Bytes))
		return err
	})
	if err != nil && !errors.Is(err, errFull) {
		return nil, last, err
	}
	begin := 0
	for i, end := range ends {
		page[i].want, begin = d.Bytes[begin:end:end], end
		last = page[i].id
	}
	r.bytes, r.each = len(d.Bytes), len(d.Bytes)/max(1, len(page))
	return page, last, nil
}

// build makes the document that the replica should hold.
func build(d *replicator.Builder, s *store.State) error {
	d.Begin(s.ID, s.Version)
	defer d.End()
	if !s.DeletedAt.IsZero() {
		d.Deleted(s.DeletedAt)
	}
	for i := range s.Members {
		switch m := &s.Members[i]; m.Kind {
		case store.Text:
			d.Text(m.Name, m.Bytes)
		case store.Long:
			d.Long(m.Name, m.Long)
		case store.Time:
			d.Time(m.Name, m.Time)
		case store.JSON:
			if err := d.JSON(m.Name, m.Bytes); err != nil {
				return fmt.Errorf("%s: %w", s.ID, err)
			}
		}
	}
	return nil
}

// documents reads a collection's documents that have text for an id, in the
// order of their ids. A query per page would be repeatable, but some servers take
// longer for a page than for what is in it.
type documents struct {
	base   *mongo.Collection
	cursor *mongo.Cursor // nil before the first page, and when it broke
	bytes  int           // in the last page
}

// page returns the next page, from after the last one's last id on; an empty one
// at the end. A cursor ends when a rebuild swaps the collection, or when its
// server loses patience: then another one goes on.
func (d *documents) page(ctx context.Context, last string) ([]bson.Raw, string, error) {
	for {
		fresh := d.cursor == nil
		if fresh {
			after := "$gt"
			if last == "" {
				after = "$gte"
			}
			var err error
			// Symbols are in the order of text, and aren't text.
			filter := bson.D{{Key: "_id", Value: bson.D{{Key: after, Value: last}, {Key: "$type", Value: "string"}}}}
			d.cursor, err = d.base.Find(ctx, filter, options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}).SetBatchSize(pageRows))
			if err != nil {
				return nil, last, fmt.Errorf("read %s: %w", d.base.Name(), err)
			}
		}
		page, n, err := take(ctx, d.cursor, pageRows, pageBytes, d.bytes)
		if len(page) > 0 {
			d.bytes = n
			return page, page[len(page)-1].Lookup("_id").StringValue(), nil
		}
		if err == nil {
			return nil, last, nil
		}
		d.close()
		if fresh || ctx.Err() != nil {
			return nil, last, fmt.Errorf("read %s: %w", d.base.Name(), err)
		}
	}
}

func (d *documents) close() {
	if d.cursor != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = d.cursor.Close(ctx) // the server forgets it by itself too
		d.cursor = nil
	}
}

// take reads up to n documents of about most bytes, into one buffer: a page is kept
// as a whole, and then not. About how many bytes they have may be known. It
// returns what it read also with an error.
func take(ctx context.Context, cursor *mongo.Cursor, n, most, about int) (page []bson.Raw, bytes int, err error) {
	all := make([]byte, 0, about+about/16)
	var ends []int
	for len(ends) < n && len(all) < most && cursor.Next(ctx) {
		all = append(all, cursor.Current...)
		ends = append(ends, len(all))
	}
	page = make([]bson.Raw, len(ends))
	begin := 0
	for i, end := range ends {
		page[i], begin = all[begin:end:end], end
	}
	return page, len(all), cursor.Err()
}
