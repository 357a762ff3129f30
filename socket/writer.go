package socket

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

const (
	// gather is the size up to which small frames are put together in one write.
	gather = 64 << 10
	// ownFrame is the size from which a frame is written from its own buffer
	// instead of being copied behind another.
	ownFrame = 16 << 10
	// maxQueued is how many bytes may wait before writers have to wait too.
	maxQueued = 8 << 20
)

// writer gathers frames. There is at most one flusher, who writes until nothing
// is queued; everyone else queues and goes on. How a frame gets its flusher is
// up to who sends it, see flushMode. A flusher who is also somebody's caller
// leaves what is still queued after a few rounds to a goroutine.
type writer struct {
	conn    net.Conn
	timeout atomic.Int64 // time.Duration; 0 none
	armed   bool         // a write deadline is set on conn; the flusher's

	mu       sync.Mutex // guards the fields below
	cond     *sync.Cond // made when first waited on; see waitLocked
	queue    []*bufpool.Buffer
	spare    []*bufpool.Buffer // the queue's other half, while it is not in use
	queued   int               // bytes in queue and under way
	flushing bool
	refuse   error // what new frames are refused with; queued ones are still written
	err      error // ended the socket: nothing more is written
}

func (w *writer) init(conn net.Conn, timeout time.Duration) {
	w.conn = conn
	w.timeout.Store(int64(max(timeout, 0)))
	w.armed = true // clears a deadline that a former owner of conn left
}

// flushMode says who writes a frame if nobody is writing.
type flushMode uint8

const (
	// flushSoon: the sender does, after it has yielded the processor once, so that
	// goroutines which are about to queue something do it first: under load that
	// makes one system call out of many, and alone it costs nothing.
	flushSoon flushMode = iota
	// flushElsewhere: a goroutine does, while the sender makes its next frame.
	flushElsewhere
	// flushNot: the sender does, later, by flushQueued.
	flushNot
)

// write takes the frame. It returns how many bytes wait.
func (w *writer) write(f Frame, mode flushMode) (waiting int, err error) {
	w.mu.Lock()
	for w.refuse == nil && w.queued >= maxQueued {
		if w.flushing {
			w.waitLocked()
			continue
		}
		w.flushing = true
		w.mu.Unlock()
		_ = w.flush() // if it fails it says so in refuse
		w.mu.Lock()
	}
	if w.refuse != nil {
		err := w.refuse
		w.mu.Unlock()
		f.Drop()
		return 0, &WriteError{err}
	}
	w.queued += len(f.b)
	waiting = w.queued
	w.enqueueLocked(f)
	flush := !w.flushing && mode != flushNot
	if flush {
		w.flushing = true
	}
	w.mu.Unlock()
	switch {
	case !flush:
	case mode == flushElsewhere:
		go w.flushRest()
	default:
		runtime.Gosched()
		err = w.flush()
	}
	return waiting, err
}

// enqueueLocked puts a large frame at the end of the queue as it is, and copies a
// small one behind the last one.
func (w *writer) enqueueLocked(f Frame) {
	if len(f.b) >= ownFrame {
		w.queue = append(w.queue, f.buf)
		return
	}
	last := len(w.queue) - 1
	switch {
	case last < 0 || len(w.queue[last].B)+len(f.b) > gather:
		// A lone frame needs little room, one behind others is one of many.
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
	f.Drop()
}

// flushQueued writes what frames with flushNot have left, if nobody else does.
func (w *writer) flushQueued() error {
	w.mu.Lock()
	if w.flushing || len(w.queue) == 0 || w.err != nil {
		w.mu.Unlock()
		return nil
	}
	w.flushing = true
	w.mu.Unlock()
	return w.flush()
}

// ownRounds is how many rounds a flusher writes before it leaves the rest to a
// goroutine of its own: the flusher is somebody who called Write and has other
// things to do.
const ownRounds = 8

// flush, for who has become the flusher, writes what is queued. The error it
// returns is that of the first round, which holds the caller's own frame. One of
// a later round ends the socket too, but the caller's frame was written by then.
func (w *writer) flush() error {
	done, own := w.round()
	for n := 1; !done; n++ {
		if n == ownRounds {
			go w.flushRest()
			break
		}
		runtime.Gosched()
		done, _ = w.round()
	}
	if own != nil {
		return &WriteError{own}
	}
	return nil
}

func (w *writer) flushRest() {
	for done := false; !done; {
		runtime.Gosched()
		done, _ = w.round()
	}
}

// round writes what is queued now. It reports true when there is nothing left to
// write; then the caller is the flusher no longer.
func (w *writer) round() (done bool, err error) {
	w.mu.Lock()
	if len(w.queue) == 0 || w.err != nil {
		defer w.mu.Unlock()
		w.endFlushLocked()
		return true, w.err
	}
	queue := w.queue
	w.queue, w.spare = w.spare[:0], nil
	w.mu.Unlock()

	for i, buf := range queue {
		n := len(buf.B)
		if err == nil {
			w.arm()
			_, err = w.conn.Write(buf.B)
		}
		bufpool.Put(buf)
		queue[i] = nil

		w.mu.Lock()
		w.queued -= n
		if err != nil {
			w.failLocked(err)
		}
		if i == len(queue)-1 {
			w.spare = queue[:0]
			if done = len(w.queue) == 0 || w.err != nil; done {
				w.endFlushLocked()
			}
		}
		w.wakeLocked()
		w.mu.Unlock()
	}
	if err != nil {
		_ = w.conn.Close() // a part may have been sent
	}
	return done, err
}

func (w *writer) endFlushLocked() {
	w.flushing = false
	if w.err != nil {
		w.queue, w.spare = nil, nil // will never be written
	}
	w.wakeLocked()
}

// arm sets the deadline of the write that follows.
func (w *writer) arm() {
	if d := time.Duration(w.timeout.Load()); d > 0 || w.armed {
		w.armed = d > 0
		w.conn.SetWriteDeadline(deadline(d))
	}
}

// drain refuses new frames with the error refuse and waits until nothing is
// queued or under way, for at most d. It reports whether that came true.
func (w *writer) drain(d time.Duration, refuse error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse == nil {
		w.refuse = refuse
	}
	w.wakeLocked()
	if !w.flushing && len(w.queue) > 0 && w.err == nil {
		w.flushing = true
		go w.flushRest()
	}
	if w.flushing && w.err == nil {
		late := false
		timer := time.AfterFunc(d, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			late = true
			w.wakeLocked()
		})
		defer timer.Stop()
		for w.flushing && w.err == nil && !late {
			w.waitLocked()
		}
	}
	return !w.flushing && w.err == nil
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
