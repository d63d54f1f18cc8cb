package app_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/cmd/internal/app"
)

func TestRunPartsStopsTheOthersWhenOneFails(t *testing.T) {
	t.Parallel()
	stopped := make(chan struct{})
	err := app.RunParts(t.Context(),
		app.Part{Name: "steady", Run: func(ctx context.Context) error { <-ctx.Done(); close(stopped); return nil }},
		app.Part{Name: "broken", Run: func(context.Context) error { return errors.New("no luck") }},
	)
	require.EqualError(t, err, "broken: no luck")
	<-stopped
}

func TestRunPartsIsCleanWhenTold(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, app.RunParts(ctx, app.Part{Name: "a", Run: func(ctx context.Context) error { <-ctx.Done(); return nil }}))
}

func TestRunPartsReportsAPartThatEndsByItself(t *testing.T) {
	t.Parallel()
	err := app.RunParts(t.Context(), app.Part{Name: "short", Run: func(context.Context) error { return nil }})
	require.EqualError(t, err, "short: stopped by itself")
}
