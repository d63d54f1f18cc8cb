package app_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"outflow/cmd/internal/app"
	"outflow/outbox"
)

func TestStatusAnswersForItsParts(t *testing.T) {
	t.Parallel()
	cfg := app.Config{HealthListen: "127.0.0.1:0"}
	ln, err := app.ListenStatus(cfg)
	require.NoError(t, err)
	cfg.HealthListen = ln.Addr().String()
	var ready atomic.Bool
	part := app.Part{Name: "relay", Ready: ready.Load, Figures: func() []app.Figure {
		return []app.Figure{{Name: "relay_published_total", Help: "Events.", Kind: prometheus.CounterValue, Value: 7}}
	}, Status: outbox.NewRelay(outbox.Config{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- app.StatusPart(ln, slog.New(slog.DiscardHandler), part).Run(ctx) }()

	_, err = app.AskHealth(t.Context(), cfg, "/readyz")
	require.ErrorContains(t, err, "503 Service Unavailable: not ready: relay")
	_, err = app.AskHealth(t.Context(), cfg, "/livez")
	require.NoError(t, err)
	ready.Store(true)
	said, err := app.AskHealth(t.Context(), cfg, "/readyz")
	require.NoError(t, err)
	require.Equal(t, "http://"+cfg.HealthListen+"/readyz answers 200 OK", said)

	resp, err := http.Get("http://" + cfg.HealthListen + "/metrics")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Contains(t, string(body), "# TYPE outflow_relay_published_total counter\noutflow_relay_published_total{part=\"relay\"} 7\n")
	require.Contains(t, string(body), "process_resident_memory_bytes")

	resp, err = http.Get("http://" + cfg.HealthListen + "/status/relay")
	require.NoError(t, err)
	body, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Contains(t, string(body), `"state": "stopped"`)

	cancel()
	require.NoError(t, <-done)
	_, err = app.AskHealth(t.Context(), cfg, "/livez")
	require.Error(t, err)
}

func TestHealthIsAskedOnTheOwnMachine(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(ln.Addr().String())
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	// No health address: the API's, and a listener on all addresses is on this one.
	_, err = app.AskHealth(t.Context(), app.Config{Listen: "0.0.0.0:" + port}, "/readyz")
	require.ErrorContains(t, err, "http://localhost:"+port+"/readyz")
}
