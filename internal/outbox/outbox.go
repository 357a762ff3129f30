// Package outbox keeps the pushes of groups that one connection cannot take now, because its other side
// is slow, and decides which of them go when they become too many.
package outbox

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/internal/chain"
)

// Item is a push that waits.
type Item struct {
	*bufpool.Shared        // its bytes, which other connections have too
	Amount          uint64 // the credit that the push takes
	Policy
}

// Policy says what may become of a push that waits.
type Policy struct {
	// Key is what the push is a new value of, within Of: an older one with the same key that waits is
	// replaced, in its place. Empty is none.
	Key string
	Of  any
	// Most is how many pushes with a Most, of the same Of, may wait, with this one; the oldest of them are
	// dropped. 0 is no bound: such a push is not dropped.
	Most int
	// Cut says that the push must not wait behind something that has not moved for the time given.
	Cut   bool
	After time.Duration
}

// Outcome is what has become of a push, and of those that waited before it.
type Outcome struct {
	Queued   bool // the push waits
	Dropped  int  // pushes that were dropped, this one if it is not Queued
	Replaced int  // pushes that were replaced
	Cut      bool // the connection cannot take what it must
	NoMemory bool // because there is no memory, and not because too much waits already
}

// Budget is the memory that a connection may keep alive. Its methods must not wait. The bytes of pushes
// are not taken from there: many connections share them.
type Budget interface {
	Take(n int64) bool
	Give(n int64)
	Force(n int64)
}

// Box has the pushes that wait for one connection. The goroutine that is told to begin by Add sends them:
// First, then Take, until First has none. Init makes it ready. All methods are safe for concurrent use.
type Box struct {
	Owner  any // the connection
	budget Budget
	most   int64
	set    *Set

	mu      sync.Mutex // guards the fields below
	bytes   int64
	entries chain.List[*entry] // in their order
	count   int
	keys    map[key]*entry
	drops   map[any][]*entry // by group, those that may be dropped, the oldest first
	busy    bool             // somebody sends what waits
	moved   time.Time        // when something was sent last, or began to wait
	ended   bool
}

// entry is an item in its place.
type entry struct {
	Item
	link chain.Link[*entry]
}

type key struct {
	of   any
	name string
}

// ItemCost is what an item takes beside its bytes.
const ItemCost = 192

func (it *Item) cost() int64 { return int64(len(it.B)) + ItemCost }

// Set has the boxes in which something waits. Init makes it ready.
type Set struct {
	account Account

	mu  sync.Mutex // guards all
	all map[*Box]struct{}
}

// Account is the memory of what waits. Waits says that from now on something waits, or that nothing does
// any more.
type Account interface{ Waits(waits bool) }

// Init makes the Set ready. The account is told whether something waits in any of the boxes.
func (s *Set) Init(account Account) { s.account = account }

// Stalled returns the boxes in which something waits and nothing has moved for d or longer.
func (s *Set) Stalled(d time.Duration) []*Box {
	return slices.DeleteFunc(s.list(), func(x *Box) bool { return !x.stalledFor(d) })
}

func (s *Set) list() []*Box {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.all))
}

func (s *Set) add(x *Box) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*Box]struct{})
	}
	if s.all[x] = struct{}{}; len(s.all) == 1 {
		s.account.Waits(true)
	}
}

func (s *Set) remove(x *Box) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.all, x); len(s.all) == 0 {
		s.account.Waits(false)
	}
}

// Init makes the Box ready. Up to so many bytes may wait; a negative number is no bound. While something
// waits the box is in the set.
func (x *Box) Init(owner any, budget Budget, most int64, set *Set) {
	x.Owner, x.budget, x.most, x.set = owner, budget, most, set
}

// Busy reports whether something waits, so that a push may not pass it by, or has ended.
func (x *Box) Busy() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.busy || x.ended
}

// Waits reports whether something waits.
func (x *Box) Waits() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.busy
}

func (x *Box) stalledFor(d time.Duration) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stalledLocked(d)
}

// stalledLocked reports whether something waits, and nothing has moved for d or longer.
func (x *Box) stalledLocked(d time.Duration) bool { return x.busy && time.Since(x.moved) >= d }

