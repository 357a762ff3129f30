package tp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/calltable"
	"github.com/henrylee2cn/teleport/internal/credit"
	"github.com/henrylee2cn/teleport/internal/keepalive"
	"github.com/henrylee2cn/teleport/internal/outbox"
	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/internal/stream"
	"github.com/henrylee2cn/teleport/internal/tlsconf"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// conn is one connection of a session, with everything that ends when the connection does: the pulls that
// wait for a reply, and the handlers that have a reply to send. Most sessions have one connection all their
// life. A session that redials gets another when it has lost the first, and has two while the other side
// of the first shuts down; see redial.go.
type conn struct {
	sess  *Session
	peer  *Peer // the session's
	sock  *socket.Socket
	pulls calltable.Table[pending] // that wait for a reply
	// handlers counts pulls and pushes from when their body was read until their reply is queued on the
	// socket.
	handlers atomic.Int64
	// ready is set when the handshake is over. gone is set when the other side takes nothing any more;
	// what it sent before may still be unread. ended is set by end.
	ready, gone, ended atomic.Bool
	// lingers is set when the connection has ended and its socket is still to be closed, finishing when
	// the closing has begun; see lingerLocked.
	lingers, finishing atomic.Bool
	// parting is not nil when this side has closed the connection and reads on until the other side has
	// closed it too; it is closed then. See closeGently.
	parting atomic.Pointer[chan struct{}]
	// away is set when the other side shuts down: nothing more is sent that the other side would have to
	// handle. answered is set when the other side has answered all the pulls that it will answer.
	away, answered atomic.Bool
	// role decides which goroutine reads the connection, see internal/role.
	role role.Role
	// quickRoute and quickCall are the handler that the reader runs itself, and the call; both are nil
	// while the reader writes. The reader sets them before it enters, and the watch that replaces the
	// reader reads them.
	quickRoute *Handler
	quickCall  *call
	// pushesRead counts the pushes that were received; only the reader uses it. taken is the number of
	// this side's pushes that the other side has handled, if it has said so at its end.
	pushesRead uint64
	calledRead atomic.Uint32 // counts pulls and replies; only the reader writes it
	taken      atomic.Pointer[uint64]
	flow       credit.Flow // of pushes and pulls
	pushLane   socket.Lane
	pings      keepalive.Pings
	queue      workers.Queue // calls that wait for a worker
	calls      calltable.Table[call]
	streams    stream.Set
	// The connection's share of the peer's memory: for what is received, and for what waits to be written.
	inBudget, outBudget packet.Budget
	outbox              atomic.Pointer[outbox.Box] // for pushes of groups; nil until something waits
	// resting is set while the reader rests, see restWhileFull; a value on wake ends the rest.
	resting atomic.Bool
	wake    chan struct{}
	// quickLane and counted belong to quickCall: the line that the call has taken, and whether the pool of
	// workers counts the call already.
	quickLane *workers.Lane
	counted   bool
	// stuck is the line in which nothing moved when the reader let others run, and stuckAt what its Turns
	// were. Until noYields, since processStart, the reader does not let others run. Only the reader uses
	// them.
	stuck    *workers.Lane
	stuckAt  uint32
	noYields time.Duration

	// The session's mu guards the fields below. readAll is set when nothing is read any more.
	readAll bool
	told    bool          // the other side has been asked to begin nothing more
	done    chan struct{} // closed by end; made by doneChan
	hooked  chan struct{} // closed when the PostDisconnect hooks have run; nil if there are none
	ending  *time.Timer   // of endWithin
}

// newConn makes another connection of the session.
func newConn(s *Session, nc net.Conn) *conn {
	cn := new(conn)
	cn.init(s, nc)
	return cn
}

func (cn *conn) init(s *Session, nc net.Conn) {
	cfg := &s.peer.cfg
	s.peer.inPool.Join(&cn.inBudget, cn)
	s.peer.outPool.Join(&cn.outBudget, cn)
	limits := s.peer.limits
	limits.Budget = &cn.inBudget
	o := socket.Options{
		Limits:       limits,
		Output:       &cn.outBudget,
		Room:         cn,
		ReadTimeout:  cfg.DefaultReadTimeout,
		WriteTimeout: cfg.DefaultWriteTimeout,
		FrameTimeout: cfg.FrameTimeout,
		MaxOutput:    cfg.MaxSessionOutput,
	}
	if last := s.conn.Load(); last != nil { // the session's timeouts may have been changed
		o.ReadTimeout, o.WriteTimeout = last.sock.ReadTimeout(), last.sock.WriteTimeout()
	}
	cn.sess, cn.peer, cn.sock = s, s.peer, socket.New(nc, o)
	cn.queue.Init(cn)
	cn.flow.Init(cn, cn.pulls.Count())
}

