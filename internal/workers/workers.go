// Package workers runs the calls of connections, each on a goroutine of its own, and bounds how many run at a
// time. At the bound a push waits until another call ends, within a bound of memory. A pull waits too if the
// other side bounds how many it sends, and otherwise is refused. A pull also waits while there is no room in
// the output for its reply.
package workers

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/chain"
)

// Job is a call that a goroutine is to run.
type Job interface {
	// Run handles the call. It may end its goroutine.
	Run()
	// Drop gives the call up. It will not run.
	Drop()
	// Waits is called for a push that cannot run at once and will wait, and for any call that waits in
	// a Lane.
	Waits()
	// Lane returns the line in which the call has to wait for its turn, and whether its turn has come;
	// nil if it has not to wait for others. Until the call runs both stay the same.
	Lane() (l *Lane, entered bool)
	// HoldsUp is called when so many calls have waited for longer than HeldUp for this one to end. It is
	// called once, on a goroutine of its own, and may be called when the call has just ended.
	HoldsUp(waiting int)
	// Kind says what kind of call it is.
	Kind() Kind
	// Quick reports whether the goroutine that reads may run the call. It is called under a lock and must
	// not block.
	Quick() bool
	// Cost is how many bytes the call keeps alive. It does not change while the call waits.
	Cost() int64
	// Queue returns the queue of the call's connection.
	Queue() *Queue
}

// Kind is what kind of call a Job is.
type Kind uint8

const (
	Push    Kind = iota // may wait for other calls to end
	Pull                // may wait for room in the output, and for other calls to end
	Refusal             // the answer to a pull that will not run, which waits for neither
)

// Owner is what a Queue belongs to: a connection.
type Owner interface {
	// OutputBusy reports whether there is no room for another reply. When there is room again the owner
	// calls Pool.Resume. OutputBusy is called under a lock and must not block.
	OutputBusy() bool
	// QueueChanged is called, without a lock, when less runs or waits.
	QueueChanged()
}

// Pool has the goroutines. A goroutine runs many calls one after the other, because its stack has grown to
// what calls need. All methods are safe for concurrent use. Init makes the Pool ready.
type Pool struct {
	// The most calls that run at once, in all and for one connection, and the most
	// memory of one connection's pushes that wait; negative numbers are no bounds.
	most, mostOfOne int
	mostWaiting     int64

	mu sync.Mutex // guards the fields below, and every Queue
	// idle is a stack: the goroutine that was used last is used next.
	idle     []*worker
	spare    int  // the least length of idle since the last sweep
	sweeping bool // a goroutine runs sweep
	closed   bool
	running  int // calls, and readers that were replaced while they ran one
	waiting  int // calls, for room or for their turn
	// blocked has the connections whose calls wait only because too many calls run in all; they have
	// turns. The calls of other connections wait until a call of their own connection ends.
	blocked []*Queue
	// lanes has those in which calls wait; spares are used again.
	lanes    chain.List[*Lane]
	watching bool // look is called after HeldUp
	spares   []*laned
}

// Init makes the Pool ready: for so many calls at once, in all and of one connection, and for so many bytes
// of one connection's pushes that wait. Negative numbers are no bounds.
func (w *Pool) Init(most, mostOfOne int, mostWaiting int64) {
	w.most, w.mostOfOne, w.mostWaiting = most, mostOfOne, mostWaiting
}

// Queue holds what the Pool knows of one connection's calls. Init makes it ready.
type Queue struct {
	owner   Owner
	running int
	// pushes wait for other handlers to end.
	pushes    []Job
	pushBytes int64
	blocked   bool // is in Pool.blocked
	trusted   bool // the sender bounds the pushes that wait, and the pulls that are not answered
	pushTurn  bool // the next call that begins is a push, if one waits
	resuming  bool // Resume will begin more after a moment
	// pulls wait for room in the output, without which their replies could not be sent, or for other
	// handlers to end.
	pulls     []Job
	pullBytes atomic.Int64 // written under Pool.mu
	// Calls that wait for their turn in a Lane. The cost of pushes among them counts in pushBytes.
	laned                   chain.List[*laned]
	lanedPulls, lanedPushes int
}

