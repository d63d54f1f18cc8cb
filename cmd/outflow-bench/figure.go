package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A figure is something to measure beside its limit.
type figure struct {
	name  string
	what  string
	limit string
	goals []goal
	// prepare makes what all rounds need. The first side is outflow's.
	prepare func(ctx context.Context, s *stand) ([]side, error)
}

// A side is one of the things that are measured in turns.
type side struct {
	name string
	run  func(ctx context.Context) (sample, error)
}

// A sample is what one run of a side came to.
type sample struct {
	PerSecond float64          `json:"per_second,omitempty"`
	P50       float64          `json:"p50_ms,omitempty"`
	P99       float64          `json:"p99_ms,omitempty"`
	Memory    map[string]int64 `json:"peak_rss_bytes,omitempty"` // by process
}

// rate is the sample of n things that were done since begun.
func rate(n int, begun time.Time) sample {
	return sample{PerSecond: float64(n) / time.Since(begun).Seconds()}
}

// withLatency adds what single things took, which it sorts.
func (s sample) withLatency(took []time.Duration) sample {
	if len(took) > 0 {
		slices.Sort(took)
		at := func(q float64) float64 { return took[int(q*float64(len(took)-1))].Seconds() * 1000 }
		s.P50, s.P99 = at(0.5), at(0.99)
	}
	return s
}

// A goal is what a value, taken of each round, is to be in the median.
type goal struct {
	of     string
	value  func(round []sample) float64
	atMost bool
	bound  float64
	unit   string
}

func (g goal) String() string {
	word := "at least"
	if g.atMost {
		word = "at most"
	}
	return fmt.Sprintf("%s %s %g%s", g.of, word, g.bound, g.unit)
}

func (g goal) met(v float64) bool {
	if g.atMost {
		return v <= g.bound
	}
	return v >= g.bound
}

// ofLimit wants the rate to be at least a part of the rate of another side.
func ofLimit(side int, name string, bound float64) goal {
	return goal{of: "rate / " + name, bound: bound, value: func(r []sample) float64 { return r[0].PerSecond / r[side].PerSecond }}
}

func rateOf(bound float64) goal {
	return goal{of: "rate", bound: bound, unit: "/s", value: func(r []sample) float64 { return r[0].PerSecond }}
}

func p50Under(bound float64) goal {
	return goal{of: "p50", bound: bound, unit: " ms", atMost: true, value: func(r []sample) float64 { return r[0].P50 }}
}

func p99Under(bound float64) goal {
	return goal{of: "p99", bound: bound, unit: " ms", atMost: true, value: func(r []sample) float64 { return r[0].P99 }}
}

func p50Over(side int, name string, bound float64) goal {
	return goal{of: "p50 - " + name + "'s", bound: bound, unit: " ms", atMost: true, value: func(r []sample) float64 { return r[0].P50 - r[side].P50 }}
}

func p99Over(side int, name string, bound float64) goal {
	return goal{of: "p99 - " + name + "'s", bound: bound, unit: " ms", atMost: true, value: func(r []sample) float64 { return r[0].P99 - r[side].P99 }}
}

// memoryUnder wants every process of outflow's to stay below.
func memoryUnder(megabytes float64) goal {
	return goal{of: "memory", bound: megabytes, unit: " MB", atMost: true, value: func(r []sample) float64 {
		var most int64
		for _, b := range r[0].Memory {
			most = max(most, b)
		}
		return float64(most) / 1e6
	}}
}

// spread is a median with the least and the greatest.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	v := slices.Sorted(slices.Values(values))
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (v[len(v)/2-1] + m) / 2
	}
	return spread{m, v[0], v[len(v)-1]}
}