// limitReading changes the limits of what is read from now on. Only the goroutine that reads may call it.
func (cn *conn) limitReading(limits packet.Limits) {
	limits.Budget = &cn.inBudget
	cn.sock.SetReadLimits(limits)
}

func (cn *conn) remoteIp() string { return cn.sock.RemoteAddr().String() }

// usable reports whether a pull or push may go by the connection.
func (cn *conn) usable() bool { return !cn.ended.Load() && !cn.away.Load() && !cn.gone.Load() }

// goneAway reports whether the other side has asked to begin nothing more.
func (cn *conn) goneAway() bool { return cn.away.Load() && !cn.ended.Load() }

// takePull makes the caller the owner of the pending pull with the number, to which no reply can come any
// more. It returns nil if there is no such pull, or another goroutine owns it already.
func (cn *conn) takePull(number uint64) *pending {
	pd := cn.pulls.Take(number)
	if pd != nil {
		if pd.wire.open {
			cn.flow.Pulls.Complete()
		}
		cn.flow.Pulls.Freed()
		cn.peer.activity()
	}
	return pd
}

// takeUnanswered is takePull for a pull to which a reply may still come: its place is not free yet.
func (cn *conn) takeUnanswered(number uint64) *pending {
	cn.flow.Pulls.GiveUp()
	pd := cn.takePull(number)
	if pd == nil {
		cn.flow.Pulls.KeepOn()
	}
	return pd
}

// handlerDone counts one handler less, when its reply is queued.
func (cn *conn) handlerDone() {
	running := cn.handlers.Add(-1)
	if running == 0 {
		if cn.ended.Load() {
			cn.peer.sessions.detach(cn)
		}
		cn.peer.activity()
	}
	cn.finishIfIdle(running)
}

// start begins to read, after the handshake. The reader is the handshake's, if it has read a header that
// is none of the handshake, and otherwise nil.
func (cn *conn) start(r *reader) {
	if cn.peer.draining() { // and Shutdown may not have seen that the connection is ready
		cn.goAway(false)
	}
	if r == nil {
		go cn.read(false)
	} else {
		go r.read()
	}
}

// lingerTime is how long a connection that ends in good order is kept for the
// other side to read what was sent: closing it with unread input would make the
// kernel throw that away.
const lingerTime = time.Second

// linger ends the output and passes over the input until the other side ends.
// It is for connections without a reader.
func (cn *conn) linger() {
	if !cn.sock.CloseWrite(lingerTime) {
		return
	}
	timer := time.AfterFunc(lingerTime, func() { _ = cn.sock.Close() })
	defer timer.Stop()
	var p packet.Packet
	for cn.sock.ReadHeader(&p) == nil {
	}
}

// goAway tells this side's streams that this side goes away, asks the other side to begin nothing more, and
// with done says that every pull that has run, or will, is answered. It does not wait: a side that is not
// asked is answered with StatusServiceUnavailable.
func (cn *conn) goAway(done bool) {
	cn.streams.GoAway()
	h := &packet.Header{Type: packet.TypeGoAway}
	if done {
		h.StatusCode = StatusOK
	}
	frame, err := cn.encodeHeader(h) // before the lock, as the codec may be anybody's
	if cn.tell(done, frame, err == nil) {
		go cn.flush()
	}
}

// tell queues the packet that says that this side shuts down, unless it was told already, and reports
// whether the packet was queued. The flag and the queue change under one lock: whoever sees told set knows
// that the packet is in front of whatever is queued next.
func (cn *conn) tell(done bool, frame socket.Frame, encoded bool) bool {
	cn.sess.mu.Lock()
	defer cn.sess.mu.Unlock()
	if !cn.ready.Load() || cn.ended.Load() || cn.told && !done {
		frame.Drop()
		return false
	}
	cn.told = true
	if encoded {
		if done {
			frame = frame.Behind() // replies may wait that go in parts
		}
		_, err := cn.sock.Send(context.Background(), frame, socket.Control)
		return err == nil
	}
	return false
}

// heardGoAway is called by the reader when the other side shuts down; answered says that every pull that
// the other side has run is answered.
func (cn *conn) heardGoAway(answered bool) {
	if answered {
		cn.answered.Store(true)
	}
	if cn.away.Swap(true) {
		return
	}
	cn.flow.Interrupt(errGoesAway)
	logf(LevelDebug, "the other side is shutting down", "session %s: the other side is shutting down",
		cn.logAttrs()...)
	if r := cn.sess.redial; r != nil {
		r.start()
	}
	cn.sess.goesAway()
}