// Init makes the Queue ready.
func (q *Queue) Init(owner Owner) { q.owner = owner }

// Trust says that the connection's other side bounds by itself how many of its pushes wait, and how many of
// its pulls are not answered. So its pulls are not refused while fewer of them wait than may run.
func (w *Pool) Trust(own *Queue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	own.trusted = true
}

// WouldWait reports whether a push would have to wait now.
func (w *Pool) WouldWait(c Job) bool {
	if l, entered := c.Lane(); l != nil && !entered && l.state.Load() != laneFree {
		return true
	}
	own := c.Queue()
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(own.pushes) > 0 || !w.roomLocked(own)
}

// PullBytes returns how many bytes the pulls keep alive that wait.
func (q *Queue) PullBytes() int64 { return q.pullBytes.Load() }

// blockedTries is how many connections are looked at for the next push.
const blockedTries = 16

// Verdict says what becomes of a call.
type Verdict uint8

const (
	Accepted   Verdict = iota // it runs, or will
	Overloaded                // it is a pull, and will not
	Overflown                 // it is a push, and the connection has no room for it
)

// Run runs the call, now or when it is its turn and there is room for it, and returns at once.
func (w *Pool) Run(c Job) Verdict {
	lane, entered := c.Lane()
	if lane != nil && !entered {
		w.mu.Lock()
		taken, v := w.enterLocked(c, lane)
		w.mu.Unlock()
		if !taken {
			return v
		}
	}
	if w.hold(c) {
		return Accepted
	}
	own := c.Queue()
	w.mu.Lock()
	if w.roomLocked(own) && (len(own.pushes) == 0 || c.Kind() == Pull) {
		w.startLocked(c)
		return Accepted
	}
	v := w.waitLocked(c)
	if v != Accepted && lane != nil {
		w.beginLocked(w.leaveLocked(lane))
	}
	w.mu.Unlock()
	return v
}

const (
	// reservedPart of all handlers are for connections that run few: whatever others do, there
	// is room for a newcomer's.
	reservedPart = 8
	// few is how many those are, at most, and fewOf for how large a part of all.
	few, fewOf = 64, 1024
)

func (w *Pool) roomLocked(own *Queue) bool {
	switch free := w.most - w.running; {
	case !within(own.running+1, w.mostOfOne):
		return false
	case w.most < 0 || free > w.most/reservedPart:
		return true
	default:
		return free > 0 && own.running < max(1, min(few, w.most/fewOf))
	}
}

