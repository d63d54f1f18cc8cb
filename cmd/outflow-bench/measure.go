package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what is written with --json.
type report struct {
	At       time.Time `json:"at"`
	Machine  machine   `json:"machine"`
	Rounds   int       `json:"rounds"`
	Scale    float64   `json:"scale"`
	Postgres string    `json:"postgres"`
	Kafka    string    `json:"kafka"`
	Mongo    string    `json:"mongodb"`
	Figures  []outcome `json:"figures"`
}

type machine struct {
	Cores int    `json:"cores"`
	OS    string `json:"os"`
	Go    string `json:"go"`
}

// outcome is a measured figure.
type outcome struct {
	Name  string        `json:"name"`
	What  string        `json:"what"`
	Limit string        `json:"limit"`
	Sides []sideOutcome `json:"sides"`
	Goals []goalOutcome `json:"goals"`
}

type sideOutcome struct {
	Name    string           `json:"name"`
	Rate    *spread          `json:"per_second,omitempty"`
	P50     *spread          `json:"p50_ms,omitempty"`
	P99     *spread          `json:"p99_ms,omitempty"`
	Memory  map[string]int64 `json:"peak_rss_bytes,omitempty"` // the most of all rounds
	Samples []sample         `json:"samples"`
}

type goalOutcome struct {
	Goal  string `json:"goal"`
	Value spread `json:"value"`
	Met   bool   `json:"met"`
}

// measure measures the figures one after the other and tells each as it is
// known.
func measure(ctx context.Context, chosen []figure, o options, stdout, stderr io.Writer) (err error) {
	s, err := newStand(ctx, o, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	rep := report{
		At: time.Now().UTC(), Machine: machine{runtime.NumCPU(), runtime.GOOS + "/" + runtime.GOARCH, runtime.Version()},
		Rounds: o.rounds, Scale: o.scale, Postgres: s.bin.Version, Kafka: s.kafkaIs(), Mongo: s.mongoIs(),
	}
	fmt.Fprintf(stdout, "%d cores, PostgreSQL %s, Kafka: %s, MongoDB: %s; medians of %d rounds (least to greatest)\n", rep.Machine.Cores, rep.Postgres, rep.Kafka, rep.Mongo, o.rounds)
	for _, f := range chosen {
		out, err := s.figure(ctx, f, o.rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		rep.Figures = append(rep.Figures, out)
		if err := out.print(stdout); err != nil {
			return err
		}
		if o.json == "" {
			continue
		}
		text, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(text, '\n'), 0o644); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}

// figure measures one figure. The sides take turns, and another one begins in
// every round.
func (s *stand) figure(ctx context.Context, f figure, rounds int) (out outcome, err error) {
	defer func() { err = errors.Join(err, s.tidy()) }()
	s.say("%s: preparing", f.name)
	sides, err := f.prepare(ctx, s)
	if err != nil {
		return out, err
	}
	var all [][]sample
	for round := range rounds + 1 {
		samples := make([]sample, len(sides))
		for i := range sides {
			at := (round + i) % len(sides)
			s.say("%s: round %d of %d, %s", f.name, round, rounds, sides[at].name)
			if samples[at], err = sides[at].run(ctx); err != nil {
				return out, fmt.Errorf("%s: %w", sides[at].name, err)
			}
		}
		if round > 0 { // the first warms everything up
			all = append(all, samples)
		}
	}
	s.say("")
	return conclude(f, sides, all), nil
}

// conclude makes medians of the rounds.
func conclude(f figure, sides []side, rounds [][]sample) outcome {
	out := outcome{Name: f.name, What: f.what, Limit: f.limit}
	for i, side := range sides {
		so := sideOutcome{Name: side.name}
		for _, r := range rounds {
			so.Samples = append(so.Samples, r[i])
			for name, bytes := range r[i].Memory {
				if so.Memory == nil {
					so.Memory = map[string]int64{}
				}
				so.Memory[name] = max(so.Memory[name], bytes)
			}
		}
		of := func(value func(sample) float64) *spread {
			var values []float64
			for _, s := range so.Samples {
				if v := value(s); v != 0 {
					values = append(values, v)
				}
			}
			if values == nil {
				return nil
			}
			sp := spreadOf(values)
			return &sp
		}
		so.Rate = of(func(s sample) float64 { return s.PerSecond })
		so.P50 = of(func(s sample) float64 { return s.P50 })
		so.P99 = of(func(s sample) float64 { return s.P99 })
		out.Sides = append(out.Sides, so)
	}
	for _, g := range f.goals {
		var values []float64
		for _, r := range rounds {
			values = append(values, g.value(r))
		}
		v := spreadOf(values)
		out.Goals = append(out.Goals, goalOutcome{g.String(), v, g.met(v.Median)})
	}
	return out
}

func (o outcome) print(w io.Writer) error {
	fmt.Fprintf(w, "\n%s: %s\n", o.Name, o.What)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  \tper second\tp50 ms\tp99 ms\tpeak memory")
	for _, s := range o.Sides {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\n", s.Name, s.Rate, s.P50, s.P99, megabytes(s.Memory))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, g := range o.Goals {
		verdict := "met"
		if !g.Met {
			verdict = "MISSED"
		}
		if _, err := fmt.Fprintf(w, "  %s: %s, %s\n", g.Goal, &g.Value, verdict); err != nil {
			return err
		}
	}
	return nil
}

func (s *spread) String() string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%s (%s-%s)", short(s.Median), short(s.Min), short(s.Max))
}

// short is a number with about three digits that count.
func short(v float64) string {
	switch {
	case v >= 10_000:
		return fmt.Sprintf("%.1fk", v/1000)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func megabytes(memory map[string]int64) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(memory)) {
		all = append(all, fmt.Sprintf("%s %d MB", name, memory[name]/1e6))
	}
	if all == nil {
		return "-"
	}
	return strings.Join(all, ", ")
}
