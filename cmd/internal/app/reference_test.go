package app_test

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
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

// ofTests are variables that tests give to the processes that they start
// themselves: nobody else sets them.
var ofTests = []string{
	"OUTFLOW_PGTEST_CHILD", "OUTFLOW_POSTGRES_FETCH_FROM", "OUTFLOW_POSTGRES_HELPER_BIN", "OUTFLOW_POSTGRES_HELPER_DIR",
	"OUTFLOW_TEST_PATIENCE", "OUTFLOW_TEST_RELAY", "OUTFLOW_TEST_REPLICATOR",
}

// TestEveryVariableIsInTheReference looks for the names in all Go files, where
// they stand alone in quotes or behind env: of a tag, and holds them against the
// page, both ways.
func TestEveryVariableIsInTheReference(t *testing.T) {
	t.Parallel()
	const root = "../../.."
	used := map[string]bool{}
	name := regexp.MustCompile(`"(OUTFLOW_[A-Z_]*[A-Z])"`)
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		// The list itself is no use of it.
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "cmd/internal/app/reference.go") || strings.HasSuffix(path, "cmd/internal/app/reference_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range name.FindAllStringSubmatch(string(source), -1) {
			used[m[1]] = true
		}
		return err
	}))
	delete(used, "OUTFLOW_KAFKA_BROKER") // misspelt, for a test
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(OUTFLOW_[A-Z_]+)` \\|").FindAllStringSubmatch(app.Reference(), -1) {
		documented[m[1]] = true
		require.True(t, used[m[1]], "%s is in the reference, and nothing reads it", m[1])
	}
	for v := range used {
		require.True(t, documented[v] || slices.Contains(ofTests, v), "%s is not in the reference", v)
	}
}
