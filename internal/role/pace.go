package role

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// quickTime is how long, on average, the handlers of a quick route take.
	quickTime = 20 * time.Microsecond
	// longTime is the most that one handler's time counts for: now and then the system takes the processor
	// away.
	longTime = 5 * quickTime
	// One handler in sampleSlow is timed, of a quick route one in sampleQuick: to
	// read the clock twice costs about as much as to hand over a call. Chance
	// chooses which, so that no pattern of calls escapes.
	sampleSlow  = 16
	sampleQuick = 64
	// tryAfter is how many handlers of a route are timed before the route is taken for quick,
	// and calmTime is how long it must not hold up a reader then, and after each time
	// that it does. The number doubles, up to maxWary times, every time that the
	// route proves not to be quick, and halves when it holds up no reader for longCalm.
	tryAfter = 8
	maxWary  = 12
	calmTime = 8 * time.Millisecond
	longCalm = 2 * calmTime
)

// Timed reports, by chance, whether the next handler of the route is to be timed.
func (p *Pace) Timed(quick bool) bool {
	if quick {
		return rand.Uint32N(sampleQuick) == 0
	}
	return rand.Uint32N(sampleSlow) == 0
}

// Quick reports whether the route's handlers may run on the goroutine that reads.
func (p *Pace) Quick() bool { return p.quick.Load() }

// Assume makes the route quick from now on, until it proves not to be.
func (p *Pace) Assume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quick.Store(true)
	p.since = time.Now()
}

// Pace says whether a route is quick. The zero value says no until it knows.
type Pace struct {
	quick atomic.Bool

	mu      sync.Mutex    // guards the fields below
	average time.Duration // of the last few samples
	samples int           // while quick is false
	since   time.Time     // when quick became true, or a reader was held up since
	wary    int           // tryAfter is doubled so many times
}

// Sample counts one handler's time.
func (p *Pace) Sample(took time.Duration) {
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

// HeldUp says that a handler has held up a reader. On a busy machine that happens to every route now and
// then, because the system takes the processor away; to a handler that blocks it happens more often.
func (p *Pace) HeldUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.quick.Load() {
		return
	}
	switch passed := time.Since(p.since); {
	case passed < calmTime:
		p.demoteLocked()
	case passed > longCalm:
		p.wary = max(p.wary-1, 0)
	}
	p.since = time.Now()
}

func (p *Pace) demoteLocked() {
	p.quick.Store(false)
	p.samples = 0
	p.wary = min(p.wary+1, maxWary)
}
