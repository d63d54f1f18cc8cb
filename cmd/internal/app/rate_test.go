package app_test

import (
	"testing"

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
