// Package socket exchanges packets over a net.Conn: buffered reads, writes that
// gather into few system calls, timeouts and limits. It knows nothing of calls
// or routes and is usable alone:
//
//	s := socket.New(conn, socket.Options{})
//	h := &packet.Header{Type: packet.TypePush, Uri: "/a"}
//	err := s.WritePacket(&packet.Packet{Header: h, Body: "hello"})
//
// # Invariants
//
//   - A packet is encoded before any of it is queued, so a packet that does not encode does not harm the
//     connection.
//   - Packets leave in the order in which WritePacket was called, but for large ones, if the other side takes
//     parts: see [Lane].
//   - After a write has failed, which may have sent a part of a packet, every later one fails and the
//     connection is closed. If it failed because the other side has closed the connection, this side does
//     not close it yet: the last packets of the other side may still be there to read.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/errno"
	"github.com/henrylee2cn/teleport/packet"
)

// ErrClosed is returned by operations on a socket that this side has closed.
var ErrClosed = errors.New("socket: closed")

// flushOnClose is how long Close waits for packets already accepted by
// WritePacket to reach the kernel.
const flushOnClose = time.Second

// Options configures a Socket. The zero value is ready to use.
type Options struct {
	// Limits bounds packets in both directions; its zero value is safe. Memory for what is received is taken
	// from its budget.
	Limits packet.Limits
	// Output is the budget that memory is taken from for packets that wait to be written. Nil has no bound
	// besides MaxOutput.
	Output *packet.Budget
	// ReadTimeout is the longest silence while a packet is awaited or read; zero
	// means none.
	ReadTimeout time.Duration
	// WriteTimeout is the longest that one write to the connection may take, and
	// that a packet waits for room in the output; zero means no bound.
	WriteTimeout time.Duration
	// FrameTimeout is the longest that a packet may take from its first byte to its
	// last, or ReadTimeout if that is shorter; zero means no bound.
	FrameTimeout time.Duration
	// Room, if it is not nil, is told of the output.
	Room Roomer
	// MaxOutput is how many bytes may wait to be written before writers wait too;
	// zero means 8 MiB, a negative number no bound.
	MaxOutput int64
}

// A Roomer is told of the output. The calls must not block.
type Roomer interface {
	// OutputHasRoom is called when there is room in the output again.
	OutputHasRoom()
	// LargePacket is called when a packet is encoded that would go in parts after CutLarge.
	LargePacket()
}

// Socket is a connection that carries packets. One goroutine at a time may
// read; every other method is safe for concurrent use, during a read too.
type Socket struct {
	conn   net.Conn
	limits packet.Limits
	r      reader
	w      writer
	closed atomic.Bool
}

// New wraps conn, which belongs to the Socket from then on.
func New(conn net.Conn, o Options) *Socket {
	s := &Socket{conn: conn, limits: o.Limits}
	s.r.init(conn, o)
	s.w.init(conn, o)
	return s
}

// WritePacket encodes p, sets its lengths, and hands it to the connection. When
// it returns nil the packet is written or is next in line behind a write under
// way; an error of that later write ends the socket. Errors of encoding (see
// [packet.Append]) leave the socket usable, and so does [ErrOutputFull]; all others
// end it. All but those of encoding are a [*WriteError].
func (s *Socket) WritePacket(p *packet.Packet) error {
	f, err := s.encodeWithin(context.Background(), nil, p, false)
	if err == nil {
		_, err = s.Send(context.Background(), f, Now)
	}
	return err
}

// Send is the second half of WritePacket: it queues the frame, in the way that the mode says, and returns
// how many bytes are queued then. Where the mode has it wait for room in the output, it waits for the
// write timeout and no longer than ctx lasts. Its error is a [*WriteError]; that of a later write ends the
// socket.
func (s *Socket) Send(ctx context.Context, f Frame, mode Mode) (queued int, err error) {
	if s.closed.Load() {
		f.Drop()
		return 0, &WriteError{Err: ErrClosed, Unsent: true}
	}
	return s.w.write(ctx, f, mode)
}

// Posted returns how many frames Send has taken with the mode Later. After CloseWrite the number does not
// change any more.
func (s *Socket) Posted() uint64 {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.posted
}

