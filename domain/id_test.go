package domain_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"outflow/domain"
)

func TestParseID(t *testing.T) {
	t.Parallel()
	const text = "01938f00-0aBc-7DEF-8000-00000000000f"
	id, err := domain.ParseID(text)
	require.NoError(t, err)
	require.Equal(t, strings.ToLower(text), id.String())
	require.Equal(t, id, domain.MustParseID(id.String()))
	require.False(t, id.IsZero())
	require.True(t, domain.ID{}.IsZero())
	appended, err := id.AppendText([]byte("id="))
	require.NoError(t, err)
	require.Equal(t, "id="+id.String(), string(appended))

	for _, bad := range []string{
		"", " ", text[1:], text + "0", "{" + text + "}", "urn:uuid:" + text, strings.ReplaceAll(text, "-", ""),
		"g1938f00-0abc-7def-8000-00000000000f", "01938f000-abc-7def-8000-00000000000f", "01938f00-0abc-7def-8000_00000000000f",
		"01938f00-0abc-7def-8000-0000000000\u00e9", "--------------------------------------"[:36],
	} {
		_, err := domain.ParseID(bad)
		require.Error(t, err, "%q", bad)
		if bad != "" && bad != " " {
			require.NotContains(t, err.Error(), bad)
		}
	}
	require.Panics(t, func() { domain.MustParseID("x") })
}

func TestIDsInJSON(t *testing.T) {
	t.Parallel()
	id := domain.MustParseID("01938f00-0abc-7def-8000-00000000000f")
	b, err := json.Marshal(map[domain.ID]domain.ID{id: id})
	require.NoError(t, err)
	require.JSONEq(t, `{"01938f00-0abc-7def-8000-00000000000f":"01938f00-0abc-7def-8000-00000000000f"}`, string(b))
	var back map[domain.ID]domain.ID
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, id, back[id])
	require.Error(t, json.Unmarshal([]byte(`"x"`), &id))
	require.Equal(t, "01938f00-0abc-7def-8000-00000000000f", id.String(), "a failed read changes nothing")
}

func TestTimestampIsUTCInMilliseconds(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 4, 5, 6, 7_999_999, time.FixedZone("", -3600))
	require.Equal(t, time.Date(2026, 11, 21, 5, 5, 6, 7e6, time.UTC), domain.Timestamp(at))
	now := domain.Timestamp(time.Now())
	require.Equal(t, now, now.Round(0), "no monotonic clock, which == would compare")
}

func FuzzParseID(f *testing.F) {
	f.Add("01938f00-0abc-7def-8000-00000000000f")
	f.Add("01938F00-0ABC-7DEF-8000-00000000000F")
	f.Add("urn:uuid:01938f00-0abc-7def-8000-00000000000f")
	f.Add("{01938f00-0abc-7def-8000-00000000000f}")
	f.Add("-------------------------------------")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := domain.ParseID(s)
		// A library that also takes other forms must agree on this one.
		want, wantErr := uuid.Parse(s)
		if len(s) != 36 {
			require.Error(t, err)
			return
		}
		require.Equal(t, wantErr == nil, err == nil, "%q", s)
		if err == nil {
			require.Equal(t, want[:], id[:])
			require.Equal(t, strings.ToLower(s), id.String())
		} else {
			require.True(t, id.IsZero())
		}
	})
}
