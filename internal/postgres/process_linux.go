package postgres

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// hasDeathSignal says that the kernel ends the server after its parent.
const hasDeathSignal = true

func setDeathSignal(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }

// isPostmaster tells whether process pid runs PostgreSQL in the data directory
// data. Ids are reused (in a container the same ones come again and again), and
// a process that nobody has reaped yet still has one.
func isPostmaster(pid int, data string) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(proc, "stat")) // "12 (postgres) S 1 ..."
	if err != nil {
		return false
	}
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || shut < open || shut+2 >= len(stat) {
		return false
	}
	if state := stat[shut+2]; string(stat[open+1:shut]) != "postgres" || state == 'Z' || state == 'X' {
		return false
	}
	cwd, err := os.Stat(filepath.Join(proc, "cwd"))
	if err != nil {
		return true // not ours to look into: assume the worse
	}
	dir, err := os.Stat(data)
	return err != nil || os.SameFile(cwd, dir)
}