// manyAwaiting is how many packets wait to be encoded when the output counts as busy.
const manyAwaiting = 64

// OutputFull reports whether so much waits to be written that the next Send waits. When there is room again
// [Options.Room] is called. It is safe for concurrent use.
func (s *Socket) OutputFull() bool { return s.w.full.Load() }

// OutputBusy reports whether the output is full, or many packets wait to be encoded already, so that there is
// no use in making more. It is safe for concurrent use.
func (s *Socket) OutputBusy() bool { return s.OutputFull() || s.w.awaiting.Load() >= manyAwaiting }

// Reads returns how many reads of the connection have brought data so far, counted in 32 bits. It is safe for
// concurrent use.
func (s *Socket) Reads() uint32 { return s.r.reads.Load() }

// Writes returns how many writes to the connection have succeeded so far, counted in 32 bits. A long packet
// is written in pieces, each of which counts. It is safe for concurrent use.
func (s *Socket) Writes() uint32 { return s.w.written.Load() }

// TCP returns the TCP connection below, also below TLS, or nil if there is none.
func (s *Socket) TCP() *net.TCPConn { return tcpOf(s.conn) }

// Backlog returns how many bytes were accepted and wait to be written. It is safe for
// concurrent use.
func (s *Socket) Backlog() int64 { return s.w.backlog() }

// Unsent reports whether anything that was accepted waits to be written.
func (s *Socket) Unsent() bool { return s.w.unsent() }

// Flush writes the frames that were only queued, unless another goroutine is writing already.
// Its error is a [*WriteError].
func (s *Socket) Flush() error { return s.w.flushQueued() }

// A WriteError is a failure of the connection, as opposed to one of encoding.
type WriteError struct {
	Err error
	// Unsent says that nothing of the packet was sent. Otherwise it may have been
	// sent, as a whole or in part.
	Unsent bool
}

func (e *WriteError) Error() string { return "socket: write: " + e.Err.Error() }

// Unwrap returns the connection's error.
func (e *WriteError) Unwrap() error { return e.Err }

// Gone reports whether a write has failed because the other side has closed the
// connection. What it had sent before that can still be read, where the system keeps
// it; then reading fails too.
func Gone(err error) bool {
	return errors.Is(err, errno.Pipe) || errors.Is(err, errno.Reset)
}

// ReadPacket reads one packet into p, the body into what newBody returns for
// the header that was read. With a nil newBody the body is passed over unread;
// if newBody returns nil it is read, its codec is noted, and it is dropped.
//
// io.EOF means that the other side ended between two packets. An error that
// [Fatal] reports as false concerns only this packet's body: it has been read
// past, p.Header is set, and the next packet can be read.
func (s *Socket) ReadPacket(p *packet.Packet, newBody func(*packet.Header) interface{}) error {
	if err := s.ReadHeader(p); err != nil {
		return err
	}
	if newBody == nil {
		s.SkipBody()
		return nil
	}
	body, err := s.ReadBody(nil)
	if err != nil {
		return err
	}
	defer body.Release()
	return p.ParseBody(body.B, newBody, s.r.limits)
}

// ErrQuiet is what Await returns when nothing has come.
var ErrQuiet = errQuiet

// Await waits until a part of the next packet has come. If nothing comes for about the given time it returns
// [ErrQuiet]; zero is for ever. It is for a reader that wants to do something else while nothing comes. On
// some connections Await does not wait: after a nil error a read may still have to.
func (s *Socket) Await(quiet time.Duration) error {
	err := s.r.await(quiet)
	if err != nil && err != errQuiet {
		err = s.readFailure(err)
	}
	return err
}

// ReadHeader reads the next packet as far as its body, which it skips if the
// last packet's is still unread. p's header, header codec and lengths are set,
// its body is not.
func (s *Socket) ReadHeader(p *packet.Packet) error {
	var v packet.HeaderView
	p.Body, p.BodyCodec, p.BodyLength = nil, "", 0
	for {
		blen, err := s.ReadHeaderView(&v)
		if err != nil {
			return err
		}
		if s.Owes() {
			go s.Flush()
		}
		if v.Type != packet.TypePart {
			p.BodyLength = blen
			p.SetHeader(&v)
			return nil
		}
	}
}

