package harness

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/henrylee2cn/teleport/bench/payload"
	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/report"
	"github.com/henrylee2cn/teleport/bench/systems"
)

// Options says what to measure and for how long.
type Options struct {
	Systems   []systems.System
	Workloads []plan.Workload
	// Rounds is how often each system is measured under each workload.
	Rounds int
	// WarmUp is how long the load runs before it is measured, Window how long it
	// is measured.
	WarmUp, Window time.Duration
	// Profiles is a directory that gets profiles of the CPU, one for each side of
	// each measurement, of which a later round's replace the earlier; empty for
	// none.
	Profiles string
	// Progress is told about every measurement.
	Progress io.Writer
	// After is called with the report so far when a workload is through.
	After func(*report.Report) error
}

// Run measures. Within a workload the systems take turns, round after round, and
// each round begins with another system, so that what disturbs the machine for a
// while disturbs them alike. If ctx ends it returns what is complete.
func Run(ctx context.Context, o Options) (*report.Report, error) {
	rep := &report.Report{
		Machine: report.ThisMachine(),
		Rounds:  o.Rounds,
		WarmUp:  o.WarmUp,
		Window:  o.Window,
	}
	spins := payload.Calibrate()
	total, done := 0, 0
	for _, w := range o.Workloads {
		total += len(fitting(w, o.Systems)) * o.Rounds
	}
	for _, w := range o.Workloads {
		some := fitting(w, o.Systems)
		result := report.Result{Workload: w}
		for _, s := range some {
			result.Systems = append(result.Systems, report.SystemResult{System: s.Name, About: s.About,
				Rounds: make([]report.Round, o.Rounds)})
		}
		for round := range o.Rounds {
			for turn := range some {
				i := (round + turn) % len(some)
				c := cell{system: some[i], workload: w, warmUp: o.WarmUp, window: o.Window, spins: spins,
					profiles: o.Profiles}
				r := c.measure(ctx)
				if err := ctx.Err(); err != nil {
					return rep, err
				}
				result.Systems[i].Rounds[round] = r
				done++
				fmt.Fprintf(o.Progress, "[%d/%d] %s, round %d, %s: %s\n", done, total, w.Name, round+1,
					some[i].Name, r.Summary(w))
			}
		}
		rep.Add(result)
		if o.After != nil {
			if err := o.After(rep); err != nil {
				return rep, err
			}
		}
	}
	return rep, nil
}

func fitting(w plan.Workload, all []systems.System) []systems.System {
	var some []systems.System
	for _, s := range all {
		if w.Fits(s) {
			some = append(some, s)
		}
	}
	return some
}
