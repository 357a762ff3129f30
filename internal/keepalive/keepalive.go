// Package keepalive notices connections whose other sides do not answer any more.
//
// The kernel answers for a process that is stopped, or that waits for itself for ever, so the kernel's own
// keepalive does not notice those. While replies are waited for on a connection by which nothing comes, the
// Keeper has the other side asked after one period, with a packet that every peer answers, whatever its
// handlers do. If nothing comes for another period the connection is given up. It is also a sign of life
// when output that waits grows less: what is asked stands behind that.
package keepalive

import (
	"sync"
	"sync/atomic"
	"time"
)

// looksOfPeriod is how often the Keeper looks in a period.
const looksOfPeriod = 4

// Link is a connection on which something is waited for. Links are compared: they are pointers.
type Link interface {
	// Signs returns the signs of life of now.
	Signs() Signs
	// Lingers reports whether the connection has ended and only its output is still to be sent. Such a
	// connection is asked once a period and never given up: the kernel of a side that has gone refuses the
	// packet, which ends the connection.
	Lingers() bool
	// Ask asks the other side, and does not wait; with answer the other side is to answer.
	Ask(answer bool)
	// GiveUp ends the connection, on which nothing has come for so long. It does not wait.
	GiveUp(after time.Duration)
}

// Signs are numbers that change with whatever the other side, or its kernel, does.
type Signs struct {
	Reads, Writes  uint32 // that have brought something, or ended well
	Acked, Unacked uint64 // bytes that the other side's kernel has taken, and that it has not
	Waits          bool   // output, because this side's kernel takes no more
}

// life reports whether there was any since before. The kernel of a process that is stopped
// goes on taking, until it is full: so that counts only while output waits for it, or what
// it has not taken yet grows less.
func (s Signs) life(before Signs) bool {
	return s.Reads != before.Reads ||
		s.Waits && (s.Writes != before.Writes || s.Acked != before.Acked) ||
		s.Unacked < before.Unacked
}

// Keeper looks at links from time to time, as long as anything is waited for on one of them. All methods
// are safe for concurrent use. Init makes it ready.
type Keeper struct {
	period  time.Duration
	waiting func() []Link
	on      atomic.Bool
	over    atomic.Bool

	mu    sync.Mutex // guards timer
	timer *time.Timer
	// silent are the links that wait, as they were last seen. Only the timer's goroutine
	// uses it.
	silent map[Link]*silence
}

// silence is how long there has been no sign of life from a link.
type silence struct {
	last  Signs
	looks int
}

// Init makes the Keeper ready. Waiting returns the links on which something is waited for; a period that
// is not positive turns the Keeper off.
func (k *Keeper) Init(period time.Duration, waiting func() []Link) {
	k.period, k.waiting = period, waiting
}

// Expect makes the Keeper look. It is called for whatever is waited for, before that is among what the
// function of Init returns.
func (k *Keeper) Expect() {
	if !k.on.Load() && k.period > 0 && !k.on.Swap(true) {
		k.again()
	}
}

// Running reports whether the Keeper looks at links.
func (k *Keeper) Running() bool { return k.on.Load() }

func (k *Keeper) again() {
	every := max(k.period/looksOfPeriod, time.Millisecond)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer == nil {
		k.timer = time.AfterFunc(every, k.look)
	} else {
		k.timer.Reset(every)
	}
}

// Stop ends the looking for good.
func (k *Keeper) Stop() {
	k.over.Store(true)
	k.on.Store(true)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer != nil {
		k.timer.Stop()
	}
}

// look is the timer's.
func (k *Keeper) look() {
	waiting := k.waiting()
	if k.over.Load() {
		return
	}
	if len(waiting) == 0 {
		k.silent = nil
		k.on.Store(false)
		if len(k.waiting()) == 0 || k.on.Swap(true) { // Expect may have seen it on
			return
		}
	}
	before := k.silent
	k.silent = make(map[Link]*silence, len(waiting))
	for _, l := range waiting {
		s, now := before[l], l.Signs()
		if s == nil || now.life(s.last) {
			s = &silence{}
		}
		s.last = now
		k.silent[l] = s
		k.ask(l, s)
	}
	k.again()
}

// ask does what is to be done about a link that has been silent for so long.
func (k *Keeper) ask(l Link, s *silence) {
	switch s.looks++; {
	case l.Lingers():
		if s.looks%looksOfPeriod == 0 {
			l.Ask(false)
		}
	case s.looks == looksOfPeriod+1:
		l.Ask(true)
	case s.looks > 2*looksOfPeriod:
		s.looks = 0
		l.GiveUp(2 * k.period)
	}
}
