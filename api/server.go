package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// NewServer returns a server for addr that no client can hold up: whoever
// sends or reads too slowly is cut off. When it shuts down, requests that wait
// for events are answered, and streams of events end.
func NewServer(addr string, handler http.Handler) *http.Server {
	srv := &http.Server{
		Addr:              addr,
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
	StopWaiting(srv)
	return srv
}

// StopWaiting makes the shutdown of a server end what waits for events; a server
// would wait for that.
func StopWaiting(srv *http.Server) {
	ctx, stop := context.WithCancel(context.Background())
	srv.BaseContext = func(net.Listener) context.Context {
		return context.WithValue(context.Background(), stopping{}, ctx)
	}
	srv.RegisterOnShutdown(stop)
}

// Listener makes problem documents of what net/http answers by itself, in plain
// text, to requests that no handler ever sees: those that are not HTTP and those
// whose header is too large.
func Listener(ln net.Listener) net.Listener { return listener{ln} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return conn{c}, nil
}

type conn struct{ net.Conn }

// plainError is how net/http's own answers go on after the status line. The
// answers of handlers never do: they have a Date before that.
var plainError = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write implements [net.Conn]. net/http writes such an answer at once.
func (c conn) Write(b []byte) (int, error) {
	if line, _, found := bytes.Cut(b[:min(len(b), 256)], plainError); found && !bytes.Contains(line, []byte("\r\n")) && len(line) > len("HTTP/1.1 400") {
		if status, err := strconv.Atoi(string(line[9:12])); err == nil && status >= 400 {
			if _, err := c.Conn.Write(plainProblem(status)); err != nil {
				return 0, err
			}
			return len(b), nil
		}
	}
	return c.Conn.Write(b)
}

// CloseWrite lets net/http end a connection in a way in which the client still
// reads the answer.
func (c conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

func plainProblem(status int) []byte {
	p := problem{Type: "about:blank", Title: http.StatusText(status), Status: status, RequestID: uuid.Must(uuid.NewV7()).String(),
		Detail: sentence("the request could not be read, and no part of it was served")}
	for i := range problemTypes {
		if t := &problemTypes[i]; t.status == status && (t.code == codeBadRequest || t.code == codeHeaderTooLarge) {
			p.Type, p.Title = t.uri(), t.title
		}
	}
	body, err := json.Marshal(p)
	must(err)
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nX-Request-Id: %s\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), problemJSON, len(body), p.RequestID, body)
}
