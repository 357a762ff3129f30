package limit

import (
	"fmt"
	"math"
	"sync"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// The adaptive limit is that of TCP Vegas (Brakmo and Peterson, "TCP Vegas: End to End Congestion Avoidance
// on a Global Internet", 1995) on calls in the place of packets, as Netflix's concurrency-limits has it:
// from how long a call takes when few run, and how long calls take now, follows how many of those that run
// only wait for others. Are they few, the limit grows, are they many, it shrinks. Averages are compared,
// each route's with its own, and not the shortest, so that routes whose calls differ are not taken for
// overloaded.
//
// What would exceed the limit waits, and no longer than a moment: the rule is the one of Maurer, "Fail at
// Scale" (ACM Queue 13, 2015), after CoDel (Nichols and Jacobson, 2012). A queue that has been short lately
// takes up a burst, and is given time; one that stands for that long only adds to the time that each call
// takes. A call waits from when its header was read, and not only from when it is the turn of this
// plugin: where handlers compute, the queue is that of the scheduler, in which goroutines wait for a
// processor, and never more calls run than there are processors.

const (
	firstLimit, minLimit, maxLimit = 16, 1, 10_000
	// sampleWindow is for how long durations are gathered before the limit is changed, and minSamples how
	// many there must be.
	sampleWindow = 50 * time.Millisecond
	minSamples   = 10
	// probeEvery is after how long it is measured again how long a call takes alone, with half of the
	// limit.
	probeEvery = 10 * time.Second
	// patient is how long a call may wait if the queue was short, and nothing refused, within that time.
	// Otherwise it may wait as long as queueTimesAlone calls take alone, within these bounds.
	patient                 = 100 * time.Millisecond
	queueTimesAlone         = 8
	minImpatient, impatient = 500 * time.Microsecond, 5 * time.Millisecond
	waitingTimesLimit       = 16 // how many may wait, in limits
	priorities              = 4
	defaultPriority         = 1
)

// AdaptiveOption is an option of [Adaptive].
type AdaptiveOption func(*adaptive)

// Priority says which of the calls that wait goes first: a number from 0 to 3, larger ones first; without the
// option all have the same. A function of the metadata, for example:
//
//	limit.Priority(func(ctx tp.ReadCtx) int {
//		n, _ := strconv.Atoi(ctx.Input().Header.Meta["priority"])
//		return n
//	})
//
// What a stranger sends should not decide. Numbers outside of the range are taken for its ends.
func Priority(of func(ctx tp.ReadCtx) int) AdaptiveOption {
	return func(a *adaptive) { a.priority = of }
}

// Bounds changes within which bounds the number of calls that run at a time is found: 1 to 10,000.
func Bounds(least, most int) AdaptiveOption {
	if least < 1 || most < least {
		panic(fmt.Sprintf("limit: Bounds: %d to %d is no range from 1 on.", least, most))
	}
	return func(a *adaptive) { a.least, a.most = float64(least), float64(most) }
}

// Adaptive bounds how many calls run at a time by how long they take, and how long others wait for that.
// Streams are not bounded. A refused call has been told how long calls take now as the time to wait.
func Adaptive(options ...AdaptiveOption) Option {
	return func(l *Limit) {
		a := newAdaptive()
		for _, o := range options {
			o(a)
		}
		a.limit = min(max(firstLimit, a.least), a.most)
		l.adaptive = a
	}
}

// adaptive is one Adaptive.
type adaptive struct {
	priority    func(ctx tp.ReadCtx) int
	least, most float64

	mu        sync.Mutex // guards the fields below
	limit     float64
	running   int
	queue     [priorities][]*waiter
	waiting   int
	waited    time.Duration // how long calls have waited when it was their turn, smoothed
	calmAt    time.Time     // when that was little last
	droppedAt time.Time     // when a call was refused last
	routes    map[string]*pace
	samples   int           // of this window
	busiest   int           // most calls that ran in this window
	windowAt  time.Time     // when it began
	alone     time.Duration // how long calls like those of now take when few run, smoothed; 0 if not known
	now       time.Duration // how long they take now, smoothed
	useful    float64       // the part of that for which they do not wait for others, smoothed
	probing   bool          // it is measured how long calls take when few run
	probed    time.Time     // when it was measured last
	refused   uint64
}

type waiter struct {
	ready chan struct{} // closed when it may run
	ran   bool          // it may
}

// pace is how long the calls of a route take. Routes are compared with themselves: that many calls of a long
// one come says nothing about the load.
type pace struct {
	sum     time.Duration // of this window
	samples int
	alone   time.Duration // on average, when few run; 0 if that is not known
	now     time.Duration // smoothed
}

func newAdaptive() *adaptive {
	return &adaptive{least: minLimit, most: maxLimit, useful: 1, routes: make(map[string]*pace)}
}

// Stats are the numbers of an adaptive limit.
type Stats struct {
	// Limit is how many calls may run at a time now, Running how many do, and Waiting how many wait for
	// that.
	Limit, Running, Waiting int
	// Alone is how long calls like those of now take when few others run, and Now how long they take now.
	Alone, Now time.Duration
	// Refused counts the calls that were refused since the plugin was made.
	Refused uint64
}

// Stats returns the numbers of the plugin's adaptive limit, and false if it has none.
func (l *Limit) Stats() (Stats, bool) {
	a := l.adaptive
	if a == nil {
		return Stats{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return Stats{Limit: int(a.limit), Running: a.running, Waiting: a.waiting, Alone: a.alone, Now: a.now,
		Refused: a.refused}, true
}

// boundLocked returns how many may run now.
func (a *adaptive) boundLocked() int {
	if a.probing {
		return max(int(a.limit/2), 1)
	}
	return max(int(a.limit), 1)
}

// impatienceLocked returns how long a call may wait while the queue stands.
func (a *adaptive) impatienceLocked() time.Duration {
	if a.alone == 0 {
		return impatient
	}
	return min(max(queueTimesAlone*a.alone, minImpatient), impatient)
}

// level returns the call's priority.
func (a *adaptive) level(ctx tp.ReadCtx) int {
	if a.priority == nil {
		return defaultPriority
	}
	return min(max(a.priority(ctx), 0), priorities-1)
}

// take lets the call run, or has it wait for that, or refuses it.
func (a *adaptive) take(ctx tp.RoutedCtx, level int) error {
	now := time.Now()
	waited := now.Sub(ctx.Received())
	a.mu.Lock()
	patience := a.impatienceLocked()
	// Not the least of several: goroutines do not get a processor in the order in which they were made.
	if a.waited += (waited - a.waited) / 16; a.waiting == 0 && a.waited < patience {
		a.calmAt = now
	}
	if now.Sub(a.calmAt) < patient && now.Sub(a.droppedAt) > patient {
		patience = patient
	}
	if a.waiting == 0 && waited < patience && a.running < a.boundLocked() {
		a.startLocked()
		a.mu.Unlock()
		return nil
	}
	if waited >= patience || a.waiting >= waitingTimesLimit*max(int(a.limit), 1) && !a.dropLocked(level) {
		err := a.refuseLocked()
		a.mu.Unlock()
		return err
	}
	w := &waiter{ready: make(chan struct{})}
	a.queue[level] = append(a.queue[level], w)
	a.waiting++
	a.mu.Unlock()

	timer := time.NewTimer(patience - waited)
	defer timer.Stop()
	select {
	case <-w.ready:
	case <-timer.C:
	case <-ctx.Context().Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if w.ran {
		return nil
	}
	a.leaveLocked(level, w)
	return a.refuseLocked()
}

func (a *adaptive) startLocked() {
	a.running++
	a.busiest = max(a.busiest, a.running)
}

// leaveLocked takes the waiter out of the queue, if it is there.
func (a *adaptive) leaveLocked(level int, w *waiter) {
	for i, other := range a.queue[level] {
		if other == w {
			a.queue[level] = append(a.queue[level][:i:i], a.queue[level][i+1:]...)
			a.waiting--
			return
		}
	}
}

// dropLocked makes room for a call of the level: the last one of a lower level does not wait any more.
func (a *adaptive) dropLocked(level int) bool {
	for lower := range level {
		if q := a.queue[lower]; len(q) > 0 {
			close(q[len(q)-1].ready)
			a.queue[lower] = q[:len(q)-1]
			a.waiting--
			return true
		}
	}
	return false
}

func (a *adaptive) refuseLocked() error {
	a.refused++
	a.droppedAt = time.Now()
	return overloaded("more is asked for than can be done, the call was not run",
		max(2*a.now, 10*time.Millisecond))
}

// give says that a call of the route is over. How long it has taken counts if it has succeeded.
func (a *adaptive) give(route string, took time.Duration, succeeded bool, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running--
	if succeeded {
		a.sampleLocked(route, took, now)
	}
	for a.running < a.boundLocked() && a.waiting > 0 {
		a.nextLocked()
	}
	if a.waiting == 0 && a.waited < a.impatienceLocked() {
		a.calmAt = now
	}
}

// nextLocked lets the call run that has waited longest of the highest level.
func (a *adaptive) nextLocked() {
	for level := priorities - 1; level >= 0; level-- {
		if q := a.queue[level]; len(q) > 0 {
			w := q[0]
			a.queue[level] = q[1:]
			a.waiting--
			w.ran = true
			close(w.ready)
			a.startLocked()
			return
		}
	}
}

// smooth moves the average to the next value.
func smooth(average *time.Duration, next time.Duration) {
	if *average == 0 {
		*average = next
	} else {
		*average += (next - *average) / 16
	}
}

// sampleLocked takes in how long a call has taken.
func (a *adaptive) sampleLocked(route string, took time.Duration, now time.Time) {
	r := a.routes[route]
	if r == nil {
		r = new(pace)
		a.routes[route] = r
	}
	if a.samples == 0 {
		a.windowAt = now
	}
	a.samples++
	r.sum += took
	r.samples++
	smooth(&r.now, took)
	smooth(&a.now, took)
	if r.alone > 0 {
		smooth(&a.alone, r.alone)
		a.useful += (min(float64(r.alone)/float64(max(r.now, 1)), 1) - a.useful) / 16
	}
	if a.samples >= minSamples && now.Sub(a.windowAt) >= sampleWindow {
		a.turnLocked(now)
		a.samples, a.busiest = 0, a.running
	}
}

// turnLocked changes the limit after a window.
func (a *adaptive) turnLocked(now time.Time) {
	lower := false // some route is faster than was known
	for _, r := range a.routes {
		if r.samples < minSamples && (r.alone > 0 || r.samples == 0) {
			continue // too few to say something, of one of which something is known
		}
		average := r.sum / time.Duration(r.samples)
		switch {
		case a.probing || r.alone == 0:
			r.alone, lower = average, lower || r.alone == 0
		case average < r.alone: // by a part: averages of few differ by chance
			r.alone += (average - r.alone) / 4
			lower = true
		}
		r.sum, r.samples = 0, 0
	}
	switch {
	case a.probing:
		a.probing, a.probed = false, now
		return
	case a.probed.IsZero():
		a.probed = now
		return
	case now.Sub(a.probed) > probeEvery:
		a.probing = true
		return
	case lower:
		return
	}
	// Of those that run, so many wait for others.
	idle := a.limit * (1 - a.useful)
	scale := math.Log10(max(a.limit, 10))
	switch {
	case idle > 4*scale:
		a.limit -= scale
	case idle < 2*scale && 2*a.busiest > int(a.limit): // a limit that is not reached says nothing
		a.limit += scale
	}
	a.limit = min(max(a.limit, a.least), a.most)
}
