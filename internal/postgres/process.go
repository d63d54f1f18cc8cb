package postgres

import (
	"os/exec"
	"runtime"
	"syscall"
)

// A process is a running postmaster.
type process struct {
	pid  int
	done chan struct{} // closed when it has ended
	err  error         // why; read after done
}

// startProcess starts cmd so that it ends when this process does. tell, which
// may be nil, hears the process id when it has started and 0 when it has ended.
func startProcess(cmd *exec.Cmd, tell func(pid int)) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(cmd, tell, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) run(cmd *exec.Cmd, tell func(int), started chan<- error) {
	// Linux sends the parent-death signal when the thread that forked ends,
	// not when its process does. Go may end a thread that nothing is locked to,
	// so this goroutine keeps its own for as long as the server lives.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	setDeathSignal(cmd.SysProcAttr)
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	p.pid = cmd.Process.Pid
	if tell != nil {
		tell(p.pid)
	}
	started <- nil
	p.err = cmd.Wait()
	if tell != nil {
		tell(0)
	}
	close(p.done)
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal sends sig, unless the process has ended: its id may be another's then.
// (Between Wait's return and done that is not known; the id is not reused that
// soon.)
func (p *process) signal(sig syscall.Signal) error {
	if p.ended() {
		return nil
	}
	if err := syscall.Kill(p.pid, sig); err != nil && err != syscall.ESRCH {
		return err
	}
	return nil
}
