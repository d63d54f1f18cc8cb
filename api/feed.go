package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"outflow/domain"
	"outflow/store"
)

const (
	// maxWait is how long a request may wait for events; who asks for more waits
	// that long.
	maxWait = 60 * time.Second
	// answerTime is how long answering may take, after a wait.
	answerTime = 30 * time.Second
	// defaultHeartbeat is after how much silence a stream says that it is there:
	// proxies end connections that are silent for a minute.
	defaultHeartbeat = 15 * time.Second
)

const lastEventID = "Last-Event-ID"

// feed is the whole event log as a list that goes on.
type feed struct {
	store     *store.Store
	heartbeat time.Duration
}

// feedPage is one page of it. next_cursor is never null: there will be more.
type feedPage struct {
	Data       []event `json:"data"`
	NextCursor string  `json:"next_cursor"`
}

// feedRequest is what a request asks of the feed.
type feedRequest struct {
	at     store.FeedPlace
	cursor string // that named the place; empty for the beginning
	filter store.FeedFilter
	limit  int
	wait   time.Duration
}

// request reads the parameters. Unlike those of other lists, a cursor is good
// with any filter: it is a place in the log.
func (f *feed) request(x *exchange) (q feedRequest, err error) {
	p := &params{query: x.query}
	q.limit, q.wait = p.limit(), p.wait()
	if q.filter.Type = p.query.Get("type"); p.query.Has("type") && !eventType(q.filter.Type) {
		p.refuse("type", "must be the type of an event, such as "+domain.OrderPlaced)
	}
	q.filter.AggregateType, q.filter.Aggregate = p.oneOf("aggregate_type", domain.AggregateTypes...), p.id("aggregate_id")
	at, has := p.query.Get("cursor"), p.query.Has("cursor")
	refuse := func() { p.refuse("cursor", "must be the next_cursor of this list") }
	// A browser that connects again says so here, and repeats the address with
	// which it began.
	if last := x.r.Header.Get(lastEventID); last != "" {
		at, has = last, true
		refuse = func() {
			p.problems = append(p.problems, fieldProblem{"header." + lastEventID, "must be the id of an event of this stream, or a next_cursor of this list"})
		}
	}
	if has {
		place, ok, err := x.api.cursors.decode(x.r.Context(), x.route.OperationID, at)
		switch {
		case err != nil:
			return q, err
		case !ok || q.at.UnmarshalBinary(place) != nil:
			refuse()
		}
		q.cursor = at
	}
	return q, p.err()
}

// wait reads how long a request waits; 0 when nothing is said.
func (p *params) wait() time.Duration {
	s := p.query.Get("wait")
	if !p.query.Has("wait") {
		return 0
	}
	digits, ok := strings.CutSuffix(s, "s")
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || digits == "" || strings.Trim(digits, "0123456789") != "" {
		p.refuse("wait", "must be a number of seconds, such as 30s")
	} else if err != nil || n > uint64(maxWait/time.Second) {
		return maxWait
	}
	return time.Duration(n) * time.Second
}

func eventType(s string) bool {
	return s != "" && len(s) <= 100 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789._") == ""
}

// cursorOf makes the cursor of a place.
func (x *exchange) cursorOf(at store.FeedPlace) (string, error) {
	place, err := at.MarshalBinary()
	if err != nil {
		return "", err
	}
	return x.api.cursors.encode(x.r.Context(), x.route.OperationID, place)
}

func (f *feed) handle(x *exchange) error {
	q, err := f.request(x)
	if err != nil {
		return err
	}
	if wantsStream(x.r.Header["Accept"]) {
		return f.stream(x, q)
	}
	page, err := f.page(x, q)
	if err != nil {
		return err
	}
	body := feedPage{Data: make([]event, len(page.Events)), NextCursor: q.cursor}
	for i, e := range page.Events {
		body.Data[i] = shown(e.Event)
	}
	// A cursor that comes back as it was says that nothing is new.
	if q.cursor == "" || !page.Next.Equal(q.at) {
		if body.NextCursor, err = x.cursorOf(page.Next); err != nil {
			return err
		}
	}
	x.linkNext(body.NextCursor)
	return x.reply(body)
}

// page reads a page, and waits for it if it is to.
func (f *feed) page(x *exchange, q feedRequest) (store.FeedPage, error) {
	page, err := f.store.Feed(x.r.Context(), q.at, q.filter, q.limit)
	if err != nil || len(page.Events) > 0 || q.wait == 0 {
		return page, err
	}
	if err := x.stay(time.Now().Add(q.wait + answerTime)); err != nil {
		return page, err
	}
	ctx, done := x.untilStop()
	defer done()
	waited, err := f.store.AwaitFeed(ctx, page.Next, q.filter, q.limit, q.wait)
	if err != nil && ctx.Err() != nil && x.r.Context().Err() == nil {
		return page, nil // the server stops: nothing came meanwhile
	}
	return waited, err
}

