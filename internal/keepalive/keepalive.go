// Package keepalive notices connections whose other sides do not answer any more.
//
// TCP's own keepalive does not notice a process that is stopped or deadlocked, because the kernel answers for
// it. So while a pull waits for its reply and nothing comes, the Keeper sends a ping after one period. Every
// peer answers a ping, whatever its handlers do. If nothing comes for another period the Keeper gives the
// connection up. Progress of the output counts as a sign of life too, because the ping waits behind the
// output that was there before.
package keepalive

import (
	"sync"
	"sync/atomic"
	"time"
)

// looksOfPeriod is how often the Keeper looks in a period.
const looksOfPeriod = 4

// Conn is a connection on which a pull waits for its reply, or which lingers. It is a pointer, and compared.
type Conn interface {
	// Signs returns how much has been read, written and acknowledged so far.
	Signs() Signs
	// Lingers reports whether the connection has ended and only its output is still to be sent. Such a
	// connection is asked once a period and never given up: the kernel of a side that has gone refuses the
	// packet, which ends the connection.
	Lingers() bool
	// Ask sends a ping, without waiting. The other side answers it only if answer is true.
	Ask(answer bool)
	// GiveUp ends the connection because nothing has come for the time given. It does not wait.
	GiveUp(after time.Duration)
}

// Signs are numbers that change when the other side, or its kernel, does anything.
type Signs struct {
	Reads, Writes  uint32 // how many reads have brought data, and how many writes have succeeded
	Acked, Unacked uint64 // bytes sent that the other side's kernel has acknowledged, and that it has not
	Waits          bool   // output waits because this side's kernel takes no more
}

// life reports whether there was a sign of life since before. The kernel of a stopped process goes on to
// acknowledge data until its buffer is full, so acknowledgements count only while output waits, or when the
// data that is not acknowledged grows less.
func (s Signs) life(before Signs) bool {
	return s.Reads != before.Reads ||
		s.Waits && (s.Writes != before.Writes || s.Acked != before.Acked) ||
		s.Unacked < before.Unacked
}

// Keeper looks at connections from time to time, as long as a pull waits on one of them. All methods
// are safe for concurrent use. Init makes it ready.
type Keeper struct {
	period  time.Duration
	waiting func() []Conn
	on      atomic.Bool
	over    atomic.Bool

	mu    sync.Mutex // guards timer
	timer *time.Timer
	// silent has the connections that wait, as they were last seen. Only the timer's goroutine uses it.
	silent map[Conn]*silence
}

// silence is how long there has been no sign of life on a connection.
type silence struct {
	last  Signs
	looks int
}

// Init makes the Keeper ready. Waiting returns the connections on which something is waited for; a period
// that is not positive turns the Keeper off.
func (k *Keeper) Init(period time.Duration, waiting func() []Conn) {
	k.period, k.waiting = period, waiting
}

// Expect makes the Keeper look. It is called for whatever is waited for, when that is among what the function
// of Init returns: look turns the Keeper off before it asks that function for the last time, so one of the
// two sees the other.
func (k *Keeper) Expect() {
	if !k.on.Load() && k.period > 0 && !k.on.Swap(true) {
		k.again()
	}
}

// Running reports whether the Keeper looks at connections.
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

// look is called by the timer.
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
	k.silent = make(map[Conn]*silence, len(waiting))
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

// ask does what is to be done about a connection that was silent since s.
func (k *Keeper) ask(l Conn, s *silence) {
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