// hold keeps a pull that finds no room in the output, until there is room: if its handler ran now its reply,
// and all memory that belongs to it, would have to wait. It reports whether it keeps the pull. When too many
// wait already it does not.
func (w *Pool) hold(c Job) bool {
	own := c.Queue()
	if c.Kind() != Pull || !own.owner.OutputBusy() {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// The connection has room before it calls Resume, so no pull is left behind.
	if !own.owner.OutputBusy() {
		return false
	}
	w.keepPullLocked(c)
	if !own.owner.OutputBusy() { // there was room before there was a pull that could be seen
		w.takeBackLocked(c)
		return false
	}
	return true
}

// takeBackLocked undoes keepPullLocked, of which it is the last.
func (w *Pool) takeBackLocked(c Job) {
	own := c.Queue()
	last := len(own.pulls) - 1
	own.pulls[last] = nil
	if own.pulls = own.pulls[:last]; last == 0 {
		own.pulls = nil
	}
	w.waiting--
	own.pullBytes.Add(-c.Cost())
}

func (w *Pool) keepPullLocked(c Job) {
	own := c.Queue()
	own.pulls = append(own.pulls, c)
	own.pullBytes.Add(c.Cost())
	w.waiting++
}

// resumeEvery is how long those that Resume has begun are given to end, or to fill the output, before it
// begins more.
const resumeEvery = time.Millisecond

// Resume begins some of the pulls that have waited for room in the output. The end of each begins another,
// and as long as there is room more are begun after a moment: those that were begun may wait for the others.
func (w *Pool) Resume(own *Queue) {
	w.beginSome(own)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(own.pulls) == 0 || own.resuming || own.owner.OutputBusy() || !w.roomLocked(own) {
		return
	}
	own.resuming = true
	time.AfterFunc(resumeEvery, func() {
		w.mu.Lock()
		own.resuming = false
		w.mu.Unlock()
		w.Resume(own)
	})
}

// beginSome begins as many of the pulls that wait as there are processors.
func (w *Pool) beginSome(own *Queue) {
	for range runtime.GOMAXPROCS(0) {
		w.mu.Lock()
		if own.owner.OutputBusy() || !w.roomLocked(own) {
			w.blockLocked(own)
			w.mu.Unlock()
			return
		}
		c := w.takePullLocked(own)
		if c == nil {
			w.mu.Unlock()
			return
		}
		w.startLocked(c)
	}
}

func (w *Pool) takePullLocked(own *Queue) Job {
	if len(own.pulls) == 0 {
		return nil
	}
	c := own.pulls[0]
	own.pulls[0] = nil
	if own.pulls = own.pulls[1:]; len(own.pulls) == 0 {
		own.pulls = nil
	}
	w.waiting--
	own.pullBytes.Add(-c.Cost())
	return c
}

func (w *Pool) waitLocked(c Job) Verdict {
	own := c.Queue()
	switch c.Kind() {
	case Pull:
		if !own.trusted || !within(len(own.pulls)+1, w.mostOfOne) {
			return Overloaded
		}
		w.keepPullLocked(c)
		w.blockLocked(own)
		return Accepted
	case Refusal:
		return Overloaded
	}
	if !w.mayPushWaitLocked(c) {
		return Overflown
	}
	c.Waits()
	w.keepPushLocked(c)
	return Accepted
}

func (w *Pool) keepPushLocked(c Job) {
	own := c.Queue()
	own.pushes = append(own.pushes, c)
	own.pushBytes += c.Cost()
	w.waiting++
	w.blockLocked(own)
}

// blockLocked puts the connection into blocked if it belongs there.
func (w *Pool) blockLocked(own *Queue) {
	waits := len(own.pushes) > 0 || len(own.pulls) > 0 && !own.owner.OutputBusy()
	if waits && !own.blocked && within(own.running+1, w.mostOfOne) {
		own.blocked = true
		w.blocked = append(w.blocked, own)
	}
}

// Adopt counts a call that runs elsewhere, and has taken the Lane unless that is nil.
func (w *Pool) Adopt(c Job, own *Queue, l *Lane) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.countLocked(own, 1)
	if l != nil {
		l.nowRuns(c)
	}
}

// runsLocked counts that the call runs.
func (w *Pool) runsLocked(c Job) {
	w.countLocked(c.Queue(), 1)
	if l, _ := c.Lane(); l != nil {
		l.nowRuns(c)
	}
}

func (w *Pool) countLocked(own *Queue, n int) {
	w.running += n
	own.running += n
}

// Ended says that a call of the connection has ended, which had the Lane unless that is nil, and starts one
// that has waited.
func (w *Pool) Ended(own *Queue, l *Lane) {
	defer own.owner.QueueChanged()
	w.mu.Lock()
	if c := w.nextLocked(own, l); c != nil {
		w.startLocked(c)
		return
	}
	w.mu.Unlock()
}

// nextLocked counts that a call of the connection has ended, which had the Lane unless that is nil, and
// returns a call that has waited and may run now; nil if there is none.
func (w *Pool) nextLocked(own *Queue, l *Lane) Job {
	w.countLocked(own, -1)
	if l == nil {
		return w.pickLocked(own)
	}
	c := w.leaveLocked(l)
	switch {
	case c == nil:
		return w.pickLocked(own)
	case c.Queue() == own && len(w.blocked) == 0 && w.mayLocked(c):
		return c
	case c.Queue() == own:
		if !w.awaitRoomLocked(c) {
			return c
		}
		return w.pickLocked(own)
	}
	// The place is the connection's, and the turn another's.
	next := w.pickLocked(own)
	if next == nil && w.mayLocked(c) {
		return c
	}
	if next != nil {
		w.countLocked(next.Queue(), 1)
		w.beginLocked(c)
		w.countLocked(next.Queue(), -1) // its worker counts it
		return next
	}
	if !w.awaitRoomLocked(c) {
		return c
	}
	return nil
}

