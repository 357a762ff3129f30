package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/henrylee2cn/teleport/bench/stats"
)

func TestFigures(t *testing.T) {
	var h stats.Hist
	for range 98 {
		h.Record(10 * time.Millisecond)
	}
	h.Record(20 * time.Millisecond)
	h.Record(40 * time.Millisecond)
	took := make(stats.Counts)
	h.AddTo(took)
	r := figures(answer{CPU: 50e6, Took: 2e9, Mallocs: 600, Failed: 3}, took, 20, 10_000)
	if r.CPU != 5 || r.Rate != 5_000 || r.Allocs != 30 || r.Failed != 3 || r.Delivered != 10_000 {
		t.Errorf("%+v", r)
	}
	for name, c := range map[string]struct{ got, want float64 }{
		"p50": {r.P50, 10}, "p99": {r.P99, 20}, "slowest": {r.Slowest, 40},
	} {
		if c.got < c.want*0.97 || c.got > c.want*1.04 {
			t.Errorf("%s is %v, want %v", name, c.got, c.want)
		}
	}
}

// cells returns the cells of the table's row that begins with the name.
func cells(t *testing.T, table, name string) []string {
	t.Helper()
	for line := range strings.Lines(table) {
		var row []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|\n "), "|") {
			row = append(row, strings.TrimSpace(cell))
		}
		if row[0] == name {
			return row
		}
	}
	t.Fatalf("%s has no row in\n%s", name, table)
	return nil
}

func TestTable(t *testing.T) {
	rounds := func(cpus ...float64) (all []round) {
		for _, c := range cpus {
			all = append(all, round{CPU: c, Allocs: 10, Rate: 1000, P50: 1, P99: 20})
		}
		return all
	}
	res := result{Members: 5, Systems: []outcome{
		{system: system{Name: floorOne, Burst: 1}, Rounds: rounds(2, 4, 8), PerMember: 1.5},
		{system: system{Name: floorMany, Burst: burst}, Rounds: rounds(1, 1, 1)},
		{system: system{Name: "some", Burst: burst}, Rounds: rounds(6, 12, 16)}, // 3, 3 and 2 times the floor
		{system: system{Name: "broken", Burst: 1}, Err: "it broke"},
	}}
	text := res.text()
	for _, want := range [][]string{
		{floorOne, "1", "4.00", "150%", "1.00", "4.00", "10.0", "1000", "1.00", "20.0", "1.50"},
		{"some", "20", "12.0", "83%", "3.00", "12.0", "10.0", "1000", "1.00", "20.0", "-"},
		{"broken", "1", "-", "-", "-", "-", "-", "-", "-", "-", "-"},
	} {
		if got := cells(t, text, want[0]); !slices.Equal(got, want) {
			t.Errorf("the row is %q, want %q", got, want)
		}
	}
	if !strings.Contains(text, "FAILED: broken: it broke\n") {
		t.Errorf("the failure is not in\n%s", text)
	}
	late := stalled{Members: 5, Systems: []besides{{system: system{Name: "some"},
		Without: []round{{P99: 2, Slowest: 3}}, With: []round{{P99: 8, Slowest: 900, Failed: 1}}}}}
	want := []string{"some", "2.00", "8.00", "4.00", "3.00", "900", "1.00"}
	if got := cells(t, late.text(), "some"); !slices.Equal(got, want) {
		t.Errorf("the row is %q, want %q", got, want)
	}
	f := findings{Results: []result{res}}
	requireError(t, f.failure(), "broken: it broke")
}
