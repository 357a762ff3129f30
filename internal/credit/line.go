package credit

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
)

// line is where goroutines wait for their share of something, in the order in which they came.
type line struct {
	waiting atomic.Int64 // how many wait

	mu    sync.Mutex // guards the fields below
	queue *list.List // of *waiter, the oldest first; nil until one waits
	ended error      // why nothing can be had any more
}

// waiter is a goroutine that waits.
type waiter struct {
	amount uint64        // that it wants
	got    uint64        // what try has returned; set before over is closed, as is err
	err    error         // nil if it has got something
	over   chan struct{} // closed when the wait is over
}

// wait waits until try has an amount for the caller, and for all that have waited longer. It returns what try
// has returned. When the caller is counted by Waiting it calls waits, which may be nil. The error is that of
// Interrupt or End, or ctx's.
func (l *line) wait(ctx context.Context, amount uint64, try func(amount uint64) (got uint64, ok bool),
	waits func()) (got uint64, err error) {
	w := &waiter{amount: amount, over: make(chan struct{})}
	l.mu.Lock()
	if l.ended != nil {
		defer l.mu.Unlock()
		return 0, l.ended
	}
	if l.queue == nil {
		l.queue = list.New()
	}
	at := l.queue.PushBack(w)
	l.waiting.Add(1)
	l.serveLocked(try) // something may have come since the caller has tried
	l.mu.Unlock()
	if waits != nil {
		waits()
	}
	select {
	case <-w.over:
		return w.got, w.err
	case <-ctx.Done():
	}
	over := ctx.Err() // before the lock, as the context is the caller's
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-w.over: // in the last moment
		return w.got, w.err
	default:
	}
	l.queue.Remove(at)
	l.waiting.Add(-1)
	l.serveLocked(try) // there may be enough for those behind this one
	return 0, over
}

// serveLocked ends the waits of those for whom try has something, in their order.
func (l *line) serveLocked(try func(amount uint64) (got uint64, ok bool)) {
	for l.waiting.Load() > 0 {
		w := l.queue.Front().Value.(*waiter)
		got, ok := try(w.amount)
		if !ok {
			return
		}
		w.got = got
		l.endFirstLocked(w)
	}
}

// endFirstLocked ends the wait of the first, which is w.
func (l *line) endFirstLocked(w *waiter) {
	l.queue.Remove(l.queue.Front())
	l.waiting.Add(-1)
	close(w.over)
}

// Waiting returns how many wait.
func (l *line) Waiting() int { return int(l.waiting.Load()) }

// Interrupt ends the waits of now with the error, which is not nil.
func (l *line) Interrupt(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.interruptLocked(err)
}

// End is Interrupt for the waits that follow, too. Only the first call counts.
func (l *line) End(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(err)
}

func (l *line) endLocked(err error) {
	if l.ended == nil {
		l.ended = err
		l.interruptLocked(err)
	}
}

func (l *line) interruptLocked(err error) {
	for l.waiting.Load() > 0 {
		w := l.queue.Front().Value.(*waiter)
		w.err = err
		l.endFirstLocked(w)
	}
}
