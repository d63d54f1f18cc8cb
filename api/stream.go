package api

import (
	"bytes"
	"context"
	"encoding/json"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"outflow/domain"
	"outflow/store"
)

const typeEventStream = "text/event-stream"

const (
	// streamPage is how many events a stream reads at once.
	streamPage = 100
	// writeTime is how long a client may take to take what is sent at once.
	writeTime = 30 * time.Second
	// reconnect is how long a browser waits before it comes back, and a stream
	// for a database that is away.
	reconnect = 2 * time.Second
)

// wantsStream reports whether an Accept header asks for server-sent events,
// and not for JSON rather than that.
func wantsStream(header []string) bool {
	stream, list := 0.0, 0.0
	for _, line := range header {
		for part := range strings.SplitSeq(line, ",") {
			media, params, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			q, err := strconv.ParseFloat(params["q"], 64)
			if err != nil {
				q = 1
			}
			switch media {
			case typeEventStream:
				stream = max(stream, q)
			case typeJSON:
				list = max(list, q)
			}
		}
	}
	return stream > 0 && stream >= list
}

// stream sends the events after a place as server-sent events (HTML, 9.2) until
// the client leaves or the server stops. What goes wrong once it has begun ends
// it, and the client comes back to where it was; but a database that is away is
// waited for: a browser that finds another status than 200 never comes back.
func (f *feed) stream(x *exchange, q feedRequest) error {
	page, err := f.store.Feed(x.r.Context(), q.at, q.filter, streamPage)
	if err != nil {
		return err
	}
	if err := x.stay(time.Time{}); err != nil {
		return err
	}
	ctx, done := x.untilStop()
	defer done()
	h := x.Header()
	h.Set("Content-Type", typeEventStream)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would keep it to itself
	x.WriteHeader(http.StatusOK)
	if x.r.Method == http.MethodHead {
		return nil
	}
	s := &eventStream{x: x, control: http.NewResponseController(x.ResponseWriter), told: q.at}
	s.retry()
	for s.err == nil {
		if err := s.page(page); err != nil {
			return err
		}
		if s.err != nil || ctx.Err() != nil {
			break
		}
		next, err := f.store.AwaitFeed(ctx, page.Next, q.filter, streamPage, f.heartbeat)
		switch {
		case err == nil:
			page = next
		case ctx.Err() != nil:
			return nil
		case domain.CodeOf(err) == domain.CodeUnavailable:
			page.Events = nil
			sleep(ctx, reconnect)
		case domain.CodeOf(err) == domain.CodeHistoryGone:
			return nil // the client is told when it comes back
		default:
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// An eventStream writes server-sent events.
type eventStream struct {
	x       *exchange
	control *http.ResponseController
	told    store.FeedPlace // the client knows
	b       bytes.Buffer
	err     error // the client is gone
}

func (s *eventStream) retry() {
	s.b.WriteString("retry: " + strconv.FormatInt(reconnect.Milliseconds(), 10) + "\n\n")
	s.flush()
}

// page sends a page's events. An empty one is a sign of life, with the place if
// it is another than the client knows: with a filter it can be far behind the
// last event that was sent.
func (s *eventStream) page(p store.FeedPage) error {
	for _, e := range p.Events {
		if err := s.id(e.After); err != nil {
			return err
		}
		s.b.WriteString("\ndata: ")
		enc := json.NewEncoder(&s.b) // ends with a newline, and has none inside
		enc.SetEscapeHTML(false)
		if err := enc.Encode(shown(e.Event)); err != nil {
			return err
		}
		s.b.WriteByte('\n')
		if s.b.Len() > maxBody {
			s.flush()
		}
	}
	switch {
	case len(p.Events) > 0:
	case p.Next.Equal(s.told):
		s.b.WriteString(":\n\n")
	default:
		if err := s.id(p.Next); err != nil {
			return err
		}
		s.b.WriteString("\n\n")
	}
	s.flush()
	return nil
}

func (s *eventStream) id(at store.FeedPlace) error {
	cursor, err := s.x.cursorOf(at)
	s.told = at
	s.b.WriteString("id: " + cursor)
	return err
}

// flush sends what there is. Who doesn't take it in time is gone.
func (s *eventStream) flush() {
	if s.err == nil {
		s.err = s.control.SetWriteDeadline(time.Now().Add(writeTime))
	}
	if s.err == nil {
		_, s.err = s.x.Write(s.b.Bytes())
	}
	if s.err == nil {
		s.err = s.control.Flush()
	}
	s.b.Reset()
}
