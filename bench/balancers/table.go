package main

import (
	"fmt"
	"strings"
	"time"
)

// overview returns one table in markdown: of every setup and scenario the 99th percentile, and which part of
// the calls got no good answer.
func overview(all [][]result) string {
	var b strings.Builder
	b.WriteString("| p99 ms |")
	for _, of := range scenarios {
		fmt.Fprintf(&b, " %s |", of.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("--:|", len(scenarios)) + "\n")
	for k, how := range setups {
		fmt.Fprintf(&b, "| %s |", how.name)
		for i := range scenarios {
			fmt.Fprintf(&b, " %s%s |", ms(all[i][k].p99), failures(all[i][k]))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// table returns all results in markdown, one table for each scenario.
func table(all [][]result) string {
	var b strings.Builder
	for i, of := range scenarios {
		fmt.Fprintf(&b, "**%s**\n\n", of.name)
		b.WriteString("| | p50 ms | p99 ms | times healthy | p99.9 ms | given up | failed | " +
			"to those in trouble | work wasted |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
		for k, how := range setups {
			r := all[i][k]
			fmt.Fprintf(&b, "| %s | %s | %s | %.2f | %s | %s | %s | %s | %s |\n", how.name, ms(r.p50),
				ms(r.p99), float64(r.p99)/float64(healthy(all, i)), ms(r.p999), percent(r.late, r.calls),
				percent(r.failed, r.calls), share(r.toFaulty), share(r.wasted))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// healthy returns the 99th percentile of the default in the same world without trouble.
func healthy(all [][]result, scenario int) time.Duration {
	for i, of := range scenarios {
		if of.world == scenarios[scenario].world && of.trouble == (trouble{}) {
			return all[i][0].p99
		}
	}
	panic("a world without a scenario in which all are well")
}

func ms(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.0f", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.1f", d.Seconds()*1e3)
}

func percent(n, of int) string { return share(float64(n) / float64(max(of, 1))) }

func share(f float64) string {
	if f == 0 {
		return "0"
	}
	return fmt.Sprintf("%.2f%%", 100*f)
}
