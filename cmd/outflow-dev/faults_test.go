package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/internal/mailsink"
)

func TestParseFaults(t *testing.T) {
	t.Parallel()
	all, err := parseFaults("tempfail:3, permfail:1,drop_after_data:2")
	require.NoError(t, err)
	require.Equal(t, []mailsink.Fault{{Kind: "tempfail", Count: 3}, {Kind: "permfail", Count: 1}, {Kind: "drop_after_data", Count: 2}}, all)
	all, err = parseFaults("")
	require.NoError(t, err)
	require.Empty(t, all)
	for _, s := range []string{"tempfail", "tempfail:0", "tempfail:x", "fire:1", "tempfail:1,,permfail:1", ":1"} {
		_, err := parseFaults(s)
		require.Error(t, err, s)
	}
}
