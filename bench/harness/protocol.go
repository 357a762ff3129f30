// Package harness measures. The process that runs the plan starts, for every
// measurement, a server and a client as processes of their own and asks both, over
// their standard input and output, how much they have done and used by then.
package harness

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/bench/child"
	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/stats"
	"github.com/henrylee2cn/teleport/bench/usage"
)

// A role is what a child process is to be. It is its only argument behind
// childArg, as JSON.
type role struct {
	System string `json:"system"`
	// Spins makes it a server, whose handlers compute for so many spins.
	Spins int `json:"spins,omitempty"`
	// Addr makes it a client of the server with the address.
	Addr     string        `json:"addr,omitempty"`
	Workload plan.Workload `json:"workload,omitzero"`
	// Profile is the file that gets a profile of the CPU; empty for none.
	Profile string `json:"profile,omitempty"`
}

// childArg is a child process's first argument.
const childArg = "child-of-bench"

// Commands are lines on a child's standard input. Each is answered with a line, a
// snapshot. When its input ends the child exits.
const (
	cmdMark   = "mark"   // to both: how much by now
	cmdSettle = "settle" // to both: collect garbage and give memory back first
	cmdFill   = "fill"   // to a client in mode Idle: open the connections
	cmdStop   = "stop"   // to a client: make no more calls, push no more
)

// A snapshot is how much a process has done and used since it began. A child's
// first line is one too, once it is ready.
type snapshot struct {
	// Err is what went wrong; the rest counts for nothing then.
	Err string `json:"err,omitempty"`
	// Addr is a server's address.
	Addr string `json:"addr,omitempty"`
	// Uptime is in nanoseconds, as is CPU, which is user and system time.
	Uptime  int64  `json:"uptime"`
	CPU     int64  `json:"cpu"`
	Mallocs uint64 `json:"mallocs"`
	// RSS is the memory in RAM, in bytes.
	RSS int64 `json:"rss"`
	// Done counts calls answered and messages pushed at a client, and messages
	// received at a server.
	Done int64 `json:"done"`
	// Took counts some of the calls by duration.
	Took stats.Counts `json:"took,omitempty"`
}

var began = time.Now()

// take fills in what is the same for both sides.
func take() snapshot {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return snapshot{
		Uptime:  int64(time.Since(began)),
		CPU:     int64(usage.CPU()),
		Mallocs: mem.Mallocs,
		RSS:     usage.Resident(),
	}
}

// side is a server or a client in a process of its own.
type side interface {
	// snapshot answers cmdMark, and for the sake of the others.
	snapshot() snapshot
	fill() error
	stop() error
}

// RunChild makes this process a child if its arguments say so, and then does not
// return. It comes first in main.
func RunChild() {
	child.Become(childArg, "bench", func(r role, in io.Reader, out io.Writer) error {
		tp.SetLogLevel(tp.LevelWarn)
		return serveRole(r, in, out)
	})
}

// serveRole does what a child does, until in ends.
func serveRole(r role, in io.Reader, out io.Writer) error {
	if r.Profile != "" {
		f, err := os.Create(r.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	answer := json.NewEncoder(out)
	var c side
	var addr string
	var err error
	if r.Addr == "" {
		var s *serverChild
		if s, err = startServer(r); err == nil {
			c, addr = s, s.server.Addr()
		}
	} else {
		var l *load
		if l, err = startLoad(r); err == nil {
			c = l
		}
	}
	if err != nil {
		return answer.Encode(snapshot{Err: err.Error()})
	}
	hello := c.snapshot()
	hello.Addr = addr
	if err := answer.Encode(hello); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var err error
		switch lines.Text() {
		case cmdMark:
		case cmdSettle:
			runtime.GC() // pools are emptied by the second collection
			debug.FreeOSMemory()
		case cmdFill:
			err = c.fill()
		case cmdStop:
			err = c.stop()
		default:
			err = fmt.Errorf("unknown command %q", lines.Text())
		}
		s := c.snapshot()
		if err != nil {
			s.Err = err.Error()
		}
		if err := answer.Encode(s); err != nil {
			return err
		}
	}
	return lines.Err()
}
