package socket

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// What a frame waits for before it is queued: room in the output, memory of the budget, and a permit to
// encode.

// maxPermits is how many packets are encoded with a permit at a time for one connection.
var maxPermits = int32(max(2, runtime.GOMAXPROCS(0)))

// offerReserve is how many bytes of refusals may be queued when the output is full for other frames.
const offerReserve = 256 << 10

// reserveFor returns how many bytes more may be queued in the mode.
func (w *writer) reserveFor(mode Mode) int64 {
	if mode == Refusal {
		return min(offerReserve, w.most/8)
	}
	return 0
}

// roomLocked reports whether n more bytes may be queued, and takes them from the budget unless the frame has
// paid for them already. When nothing is queued they may be, whatever the budget says, so that every
// connection makes progress.
func (w *writer) roomLocked(n int64, paid bool, reserve int64) bool {
	more := w.queued + n - w.taken - unpaid
	if paid {
		more = 0
	}
	small := w.smallLocked()
	if small == 0 {
		if more > 0 && w.budget.Take(more) {
			w.taken += more
		}
		return true
	}
	if small-reserve >= w.fullAt {
		return false
	}
	if more <= 0 {
		return true
	}
	more = max(more, min(max(w.taken, minTaken), maxTaken))
	if !w.budget.Take(more) {
		if reserve > 0 {
			return true
		}
		w.fullAt = small
		w.full.Store(true)
		return false
	}
	w.taken += more
	return true
}

// pay takes the memory of a large frame from the budget. A small frame is copied when it is queued, and paid
// for then.
func (w *writer) pay(f *Frame) bool {
	n := int64(cap(f.b))
	if w.budget == nil || f.buf == nil || len(f.b) < ownFrame {
		return true
	}
	if w.budget.Take(n) || w.budget.TakeAlone(n) {
		f.cost = n
		return true
	}
	return false
}

const (
	// memoryPoll is how often senders that wait for memory ask the budget again. Other connections give the
	// memory back, and do not tell this one.
	memoryPoll = 50 * time.Millisecond
	// drainStep is how many bytes must be written for the budget to see that the other side reads.
	drainStep = 256 << 10
	// writeStep is how many bytes of a long buffer are written at once, so that progress can be seen. It is
	// smaller for connections whose kernel does not tell how much the other side has taken.
	writeStep, blindStep = 1 << 20, 64 << 10
)

var errNoMemory = fmt.Errorf("%w: there is no memory for a large packet", ErrOutputFull)

