package postgres

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Show reports to w: with a bar when w is a terminal, else with a line at the
// start of each step and at each further quarter of it. The Report may be called
// from several goroutines.
func Show(w io.Writer) Report {
	p := &plain{w: w}
	report := p.report
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		report = (&bar{w: w}).report
	}
	var mu sync.Mutex
	return func(what string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		report(what, done, total)
	}
}

// plain writes lines.
type plain struct {
	w       io.Writer
	what    string
	quarter int64
}

func (p *plain) report(what string, done, total int64) {
	if what != p.what {
		p.what, p.quarter = what, 0
		if total > 0 {
			fmt.Fprintf(p.w, "%s (%s)\n", what, megabytes(total))
			p.quarter = 4 * done / total
		} else {
			fmt.Fprintln(p.w, what)
		}
		return
	}
	if total > 0 && 4*done/total > p.quarter {
		p.quarter = 4 * done / total
		fmt.Fprintf(p.w, "%s: %d%%\n", what, 25*p.quarter)
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// bar draws one bar per step.
type bar struct {
	w    io.Writer
	what string
	bar  *progressbar.ProgressBar
}

func (b *bar) report(what string, done, total int64) {
	if what != b.what {
		if b.bar != nil && !b.bar.IsFinished() {
			_ = b.bar.Exit() // leaves it as it is, on a line of its own
		}
		b.what, b.bar = what, nil
		if total <= 0 {
			fmt.Fprintln(b.w, what)
			return
		}
		b.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(b.w),
			progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(true),
			progressbar.OptionShowCount(),
			progressbar.OptionSetRenderBlankState(true), // or the first one has an absurd speed
			progressbar.OptionSetWidth(20),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionOnCompletion(func() { fmt.Fprintln(b.w) }),
		)
	}
	if b.bar != nil {
		_ = b.bar.Set64(done) // an error in drawing is no reason to fail
	}
}
