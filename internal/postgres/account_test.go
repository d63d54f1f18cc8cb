package postgres

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Not parallel, as its subtests set variables.
func TestCacheHome(t *testing.T) {
	t.Run("in the user's cache folder", func(t *testing.T) {
		dir := openDir(t, nil)
		t.Setenv("HOME", dir)
		t.Setenv("XDG_CACHE_HOME", "")
		want, err := os.UserCacheDir() // not made yet
		require.NoError(t, err)
		got, err := CacheHome()
		require.NoError(t, err)
		require.Equal(t, filepath.Join(want, "outflow"), got)
	})
	t.Run("root's is closed to others", func(t *testing.T) {
		needsRoot(t)
		dir := openDir(t, nil)
		require.NoError(t, os.Chmod(dir, 0o700))
		t.Setenv("HOME", dir)
		t.Setenv("XDG_CACHE_HOME", "")
		got, err := CacheHome()
		require.NoError(t, err)
		require.Equal(t, "/var/cache/outflow", got)
	})
	t.Run("root has somebody else's home", func(t *testing.T) {
		needsRoot(t)
		t.Setenv("HOME", openDir(t, nobody(t)))
		t.Setenv("XDG_CACHE_HOME", "")
		got, err := CacheHome()
		require.NoError(t, err)
		require.Equal(t, "/var/cache/outflow", got)
	})
	t.Run("root has no home", func(t *testing.T) {
		needsRoot(t)
		t.Setenv("HOME", "")
		t.Setenv("XDG_CACHE_HOME", "")
		got, err := CacheHome()
		require.NoError(t, err)
		require.Equal(t, "/var/cache/outflow", got)
	})
}

func TestEnvironmentConfiguresNothing(t *testing.T) {
	t.Setenv("PGDATA", "/nowhere")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	t.Setenv("LANG", "de_DE.UTF-8")
	env := environment()
	require.Contains(t, env, "LC_ALL=C")
	require.NotContains(t, env, "LC_ALL=de_DE.UTF-8")
	require.NotContains(t, env, "LANG=de_DE.UTF-8")
	require.NotContains(t, env, "PGDATA=/nowhere")
	require.Contains(t, env, "PATH="+os.Getenv("PATH"))
}
