package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"outflow/cmd/internal/app"
	"outflow/internal/postgres"
	"outflow/migrations"
)

// startTimeout bounds the start of everything: a first initdb on a slow disk
// fits many times.
const startTimeout = 2 * time.Minute

func runStack(ctx context.Context, o flags, stdout, stderr io.Writer) (err error) {
	begun := time.Now()
	rate, err := o.simulationRate()
	if err != nil {
		return err
	}
	dir, err := o.home()
	if err != nil {
		return err
	}
	if o.seedDemo && o.servicesOnly {
		return app.UsageError(errors.New("--seed-demo needs the API: leave out --services-only"))
	}
	faults, err := parseFaults(o.mailFaults)
	if err != nil {
		return app.UsageError(fmt.Errorf("--mail-faults: %w", err))
	}
	h, err := openHome(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	// The port is taken before anything is started: if it is not free, the user
	// learns it at once.
	ln, err := app.ListenAPI(app.Config{Listen: o.listen})
	if err != nil {
		return err
	}
	listening := true
	defer func() {
		if listening {
			err = errors.Join(err, ln.Close())
		}
	}()
	data := h.path("data")
	if o.ephemeral {
		if data, err = os.MkdirTemp(h.dir, "ephemeral-"); err != nil {
			return err
		}
		if err := os.Chmod(data, 0o755); err != nil { // PostgreSQL's user passes through
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	}
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	fmt.Fprintln(stdout, "outflow-dev is starting ...")

	// Not within the time of the start: a slow network takes as long as it takes.
	bin, err := postgres.FindOrFetch(ctx, o.postgresBin, postgres.Show(stderr))
	if errors.Is(err, postgres.ErrNotFound) {
		err = fmt.Errorf("%w; or name the folder of its programs with --postgres-bin", err)
	}
	if err != nil {
		return clean(ctx, err)
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s, err := startServers(starting, data, bin, o.ephemeral, log)
	if err != nil {
		return clean(ctx, err)
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	for _, f := range faults {
		if err := s.sink.Fail(f); err != nil {
			return err
		}
	}
	if _, err := migrations.Up(starting, s.postgres.URL()); err != nil {
		return clean(ctx, err)
	}
	vars := s.variables("http://"+reachable(ln.Addr().(*net.TCPAddr)), ln.Addr().String())
	b := banner{vars: vars, servers: s, data: data, ephemeral: o.ephemeral, servicesOnly: o.servicesOnly, home: o.dataDir}
	if o.servicesOnly {
		// The API that is run by hand needs the port.
		listening = false
		if err := ln.Close(); err != nil {
			return err
		}
		if err := h.publish(state{PID: os.Getpid(), Ready: true, Env: vars}); err != nil {
			return err
		}
		b.took = time.Since(begun)
		b.print(stdout)
		select {
		case <-ctx.Done():
		case <-s.postgres.Done():
			return fmt.Errorf("PostgreSQL ended by itself: see %s", data)
		}
		fmt.Fprintln(stdout, "\nstopped")
		return nil
	}

	cfg, err := app.LoadConfig(environ(vars))
	if err != nil {
		return err
	}
	listening = false
	parts, err := buildParts(ln, cfg, log)
	if err != nil {
		return err
	}
	ready := app.Part{Name: "start", Run: func(ctx context.Context) error {
		if err := awaitReady(ctx, parts); err != nil {
			return err
		}
		b.took = time.Since(begun)
		if o.seedDemo && ctx.Err() == nil {
			if b.demo, err = seedDemo(ctx, b.get("OUTFLOW_API_URL"), b.get("OUTFLOW_POSTGRES_URL")); err != nil {
				return clean(ctx, err)
			}
		}
		if ctx.Err() == nil {
			if err := h.publish(state{PID: os.Getpid(), Ready: true, Env: vars}); err != nil {
				return err
			}
			b.print(stdout)
		}
		<-ctx.Done()
		return nil
	}}
	if rate > 0 {
		parts = append(parts, simulation(b.get("OUTFLOW_API_URL"), rate))
	}
	database := app.Part{Name: "postgres", Run: func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-s.postgres.Done():
			return fmt.Errorf("ended by itself: see %s", data)
		}
	}}
	err = app.RunParts(ctx, append(parts, ready, database)...)
	var did []string
	for _, p := range parts {
		if p.Done != nil {
			did = append(did, p.Done())
		}
	}
	fmt.Fprintln(stdout, "\nstopped:", strings.Join(did, ", "))
	return err
}

func buildParts(ln net.Listener, cfg app.Config, log *slog.Logger) ([]app.Part, error) {
	first, err := app.APIOn(ln, cfg, log)
	if err != nil {
		return nil, err
	}
	parts := []app.Part{first}
	for _, build := range []func(app.Config, *slog.Logger) (app.Part, error){
		app.RelayPart, app.ReplicatePart, app.AnalyzePart, app.ConfirmPart, app.NotifyPart,
	} {
		p, err := build(cfg, log)
		if err != nil {
			return nil, errors.Join(err, ln.Close())
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// awaitReady returns when every part works and has done what was there for it,
// or when ctx ends. The replica has then caught up with Kafka.
func awaitReady(ctx context.Context, parts []app.Part) error {
	late := time.NewTimer(startTimeout)
	defer late.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	await := func(name, what string, is func() bool) error {
		for is != nil && !is() {
			select {
			case <-ctx.Done():
				return nil
			case <-late.C:
				return fmt.Errorf("the part %q is not %s after %s; start with --verbose to see why", name, what, startTimeout)
			case <-tick.C:
			}
		}
		return nil
	}
	for _, p := range parts {
		if err := await(p.Name, "ready", p.Ready); err != nil {
			return err
		}
	}
	for _, p := range parts {
		if err := await(p.Name, "up to date", p.Current); err != nil {
			return err
		}
	}
	return nil
}

// clean is nil when err comes from the user's Ctrl-C during the start.
func clean(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// reachable is where a client on this machine finds a listener.
func reachable(a *net.TCPAddr) string {
	if a.IP.IsUnspecified() {
		return fmt.Sprintf("127.0.0.1:%d", a.Port)
	}
	return a.String()
}