// ReadHeaderView is ReadHeader without a copy of the header's texts, which are
// valid until the next call of any Read method. It returns the length of the
// body and its codec id, which may be over the limit: ReadBody says so.
//
// A packet that comes in parts is returned when the last part has come. For the parts before, v is the
// part's header, with the type packet.TypePart, and there is nothing else to read of it. See Owes.
func (s *Socket) ReadHeaderView(v *packet.HeaderView) (bodyLength int64, err error) {
	if bodyLength, err = s.readHeaderView(v); err != nil {
		s.EndReading()
	}
	return bodyLength, err
}

// EndReading gives up packets that have come in part. It is for the goroutine that reads, when it will not
// read any more.
func (s *Socket) EndReading() { s.r.dropParts() }

func (s *Socket) readHeaderView(v *packet.HeaderView) (bodyLength int64, err error) {
	if err := s.r.skip(); err != nil {
		return 0, s.readFailure(err)
	}
	s.r.dropWhole()
	s.r.next()
	if err := s.r.checkParts(); err != nil {
		return 0, err
	}
	b, err := s.r.peek(packet.LengthSize, true)
	if err != nil {
		return 0, s.readFailure(err)
	}
	hlen, err := s.r.limits.HeaderLength(b)
	if err != nil {
		return 0, &frameError{err}
	}
	b, err = s.r.peek(int(packet.LengthSize+hlen+packet.LengthSize), false)
	if err != nil {
		return 0, s.readFailure(err)
	}
	bodyAt := packet.LengthSize + hlen
	if err := v.Decode(b[packet.LengthSize:bodyAt]); err != nil {
		return 0, &frameError{err}
	}
	blen, tooLarge := s.r.limits.BodyLength(b[bodyAt:])
	s.r.discard(len(b))
	s.r.body, s.r.refused = blen, tooLarge
	if v.Type == packet.TypePart {
		return s.readPart(v)
	}
	return blen, nil
}

// Owes reports whether ReadHeaderView has queued an answer since the last call of Owes, so that Flush must
// follow. It is for the goroutine that reads.
func (s *Socket) Owes() bool {
	owes := s.r.owes
	s.r.owes = false
	return owes
}

// BodyBuffered reports whether the body of the packet whose header was read last
// has been received as a whole. It is for the goroutine that reads.
func (s *Socket) BodyBuffered() bool { return s.r.body <= int64(s.r.w-s.r.r) }

// TakeBody returns the body of the packet whose header was read last, if that has been received as a whole
// and may be read. The body is valid until the next call of any Read method. It is for the goroutine that
// reads.
func (s *Socket) TakeBody() (body []byte, ok bool) {
	if p := s.r.parts; p != nil && p.whole != nil {
		return p.whole.body.B, s.r.refused == nil
	}
	if s.r.refused != nil || !s.BodyBuffered() || s.r.body == 0 {
		return nil, false
	}
	n := int(s.r.body)
	body = s.r.buf.B[s.r.r : s.r.r+n]
	s.r.r += n
	s.r.body = 0
	return body, true
}

// Buffered reports whether the next packet has been received as a whole, so that
// reading it will not wait. It is for the goroutine that reads.
func (s *Socket) Buffered() bool { return s.r.whole() }

// ReadBody reads the body of the packet whose header was read last. The caller has it until it calls
// Release. If the body fits into mem it is there: then the caller must leave mem alone until the body was
// released; a nil mem is none. A body over the limit is not read but skipped before the next packet; the
// error wraps packet.ErrTooLarge, or packet.ErrBudget where the limits' budget has no memory left for it.
// Memory is taken as the bytes come.
func (s *Socket) ReadBody(mem []byte) (Body, error) {
	if s.r.refused != nil {
		return Body{}, s.r.refused
	}
	if p := s.r.parts; p != nil && p.whole != nil {
		b := p.whole.body
		p.whole.body = Body{}
		s.r.dropWhole()
		return b, nil
	}
	b := Body{B: mem[:0]}
	if s.r.copyBody(&b) {
		return b, nil
	}
	if err := s.r.readBody(&b); err != nil {
		return Body{}, s.readFailure(err)
	}
	return b, nil
}

