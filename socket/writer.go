package socket

import (
	"context"
	"math"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/packet"
)

const (
	// gather is the size up to which small frames are put together in one write.
	gather = 64 << 10
	// ownFrame is the size from which a frame is written from its own buffer
	// instead of being copied behind another.
	ownFrame = 16 << 10
	// maxQueued is how many bytes may wait before writers have to wait too.
	maxQueued = 8 << 20
	// unpaid is how many bytes may wait without being taken from the budget. So little is not worth counting.
	unpaid = 4 << 10
	// From minTaken to maxTaken bytes are taken from the budget at a time.
	minTaken = 4 << 10
	maxTaken = 64 << 10
)

// writer gathers frames. At most one goroutine at a time is the flusher, which writes until nothing is
// queued. Other senders put their frames into the queue and go on. The Mode of a frame says how it gets a
// flusher. A flusher that came from a call of Send leaves what is still queued after a few rounds to another
// goroutine.
type writer struct {
	conn    net.Conn
	budget  *packet.Budget
	room    Roomer
	most    int64        // bytes that may wait before writers have to
	timeout atomic.Int64 // time.Duration; 0 none
	armed   bool         // a write deadline is set on conn; only the flusher uses it
	try     *tryWriter   // made when first used; only the flusher uses it
	wrote   int          // bytes that the last round has written; only the flusher uses it

	full              atomic.Bool  // smallLocked() >= fullAt, or crowdedLocked()
	cuts              atomic.Bool  // parts is not nil
	permits, awaiting atomic.Int32 // permits to encode that are taken, and senders that wait for one

	mu       sync.Mutex // guards the fields below
	cond     *sync.Cond // made when first waited on; see waitLocked
	queue    []*bufpool.Buffer
	spare    []*bufpool.Buffer // the queue's other half, while it is not in use
	posted   uint64            // frames sent with the mode Later
	queued   int64             // bytes in queue, in parts, and under way
	taken    int64             // bytes taken from the budget, given back when nothing is queued
	fullAt   int64             // most, or less where the budget has refused more
	waits    bool              // the budget has been told that the output waits for the other side
	drained  int64             // bytes written since then
	step     int               // how many bytes of a long buffer are written at once
	written  atomic.Uint32     // how many writes have succeeded
	flushing bool
	freed    *sync.Cond // made when first waited on; signalled when a permit ends
	parts    *parts     // large frames; nil while all are written whole
	shut     bool       // drain has written everything
	refuse   error      // what new frames are refused with; queued ones are still written
	err      error      // ended the socket: nothing more is written
}

func (w *writer) init(conn net.Conn, o Options) {
	w.conn, w.step = conn, writeStep
	if tcpOf(conn) == nil {
		w.step = blindStep
	}
	w.budget, w.room = o.Output, o.Room
	switch w.most = o.MaxOutput; {
	case w.most == 0:
		w.most = maxQueued
	case w.most < 0:
		w.most = math.MaxInt64
	}
	w.fullAt = w.most
	w.timeout.Store(int64(max(o.WriteTimeout, 0)))
	w.armed = true // clears a deadline that a former owner of conn left
}

// Mode says who writes a frame if nobody is writing, and whether the sender waits.
type Mode uint8

const (
	// Now has the sender write, after it has yielded the processor once, so that goroutines which are about
	// to queue something do it first: under load that makes one system call out of many, and alone it
	// costs nothing. The sender waits for room in the output, and for the connection.
	Now Mode = iota
	// Later has a goroutine write, while the sender makes its next frame. The sender waits for room.
	Later
	// Try has the sender write as far as that need not wait for the connection, and a goroutine the rest.
	// The sender waits for room.
	Try
	// Offer is Later without the wait: where there is no room the error wraps [ErrOutputFull], and the
	// socket can be used on.
	Offer
	// Queue leaves the frame to the next packet that is written, or to Flush, which must follow. The sender
	// does not wait: where there is no room the error wraps [ErrOutputFull], and the socket can be used on.
	Queue
	// Refusal is Queue for a small reply that says why a call is not handled. When the output is full for
	// other frames, an eighth more of these may be queued, but 256 KiB at most.
	Refusal
	// Control is Queue for one of the few small packets that keep the connection in order. There is always
	// room for them.
	Control
)

