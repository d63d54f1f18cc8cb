//go:build !linux

package postgres

import "syscall"

// hasDeathSignal says that the kernel ends the server after its parent. Here a
// watcher does.
const hasDeathSignal = false

func setDeathSignal(*syscall.SysProcAttr) {}

// isPostmaster tells whether process pid may be a postmaster. The data
// directory it runs in can't be told here.
func isPostmaster(pid int, _ string) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || err == syscall.EPERM
}