// awaitMemory waits until the budget has n bytes to give, for the write timeout at most and no longer than
// ctx lasts.
func (w *writer) awaitMemory(ctx context.Context, n int64) error {
	timeout := time.Duration(w.timeout.Load())
	began := time.Now()
	tick := time.NewTicker(memoryPoll)
	defer tick.Stop()
	for {
		if w.budget.Take(n) || w.budget.TakeAlone(n) {
			w.budget.Give(n) // the caller takes it again at once, which nearly always succeeds
			return nil
		}
		if err := w.refusal(); err != nil {
			return err
		}
		if timeout > 0 && time.Since(began) >= timeout {
			return fmt.Errorf("%w for longer than %v", errNoMemory, timeout)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchLocked tells the budget since when the output waits for the other side, while much is queued. It is
// called when n bytes have been written.
func (w *writer) watchLocked(n int) {
	if w.queued < drainStep && !w.waits {
		return
	}
	if w.queued == 0 {
		w.waits = false
		w.budget.Waits(false)
		return
	}
	if w.drained += int64(n); !w.waits || w.drained >= drainStep {
		w.waits, w.drained = true, 0
		w.budget.Waits(true)
	}
}

// ErrOutputFull is what errors.Is finds when a packet found no room in the output:
// at once where the mode does not wait, and otherwise after the write timeout. Nothing of the
// packet was sent, and the socket can be used on.
var ErrOutputFull = errors.New("socket: the output is full")

// waitForRoomLocked waits, for the write timeout and no longer than ctx lasts, until
// there is room for n bytes.
func (w *writer) waitForRoomLocked(wait *wait, n int64, paid bool) error {
	late := false
	if d := time.Duration(w.timeout.Load()); d > 0 {
		timer := time.AfterFunc(d, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			late = true
			w.wakeLocked()
		})
		defer timer.Stop()
	}
	var poll *time.Timer // other connections may give memory back
	defer func() {
		if poll != nil {
			poll.Stop()
		}
	}()
	for w.refuse == nil && !w.roomLocked(n, paid, 0) {
		if w.smallLocked() < w.most {
			if poll == nil {
				poll = time.AfterFunc(memoryPoll, w.pollMemory)
			} else {
				poll.Reset(memoryPoll)
			}
		}
		if wait.over {
			return wait.err
		}
		if late {
			return fmt.Errorf("%w for longer than %v", ErrOutputFull, time.Duration(w.timeout.Load()))
		}
		if w.flushing || !w.somethingLocked() {
			w.waitLocked()
			continue
		}
		w.flushing = true
		if wait.ends { // this sender may give up, so a write of its own must not hold it up
			go w.flushRest()
			continue
		}
		w.mu.Unlock()
		_ = w.flush() // if it fails it says so in refuse
		w.mu.Lock()
	}
	return nil
}

// wait is the wait of a sender that may give up. Its context comes from the program, so it is asked without
// mu.
type wait struct {
	ends bool // the context may end
	over bool // the context has ended; guarded by writer.mu, as is err
	err  error
	stop func() bool
}

// waitFor begins a wait that ends with ctx. The caller calls end afterwards, without mu.
func (w *writer) waitFor(ctx context.Context) *wait {
	if ctx.Done() == nil {
		return &forEver
	}
	x := &wait{ends: true}
	x.stop = context.AfterFunc(ctx, func() {
		err := ctx.Err()
		w.mu.Lock()
		defer w.mu.Unlock()
		x.over, x.err = true, err
		w.wakeLocked()
		if w.freed != nil {
			w.freed.Broadcast()
		}
	})
	if err := ctx.Err(); err != nil { // no other goroutine has the wait yet, so it needs no lock
		x.stop()
		return &wait{ends: true, over: true, err: err}
	}
	return x
}

var forEver wait

func (x *wait) end() {
	if x.stop != nil {
		x.stop()
	}
}

// takePermit waits for a permit to encode, then for room. Its error is a WriteError.
func (w *writer) takePermit(ctx context.Context) error {
	if !w.full.Load() && w.tryPermit() {
		return nil
	}
	wait := w.waitFor(ctx)
	defer wait.end()
	calm := false // not many wait any more
	defer func() {
		if calm && w.room != nil {
			w.room.OutputHasRoom()
		}
	}()
	w.mu.Lock()
	defer w.mu.Unlock()
	// No wake-up is lost: the end of a permit is counted before awaiting is read, and this sender counts
	// itself in awaiting before it looks for a permit.
	w.awaiting.Add(1)
	for w.refuse == nil && !w.tryPermit() {
		if wait.over {
			calm = w.awaiting.Add(-1) == manyAwaiting-1
			w.permitLocked() // the signal may have come to this sender, so it is passed on
			return &WriteError{Err: wait.err, Unsent: true}
		}
		if w.freed == nil {
			w.freed = sync.NewCond(&w.mu)
		}
		w.freed.Wait()
	}
	calm = w.awaiting.Add(-1) == manyAwaiting-1
	if w.refuse != nil {
		return &WriteError{Err: w.refuse, Unsent: true}
	}
	var err error
	if w.smallLocked() >= w.fullAt {
		err = w.waitForRoomLocked(wait, 1, false)
	}
	if w.refuse != nil {
		err = w.refuse
	}
	if err != nil {
		w.endPermitLocked()
		w.giveLocked()
		return &WriteError{Err: err, Unsent: true}
	}
	return nil
}

// pollMemory has the senders that wait ask the budget again.
func (w *writer) pollMemory() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fullAt = w.most
	w.wakeLocked()
}

// tryPermit takes a permit if there is one.
func (w *writer) tryPermit() bool {
	if w.permits.Add(1) <= maxPermits {
		return true
	}
	w.permits.Add(-1)
	return false
}

func (w *writer) endPermit() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endPermitLocked()
	w.giveLocked()
}