// pickLocked returns a call that has waited for room and may run now, of the connection if it can be; nil
// if there is none.
func (w *Pool) pickLocked(own *Queue) Job {
	if len(own.pulls) > 0 && len(own.pushes) == 0 && !own.owner.OutputBusy() && w.roomLocked(own) {
		return w.takePullLocked(own)
	}
	w.blockLocked(own) // behind the others
	// Some may have their share already; then it is the next one's turn, and theirs later.
	for tries := min(len(w.blocked), blockedTries); tries > 0 && within(w.running+1, w.most); tries-- {
		other := w.blocked[0]
		w.blocked[0] = nil
		w.blocked = w.blocked[1:]
		other.blocked = false
		if w.roomLocked(other) {
			if c := w.takeLocked(other); c != nil {
				w.blockLocked(other)
				return c
			}
		}
		w.blockLocked(other) // it has its share, and others do not
	}
	return nil
}

// takeLocked returns the connection's next call that waits, pulls and pushes by turns; nil if none may run.
func (w *Pool) takeLocked(own *Queue) Job {
	pulls := len(own.pulls) > 0 && !own.owner.OutputBusy()
	if pulls && (len(own.pushes) == 0 || !own.pushTurn) {
		own.pushTurn = true
		return w.takePullLocked(own)
	}
	own.pushTurn = false
	if len(own.pushes) > 0 {
		return w.takePushLocked(own)
	}
	return nil
}

// takePushLocked returns the connection's first push that waits.
func (w *Pool) takePushLocked(own *Queue) Job {
	c := own.pushes[0]
	own.pushes[0] = nil
	if own.pushes = own.pushes[1:]; len(own.pushes) == 0 {
		own.pushes = nil
	}
	w.waiting--
	own.pushBytes -= c.Cost()
	return c
}

// DropPushes gives up the connection's pushes that wait, and returns how many there were.
func (w *Pool) DropPushes(own *Queue) int {
	w.mu.Lock()
	var inTurn []Job
	for len(own.pushes) > 0 {
		inTurn = append(inTurn, w.takePushLocked(own))
	}
	laned := w.dropLanedLocked(own, Push)
	w.mu.Unlock()
	w.dropAll(inTurn, laned)
	return len(inTurn) + len(laned)
}

// dropAll gives up calls, of which some have their turn, and leaves the lanes of those. A hook may end the
// goroutine in between.
func (w *Pool) dropAll(inTurn, laned []Job) {
	var lanes []*Lane
	for _, c := range inTurn {
		if l, _ := c.Lane(); l != nil {
			lanes = append(lanes, l)
		}
	}
	defer func() {
		for _, l := range lanes {
			w.Leave(l)
		}
	}()
	dropEach(append(inTurn, laned...))
}

func dropEach(calls []Job) {
	done := 0
	defer func() {
		if done < len(calls) {
			dropEach(calls[done:])
		}
	}()
	for done < len(calls) {
		done++
		calls[done-1].Drop()
	}
}

// DropPulls gives up the pulls that wait: the output has ended, so that nobody gets their replies.
func (w *Pool) DropPulls(own *Queue) {
	w.mu.Lock()
	laned := w.dropLanedLocked(own, Pull)
	var inTurn []Job
	for c := w.takePullLocked(own); c != nil; c = w.takePullLocked(own) {
		inTurn = append(inTurn, c)
	}
	w.mu.Unlock()
	w.dropAll(inTurn, laned)
}

// Running returns how many calls run.
func (w *Pool) Running() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running
}

// Load returns how many calls run or wait.
func (w *Pool) Load() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running + w.waiting
}

// Count returns how many calls of the connection run, how many of its pushes wait, and what those keep
// alive, in bytes.
func (w *Pool) Count(own *Queue) (running, pushes int, pushBytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return own.running, len(own.pushes) + own.lanedPushes, own.pushBytes
}

// within reports whether n is not over the bound, of which negative values are none.
func within[T int | int64](n, bound T) bool { return bound < 0 || n <= bound }
