package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/packet"
)

// Large packets go in parts, if the other side knows that: then a small packet waits for one part, and for
// what of the parts is on its way, and not for all of the large ones. A part is a packet of its own, with the
// number of the packet that it is of as its id, and some of that packet's bytes as its body. The receiver
// answers every part with how many bytes of parts have come, and the sender has no more than a window on the
// way: what is on the way stands in front of every small packet, in the buffers of the two systems. While
// small packets are sent the window is small, and when there are none it grows, as large writes are cheaper.
//
// Parts of up to maxTransfers packets go in turns. Packets that must not overtake each other share a Lane.

const (
	// wholeBody is how large a body may be that goes in one piece: a stream's copy of 64 KiB is one.
	wholeBody = 66 << 10
	// minWindow and maxWindow bound the bytes of parts that are on the way. A part has a quarter of the
	// window.
	minWindow  = 256 << 10
	maxWindow  = 4 << 20
	windowPart = 4
	// maxTransfers is how many packets may be under way in parts at a time.
	maxTransfers = 16
)

// A Lane keeps packets in order: those that are sent in the same lane leave in the order of Send. It is
// needed only for packets of which some may be large, because a small packet passes large ones otherwise. The
// zero value is ready. It belongs to one socket, and must not be copied.
type Lane struct {
	queue *lane // nil while nothing in the lane waits
}

// In has Send put the frame into the lane.
func (f Frame) In(l *Lane) Frame {
	f.lane = l
	return f
}

// Tagged gives the frame a number that is not 0, by which Recall finds it.
func (f Frame) Tagged(tag uint64) Frame {
	f.tag = tag
	return f
}

// Behind has Send keep the frame back until all large packets that wait now have left. It is for a small
// packet with the mode Control.
func (f Frame) Behind() Frame {
	f.behind = true
	return f
}

// lane has the frames of a Lane that wait, or one frame that is in no lane. The first is always large.
type lane struct {
	of    *Lane
	queue []*transfer
}

// transfer is a packet that waits, or goes in parts.
type transfer struct {
	frame  Frame
	number uint64 // 0 until its first part is sent
	left   []byte // what of a large frame was not sent
	gone   bool   // recalled while a part of it was being written
}

// parts are the large packets that wait to be written. The writer's mu guards all of it.
type parts struct {
	queued   int64 // bytes of large packets that wait
	reserved int64 // bytes of frames that have room and were not sent yet
	line     []*place
	inLine   int64   // bytes that the line waits for
	lanes    []*lane // those before maxTransfers go in turns
	turn     int
	writing  *transfer // a part of it is being written
	ends     bool      // that is its last part
	behind   []Frame
	last     uint64 // number of the last packet

	sent, came uint64 // bytes of parts that were sent, and that the other side has received

	window  int
	mark    uint64      // sent when the window was looked at last
	small   uint64      // bytes of other packets that were queued since then
	starves bool        // there were many
	heard   time.Time   // when the other side has said something last, or there was first something to say
	stall   *time.Timer // nil until there is something to watch
	header  []byte      // of the part that is being written
	bufs    [2][]byte
}

// CutLarge has large packets go in parts from now on, because the other side knows that.
func (s *Socket) CutLarge() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.parts == nil {
		s.w.parts = &parts{window: minWindow}
		s.w.cuts.Store(true)
	}
}

// Recall takes back the packet with the tag if it is a large one that is not under way as a whole, and
// reports whether it has: then the other side drops what has come. Flush must follow.
func (s *Socket) Recall(tag uint64) bool {
	w := &s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.parts
	if p == nil || tag == 0 {
		return false
	}
	for _, l := range p.lanes {
		for _, t := range l.queue {
			if t.frame.tag != tag {
				continue
			}
			switch {
			case t != p.writing:
				w.removeLocked(l, t)
			case p.ends: // it will be there as a whole
				return false
			default:
				t.gone = true
			}
			return true
		}
	}
	return false
}

// bodyOf returns the length of the frame's body, and of what is before it.
func bodyOf(frame []byte) (head, body int) {
	head = 2*packet.LengthSize + int(binary.BigEndian.Uint32(frame))
	return head, len(frame) - head
}

// large reports whether the frame is to go in parts.
func (w *writer) large(frame []byte) bool {
	if len(frame) <= wholeBody || !w.cuts.Load() {
		return false
	}
	_, body := bodyOf(frame)
	return body > wholeBody
}

// waitsLocked reports whether the frame waits behind large ones, or is large.
func (w *writer) waitsLocked(f *Frame) bool {
	return f.reserved > 0 || f.lane != nil && f.lane.queue != nil ||
		f.behind && w.parts != nil && len(w.parts.lanes) > 0
}