// fail ends the connection for the cause, and the session too unless the session redials.
func (cn *conn) fail(cause error) error {
	cause = cn.why(cause)
	r := cn.sess.redial
	if r == nil || !r.survives(cn) {
		return cn.sess.shut(cause)
	}
	if !cn.ended.Load() {
		level := endLevel(cause)
		if cn.away.Load() {
			level = LevelDebug
		}
		cn.peer.log.rarely(level, "connection ended", "session %s: the connection to %s ended: %v",
			cn.logAttrs(errAttr(plain(cause, cn.sock)))...)
	}
	if lasting(cause) {
		r.forbid(cause)
	}
	err := cn.end(cause)
	r.start()
	return err
}

// end ends the connection: every end comes here. The first cause counts.
func (cn *conn) end(cause error) error {
	s := cn.sess
	s.mu.Lock()
	if cn.ended.Load() {
		s.mu.Unlock()
		return nil
	}
	lingers := cn.lingerLocked(cause)
	var parted chan struct{}
	if cause == errClosedHere && cn.ready.Load() && cn.flow.Pushed() && !cn.readAll {
		parted = make(chan struct{})
		cn.parting.Store(&parted)
	}
	cn.ended.Store(true)
	if cn.done != nil {
		close(cn.done)
	}
	if cn.ending != nil {
		cn.ending.Stop()
	}
	lost := s.lostLocked(cn, cause)
	s.mu.Unlock()

	if lost {
		cn.handlers.Add(1) // so that Shutdown waits for the hooks
	}
	cn.peer.sessions.detach(cn)
	if box := cn.outbox.Load(); box != nil {
		box.End()
	}
	cn.streams.End()
	cn.endCalls()
	cn.flow.End(errSocketClosed)
	cn.wakeReader()
	for _, pd := range cn.pulls.Close() {
		pd.complete(cn.lostPull(cause))
	}
	var err error
	if !lingers {
		if parted != nil {
			cn.closeGently(parted)
		}
		err = cn.sock.Close()
		cn.peer.workers.DropPulls(&cn.queue)
	}
	if lost {
		go cn.disconnected(cause)
	}
	if lingers {
		cn.finishIfIdle(cn.handlers.Load())
	}
	cn.peer.activity()
	return err
}

// closeGently closes the output, and waits until the other side has read all of it and has closed the
// connection too, for lingerTime at most. It is for a connection on which pushes were sent, as their credit
// may still come: when a connection is closed with unread input, the kernel throws away what the other side
// has not read.
func (cn *conn) closeGently(parted <-chan struct{}) {
	timer := time.NewTimer(lingerTime)
	defer timer.Stop()
	if !cn.sock.CloseWrite(lingerTime) {
		return
	}
	select {
	case <-parted:
	case <-timer.C:
	}
}

// lostPull returns the error of a pull that was pending when the connection ended for the cause.
func (cn *conn) lostPull(cause error) *xerror {
	var refused *refusedConn
	switch {
	case errors.As(cause, &refused):
		return refused.unrun()
	case tlsconf.RefusesCertificate(cause):
		return unrun(StatusConnClosed,
			"the other side does not want the connection, the pull was not run: "+cause.Error(), cause)
	case cn.answered.Load():
		return unrun(StatusConnClosed, "the other side has shut down, the pull was not run", cause)
	}
	return newXerror(StatusConnClosed, "connection closed, the outcome of the pull is unknown: "+
		cause.Error(), cause)
}

// lose is called when the other side takes nothing any more. The other side may have sent much before
// that: the reader ends the connection when it has read all of it.
func (cn *conn) lose(cause error) {
	if cn.gone.Swap(true) {
		return
	}
	cn.endWithin(drainLinger, cause)
	if r := cn.sess.redial; r != nil {
		r.start()
	}
	cn.sess.goesAway()
}

// endWithin ends the connection after the time d, unless it ends earlier.
func (cn *conn) endWithin(d time.Duration, cause error) {
	cn.sess.mu.Lock()
	defer cn.sess.mu.Unlock()
	if !cn.ended.Load() && cn.ending == nil {
		cn.ending = time.AfterFunc(d, func() { _ = cn.fail(cause) })
	}
}

// doneChan returns a channel that is closed when the connection has ended.
func (cn *conn) doneChan() <-chan struct{} {
	cn.sess.mu.Lock()
	defer cn.sess.mu.Unlock()
	if cn.done == nil {
		cn.done = make(chan struct{})
		if cn.ended.Load() {
			close(cn.done)
		}
	}
	return cn.done
}

