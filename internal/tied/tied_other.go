//go:build !linux

package tied

import (
	"os/exec"
	"syscall"
)

// Start starts a process in a group of its own, so that Ctrl-C reaches it
// through its parent alone. Where the kernel has no parent-death signal, a
// parent that is killed leaves it behind.
func Start(cmd *exec.Cmd) (exited <-chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return startAndWait(cmd, func() {})
}