// addLocked puts a frame to those that wait. Its bytes are counted in the writer's queued.
func (w *writer) addLocked(f Frame) {
	p := w.parts
	w.taken += f.cost
	p.reserved -= f.reserved
	if f.buf == nil { // the memory is the caller's
		f.buf = bufpool.GetSize(len(f.b))
		f.buf.B = append(f.buf.B, f.b...)
		f.b = f.buf.B
	}
	if f.behind {
		p.behind = append(p.behind, f)
		return
	}
	t := &transfer{frame: f}
	if f.reserved > 0 {
		t.left = f.b
		p.queued += int64(len(f.b))
	}
	if f.lane != nil && f.lane.queue != nil {
		f.lane.queue.queue = append(f.lane.queue.queue, t)
		return
	}
	l := &lane{of: f.lane, queue: []*transfer{t}}
	if f.lane != nil {
		f.lane.queue = l
	}
	p.lanes = append(p.lanes, l)
}

// readyLocked reports whether a part may be sent now.
func (w *writer) readyLocked() bool {
	p := w.parts
	if p == nil || len(p.lanes) == 0 {
		return false
	}
	return p.sent <= p.came || p.sent-p.came+uint64(p.window/windowPart) <= uint64(p.window)
}

// somethingLocked reports whether anything can be written now.
func (w *writer) somethingLocked() bool { return len(w.queue) > 0 || w.readyLocked() }

// tookSmallLocked is called when a packet of n bytes is queued that does not go in parts: such ones flow, so
// that the window has to be small.
func (w *writer) tookSmallLocked(n int) {
	p := w.parts
	if p == nil {
		return
	}
	if p.small == 0 && !p.starves {
		p.window, p.mark = minWindow, p.sent
	}
	p.small += uint64(n)
}

// partsShare says that of what is written one part in so many, beside one part of a large frame, is for large
// frames, however many small ones there are.
const partsShare = 4

// turnLocked is called when a window has come: the next one is twice as large if nothing else was sent
// meanwhile, or so much that large packets starve. Then small packets wait for each other anyway.
func (w *writer) turnLocked() {
	p := w.parts
	p.starves = p.small > partsShare*(p.sent-p.mark)
	switch {
	case p.small == 0 || p.starves:
		p.window = min(2*p.window, maxWindow)
	default:
		p.window = max(p.window/2, minWindow)
	}
	p.mark, p.small = p.sent, 0
}

// part writes a part of a large packet, if one may be sent, and returns its length. The caller is the
// flusher.
func (w *writer) part() (n int, err error) {
	w.mu.Lock()
	p := w.parts
	if w.err != nil || !w.readyLocked() {
		defer w.mu.Unlock()
		return 0, w.err
	}
	p.turn %= min(len(p.lanes), maxTransfers)
	l := p.lanes[p.turn]
	t := l.queue[0]
	n = p.window / windowPart
	if t.number == 0 {
		p.last++
		t.number = p.last
		head, _ := bodyOf(t.frame.b)
		n = max(n, head)
	}
	if len(t.left) <= n+n/4 { // a small part would cost as much as a large one
		n = len(t.left)
	}
	part := t.left[:n]
	if p.sent <= p.came {
		p.heard = time.Now()
		w.watchPartsLocked()
	}
	p.sent += uint64(n)
	p.header = appendPart(p.header[:0], t.number, n)
	p.writing, p.ends = t, n == len(t.left)
	w.mu.Unlock()

	w.arm()
	err = w.putBoth(p.header, part)
	w.written.Add(1)
	if err != nil && !Gone(err) {
		_ = w.conn.Close() // a part of a frame may have been sent
	}

	w.mu.Lock()
	p.writing = nil
	t.left = t.left[n:]
	p.queued -= int64(n)
	if t.gone || len(t.left) == 0 {
		w.removeLocked(l, t)
	} else {
		p.turn++
	}
	if err != nil {
		w.failLocked(err)
	}
	again := w.wroteLocked(n)
	w.wakeLocked()
	w.mu.Unlock()
	w.hasRoom(again)
	return n, err
}

// appendPart appends the frame of a part as far as its body: its header, in the protobuf codec, has the id,
// if the number is not 0, and the type.
func appendPart(dst []byte, number uint64, body int) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0, codec.IdProtobuf)
	if number != 0 {
		dst = append(dst, 1<<3|2, 0)
		digits := len(dst)
		dst = strconv.AppendUint(dst, number, 10)
		dst[digits-1] = byte(len(dst) - digits)
	}
	dst = append(dst, 2<<3, byte(packet.TypePart))
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-packet.LengthSize))
	return binary.BigEndian.AppendUint32(dst, uint32(body))
}

