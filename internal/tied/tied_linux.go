package tied

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Start starts a process that the kernel stops when this one dies, however
// that happens. The death signal is sent when the *thread* that started the
// child ends, so that thread is kept until the child is gone.
func Start(cmd *exec.Cmd) (exited <-chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return startAndWait(cmd, runtime.LockOSThread)
}
