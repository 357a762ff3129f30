package report

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/stats"
)

// column is a column of a table of medians.
type column struct {
	title  string
	metric string
	format func(float64) string
}

var cpuColumns = []column{
	{"CPU us/call", plan.CPU, digits}, {"client", plan.CPUClient, digits}, {"server", plan.CPUServer, digits},
	{"allocs/call", plan.Allocs, fixed1}, {"client", plan.AllocsClient, fixed1},
	{"server", plan.AllocsServer, fixed1},
	{"cores used", plan.Util, percent},
}

func columns(w plan.Workload) []column {
	switch w.Mode {
	case plan.Idle:
		return []column{{"KiB/connection", plan.RSS, fixed1}, {"before a collection", plan.RSSAsIs, fixed1}}
	case plan.Push:
		return append([]column{{"received/s", plan.Rate, short}, {"sent", plan.Sent, short},
			{"lost", plan.Lost, digits}}, cpuColumns...)
	}
	some := []column{{"calls/s", plan.Rate, short}, {"p50 us", plan.P50, digits},
		{"p99 us", plan.P99, digits}}
	if w.Data > 0 {
		some = append([]column{{"MB/s", plan.MBps, digits}}, some...)
	}
	return append(some, cpuColumns...)
}

// metricTitles name the metrics that are compared.
var metricTitles = map[string]string{
	plan.Rate:    "rate",
	plan.MBps:    "MB/s",
	plan.P50:     "p50",
	plan.P99:     "p99",
	plan.CPU:     "CPU",
	plan.RSS:     "memory",
	plan.RSSAsIs: "before a collection",
}

// WriteText writes the machine and all tables.
func (rep *Report) WriteText(w io.Writer) error {
	if _, err := io.WriteString(w, rep.Head()); err != nil {
		return err
	}
	for i := range rep.Results {
		if _, err := io.WriteString(w, "\n"+rep.Results[i].Text()); err != nil {
			return err
		}
	}
	return nil
}

// Head says how the run was done, and where.
func (rep *Report) Head() string {
	return fmt.Sprintf("%sMedians of %d rounds of %v each, after %v of warm-up.\n", rep.Machine, rep.Rounds,
		rep.Window, rep.WarmUp)
}

// Text returns the workload's tables: medians, and multiples of the systems that
// the others are compared with.
func (r *Result) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\n", r.Workload.Name, r.Workload.About)
	b.WriteString(r.medians().String())
	if ratios := r.ratios(); len(ratios[0]) > 1 {
		b.WriteString("\nas multiples of\n")
		b.WriteString(ratios.String())
	}
	b.WriteString(r.reflection())
	b.WriteString(r.failures())
	return b.String()
}

func (r *Result) medians() table {
	cols := columns(r.Workload)
	head := []string{"system"}
	for i, c := range cols {
		head = append(head, c.title)
		if i == 0 {
			head = append(head, "spread")
		}
	}
	t := table{head}
	for i := range r.Systems {
		s := &r.Systems[i]
		row := []string{s.System}
		for j, c := range cols {
			row = append(row, c.format(s.median(c.metric)))
			if j == 0 {
				spread, ok := s.Spread[c.metric]
				if !ok {
					spread = math.NaN()
				}
				row = append(row, percent(spread))
			}
		}
		t = append(t, row)
	}
	return t
}

func (r *Result) ratios() table {
	type pair struct{ metric, ref string }
	var pairs []pair
	head := []string{"system"}
	for _, metric := range r.Workload.Compare {
		first := true
		for _, ref := range r.Workload.Refs {
			if !r.compares(metric, ref) {
				continue
			}
			title := ref
			if first {
				title = metricTitles[metric] + ": " + ref
			}
			first = false
			head, pairs = append(head, title), append(pairs, pair{metric, ref})
		}
	}
	t := table{head}
	for i := range r.Systems {
		row := []string{r.Systems[i].System}
		for _, p := range pairs {
			v, ok := r.Systems[i].Ratio[p.metric][p.ref]
			if !ok {
				v = math.NaN()
			}
			row = append(row, digits(v))
		}
		t = append(t, row)
	}
	return t
}

// compares reports whether any system has a ratio to ref.
func (r *Result) compares(metric, ref string) bool {
	for i := range r.Systems {
		if _, ok := r.Systems[i].Ratio[metric][ref]; ok {
			return true
		}
	}
	return false
}

// reflection says what a controller costs against a plain function, if both were
// measured.
func (r *Result) reflection() string {
	var controller, function *SystemResult
	for i := range r.Systems {
		switch r.Systems[i].System {
		case "tp":
			controller = &r.Systems[i]
		case "tp-func":
			function = &r.Systems[i]
		}
	}
	if controller == nil || function == nil || r.Workload.Mode != plan.Calls {
		return ""
	}
	with, without := controller.each(plan.CPU), function.each(plan.CPU)
	var more []float64
	for i := range min(len(with), len(without)) {
		more = append(more, with[i]-without[i])
	}
	more = present(more)
	if len(more) == 0 {
		return ""
	}
	return fmt.Sprintf("\na controller costs %+.2f us of CPU a call against a plain function\n",
		stats.Median(more))
}

// failures lists the rounds that failed.
func (r *Result) failures() string {
	var b strings.Builder
	for i := range r.Systems {
		for n, round := range r.Systems[i].Rounds {
			if round.Err != "" {
				fmt.Fprintf(&b, "\n%s, round %d failed: %s", r.Systems[i].System, n+1, round.Err)
			}
		}
	}
	if b.Len() > 0 {
		b.WriteString("\n")
	}
	return b.String()
}

// table is rows of cells; the first row is the head.
type table [][]string

// String lays the table out: the first column to the left, the others to the
// right.
func (t table) String() string {
	widths := make([]int, len(t[0]))
	for _, row := range t {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range t {
		for i, cell := range row {
			if i == 0 {
				fmt.Fprintf(&b, "%-*s", widths[i], cell)
			} else {
				fmt.Fprintf(&b, "  %*s", widths[i], cell)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// missing stands for what was not measured.
const missing = "-"

// digits prints about three digits, and all of what is before the point.
func digits(v float64) string {
	switch {
	case !finite(v):
		return missing
	case v == 0 || math.Abs(v) >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case math.Abs(v) >= 0.1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// short prints three digits with k for thousands and M for millions.
func short(v float64) string {
	switch {
	case !finite(v):
		return missing
	case v >= 999500:
		return digits(v/1e6) + "M"
	case v >= 999.5:
		return digits(v/1e3) + "k"
	}
	return digits(v)
}

func fixed1(v float64) string {
	if !finite(v) {
		return missing
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

func percent(v float64) string {
	if !finite(v) {
		return missing
	}
	return strconv.FormatFloat(100*v, 'f', 0, 64) + "%"
}
