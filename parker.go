package tp

import (
	"sync"
	"sync/atomic"
)

// parker is where one goroutine waits for one event, again and again. It is a
// sync.Cond without a mutex: waking through one costs less than through a
// sync.WaitGroup, and unlike a channel it may be pooled, for it belongs to no
// bubble of testing/synctest. It is used after init.
type parker struct {
	state atomic.Uint32
	cond  sync.Cond
}

const (
	parkerIdle   = iota // neither side was there yet
	parkerParked        // somebody waits and has to be woken
	parkerDone
)

func (p *parker) init() { p.cond.L = (*parkerLocker)(p) }

// park returns once unpark was called. After that the parker is as it was at
// first.
func (p *parker) park() {
	if p.state.Load() != parkerDone {
		p.cond.Wait()
	}
	p.state.Swap(parkerIdle) // and not Store: it reads what unpark has written
}

// unpark lets park return. It is called once for each park, before or after it,
// and leaves the parker alone as soon as park may return.
func (p *parker) unpark() {
	if p.state.Swap(parkerDone) == parkerParked {
		p.cond.Signal()
	}
}

// parkerLocker is the Locker of a parker's Cond. The Cond unlocks it when the
// goroutine is among those that Signal wakes, and before it stops it.
type parkerLocker parker

func (l *parkerLocker) Lock() {}

func (l *parkerLocker) Unlock() {
	if !l.state.CompareAndSwap(parkerIdle, parkerParked) { // unpark was faster
		l.cond.Signal()
	}
}
