package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
)

// Part is a long-lived piece of outflow. Run blocks until ctx is done, stops
// cleanly and returns nil; any other return is a failure.
type Part struct {
	Name    string
	Run     func(ctx context.Context) error
	Ready   func() bool     // whether it does its work; nil means always
	Current func() bool     // whether nothing that was there waits for it; nil means always
	Done    func() string   // what it did so far, in a few words; nil means nothing to tell
	Figures func() []Figure // what it tells monitoring; nil means nothing
	Status  http.Handler    // what it tells people, under /status/ and its name; nil means nothing
}

// RunParts runs all parts until ctx is done or one of them fails; then it
// stops the others and waits for them. It returns the failures, by name.
func RunParts(ctx context.Context, parts ...Part) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(parts))
	for i, p := range parts {
		wg.Go(func() {
			defer cancel()
			err := p.Run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("stopped by itself")
			}
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", p.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// SignalContext is done at the first SIGINT or SIGTERM. A second one ends the
// process at once with status 130, for whoever can't wait for a clean stop.
func SignalContext(parent context.Context, stderr io.Writer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
			return
		}
		<-signals
		fmt.Fprintln(stderr, "stopped at once, on the second signal")
		os.Exit(130)
	}()
	return ctx, func() { signal.Stop(signals); cancel() }
}

// Logger makes the logger that the configuration asks for.
func (c *Config) Logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// Version is the version that the binary was built from: the module's, else
// the revision of the checkout.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	var rev, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = " (modified)"
		}
	}
	v := strings.Trim(info.Main.Version, "()")
	if rev != "" && !strings.Contains(v, rev[:12]) {
		v += " " + rev
	}
	return v + dirty + ", " + info.GoVersion
}