// write takes the frame. It returns how many bytes wait.
func (w *writer) write(ctx context.Context, f Frame, mode Mode) (waiting int, err error) {
	w.mu.Lock()
	if f.reserved == 0 && !w.roomLocked(int64(len(f.b)), f.cost > 0, w.reserveFor(mode)) && mode != Control {
		if err = ErrOutputFull; mode < Offer {
			w.mu.Unlock()
			wait := w.waitFor(ctx)
			defer wait.end()
			w.mu.Lock()
			err = w.waitForRoomLocked(wait, int64(len(f.b)), f.cost > 0)
		}
	}
	if w.refuse != nil {
		err = w.refuse
	}
	if err != nil {
		w.giveLocked()
		w.mu.Unlock()
		f.Drop()
		return 0, &WriteError{Err: err, Unsent: true}
	}
	w.queued += int64(len(f.b))
	large := f.reserved > 0
	if w.waitsLocked(&f) {
		w.addLocked(f)
	} else {
		w.enqueueLocked(f)
		if mode != Control {
			w.tookSmallLocked(len(f.b))
		}
	}
	small := w.smallLocked()
	if small >= w.fullAt {
		w.full.Store(true)
	}
	if mode == Later || mode == Offer {
		w.posted++
	}
	w.watchLocked(0)
	if f.permit {
		w.endPermitLocked()
	}
	flush := !w.flushing && mode < Queue && w.somethingLocked()
	if flush {
		w.flushing = true
	}
	w.mu.Unlock()
	switch {
	case !flush:
	case mode == Later, mode == Offer, large:
		go w.flushRest()
	case mode == Try:
		runtime.Gosched()
		w.tryFlush()
	default:
		runtime.Gosched()
		err = w.flush()
	}
	return int(small), err
}

func (w *writer) backlog() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queued
}

// tcpOf returns the TCP connection below conn, which may be TLS; nil if there is none.
func tcpOf(conn net.Conn) *net.TCPConn {
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = over.NetConn()
	}
	tcp, _ := conn.(*net.TCPConn)
	return tcp
}

func (w *writer) unsent() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queued > 0 && w.err == nil
}

func (w *writer) refusal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refuse
}

// enqueueLocked puts a large frame at the end of the queue as it is, and copies a
// small one behind the last one.
func (w *writer) enqueueLocked(f Frame) {
	w.taken += f.cost
	if len(f.b) >= ownFrame {
		w.queue = append(w.queue, f.buf)
		return
	}
	last := len(w.queue) - 1
	switch {
	case last < 0 || w.queue[last].Shared != nil || len(w.queue[last].B)+len(f.b) > gather:
		// A lone frame needs little room. A frame behind others is one of many, and more will come.
		size := bufpool.Small
		if last >= 0 || len(f.b) > size {
			size = gather
		}
		w.queue = append(w.queue, bufpool.GetSize(size))
		last++
	case cap(w.queue[last].B)-len(w.queue[last].B) < len(f.b):
		wide := bufpool.GetSize(gather)
		wide.B = append(wide.B, w.queue[last].B...)
		bufpool.Put(w.queue[last])
		w.queue[last] = wide
	}
	into := w.queue[last]
	into.B = append(into.B, f.b...)
	bufpool.Put(f.buf)
}

// flushQueued writes what is queued, if there is no flusher.
func (w *writer) flushQueued() error {
	w.mu.Lock()
	if w.flushing || !w.somethingLocked() || w.err != nil {
		w.mu.Unlock()
		return nil
	}
	w.flushing = true
	w.mu.Unlock()
	return w.flush()
}

