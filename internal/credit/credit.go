// Package credit bounds what one side of a connection sends by what the other side can take.
//
// The receiver grants an amount, and the sender keeps to it. An amount is counted in units that both sides
// agree on, bytes for example, from the beginning of the connection: both the amount that was sent and the
// amount that may be sent only ever grow. So a grant that comes twice, or late, does no harm.
//
// The receiver has a window: the most that it holds and has not handled. It grants what it has handled plus
// the window. It does so when a quarter of the window was handled since the last grant, so that one grant
// does for many packets. A packet costs its amount, but three quarters of the window at most: so much is
// always free when the receiver has handled everything, and a packet that is larger than the window can be
// sent too.
//
// A Sender and a Receiver stand alone: they know nothing of packets and of connections.
package credit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
)

// Unbounded is the amount that a Sender may send to a side that does not bound it.
const Unbounded = math.MaxUint64

// grantPart is the part of the window that is handled between two grants.
const grantPart = 4

// costOf returns what a packet of the amount costs, which is at least 1.
func costOf(amount, window uint64) uint64 { return max(min(amount, window-window/grantPart), 1) }

// ErrOverdrawn is what errors.Is finds when the other side has sent more than it was granted.
var ErrOverdrawn = errors.New("more was sent than was granted")

// ErrGrant is what errors.Is finds when a grant makes no sense.
var ErrGrant = errors.New("a grant makes no sense")

// Sender counts what this side sends. All methods are safe for concurrent use. Init makes a Sender ready.
type Sender struct {
	sent, limit atomic.Uint64
	window      atomic.Uint64 // the receiver's; 0 while it is not known
	first       uint64        // what Init was given
	reach       uint64        // how far a grant may go beyond what was sent; 0 for the window

	line // its mu guards writing limit, too
}

// Init makes the Sender ready. It may send the amount given before the receiver has said anything.
func (s *Sender) Init(amount uint64) {
	s.first = amount
	s.limit.Store(amount)
}

// InitOpen makes the Sender ready for a receiver whose window is known, and which may grant more than that
// window later. What a packet costs depends on the first window.
func (s *Sender) InitOpen(window uint64) {
	s.Init(window)
	s.window.Store(window)
	s.reach = math.MaxInt64
}

// TryTake takes the amount, which is at least 1, if there is so much credit and no other take waits. It
// reports whether it has, and returns what the packet costs. After [Sender.End] it reports false.
func (s *Sender) TryTake(amount uint64) (cost uint64, ok bool) {
	if s.waiting.Load() != 0 {
		return 0, false
	}
	return s.take(amount)
}

// Plain is the largest amount that a packet costs as it is, whatever the window.
const Plain = First - First/grantPart

// TryTakeAll is TryTake for packets that are sent together, of which none is more than [Plain]. The
// amount is that of all; it is what they cost, too, unless the receiver does not bound what is sent.
func (s *Sender) TryTakeAll(amount uint64) (cost uint64, ok bool) {
	if s.waiting.Load() != 0 {
		return 0, false
	}
	return s.pay(amount)
}

// take takes the amount if there is so much credit.
func (s *Sender) take(amount uint64) (cost uint64, ok bool) {
	if s.limit.Load() == Unbounded {
		return 0, true
	}
	window := s.window.Load()
	if window == 0 {
		// The window is not less than first. Only a packet that costs its amount whatever the window is can
		// be sent now.
		if window = s.first; amount > window-window/grantPart {
			return 0, false
		}
	}
	return s.pay(costOf(amount, window))
}

// pay takes the cost if there is so much credit. To a side that does not bound what is sent it is nothing.
func (s *Sender) pay(cost uint64) (paid uint64, ok bool) {
	for {
		sent, limit := s.sent.Load(), s.limit.Load()
		switch {
		case limit == Unbounded:
			return 0, true
		case cost > limit-min(sent, limit):
			return 0, false
		case s.sent.CompareAndSwap(sent, sent+cost):
			return cost, true
		}
	}
}

// Take takes the amount, which is at least 1, when there is so much credit and all takes that have waited
// longer are over. It returns what the packet costs. If Take waits it calls waits, which may be nil, when it
// is counted by Waiting. The error is that of End or Interrupt, or ctx's.
func (s *Sender) Take(ctx context.Context, amount uint64, waits func()) (cost uint64, err error) {
	if cost, ok := s.TryTake(amount); ok {
		return cost, nil
	}
	return s.wait(ctx, amount, s.take, waits)
}

// Return gives back what a packet has cost that was not sent after all.
func (s *Sender) Return(cost uint64) {
	if cost == 0 {
		return
	}
	s.sent.Add(-cost)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serveLocked(s.take)
}

// Sent returns how much was taken so far, without what was returned.
func (s *Sender) Sent() uint64 { return s.sent.Load() }

// Known reports whether the receiver has said what its window is.
func (s *Sender) Known() bool { return s.window.Load() != 0 }