// stay keeps the server from cutting a request off that is meant to last:
// its time to read, which also ends the wait for a client that has nothing to
// send, and its time to write.
func (x *exchange) stay(write time.Time) error {
	c := http.NewResponseController(x.ResponseWriter)
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("lift the read timeout: %w", err)
	}
	if err := c.SetWriteDeadline(write); err != nil {
		return fmt.Errorf("lift the write timeout: %w", err)
	}
	return nil
}

// stopping is what the server's requests have in their context: another one,
// which ends when the server begins to stop.
type stopping struct{}

// untilStop returns a context that ends with the client or when the server
// stops, which waits for its requests.
func (x *exchange) untilStop() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(x.r.Context())
	server, ok := ctx.Value(stopping{}).(context.Context)
	if !ok {
		return ctx, cancel
	}
	unlink := context.AfterFunc(server, cancel)
	return ctx, func() { unlink(); cancel() }
}

// feedRoutes are the operations on the event log.
func feedRoutes(s *store.Store, heartbeat time.Duration) []route {
	f := &feed{s, heartbeat}
	return []route{{Operation: feedDocs(), handle: f.handle, streams: true}}
}

func feedDocs() huma.Operation {
	op := operation("Events", "listEvents", http.MethodGet, "/api/events", "Read all events, and wait for more",
		"Returns every event from the beginning on, page by page. Whoever goes from cursor to cursor gets each committed event once, and those of one customer or order in the order of their versions; "+
			"events of different ones may come in any order. The list has no end: next_cursor is always there, and is the same as cursor when nothing is new. "+
			"A page that is not full, or even empty, may have others after it.\n\n"+
			"With `wait=30s` a request for which there is nothing waits until there is something.\n\n"+
			"With `Accept: text/event-stream` the answer is a stream of server-sent events that goes on until the client leaves or the server stops: data is an event as in the list, id is the cursor behind it. "+
			"A browser's EventSource goes on by itself where it was cut off (Last-Event-ID). A comment, or an id alone, comes at least every 15 seconds. limit and wait have no meaning for it.")
	op.Parameters = append(op.Parameters,
		inQuery("type", "Only events of this type, such as "+domain.OrderPlaced+".", &huma.Schema{Type: huma.TypeString, Pattern: "^[a-z0-9._]+$", MaxLength: new(100)}),
		inQuery("aggregate_type", "Only events of this kind of resource.", enum("", domain.AggregateTypes...)),
		inQuery("aggregate_id", "Only events of the resource with this id.", uuidSchema("")),
		&huma.Param{Name: "limit", In: "query", Example: defaultLimit,
			Description: fmt.Sprintf("The most events to return. More than %d counts as %d.", maxLimit, maxLimit),
			Schema:      &huma.Schema{Type: huma.TypeInteger, Minimum: new(1.0), Default: defaultLimit}},
		inQuery("cursor", "The next_cursor of the page before, or the id of a server-sent event, with any filter; without it the list begins at its beginning.", characters("", 1, 0)),
		&huma.Param{Name: "wait", In: "query", Example: "30s",
			Description: fmt.Sprintf("How long to wait for the first event, in seconds. More than %ds counts as %ds.", maxWait/time.Second, maxWait/time.Second),
			Schema:      &huma.Schema{Type: huma.TypeString, Pattern: "^[0-9]+s$", Default: "0s"}},
		&huma.Param{Name: lastEventID, In: "header", Description: "The id of the last event that came; wins over cursor.", Schema: characters("", 0, 0)})
	headers := commonHeaders()
	headers["Link"] = header("The next page (RFC 8288).", "<"+op.Path+`?cursor=...>; rel="next"`)
	placed := exampleEvent(&entityDocs{one: domain.AggregateCustomer})
	const cursor = "AX3nN0m5...Qw"
	page := content(typeJSON, "EventFeed", feedPage{[]event{placed}, cursor})
	page[typeEventStream] = &huma.MediaType{
		Schema: characters("Server-sent events: data is an Event, id the cursor behind it.", 0, 0),
		Examples: map[string]*huma.Example{"example": {Summary: "An example",
			Value: fmt.Sprintf("id: %s\ndata: %s\n\n", cursor, mustJSON(placed))}},
	}
	op.Responses["200"] = &huma.Response{Description: "Some events, or a stream of them.", Headers: headers, Content: page}
	return refuses(op, domain.CodeInvalid, domain.CodeHistoryGone)
}