// ownRounds is how many rounds a sender writes as the flusher before it leaves the rest to a new goroutine,
// because the program waits for it.
const ownRounds = 8

// flush writes what is queued. The caller has become the flusher. The error is that of the first round, in
// which the caller's own frame is. An error of a later round ends the socket too, but the caller's frame was
// written before.
func (w *writer) flush() error {
	done, own := w.round(false)
	for n := 1; !done; n++ {
		if n == ownRounds {
			go w.flushRest()
			break
		}
		runtime.Gosched()
		done, _ = w.round(false)
	}
	if own != nil {
		return &WriteError{Err: own}
	}
	return nil
}

// tryFlush writes as much as the connection takes without waiting, if a single buffer is queued, and leaves
// the rest to a new goroutine. The caller has become the flusher.
func (w *writer) tryFlush() {
	w.mu.Lock()
	if len(w.queue) != 1 || w.err != nil {
		w.mu.Unlock()
		go w.flushRest()
		return
	}
	queue := w.queue
	w.queue, w.spare = w.spare[:0], nil
	w.mu.Unlock()

	buf := queue[0]
	n := w.tryWrite(buf.B)

	w.mu.Lock()
	if n == len(buf.B) {
		bufpool.Put(buf)
		buf, queue[0] = nil, nil
		w.spare = queue[:0]
	} else if buf.Shared != nil {
		buf.B = buf.B[n:]
	} else {
		buf.B = buf.B[:copy(buf.B, buf.B[n:])]
	}
	w.endTryLocked(n, buf)
}

// tryWrite writes as much of b as the connection takes without waiting, and returns how much that was. The
// caller is the flusher.
func (w *writer) tryWrite(b []byte) int {
	if w.try == nil {
		w.try = newTryWriter(w.conn)
	}
	n := w.try.write(b)
	if n == 0 && w.armed && w.try.late() { // by the deadline of an earlier write
		w.armed = false
		w.conn.SetWriteDeadline(deadline(0))
		n = w.try.write(b)
	}
	return n
}

// endTryLocked is called when n bytes were written without waiting, and unlocks mu. The rest, nil if there is
// none, is left to a new goroutine. The caller has been the flusher.
func (w *writer) endTryLocked(n int, rest *bufpool.Buffer) {
	again := w.wroteLocked(n)
	if rest != nil {
		w.queue = slices.Insert(w.queue, 0, rest)
	}
	if !w.somethingLocked() || w.err != nil {
		w.endFlushLocked()
	} else {
		go w.flushRest()
	}
	w.wakeLocked()
	w.mu.Unlock()
	w.hasRoom(again)
}

// wroteLocked says that n bytes have been written. It reports whether there is room again; the caller then
// calls hasRoom, without mu.
func (w *writer) wroteLocked(n int) bool {
	w.queued -= int64(n)
	w.watchLocked(n)
	w.trimLocked()
	if !w.full.Load() || w.smallLocked() >= w.fullAt || w.crowdedLocked() {
		return false
	}
	w.full.Store(false)
	w.fullAt = w.most
	return w.room != nil
}

func (w *writer) hasRoom(again bool) {
	if again {
		w.room.OutputHasRoom()
	}
}

// flushRest writes until nothing is left that can be written, parts of large frames too.
func (w *writer) flushRest() {
	for {
		runtime.Gosched()
		if done, _ := w.round(true); done {
			return
		}
		n, err := w.part() // an error is seen by the next round too
		for left := w.wrote/partsShare - n; left > 0 && n > 0 && err == nil; left -= n {
			n, err = w.part()
		}
	}
}

