package balance

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// budgetWindow is how long what was saved can be spent.
const budgetWindow = 10 * time.Second

// Budget bounds how many calls are made again, so that retries cannot make of an overload an outage: a share
// of the calls, and a few a second so that clients with few calls may retry at all. It is Finagle's retry
// budget.
//
// In any time there are at most share times the calls plus perSecond times the seconds, and what a second
// gives at the beginning; what was saved in quiet times is lost within ten seconds. Safe for concurrent use;
// a call costs one atomic addition.
type Budget struct {
	share, perSecond float64
	calls            atomic.Int64 // since the last look

	mu     sync.Mutex // guards the fields below
	saved  float64
	looked time.Duration
}

// NewBudget returns a budget. It panics if share or perSecond is negative, infinite or not a number.
func NewBudget(share, perSecond float64, now time.Duration) *Budget {
	if !(share >= 0 && share <= math.MaxFloat32) || !(perSecond >= 0 && perSecond <= math.MaxFloat32) {
		panic(fmt.Sprintf("balance: a budget of %v of the calls and %v a second, must be 0 or more and "+
			"finite", share, perSecond))
	}
	return &Budget{share: share, perSecond: perSecond, saved: perSecond, looked: now}
}

// Call counts a call that is made for the first time.
func (b *Budget) Call() { b.calls.Add(1) }

// Take reports whether a call may be made again, and counts it if so.
func (b *Budget) Take(now time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	passed := max(now-b.looked, 0)
	b.looked += passed
	gained := b.share*float64(b.calls.Swap(0)) + b.perSecond*float64(passed)/float64(time.Second)
	if passed < budgetWindow {
		// One retry is kept for as long as it takes, or a small budget would never get so far.
		rest := max(b.saved-1, 0) * (1 - float64(passed)/float64(budgetWindow))
		b.saved = min(b.saved, 1) + rest + gained
	} else {
		b.saved = max(min(b.saved+gained, 1), gained*float64(budgetWindow)/float64(passed))
	}
	if b.saved < 1 {
		return false
	}
	b.saved--
	return true
}
