package harness

import (
	"context"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"runtime"
	"time"

	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/report"
	"github.com/henrylee2cn/teleport/bench/systems"
)

const (
	// answerTimeout bounds how long a child under load takes to answer, and to
	// finish the calls under way.
	answerTimeout = 30 * time.Second
	// arrivalTimeout bounds how long what was pushed takes to arrive.
	arrivalTimeout = 30 * time.Second
)

// cell is one measurement: one system under one workload.
type cell struct {
	system         systems.System
	workload       plan.Workload
	warmUp, window time.Duration
	spins          int
	profiles       string // a directory; empty for none
}

// profile returns the file for the profile of one side.
func (c cell) profile(side string) string {
	if c.profiles == "" {
		return ""
	}
	return filepath.Join(c.profiles, fmt.Sprintf("%s-%s-%s.pprof", c.workload.Name, c.system.Name, side))
}

// measure runs a server and a client and measures them.
func (c cell) measure(ctx context.Context) report.Round {
	ctx, cancel := context.WithTimeout(ctx, c.warmUp+2*c.window+2*startTimeout+4*answerTimeout+arrivalTimeout)
	defer cancel()
	metrics, err := c.run(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", err, ctx.Err())
		}
		return report.Round{Err: err.Error()}
	}
	// Nothing counted makes a mean that is no number.
	maps.DeleteFunc(metrics, func(_ string, v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	return report.Round{Metrics: metrics}
}

func (c cell) run(ctx context.Context) (map[string]float64, error) {
	server, err := startProcess(ctx, role{System: c.system.Name, Spins: max(c.spins, 1),
		Profile: c.profile("server")})
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	defer server.End()
	client, err := startProcess(ctx, role{System: c.system.Name, Addr: server.hello.Addr,
		Workload: c.workload, Profile: c.profile("client")})
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	defer client.End()
	if c.workload.Mode == plan.Idle {
		return c.runIdle(ctx, client, server)
	}

	if err := pause(ctx, c.warmUp); err != nil {
		return nil, err
	}
	client0, server0, err := marks(client, server)
	if err != nil {
		return nil, err
	}
	var client1, server1 snapshot
	for start := time.Now(); ; {
		if err := pause(ctx, c.window); err != nil {
			return nil, err
		}
		if client1, server1, err = marks(client, server); err != nil {
			return nil, err
		}
		// Where a call takes longer than a short window, the window is extended.
		if client1.Done > client0.Done && (c.workload.Mode == plan.Calls || server1.Done > server0.Done) {
			break
		}
		if time.Since(start) > answerTimeout {
			return nil, fmt.Errorf("nothing was counted in %v", time.Since(start))
		}
	}
	last, err := client.ask(cmdStop, answerTimeout)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if c.workload.Mode == plan.Calls {
		return callMetrics(c.workload, client0, client1, server0, server1), nil
	}
	received, err := awaitArrival(ctx, server, last.Done)
	if err != nil {
		return nil, err
	}
	return pushMetrics(client0, client1, server0, server1, last.Done, received), nil
}

// marks asks both sides at once how much they have done.
func marks(client, server *process) (c, s snapshot, err error) {
	if err := server.Send(cmdMark); err != nil {
		return c, s, fmt.Errorf("server: %w", err)
	}
	if err := client.Send(cmdMark); err != nil {
		return c, s, fmt.Errorf("client: %w", err)
	}
	if c, err = client.wait(answerTimeout); err != nil {
		return c, s, fmt.Errorf("client: %w", err)
	}
	if s, err = server.wait(answerTimeout); err != nil {
		return c, s, fmt.Errorf("server: %w", err)
	}
	return c, s, nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitArrival waits until the server has received as many messages as were sent,
// and returns how many it has if that takes too long.
func awaitArrival(ctx context.Context, server *process, sent int64) (int64, error) {
	deadline := time.Now().Add(arrivalTimeout)
	for {
		s, err := server.ask(cmdMark, answerTimeout)
		if err != nil {
			return 0, fmt.Errorf("server: %w", err)
		}
		if s.Done >= sent || time.Now().After(deadline) {
			return s.Done, nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// idleTime is how long connections do nothing before they are taken for idle.
const idleTime = 3 * time.Second

// runIdle measures the server's memory before and after the connections.
func (c cell) runIdle(ctx context.Context, client, server *process) (map[string]float64, error) {
	before, err := server.ask(cmdSettle, answerTimeout)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	if _, err := client.ask(cmdFill, startTimeout); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if err := pause(ctx, idleTime); err != nil {
		return nil, err
	}
	asIs, err := server.ask(cmdMark, answerTimeout)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	after, err := server.ask(cmdSettle, answerTimeout)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return idleMetrics(c.workload, before, asIs, after), nil
}

// callMetrics computes what the window between the snapshots was like.
func callMetrics(w plan.Workload, c0, c1, s0, s1 snapshot) map[string]float64 {
	calls := float64(c1.Done - c0.Done)
	seconds := float64(c1.Uptime-c0.Uptime) / 1e9
	took := c1.Took.Since(c0.Took)
	m := map[string]float64{
		plan.Rate: calls / seconds,
		plan.P50:  took.Quantile(0.50) / 1e3,
		plan.P99:  took.Quantile(0.99) / 1e3,
	}
	if w.Data > 0 {
		m[plan.MBps] = calls / seconds * float64(w.Data) / 1e6
	}
	perCall(m, c0, c1, s0, s1, calls, calls)
	return m
}

// pushMetrics does the same for messages one way, which count where they arrive.
func pushMetrics(c0, c1, s0, s1 snapshot, sent, received int64) map[string]float64 {
	arrived := float64(s1.Done - s0.Done)
	m := map[string]float64{
		plan.Rate: arrived / (float64(s1.Uptime-s0.Uptime) / 1e9),
		plan.Sent: float64(sent),
		plan.Lost: float64(sent - received),
	}
	perCall(m, c0, c1, s0, s1, float64(c1.Done-c0.Done), arrived)
	return m
}

// perCall adds what each call has used, of the calls that each side has counted.
func perCall(m map[string]float64, c0, c1, s0, s1 snapshot, clientCalls, serverCalls float64) {
	clientCPU, serverCPU := float64(c1.CPU-c0.CPU), float64(s1.CPU-s0.CPU)
	if c1.CPU > 0 && s1.CPU > 0 {
		m[plan.CPUClient] = clientCPU / 1e3 / clientCalls
		m[plan.CPUServer] = serverCPU / 1e3 / serverCalls
		m[plan.CPU] = m[plan.CPUClient] + m[plan.CPUServer]
		cores := float64(runtime.NumCPU())
		m[plan.Util] = clientCPU/float64(c1.Uptime-c0.Uptime)/cores +
			serverCPU/float64(s1.Uptime-s0.Uptime)/cores
	}
	m[plan.AllocsClient] = float64(c1.Mallocs-c0.Mallocs) / clientCalls
	m[plan.AllocsServer] = float64(s1.Mallocs-s0.Mallocs) / serverCalls
	m[plan.Allocs] = m[plan.AllocsClient] + m[plan.AllocsServer]
}

func idleMetrics(w plan.Workload, before, asIs, after snapshot) map[string]float64 {
	m := make(map[string]float64)
	if before.RSS > 0 {
		m[plan.RSS] = float64(after.RSS-before.RSS) / 1024 / float64(w.Conns)
		m[plan.RSSAsIs] = float64(asIs.RSS-before.RSS) / 1024 / float64(w.Conns)
	}
	return m
}
