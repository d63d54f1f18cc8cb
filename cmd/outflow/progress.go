package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// meter shows how far something is: with a bar on a terminal, and a JSON line a
// second elsewhere.
type meter struct {
	w        io.Writer
	unit     string // what is counted
	terminal bool
	bar      *progressbar.ProgressBar // of what is shown on a terminal
	counted  bool                     // whether it counts
	what     string
	begun    time.Time // of what is shown
	told     time.Time
}

func newMeter(w io.Writer, unit string, asJSON bool) *meter {
	return &meter{w: w, unit: unit, terminal: !asJSON && isTerminal(w)}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// show says that done of total are done of what; total is 0 when not known.
// That a terminal, or who reads the lines, is gone is no reason to stop.
func (m *meter) show(what string, done, total int64) {
	now := time.Now()
	if total > 0 {
		total = max(total, done) // it may be an estimate
	}
	fresh := what != m.what
	if fresh {
		m.what, m.begun = what, now
	}
	if m.terminal {
		if total <= 0 {
			total = -1
		}
		if counted := done > 0 || total > 0; fresh || counted != m.counted {
			m.finish()
			m.bar, m.counted = m.newBar(what, counted, total), counted
		}
		m.bar.ChangeMax64(total)
		_ = m.bar.Set64(done)
		return
	}
	if !fresh && now.Sub(m.told) < time.Second {
		return
	}
	m.told = now
	line := map[string]any{"phase": what, "done": done}
	if total > 0 {
		line["total"] = total
	}
	if spent := now.Sub(m.begun).Seconds(); spent > 0.1 && done > 0 {
		rate := float64(done) / spent
		line["per_second"] = int64(rate)
		if total > done {
			line["eta_s"] = int64(float64(total-done)/rate) + 1
		}
	}
	_ = json.NewEncoder(m.w).Encode(line)
}

// newBar makes a bar, or a spinner for what doesn't count anything.
func (m *meter) newBar(what string, counted bool, total int64) *progressbar.ProgressBar {
	opts := []progressbar.Option{
		progressbar.OptionSetWriter(m.w), progressbar.OptionFullWidth(), progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(100 * time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetElapsedTime(counted),
	}
	if counted {
		opts = append(opts, progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(m.unit), progressbar.OptionSetPredictTime(true))
	}
	return progressbar.NewOptions64(total, opts...)
}

// say tells something in a line of its own.
func (m *meter) say(format string, args ...any) {
	if !m.terminal {
		_ = json.NewEncoder(m.w).Encode(map[string]string{"message": fmt.Sprintf(format, args...)})
		return
	}
	m.clear()
	fmt.Fprintf(m.w, format+"\n", args...)
}

// clear makes room for a line that is printed elsewhere on the same terminal.
func (m *meter) clear() {
	if m.bar != nil {
		_ = m.bar.Clear()
	}
}

// Write lets a logger print lines of its own.
func (m *meter) Write(line []byte) (int, error) {
	m.clear()
	return m.w.Write(line)
}

func (m *meter) finish() {
	if m.bar != nil {
		_ = m.bar.Finish()
		m.bar = nil
	}
}
