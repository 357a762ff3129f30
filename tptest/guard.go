package tptest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/inside"
	"github.com/henrylee2cn/teleport/internal/pipe"
)

// guard closes the peers at the end of a test, and fails the test if goroutines are left that the peers'
// connections have started. It knows these by a label, which every goroutine has from the one that has
// started it: other tests that run at the same time do not matter.
type guard struct {
	t       testing.TB
	label   string
	grace   time.Duration
	ignored []string

	mu    sync.Mutex // guards the fields below
	peers []*tp.Peer
	wires []*wire
	// calls are those that were running when a connection ended, or at the end of the test, by their ids.
	calls map[any]inside.Call
}

const labelKey = "tptest"

var guards atomic.Int64

func newGuard(t testing.TB, o *options) *guard {
	g := &guard{t: t, label: t.Name() + "#" + strconv.FormatInt(guards.Add(1), 10), grace: o.grace,
		ignored: o.ignored, calls: make(map[any]inside.Call)}
	t.Cleanup(g.finish)
	return g
}

// start runs f on a goroutine with the label.
func (g *guard) start(f func()) {
	go pprof.Do(context.Background(), pprof.Labels(labelKey, g.label), func(context.Context) { f() })
}

// keep has the peer closed at the end of the test.
func (g *guard) keep(p *tp.Peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Contains(g.peers, p) {
		g.peers = append(g.peers, p)
	}
}

func (g *guard) keepWire(w *wire) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wires = append(g.wires, w)
}

// note notes the peer's calls that are not over.
func (g *guard) note(p *tp.Peer) {
	running := inside.Running(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.calls, func(_ any, c inside.Call) bool { return c.Over() })
	for _, c := range running {
		g.calls[c.Id] = c
	}
}

// watched is the end of a connection that a peer uses. Before the peer hears that the connection has ended,
// and forgets its calls, they are noted.
type watched struct {
	*pipe.End
	guard *guard
	peer  *tp.Peer
}

func (g *guard) watch(e *pipe.End, p *tp.Peer) net.Conn { return &watched{e, g, p} }

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.End.Read(p)
	if err != nil {
		w.guard.note(w.peer)
	}
	return n, err
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.End.Write(p)
	if err != nil {
		w.guard.note(w.peer)
	}
	return n, err
}

// finish is called at the end of the test.
func (g *guard) finish() {
	g.mu.Lock()
	peers, wires := slices.Clone(g.peers), slices.Clone(g.wires)
	g.mu.Unlock()
	for _, p := range peers {
		g.note(p)
	}
	for _, w := range wires {
		if w.faulty() { // closing would wait for what cannot arrive
			w.server.Reset()
		}
	}
	var wg sync.WaitGroup
	for _, p := range peers {
		wg.Go(func() { _ = p.Close() })
	}
	wg.Wait()
	if left := g.await(); len(left) > 0 {
		g.t.Error(g.report(left))
	}
}

// await waits until no goroutine is left, for the grace at most, and returns those that are.
func (g *guard) await() []string {
	pause := 100 * time.Microsecond
	for waited := time.Duration(0); ; {
		left := g.left()
		if len(left) == 0 || waited >= g.grace {
			return left
		}
		pause = min(2*pause, 100*time.Millisecond, g.grace-waited)
		time.Sleep(pause)
		waited += pause
	}
}

// left returns the stacks of the goroutines with the label that are not ignored.
func (g *guard) left() (left []string) {
	var text strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&text, 1); err != nil {
		return []string{err.Error()}
	}
	label := strconv.Quote(labelKey) + ":" + strconv.Quote(g.label)
	for record := range strings.SplitSeq(text.String(), "\n\n") {
		head, stack, _ := strings.Cut(record, "\n# labels: ")
		labels, stack, _ := strings.Cut(stack, "\n")
		if !strings.Contains(labels, label) {
			continue
		}
		if frames := g.frames(stack); len(frames) > 0 {
			n, _, _ := strings.Cut(head[strings.LastIndexByte(head, '\n')+1:], " ")
			left = append(left, n+" of\n\t\t"+strings.Join(frames, "\n\t\t"))
		}
	}
	return left
}

// frames returns the functions of a stack with their lines; none if the stack is ignored.
func (g *guard) frames(stack string) (frames []string) {
	for line := range strings.Lines(stack) {
		fields := strings.Fields(line) // #, address, function+offset, file:line
		if len(fields) < 4 {
			continue
		}
		function, _, _ := strings.Cut(fields[2], "+0x")
		if slices.Contains(g.ignored, function) {
			return nil
		}
		frames = append(frames, function+"  "+strings.Join(fields[3:], " "))
	}
	return frames
}

// report is the error about goroutines that are left.
func (g *guard) report(left []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "tptest: %v after the peers were closed there are still goroutines of theirs.", g.grace)
	g.mu.Lock()
	calls := g.calls
	g.mu.Unlock()
	var routes []string
	for _, c := range calls {
		if !c.Over() {
			routes = append(routes, fmt.Sprintf("\n\tthe handler of the %s %s, called by %s, has not "+
				"returned", c.What, c.Route, c.From))
		}
	}
	slices.Sort(routes)
	for _, r := range routes {
		b.WriteString(r)
	}
	if len(routes) > 0 {
		b.WriteString("\n\t(a handler that waits must also wait for ctx.Context().Done(): that ends with " +
			"the connection)")
	}
	b.WriteString("\n\tgoroutines:")
	for _, stack := range left {
		b.WriteString("\n\t" + stack)
	}
	return b.String()
}