// Open takes in a grant that comes with the receiver's window. A window of [Unbounded] means that this side
// may send as much as it likes from now on. Only the first window counts. The error wraps [ErrGrant].
func (s *Sender) Open(window, granted uint64) error {
	if window == 0 {
		return fmt.Errorf("%w: a window of 0", ErrGrant)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window.Load() == 0 {
		s.window.Store(window)
	}
	if s.window.Load() == Unbounded {
		granted = Unbounded
	}
	return s.grantLocked(granted)
}

// Grant takes in that this side may have sent the amount in all. An amount that is not more than an earlier
// one changes nothing. The error wraps [ErrGrant]: the amount is more than the window beyond what was sent,
// or the window is not known.
func (s *Sender) Grant(amount uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.grantLocked(amount)
}

func (s *Sender) grantLocked(amount uint64) error {
	if s.ended != nil || amount <= s.limit.Load() {
		return nil
	}
	switch window, sent := max(s.reach, s.window.Load()), s.sent.Load(); {
	case window == 0:
		return fmt.Errorf("%w: %d before a window", ErrGrant, amount)
	case window != Unbounded && amount > sent && amount-sent > window:
		return fmt.Errorf("%w: %d in all, where %d were sent and the window is %d", ErrGrant, amount, sent,
			window)
	}
	s.limit.Store(amount)
	s.serveLocked(s.take)
	return nil
}

// End ends all takes that wait, and all that follow, with the error, which is not nil. Only the first call
// counts.
func (s *Sender) End(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit.Store(0) // nothing can be taken
	s.endLocked(err)
}

// Err returns the error of End; nil before that.
func (s *Sender) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// Receiver counts what the other side sends, and what of it was handled. All methods are safe for concurrent
// use, but for Received and Grow, which are called by one goroutine at a time. Init makes a Receiver ready.
type Receiver struct {
	first    uint64 // the window at first, on which costs depend
	window   atomic.Uint64
	most     uint64 // how large the window may grow
	received atomic.Uint64
	handled  atomic.Uint64
	granted  atomic.Uint64 // written under mu
	mu       sync.Mutex
}

// Init makes the Receiver ready. At first the other side may send the amount given; a window that is smaller
// is taken for that. A window of [Unbounded] is no bound.
func (r *Receiver) Init(window, first uint64) {
	r.first = max(window, first)
	r.window.Store(r.first)
	r.granted.Store(first)
}

// GrowTo lets the window grow, by Grow, to at most the amount given.
func (r *Receiver) GrowTo(most uint64) { r.most = most }

// Grow doubles the window, if that may grow, and if of what was received less than a quarter of the window is
// not handled: then the receiver keeps up, and the sender, which has said that it waits, could be faster.
// Grow returns the amount to grant now, and whether that is more than was granted before.
func (r *Receiver) Grow() (grant uint64, more bool) {
	if window := r.window.Load(); window >= r.most || r.Held() >= window/grantPart {
		return 0, false
	}
	r.window.Store(min(2*r.window.Load(), r.most))
	return r.Grant()
}

// Shrink makes the window what it was at first. What was granted before may still be sent.
func (r *Receiver) Shrink() { r.window.Store(r.first) }

// Window returns the window.
func (r *Receiver) Window() uint64 { return r.window.Load() }

// Received counts a packet of the amount. It returns what the packet costs, which is to be given to Handled
// later. The error wraps [ErrOverdrawn].
func (r *Receiver) Received(amount uint64) (cost uint64, err error) {
	if r.first == Unbounded {
		return 0, nil
	}
	cost = costOf(amount, r.first)
	if cost < amount {
		r.most = 0 // many such packets would take much more than the window
	}
	granted := r.granted.Load()
	if received := r.received.Add(cost); received > granted {
		return cost, fmt.Errorf("%w: %d where %d were granted", ErrOverdrawn, received, granted)
	}
	return cost, nil
}

// Handled says that a packet of the cost was handled. If it is time for a grant, Handled returns the amount
// to grant and true. Each such amount is larger than the ones before, but the caller may send them in any
// order.
func (r *Receiver) Handled(cost uint64) (grant uint64, due bool) {
	if r.first == Unbounded {
		return 0, false
	}
	window := r.window.Load()
	if next := r.handled.Add(cost) + window; int64(next-r.granted.Load()) < int64(max(window/grantPart, 1)) {
		return 0, false
	}
	return r.Grant()
}

// Taken returns how much was handled so far.
func (r *Receiver) Taken() uint64 { return r.handled.Load() }

// Grant returns the amount to grant now, and whether that is more than was granted before.
func (r *Receiver) Grant() (grant uint64, more bool) {
	if r.first == Unbounded {
		return Unbounded, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.handled.Load() + r.window.Load()
	if next <= r.granted.Load() {
		return r.granted.Load(), false
	}
	r.granted.Store(next)
	return next, true
}

// Held returns how much was received and not handled yet.
func (r *Receiver) Held() uint64 {
	handled := r.handled.Load() // first, so that the difference is not negative
	return r.received.Load() - handled
}
