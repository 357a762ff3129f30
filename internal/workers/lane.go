package workers

import (
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/chain"
)

// Lane is a line of calls that run one after another, in the order in which they were given to Run. The zero
// value is an empty one. All its calls are of one Pool.
//
// The goroutine that reads a connection runs calls itself, without the Pool: it takes the Lane by TryEnter,
// which costs one atomic operation, and leaves it by Pool.Leave.
type Lane struct {
	state atomic.Uint32 // one of the constants below; only Pool.mu's holder makes or ends laneQueued
	turns atomic.Uint32 // how many calls have left while others waited
	count atomic.Int32  // how many wait; only Pool.mu's holder changes it
	known atomic.Bool   // current is set; only Pool.mu's holder changes it
	asked atomic.Bool   // a reader wants to run what waits
	// offered says that no call has the Lane, and what waits is left to the reader that has asked. Only
	// Pool.mu's holder changes it.
	offered atomic.Bool

	// Pool.mu guards the fields below.
	waiting chain.List[*laned]
	current Job               // the call that runs, unless it runs on a reader that nobody has replaced
	watched chain.Link[*Lane] // in Pool.lanes, while calls wait
	seen    uint32            // what turns was when the Lane was looked at
	since   time.Time
	told    bool // the call that has run since then was told that it holds up others
}

const (
	laneFree   = iota
	laneTaken  // by a call that runs, or waits for room
	laneQueued // the same, and others wait for their turn
)

// laned is a call that waits for its turn in a Lane.
type laned struct {
	job    Job
	lane   *Lane
	inLane chain.Link[*laned]
	ofConn chain.Link[*laned] // with others of the same connection
}

// HeldUp is after how long a call, for which others wait in their Lane, is told of that.
const HeldUp = 3 * time.Second

// TryEnter takes the Lane for a call that runs at once, and reports false if it is taken.
func (l *Lane) TryEnter() bool { return l.state.CompareAndSwap(laneFree, laneTaken) }

// Waiting returns how many calls wait for their turn.
func (l *Lane) Waiting() int { return int(l.count.Load()) }

// Turns changes when calls go on that wait in the Lane.
func (l *Lane) Turns() uint32 { return l.turns.Load() }

// Ask says that a reader wants to run the calls that wait itself, and reports false if another one does. It
// must call TakeOver then.
func (l *Lane) Ask() bool { return l.asked.CompareAndSwap(false, true) }

// Offered reports whether no call runs, so that the reader that has asked may begin.
func (l *Lane) Offered() bool { return l.offered.Load() }

// TakeOver returns the first call that waits, if the Lane was offered: for the reader of the connection,
// which has asked for it, to run it and then to call Next or Ended. It returns nil if the Lane was not
// offered, or if the call is not for this reader: then a worker goes on.
func (w *Pool) TakeOver(l *Lane, own *Queue) Job {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.asked.Store(false)
	if !l.offered.Load() {
		return nil
	}
	l.offered.Store(false)
	return w.handOverLocked(l, own)
}

// Next says that a call of the connection has ended that TakeOver or Next has returned, and returns the next
// one in the same way.
func (w *Pool) Next(l *Lane, own *Queue) Job {
	defer own.owner.QueueChanged()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.countLocked(own, -1)
	return w.handOverLocked(l, own)
}

// handOverLocked returns the first call that waits, if it is for the connection's reader; otherwise a worker
// goes on with the Lane.
func (w *Pool) handOverLocked(l *Lane, own *Queue) Job {
	if first := l.waiting.First(); first != nil && len(w.blocked) == 0 {
		if c := first.Of.job; c.Queue() == own && c.Quick() && w.mayLocked(c) {
			c = w.passLocked(l)
			w.runsLocked(c)
			return c
		}
	}
	w.beginLocked(w.leaveLocked(l))
	if next := w.pickLocked(own); next != nil {
		w.launchLocked(next)
	}
	return nil
}

// nowRuns says which call runs; nil if that is not known. Pool.mu is held.
func (l *Lane) nowRuns(c Job) {
	l.current = c
	l.known.Store(c != nil)
}

// Leave says that a call has ended for which TryEnter has taken the Lane, and starts the next one.
func (w *Pool) Leave(l *Lane) {
	if !l.known.Load() && l.state.CompareAndSwap(laneTaken, laneFree) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beginLocked(w.leaveLocked(l))
}

// beginLocked starts c, or has it wait for room. C may be nil.
func (w *Pool) beginLocked(c Job) {
	if c != nil && (w.mayLocked(c) || !w.awaitRoomLocked(c)) {
		w.launchLocked(c)
	}
}

// mayLocked reports whether the call may run now, as far as it is about room.
func (w *Pool) mayLocked(c Job) bool {
	own := c.Queue()
	return w.roomLocked(own) && (c.Kind() != Pull || !own.owner.OutputBusy())
}

// awaitRoomLocked has a call wait for room that has waited for its turn. It reports false if there is room
// by now: whoever has made it in the output may not have seen the pull.
func (w *Pool) awaitRoomLocked(c Job) bool {
	if c.Kind() != Pull {
		w.keepPushLocked(c)
		return true
	}
	w.keepPullLocked(c)
	if w.mayLocked(c) {
		w.takeBackLocked(c)
		return false
	}
	w.blockLocked(c.Queue())
	return true
}

