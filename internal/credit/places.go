package credit

import (
	"context"
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
// that finds too many numbers in use leaves its own unused. What is done is read before the newest number, so
// that a request may see too many in use, and never too few. Only when a request aside is complete one more
// may get a place for a moment.
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
	line
}

// Init makes Places ready. Taken counts the requests that are complete.
func (p *Places) Init(taken *atomic.Uint64) {
	p.taken = taken
	p.most.Store(FirstPlaces)
}

// Try takes a place if one is free and no other request waits. The request has the number that Try returns.
// Scarce reports whether half of the places are taken, and the receiver has not said yet how many there are.
func (p *Places) Try() (number uint64, ok, scarce bool) {
	if p.waiting.Load() != 0 {
		return 0, false, false
	}
	number, unanswered, ok := p.takeOne()
	if !ok {
		p.Freed() // another request may have counted the number that was left unused
	}
	return number, ok, unanswered > FirstPlaces/2 && !p.known.Load()
}

// takeOne takes a place, or leaves a number unused. It returns how many requests had a place with this one.
func (p *Places) takeOne() (number, unanswered uint64, ok bool) {
	number, unanswered = p.last.Add(1), p.Unanswered()
	if unanswered <= p.most.Load() {
		return number, unanswered, true
	}
	p.unused.Add(1)
	return 0, unanswered, false
}

// take is takeOne for the line.
func (p *Places) take(uint64) (number uint64, ok bool) {
	number, _, ok = p.takeOne()
	return number, ok
}

// Unanswered returns how many requests have a place.
func (p *Places) Unanswered() uint64 {
	done := p.unused.Load() + p.taken.Load()
	done -= uint64(max(p.givenUp.Load(), 0)) // read after taken, as GiveUp counts first
	return p.last.Load() - done
}

// Take takes a place when one is free and all requests that have waited longer have theirs. If Take waits it
// calls waits when the request is counted by Waiting. The error is that of End or Interrupt, or ctx's.
func (p *Places) Take(ctx context.Context, waits func()) (number uint64, err error) {
	if number, ok, _ := p.Try(); ok {
		return number, nil
	}
	return p.wait(ctx, 1, p.take, waits)
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
	p.serveLocked(p.take)
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