// OutputBusy and QueueChanged are called by the pool of workers, see [workers.Owner].
func (cn *conn) OutputBusy() bool { return cn.sock.OutputBusy() }

func (cn *conn) QueueChanged() { cn.wakeReader() }

// OutputHasRoom is called by the socket, see [socket.Roomer].
func (cn *conn) OutputHasRoom() {
	if cn.queue.PullBytes() > 0 {
		cn.peer.workers.Resume(&cn.queue)
	}
	cn.wakeReader()
}

// Reclaim is called by the connection's budgets, see [packet.Owner].
func (cn *conn) Reclaim(b *packet.Budget, held int64) {
	what := "a packet that has not come as a whole"
	if b == &cn.outBudget {
		what = "packets that it does not read"
	}
	go cn.fail(&evicted{held, what})
}

// farewell tells the other side how many of its pushes were handled, if the session ends because too many
// pushes waited. It then gives the other side time to read that: when a connection is closed with unread
// input, the kernel throws away what was sent.
func (cn *conn) farewell(cause error) {
	var o *overflow
	if !errors.As(cause, &o) {
		return
	}
	cn.sendControl(&packet.Header{
		Type: packet.TypeGoAway, StatusCode: StatusOverloaded,
		Meta: map[string]string{metaTaken: strconv.FormatUint(o.taken, 10)},
	})
	cn.linger()
}

// heardFarewell takes in the code and the metadata of the other side's packet that says that it goes away.
func (cn *conn) heardFarewell(code int32, meta map[string]string) {
	taken, err := strconv.ParseUint(meta[metaTaken], 10, 64)
	if code == StatusOverloaded && err == nil {
		cn.taken.Store(&taken)
	}
}

// why returns the cause of the connection's end: what the other side has said in its last packet, if it has
// said something, and otherwise the cause given.
func (cn *conn) why(cause error) error {
	if taken := cn.taken.Load(); taken != nil && cause != errClosedHere {
		_ = cn.sock.CloseWrite(0) // what is counted from now on is refused
		sent := cn.sock.Posted()
		return &PushesLost{Sent: max(sent, *taken), Taken: *taken}
	}
	return cause
}

// errSocketClosed is the socket's error when this side has closed the socket.
var errSocketClosed = socket.ErrClosed

// encode waits for a permit to encode, no longer than ctx lasts, and encodes the packet into mem if that
// has room.
func (cn *conn) encode(ctx context.Context, p *packet.Packet, mem []byte) (socket.Frame, error) {
	permit, err := cn.sock.Permit(ctx)
	if err != nil {
		return socket.Frame{}, err
	}
	return cn.sock.Encode(permit, mem, p)
}

// sendControl sends one of the small packets that keep the connection in order. It does not wait for the
// connection.
func (cn *conn) sendControl(h *packet.Header) {
	frame, err := cn.encodeHeader(h)
	if err == nil {
		cn.sendControlFrame(frame)
	}
}

func (cn *conn) sendControlFrame(frame socket.Frame) {
	if _, err := cn.sock.Send(context.Background(), frame, socket.Control); err == nil {
		go cn.flush()
	}
}

func (cn *conn) encodeHeader(h *packet.Header) (socket.Frame, error) {
	return cn.sock.Encode(socket.Permit{}, nil, &packet.Packet{HeaderCodec: cn.peer.cfg.DefaultHeaderCodec,
		Header: h})
}

// pushCost is what a push costs in bytes of credit beside its header and its body.
const pushCost = 2 << 10

// measureId is the id of a ping whose answer is measured. No pull has it.
const measureId = "rtt"

// creditId is the id of the packet that asks for credit.
const creditId = "credit"

// heardCredit is called by the goroutine that reads with the header of a packet of type credit: without an id
// the packet grants credit, with that of a stream it is about the stream, and with creditId it asks.
func (cn *conn) heardCredit(id []byte, meta map[string]string) error {
	if len(id) == 0 {
		return cn.flow.Granted(meta)
	}
	if string(id) != creditId {
		return cn.streams.Heard(id, meta)
	}
	first, err := cn.flow.Asked(meta)
	if first {
		cn.peer.workers.Trust(&cn.queue)
	}
	return err
}

// answer queues the reply to a ping. It does not wait for room.
func (cn *conn) answer(id, headerCodec string) error {
	frame, err := cn.sock.Encode(socket.Permit{}, nil, &packet.Packet{
		HeaderCodec: headerCodec,
		Header:      &packet.Header{Id: id, Type: packet.TypeReply, StatusCode: StatusOK},
	})
	if err == nil {
		_, err = cn.sock.Send(context.Background(), frame, socket.Refusal)
	}
	return cn.wrote(err)
}