// enterLocked takes the call's Lane for it, or has it wait there: then taken is false. A call for which
// there is no room among those that wait gets neither.
func (w *Pool) enterLocked(c Job, l *Lane) (taken bool, v Verdict) {
	for {
		if l.state.CompareAndSwap(laneFree, laneTaken) {
			return true, Accepted
		}
		if v := w.mayWaitLocked(c); v != Accepted {
			return false, v
		}
		if l.state.Load() == laneQueued || l.state.CompareAndSwap(laneTaken, laneQueued) {
			w.enqueueLocked(c, l)
			return false, Accepted
		}
	}
}

// mayWaitLocked says whether there is room for the call among those that wait for their turn. For pulls
// that is so for any connection, as they have no other way to be in order.
func (w *Pool) mayWaitLocked(c Job) Verdict {
	own := c.Queue()
	switch {
	case c.Kind() != Pull:
		if !w.mayPushWaitLocked(c) {
			return Overflown
		}
	case !within(own.lanedPulls+1, w.mostOfOne):
		return Overloaded
	}
	return Accepted
}

// mayPushWaitLocked reports whether there is room for the push among those that wait. One may wait in any
// case.
func (w *Pool) mayPushWaitLocked(c Job) bool {
	own := c.Queue()
	return len(own.pushes)+own.lanedPushes == 0 || own.trusted ||
		within(own.pushBytes+c.Cost(), w.mostWaiting)
}

func (w *Pool) enqueueLocked(c Job, l *Lane) {
	own := c.Queue()
	c.Waits()
	if c.Kind() == Pull {
		own.lanedPulls++
	} else {
		own.lanedPushes++
		own.pushBytes += c.Cost()
	}
	var e *laned
	if n := len(w.spares); n > 0 {
		e, w.spares = w.spares[n-1], w.spares[:n-1]
	} else {
		e = new(laned)
	}
	e.job, e.lane, e.inLane.Of, e.ofConn.Of = c, l, e, e
	l.waiting.PushBack(&e.inLane)
	own.laned.PushBack(&e.ofConn)
	w.waiting++
	if l.count.Add(1) == 1 {
		w.watchLocked(l)
	}
}

// forgetLocked takes out a call that waits, and returns it.
func (w *Pool) forgetLocked(e *laned) Job {
	c, l := e.job, e.lane
	own := c.Queue()
	if c.Kind() == Pull {
		own.lanedPulls--
	} else {
		own.lanedPushes--
		own.pushBytes -= c.Cost()
	}
	l.waiting.Remove(&e.inLane)
	own.laned.Remove(&e.ofConn)
	w.waiting--
	*e = laned{}
	if len(w.spares) < maxSpares {
		w.spares = append(w.spares, e)
	}
	if l.count.Add(-1) == 0 {
		w.lanes.Remove(&l.watched)
		l.state.Store(laneTaken)
	}
	return c
}

// maxSpares is how many of laned are kept to be used again.
const maxSpares = 1 << 10

// leaveLocked says that the call has ended that had the Lane, and returns the next one, which has it now;
// nil if there is none.
func (w *Pool) leaveLocked(l *Lane) Job {
	l.nowRuns(nil)
	switch {
	case l.waiting.First() == nil: // and nobody makes the Lane queued meanwhile
		l.state.Store(laneFree)
		return nil
	case l.asked.Load():
		l.offered.Store(true)
		return nil
	}
	return w.passLocked(l)
}

// passLocked takes out the first call that waits. It has the Lane now.
func (w *Pool) passLocked(l *Lane) Job {
	l.turns.Add(1)
	return w.forgetLocked(l.waiting.First().Of)
}

// dropLanedLocked gives up the calls of the connection that wait for their turn and are of the kind.
func (w *Pool) dropLanedLocked(own *Queue, kind Kind) (dropped []Job) {
	for x := own.laned.First(); x != nil; {
		e := x.Of
		x = x.Next()
		if e.job.Kind() == kind {
			dropped = append(dropped, w.forgetLocked(e))
		}
	}
	return dropped
}

// watchLocked has the Lane looked at, as long as calls wait there.
func (w *Pool) watchLocked(l *Lane) {
	l.seen, l.since, l.told = l.turns.Load(), time.Now(), false
	l.watched.Of = l
	w.lanes.PushBack(&l.watched)
	if !w.watching {
		w.watching = true
		time.AfterFunc(HeldUp, w.look)
	}
}

// look tells the calls that hold up others, and looks again as long as calls wait somewhere.
func (w *Pool) look() {
	type held struct {
		job     Job
		waiting int
	}
	var all []held
	w.mu.Lock()
	now := time.Now()
	for x := w.lanes.First(); x != nil; x = x.Next() {
		l := x.Of
		switch turns := l.turns.Load(); {
		case turns != l.seen:
			l.seen, l.since, l.told = turns, now, false
		case !l.told && l.current != nil && now.Sub(l.since) >= HeldUp:
			l.told = true
			all = append(all, held{l.current, l.Waiting()})
		}
	}
	if w.watching = w.lanes.First() != nil; w.watching {
		time.AfterFunc(HeldUp, w.look)
	}
	w.mu.Unlock()
	for _, h := range all {
		h.job.HoldsUp(h.waiting)
	}
}
