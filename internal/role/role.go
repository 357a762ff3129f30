// Package role makes it safe to run handlers on the goroutine that reads their connection, which saves most
// calls the cost of handing them to another goroutine. A reader that is held up by a handler is replaced by
// another goroutine, and a route that holds readers up, or takes long, gets goroutines of its own.
//
// # Invariants
//
//   - A turn is a number. It is odd while the reader is in code that may block, a handler or a write, and
//     even while it reads. In odd turns nothing that belongs to the reader is touched.
//   - An odd turn is made even by the reader itself when it comes back, or by the watch, which then has the
//     owner start another reader. Both use compare-and-swap on the turn that they have seen, so exactly one
//     succeeds and there is one reader. A reader that comes back too late finishes its call and ends.
//   - The reader is in a slot of the watch before its turn becomes odd.
package role

import (
	"sync/atomic"
	"time"
)

const (
	// Tick is how long a reader may be held up before the watch takes note. The watch ends after IdleTicks
	// ticks in which it has seen no reader.
	Tick      = 500 * time.Microsecond
	IdleTicks = 20
	// slots bounds how many readers can be watched at once, and thereby what a tick costs. A slot is
	// used from the first quick handler after a read from the connection to the next read, so few
	// are in use at a time. Readers that find none hand their calls to goroutines.
	slots = 64
	tries = 4
	// slotStep is the distance between the first slots of two connections: on another cache line, and so that
	// all slots are used.
	slotStep = 9
)

// Owner has readers, one at a time. It is a connection.
type Owner interface {
	// ReplaceReader is called by the watch when it has ended the reader's turn. The owner starts another
	// goroutine that reads.
	ReplaceReader()
}

// Role is the role of the reader of one owner, which one goroutine has at a time. Init makes it ready.
type Role struct {
	turn  atomic.Uint64
	owner Owner
	watch *Watch
	first uint32 // where the reader begins to look for a slot
}

// Init makes the Role ready. Its readers are watched by w. The serial must be different for each owner.
func (r *Role) Init(owner Owner, w *Watch, serial uint32) {
	r.owner, r.watch, r.first = owner, w, serial*slotStep
}

// Watch replaces readers that are held up. Its goroutine runs while there are readers to watch, and ends when
// the channel given to Init is closed.
type Watch struct {
	slots   [slots]atomic.Pointer[Role]
	running atomic.Bool
	closed  <-chan struct{}
}

// Init makes the Watch ready. Closing the channel says that nothing is read any more.
func (w *Watch) Init(closed <-chan struct{}) { w.closed = closed }

// Running reports whether the watch's goroutine runs.
func (w *Watch) Running() bool { return w.running.Load() }

// claim puts the role in a free slot and returns the slot's index; -1 if there is none.
func (w *Watch) claim(r *Role) int32 {
	for try := range uint32(tries) {
		i := int((r.first + try) % slots)
		if w.slots[i].Load() == nil && w.slots[i].CompareAndSwap(nil, r) {
			// The watch looks at the slots after it has said that it does not run.
			if !w.running.Load() && w.running.CompareAndSwap(false, true) {
				go w.run()
			}
			return int32(i)
		}
	}
	return -1
}

// run is the watch's goroutine. It ends when it has seen no reader for IdleTicks.
func (w *Watch) run() {
	ticker := time.NewTicker(Tick)
	defer ticker.Stop()
	var seen [slots]struct {
		role *Role
		turn uint64
	}
	for idle := 0; ; {
		select {
		case <-ticker.C:
		case <-w.closed:
			return
		}
		idle++
		for i := range w.slots {
			r := w.slots[i].Load()
			if r == nil {
				seen[i].role = nil
				continue
			}
			idle = 0
			turn := r.turn.Load()
			if turn%2 == 1 && seen[i].role == r && seen[i].turn == turn &&
				r.turn.CompareAndSwap(turn, turn+1) {
				w.slots[i].Store(nil)
				r.owner.ReplaceReader()
			}
			seen[i].role, seen[i].turn = r, turn
		}
		if idle < IdleTicks {
			continue
		}
		w.running.Store(false)
		if w.empty() || !w.running.CompareAndSwap(false, true) {
			return
		}
		idle = 0
	}
}

func (w *Watch) empty() bool {
	for i := range w.slots {
		if w.slots[i].Load() != nil {
			return false
		}
	}
	return true
}

// Turn is the time of one reader, from when it begins to read until it ends or is replaced. Only the reader's
// goroutine uses it.
type Turn struct {
	role *Role
	n    uint64 // the role's turn as the reader knows it
	slot int32  // its index in the watch's slots; -1 if it has none
}

// Begin makes the caller the role's reader.
func (r *Role) Begin() Turn {
	return Turn{role: r, n: r.turn.Load(), slot: -1}
}

// Watched puts the reader in a slot of the watch if it is in none, and reports whether it is in one, which it
// must be before Enter. It reports false if no slot is free.
func (t *Turn) Watched() bool {
	if t.slot < 0 {
		t.slot = t.role.watch.claim(t.role)
	}
	return t.slot >= 0
}

// Enter begins an odd turn: from here on the reader may be replaced.
func (t *Turn) Enter() {
	t.n++
	t.role.turn.Store(t.n)
}

// Leave ends an odd turn. It reports false if the reader was replaced meanwhile.
func (t *Turn) Leave() bool {
	if !t.role.turn.CompareAndSwap(t.n, t.n+1) {
		t.slot = -1
		return false
	}
	t.n++
	return true
}

// Away reports whether the reader is in an odd turn, or was when it was replaced.
func (t *Turn) Away() bool { return t.n%2 == 1 }

// Unwatch gives the slot back. The reader calls it before it waits for input.
func (t *Turn) Unwatch() {
	if t.slot >= 0 {
		t.role.watch.slots[t.slot].Store(nil)
		t.slot = -1
	}
}
