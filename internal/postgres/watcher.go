package postgres

import (
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"syscall"
)

// A watcher is a shell that outlives this process for a moment: when this
// process ends, by kill -9 too, the shell's standard input ends. It then ends
// the server (where the kernel doesn't) and removes the directory (when asked
// to).
type watcher struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// $1 is the directory to remove, or empty. Every line of input is the id of the
// server's process from now on, or empty while there is none.
const watch = `
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
	kill -QUIT "$pid" 2>/dev/null
	n=0
	while kill -0 "$pid" 2>/dev/null && [ "$n" -lt 100 ]; do sleep 0.1; n=$((n+1)); done
fi
if [ -n "$1" ]; then rm -rf "$1"; fi
`

func startWatcher(remove string) (*watcher, error) {
	cmd := exec.Command("/bin/sh", "-c", watch, "sh", remove)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // out of Ctrl-C's reach
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("watch the server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("watch the server: %w", err)
	}
	return &watcher{cmd: cmd, stdin: stdin}, nil
}

// tell names the server's process, 0 for none.
func (w *watcher) tell(pid int) error {
	line := "\n"
	if pid != 0 {
		line = strconv.Itoa(pid) + "\n"
	}
	_, err := io.WriteString(w.stdin, line)
	return err
}

// close lets the watcher do its work now, and waits for it.
func (w *watcher) close() error {
	err := w.stdin.Close()
	if werr := w.cmd.Wait(); err == nil {
		err = werr
	}
	return err
}
