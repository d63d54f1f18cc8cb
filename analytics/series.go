package analytics

import (
	"context"
	"fmt"
	"time"

	"outflow/domain"
)

// Metric is what a series shows.
type Metric string

// The metrics. An order belongs to the time of its confirmation, a refund to
// its own.
const (
	MetricOrders  Metric = "orders"
	MetricRevenue Metric = "revenue"
)

// Step is how much of time a point of a series stands for.
type Step string

// The steps: hours and days of UTC.
const (
	Hourly Step = "1h"
	Daily  Step = "24h"
)

var lengths = map[Step]time.Duration{Hourly: time.Hour, Daily: 24 * time.Hour}

// Series is a metric over a window. The first and the
// last point cover what of their hour or day is in the window, so that the
// points add up to the window's summary.
type Series struct {
	Window
	Metric Metric  `json:"metric"`
	Step   Step    `json:"step"`
	Points []Point `json:"data"`
}

// Point is one hour or day of a series.
type Point struct {
	Start   time.Time      `json:"start"`            // of the hour or day
	Orders  *int64         `json:"orders,omitempty"` // MetricOrders: how many were confirmed and not cancelled
	Revenue []domain.Money `json:"revenue,omitzero"` // MetricRevenue: per currency, refunds taken off
}

// Timeseries returns a metric in steps, without gaps.
func (r *Reader) Timeseries(ctx context.Context, metric Metric, step Step, window time.Duration) (Series, error) {
	length := lengths[step]
	if length == 0 || metric != MetricOrders && metric != MetricRevenue {
		return Series{}, fmt.Errorf("no series of %q by %s", metric, step)
	}
	v, err := r.begin(ctx, window)
	if err != nil {
		return Series{}, err
	}
	hourly, err := v.hourly(ctx, false)
	if err != nil {
		return Series{}, unavailable(err)
	}
	steps := map[time.Time]map[string]int64{}
	for hour, counters := range hourly {
		at := hour.Truncate(length)
		if steps[at] == nil {
			steps[at] = map[string]int64{}
		}
		for counter, n := range counters {
			steps[at][counter] += n
		}
	}
	s := Series{Window: v.Window, Metric: metric, Step: step, Points: []Point{}}
	span := v.span()
	for at := span.start.Truncate(length); at.Before(span.end); at = at.Add(length) {
		p := Point{Start: at}
		all := revenue(steps[at])
		if metric == MetricOrders {
			p.Orders = new(int64)
			for _, r := range all {
				*p.Orders += r.Orders
			}
		} else {
			p.Revenue = []domain.Money{}
			for _, r := range all {
				p.Revenue = append(p.Revenue, domain.Money{Amount: r.Amount, Currency: r.Currency})
			}
		}
		s.Points = append(s.Points, p)
	}
	return s, nil
}
