// Package waiter lets a goroutine wait for an event that another goroutine completes.
package waiter

import (
	"sync"
	"sync/atomic"
)

// Waiter is where one goroutine waits for one event, again and again. Inside there is a
// sync.Cond without a mutex: to wake a goroutine by it costs less than by a
// sync.WaitGroup, and unlike a channel a Waiter may be pooled, as it belongs to no
// bubble of testing/synctest. It is used after Init.
type Waiter struct {
	state atomic.Uint32
	cond  sync.Cond
}

const (
	idle    = iota // neither side was there yet
	waiting        // a goroutine waits and has to be woken
	done
)

// Init makes the Waiter ready.
func (w *Waiter) Init() { w.cond.L = (*locker)(w) }

// Wait returns when Done has been called. After that the Waiter is as it was at first.
func (w *Waiter) Wait() {
	if w.state.Load() != done {
		w.cond.Wait()
	}
	w.state.Swap(idle) // and not Store: this reads what Done has written
}

// Done lets Wait return. It is called once for each Wait, before or after that, and does not touch
// the Waiter any more as soon as Wait may return.
func (w *Waiter) Done() {
	if w.state.Swap(done) == waiting {
		w.cond.Signal()
	}
}

// locker is the Locker of a Waiter's Cond. The Cond unlocks it when the goroutine is among those
// that Signal wakes, and before the goroutine stops.
type locker Waiter

func (l *locker) Lock() {}

func (l *locker) Unlock() {
	if !l.state.CompareAndSwap(idle, waiting) { // Done has been called already
		l.cond.Signal()
	}
}
