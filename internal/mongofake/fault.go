package mongofake

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

func stack() string { return string(debug.Stack()) }

// FaultKind is what a Fault does with its Code.
type FaultKind int

const (
	// CommandError fails the whole command: {ok: 0, code: Code}.
	CommandError FaultKind = iota
	// WriteError fails operation Index of insert, update or delete and leaves
	// the others to succeed, unless they are ordered.
	WriteError
	// WriteConcernError lets the command be applied and adds a
	// writeConcernError to its answer.
	WriteConcernError
)

// Fault says which commands go wrong, and how. Without Code, CloseConn, Hold and
// Delay it only counts.
type Fault struct {
	// Command is the name of the command: "update", "find", "getMore". Empty
	// means every one that a client sends on behalf of its user: not the
	// handshake, ping or endSessions.
	Command string
	// Collection limits the fault to one collection, by its name without the
	// database; for renameCollection it is the one that is renamed.
	Collection string
	// Skip lets as many commands pass first.
	Skip int
	// Count is how many commands are hit; 0 means all, until Remove.
	Count int

	// After makes it happen once the command has been applied: the client
	// gets the error, or no answer, although the write is there.
	After bool
	// Hold blocks the command until Release or Remove is called. The client
	// may be gone by then; the command is applied all the same.
	Hold bool
	// Delay makes the command wait.
	Delay time.Duration
	// Code is a MongoDB error code, such as 112 (WriteConflict), with its
	// message. It is answered after Hold and Delay.
	Code    int32
	Message string
	Kind    FaultKind
	// Index is the operation that a WriteError hits; -1 means all.
	Index int
	// CloseConn cuts the connection instead of answering.
	CloseConn bool
}

// ActiveFault is a fault in force.
type ActiveFault struct {
	Fault
	set *faults

	mu       sync.Mutex
	seen     int
	hits     int
	inside   int
	removed  bool
	released chan struct{}
	changed  chan struct{} // closed and replaced whenever a counter changes
}

type faults struct {
	mu   sync.Mutex
	list []*ActiveFault
}

// Fault puts f in force. When several match a command, the first one put in
// force is taken.
func (s *Server) Fault(f Fault) *ActiveFault {
	a := &ActiveFault{Fault: f, set: &s.faults, released: make(chan struct{}), changed: make(chan struct{})}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.list = append(s.faults.list, a)
	return a
}

// Remove ends the fault and releases the commands that it holds.
func (a *ActiveFault) Remove() {
	a.set.mu.Lock()
	for i, other := range a.set.list {
		if other == a {
			a.set.list = append(a.set.list[:i:i], a.set.list[i+1:]...)
			break
		}
	}
	a.set.mu.Unlock()
	a.Release()
}

// Release lets the commands go that are held, and those to come.
func (a *ActiveFault) Release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.removed {
		a.removed = true
		close(a.released)
	}
}

// Hits is how many commands were hit.
func (a *ActiveFault) Hits() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hits
}

// Inside is how many of them have not ended yet, such as those that are held.
func (a *ActiveFault) Inside() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inside
}

// Wait returns once n commands have been hit, or with ctx's error.
func (a *ActiveFault) Wait(ctx context.Context, n int) error {
	for {
		a.mu.Lock()
		hits, changed := a.hits, a.changed
		a.mu.Unlock()
		if hits >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d hits, have %d: %w", n, hits, ctx.Err())
		}
	}
}

// background commands are what drivers send by themselves.
var background = map[string]bool{
	"hello": true, "isMaster": true, "ismaster": true, "ping": true,
	"buildInfo": true, "buildinfo": true, "endSessions": true, "killCursors": true,
}

// take finds the fault for a command and counts it.
func (s *faults) take(command, coll string) *ActiveFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.list {
		if a.Command != command && (a.Command != "" || background[command]) || a.Collection != "" && a.Collection != coll {
			continue
		}
		if a.enter() {
			return a
		}
	}
	return nil
}

func (a *ActiveFault) enter() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen++
	if a.seen <= a.Skip || a.Count > 0 && a.hits >= a.Count {
		return false
	}
	a.hits++
	a.inside++
	a.notify()
	return true
}

func (a *ActiveFault) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inside--
	a.notify()
}

func (a *ActiveFault) notify() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// hold waits as the fault says; not ok means that the server is closing.
func (a *ActiveFault) hold(done <-chan struct{}) (ok bool) {
	if a.Hold {
		select {
		case <-a.released:
		case <-done:
			return false
		}
	}
	if a.Delay > 0 {
		select {
		case <-time.After(a.Delay):
		case <-done:
			return false
		}
	}
	return true
}

func (f *Fault) message() string {
	if f.Message != "" {
		return f.Message
	}
	return "injected fault: " + codeName(f.Code)
}

func (f *Fault) commandError() *serverError {
	if f.Code == 0 || f.Kind != CommandError {
		return nil
	}
	return fail(f.Code, "%s", f.message())
}

// writeError is the error for operation i of a bulk write, if it is to fail.
func (f *Fault) writeError(i int) *serverError {
	if f == nil || f.Code == 0 || f.Kind != WriteError || f.Index >= 0 && f.Index != i {
		return nil
	}
	return fail(f.Code, "%s", f.message())
}
