//go:build !linux

package main

import (
	"os/exec"
	"syscall"
)

// startTied starts a process in a group of its own, so that Ctrl-C reaches it
// through its parent alone. Where the kernel has no parent-death signal, a
// parent that is killed leaves it behind.
func startTied(cmd *exec.Cmd) (exited <-chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return startAndWait(cmd, func() {})
}
