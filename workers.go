package tp

import (
	"sync"
	"time"
	"unsafe"
)

// workers runs the calls of routes that are not quick, each on a goroutine of
// its own, and no more of them than are allowed. A goroutine is used again: its
// stack has grown to what calls need.
type workers struct {
	// The most calls that run at once, in all and for one session, and the most
	// memory of one session's pushes that wait; negative numbers are no bounds.
	most, mostOfOne int
	mostWaiting     int64

	mu sync.Mutex // guards the fields below, and every session's calls
	// idle is a stack: the one that was used last is the next.
	idle     []*worker
	spare    int  // the fewest that were idle since the last sweep
	sweeping bool // a goroutine runs sweep
	closed   bool
	running  int // calls, and readers that were replaced while they ran one
	// blocked are the sessions with pushes that wait only because too many calls
	// run in all, each of which has its turn. Others wait for the end of a call of
	// their own.
	blocked []*link
}

// calls is what workers knows of a session.
type calls struct {
	running      int
	waiting      []*packetCtx // pushes
	waitingBytes int64
	blocked      bool // is in workers.blocked
}

type worker struct{ next chan *packetCtx } // with room for one; nil ends it

const (
	maxIdleWorkers = 1 << 10
	sweepWorkers   = time.Second
	// waitingCost is what a push that waits takes beside a body of more than
	// smallPacket.
	waitingCost = int64(unsafe.Sizeof(packetCtx{}) + unsafe.Sizeof(exchange{}))
)

// waitingCost is what a push that waits takes in all.
func (c *packetCtx) waitingCost() int64 { return waitingCost + max(c.cost, int64(len(c.body))) }

// verdict is what becomes of a call.
type verdict uint8

const (
	accepted   verdict = iota // it runs, or will
	overloaded                // it is a pull, and will not
	overflown                 // it is a push, and the session has no room for it
	noMemory                  // it is a push, and the peer has no memory for it
)

// run handles c, now or when there is room for it, and returns at once.
func (w *workers) run(c *packetCtx) verdict {
	own := &c.link.calls
	w.mu.Lock()
	if !w.roomLocked(own) || len(own.waiting) > 0 {
		defer w.mu.Unlock()
		if c.handler == nil || c.handler.pull {
			return overloaded
		}
		return w.waitLocked(c)
	}
	w.startLocked(c)
	return accepted
}

func (w *workers) roomLocked(own *calls) bool {
	return within(w.running+1, w.most) && within(own.running+1, w.mostOfOne)
}

// startLocked runs c and unlocks w.
func (w *workers) startLocked(c *packetCtx) {
	w.countLocked(c.link, 1)
	last := len(w.idle) - 1
	if last < 0 {
		w.mu.Unlock()
		go w.work(c)
		return
	}
	k := w.idle[last]
	w.idle = w.idle[:last]
	w.spare = min(w.spare, last)
	w.mu.Unlock()
	k.next <- c
}

func (w *workers) waitLocked(c *packetCtx) verdict {
	own := &c.link.calls
	if len(own.waiting) > 0 && !within(own.waitingBytes+c.waitingCost(), w.mostWaiting) {
		return overflown
	}
	if !c.link.sock.Limits().Budget.Take(waitingCost) {
		return noMemory
	}
	c.waited = true
	own.waitingBytes += c.waitingCost()
	own.waiting = append(own.waiting, c)
	w.blockLocked(c.link)
	return accepted
}

// blockLocked enters the session among the blocked ones if it is one.
func (w *workers) blockLocked(l *link) {
	own := &l.calls
	if len(own.waiting) > 0 && !own.blocked && within(own.running+1, w.mostOfOne) {
		own.blocked = true
		w.blocked = append(w.blocked, l)
	}
}

// adopt counts a call whose reader was replaced, which no worker runs.
func (w *workers) adopt(l *link) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.countLocked(l, 1)
}

func (w *workers) countLocked(l *link, n int) {
	w.running += n
	l.calls.running += n
}

// ended counts a call of the session's out, and starts one that has waited.
func (w *workers) ended(l *link) {
	w.mu.Lock()
	if c := w.nextLocked(l); c != nil {
		w.startLocked(c)
		return
	}
	w.mu.Unlock()
}

// nextLocked counts a call of the session's out and returns one that has waited
// and may run now, if there is one.
func (w *workers) nextLocked(l *link) *packetCtx {
	w.countLocked(l, -1)
	w.blockLocked(l) // behind the others
	for len(w.blocked) > 0 && within(w.running+1, w.most) {
		other := w.blocked[0]
		w.blocked[0] = nil
		w.blocked = w.blocked[1:]
		other.calls.blocked = false
		if len(other.calls.waiting) > 0 && w.roomLocked(&other.calls) {
			c := w.takeLocked(other)
			w.blockLocked(other)
			return c
		}
	}
	return nil
}

// takeLocked returns the session's first push that waits.
func (w *workers) takeLocked(l *link) *packetCtx {
	own := &l.calls
	c := own.waiting[0]
	own.waiting[0] = nil
	if own.waiting = own.waiting[1:]; len(own.waiting) == 0 {
		own.waiting = nil
	}
	own.waitingBytes -= c.waitingCost()
	l.sock.Limits().Budget.Give(waitingCost)
	return c
}

// giveUp ends a call that will not run.
func (c *packetCtx) giveUp() {
	l := c.link
	c.dropBody()
	c.release()
	l.handlerDone()
}

// drop gives up the session's pushes that wait, and returns how many there were.
func (w *workers) drop(l *link) int {
	w.mu.Lock()
	var dropped []*packetCtx
	for len(l.calls.waiting) > 0 {
		dropped = append(dropped, w.takeLocked(l))
	}
	w.mu.Unlock()
	for _, c := range dropped {
		c.giveUp()
	}
	return len(dropped)
}

// work is a worker's goroutine. It ends when it is not needed, or when a handler
// ends it.
func (w *workers) work(c *packetCtx) {
	var k *worker
	l := c.link
	defer func() {
		if c != nil { // a handler has called runtime.Goexit
			w.ended(l)
		}
	}()
	for c != nil {
		l = c.link
		c.handle()
		if k == nil {
			k = &worker{make(chan *packetCtx, 1)}
		}
		var more bool
		if c, more = w.rest(k, l); c == nil && more {
			c = <-k.next
		}
	}
}

// rest counts the session's call out and returns the next one for the worker, or
// whether it may wait for one.
func (w *workers) rest(k *worker, l *link) (c *packetCtx, wait bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.nextLocked(l); c != nil {
		w.countLocked(c.link, 1)
		return c, true
	}
	if w.closed || len(w.idle) >= maxIdleWorkers {
		return nil, false
	}
	w.idle = append(w.idle, k)
	if !w.sweeping {
		w.sweeping = true
		w.spare = 0
		time.AfterFunc(sweepWorkers, w.sweep)
	}
	return nil, true
}

// sweep ends the workers that were idle all the time since the last sweep.
func (w *workers) sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(w.spare)
	if w.sweeping = w.spare > 0; w.sweeping {
		time.AfterFunc(sweepWorkers, w.sweep)
	}
}

func (w *workers) endLocked(n int) {
	for _, k := range w.idle[:n] {
		k.next <- nil
	}
	w.idle = append(w.idle[:0:0], w.idle[n:]...)
	w.spare = len(w.idle)
}

// close ends the workers that are idle, and the others when they are.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.endLocked(len(w.idle))
}
