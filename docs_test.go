package outflow_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// documents are the texts that people read, by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	read := func(file string) {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		docs[file] = string(b)
	}
	read("README.md")
	read("CHANGELOG.md")
	require.NoError(t, filepath.WalkDir("docs", func(file string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(file, ".md") {
			read(file)
		}
		return err
	}))
	return docs
}

var (
	link     = regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	variable = regexp.MustCompile(`\bOUTFLOW_[A-Z_]*[A-Z]\b`)
	goFile   = regexp.MustCompile("`([a-z0-9_/]+_test\\.go)`")
)

func TestDocumentsNameWhatThereIs(t *testing.T) {
	t.Parallel()
	docs := documents(t)
	known := map[string]bool{}
	for _, name := range variable.FindAllString(docs["docs/configuration.md"], -1) {
		known[name] = true
	}
	for file, text := range docs {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if !strings.Contains(m[1], "://") {
				_, err := os.Stat(filepath.Join(filepath.Dir(file), m[1]))
				require.NoError(t, err, "%s links %s", file, m[1])
			}
		}
		for _, m := range goFile.FindAllStringSubmatch(text, -1) {
			require.FileExists(t, m[1], file)
		}
		for _, name := range variable.FindAllString(text, -1) {
			require.True(t, known[name] || strings.HasPrefix(name, "OUTFLOW_TEST_"), "%s names %s, which docs/configuration.md does not know", file, name)
		}
	}
}

func TestArchitectureNamesEveryPackage(t *testing.T) {
	t.Parallel()
	text := documents(t)["docs/architecture.md"]
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if name == module || len(p.GoFiles) == 0 {
			continue
		}
		// What is inside a package's folder belongs to that package.
		named := strings.Contains(text, "`"+name+"`") || strings.Contains(text, "`"+path.Dir(name)+"`")
		require.True(t, named, "docs/architecture.md does not say what %s owns", name)
	}
}

func TestEveryDecisionIsListed(t *testing.T) {
	t.Parallel()
	docs := documents(t)
	for file := range docs {
		if name, ok := strings.CutPrefix(file, "docs/decisions/"); ok && name != "README.md" {
			require.Contains(t, docs["docs/decisions/README.md"], "("+name+")")
		}
	}
}
