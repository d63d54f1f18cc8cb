package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/cmd/internal/app"
)

// typing answers the question of a person at a terminal.
func typing(answer string) input { return input{strings.NewReader(answer), true} }

func TestResetAsksAtATerminal(t *testing.T) {
	t.Parallel()
	for answer, removes := range map[string]bool{
		"y\n": true, "yes\n": true, " YES \r\n": true, "Y": true, // the last one by Ctrl-D
		"n\n": false, "no\n": false, "\n": false, "": false, "yess\n": false, "\ny\n": false,
	} {
		dir, data := kept(t)
		var out bytes.Buffer
		require.NoError(t, reset(dir, false, typing(answer), &out))
		require.True(t, strings.HasPrefix(out.String(), "Remove "+data+" with all its data? [y/N] "), out.String())
		if removes {
			require.NoDirExists(t, data, "%q", answer)
			require.Contains(t, out.String(), "removed "+data+"\n")
			continue
		}
		require.FileExists(t, filepath.Join(data, "postgres", "PG_VERSION"), "%q", answer)
		require.Contains(t, out.String(), "nothing was removed\n")
	}
}

func TestResetWantsYesWhereNobodyIsAsked(t *testing.T) {
	t.Parallel()
	dir, data := kept(t)
	var out bytes.Buffer
	// What comes through a pipe is no answer, whatever it says.
	pipe, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pipe.Close()) })
	_, err = w.WriteString("y\n")
	require.NoError(t, err)
	require.NoError(t, w.Close())
	err = run(context.Background(), []string{"reset", "--data-dir", dir}, pipe, &out, &out)
	require.ErrorContains(t, err, "say --yes")
	var problem bytes.Buffer
	require.Equal(t, 2, app.ExitStatus(err, &problem))
	require.DirExists(t, data)
	require.Empty(t, out.String())

	require.NoError(t, run(context.Background(), []string{"reset", "--yes", "--data-dir", dir}, pipe, &out, &out))
	require.NoDirExists(t, data)
	require.Equal(t, "removed "+data+"\n", out.String())
	out.Reset()
	require.NoError(t, reset(dir, false, typing("y\n"), &out))
	require.Equal(t, "nothing to remove: there is no "+data+"\n", out.String())
	missing := filepath.Join(dir, "missing")
	out.Reset()
	require.NoError(t, reset(missing, false, typing("y\n"), &out))
	require.Equal(t, "nothing to remove: there is no "+missing+"\n", out.String())
	require.NoDirExists(t, missing)
}

// kept is a data directory with the data of an earlier run.
func kept(t *testing.T) (dir, data string) {
	t.Helper()
	dir = t.TempDir()
	data = filepath.Join(dir, "data")
	require.NoError(t, os.MkdirAll(filepath.Join(data, "postgres"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(data, "postgres", "PG_VERSION"), []byte("17\n"), 0o600))
	return dir, data
}
