package tp

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Quick handlers run on the goroutine that reads their session, which saves a
// call most of what it costs to hand it to another. This file is what makes
// that safe: a reader that is held up is replaced, and routes that hold readers
// up, or take long, are given goroutines.
//
// # Invariants
//
//   - link.turn is odd while the reader is in code that may block, the
//     handler's or a write, and even while it reads. Nothing of the reader's is
//     touched in odd turns.
//   - Whoever makes an odd turn even goes on reading: the reader itself when it
//     comes back, or the watch, which starts another reader. Both use
//     compare-and-swap on the turn they have seen, so exactly one succeeds. A
//     reader that comes back too late finishes what it was about and ends.
//   - The reader is in a slot of the watch before its turn becomes odd.

const (
	// watchTick is how long a reader may be held up before the watch takes note,
	// and watchIdle how many ticks in which nobody was seen the watch goes on for.
	watchTick = 500 * time.Microsecond
	watchIdle = 20
	// watchSlots bounds how many readers can be watched at once, and thereby what
	// a tick costs. A slot is used from the first quick handler after a read from
	// the connection to the next read, so few are in use at a time. Readers that
	// find none hand their calls to goroutines.
	watchSlots = 64
	watchTries = 4
	// slotStep takes one session's first slot to the next one's, on another cache
	// line, through all of them.
	slotStep = 9
)

// watch replaces readers that are held up. The zero value is ready to use. Its
// goroutine runs while there is somebody to watch.
type watch struct {
	slots   [watchSlots]atomic.Pointer[link]
	running atomic.Bool
}

// claim puts the session in a slot and returns it, or -1.
func (w *watch) claim(l *link) int {
	for try := range uint32(watchTries) {
		i := int((l.slot + try) % watchSlots)
		if w.slots[i].Load() == nil && w.slots[i].CompareAndSwap(nil, l) {
			// The watch looks at the slots after it has said that it does not run.
			if !w.running.Load() && w.running.CompareAndSwap(false, true) {
				go w.run(l.peer.closed)
			}
			return i
		}
	}
	return -1
}

// run is the goroutine's. It ends when nobody has been seen for some time, or
// with the peer: by then there is nothing to read any more.
func (w *watch) run(closed <-chan struct{}) {
	ticker := time.NewTicker(watchTick)
	defer ticker.Stop()
	var seen [watchSlots]struct {
		l    *link
		turn uint64
	}
	for idle := 0; ; {
		select {
		case <-ticker.C:
		case <-closed:
			return
		}
		idle++
		for i := range w.slots {
			l := w.slots[i].Load()
			if l == nil {
				seen[i].l = nil
				continue
			}
			idle = 0
			turn := l.turn.Load()
			if turn%2 == 1 && seen[i].l == l && seen[i].turn == turn && l.turn.CompareAndSwap(turn, turn+1) {
				w.slots[i].Store(nil)
				l.replaceReader()
			}
			seen[i].l, seen[i].turn = l, turn
		}
		if idle < watchIdle {
			continue
		}
		w.running.Store(false)
		if w.empty() || !w.running.CompareAndSwap(false, true) {
			return
		}
		idle = 0
	}
}

func (w *watch) empty() bool {
	for i := range w.slots {
		if w.slots[i].Load() != nil {
			return false
		}
	}
	return true
}

// replaceReader is called by who has ended the reader's turn.
func (l *link) replaceReader() {
	if h := l.inline; h != nil {
		h.pace.heldUp()
	}
	l.peer.workers.adopt(l)
	if c := l.inlineCall; c != nil {
		c.enter()
	}
	go l.read(true)
}

// errReplaced ends a reader whose session has another.
var errReplaced = errors.New("the reader was replaced")

// enter begins an odd turn, in the route's handler of the call or, without one, a write. It
// reports false if the reader cannot be watched.
func (r *reader) enter(h *Handler, c *packetCtx) bool {
	l := r.l
	if r.slot < 0 {
		if r.slot = l.peer.watch.claim(l); r.slot < 0 {
			return false
		}
	}
	l.inline, l.inlineCall = h, c
	r.turn++
	l.turn.Store(r.turn)
	return true
}

// leave ends an odd turn. It reports false if the reader was replaced.
func (r *reader) leave() bool {
	if !r.l.turn.CompareAndSwap(r.turn, r.turn+1) {
		r.slot = -1
		r.l.peer.workers.adopted(r.l)
		return false
	}
	r.turn++
	return true
}

// unwatch gives the slot back, before the reader waits.
func (r *reader) unwatch() {
	if r.slot >= 0 {
		r.l.peer.watch.slots[r.slot].Store(nil)
		r.slot = -1
	}
}

const (
	// quickTime is how long, on average, the handlers of a quick route take.
	quickTime = 20 * time.Microsecond
	// longTime is the most that one of them counts for: now and then the system
	// takes the processor away.
	longTime = 5 * quickTime
	// One handler in sampleSlow is timed, of a quick route one in sampleQuick: to
	// read the clock twice costs about as much as to hand over a call. Chance
	// chooses which, so that no pattern of calls escapes.
	sampleSlow  = 16
	sampleQuick = 64
	// tryAfter is how many of them a route is timed before it is taken for quick,
	// and soon is how long it must not hold up a reader then, and after each time
	// that it does. The number doubles, up to maxWary times, every time that the
	// route proves not to be quick, and halves when it holds up no reader for late.
	tryAfter = 8
	maxWary  = 12
	soon     = 8 * time.Millisecond
	late     = 2 * soon
)

// oneIn is true once in n times, on average.
func oneIn(n uint32) bool { return rand.Uint32N(n) == 0 }

// pace says whether a route is quick. The zero value says no until it knows.
type pace struct {
	quick atomic.Bool

	mu      sync.Mutex    // guards the fields below
	average time.Duration // of the last few samples
	samples int           // while quick is false
	since   time.Time     // when quick became true, or a reader was held up since
	wary    int           // tryAfter is doubled so many times
}

// sample counts one handler's time.
func (p *pace) sample(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	quick := p.quick.Load()
	if !quick {
		if p.samples++; p.samples == 1 {
			p.average = quickTime
		}
	}
	p.average += (min(took, longTime) - p.average) / 8
	switch {
	case quick && p.average > quickTime+quickTime/2:
		p.demoteLocked()
	case !quick && p.average < quickTime && p.samples >= tryAfter<<p.wary:
		p.quick.Store(true)
		p.since = time.Now()
	}
}

// heldUp says that a handler has held up a reader. On a busy machine that may be
// because the system has taken the processor from it, which happens to every
// route now and then; what blocks does it more often.
func (p *pace) heldUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.quick.Load() {
		return
	}
	switch passed := time.Since(p.since); {
	case passed < soon:
		p.demoteLocked()
	case passed > late:
		p.wary = max(p.wary-1, 0)
	}
	p.since = time.Now()
}

func (p *pace) demoteLocked() {
	p.quick.Store(false)
	p.samples = 0
	p.wary = min(p.wary+1, maxWary)
}
