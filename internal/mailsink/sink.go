package mailsink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// Defaults of [Config].
const (
	DefaultMax           = 20_000
	DefaultMaxBytes      = 1 << 20
	DefaultMaxRecipients = 100
)

// Config is what a sink needs to know. The zero value listens on a free port
// of 127.0.0.1 and keeps mail in memory.
type Config struct {
	Listen        string       // host:port; "" means 127.0.0.1:0
	Dir           string       // where mail is kept as .eml files; "" means in memory only
	Logger        *slog.Logger // nil means no log
	Max           int          // how many mails are kept; 0 means DefaultMax
	MaxBytes      int64        // size of one mail; 0 means DefaultMaxBytes
	MaxRecipients int          // recipients of one mail; 0 means DefaultMaxRecipients
}

// Message is one mail that was received.
type Message struct {
	ID         string    `json:"id"`         // the sink's own number; later mails have greater ones
	To         []string  `json:"to"`         // the envelope's recipients, addresses only
	From       string    `json:"from"`       // the From header with its name, else the envelope's sender
	Subject    string    `json:"subject"`    // decoded
	MessageID  string    `json:"message_id"` // as it stands in the header, with its angle brackets
	Text       string    `json:"text"`       // the first text/plain part, lines end in \n
	HTML       string    `json:"html,omitempty"`
	Date       time.Time `json:"date,omitzero"` // the Date header; zero when it has none
	ReceivedAt time.Time `json:"received_at"`
}

// Sink is a running mail server and its inbox. All methods may be called at
// any time, from any goroutine.
type Sink struct {
	cfg      Config
	store    store
	server   *smtp.Server
	listener *listener
	started  time.Time
	served   chan struct{} // closed when the accept loop has ended
	stopCtx  func() bool
	closed   sync.Once

	mu       sync.Mutex
	mails    []mail // oldest first
	last     int64  // the number of the newest mail ever received
	faults   []Fault
	revision uint64        // counts changes of mails and faults
	changed  chan struct{} // closed at the next change
	stopped  bool          // nothing is taken any more
}

// mail is what is kept of one mail. raw is nil when the file has it.
type mail struct {
	Message
	number int64
	raw    []byte
}

// Start listens, reads back what Config.Dir holds, and serves until Close is
// called or ctx ends.
func Start(ctx context.Context, cfg Config) (*Sink, error) {
	cfg.Listen = cmp.Or(cfg.Listen, "127.0.0.1:0")
	cfg.Max = cmp.Or(cfg.Max, DefaultMax)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, DefaultMaxBytes)
	cfg.MaxRecipients = cmp.Or(cfg.MaxRecipients, DefaultMaxRecipients)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Sink{
		cfg:     cfg,
		store:   store{dir: cfg.Dir, log: cfg.Logger},
		started: time.Now(),
		served:  make(chan struct{}),
		changed: make(chan struct{}),
	}
	mails, last, err := s.store.load()
	if err != nil {
		return nil, fmt.Errorf("read inbox: %w", err)
	}
	s.mails, s.last = mails, last
	s.trim()

	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for mail: %w", err)
	}
	s.listener = &listener{Listener: ln, conns: make(map[net.Conn]struct{})}
	s.server = smtp.NewServer(smtp.BackendFunc(s.session))
	s.server.Domain = "outflow-mailsink"
	s.server.ErrorLog = serverLog{cfg.Logger}
	s.server.MaxMessageBytes = cfg.MaxBytes
	s.server.MaxRecipients = cfg.MaxRecipients
	s.server.MaxLineLength = 64 << 10      // RFC 5321 allows 1,000; whoever breaks that is told by a real server, and seen here
	s.server.ReadTimeout = 5 * time.Minute // RFC 5321, 4.5.3.2.7
	s.server.WriteTimeout = time.Minute
	s.server.EnableSMTPUTF8 = true
	go func() {
		defer close(s.served)
		if err := s.server.Serve(s.listener); err != nil && !errors.Is(err, net.ErrClosed) {
			cfg.Logger.Error("mail sink stopped accepting", "error", err)
		}
	}()
	s.stopCtx = context.AfterFunc(ctx, s.Close)
	return s, nil
}