func (w *writer) endPermitLocked() {
	w.permits.Add(-1)
	w.permitLocked()
}

// permitLocked wakes a sender that waits for a permit.
func (w *writer) permitLocked() {
	if w.awaiting.Load() > 0 && w.freed != nil {
		w.freed.Signal()
	}
}

// giveLocked gives all that was taken back to the budget if nothing is queued.
func (w *writer) giveLocked() {
	if w.taken > 0 && w.queued == 0 {
		w.budget.Give(w.taken)
		w.taken = 0
	}
}

// trimLocked gives back to the budget what is much more than the queue takes.
func (w *writer) trimLocked() {
	if surplus := w.taken - max(w.queued, minTaken); surplus > 2*maxTaken {
		w.budget.Give(surplus)
		w.taken -= surplus
	}
}

// Large frames, which go in parts, have room of their own, so that the others never wait for it: see
// parts.go.

// place is a sender that waits for room for a large frame.
type place struct {
	n     int64
	ready chan struct{} // closed when it has room, or err is set
	err   error
}

// smallLocked returns how many bytes wait that do not go in parts.
func (w *writer) smallLocked() int64 {
	if w.parts == nil {
		return w.queued
	}
	return w.queued - w.parts.queued
}

// reserve makes the room that the frame has what it needs, none unless it is large. It reports false where
// the frame has none yet and there is not enough, or others wait for it.
func (w *writer) reserve(f *Frame) bool {
	n := int64(len(f.b))
	if !w.large(f.b) {
		n = 0
	}
	if n == f.reserved {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.parts
	if f.reserved == 0 && (len(p.line) > 0 || !w.fitsLocked(n)) {
		return false
	}
	p.reserved += n - f.reserved
	f.reserved = n
	w.serveLocked()
	return true
}

// unreserve gives room back.
func (w *writer) unreserve(n int64) {
	if n == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parts.reserved -= n
	w.serveLocked()
}

// fitsLocked reports whether there is room for n bytes of a large frame.
func (w *writer) fitsLocked(n int64) bool {
	taken := w.parts.queued + w.parts.reserved
	return taken == 0 || taken+n <= w.most
}

// awaitPlace waits until there is room for n bytes of a large frame, and reserves that. A sender that waits
// holds no encoded packet and no permit. The wait ends with ctx and with the socket: one whose other side
// takes nothing any more does not last.
func (w *writer) awaitPlace(ctx context.Context, n int64) error {
	w.mu.Lock()
	if w.refuse != nil {
		defer w.mu.Unlock()
		return w.refuse
	}
	p := w.parts
	x := &place{n: n, ready: make(chan struct{})}
	p.line = append(p.line, x)
	p.inLine += n
	w.serveLocked()
	w.mu.Unlock()
	select {
	case <-x.ready:
		return x.err
	case <-ctx.Done():
		w.leaveLine(x)
		return ctx.Err()
	}
}

// leaveLine ends the wait of a sender that gives up.
func (w *writer) leaveLine(x *place) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.parts
	if i := slices.Index(p.line, x); i >= 0 {
		p.line = slices.Delete(p.line, i, i+1)
		p.inLine -= x.n
	} else if x.err == nil {
		p.reserved -= x.n
	}
	w.serveLocked()
}

// serveLocked gives room to those who wait, in their order.
func (w *writer) serveLocked() {
	p := w.parts
	for len(p.line) > 0 && w.fitsLocked(p.line[0].n) {
		x := p.line[0]
		p.line[0] = nil
		p.line = p.line[1:]
		p.inLine -= x.n
		p.reserved += x.n
		close(x.ready)
	}
	if w.crowdedLocked() {
		w.full.Store(true)
	}
}

// crowdedLocked reports whether so many large frames wait that more should not be made.
func (w *writer) crowdedLocked() bool { return w.parts != nil && w.parts.inLine >= w.most }

// endLineLocked ends the wait of those who wait for room.
func (w *writer) endLineLocked() {
	if w.parts == nil || w.refuse == nil {
		return
	}
	for _, x := range w.parts.line {
		x.err = w.refuse
		close(x.ready)
	}
	w.parts.line, w.parts.inLine = nil, 0
}
