package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/henrylee2cn/teleport/bench/report"
	"github.com/henrylee2cn/teleport/bench/stats"
)

// findings is everything that was measured.
type findings struct {
	Machine report.Machine `json:"machine"`
	Client  string         `json:"client"`
	Results []result       `json:"results,omitempty"`
	Stalled []stalled      `json:"stalled,omitempty"`
}

func (f *findings) writeFile(name string) error {
	b, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// each returns one number of all rounds.
func each(rounds []round, of func(round) float64) []float64 {
	var list []float64
	for _, r := range rounds {
		list = append(list, of(r))
	}
	return list
}

func cpu(r round) float64     { return r.CPU }
func allocs(r round) float64  { return r.Allocs }
func rate(r round) float64    { return r.Rate }
func p50(r round) float64     { return r.P50 }
func p99(r round) float64     { return r.P99 }
func slowest(r round) float64 { return r.Slowest }

func median(rounds []round, of func(round) float64) float64 { return stats.Median(each(rounds, of)) }

// floor returns the rounds of the floor that sends so many messages at a time; nil if there are none.
func (r *result) floor(burst int) []round {
	name := floorOne
	if burst > 1 {
		name = floorMany
	}
	for _, s := range r.Systems {
		if s.Name == name {
			return s.Rounds
		}
	}
	return nil
}

// text is the table of the result. Multiples are medians of the rounds' own quotients.
func (r *result) text() string {
	t := newTable(fmt.Sprintf("%d members, messages of %d bytes", r.Members, messageSize),
		"system", "at a time", "CPU us/delivery", "spread", "times floor", "times floor20", "allocs/message",
		"deliveries/s", "p50 ms", "p99 ms", "KiB/member")
	for _, s := range r.Systems {
		cpus := each(s.Rounds, cpu)
		t.row(s.Name, fmt.Sprint(s.Burst), number(stats.Median(cpus)), percent(stats.Spread(cpus)),
			number(stats.MedianRatio(cpus, each(r.floor(1), cpu))),
			number(stats.MedianRatio(cpus, each(r.floor(burst), cpu))), number(median(s.Rounds, allocs)),
			number(median(s.Rounds, rate)), number(median(s.Rounds, p50)), number(median(s.Rounds, p99)),
			number(orNaN(s.PerMember)))
	}
	for _, s := range r.Systems {
		t.failure(s.Name, s.Err)
	}
	return t.String()
}

// text is the table of what the members have that read.
func (r *stalled) text() string {
	t := newTable(fmt.Sprintf("%d members, one of whom does not read: how long %d messages take to the "+
		"others, and to all when all read", r.Members, stalledMessages),
		"system", "p99 ms, all read", "p99 ms", "times", "slowest ms, all read", "slowest ms",
		"deliveries that failed")
	for _, s := range r.Systems {
		t.row(s.Name, number(median(s.Without, p99)), number(median(s.With, p99)),
			number(stats.MedianRatio(each(s.With, p99), each(s.Without, p99))),
			number(median(s.Without, slowest)), number(median(s.With, slowest)),
			number(median(s.With, func(r round) float64 { return float64(r.Failed) })))
	}
	for _, s := range r.Systems {
		t.failure(s.Name, s.Err)
	}
	return t.String()
}

// table is a table in the form of Markdown, with something below it.
type table struct {
	out   strings.Builder
	rows  *tabwriter.Writer
	below strings.Builder
}

func newTable(title string, columns ...string) *table {
	t := &table{}
	fmt.Fprintf(&t.out, "\n%s\n\n", title)
	t.rows = tabwriter.NewWriter(&t.out, 0, 0, 1, ' ', 0)
	t.row(columns...)
	lines := make([]string, len(columns))
	for i := range lines {
		lines[i] = "---"
	}
	t.row(lines...)
	return t
}

func (t *table) row(cells ...string) { fmt.Fprintf(t.rows, "| %s\t|\n", strings.Join(cells, "\t| ")) }

func (t *table) failure(name, err string) {
	if err != "" {
		fmt.Fprintf(&t.below, "FAILED: %s: %s\n", name, err)
	}
}

func (t *table) String() string {
	t.rows.Flush()
	return t.out.String() + t.below.String()
}

// number has three digits that count, or all of those before the point.
func number(v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	digits := 2
	for size := 10.0; digits > 0 && math.Abs(v) >= size; size *= 10 {
		digits--
	}
	return fmt.Sprintf("%.*f", digits, v)
}

func percent(v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*v)
}

// orNaN is NaN for zero, which stands for what was not measured.
func orNaN(v float64) float64 {
	if v == 0 {
		return math.NaN()
	}
	return v
}
