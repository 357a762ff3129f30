package tptest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// Faults say what becomes of the bytes that one side writes, on their way to the other. The zero value
// delivers them as they are, at once. Several faults may be set together. With TLS they are about the
// encrypted bytes.
type Faults struct {
	// Delay is how long bytes are under way, and the end of the connection too.
	Delay time.Duration
	// Bandwidth is how many bytes a second the way carries; zero means any number.
	Bandwidth int64
	// CutAfter cuts the connection at the first byte beyond so many. These still reach the other side, and
	// then the connection is over both ways. Zero means never; for a cut at once there is [Line.Cut].
	CutAfter int64
	// FlipAt are the offsets of bytes that are corrupted: all their bits are inverted.
	FlipAt []int64
	// FlipRate is the probability, from 0 to 1, with which a byte is corrupted: one of its bits is inverted.
	// The same Seed corrupts the same bits of the same bytes.
	FlipRate float64
	Seed     uint64
	// Silent makes all bytes vanish while nothing closes, as behind a box that has forgotten the connection.
	// Who writes never waits. Bytes that were under way vanish too, and are not there when the fault is gone:
	// a packet that was cut in two by it ends the session.
	Silent bool
	// Stalled keeps all bytes where they are, as a network that is down for some time: nothing arrives and
	// nothing closes, and who writes waits when the buffer is full, see [Buffer]. When the fault is gone the
	// bytes arrive.
	Stalled bool
}

// problem says what is wrong with the faults; nil if nothing is.
func (f Faults) problem() error {
	if f.CutAfter < 0 {
		return fmt.Errorf("tptest: Faults.CutAfter: %d is negative; expected how many bytes still pass, or "+
			"0 for no cut", f.CutAfter)
	}
	p := pipe.Faults(f)
	if problem := p.Problem(); problem != "" {
		return fmt.Errorf("tptest: Faults.%s", problem)
	}
	return nil
}

func (f Faults) some() bool {
	return f.Delay != 0 || f.Bandwidth != 0 || f.CutAfter != 0 || len(f.FlipAt) > 0 || f.FlipRate != 0 ||
		f.Silent || f.Stalled
}

// A Line is what connections go by, with a way in each direction: that of one pair, or all of a network. Its
// methods change both ways, while the connections are in use. They are safe for concurrent use.
type Line struct {
	// ToServer and ToClient are the ways of the bytes that the client writes, and of those that the server
	// writes.
	ToServer, ToClient *Way

	wires func() []*wire // that there are now
}

func newLine(t testing.TB, o *options, wires func() []*wire) Line {
	return Line{
		ToServer: &Way{t: t, faults: o.toServer, apply: func(f Faults) {
			for _, w := range wires() {
				w.setToServer(f)
			}
		}},
		ToClient: &Way{t: t, faults: o.toClient, apply: func(f Faults) {
			for _, w := range wires() {
				w.setToClient(f)
			}
		}},
		wires: wires,
	}
}

// Set is [Way.Set] of both ways.
func (l *Line) Set(f Faults) {
	l.ToServer.t.Helper()
	if err := f.problem(); err != nil {
		l.ToServer.t.Error(err)
		return
	}
	l.ToServer.Set(f)
	l.ToClient.Set(f)
}

// Heal is [Way.Heal] of both ways.
func (l *Line) Heal() { l.Set(Faults{}) }

// Silence is [Way.Silence] of both ways.
func (l *Line) Silence() {
	l.ToServer.Silence()
	l.ToClient.Silence()
}

// Stall is [Way.Stall] of both ways.
func (l *Line) Stall() {
	l.ToServer.Stall()
	l.ToClient.Stall()
}

// Cut breaks the connections at once, whatever the faults are. Both sides notice: what they read and write
// fails, and what was under way is lost. Faults that are set stay so for later connections.
func (l *Line) Cut() {
	for _, w := range l.wires() {
		w.server.Reset()
	}
}

// A Way is one direction of a [Line]. All methods are safe for concurrent use.
type Way struct {
	t     testing.TB
	apply func(Faults)

	mu     sync.Mutex // guards faults, and is held while they are applied
	faults Faults
}

// Set replaces the faults. Offsets and counts in f begin at the next byte that is written. What is under way
// arrives as it would have; if f has neither Delay nor Bandwidth it arrives at once. If f has a value that
// cannot be, a negative number for example, Set fails the test and changes nothing.
func (w *Way) Set(f Faults) {
	w.t.Helper()
	if err := f.problem(); err != nil {
		w.t.Error(err)
		return
	}
	w.change(func(faults *Faults) { *faults = f })
}

// Heal takes away all faults. What is under way arrives at once; what has vanished stays away, and a
// connection that was cut stays cut.
func (w *Way) Heal() { w.change(func(f *Faults) { *f = Faults{} }) }

// Silence adds Faults.Silent to the faults; counts begin anew.
func (w *Way) Silence() { w.change(func(f *Faults) { f.Silent = true }) }

// Stall adds Faults.Stalled to the faults; counts begin anew.
func (w *Way) Stall() { w.change(func(f *Faults) { f.Stalled = true }) }

// CutAfter adds Faults.CutAfter to the faults: the connection is cut at the first byte beyond the next n.
// It fails the test if n is not positive.
func (w *Way) CutAfter(n int64) {
	w.t.Helper()
	if n <= 0 {
		w.t.Errorf("tptest: CutAfter: %d is not positive; for a cut at once there is Cut", n)
		return
	}
	w.change(func(f *Faults) { f.CutAfter = n })
}

// Faults returns the faults that are set.
func (w *Way) Faults() Faults {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults
}

// begin sets the faults of a connection that is new, and that apply knows already.
func (w *Way) begin(set func(Faults)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	set(w.faults)
}

func (w *Way) change(change func(*Faults)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.faults)
	w.apply(w.faults)
}

// wire is one connection.
type wire struct {
	server, client *pipe.End

	mu                 sync.Mutex // guards the fields below
	toServer, toClient Faults
}

func newWire(o *options) *wire {
	w := new(wire)
	w.client, w.server = pipe.Ends(pipe.Options{Buffer: o.buffer})
	return w
}

func (w *wire) setToServer(f Faults) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.toServer = f
	w.client.SetFaults(pipe.Faults(f))
}

func (w *wire) setToClient(f Faults) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.toClient = f
	w.server.SetFaults(pipe.Faults(f))
}

// faulty reports whether either way has faults.
func (w *wire) faulty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.toServer.some() || w.toClient.some()
}
