package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"outflow/domain"
)

const (
	typeNDJSON = "application/x-ndjson"

	maxChunkLines = 1000    // of an import that go to the database together
	maxChunkBytes = 1 << 20 // the same
	packetBytes   = 64 << 10
)

// imported says what became of a line.
type imported struct {
	Line    int        `json:"line"`
	ID      *domain.ID `json:"id,omitempty"`
	Problem *problem   `json:"problem,omitempty"`
}

// line is a line of an import as it was sent.
type line struct {
	n    int
	text string
	err  error // why there is no text
}

// packet is the lines that arrived together.
type packet struct {
	lines []line
	bytes int
}

// handleImport reads lines, hands them to the store in chunks and answers line
// by line, all at the same time and in constant memory: the lines wait in the
// client until there is room for them, the answers in a spool until the client
// takes them. A chunk is what has arrived when the one before is done, so
// nothing waits for a chunk to fill up.
func (e *entity[T, In]) handleImport(x *exchange) error {
	if err := x.contentType([]string{typeNDJSON}); err != nil {
		return err
	}
	p := &params{query: x.query}
	validateOnly := p.yes("validate_only")
	if err := p.err(); err != nil {
		return err
	}
	// As long as there is no answer yet, a database that is away is a 503.
	if err := x.api.store.Ping(x.r.Context()); err != nil {
		return err
	}
	control := http.NewResponseController(x.ResponseWriter)
	if err := control.EnableFullDuplex(); err != nil {
		return fmt.Errorf("answer while reading: %w", err)
	}
	x.Header().Set("Content-Type", typeNDJSON)
	x.Header().Set("Cache-Control", "no-store")
	// A body that stops arriving ends its request's context, and yet what has
	// arrived is imported and answered. A client that is gone shows in the answer.
	x.r = x.r.WithContext(context.WithoutCancel(x.r.Context()))
	x.answered = true // from here on, what goes wrong is said in lines

	// Whoever still sends need not take anything yet.
	idle := func() {
		deadline := time.Now().Add(x.api.cfg.ImportIdle)
		_ = control.SetReadDeadline(deadline)
		_ = control.SetWriteDeadline(deadline)
	}
	answers := newSpool()
	defer answers.close()
	sent := make(chan error, 1)
	go func() {
		err := stream(x.ResponseWriter, answers, idle)
		answers.abandon(err)
		sent <- err
	}()
	packets, stop, stopped := make(chan packet, 4), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		defer close(packets)
		readLines(idleReader{x.r.Body, idle}, func(p packet) bool {
			select {
			case packets <- p:
				return true
			case <-stop:
				return false
			}
		})
	}()
	err := e.importPackets(x, packets, answers, validateOnly)
	answers.end()
	if serr := <-sent; !errors.Is(serr, io.EOF) {
		err = serr
	}
	close(stop)
	if err != nil {
		_ = control.SetReadDeadline(time.Now()) // nobody wants the rest
	}
	for range packets { // so that whoever reads finds out that it is over
		continue
	}
	<-stopped
	if err != nil {
		panic(http.ErrAbortHandler) // the client must not take this for the end
	}
	return nil
}

