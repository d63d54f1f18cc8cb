package api

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
)

const (
	spoolMemory = 1 << 20 // bytes that a spool keeps in memory
	spoolDisk   = 1 << 30 // and in a file
)

// spool is a queue of bytes between an import and its client. Many clients read
// nothing before they have sent everything; what they will read waits here, so
// that they and the import don't wait for each other. What doesn't fit into
// memory goes to a file. When that is full too, the import waits for the client.
type spool struct {
	mu      sync.Mutex
	changed sync.Cond
	memory  bytes.Buffer // younger than what is in the file
	file    *os.File
	read    int64 // of the file
	written int64
	ended   bool
	err     error // why nobody reads any more
	limit   int64 // of the file
}

func newSpool() *spool {
	s := &spool{limit: spoolDisk}
	s.changed.L = &s.mu
	return s
}

// Write adds to the queue. It waits while the queue is full, and returns the
// error that the queue was abandoned with.
func (s *spool) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && s.memory.Len()+len(b) > spoolMemory && s.memory.Len() > 0 {
		if !s.spill() {
			s.changed.Wait()
		}
	}
	if s.err != nil {
		return 0, s.err
	}
	s.memory.Write(b)
	s.changed.Broadcast()
	return len(b), nil
}

// spill moves what is in memory to the file, and reports whether it could.
func (s *spool) spill() bool {
	if s.read == s.written {
		s.read, s.written = 0, 0 // begin the file again
	}
	if s.written+int64(s.memory.Len()) > s.limit {
		return false
	}
	if s.file == nil {
		file, err := os.CreateTemp("", "outflow-import-")
		if err != nil {
			s.limit = 0 // without a file, the import keeps step with its client
			return false
		}
		_ = os.Remove(file.Name()) // it lives as long as it is open
		s.file = file
	}
	if _, err := s.file.WriteAt(s.memory.Bytes(), s.written); err != nil {
		return false // no space: the same as full
	}
	s.written += int64(s.memory.Len())
	s.memory.Reset()
	return true
}

// next waits for bytes and takes as many as b has room for. It returns io.EOF
// after the last ones.
func (s *spool) next(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.err != nil:
			return 0, s.err
		case s.read < s.written:
			n, err := s.file.ReadAt(b[:min(int64(len(b)), s.written-s.read)], s.read)
			s.read += int64(n)
			s.changed.Broadcast()
			if n > 0 || err == nil {
				return n, nil
			}
			return 0, err
		case s.memory.Len() > 0:
			n, err := s.memory.Read(b)
			s.changed.Broadcast()
			return n, err
		case s.ended:
			return 0, io.EOF
		}
		s.changed.Wait()
	}
}

// end says that nothing more will be written.
func (s *spool) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.changed.Broadcast()
}

// abandon says that nobody reads any more.
func (s *spool) abandon(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, err)
	s.changed.Broadcast()
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}
