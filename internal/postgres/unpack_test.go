package postgres

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUntarStaysInItsFolder(t *testing.T) {
	t.Parallel()
	file := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}
	}
	for name, entries := range map[string][]tar.Header{
		"a file above":            {file("../evil")},
		"a file at the root":      {file("/evil")},
		"a folder above":          {{Name: "../evil", Typeflag: tar.TypeDir, Mode: 0o755}},
		"a link to above":         {link("a/b", "../../evil")},
		"a link to the root":      {link("a", "/evil")},
		"a link of links":         {link("a", "b/c"), link("b", "."), link("b/c", "../..")},
		"a hard link":             {file("a"), {Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}},
		"a device":                {{Name: "a", Typeflag: tar.TypeChar, Mode: 0o644}},
		"a file twice":            {file("a"), file("a")},
		"a file through its link": {file("a"), link("b", "a"), file("b")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range entries {
				require.NoError(t, w.WriteHeader(&h))
				if h.Size > 0 {
					_, err := w.Write([]byte("x"))
					require.NoError(t, err)
				}
			}
			require.NoError(t, w.Close())
			base := t.TempDir()
			require.NoError(t, os.Mkdir(filepath.Join(base, "in"), 0o700))
			root, err := os.OpenRoot(filepath.Join(base, "in"))
			require.NoError(t, err)
			defer func() { require.NoError(t, root.Close()) }()
			require.Error(t, untar(&b, root))
			requireOnly(t, base, "in")
			require.NoFileExists(t, "/evil")
		})
	}
}

func TestShow(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	report := Show(&b)
	report("waiting", 0, 0)
	report("waiting", 0, 0)
	for done := int64(0); done <= 10e6; done += 1e6 {
		report("fetching", done, 10e6)
	}
	report("unpacking", 9e6, 10e6)
	report("unpacking", 10e6, 10e6)
	require.Equal(t, "waiting\nfetching (10.0 MB)\nfetching: 25%\nfetching: 50%\nfetching: 75%\nfetching: 100%\nunpacking (10.0 MB)\nunpacking: 100%\n", b.String())

	b.Reset()
	bar := &bar{w: &b}
	bar.report("waiting", 0, 0)
	bar.report("fetching", 4e6, 10e6)
	bar.report("trying again", 0, 0)
	bar.report("fetching", 10e6, 10e6)
	bar.report("unpacking", 10e6, 10e6)
	text := b.String()
	require.True(t, strings.HasPrefix(text, "waiting\n"), text)
	require.Contains(t, text, "fetching   0%")
	require.Contains(t, text, "\ntrying again\n")
	require.Contains(t, text, "fetching 100%")
	require.Contains(t, text, "unpacking 100%")
	require.True(t, strings.HasSuffix(text, "\n"), text)
	require.NotPanics(t, func() { Show(io.Discard)("x", 1, 2) })
}