// importPackets imports what arrives until nothing more does, or until nobody
// reads the answers any more.
func (e *entity[T, In]) importPackets(x *exchange, packets <-chan packet, answers io.Writer, validateOnly bool) error {
	gone := false
	for p := range packets {
		chunk := p
	more:
		for len(chunk.lines) < maxChunkLines && chunk.bytes < maxChunkBytes {
			select {
			case p, ok := <-packets:
				if !ok {
					break more
				}
				chunk.lines, chunk.bytes = append(chunk.lines, p.lines...), chunk.bytes+p.bytes
			default:
				break more
			}
		}
		var b bytes.Buffer
		gone = e.importChunk(x, chunk.lines, &b, validateOnly, gone)
		if _, err := answers.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

var errGone = &refusal{code: domain.CodeUnavailable, detail: "the database was lost during the import, and this line was not tried"}

// importChunk imports some lines and answers them in their order. Once the
// database was lost (gone), no other line is tried.
func (e *entity[T, In]) importChunk(x *exchange, lines []line, answers io.Writer, validateOnly, gone bool) bool {
	ins := make([]In, 0, len(lines))
	errs := make([]error, len(lines))
	for i, l := range lines {
		var in In
		if errs[i] = e.readLine(l, &in); errs[i] == nil && gone {
			errs[i] = errGone
		}
		if errs[i] == nil {
			ins = append(ins, in)
		}
	}
	done := e.importAll(x.r.Context(), ins, validateOnly, x.metadata())
	encoder := json.NewEncoder(answers)
	encoder.SetEscapeHTML(false)
	for i, l := range lines {
		answer := imported{Line: l.n}
		err := errs[i]
		if err == nil {
			result := done[0]
			done = done[1:]
			if err = result.Err; err == nil && !validateOnly {
				answer.ID = &result.ID
			}
			gone = gone || domain.CodeOf(err) == domain.CodeUnavailable
		}
		if err != nil {
			p := x.problem(err)
			answer.Problem = &p
		}
		must(encoder.Encode(answer))
	}
	return gone
}

func (e *entity[T, In]) readLine(l line, in *In) error {
	if l.err != nil {
		return l.err
	}
	v, err := parse(l.text)
	if err != nil {
		return &refusal{code: codeMalformed, detail: err.Error()}
	}
	return e.read(creating, &v, in, nil)
}

// stream sends what is in a spool, and returns io.EOF when that was all.
func stream(w http.ResponseWriter, s *spool, idle func()) error {
	control := http.NewResponseController(w)
	b := make([]byte, packetBytes)
	for {
		n, err := s.next(b)
		idle()
		if errors.Is(err, io.EOF) {
			// An import without a line has an answer too.
			return errors.Join(err, control.Flush())
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		if err := control.Flush(); err != nil {
			return err
		}
	}
}

// idleReader reads a body of any length from a client that keeps sending.
type idleReader struct {
	io.Reader
	idle func()
}

func (r idleReader) Read(b []byte) (int, error) {
	r.idle()
	return r.Reader.Read(b)
}

// readLines cuts a body into lines, and hands them on as they arrive. Lines
// without anything are counted and left out. A body that breaks off ends with a
// line that says so; what was sent of it is not taken for a line.
func readLines(body io.Reader, hand func(packet) bool) {
	r := bufio.NewReaderSize(body, maxBody+len("\r\n"))
	tooLarge := &refusal{code: codeTooLarge, detail: fmt.Sprintf("a line may have at most %d bytes", maxBody)}
	var p packet
	for n := 1; ; n++ {
		text, err := r.ReadSlice('\n')
		l := line{n: n}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = r.ReadSlice('\n')
			}
			l.err = tooLarge
		case err == nil || errors.Is(err, io.EOF):
			if l.text = strings.TrimSpace(string(text)); len(l.text) > maxBody {
				l = line{n: n, err: tooLarge}
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			l.err = brokenOff(err)
		}
		if l.err != nil || l.text != "" {
			p.lines, p.bytes = append(p.lines, l), p.bytes+len(l.text)
		}
		// Nothing waits for a line that hasn't arrived.
		arrived, _ := r.Peek(r.Buffered())
		if len(p.lines) > 0 && (err != nil || bytes.IndexByte(arrived, '\n') < 0 || p.bytes >= packetBytes || len(p.lines) == maxChunkLines) {
			if !hand(p) {
				return
			}
			p = packet{}
		}
		if err != nil {
			return
		}
	}
}

func brokenOff(err error) error {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return &refusal{code: codeTimeout, detail: "the rest of the body did not arrive in time"}
	}
	return &refusal{code: codeMalformed, detail: "the body could not be read to its end"}
}
