package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/report"
	"github.com/henrylee2cn/teleport/bench/stats"
	"github.com/henrylee2cn/teleport/bench/systems"
	"github.com/henrylee2cn/teleport/bench/usage"
)

func TestMain(m *testing.M) {
	RunChild() // the processes that Run starts are this test's program again
	os.Exit(m.Run())
}

// Every system, server and client as processes, for a moment. The callers check
// the answers.
func TestEverySystem(t *testing.T) {
	calls := plan.Workload{Name: "calls", Mode: plan.Calls, Conns: 2, Callers: 3, Refs: []string{"grpc"},
		Compare: []string{plan.Rate}}
	push := plan.Workload{Name: "push", Mode: plan.Push, Conns: 1, Callers: 2}
	var progress bytes.Buffer
	after := 0
	rep, err := Run(t.Context(), Options{
		Systems: systems.All(), Workloads: []plan.Workload{calls, push}, Rounds: 1,
		WarmUp: 10 * time.Millisecond, Window: 60 * time.Millisecond, Progress: &progress,
		After: func(*report.Report) error { after++; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if after != 2 || len(rep.Results) != 2 {
		t.Fatalf("%d results, told %d times", len(rep.Results), after)
	}
	for _, result := range rep.Results {
		for _, s := range result.Systems {
			r := s.Rounds[0]
			if r.Err != "" {
				t.Errorf("%s, %s: %s", result.Workload.Name, s.System, r.Err)
				continue
			}
			var positive []string
			switch result.Workload.Mode {
			case plan.Calls:
				positive = []string{plan.Rate, plan.P50, plan.P99, plan.AllocsClient, plan.AllocsServer}
			case plan.Push:
				positive = []string{plan.Rate, plan.Sent}
				if lost, ok := r.Metrics[plan.Lost]; !ok || lost != 0 {
					t.Errorf("%s: %v of %v messages lost", s.System, lost, r.Metrics[plan.Sent])
				}
			}
			for _, metric := range positive {
				if v := r.Metrics[metric]; !(v > 0) {
					t.Errorf("%s, %s: %s is %v", result.Workload.Name, s.System, metric, v)
				}
			}
		}
	}
	if lines := strings.Count(progress.String(),
		"\n"); lines != len(systems.All())+len(rep.Results[1].Systems) {
		t.Errorf("%d lines of progress:\n%s", lines, &progress)
	}
}

func TestIdle(t *testing.T) {
	some, err := plan.Systems("tp,grpc")
	if err != nil {
		t.Fatal(err)
	}
	idle := plan.Workload{Name: "idle", Mode: plan.Idle, Conns: 50, Callers: 1}
	rep, err := Run(t.Context(), Options{Systems: some, Workloads: []plan.Workload{idle}, Rounds: 1,
		Progress: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range rep.Results[0].Systems {
		r := s.Rounds[0]
		if _, measured := r.Metrics[plan.RSS]; r.Err != "" || measured != (usage.Resident() > 0) {
			t.Errorf("%s: %+v", s.System, r)
		}
	}
}

// A system that fails has an error in its round, and the others go on.
func TestAFailureIsReported(t *testing.T) {
	some, err := plan.Systems("floorA,ttrpc")
	if err != nil {
		t.Fatal(err)
	}
	tooLarge := plan.Workload{Name: "large", Mode: plan.Calls, Conns: 1, Callers: 1, Data: 5 << 20}
	rep, err := Run(t.Context(), Options{
		Systems: some, Workloads: []plan.Workload{tooLarge}, Rounds: 1, Window: 50 * time.Millisecond,
		Progress: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	got := rep.Results[0].Systems
	if got[0].Rounds[0].Err != "" || got[0].Rounds[0].Metrics[plan.MBps] <= 0 {
		t.Errorf("floorA: %+v", got[0].Rounds[0])
	}
	if e := got[1].Rounds[0].Err; !strings.Contains(e, "client: ") || !strings.Contains(e, "message") {
		t.Errorf("ttrpc: error %q", e)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	some, err := plan.Systems("floorA")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = Run(ctx, Options{Systems: some, Workloads: plan.All()[:1], Rounds: 1, Window: time.Hour,
		Progress: io.Discard})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestAChildThatCannotStart(t *testing.T) {
	for _, r := range []role{
		{System: "no such system"},
		{System: "no such system", Addr: "127.0.0.1:1"},
		{System: "floorA", Addr: "127.0.0.1:1", Workload: plan.All()[0]},
		{System: "floorA", Addr: "127.0.0.1:1", Workload: plan.Workload{Mode: "no such mode"}},
	} {
		p, err := startProcess(t.Context(), r)
		if err == nil {
			p.End()
			t.Errorf("%+v starts", r)
		}
	}
}

func TestServeRole(t *testing.T) {
	var out bytes.Buffer
	in := strings.NewReader("mark\nsettle\nfill\nstop\nnonsense\n")
	if err := serveRole(role{System: "floorA"}, in, &out); err != nil {
		t.Fatal(err)
	}
	wantErr := []string{"", "", "", "for clients", "for clients", `unknown command "nonsense"`}
	answers := json.NewDecoder(&out)
	for i, want := range wantErr {
		var s snapshot
		if err := answers.Decode(&s); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if (i == 0) != (s.Addr != "") {
			t.Errorf("answer %d: address %q", i, s.Addr)
		}
		if want == "" && s.Err != "" || !strings.Contains(s.Err, want) {
			t.Errorf("answer %d: error %q, want %q", i, s.Err, want)
		}
		if s.Uptime <= 0 || s.Mallocs == 0 {
			t.Errorf("answer %d: %+v", i, s)
		}
	}
}

func TestMetrics(t *testing.T) {
	c0 := snapshot{Uptime: 1e9, CPU: 5e9, Mallocs: 1000, Done: 100, Took: stats.Counts{30: 5}}
	c1 := snapshot{Uptime: 3e9, CPU: 6e9, Mallocs: 7000, Done: 1100, Took: stats.Counts{30: 5, 20: 90,
		25: 10}}
	s0 := snapshot{Uptime: 7e9, CPU: 1e9, Mallocs: 10, Done: 50}
	s1 := snapshot{Uptime: 9e9, CPU: 3e9, Mallocs: 3010, Done: 550}

	m := callMetrics(plan.Workload{Data: 4000}, c0, c1, s0, s1)
	expect(t, m, map[string]float64{
		plan.Rate: 500, plan.MBps: 2,
		plan.CPUClient: 1000, plan.CPUServer: 2000, plan.CPU: 3000,
		plan.AllocsClient: 6, plan.AllocsServer: 3, plan.Allocs: 9,
	})
	if p50, p99 := m[plan.P50], m[plan.P99]; p50 < 0.020 || p50 > 0.021 || p99 < 0.025 || p99 > 0.026 {
		t.Errorf("p50 %v, p99 %v", p50, p99)
	}
	if _, ok := callMetrics(plan.Workload{}, c0, c1, s0, s1)[plan.MBps]; ok {
		t.Error("MB/s without data")
	}

	expect(t, pushMetrics(c0, c1, s0, s1, 1200, 1199), map[string]float64{
		plan.Rate: 250, plan.Sent: 1200, plan.Lost: 1,
		plan.CPUClient: 1000, plan.CPUServer: 4000, plan.CPU: 5000,
		plan.AllocsClient: 6, plan.AllocsServer: 6, plan.Allocs: 12,
	})
	expect(t, idleMetrics(plan.Workload{Conns: 100}, snapshot{RSS: 1 << 20}, snapshot{RSS: 3 << 20},
		snapshot{RSS: 2 << 20}),
		map[string]float64{plan.RSS: 10.24, plan.RSSAsIs: 20.48})

	// Where the system does not tell, nothing is claimed.
	c0.CPU, c1.CPU, s0.CPU, s1.CPU = 0, 0, 0, 0
	for _, metric := range []string{plan.CPU, plan.CPUClient, plan.CPUServer, plan.Util} {
		if v, ok := callMetrics(plan.Workload{}, c0, c1, s0, s1)[metric]; ok {
			t.Errorf("%s is %v", metric, v)
		}
	}
	if m := idleMetrics(plan.Workload{Conns: 1}, snapshot{}, snapshot{}, snapshot{}); len(m) != 0 {
		t.Errorf("memory: %v", m)
	}
}

func expect(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for metric, v := range want {
		if math.Abs(got[metric]-v) > 1e-9 {
			t.Errorf("%s is %v, want %v", metric, got[metric], v)
		}
	}
}
