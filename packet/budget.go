package packet

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Budget bounds the memory, in bytes, that one owner takes: a connection for what it
// receives, or for what waits to be written to it. It is an owner's part of a [Pool], or
// stands alone. Nil is without a bound. All methods are safe for concurrent use.
type Budget struct {
	pool  *Pool
	owner Owner // nil if there is none

	mu    sync.Mutex // guards used and ended
	used  int64
	ended bool
	// borrowed is how much of used comes from the pool, in steps. Since is when the owner began to wait for
	// the other side, in nanoseconds from the start of the process; 0 if it does not wait. They are written
	// under mu and by Waits, and read without.
	borrowed, since atomic.Int64
	asked           int64 // bytes asked for and not given back; guarded by the pool's mu
}

// An Owner of a [Budget] is asked to give back all that its budget has taken, because others need the memory
// and this owner has waited longest with most of it. The call must not block.
type Owner interface {
	Reclaim(b *Budget, held int64)
}

// A Pool is memory that many budgets share, beside a share that each has of its own.
// What a budget may take of the pool depends on what is left: sharing times as much as
// is left when it has been taken. So the more want some the less each of them can have,
// and there is always something left for a newcomer. The rule is that of "Dynamic Queue
// Length Thresholds for Shared-Memory Packet Switches" by Choudhury and Hahne, 1998.
//
// When a budget needs more than that, owners that have waited for their other sides for [Patience] or longer
// are asked to give back what they hold: first those with the largest product of bytes and time.
type Pool struct {
	most    int64 // all that may be taken
	share   int64 // of each budget
	sharing int64
	used    atomic.Int64
	orphans atomic.Int64 // bytes that budgets which have ended still use

	mu      sync.Mutex // guards the fields below
	members map[*Budget]struct{}
	// again is when overdue looks again for more bytes than scarce, in nanoseconds from the start of the
	// process.
	again, scarce int64
	// coming is how many bytes owners were asked for and will give back in a moment. It counts until
	// comingBy.
	coming, comingBy int64
}

const (
	// sharing lets a budget that is alone take four fifths of its pool.
	sharing = 4
	// loan is how many bytes a budget takes from its pool at a time, if the pool has so many.
	loan = 32 << 10
)

// Patience is for how long an owner may wait for its other side before it may be asked to give its memory
// back.
const Patience = time.Second

// NewPool returns a pool of most bytes; nil, which is without a bound, for a negative
// number. Each of its budgets has share bytes beside that.
func NewPool(most, share int64) *Pool {
	if most < 0 {
		return nil
	}
	return &Pool{most: most, share: share, sharing: sharing}
}

// NewBudget returns a budget of so many bytes that stands alone; nil, which is without a
// bound, for a negative number.
func NewBudget(most int64) *Budget {
	if most < 0 {
		return nil
	}
	return &Budget{pool: &Pool{most: most, sharing: math.MaxInt32}}
}

// Join makes b a budget of the pool, which may be nil, for owner, which may be nil too.
func (p *Pool) Join(b *Budget, owner Owner) { b.pool, b.owner = p, owner }

// Lent returns how many bytes of the pool are lent now.
func (p *Pool) Lent() int64 {
	if p == nil {
		return 0
	}
	return p.used.Load()
}

// Left returns how many bytes the budgets hold that have ended.
func (p *Pool) Left() int64 {
	if p == nil {
		return 0
	}
	return p.orphans.Load()
}

// Take takes n bytes, and reports false, and takes nothing, if the budget may not have so
// many.
func (b *Budget) Take(n int64) bool {
	if b == nil || b.pool == nil || n <= 0 {
		return true
	}
	if b.try(n) {
		return true
	}
	if b.pool.reclaim(b, b.missing(n)) {
		b.Force(n)
		return true
	}
	return false
}

// missing returns how many bytes others would have to give back before n more can be lent.
func (b *Budget) missing(n int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, held := b.pool, b.borrowed.Load()
	need := b.used + n - p.share - held
	if held+need > p.most {
		return math.MaxInt64
	}
	return p.used.Load() - p.promised() + need + (held+need)/p.sharing - p.most
}

// promised returns how many bytes are about to be given back.
func (p *Pool) promised() int64 {
	now := sinceStart()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.comingBy == 0 || now > p.comingBy {
		p.coming = 0
	}
	return p.coming
}

// try is Take without asking others to give memory back.
func (b *Budget) try(n int64) bool {
	if b == nil || b.pool == nil || n <= 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.takeLocked(n)
}

func (b *Budget) takeLocked(n int64) bool {
	if b.used+n <= b.pool.share+b.borrowed.Load() {
		b.useLocked(n)
		return true
	}
	p, held := b.pool, b.borrowed.Load()
	need := b.used + n - p.share - held
	if more := max(need, loan); p.lend(held, more) {
		need = more
	} else if !p.lend(held, need) {
		return false
	}
	b.borrowLocked(need)
	b.useLocked(n)
	return true
}

