package mailsink_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/internal/mailsink"
)

type answer struct {
	status int
	header http.Header
	body   string
}

func request(t *testing.T, s *mailsink.Sink, method, path, body string, headers ...string) answer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	data, err := io.ReadAll(w.Result().Body)
	require.NoError(t, err)
	return answer{w.Code, w.Header(), string(data)}
}

const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

func TestListAsJSON(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	empty := request(t, s, "GET", "/inbox", "", "Accept", "application/json")
	require.Equal(t, "[]\n", empty.body)
	require.NoError(t, send(s, []string{"a@example.com"}, "Subject: first\n\nx"))
	require.NoError(t, send(s, []string{"cenek@example.com"}, full))

	for _, path := range []string{"/inbox", "/inbox/"} {
		got := request(t, s, "GET", path, "", "Accept", "application/json")
		require.Equal(t, http.StatusOK, got.status)
		require.Equal(t, "application/json", got.header.Get("Content-Type"))
		var list []map[string]any
		require.NoError(t, json.Unmarshal([]byte(got.body), &list))
		require.Len(t, list, 2)
		require.Equal(t, []any{"cenek@example.com"}, list[0]["to"])
		require.Equal(t, "Grüße ✓", list[0]["subject"])
		require.Equal(t, "<1@outflow.example.com>", list[0]["message_id"])
		require.Contains(t, list[0]["text"], "Grüße")
		require.NotContains(t, list[0], "html")
		require.Equal(t, "first", list[1]["subject"])
		require.NotContains(t, list[1], "date")
	}
	got := request(t, s, "GET", "/inbox?limit=1", "", "Accept", "application/json")
	require.Contains(t, got.body, "Grüße")
	require.NotContains(t, got.body, "first")
	require.Equal(t, http.StatusBadRequest, request(t, s, "GET", "/inbox?limit=none", "", "Accept", "application/json").status)

	one := request(t, s, "GET", "/inbox/0000000002", "", "Accept", "application/json")
	require.Contains(t, one.body, `"html":"\u003cp\u003eGrüße`)
	require.Equal(t, http.StatusNotFound, request(t, s, "GET", "/inbox/9", "", "Accept", "application/json").status)
}

func TestPageShowsMail(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"", t.TempDir()} {
		s := start(t, mailsink.Config{Dir: dir})
		require.Contains(t, request(t, s, "GET", "/inbox", "", "Accept", browser).body, "No mail yet")
		require.NoError(t, send(s, []string{"cenek@example.com"}, full))
		list := request(t, s, "GET", "/inbox", "", "Accept", browser)
		require.Equal(t, "text/html; charset=utf-8", list.header.Get("Content-Type"))
		require.Contains(t, list.body, "Grüße ✓")
		require.Contains(t, list.body, `href="/inbox/0000000001"`)
		one := request(t, s, "GET", "/inbox/0000000001", "", "Accept", browser)
		require.Contains(t, one.body, "soft-wrapped.")
		require.Contains(t, one.body, `sandbox="" srcdoc="&lt;p&gt;Grüße&lt;/p&gt;"`)
		raw := request(t, s, "GET", "/inbox/0000000001/raw", "", "Accept", browser)
		require.Equal(t, crlf(full), raw.body)
		require.Equal(t, "text/plain; charset=utf-8", raw.header.Get("Content-Type"))
		require.Equal(t, http.StatusSeeOther, request(t, s, "GET", "/inbox/9", "", "Accept", browser).status)
		for _, asset := range []string{"/inbox/inbox.css", "/inbox/inbox.js"} {
			require.Equal(t, http.StatusOK, request(t, s, "GET", asset, "").status)
		}
	}
}

func TestPageIsOnlyBuiltAgainWhenSomethingChanged(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	tag := func() string { return request(t, s, "GET", "/inbox", "").header.Get("ETag") }
	first := tag()
	require.NotEmpty(t, first)
	require.Equal(t, http.StatusNotModified, request(t, s, "GET", "/inbox", "", "If-None-Match", first).status)
	require.NoError(t, send(s, []string{"a@example.com"}, "Subject: 1\n\nx"))
	second := tag()
	require.NotEqual(t, first, second)
	require.NoError(t, s.Fail(mailsink.Fault{Kind: mailsink.TempFail, Count: 3}))
	require.NotEqual(t, second, tag())
	require.Contains(t, request(t, s, "GET", "/inbox", "").body, "The next 3 mails will be answered with 451")
}

func TestNothingInAMailActsOnThePage(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	const evil = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>`
	require.NoError(t, send(s, []string{`"<script>alert(3)</script>"@example.com`}, "From: "+evil+"\nSubject: "+evil+
		"\nMessage-ID: "+evil+"\nContent-Type: multipart/alternative; boundary=b\n\n--b\n\n"+evil+
		"\n--b\nContent-Type: text/html\n\n</iframe>"+evil+"\n--b--\n"))
	for _, path := range []string{"/inbox", "/inbox/0000000001"} {
		got := request(t, s, "GET", path, "", "Accept", browser)
		require.Equal(t, http.StatusOK, got.status)
		require.NotContains(t, got.body, "<script>alert")
		require.NotContains(t, got.body, "<img")
		require.Equal(t, 1, strings.Count(got.body, "<script"), "only the page's own")
		require.Contains(t, got.header.Get("Content-Security-Policy"), "default-src 'none'; script-src 'self';")
		require.Equal(t, "nosniff", got.header.Get("X-Content-Type-Options"))
	}
}

func TestFaultsOverHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	post := func(body string, headers ...string) answer {
		return request(t, s, "POST", "/inbox/faults", body, append([]string{"Content-Type", "application/json"}, headers...)...)
	}
	require.Equal(t, "[]\n", request(t, s, "GET", "/inbox/faults", "").body)
	got := post(`{"kind":"permfail","count":2}`)
	require.Equal(t, http.StatusCreated, got.status)
	require.JSONEq(t, `[{"kind":"permfail","count":2,"at":"data"}]`, got.body)
	require.Equal(t, 550, code(t, send(s, []string{"a@example.com"}, "Subject: 1\n\nx")))
	require.JSONEq(t, `[{"kind":"permfail","count":1,"at":"data"}]`, request(t, s, "GET", "/inbox/faults", "").body)
	require.Equal(t, http.StatusNoContent, request(t, s, "DELETE", "/inbox/faults", "").status)
	require.Empty(t, s.Faults())

	require.Equal(t, http.StatusBadRequest, post(`{"kind":`).status)
	require.Equal(t, http.StatusBadRequest, post(`{"kind":"tempfail","count":1,"colour":"red"}`).status)
	require.Equal(t, http.StatusUnprocessableEntity, post(`{"kind":"tempfail"}`).status)
	require.Equal(t, http.StatusUnsupportedMediaType, post(`{"kind":"tempfail","count":1}`, "Content-Type", "text/plain").status)
	require.Equal(t, http.StatusForbidden, post(`{"kind":"tempfail","count":1}`, "Sec-Fetch-Site", "cross-site").status)
	require.Empty(t, s.Faults())
}

func TestClearOverHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, mailsink.Config{})
	require.NoError(t, send(s, []string{"a@example.com"}, "Subject: 1\n\nx"))
	require.Equal(t, http.StatusForbidden, request(t, s, "DELETE", "/inbox", "", "Sec-Fetch-Site", "cross-site").status)
	require.Len(t, s.Messages(), 1)
	require.Equal(t, http.StatusNoContent, request(t, s, "DELETE", "/inbox", "").status)
	require.Empty(t, s.Messages())
}
