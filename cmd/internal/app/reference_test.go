package app_test

import (
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/cmd/internal/app"
)

var update = flag.Bool("update", false, "write the documents that are made from the code")

func TestConfigurationReferenceIsCurrent(t *testing.T) {
	t.Parallel()
	const file = "../../../docs/configuration.md"
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(app.Reference()), 0o644))
	}
	have, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, app.Reference(), string(have), "run: go test ./cmd/internal/app -update")
}
