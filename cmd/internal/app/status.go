package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// StatusPart answers on OUTFLOW_HEALTH_LISTEN for a process: /livez as long as
// it runs, /readyz once every part does its work, /metrics for Prometheus, and
// /status/relay and the like for those that have more to tell. It stops with
// the parts.
func StatusPart(ln net.Listener, log *slog.Logger, parts ...Part) Part {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "live") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if waiting := notReady(parts); len(waiting) > 0 {
			answer(w, http.StatusServiceUnavailable, "not ready: "+strings.Join(waiting, ", "))
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry(parts), promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}))
	for _, p := range parts {
		if p.Status != nil {
			mux.Handle("GET /status/"+p.Name, p.Status)
		}
	}
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return Part{Name: "status", Run: func(ctx context.Context) error {
		failed := make(chan error, 1)
		go func() { failed <- srv.Serve(ln) }()
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
		}
		err := srv.Close()
		if serr := <-failed; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		return err
	}}
}

// ListenStatus opens the listener for [StatusPart]; nil when none is wanted.
func ListenStatus(cfg Config) (net.Listener, error) {
	if cfg.HealthListen == "" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", cfg.HealthListen)
	if err != nil {
		return nil, fmt.Errorf("can't answer on OUTFLOW_HEALTH_LISTEN=%s: %w", cfg.HealthListen, err)
	}
	return ln, nil
}

func notReady(parts []Part) []string {
	var names []string
	for _, p := range parts {
		if p.Ready != nil && !p.Ready() {
			names = append(names, p.Name)
		}
	}
	return names
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // whoever asked is gone
}

// healthTimeout is how long a process may take to say how it is.
const healthTimeout = 5 * time.Second

// AskHealth asks the process that runs with this configuration at path
// ("/readyz", "/livez"): on OUTFLOW_HEALTH_LISTEN, else where the API listens.
// It returns what the process says, as an error unless all is well.
func AskHealth(ctx context.Context, cfg Config, path string) (string, error) {
	addr := cfg.HealthListen
	if addr == "" {
		addr = cfg.Listen
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	url := "http://" + net.JoinHostPort(host, port) + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// Without a proxy: the process is in the same container.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %s: %s", url, resp.Status, strings.TrimSpace(string(said)))
	}
	return url + " answers " + resp.Status, nil
}