// putBoth writes a and b, in one call where the connection has one for that.
func (w *writer) putBoth(a, b []byte) error {
	p := w.parts
	switch w.conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		p.bufs = [2][]byte{a, b}
		bufs := net.Buffers(p.bufs[:])
		_, err := bufs.WriteTo(w.conn)
		return err
	}
	buf := bufpool.GetSize(len(a) + len(b))
	defer bufpool.Put(buf)
	buf.B = append(append(buf.B, a...), b...)
	_, err := w.conn.Write(buf.B)
	return err
}

// removeLocked ends the transfer: all of it was sent, or the rest is dropped.
func (w *writer) removeLocked(l *lane, t *transfer) {
	p := w.parts
	if n := int64(len(t.left)); n > 0 {
		p.queued -= n
		w.queued -= n
		w.watchLocked(0)
		if t.number > 0 {
			w.internalLocked(appendPart(nil, t.number, 0))
		}
	}
	bufpool.Put(t.frame.buf)
	i := slices.Index(l.queue, t)
	l.queue = slices.Delete(l.queue, i, i+1)
	for i == 0 && len(l.queue) > 0 && l.queue[0].frame.reserved == 0 { // a small one
		w.releaseLocked(l.queue[0].frame)
		l.queue = slices.Delete(l.queue, 0, 1)
	}
	if len(l.queue) == 0 {
		if l.of != nil {
			l.of.queue = nil
		}
		at := slices.Index(p.lanes, l)
		p.lanes = slices.Delete(p.lanes, at, at+1)
		if at < p.turn {
			p.turn--
		}
	}
	if len(p.lanes) == 0 {
		p.lanes = nil
		for _, f := range p.behind {
			w.releaseLocked(f)
		}
		p.behind = nil
	}
	w.serveLocked()
}

// releaseLocked queues a small frame that has waited behind large ones. It is counted and paid already.
func (w *writer) releaseLocked(f Frame) {
	f.cost = 0
	w.enqueueLocked(f)
}

// internalLocked queues a small frame of this package's own.
func (w *writer) internalLocked(frame []byte) {
	w.queued += int64(len(frame))
	w.enqueueLocked(Frame{b: frame})
}

// came is called by the goroutine that reads when the other side says how many bytes of parts have come.
func (w *writer) came(total uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.parts
	if p == nil {
		return errors.New("the other side says that parts have come, and none were sent")
	}
	if total > p.sent {
		return fmt.Errorf("the other side says that %d bytes of parts have come, and %d were sent", total,
			p.sent)
	}
	if total <= p.came {
		return nil
	}
	p.came, p.heard = total, time.Now()
	if p.came >= p.mark+uint64(p.window) {
		w.turnLocked()
	}
	w.goFlushLocked()
	return nil
}

// goFlushLocked has a goroutine write if there is something and nobody writes.
func (w *writer) goFlushLocked() {
	if !w.flushing && w.err == nil && w.somethingLocked() {
		w.flushing = true
		go w.flushRest()
	}
}

// say queues what says how many bytes of parts have come. Flush must follow.
func (w *writer) say(total uint64) {
	text := strconv.AppendUint(nil, total, 10)
	frame := append(appendPart(nil, 0, len(text)), text...)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && !w.shut {
		w.internalLocked(frame)
	}
}

// saysNoMore is called when the other side has ended its output: nothing is said any more of what has come.
func (w *writer) saysNoMore() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.parts; p != nil {
		p.came = math.MaxUint64
		w.goFlushLocked()
	}
}

// watchPartsLocked has the socket end when the other side says nothing for the write timeout. It is called
// when parts begin to be on the way.
func (w *writer) watchPartsLocked() {
	p := w.parts
	d := time.Duration(w.timeout.Load())
	switch {
	case d <= 0:
	case p.stall == nil:
		p.stall = time.AfterFunc(d, w.checkStall)
	default:
		p.stall.Reset(d)
	}
}

func (w *writer) checkStall() {
	w.mu.Lock()
	p := w.parts
	d := time.Duration(w.timeout.Load())
	if w.err != nil || d <= 0 || p.sent <= p.came {
		w.mu.Unlock()
		return
	}
	if len(p.lanes) == 0 { // nothing waits for that
		p.heard = time.Now()
	}
	if left := d - time.Since(p.heard); left > 0 {
		p.stall.Reset(left)
		w.mu.Unlock()
		return
	}
	w.failLocked(os.ErrDeadlineExceeded)
	w.wakeLocked()
	w.mu.Unlock()
	_ = w.conn.Close()
}

// clearPartsLocked drops all that waits. Nobody is writing.
func (w *writer) clearPartsLocked() {
	p := w.parts
	if p == nil {
		return
	}
	for _, l := range p.lanes {
		if l.of != nil {
			l.of.queue = nil
		}
		for _, t := range l.queue {
			release(t.frame.buf)
		}
	}
	p.lanes, p.behind, p.queued = nil, nil, 0
	if p.stall != nil {
		p.stall.Stop()
	}
}
