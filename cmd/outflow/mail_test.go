package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMessageIDsNameEvents(t *testing.T) {
	t.Parallel()
	const id = "01938f00-0000-7000-8000-000000000001"
	for _, s := range []string{id, "<" + id + "@outflow.shop.example>", id + "@outflow.shop.example", "<" + id + ".r12@outflow.shop.example>"} {
		got, err := parseMessageID(s)
		require.NoError(t, err, s)
		require.Equal(t, id, got.String(), s)
	}
	for args, want := range map[string]string{
		"mail eat":                 `unknown command "eat"`,
		"mail resend":              "usage: outflow mail resend EVENT",
		"mail resend <a@b.c>":      `"<a@b.c>" is neither an event's id nor the Message-ID`,
		"mail resend " + id:        "OUTFLOW_SMTP_ADDR is required",
		"mail resend " + id + " x": "usage: outflow mail resend EVENT",
	} {
		var out bytes.Buffer
		require.ErrorContains(t, run(t.Context(), strings.Fields(args), &out, &out, nil), want, args)
	}
}