// readFailure returns why a read failed. If this side has closed the connection that is the reason for
// closing it.
func (s *Socket) readFailure(err error) error {
	if err == io.EOF {
		s.w.saysNoMore()
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		if reason := s.w.failure(); reason != nil {
			return fmt.Errorf("%w: %w", errRead, asWriteError(reason))
		}
	}
	return err
}

// SkipBody drops the body of the packet whose header was read last. It does not
// wait for it: the bytes are passed over before the next header.
func (s *Socket) SkipBody() { s.r.refused = errSkipped }

// frameError marks a frame that cannot be followed.
type frameError struct{ err error }

func (e *frameError) Error() string { return e.err.Error() }
func (e *frameError) Unwrap() error { return e.err }

// Fatal reports whether an error of ReadPacket, ReadHeader or ReadBody ends the
// connection. Errors that concern one body only do not.
func Fatal(err error) bool {
	if err == nil {
		return false
	}
	// What a codec returns may wrap io.EOF or be a net.Error without concerning
	// the connection.
	var fe *frameError
	return err == io.EOF || errors.As(err, &fe) || errors.Is(err, errRead) || errors.Is(err, ErrClosed)
}

// Conn returns the underlying connection, for options that this package does not know.
// Reading from it or writing to it breaks the framing.
func (s *Socket) Conn() net.Conn { return s.conn }

// LocalAddr returns the address of this end.
func (s *Socket) LocalAddr() net.Addr { return s.conn.LocalAddr() }

// RemoteAddr returns the address of the other end.
func (s *Socket) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// Limits returns the limits that the socket was made with.
func (s *Socket) Limits() packet.Limits { return s.limits }

// SetReadLimits changes the limits of what is read from the next packet on, for a part of
// the conversation. It is for the goroutine that reads.
func (s *Socket) SetReadLimits(l packet.Limits) { s.r.limits = l }

// ReadTimeout returns the longest silence while a packet is awaited; zero means
// none.
func (s *Socket) ReadTimeout() time.Duration { return time.Duration(s.r.timeout.Load()) }

// SetReadTimeout changes the longest silence; a read under way is given the new
// time from now.
func (s *Socket) SetReadTimeout(d time.Duration) { s.r.setTimeout(d) }

// WriteTimeout returns the longest that one write may take; zero means no bound.
func (s *Socket) WriteTimeout() time.Duration { return time.Duration(s.w.timeout.Load()) }

// SetWriteTimeout changes the longest that one write may take, from the next
// write on.
func (s *Socket) SetWriteTimeout(d time.Duration) { s.w.timeout.Store(int64(max(d, 0))) }

// Close ends the socket. Packets that WritePacket has accepted are given up to a
// second to leave; a Read or Write under way then fails. It may be called more
// than once and from anywhere; only the first call does anything.
func (s *Socket) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	wait := flushOnClose
	if s.w.refusal() != nil { // CloseWrite has waited
		wait = 0
	}
	s.w.drain(wait, ErrClosed)
	s.w.fail(ErrClosed)
	if err := s.conn.Close(); !errors.Is(err, net.ErrClosed) { // a write that failed has closed it
		return err
	}
	return nil
}

// CloseWrite refuses further packets with [ErrClosed], waits until everything
// that WritePacket has accepted is written, for at most the given time, and
// tells the other side that nothing more comes. Reading goes on. It reports
// false where the connection cannot be half-closed or did not take the output in
// time.
func (s *Socket) CloseWrite(wait time.Duration) bool {
	if !s.w.drain(wait, ErrClosed) {
		return false
	}
	half, ok := s.conn.(interface{ CloseWrite() error })
	return ok && half.CloseWrite() == nil
}

// String names the two ends, for logs.
func (s *Socket) String() string {
	return fmt.Sprintf("%v<->%v", s.LocalAddr(), s.RemoteAddr())
}

// asWriteError returns err as a *WriteError.
func asWriteError(err error) error {
	var we *WriteError
	if errors.As(err, &we) || errors.Is(err, ErrClosed) {
		return err
	}
	return &WriteError{Err: err}
}
