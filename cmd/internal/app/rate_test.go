package app_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"outflow/cmd/internal/app"
)

func TestParseRate(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]float64{"50/s": 50, "90/m": 1.5, "3600/h": 1, "0.5/s": 0.5, "7": 7} {
		got, err := app.ParseRate(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "/s", "-1/s", "0/s", "fast", "5/d", "NaN/s", "Inf"} {
		_, err := app.ParseRate(in)
		require.Error(t, err, in)
	}
}

func TestParseLimit(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{"20/m": time.Minute, "20/s": time.Second, "20/h": time.Hour} {
		n, per, err := app.ParseLimit(in)
		require.NoError(t, err, in)
		require.Equal(t, 20, n)
		require.Equal(t, want, per)
	}
	n, per, err := app.ParseLimit("")
	require.NoError(t, err)
	require.Zero(t, n)
	require.Zero(t, per)
	for _, in := range []string{"20", "/m", "0/m", "-1/m", "1.5/m", "20/d", "20/m/s", "9999999999/s"} {
		_, _, err := app.ParseLimit(in)
		require.Error(t, err, in)
	}
}
