package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		line    string
		version string
		major   int
	}{
		{"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", "15.18", 15},
		{"postgres (PostgreSQL) 14.0\n", "14.0", 14},
		{"postgres (PostgreSQL) 17.6 (Homebrew)\n", "17.6", 17},
		{"postgres (PostgreSQL) 18beta1\n", "18beta1", 18},
		{"postgres (PostgreSQL) 19devel\n", "19devel", 19},
		{"postgres (PostgreSQL) 9.6.24\n", "9.6.24", 9},
		{"postgres (EnterpriseDB Advanced Server) 16.4.1\n", "16.4.1", 16},
		{"psql (PostgreSQL) 15.18\n", "", 0},
		{"postgres (PostgreSQL)\n", "", 0},
		{"postgres (PostgreSQL) 99999999999999999999\n", "", 0},
		{"", "", 0},
	} {
		version, major, err := parseVersion(tc.line)
		require.Equal(t, tc.major == 0, err != nil, "%q: %v", tc.line, err)
		require.Equal(t, tc.version, version, tc.line)
		require.Equal(t, tc.major, major, tc.line)
	}
}

// install makes programs that only know their version.
func install(t *testing.T, dir, version string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	script := fmt.Sprintf("#!/bin/sh\necho 'postgres (PostgreSQL) %s'\n", version)
	for _, program := range []string{"postgres", "initdb"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755))
	}
	dir, err := filepath.EvalSymlinks(dir)
	require.NoError(t, err)
	return dir
}

func TestFind(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	v9 := install(t, filepath.Join(base, "lib/9.6/bin"), "9.6.24")
	v14 := install(t, filepath.Join(base, "lib/14/bin"), "14.12")
	v17 := install(t, filepath.Join(base, "lib/17/bin"), "17.6")
	noInitdb := install(t, filepath.Join(base, "lib/18/bin"), "18.1")
	require.NoError(t, os.Remove(filepath.Join(noInitdb, "initdb")))
	links := filepath.Join(base, "links")
	require.NoError(t, os.MkdirAll(links, 0o755))
	require.NoError(t, os.Symlink(filepath.Join(v14, "postgres"), filepath.Join(links, "postgres")))
	usual := []string{filepath.Join(base, "nothing/*/bin"), filepath.Join(base, "lib/*/bin")}

	t.Run("the newest of the usual places", func(t *testing.T) {
		t.Parallel()
		b, err := find("", usual, "")
		require.NoError(t, err)
		require.Equal(t, Binaries{Dir: v17, Version: "17.6", Major: 17}, b)
	})
	t.Run("the path first, through a link to one program", func(t *testing.T) {
		t.Parallel()
		b, err := find(links, usual, "")
		require.NoError(t, err)
		require.Equal(t, Binaries{Dir: v14, Version: "14.12", Major: 14}, b)
	})
	t.Run("not the path's when that is too old", func(t *testing.T) {
		t.Parallel()
		b, err := find(v9, usual, "")
		require.NoError(t, err)
		require.Equal(t, v17, b.Dir)
	})
	t.Run("only too old ones", func(t *testing.T) {
		t.Parallel()
		_, err := find(v9, nil, "")
		require.ErrorIs(t, err, ErrNotFound)
		require.ErrorContains(t, err, "install it")
		require.ErrorContains(t, err, "too old: 9.6.24 in "+v9)
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		_, err := find("", []string{filepath.Join(base, "nothing/*/bin")}, "")
		require.ErrorIs(t, err, ErrNotFound)
	})
	t.Run("a folder that was named, and no other", func(t *testing.T) {
		t.Parallel()
		b, err := Find(v14)
		require.NoError(t, err)
		require.Equal(t, 14, b.Major)
		_, err = Find(v9)
		require.ErrorContains(t, err, "9.6.24: 14 or newer is needed")
		_, err = Find(noInitdb)
		require.ErrorContains(t, err, "initdb is not there")
		_, err = Find(base)
		require.ErrorContains(t, err, "postgres is not there")
	})
}

func TestFindOnThisMachine(t *testing.T) {
	t.Parallel()
	needsServer(t)
	b, err := Find("")
	require.NoError(t, err)
	require.GreaterOrEqual(t, b.Major, MinMajor)
	again, err := Find(b.Dir)
	require.NoError(t, err)
	require.Equal(t, b, again)
}
