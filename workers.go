package tp

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

// workers runs the calls of routes that are not quick, each on a goroutine of
// its own, and no more of them than are allowed. A goroutine is used again: its
// stack has grown to what calls need.
type workers struct {
	// The most calls that run at once, in all and for one session, and the most
	// memory of one session's pushes that wait; negative numbers are no bounds.
	most, mostOfOne int
	mostWaiting     int64

	mu sync.Mutex // guards the fields below, and every session's queues
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

// queues is what workers knows of a link's calls.
type queues struct {
	running int
	// pushes wait for other handlers to end.
	pushes    []*packetCtx
	pushBytes int64
	blocked   bool // is in workers.blocked
	// pulls wait for room in the output: what they would reply could not be sent.
	pulls     []*packetCtx
	pullBytes atomic.Int64 // written under workers.mu
}

type worker struct{ next chan *packetCtx } // with room for one; nil ends it

const (
	maxIdleWorkers = 1 << 10
	sweepWorkers   = time.Second
	// callCost is what a call takes beside its header and its body: its contexts, 1.2 KB,
	// and about as much for the goroutine, of which most have a small stack.
	callCost = 5 << 9
	// blockedTries is how many sessions are looked at for the next push.
	blockedTries = 16
	// A session whose output is full may have pulls of restBytes waiting before its reader
	// rests, and of maxPullBytes before they are refused.
	restBytes    = 64 << 10
	maxPullBytes = 8 << 20
)

// verdict is what becomes of a call.
type verdict uint8

const (
	accepted   verdict = iota // it runs, or will
	overloaded                // it is a pull, and will not
	overflown                 // it is a push, and the session has no room for it
)

// run handles c, now or when there is room for it, and returns at once.
func (w *workers) run(c *packetCtx) verdict {
	if w.hold(c) {
		return accepted
	}
	own := &c.link.queues
	w.mu.Lock()
	if !w.roomLocked(own) || len(own.pushes) > 0 {
		defer w.mu.Unlock()
		if c.handler == nil || c.handler.pull {
			return overloaded
		}
		return w.waitLocked(c)
	}
	w.startLocked(c)
	return accepted
}

const (
	// reservedPart of all handlers are for sessions that run few: whatever others do, there
	// is room for a newcomer's.
	reservedPart = 8
	// few is how many those are, at most, and fewOf for how large a part of all.
	few, fewOf = 64, 1024
)

func (w *workers) roomLocked(own *queues) bool {
	switch free := w.most - w.running; {
	case !within(own.running+1, w.mostOfOne):
		return false
	case w.most < 0 || free > w.most/reservedPart:
		return true
	default:
		return free > 0 && own.running < max(1, min(few, w.most/fewOf))
	}
}

// hold keeps a pull until there is room in the output, if there is none: its handler would
// run for nothing, and what it takes in memory would wait with the reply. It reports
// whether it does. Too many of them are not kept, but refused when they are to be run.
func (w *workers) hold(c *packetCtx) bool {
	l := c.link
	if c.typ != packet.TypePull || c.refusal != nil || !l.sock.OutputBusy() {
		return false
	}
	own := &l.queues
	cost := c.cost()
	w.mu.Lock()
	defer w.mu.Unlock()
	// Who makes room says so before resume looks for those that wait.
	if !l.sock.OutputBusy() {
		return false
	}
	own.pulls = append(own.pulls, c)
	own.pullBytes.Add(cost)
	return true
}

// resume begins some of the pulls that have waited for room in the output. The end of each
// begins another.
func (w *workers) resume(l *link) {
	for range runtime.GOMAXPROCS(0) {
		w.mu.Lock()
		if l.sock.OutputBusy() || !w.roomLocked(&l.queues) {
			w.mu.Unlock()
			return
		}
		c := w.takePullLocked(l)
		if c == nil {
			w.mu.Unlock()
			return
		}
		w.startLocked(c)
	}
}

func (w *workers) takePullLocked(l *link) *packetCtx {
	own := &l.queues
	if len(own.pulls) == 0 {
		return nil
	}
	c := own.pulls[0]
	own.pulls[0] = nil
	if own.pulls = own.pulls[1:]; len(own.pulls) == 0 {
		own.pulls = nil
	}
	own.pullBytes.Add(-c.cost())
	return c
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
	own := &c.link.queues
	if len(own.pushes) > 0 && !within(own.pushBytes+c.cost(), w.mostWaiting) {
		return overflown
	}
	c.waited = true
	own.pushBytes += c.cost()
	own.pushes = append(own.pushes, c)
	w.blockLocked(c.link)
	return accepted
}

// blockLocked enters the session among the blocked ones if it is one.
func (w *workers) blockLocked(l *link) {
	own := &l.queues
	if len(own.pushes) > 0 && !own.blocked && within(own.running+1, w.mostOfOne) {
		own.blocked = true
		w.blocked = append(w.blocked, l)
	}
}

// adopt counts a call whose reader was replaced, which no worker runs.
func (w *workers) adopt(l *link) {
	l.inBudget.Force(callCost)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.countLocked(l, 1)
}

// adopted is the end of such a call.
func (w *workers) adopted(l *link) {
	l.inBudget.Give(callCost)
	w.ended(l)
}

func (w *workers) countLocked(l *link, n int) {
	w.running += n
	l.queues.running += n
}

// ended counts a call of the session's out, and starts one that has waited.
func (w *workers) ended(l *link) {
	defer l.wakeReader()
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
	if len(l.queues.pulls) > 0 && !l.sock.OutputBusy() && w.roomLocked(&l.queues) {
		return w.takePullLocked(l)
	}
	w.blockLocked(l) // behind the others
	// Some may have their share already; then it is the next one's turn, and theirs later.
	for tries := min(len(w.blocked), blockedTries); tries > 0 && within(w.running+1, w.most); tries-- {
		other := w.blocked[0]
		w.blocked[0] = nil
		w.blocked = w.blocked[1:]
		other.queues.blocked = false
		if len(other.queues.pushes) > 0 && w.roomLocked(&other.queues) {
			c := w.takePushLocked(other)
			w.blockLocked(other)
			return c
		}
		w.blockLocked(other) // it has its share, and others do not
	}
	return nil
}

// takePushLocked returns the session's first push that waits.
func (w *workers) takePushLocked(l *link) *packetCtx {
	own := &l.queues
	c := own.pushes[0]
	own.pushes[0] = nil
	if own.pushes = own.pushes[1:]; len(own.pushes) == 0 {
		own.pushes = nil
	}
	own.pushBytes -= c.cost()
	return c
}

// giveUp ends a call that will not run.
func (c *packetCtx) giveUp() {
	l := c.link
	c.release()
	l.handlerDone()
}

// dropPushes gives up the session's pushes that wait, and returns how many there were.
func (w *workers) dropPushes(l *link) int {
	w.mu.Lock()
	var dropped []*packetCtx
	for len(l.queues.pushes) > 0 {
		dropped = append(dropped, w.takePushLocked(l))
	}
	w.mu.Unlock()
	for _, c := range dropped {
		c.giveUp()
	}
	return len(dropped)
}

// dropPulls gives up the pulls that wait for room in an output that has ended.
func (w *workers) dropPulls(l *link) {
	for {
		w.mu.Lock()
		c := w.takePullLocked(l)
		w.mu.Unlock()
		if c == nil {
			return
		}
		c.giveUp()
	}
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
		if !w.hold(c) {
			c.handle()
		}
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
	defer l.wakeReader() // which rests while too many replies wait to be encoded
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
