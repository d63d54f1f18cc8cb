package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"outflow/cmd/internal/app"
	"outflow/simulator"
)

// simulationRate is the rate of --simulate, 0 when it isn't given.
func (o *flags) simulationRate() (float64, error) {
	if o.simulate == "" {
		return 0, nil
	}
	if o.servicesOnly {
		return 0, app.UsageError(errors.New("--simulate needs the API: leave out --services-only, or run 'outflow simulate'"))
	}
	rate, err := app.ParseRate(o.simulate)
	if err != nil {
		return 0, app.UsageError(fmt.Errorf("--simulate: %w", err))
	}
	return rate, nil
}

// simulation keeps a demo alive. Every start has a seed of its own, so that
// people who registered the last time are not the only ones there are.
func simulation(api string, rate float64) app.Part {
	var done atomic.Int64
	return app.Part{
		Name: "simulate",
		Done: func() string { return fmt.Sprint(done.Load(), " requests simulated") },
		Run: func(ctx context.Context) error {
			_, err := simulator.Run(ctx, simulator.Config{
				API: api, Customers: 1000, Rate: rate, Seed: uint64(time.Now().UnixNano()),
				Progress: func(p simulator.Progress) { done.Store(int64(p.Done)) },
			})
			if ctx.Err() != nil {
				return nil
			}
			return err
		},
	}
}
