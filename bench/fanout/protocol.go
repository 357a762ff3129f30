package main

import (
	"bufio"
	"encoding/json"
	"io"
	"runtime"
	"runtime/debug"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/bench/child"
	"github.com/henrylee2cn/teleport/bench/stats"
	"github.com/henrylee2cn/teleport/bench/usage"
)

// childArg is the first argument of a process that this program starts.
const childArg = "child-of-fanout"

// A role is what a child is to be. It is its second argument, as JSON.
type role struct {
	// Room is the name of the room that the process serves, or whose members it is.
	Room string `json:"room"`
	// Stalled is set if one member does not read. It makes the kernel's buffers small, so that this shows
	// soon, and bounds every write to a second.
	Stalled bool `json:"stalled,omitempty"`
	// AllRead leaves it at that: everything is as with Stalled, but all members read.
	AllRead bool `json:"all_read,omitempty"`

	// Addr and Link make it the members: where the room is, and where the server hears that messages have
	// come.
	Addr string `json:"addr,omitempty"`
	Link string `json:"link,omitempty"`
	// Members is how many members there are, and WithTP makes each one a session of a peer, instead of a
	// bare connection.
	Members int  `json:"members,omitempty"`
	WithTP  bool `json:"with_tp,omitempty"`
	// Patience is how long members wait for messages that were sent, and a server for its members.
	Patience time.Duration `json:"patience"`
}

// A command is a line on a child's standard input. Each is answered with one line, an answer.
type command struct {
	Do string `json:"do"`
	// Members is for doReady: how many have to be there.
	Members int `json:"members,omitempty"`
	// The rest is for doSend: which system sends, how many messages at a time, how often, and how many
	// members are to have each of them before the next ones are sent.
	System  string `json:"system,omitempty"`
	Burst   int    `json:"burst,omitempty"`
	Times   int    `json:"times,omitempty"`
	Readers int    `json:"readers,omitempty"`
}

const (
	doMark   = "mark"   // to members: what they have counted
	doReady  = "ready"  // to a server: wait for the members
	doSettle = "settle" // to a server: collect garbage, give memory back, and say how much there is
	doSend   = "send"   // to a server: send messages
)

// An answer is what a child says. The first one, when the child is ready, was not asked for.
type answer struct {
	// Err is what went wrong; the rest counts for nothing then.
	Err string `json:"err,omitempty"`

	// Addr and Link are those of a server.
	Addr string `json:"addr,omitempty"`
	Link string `json:"link,omitempty"`
	// RSS is a server's memory in RAM, in bytes.
	RSS int64 `json:"rss,omitempty"`
	// What doSend has taken, from before the first message until the last one has come: time of the
	// processors and time, in nanoseconds, allocations, and how often sending to a member has failed.
	CPU     int64  `json:"cpu,omitempty"`
	Took    int64  `json:"took,omitempty"`
	Mallocs uint64 `json:"mallocs,omitempty"`
	Failed  int    `json:"failed,omitempty"`

	// Delivered is what the members have counted, and Times counts how long each message took, by bucket.
	Delivered int64        `json:"delivered,omitempty"`
	Times     stats.Counts `json:"times,omitempty"`
}

// runChild makes this process a child if its arguments say so, and then does not return. It comes first in
// main.
func runChild() {
	child.Become(childArg, "fanout", func(r role, in io.Reader, out io.Writer) error {
		tp.SetLogLevel(tp.LevelError)
		return r.serve(in, out)
	})
}

// part is what a child does: host or crowd.
type part interface {
	// hello fills in the first answer.
	hello(a *answer)
	do(c command, a *answer) error
	close()
}

// serve does what a child does, until in ends.
func (r role) serve(in io.Reader, out io.Writer) error {
	lines := json.NewEncoder(out)
	var p part
	var err error
	if r.Addr == "" {
		p, err = newHost(r)
	} else {
		p, err = newCrowd(r)
	}
	if err != nil {
		return lines.Encode(answer{Err: err.Error()})
	}
	defer p.close()
	var first answer
	p.hello(&first)
	if err := lines.Encode(first); err != nil {
		return err
	}
	asked := bufio.NewScanner(in)
	for asked.Scan() {
		var c command
		var a answer
		err := json.Unmarshal(asked.Bytes(), &c)
		if err == nil {
			err = p.do(c, &a)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := lines.Encode(a); err != nil {
			return err
		}
	}
	return asked.Err()
}

// used is what this process has used by now.
type used struct {
	at      time.Time
	cpu     time.Duration
	mallocs uint64
}

// mallocs returns how many allocations there were. That stops the program for a moment, so it comes before or
// behind what is measured.
func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

func begin() used { return used{mallocs: mallocs(), at: time.Now(), cpu: usage.CPU()} }

// end fills in what was used since.
func (u used) end(a *answer) {
	a.CPU = int64(usage.CPU() - u.cpu)
	a.Took = int64(time.Since(u.at))
	a.Mallocs = mallocs() - u.mallocs
}

// settled returns how much memory the process has when it has collected its garbage.
func settled() int64 {
	runtime.GC() // pools are emptied by the second collection
	debug.FreeOSMemory()
	return usage.Resident()
}
