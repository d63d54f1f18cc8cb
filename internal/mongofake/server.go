package mongofake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Config has a useful zero value.
type Config struct {
	// Listen is the TCP address, 127.0.0.1:0 by default.
	Listen string
	// Logger gets what goes wrong with connections, at debug level, and
	// faults of this package, at error level. The default discards it.
	Logger *slog.Logger
}

// Server is a running server with its data, which goes when it is closed.
type Server struct {
	listener net.Listener
	logger   *slog.Logger
	catalog  catalog
	cursors  cursors
	faults   faults
	started  time.Time
	replies  atomic.Int32
	opened   atomic.Int32

	done  chan struct{} // closed by Close
	close func() error
	wait  sync.WaitGroup

	mu          sync.Mutex
	connections map[net.Conn]struct{} // nil once closed
}

// Start listens and serves until Close. ctx bounds the starting alone.
func Start(ctx context.Context, config Config) (*Server, error) {
	if config.Listen == "" {
		config.Listen = "127.0.0.1:0"
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", config.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", config.Listen, err)
	}
	s := &Server{
		listener:    listener,
		logger:      config.Logger,
		catalog:     catalog{dbs: map[string]*database{}},
		cursors:     cursors{open: map[int64]*cursor{}},
		started:     time.Now(),
		done:        make(chan struct{}),
		connections: map[net.Conn]struct{}{},
	}
	s.close = sync.OnceValue(s.shut)
	s.wait.Go(s.accept)
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// URI is a connection string without a database.
func (s *Server) URI() string { return "mongodb://" + s.Addr().String() + "/?directConnection=true" }

// Close ends all connections, held commands too, and waits until nothing of the
// server runs any more. It can be called again.
func (s *Server) Close() error {
	err := s.close()
	s.wait.Wait()
	return err
}

func (s *Server) shut() error {
	close(s.done)
	err := s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.connections {
		c.Close()
	}
	s.connections = nil
	return err
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of file descriptors, most likely: those that are open
			// go on, and the next may get through.
			s.logger.Error("mongofake can't accept a connection", "error", err)
			select {
			case <-s.done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		s.mu.Lock()
		closed := s.connections == nil
		if !closed {
			s.connections[c] = struct{}{}
			s.wait.Go(func() { s.serve(c, s.opened.Add(1)) })
		}
		s.mu.Unlock()
		if closed {
			c.Close()
			return
		}
	}
}

func (s *Server) serve(c net.Conn, id int32) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.connections, c)
		s.mu.Unlock()
	}()
	in := bufio.NewReaderSize(c, 32<<10)
	var out []byte
	for {
		q, err := readRequest(in)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.logger.Debug("mongofake closes a connection", "error", err, "client", c.RemoteAddr().String())
			}
			return
		}
		reply, ok := s.run(q, id)
		if !ok {
			return // a fault cuts the connection
		}
		if q.noReply {
			continue
		}
		out = appendReply(out[:0], q, s.replies.Add(1), reply)
		if len(out) > maxReply {
			err := fail(codeDocumentTooLarge, "BSONObj size: %d is invalid. Size must be between 0 and %d(16MB)", len(out), maxReply)
			out = appendReply(out[:0], q, s.replies.Add(1), err.reply())
		}
		if _, err := c.Write(out); err != nil {
			return
		}
		if cap(out) > 1<<20 {
			out = nil // don't keep the memory of a large reply
		}
	}
}

// maxReply is what MongoDB calls the internal limit: a reply may be a document
// of maximal size and what is wrapped around it.
const maxReply = maxDocument + 16<<10

// run runs one command; not ok means that the connection is to be cut.
func (s *Server) run(q *request, connection int32) (reply bson.D, ok bool) {
	c := &call{server: s, name: q.body[0].Key, body: q.body, documents: q.documents, now: time.Now(), connection: connection, legacy: q.op == opQuery}
	c.db, _ = field[string](c.body, "$db")
	c.coll, _ = c.body[0].Value.(string)
	f := s.faults.take(c.name, c.target())
	if f == nil {
		return c.reply(), true
	}
	defer f.leave()
	if !f.After {
		if !f.hold(s.done) {
			return nil, false
		}
		if err := f.commandError(); err != nil {
			return err.reply(), true
		}
		if f.CloseConn {
			return nil, false
		}
	}
	c.fault = &f.Fault
	reply = c.reply()
	if f.After {
		if !f.hold(s.done) {
			return nil, false
		}
		if err := f.commandError(); err != nil {
			return err.reply(), true
		}
		if f.CloseConn {
			return nil, false
		}
	}
	if f.Kind == WriteConcernError {
		reply = append(reply, bson.E{Key: "writeConcernError", Value: doc("code", f.Code, "codeName", codeName(f.Code), "errmsg", f.message())})
	}
	return reply, true
}

// reply answers the command and turns every failure, a panic too, into an error
// for this command alone.
func (c *call) reply() (reply bson.D) {
	defer func() {
		if p := recover(); p != nil {
			reply = c.server.recovered(c.name, p).reply()
		}
	}()
	d, err := c.dispatch()
	if err != nil {
		return err.reply()
	}
	return append(d, bson.E{Key: "ok", Value: 1.0})
}

// recovered makes an error of a panic: values that can't be compared panic with
// the error to report, anything else is a mistake in this package.
func (s *Server) recovered(command string, p any) *serverError {
	if err, ok := p.(*serverError); ok {
		return err
	}
	s.logger.Error("mongofake panicked", "command", command, "panic", fmt.Sprint(p), "stack", stack())
	return fail(codeInternal, "mongofake panicked: %v", p)
}
