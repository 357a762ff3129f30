// Package load has what a server counts to tell its clients how busy it is.
package load

import (
	"sync"
	"time"
)

// Window is the time over which a [Delay] is a mean.
const Window = 250 * time.Millisecond

// Delay is for how long calls have waited lately. The mean is that of the calls which began within the last
// Window, and so is the same whatever their number: a burst counts by its calls, and when none has begun for
// two Windows the mean is zero. The zero value is ready to use, by any number of goroutines.
//
// Time is passed in as what has passed since any moment, which may be in the future, too. Two goroutines may
// pass in times in another order than they have read them.
type Delay struct {
	mu sync.Mutex // guards the fields below
	// The current Window began at from, and last is the one before it. The part of last that is not older
	// than a Window counts as if its calls had begun evenly over all of it.
	from      time.Duration
	last, now waits
}

// waits are calls that have begun.
type waits struct {
	total time.Duration
	calls int64
}

// Add counts a call that has begun at the time now, after it has waited. A negative wait is none.
func (d *Delay) Add(now, waited time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rollLocked(now)
	d.now.total += max(waited, 0)
	d.now.calls++
}

// Mean returns the mean as it is at the time now.
func (d *Delay) Mean(now time.Duration) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rollLocked(now)
	rest := float64(Window-max(now-d.from, 0)) / float64(Window)
	calls := float64(d.now.calls) + rest*float64(d.last.calls)
	if calls == 0 {
		return 0
	}
	return time.Duration((float64(d.now.total) + rest*float64(d.last.total)) / calls)
}

// rollLocked begins a new Window if the current one is over.
func (d *Delay) rollLocked(now time.Duration) {
	switch passed := now - d.from; {
	case d.now.calls+d.last.calls == 0, passed >= 2*Window:
		d.from, d.last, d.now = now, waits{}, waits{}
	case passed >= Window:
		d.from += Window
		d.last, d.now = d.now, waits{}
	}
}
