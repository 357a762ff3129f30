// Package report is what a run of the harness found: as JSON, as text tables and
// as a plot.
package report

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/stats"
)

// A Report is one run.
type Report struct {
	Machine Machine       `json:"machine"`
	Rounds  int           `json:"rounds"`
	WarmUp  time.Duration `json:"warm_up_ns"`
	Window  time.Duration `json:"window_ns"`
	Results []Result      `json:"results"`
}

// A Result is one workload's.
type Result struct {
	Workload plan.Workload  `json:"workload"`
	Systems  []SystemResult `json:"systems"`
}

// A SystemResult is what one system did under one workload.
type SystemResult struct {
	System string `json:"system"`
	About  string `json:"about"`
	// Rounds are in order; round i of one system was run next to round i of the
	// others.
	Rounds []Round `json:"rounds"`
	// Median has each metric's median over the rounds, but the sum of those that
	// count messages.
	Median map[string]float64 `json:"median"`
	// Spread is how far apart the rounds are, as a fraction of the median.
	Spread map[string]float64 `json:"spread"`
	// Ratio has, by metric and by the other system's name, the median over the
	// rounds of this system's value divided by the other's.
	Ratio map[string]map[string]float64 `json:"ratio"`
}

// A Round is one measurement: metrics by name, see package plan, or an error.
type Round struct {
	Metrics map[string]float64 `json:"metrics,omitempty"`
	Err     string             `json:"err,omitempty"`
}

// Summary returns a few words about the round.
func (r Round) Summary(w plan.Workload) string {
	if r.Err != "" {
		return "FAILED: " + r.Err
	}
	switch w.Mode {
	case plan.Idle:
		return fmt.Sprintf("%s KiB a connection", digits(r.metric(plan.RSS)))
	case plan.Push:
		return fmt.Sprintf("%s messages/s, %s lost", short(r.metric(plan.Rate)), digits(r.metric(plan.Lost)))
	}
	return fmt.Sprintf("%s calls/s, p50 %s us, %s us of CPU a call",
		short(r.metric(plan.Rate)), digits(r.metric(plan.P50)), digits(r.metric(plan.CPU)))
}

// metric returns NaN for what was not measured.
func (r Round) metric(name string) float64 {
	if v, ok := r.Metrics[name]; ok {
		return v
	}
	return math.NaN()
}

// each returns the metric of every round, NaN where it is missing.
func (s *SystemResult) each(metric string) []float64 {
	var values []float64
	for _, r := range s.Rounds {
		values = append(values, r.metric(metric))
	}
	return values
}

// median returns NaN for what was not measured.
func (s *SystemResult) median(metric string) float64 {
	if v, ok := s.Median[metric]; ok {
		return v
	}
	return math.NaN()
}

// Add computes the result's medians and ratios and appends it.
func (rep *Report) Add(r Result) {
	byName := make(map[string]*SystemResult)
	for i := range r.Systems {
		byName[r.Systems[i].System] = &r.Systems[i]
	}
	for i := range r.Systems {
		s := &r.Systems[i]
		s.Median, s.Spread = make(map[string]float64), make(map[string]float64)
		for _, round := range s.Rounds {
			for metric := range round.Metrics {
				values := present(s.each(metric))
				s.Median[metric] = stats.Median(values)
				if metric == plan.Sent || metric == plan.Lost {
					s.Median[metric] = sum(values)
				} else if spread := stats.Spread(values); finite(spread) {
					s.Spread[metric] = spread
				}
			}
		}
		s.Ratio = make(map[string]map[string]float64)
		for _, metric := range r.Workload.Compare {
			ratios := make(map[string]float64)
			for _, ref := range r.Workload.Refs {
				other := byName[ref]
				if other == nil {
					continue
				}
				if ratio := stats.MedianRatio(s.each(metric), other.each(metric)); finite(ratio) {
					ratios[ref] = ratio
				}
			}
			s.Ratio[metric] = ratios
		}
	}
	rep.Results = append(rep.Results, r)
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func present(values []float64) []float64 {
	var some []float64
	for _, v := range values {
		if finite(v) {
			some = append(some, v)
		}
	}
	return some
}

func sum(values []float64) float64 {
	total := 0.0
	for _, v := range values {
		total += v
	}
	return total
}

// WriteFile writes the report as JSON.
func (rep *Report) WriteFile(name string) error {
	b, err := json.MarshalIndent(rep, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// ReadFile reads what WriteFile wrote.
func ReadFile(name string) (*Report, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	rep := new(Report)
	if err := json.Unmarshal(b, rep); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return rep, nil
}
