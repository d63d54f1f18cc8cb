package simulator

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Report is what a simulation made.
type Report struct {
	Seed      uint64           `json:"seed"`
	Seconds   float64          `json:"seconds"`
	Requests  int              `json:"requests"`
	PerSecond float64          `json:"requests_per_second"`
	Made      map[Kind]int     `json:"made"`    // accepted, by kind
	Refused   map[string]int   `json:"refused"` // by kind and problem type
	Failed    map[string]int   `json:"failed"`  // by kind and what happened: no answer, or a 5xx status
	Skipped   map[Kind]int     `json:"skipped"` // not asked for, since what they needed was refused
	Latency   map[Kind]Latency `json:"latency"` // of answered requests
	All       Latency          `json:"latency_all"`
}

// Latency is how long requests took, in milliseconds.
type Latency struct {
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

type collector struct {
	mu       sync.Mutex
	begun    int
	ended    int
	made     map[Kind]int
	refused  map[string]int
	failed   map[string]int
	skipped  map[Kind]int
	nRefused int
	nFailed  int
	took     map[Kind][]time.Duration
}

func newCollector() *collector {
	return &collector{
		made: map[Kind]int{}, refused: map[string]int{}, failed: map[string]int{}, skipped: map[Kind]int{},
		took: map[Kind][]time.Duration{},
	}
}

func (c *collector) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun++
}

// end notes an answer: its status (0 for none) and, for a problem, its type.
func (c *collector) end(kind Kind, status int, problem string, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended++
	if status > 0 {
		c.took[kind] = append(c.took[kind], took)
	}
	switch {
	case status >= 200 && status < 300:
		c.made[kind]++
	case status >= 400 && status < 500:
		c.nRefused++
		c.refused[string(kind)+": "+strings.TrimPrefix(problem, "/problems/")]++
	case status > 0:
		c.nFailed++
		c.failed[fmt.Sprintf("%s: status %d", kind, status)]++
	default:
		c.nFailed++
		c.failed[string(kind)+": "+problem]++
	}
}

func (c *collector) skip(kind Kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended++
	c.skipped[kind]++
}

func (c *collector) progress(elapsed time.Duration) Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Progress{
		Elapsed: elapsed, Done: c.ended, Refused: c.nRefused, Failed: c.nFailed, InFlight: c.begun - c.ended,
		PerSecond: float64(c.ended) / elapsed.Seconds(),
	}
}

func (c *collector) report(cfg Config, elapsed time.Duration) Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := Report{
		Seed: cfg.Seed, Seconds: elapsed.Seconds(), Requests: c.ended, PerSecond: float64(c.ended) / elapsed.Seconds(),
		Made: c.made, Refused: c.refused, Failed: c.failed, Skipped: c.skipped, Latency: map[Kind]Latency{},
	}
	var all []time.Duration
	for kind, took := range c.took {
		r.Latency[kind] = latency(took)
		all = append(all, took...)
	}
	r.All = latency(all)
	return r
}

// latency takes percentiles by the nearest rank.
func latency(took []time.Duration) Latency {
	if len(took) == 0 {
		return Latency{}
	}
	took = slices.Sorted(slices.Values(took))
	at := func(p int) float64 {
		rank := (len(took)*p + 99) / 100
		return float64(took[max(rank, 1)-1].Microseconds()) / 1000
	}
	return Latency{P50: at(50), P95: at(95), P99: at(99), Max: at(100)}
}

// Print writes the report for people.
func (r Report) Print(w io.Writer) {
	fmt.Fprintf(w, "%d requests in %.1f s (%.1f/s), seed %d\n\n", r.Requests, r.Seconds, r.PerSecond, r.Seed)
	fmt.Fprintf(w, "  %-10s %8s %10s %10s %10s %10s\n", "", "made", "p50 ms", "p95 ms", "p99 ms", "max ms")
	row := func(name string, made int, l Latency) {
		fmt.Fprintf(w, "  %-10s %8d %10.1f %10.1f %10.1f %10.1f\n", name, made, l.P50, l.P95, l.P99, l.Max)
	}
	total := 0
	for _, k := range Kinds {
		if l, any := r.Latency[k]; any {
			row(string(k), r.Made[k], l)
			total += r.Made[k]
		}
	}
	row("all", total, r.All)
	list := func(title string, counts map[string]int) {
		if len(counts) == 0 {
			return
		}
		fmt.Fprintf(w, "\n%s:\n", title)
		for _, k := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(w, "  %6d  %s\n", counts[k], k)
		}
	}
	list("Refused by the service", r.Refused)
	list("Failed", r.Failed)
	skipped := map[string]int{}
	for k, n := range r.Skipped {
		skipped[string(k)] = n
	}
	list("Not asked for, since what they needed was refused", skipped)
}
