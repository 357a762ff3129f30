package socket

import (
	"context"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

// Spread writes frames that many sockets write, n packets one behind the other, as far as the connection
// takes them without waiting; the rest is queued without a copy, and a goroutine writes it. It reports
// false, and nothing was sent, if more than most bytes wait to be written already, or large packets in
// the lane, or if the frames are to go in parts. The error is a [*WriteError]; that of a later write ends
// the socket.
func (s *Socket) Spread(b *bufpool.Shared, n int, lane *Lane, most int64) (bool, error) {
	if s.closed.Load() {
		return false, &WriteError{Err: ErrClosed, Unsent: true}
	}
	if s.w.large(b.B) {
		return false, nil
	}
	return s.w.spread(b, n, lane, most)
}

// spread is Socket.Spread.
func (w *writer) spread(shared *bufpool.Shared, n int, lane *Lane, most int64) (bool, error) {
	b := shared.B
	size := int64(len(b))
	w.mu.Lock()
	if w.refuse != nil {
		defer w.mu.Unlock()
		return false, &WriteError{Err: w.refuse, Unsent: true}
	}
	if lane.queue != nil || w.smallLocked() > most {
		w.mu.Unlock()
		return false, nil
	}
	if w.flushing || len(w.queue) > 0 {
		defer w.mu.Unlock()
		if len(b) >= ownFrame {
			if !shared.Hold(false) {
				return false, nil
			}
			w.queue = append(w.queue, &bufpool.Buffer{B: b, Shared: shared})
		} else {
			if !w.roomLocked(size, false, 0) {
				return false, nil
			}
			w.enqueueLocked(Frame{b: b})
		}
		w.queued += size
		w.posted += uint64(n)
		w.tookSmallLocked(len(b))
		w.watchLocked(0)
		w.goFlushLocked()
		return true, nil
	}
	w.flushing = true
	w.queued += size
	w.posted += uint64(n)
	w.tookSmallLocked(len(b))
	w.mu.Unlock()

	wrote := w.tryWrite(b)

	var rest *bufpool.Buffer
	if wrote < len(b) {
		shared.Hold(true) // a part of a frame is on its way
		rest = &bufpool.Buffer{B: b[wrote:], Shared: shared}
	}
	w.mu.Lock()
	w.endTryLocked(wrote, rest)
	return true, nil
}

// release ends the hold of a buffer that is not written any more, if it is shared.
func release(buf *bufpool.Buffer) {
	if buf != nil && buf.Shared != nil {
		bufpool.Put(buf)
	}
}

// Share makes a frame of bytes that are shared, and that the caller holds, for Send or Drop. It waits, no
// longer than ctx lasts, where a frame that is to go in parts finds no room. The error is a
// [*WriteError].
func (s *Socket) Share(ctx context.Context, b *bufpool.Shared) (Frame, error) {
	w := &s.w
	f := Frame{w: w, b: b.B}
	if !w.reserve(&f) {
		if err := w.awaitPlace(ctx, int64(len(b.B))); err != nil {
			return Frame{}, &WriteError{Err: err, Unsent: true}
		}
		f.reserved = int64(len(b.B))
	}
	if len(b.B) >= ownFrame {
		b.Hold(true)
		f.buf = &bufpool.Buffer{B: b.B, Shared: b}
	}
	if len(b.B) > wholeBody && w.room != nil && !w.cuts.Load() {
		w.room.LargePacket()
	}
	return f, nil
}

// AwaitQueued waits until no more than most bytes of small packets wait to be written, and no longer than
// ctx lasts. The error is a [*WriteError].
func (s *Socket) AwaitQueued(ctx context.Context, most int64) error {
	w := &s.w
	wait := w.waitFor(ctx)
	defer wait.end()
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.refuse == nil && w.smallLocked() > most {
		if wait.over {
			return &WriteError{Err: wait.err, Unsent: true}
		}
		w.waitLocked()
	}
	if w.refuse != nil {
		return &WriteError{Err: w.refuse, Unsent: true}
	}
	return nil
}
