package app_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/cmd/internal/app"
)

func TestLoadConfigTellsEveryProblemAtOnceByName(t *testing.T) {
	t.Parallel()
	_, err := app.LoadConfig([]string{
		"OUTFLOW_POSTGRES_URL=mysql://root:secret@db/x",
		"OUTFLOW_POSTGRES_MAX_CONNS=many",
		"OUTFLOW_KAFKA_BROKERS=kafka-without-port",
		"OUTFLOW_MONGO_URI=mongodb://mongo:27017",
		"OUTFLOW_SMTP_TLS=maybe",
		"OUTFLOW_LOG_LEVEL=loud",
		"OUTFLOW_KAFKA_NAMESPACE=Has Spaces",
		"OUTFLOW_MAIL_RATE=many",
		"OUTFLOW_VELOCITY_WINDOW=0s",
	}, "OUTFLOW_POSTGRES_URL", "OUTFLOW_SMTP_ADDR")
	var ce *app.ConfigError
	require.ErrorAs(t, err, &ce)
	require.Len(t, ce.Problems, 10)
	for i, name := range []string{
		"OUTFLOW_KAFKA_BROKERS", "OUTFLOW_KAFKA_NAMESPACE", "OUTFLOW_LOG_LEVEL", "OUTFLOW_MAIL_RATE", "OUTFLOW_MONGO_URI",
		"OUTFLOW_POSTGRES_MAX_CONNS", "OUTFLOW_POSTGRES_URL", "OUTFLOW_SMTP_ADDR", "OUTFLOW_SMTP_TLS", "OUTFLOW_VELOCITY_WINDOW",
	} {
		require.Contains(t, ce.Problems[i], name)
	}
	require.NotContains(t, err.Error(), "secret")
}

func TestLoadConfigDefaultsAndLists(t *testing.T) {
	t.Parallel()
	c, err := app.LoadConfig([]string{"OUTFLOW_KAFKA_BROKERS=a:9092,b:9092", "OUTFLOW_LISTEN="})
	require.NoError(t, err)
	require.Equal(t, []string{"a:9092", "b:9092"}, c.KafkaBrokers)
	require.Equal(t, "127.0.0.1:8000", c.Listen, "an empty variable counts as unset")
	require.Equal(t, "outflow.customer.v1", c.Namespace().Topic("customer"))
	require.False(t, c.RequireIfMatch)
	require.Equal(t, "auto", c.RelaySource)
	_, err = app.LoadConfig([]string{"OUTFLOW_RELAY_SOURCE=magic"})
	require.ErrorContains(t, err, "OUTFLOW_RELAY_SOURCE must be one of auto, wal, poll")

	c, err = app.LoadConfig([]string{"OUTFLOW_REQUIRE_IF_MATCH=true"})
	require.NoError(t, err)
	require.True(t, c.RequireIfMatch)
	_, err = app.LoadConfig([]string{"OUTFLOW_REQUIRE_IF_MATCH=always"})
	require.ErrorContains(t, err, "OUTFLOW_REQUIRE_IF_MATCH is not a bool (true or false)")
}

func TestUnknownFindsMisspeltVariables(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"OUTFLOW_KAFKA_BROKER"}, app.Unknown([]string{
		"OUTFLOW_KAFKA_BROKER=x:1", "OUTFLOW_LISTEN=:1", "OUTFLOW_TEST_KAFKA=x", "OUTFLOW_POSTGRES_MIRROR=off", "PATH=/bin",
	}))
}
