package outflow_test

import (
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// docs/guarantees.md names tests and mutants: they are there, and every test
// that is named after a row of the failure table is in that row.
func TestGuaranteesNameWhatThereIs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/guarantees.md")
	require.NoError(t, err)
	tests, mutants := map[string]bool{}, map[string]bool{}
	test, mutant := regexp.MustCompile(`(?m)^func (Test\w+)\(`), regexp.MustCompile(`Mutant\("([\w.-]+)"\)`)
	require.NoError(t, fs.WalkDir(os.DirFS("."), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range test.FindAllSubmatch(source, -1) {
			tests[string(m[1])] = true
		}
		for _, m := range mutant.FindAllSubmatch(source, -1) {
			mutants[string(m[1])] = true
		}
		return err
	}))
	named := regexp.MustCompile("`(Test\\w+)`")
	for _, m := range named.FindAllStringSubmatch(string(page), -1) {
		require.True(t, tests[m[1]] || m[1] == "TestDefencesAreTested", "%s is not there", m[1])
	}
	rows := map[string]string{}
	for _, line := range regexp.MustCompile(`(?m)^\| (\d+) \|.*$`).FindAllStringSubmatch(string(page), -1) {
		rows[fmt.Sprintf("%02s", line[1])] = line[0]
		cells := strings.Split(line[0], "|")
		for _, m := range regexp.MustCompile("`([\\w.-]+)`").FindAllStringSubmatch(cells[5], -1) {
			require.True(t, mutants[m[1]], "mutant %s is not there", m[1])
		}
	}
	require.Len(t, rows, 24)
	for name := range tests {
		if m := regexp.MustCompile(`^TestRow(\d\d)`).FindStringSubmatch(name); m != nil {
			require.Contains(t, rows[m[1]], "`"+name+"`", "row %s does not name it", m[1])
		}
	}
	for name := range mutants {
		require.Contains(t, string(page), "`"+name+"`", "no row names this mutant")
	}
}
