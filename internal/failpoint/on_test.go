//go:build failpoints

package failpoint

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	t.Parallel()
	all, err := parse("a=kill@3; b=error;")
	require.NoError(t, err)
	require.Equal(t, map[string]*point{"a": {action: "kill", at: 3}, "b": {action: "error", at: 1}}, all)
	for _, bad := range []string{"a", "a=explode", "a=kill@0", "a=kill@x"} {
		_, err := parse(bad)
		require.Error(t, err, bad)
	}
}
