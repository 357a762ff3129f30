// Package plan says what is measured: the workloads, and which systems have part
// in which.
package plan

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/henrylee2cn/teleport/bench/payload"
	"github.com/henrylee2cn/teleport/bench/systems"
)

// Mode is how a workload is measured.
type Mode string

const (
	Calls Mode = "calls" // callers that each make one call after another
	Push  Mode = "push"  // pushers that send as fast as they can
	Idle  Mode = "idle"  // connections that made one call and then do nothing
)

// A Workload is what a client does to a server.
type Workload struct {
	Name  string `json:"name"`
	About string `json:"about"`
	Mode  Mode   `json:"mode"`
	// Conns is the number of connections.
	Conns int `json:"conns"`
	// Callers is the number of callers, or pushers, on each of them.
	Callers int `json:"callers"`
	// Kind is what the handlers do.
	Kind payload.Kind `json:"kind"`
	// Data is how many bytes go along with each call, and come back.
	Data int `json:"data,omitempty"`
	// Refs names the systems that the others are compared with.
	Refs []string `json:"refs"`
	// Compare names the metrics that are compared with theirs.
	Compare []string `json:"compare"`
}

// Metrics that are measured, by name.
const (
	Rate         = "rate"          // calls or messages a second
	MBps         = "mbps"          // megabytes of data a second, each call's counted once
	P50          = "p50"           // us
	P99          = "p99"           // us
	CPU          = "cpu"           // us of user and system time a call, both sides
	CPUClient    = "cpu_client"    // us a call
	CPUServer    = "cpu_server"    // us a call
	Allocs       = "allocs"        // allocations a call, both sides
	AllocsClient = "allocs_client" // allocations a call
	AllocsServer = "allocs_server" // allocations a call
	Util         = "util"          // CPU used, as a fraction of all cores
	Sent         = "sent"          // messages, in the whole run
	Lost         = "lost"          // messages that were sent and never received
	RSS          = "rss"           // KiB of the server's memory a connection, after a collection
	RSSAsIs      = "rss_as_is"     // KiB of the server's memory a connection, as it stands
)

var callRefs = []string{"grpc", "netrpc", "floorA", "floorB"}

// All lists the workloads in the order of the tables.
func All() []Workload {
	callers := func(n int) Workload {
		w := Workload{
			Name: fmt.Sprintf("c%d", n), About: fmt.Sprintf("%d callers on one connection", n),
			Mode: Calls, Conns: 1, Callers: n, Refs: callRefs, Compare: []string{Rate, CPU},
		}
		if n == 1 {
			w.About, w.Compare = "1 caller on one connection", []string{P50, CPU}
		}
		return w
	}
	push := func(n int) Workload {
		return Workload{
			Name: fmt.Sprintf("push%d", n), About: fmt.Sprintf("one way, pushers on one connection: %d", n),
			Mode: Push, Conns: 1, Callers: n, Refs: []string{"nats", "socket"}, Compare: []string{Rate, CPU},
		}
	}
	return []Workload{
		callers(1), callers(16), callers(128), callers(1024),
		{
			Name: "64x16", About: "64 connections with 16 callers each",
			Mode: Calls, Conns: 64, Callers: 16, Refs: callRefs, Compare: []string{Rate, CPU},
		},
		{
			Name: "2000x1", About: "2,000 connections with 1 caller each",
			Mode: Calls, Conns: 2000, Callers: 1, Refs: callRefs, Compare: []string{Rate, CPU},
		},
		push(1), push(16),
		{
			Name: "bulk", About: "echo of 1 MiB, 4 callers on one connection",
			Mode: Calls, Conns: 1, Callers: 4, Data: 1 << 20, Refs: callRefs, Compare: []string{MBps, CPU},
		},
		{
			Name: "idle", About: "5,000 connections, 3 s after a call each",
			Mode: Idle, Conns: 5000, Callers: 1, Refs: callRefs, Compare: []string{RSS, RSSAsIs},
		},
		{
			Name: "doze", About: "1 handler in 1,000 sleeps 5 ms, 128 callers on one connection",
			Mode: Calls, Conns: 1, Callers: 128, Kind: payload.Doze, Refs: callRefs,
			Compare: []string{P99, Rate},
		},
		{
			Name: "compute", About: "handlers compute for 200 us, 128 callers on one connection",
			Mode: Calls, Conns: 1, Callers: 128, Kind: payload.Compute, Refs: callRefs,
			Compare: []string{Rate, CPU},
		},
	}
}

// Fits reports whether the system has part in the workload.
func (w Workload) Fits(s systems.System) bool { return w.Mode != Push || s.Push }

// Workloads returns the workloads that the list selects: names, or regular
// expressions for whole names, separated by commas; all if it is empty.
func Workloads(list string) ([]Workload, error) {
	return Select("workload", list, All(), func(w Workload) string { return w.Name })
}

// Systems returns the systems that the list selects, as Workloads does.
func Systems(list string) ([]systems.System, error) {
	return Select("system", list, systems.All(), func(s systems.System) string { return s.Name })
}

// Select returns those of all that the list selects: names or regular expressions for
// whole names, separated by commas; empty for all. Each of its items must
// select something.
func Select[T any](what, list string, all []T, name func(T) string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	selected := make([]bool, len(all))
	for item := range strings.SplitSeq(list, ",") {
		re, err := regexp.Compile("^(?:" + item + ")$")
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", what, item, err)
		}
		found := false
		for i, one := range all {
			if re.MatchString(name(one)) {
				selected[i], found = true, true
			}
		}
		if !found {
			var names []string
			for _, one := range all {
				names = append(names, name(one))
			}
			return nil, fmt.Errorf("no %s is called %q; there are %s", what, item, strings.Join(names, ", "))
		}
	}
	var some []T
	for i, one := range all {
		if selected[i] {
			some = append(some, one)
		}
	}
	return some, nil
}
