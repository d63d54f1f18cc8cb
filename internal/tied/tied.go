// Package tied starts processes that end with this one.
package tied

import "os/exec"

func startAndWait(cmd *exec.Cmd, before func()) (<-chan struct{}, error) {
	started, exited := make(chan error), make(chan struct{})
	go func() {
		before()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
		close(exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return exited, nil
}
