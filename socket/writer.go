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

// writer gathers frames. Whoever queues a frame while nobody flushes becomes
// the flusher and writes until nothing is queued; everyone else queues and goes
// on. Before its first write the flusher yields the processor once, so that
// goroutines which are about to queue something do it first: under load that
// makes one system call out of many, and alone it costs nothing. A flusher that
// has written a few rounds leaves what is still queued to a goroutine.
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

// write takes the frame in buf, and buf itself.
func (w *writer) write(buf *bufpool.Buffer) error {
	w.mu.Lock()
	for w.refuse == nil && w.queued >= maxQueued {
		w.waitLocked()
	}
	if w.refuse != nil {
		err := w.refuse
		w.mu.Unlock()
		bufpool.Put(buf)
		return &WriteError{err}
	}
	w.queued += len(buf.B)
	if last := len(w.queue) - 1; last >= 0 && len(buf.B) < ownFrame && len(w.queue[last].B)+len(buf.B) <= gather {
		w.queue[last].B = append(w.queue[last].B, buf.B...)
		bufpool.Put(buf)
	} else {
		w.queue = append(w.queue, buf)
	}
	if w.flushing {
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

// flush writes what is queued. The error it returns is that of the first round,
// which holds the caller's own frame. One of a later round ends the socket too,
// but the caller's frame was written by then.
func (w *writer) flush() error {
	runtime.Gosched()
	done, own := w.round()
	for n := 1; !done; n++ {
		if n == ownRounds {
			go w.flushRest()
			break
		}
		done, _ = w.round()
	}
	if own != nil {
		return &WriteError{own}
	}
	return nil
}

func (w *writer) flushRest() {
	for done := false; !done; {
		done, _ = w.round()
	}
}

// round writes what is queued now. It reports true when there is nothing left to
// write; then the caller is the flusher no longer.
func (w *writer) round() (done bool, err error) {
	w.mu.Lock()
	if len(w.queue) == 0 || w.err != nil {
		w.flushing = false
		if w.err != nil {
			w.queue, w.spare = nil, nil // will never be written
		}
		w.wakeLocked()
		defer w.mu.Unlock()
		return true, w.err
	}
	queue := w.queue
	w.queue, w.spare = w.spare[:0], nil
	w.mu.Unlock()

	for i, buf := range queue {
		n := len(buf.B)
		if err == nil {
			if d := time.Duration(w.timeout.Load()); d > 0 || w.armed {
				w.armed = d > 0
				w.conn.SetWriteDeadline(deadline(d))
			}
			_, err = w.conn.Write(buf.B)
		}
		bufpool.Put(buf)
		queue[i] = nil
		w.mu.Lock()
		w.queued -= n
		if err != nil {
			w.failLocked(err)
		}
		w.wakeLocked()
		w.mu.Unlock()
	}
	w.mu.Lock()
	w.spare = queue[:0]
	w.mu.Unlock()
	if err != nil {
		_ = w.conn.Close() // a part may have been sent
	}
	return false, err
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