// round writes what is queued now. It reports true if the caller is no longer the flusher: because nothing is
// left to write or, without rest, because only parts are, which it leaves to a new goroutine.
func (w *writer) round(rest bool) (done bool, err error) {
	w.wrote = 0
	w.mu.Lock()
	if len(w.queue) == 0 || w.err != nil {
		defer w.mu.Unlock()
		return w.endsLocked(rest), w.err
	}
	queue := w.queue
	w.queue, w.spare = w.spare[:0], nil
	w.mu.Unlock()

	for i, buf := range queue {
		n := len(buf.B)
		w.wrote += n
		if err == nil {
			err = w.put(buf.B)
		}
		bufpool.Put(buf)
		queue[i] = nil

		w.mu.Lock()
		again := w.wroteLocked(n)
		if err != nil {
			w.failLocked(err)
		}
		if i == len(queue)-1 {
			w.spare = queue[:0]
			done = w.endsLocked(rest)
		}
		w.wakeLocked()
		w.mu.Unlock()
		w.hasRoom(again)
	}
	if err != nil && !Gone(err) {
		_ = w.conn.Close() // a part of a frame may have been sent
	}
	return done, err
}

// endsLocked is called at the end of a round. It returns what round does.
func (w *writer) endsLocked(rest bool) bool {
	switch {
	case w.err != nil || !w.somethingLocked():
		w.endFlushLocked()
	case rest || len(w.queue) > 0:
		return false
	default:
		go w.flushRest()
	}
	return true
}

// put writes b to the connection, a long one in steps.
func (w *writer) put(b []byte) error {
	for len(b) > 4*w.step {
		w.arm()
		if _, err := w.conn.Write(b[:w.step]); err != nil {
			return err
		}
		b = b[w.step:]
		w.written.Add(1)
		w.mu.Lock()
		w.watchLocked(w.step)
		w.mu.Unlock()
	}
	w.arm()
	_, err := w.conn.Write(b)
	w.written.Add(1)
	return err
}

func (w *writer) endFlushLocked() {
	w.flushing = false
	if w.err != nil {
		for _, buf := range w.queue {
			release(buf)
		}
		w.queue, w.spare, w.queued = nil, nil, 0 // will never be written
		w.clearPartsLocked()
		w.watchLocked(0)
	}
	w.giveLocked()
	w.wakeLocked()
}

// arm sets the deadline of the write that follows.
func (w *writer) arm() {
	if d := time.Duration(w.timeout.Load()); d > 0 || w.armed {
		w.armed = d > 0
		w.conn.SetWriteDeadline(deadline(d))
	}
}

// drain refuses new frames with the error given, and waits until all others are written, for d at most. It
// reports whether they are.
func (w *writer) drain(d time.Duration, refuse error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse == nil {
		w.refuse = refuse
	}
	w.wakeLocked()
	w.endLineLocked()
	if w.freed != nil {
		w.freed.Broadcast()
	}
	w.goFlushLocked()
	if w.writesLocked() {
		late := false
		timer := time.AfterFunc(d, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			late = true
			w.wakeLocked()
		})
		defer timer.Stop()
		for w.writesLocked() && !late {
			w.waitLocked()
		}
	}
	w.shut = !w.writesLocked() && w.err == nil
	return w.shut
}

// writesLocked reports whether anything that was accepted is being written, or waits for that.
func (w *writer) writesLocked() bool {
	return w.err == nil && (w.flushing || w.parts != nil && len(w.parts.lanes) > 0)
}

// fail ends the socket: every later write returns err, and what is queued is
// given up.
func (w *writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failLocked(err)
	w.wakeLocked()
}

// failLocked keeps the first error of each kind.
func (w *writer) failLocked(err error) {
	if w.err == nil {
		w.err = err
	}
	if w.refuse == nil {
		w.refuse = err
	}
	w.endLineLocked()
	if w.freed != nil {
		w.freed.Broadcast()
	}
	if !w.flushing {
		w.endFlushLocked()
	}
}

// failure returns the error that ended the socket, nil if none did.
func (w *writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *writer) waitLocked() {
	if w.cond == nil {
		w.cond = sync.NewCond(&w.mu)
	}
	w.cond.Wait()
}

func (w *writer) wakeLocked() {
	if w.cond != nil {
		w.cond.Broadcast()
	}
}
