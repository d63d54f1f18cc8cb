package postgres

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFetchedRuns fetches the real archive, from Maven Central or from what
// MirrorEnv names, and runs what it holds.
func TestFetchedRuns(t *testing.T) {
	t.Parallel()
	if os.Getenv("OUTFLOW_TEST_FETCH") == "" {
		t.Skip("OUTFLOW_TEST_FETCH=1 makes it fetch some 15 MB")
	}
	run := func(t *testing.T, cred *syscall.Credential) {
		base := openDir(t, cred)
		dir := filepath.Join(base, "cache")
		f, err := newFetcher(os.Getenv(MirrorEnv), nil)
		require.NoError(t, err)
		cmd, lines := startFetch(t, f.mirror.String(), f.archive, dir, cred)
		t.Log(rest(t, cmd, lines))
		b, err := fetchedIn(dir)
		require.NoError(t, err)
		require.Equal(t, 17, b.Major)

		h := startHelper(t, filepath.Join(base, "server"), cred, helperBin+"="+b.Dir, "HOME=/nonexistent")
		require.Contains(t, query1(t, h.url, `SELECT version()`), "PostgreSQL "+b.Version+" ")
		want := uint32(os.Geteuid())
		if a, err := newAccount(); cred != nil {
			want = cred.Uid
		} else if a.cred != nil {
			require.NoError(t, err)
			want = a.cred.Uid
		}
		require.Equal(t, want, uidOf(t, h.pid))
		exec1(t, h.url, `CREATE TABLE t (v text); CREATE PUBLICATION p FOR TABLE t`)
		exec1(t, h.url, `SELECT pg_create_logical_replication_slot('s', 'pgoutput')`)
		exec1(t, h.url, `INSERT INTO t VALUES ('ÄÖ')`)
		require.Equal(t, "t", query1(t, h.url,
			`SELECT (count(*) > 0)::text::char FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')`))
		require.Equal(t, "äö", query1(t, h.url, `SELECT lower(v) FROM t`))
	}
	t.Run("as this user", func(t *testing.T) {
		t.Parallel()
		run(t, nil)
	})
	t.Run("as an ordinary user", func(t *testing.T) {
		t.Parallel()
		needsRoot(t)
		run(t, nobody(t))
	})
}