// waited is wrote for a write that has waited no longer than ctx lasts. The end of ctx concerns that write
// alone, and so leaves the connection as it was.
func (cn *conn) waited(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil && errors.Is(err, e) {
		return err
	}
	return cn.wrote(err)
}

// flush writes the replies that quick handlers have queued.
func (cn *conn) flush() { _ = cn.wrote(cn.sock.Flush()) }

// wrote ends the connection if a write has failed, and returns err. An error of encoding leaves the
// connection as it was.
func (cn *conn) wrote(err error) error {
	switch {
	case err == nil || !isWriteError(err):
	case cn.lingers.Load():
		cn.abandon()
	case errors.Is(err, errSocketClosed):
		// The socket is being drained, and must not be closed yet: the other side may not have read
		// what was sent.
	case socket.Gone(err):
		cn.lose(err)
	default:
		_ = cn.fail(err)
	}
	return err
}

// Half-close: the other side may end its output and read on, as a client in a pipe of commands does. For
// this side the connection has then ended, because nothing can be asked there any more, but the calls that
// were read are handled, and their replies are written before the socket is closed. Whether the other side
// still reads shows when something is written. As in net/http the contexts of the handlers end at once.
//
// A connection that lingers so counts as running until its socket is closed, and its session counts as one
// of PeerConfig.MaxSessions.

// lingerLocked is called at the end of the connection, before others see the end. It reports whether the
// socket is to be closed later, by finish. The session's mu is held.
func (cn *conn) lingerLocked(cause error) bool {
	if cause != io.EOF || cn.gone.Load() || cn.handlers.Load() == 0 && !cn.sock.Unsent() {
		return false
	}
	cn.handlers.Add(1) // until finish is over
	cn.lingers.Store(true)
	cn.peer.keeper.Expect()
	return true
}

// finishIfIdle closes the socket of a connection that lingers, once, when no handler runs any more; the
// connection itself counts as one.
func (cn *conn) finishIfIdle(running int64) {
	if running == 1 && cn.lingers.Load() && !cn.finishing.Swap(true) {
		go cn.finish(max(cn.sock.WriteTimeout(), lingerTime))
	}
}

// abandon closes the socket of a connection that lingers, at once.
func (cn *conn) abandon() {
	if cn.lingers.Load() && !cn.finishing.Swap(true) {
		go cn.finish(0)
	}
}

// finish closes the socket when all is sent, or the time is over.
func (cn *conn) finish(wait time.Duration) {
	if wait > 0 {
		_ = cn.sock.CloseWrite(wait)
	}
	_ = cn.sock.Close()
	cn.peer.workers.DropPulls(&cn.queue)
	cn.peer.sessions.leave(cn.sess)
	cn.handlerDone()
}

// disconnected runs the PostDisconnect hooks. The connection counts as running until they have returned.
func (cn *conn) disconnected(cause error) {
	s := cn.sess
	defer cn.handlerDone()
	if cn.hooked != nil {
		defer close(cn.hooked)
	}
	if err := s.peer.chain.postDisconnect.run(lostConn{s, cause}); err != nil {
		s.peer.log.rarely(LevelWarn, "hook failed", "session %s: %v", slog.String("session", s.Id()),
			errAttr(err), slog.String("remote", cn.remoteIp()))
	}
}

// drainLinger is how long Shutdown waits for the other sides to read what was sent and to end their
// connections.
const drainLinger = 5 * time.Second

// logPacket completes the line with what the connection knows, and logs it.
func (cn *conn) logPacket(line packetLine) {
	if !line.start.IsZero() {
		line.session, line.remote = cn.sess.Id(), cn.remoteIp()
		cn.peer.packetLog.log(line)
	}
}

// logAttrs are those of a line about the session by this connection.
func (cn *conn) logAttrs(more ...slog.Attr) []slog.Attr {
	return append([]slog.Attr{slog.String("session", cn.sess.Id()), slog.String("remote", cn.remoteIp())},
		more...)
}

// lostLocked takes in that a connection of the session has ended. It reports whether PostDisconnect hooks
// are to be run, because that was the connection in use.
func (s *Session) lostLocked(cn *conn, cause error) bool {
	lost := cn.ready.Load() && s.conn.Load() == cn
	hooks := lost && len(s.peer.chain.postDisconnect) > 0
	if r := s.redial; r != nil {
		if lost {
			r.err = cause
		}
		r.forgetLocked(cn)
		r.wakeLocked()
		if hooks {
			cn.hooked = make(chan struct{})
			r.hooked = cn.hooked
		}
	}
	return hooks
}