// Add has a push wait. Begin says that the caller must have a goroutine send what waits.
func (x *Box) Add(it Item) (o Outcome, begin bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.ended:
		return Outcome{Dropped: 1}, false
	case it.Cut && x.stalledLocked(it.After):
		return Outcome{Cut: true}, false
	}
	k := key{it.Of, it.Key}
	if old := x.keys[k]; old != nil && it.Key != "" {
		if x.roomLocked(it.cost()-old.cost()) && it.Hold(false) {
			x.bytes += it.cost() - old.cost()
			it.Most = old.Most
			old.Release()
			old.Item = it
			return Outcome{Queued: true, Replaced: 1}, false
		}
	}
	if it.Most > 0 {
		for len(x.drops[it.Of]) >= it.Most {
			x.dropLocked(it.Of)
			o.Dropped++
		}
	}
	for !x.takeLocked(it) {
		switch {
		case x.dropLocked(it.Of), x.dropAnyLocked():
			o.Dropped++
			continue
		case it.Most > 0:
			o.Dropped++
		default:
			o.Cut, o.NoMemory = true, x.roomLocked(it.cost())
		}
		return o, false
	}
	e := &entry{Item: it}
	e.link.Of = e
	x.entries.PushBack(&e.link)
	if it.Key != "" {
		if x.keys == nil {
			x.keys = make(map[key]*entry)
		}
		x.keys[k] = e
	}
	if it.Most > 0 {
		if x.drops == nil {
			x.drops = make(map[any][]*entry)
		}
		x.drops[it.Of] = append(x.drops[it.Of], e)
	}
	x.count++
	o.Queued = true
	if begin = !x.busy; begin {
		x.busy = true
		x.moved = time.Now()
		x.set.add(x)
	}
	return o, begin
}

// roomLocked reports whether n more bytes may wait. One push may, whatever its size.
func (x *Box) roomLocked(n int64) bool {
	return x.most < 0 || x.bytes == 0 || n <= 0 || x.bytes+n <= x.most
}

// takeLocked takes what the item needs.
func (x *Box) takeLocked(it Item) bool {
	switch {
	case !x.roomLocked(it.cost()), !it.Hold(false):
		return false
	case x.count == 0: // what the connection holds beside may be all that it may
		x.budget.Force(ItemCost)
	case !x.budget.Take(ItemCost):
		it.Release()
		return false
	}
	x.bytes += it.cost()
	return true
}

// dropLocked drops the oldest push of the group that may be dropped, and reports whether there was one.
func (x *Box) dropLocked(of any) bool {
	list := x.drops[of]
	if len(list) == 0 {
		return false
	}
	list[0].Release()
	x.forgetLocked(list[0])
	return true
}

// dropAnyLocked is dropLocked for the group that has the oldest one.
func (x *Box) dropAnyLocked() bool {
	for l := x.entries.First(); len(x.drops) > 0 && l != nil; l = l.Next() {
		if e := l.Of; e.Most > 0 {
			return x.dropLocked(e.Item.Of)
		}
	}
	return false
}

// forgetLocked takes the entry out. Its bytes are still held.
func (x *Box) forgetLocked(e *entry) {
	x.bytes -= e.cost()
	x.budget.Give(ItemCost)
	if k := (key{e.Of, e.Key}); e.Key != "" && x.keys[k] == e {
		delete(x.keys, k)
	}
	if e.Most > 0 {
		// The oldest always goes first, whether it is sent or dropped.
		if x.drops[e.Of] = x.drops[e.Of][1:]; len(x.drops[e.Of]) == 0 {
			delete(x.drops, e.Of)
		}
	}
	x.entries.Remove(&e.link)
	x.count--
}

// First returns the push that is to be sent next; it stays. If there is none, whoever sends has nothing
// to do any more.
func (x *Box) First() (Item, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	first := x.entries.First()
	if first == nil {
		x.idleLocked()
		return Item{}, false
	}
	return first.Of.Item, true
}

func (x *Box) idleLocked() {
	if x.busy {
		x.busy = false
		x.set.remove(x)
	}
}

// Take takes the push out that is to be sent next, if that takes the amount of credit. Another one may
// have come in its place meanwhile. The caller releases its bytes when it is queued elsewhere.
func (x *Box) Take(amount uint64) (Item, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	first := x.entries.First()
	if first == nil || first.Of.Amount != amount {
		return Item{}, false
	}
	x.forgetLocked(first.Of)
	x.moved = time.Now()
	return first.Of.Item, true
}

// Waiting returns how many pushes wait, and how many bytes they keep alive, those counted that others
// have too.
func (x *Box) Waiting() (n int, bytes int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.count, x.bytes
}

// End drops all that waits, and returns how many pushes that were and how many bytes. Nothing waits there
// from now on. It reports whether the box has not ended before.
func (x *Box) End() (n int, bytes int64, first bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	first = !x.ended
	x.ended = true
	n, bytes = x.count, x.bytes
	for l := x.entries.First(); l != nil; l = x.entries.First() {
		l.Of.Release()
		x.forgetLocked(l.Of)
	}
	x.idleLocked()
	return n, bytes, first
}
