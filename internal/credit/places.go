package credit

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
)

// FirstPlaces is how many requests may be unanswered before the receiver has said how many it takes.
const FirstPlaces = 256

// Places numbers the requests of one side of a connection, and bounds how many of them the other side has not
// answered. A request has a place from when it gets its number until the answer comes, even if nobody waits
// for the answer any more.
//
// The bound is exact, although nearly every request takes its place without a lock. A request takes its
// number first and then compares the newest number with how many are done: numbers only grow, and a request
// that finds too many numbers in use leaves its own unused. What is done is read before the newest number,
// so that a request may see too many in use, and never too few.
//
// All methods are safe for concurrent use. Init makes Places ready.
type Places struct {
	taken *atomic.Uint64 // how many requests are complete
	last  atomic.Uint64  // the newest number
	// unused is how many numbers belong to requests that were not sent; they are not among those taken.
	unused atomic.Uint64
	// given up is how many requests are complete, because nobody waits for them any more, and unanswered.
	givenUp atomic.Int64
	most    atomic.Uint64
	known   atomic.Bool // the receiver has said what most is
	waiting atomic.Int64

	mu    sync.Mutex // guards the fields below
	queue *list.List // of *waitingRequest, the oldest first; nil until one waits
	ended error
}

// waitingRequest is a request that waits for a place.
type waitingRequest struct {
	number uint64
	err    error
	done   chan struct{} // closed when number or err is set
}

// Init makes Places ready. Taken counts the requests that are complete.
func (p *Places) Init(taken *atomic.Uint64) {
	p.taken = taken
	p.most.Store(FirstPlaces)
}

// Try takes a place if one is free and no other request waits. The request has the number that Try returns.
func (p *Places) Try() (number uint64, ok bool) {
	if p.waiting.Load() != 0 {
		return 0, false
	}
	if number, ok = p.take(); !ok {
		p.Freed() // another request may have counted the number that was left unused
	}
	return number, ok
}

// take takes a place, or leaves a number unused.
func (p *Places) take() (number uint64, ok bool) {
	number = p.last.Add(1)
	if p.Unanswered() <= p.most.Load() {
		return number, true
	}
	p.unused.Add(1)
	return 0, false
}

// Unanswered returns how many requests have a place.
func (p *Places) Unanswered() uint64 {
	done := p.unused.Load() + p.taken.Load()
	done -= uint64(max(p.givenUp.Load(), 0)) // read after taken, as GiveUp counts first
	return p.last.Load() - done
}

// Scarce reports whether half of the places are taken, and the receiver has not said yet how many there are.
func (p *Places) Scarce() bool { return !p.known.Load() && p.Unanswered() > FirstPlaces/2 }

// Take takes a place when one is free and all requests that have waited longer have theirs. If Take waits it
// calls waits when the request is counted by Waiting. The error is that of [Places.End] or
// [Places.Interrupt], or ctx's.
func (p *Places) Take(ctx context.Context, waits func()) (number uint64, err error) {
	if number, ok := p.Try(); ok {
		return number, nil
	}
	r := &waitingRequest{done: make(chan struct{})}
	p.mu.Lock()
	if p.ended != nil {
		defer p.mu.Unlock()
		return 0, p.ended
	}
	if p.queue == nil {
		p.queue = list.New()
	}
	at := p.queue.PushBack(r)
	p.waiting.Add(1)
	p.serveLocked() // a place may have come free since Try
	p.mu.Unlock()
	waits()
	select {
	case <-r.done:
		return r.number, r.err
	case <-ctx.Done():
	}
	over := ctx.Err() // before the lock, as the context is the caller's
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-r.done: // in the last moment
		return r.number, r.err
	default:
	}
	p.queue.Remove(at)
	p.waiting.Add(-1)
	return 0, over
}

func (p *Places) serveLocked() {
	for p.waiting.Load() > 0 {
		number, ok := p.take()
		if !ok {
			return
		}
		r := p.queue.Remove(p.queue.Front()).(*waitingRequest)
		p.waiting.Add(-1)
		r.number = number
		close(r.done)
	}
}

// Unused says that a request which had a place was not sent, and is not among those that are taken.
func (p *Places) Unused() {
	p.unused.Add(1)
	p.Freed()
}

// Aside takes a number for a request that needs no place. When it is complete, and among those that are
// taken, Complete must be called.
func (p *Places) Aside() (number uint64) {
	number = p.last.Add(1)
	p.unused.Add(1)
	return number
}

// Complete says that a request aside is complete.
func (p *Places) Complete() { p.unused.Add(^uint64(0)) }

// Freed is called when a request is complete, and has no place any more.
func (p *Places) Freed() {
	if p.waiting.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serveLocked()
}

// GiveUp is called before a request is taken that will be complete without an answer, and KeepOn if the
// request could not be taken.
func (p *Places) GiveUp() { p.givenUp.Add(1) }

// KeepOn takes back GiveUp.
func (p *Places) KeepOn() {
	p.givenUp.Add(-1)
	p.Freed()
}

// Late says that the answer to a request has come which is complete without it.
func (p *Places) Late() {
	for n := p.givenUp.Load(); n > 0; n = p.givenUp.Load() {
		if p.givenUp.CompareAndSwap(n, n-1) {
			p.Freed()
			return
		}
	}
}

// Open says how many requests may be unanswered at a time: [Unbounded], or a number, which is taken for 1 if
// it is 0. Only the first call counts.
func (p *Places) Open(most uint64) {
	if p.known.Swap(true) {
		return
	}
	p.most.Store(max(most, 1))
	p.Freed()
}

// Awaited reports whether any request waits for an answer, or is about to be sent.
func (p *Places) Awaited() bool {
	done := p.taken.Load() + p.unused.Load() // read before the number, as a request takes its number first
	return p.last.Load() != done
}

// Sent reports whether the number has been taken.
func (p *Places) Sent(number uint64) bool { return number <= p.last.Load() }

// Waiting returns how many requests wait for a place.
func (p *Places) Waiting() int { return int(p.waiting.Load()) }

// Interrupt ends the waits of now with the error, which is not nil.
func (p *Places) Interrupt(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.interruptLocked(err)
}

// End is Interrupt for the waits that follow, too. Only the first call counts.
func (p *Places) End(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended == nil {
		p.ended = err
		p.interruptLocked(err)
	}
}

func (p *Places) interruptLocked(err error) {
	for p.waiting.Load() > 0 {
		r := p.queue.Remove(p.queue.Front()).(*waitingRequest)
		p.waiting.Add(-1)
		r.err = err
		close(r.done)
	}
}
