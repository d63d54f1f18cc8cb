package outflow_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "outflow"

// allowed is who may import what inside the module; docs/architecture.md shows
// it as a picture. A new package must find its place here.
var allowed = map[string][]string{
	"domain":     nil,
	"migrations": {"internal"},
	"api":        {"analytics", "domain", "store"},
	"store":      {"domain", "internal", "outbox"},
	"outbox":     {"domain", "internal"},
	"replicator": {"domain", "internal"},
	"notifier":   {"domain", "internal"},
	"confirmer":  {"domain", "internal", "store"},
	"analytics":  {"domain", "internal"},
	"simulator":  {"domain"},
	"verify":     {"domain", "internal", "outbox", "replicator", "store"},
	"internal":   {"domain", "internal", "migrations"},
	"cmd":        {"api", "analytics", "cmd", "confirmer", "domain", "internal", "migrations", "notifier", "outbox", "replicator", "simulator", "store", "verify"},
	"e2e":        {"domain", "internal"},
}

type pkg struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
	Doc        string
	GoFiles    []string
}

func list(t *testing.T, patterns ...string) []pkg {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Imports,Deps,Doc,GoFiles"}, patterns...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else {
			require.NoError(t, err)
		}
		pkgs = append(pkgs, p)
	}
}

func folder(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	top, _, _ := strings.Cut(rest, "/")
	return top
}

func TestImportsPointOneWay(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./...") {
		from := folder(p.ImportPath)
		if from == "" {
			continue
		}
		may, known := allowed[from]
		require.Truef(t, known, "folder %s has no place in the import rules", from)
		for _, imp := range p.Imports {
			if to := folder(imp); to != "" && to != from {
				require.Containsf(t, may, to, "%s must not import %s", p.ImportPath, imp)
			}
		}
	}
}

func TestDomainNeedsOnlyTheStandardLibrary(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "-deps", "./domain") {
		require.Truef(t, p.Standard || p.ImportPath == module+"/domain", "domain depends on %s", p.ImportPath)
	}
}

func TestProductionBinaryLinksNoFake(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "-deps", "./cmd/outflow") {
		for _, fake := range []string{
			module + "/internal/mongofake", module + "/internal/mailsink", module + "/internal/postgres", module + "/internal/pgtest",
			"github.com/twmb/franz-go/pkg/kfake", "github.com/256dpi/lungo", "testing",
		} {
			require.Falsef(t, p.ImportPath == fake || strings.HasPrefix(p.ImportPath, fake+"/"), "cmd/outflow links %s", p.ImportPath)
		}
	}
}

func TestEveryPackageSaysWhatItOwns(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) > 0 {
			require.NotEmptyf(t, p.Doc, "%s has no package comment", p.ImportPath)
		}
	}
}

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

func TestFilesStayReadable(t *testing.T) {
	t.Parallel()
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", "bin"}, d.Name()) {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		b, err := os.ReadFile(path)
		if generated.Match(b) {
			return err
		}
		require.LessOrEqualf(t, bytes.Count(b, []byte("\n")), 600, "%s is longer than 600 lines: split it by job", path)
		return err
	}))
}