// TakeAlone takes n bytes, more than the pool ever lends to one budget, if no other budget has borrowed from
// the pool, or all that have are owners that are asked to give it back. So a packet that is larger than the
// pool gets its turn too.
func (b *Budget) TakeAlone(n int64) bool {
	if b == nil || b.pool == nil {
		return true
	}
	p := b.pool
	if n <= p.most/2 {
		return false
	}
	if others := p.used.Load() - b.borrowed.Load(); others > 0 && !p.reclaim(b, others-p.promised()) {
		return false
	}
	b.Force(n)
	return true
}

// Force takes n bytes whether there are so many or not.
func (b *Budget) Force(n int64) {
	if b == nil || b.pool == nil || n <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if need := b.used + n - b.pool.share - b.borrowed.Load(); need > 0 {
		b.pool.used.Add(need)
		b.borrowLocked(need)
	}
	b.useLocked(n)
}

func (b *Budget) useLocked(n int64) {
	b.used += n
	if b.ended {
		b.pool.orphans.Add(n)
	}
}

// borrowLocked counts n bytes that the pool has lent.
func (b *Budget) borrowLocked(n int64) {
	if b.borrowed.Add(n) == n && b.owner != nil {
		b.pool.enter(b)
	}
}

// Give returns n bytes that were taken.
func (b *Budget) Give(n int64) {
	if b == nil || b.pool == nil || n <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.useLocked(-n)
	held := b.borrowed.Load()
	if held == 0 {
		return
	}
	back := held - max(b.used-b.pool.share, 0)
	if back < held { // a part is still in use, so more may be needed in a moment
		if back -= loan; back < loan {
			return
		}
	}
	b.pool.used.Add(-back)
	if b.borrowed.Add(-back) == 0 && b.owner != nil {
		b.pool.leave(b)
	}
}

// Used returns how many bytes are taken now.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// End says that the owner has ended. What its budget still holds counts against the pool until it is given
// back.
func (b *Budget) End() {
	if b == nil || b.pool == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		b.ended = true
		b.pool.orphans.Add(b.used)
	}
}

// Waits says that from now on the owner waits for its other side, even if it has waited before; with false,
// that it does not wait any more.
func (b *Budget) Waits(waits bool) {
	if b == nil || b.pool == nil {
		return
	}
	now := int64(0)
	if waits {
		now = sinceStart()
	}
	b.since.Store(now)
}

var start = time.Now()

// sinceStart returns the time in nanoseconds from the start of the process. It is never 0.
func sinceStart() int64 { return int64(time.Since(start)) | 1 }

// lend takes n bytes for a budget that has already borrowed held bytes.
func (p *Pool) lend(held, n int64) bool {
	for {
		used := p.used.Load()
		left := p.most - used - n
		if left < 0 || (held+n)/p.sharing > left {
			return false
		}
		if p.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

func (p *Pool) enter(b *Budget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.members == nil {
		p.members = make(map[*Budget]struct{})
	}
	p.members[b] = struct{}{}
}

func (p *Pool) leave(b *Budget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b.borrowed.Load() == 0 { // otherwise it has borrowed again
		delete(p.members, b)
		p.coming = max(p.coming-b.asked, 0)
		b.asked = 0
	}
}

// reclaim asks owners for n bytes and reports whether they hold so many. They will give them back in a
// moment. Each owner is asked once.
func (p *Pool) reclaim(b *Budget, n int64) bool {
	if n <= 0 { // what will be given back is enough
		return true
	}
	victims := p.overdue(b, n)
	for _, v := range victims {
		v.budget.owner.Reclaim(v.budget, v.held)
	}
	return len(victims) > 0
}

// overdue is a member that has waited for too long.
type overdue struct {
	budget *Budget
	held   int64
	score  float64
}

// rescan is how long overdue does not look again after it has found too little.
const rescan = 10 * time.Millisecond

// overdue returns the members other than b that have waited longest with most, as many as together hold n
// bytes, and takes them out of the members. It returns none if all together do not hold so many.
func (p *Pool) overdue(b *Budget, n int64) []overdue {
	now := sinceStart()
	p.mu.Lock()
	defer p.mu.Unlock()
	if n == math.MaxInt64 || p.again != 0 && now < p.again && n > p.scarce {
		return nil
	}
	var found []overdue
	all := int64(0)
	for m := range p.members {
		since, held := m.since.Load(), m.borrowed.Load()
		if m == b || since == 0 || now-since < int64(Patience) {
			continue
		}
		found = append(found, overdue{m, held, float64(held) * float64(now-since)})
		all += held
	}
	if all < n {
		p.again, p.scarce = now+int64(rescan), all
		return nil
	}
	slices.SortFunc(found, func(a, b overdue) int { return cmp.Compare(b.score, a.score) })
	enough := 0
	for n > 0 {
		of := found[enough]
		n -= of.held
		delete(p.members, of.budget)
		of.budget.asked = of.held
		p.coming += of.held
		enough++
	}
	p.comingBy = now + int64(Patience)
	return found[:enough]
}