// Addr is where the sink listens, as host:port.
func (s *Sink) Addr() string { return s.listener.Addr().String() }

// Close stops listening, cuts every connection, and returns when nothing of
// the sink runs any more. What was received can still be read.
func (s *Sink) Close() {
	s.closed.Do(func() {
		s.stopCtx()
		s.mu.Lock()
		s.stopped = true
		s.mu.Unlock()
		// go-smtp's Close doesn't wait for its connections and its Shutdown
		// doesn't cut them. So they are cut here, and Shutdown waits. The accept
		// loop has to end first: it counts connections that Shutdown waits for.
		s.listener.cut()
		<-s.served
		_ = s.server.Shutdown(context.Background()) // its error is that the listener is closed
	})
}

// Messages returns what was received, newest first.
func (s *Sink) Messages() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest(len(s.mails))
}

// newest returns up to n mails, newest first. The caller holds s.mu.
func (s *Sink) newest(n int) []Message {
	n = min(n, len(s.mails))
	out := make([]Message, 0, n)
	for _, m := range slices.Backward(s.mails[len(s.mails)-n:]) {
		out = append(out, m.Message)
	}
	return out
}

// Wait returns nil as soon as done says so of what was received (newest
// first), or ctx's error. It asks done now and after every change.
func (s *Sink) Wait(ctx context.Context, done func([]Message) bool) error {
	for {
		s.mu.Lock()
		changed, messages := s.changed, s.newest(len(s.mails))
		s.mu.Unlock()
		if done(messages) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for mail, %d received: %w", len(messages), ctx.Err())
		}
	}
}

// Clear forgets every mail, and deletes the files.
func (s *Sink) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mails {
		s.store.remove(m.number)
	}
	s.mails = nil
	s.touch()
}

// find returns the mail with this ID and how it came over the wire.
func (s *Sink) find(id string) (Message, []byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := slices.BinarySearchFunc(s.mails, id, func(m mail, id string) int { return cmp.Compare(m.ID, id) })
	if !ok {
		return Message{}, nil, false
	}
	m := s.mails[i]
	if m.raw != nil {
		return m.Message, m.raw, true
	}
	raw, err := s.store.read(m.number)
	if err != nil {
		s.cfg.Logger.Error("mail file lost", "id", id, "error", err)
	}
	return m.Message, raw, true
}

// keep stores a mail, to disk first, so that what is shown and acknowledged
// survives a restart.
func (s *Sink) keep(e envelope, raw []byte) error {
	m := mail{Message: decode(e, raw)}
	if s.store.dir == "" {
		m.raw = raw
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errStopped
	}
	number := s.last + 1
	if err := s.store.write(number, e, raw); err != nil {
		return err
	}
	s.last = number
	m.number, m.ID = number, id(number)
	s.mails = append(s.mails, m)
	s.trim()
	s.touch()
	return nil
}

// trim drops the oldest mails over the limit. The caller holds s.mu.
func (s *Sink) trim() {
	over := len(s.mails) - s.cfg.Max
	if over <= 0 {
		return
	}
	for _, m := range s.mails[:over] {
		s.store.remove(m.number)
	}
	s.mails = slices.Delete(s.mails, 0, over)
}

// touch tells those who wait that something changed. The caller holds s.mu.
func (s *Sink) touch() {
	s.revision++
	close(s.changed)
	s.changed = make(chan struct{})
}

// id is a mail's number as text that sorts like the number.
func id(number int64) string { return fmt.Sprintf("%010d", number) }

// listener remembers the connections it accepted, so that they can be cut.
type listener struct {
	net.Listener
	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	l.conns[c] = struct{}{}
	return &conn{Conn: c, l: l}, nil
}

func (l *listener) cut() {
	_ = l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
	for c := range l.conns {
		_ = c.Close()
	}
}

type conn struct {
	net.Conn
	l *listener
}

func (c *conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c.Conn)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// serverLog passes on what go-smtp has to say: broken connections and panics.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Printf(format string, v ...any) {
	l.log.Warn("mail sink connection", "detail", fmt.Sprintf(format, v...))
}

func (l serverLog) Println(v ...any) { l.log.Warn("mail sink connection", "detail", fmt.Sprint(v...)) }
