package tp

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/calltable"
	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/internal/tlsconf"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// link is a session's connection with all that ends when it does: the pulls that
// wait for a reply and the handlers that have one to send. Most sessions have one
// link all their life; one that redials has another when it has lost that, and two
// while the other side of the first shuts down. See redial.go.
type link struct {
	sess  *Session
	peer  *Peer // the session's
	sock  *socket.Socket
	pulls pulls
	// running counts pulls and pushes from the time their body was read until
	// their reply is queued on the socket.
	running atomic.Int64
	// ready is set when the handshake is over, gone when the other side takes nothing
	// any more, though something of it may still be to be read, and ended by end.
	ready, gone, ended atomic.Bool
	// lingers is set when the link has ended and its socket is still to be closed, and
	// finishing when that has begun; see halfclose.go.
	lingers, finishing atomic.Bool
	// away is set when the other side shuts down: nothing more is to be sent that it
	// would have to handle. answered is set when it has answered all pulls that it
	// will.
	away, answered atomic.Bool
	// role is the reading of the link, see inline.go.
	role role.Role
	// inline is the route whose handler the reader runs; nil in a write. It is
	// set before a turn becomes odd and is read by who has made it even.
	inline     *Handler
	inlineCall *packetCtx // the same for its call
	// pushesRead counts the pushes that have come; only the reader uses it. taken is how many
	// of those that were sent the other side says that it has taken.
	pushesRead uint64
	taken      atomic.Pointer[uint64]
	queue      workers.Queue // of calls for workers
	calls      calltable.Table[packetCtx]
	// The link's parts of the peer's memory: for what is received, and what waits to be
	// written.
	inBudget, outBudget packet.Budget
	// resting is set while the reader rests, see room.go, and wake ends that.
	resting atomic.Bool
	wake    chan struct{}

	// The session's mu guards the fields below.
	told   bool          // the other side has been asked to begin nothing more
	done   chan struct{} // closed by end; made when asked for
	hooked chan struct{} // closed when the PostDisconnect hooks have run; nil if there are none
	ending *time.Timer   // of endWithin
}

func (l *link) init(s *Session, conn net.Conn) {
	cfg := &s.peer.cfg
	s.peer.inPool.Join(&l.inBudget, l)
	s.peer.outPool.Join(&l.outBudget, l)
	limits := s.peer.limits
	limits.Budget = &l.inBudget
	o := socket.Options{
		Limits:       limits,
		Output:       &l.outBudget,
		Room:         l,
		ReadTimeout:  cfg.DefaultReadTimeout,
		WriteTimeout: cfg.DefaultWriteTimeout,
		FrameTimeout: cfg.FrameTimeout,
		MaxOutput:    cfg.MaxSessionOutput,
	}
	if last := s.link.Load(); last != nil { // the session's timeouts may have been changed
		o.ReadTimeout, o.WriteTimeout = last.sock.ReadTimeout(), last.sock.WriteTimeout()
	}
	l.sess, l.peer, l.sock = s, s.peer, socket.New(conn, o)
	l.queue.Init(l)
}

// limitReading changes the limits of what is read from now on. It is for who reads.
func (l *link) limitReading(limits packet.Limits) {
	limits.Budget = &l.inBudget
	l.sock.SetReadLimits(limits)
}

func (l *link) remoteIp() string { return l.sock.RemoteAddr().String() }

// usable reports whether a pull or push may go by the link.
func (l *link) usable() bool { return !l.ended.Load() && !l.away.Load() && !l.gone.Load() }

// goneAway reports whether the other side has asked to begin nothing more.
func (l *link) goneAway() bool { return l.away.Load() && !l.ended.Load() }

// takePull makes the caller the owner of the pull in flight with the number; nil
// means that it is none, or another's.
func (l *link) takePull(number uint64) *flight {
	f := l.pulls.Take(number)
	if f != nil {
		l.peer.activity()
	}
	return f
}

// handlerDone counts a handler that has replied.
func (l *link) handlerDone() {
	running := l.running.Add(-1)
	if running == 0 {
		if l.ended.Load() {
			l.peer.hub.detach(l)
		}
		l.peer.activity()
	}
	l.finishIfIdle(running)
}

// start begins to read, after the handshake, with what has come already.
func (l *link) start(r *reader) {
	if l.peer.draining() { // and Shutdown may not have seen that the link is ready
		l.goAway(false)
	}
	if r == nil {
		go l.read(false)
	} else {
		go r.read()
	}
}

// lingerTime is how long a connection that ends in good order is kept for the
// other side to read what was sent: closing it with unread input would make the
// kernel throw that away.
const lingerTime = time.Second

// linger ends the output and passes over the input until the other side ends.
// It is for links without a reader.
func (l *link) linger() {
	if !l.sock.CloseWrite(lingerTime) {
		return
	}
	timer := time.AfterFunc(lingerTime, func() { _ = l.sock.Close() })
	defer timer.Stop()
	var p packet.Packet
	for l.sock.ReadHeader(&p) == nil {
	}
}

// goAway asks the other side to begin nothing more, and with done says that every
// pull that has run, or will, is answered. It does not wait: a side that is not
// asked is answered with StatusServiceUnavailable.
func (l *link) goAway(done bool) {
	h := &packet.Header{Type: packet.TypeGoAway}
	if done {
		h.StatusCode = StatusOK
	}
	frame, err := l.encodeHeader(h) // before the lock, as the codec may be anybody's
	if l.tell(done, frame, err == nil) {
		go l.flush()
	}
}

// tell queues the packet that says that this side goes away, if it is to be said, and
// reports whether it has. Who finds it told finds it queued.
func (l *link) tell(done bool, frame socket.Frame, encoded bool) bool {
	l.sess.mu.Lock()
	defer l.sess.mu.Unlock()
	if !l.ready.Load() || l.ended.Load() || l.told && !done {
		frame.Drop()
		return false
	}
	l.told = true
	return encoded && l.sock.PressFrame(frame) == nil
}

// heardGoAway is called by the reader when the other side shuts down.
func (l *link) heardGoAway(answered bool) {
	if answered {
		l.answered.Store(true)
	}
	if l.away.Swap(true) {
		return
	}
	logf(LevelDebug, "the other side is shutting down", "session %s: the other side is shutting down", l.logAttrs()...)
	if r := l.sess.redial; r != nil {
		r.start()
	}
}

// shut ends the link, and the session unless that redials.
func (l *link) shut(cause error) error {
	cause = l.why(cause)
	r := l.sess.redial
	if r == nil || !r.survives(l) {
		return l.sess.shut(cause)
	}
	if !l.ended.Load() {
		level := endLevel(cause)
		if l.away.Load() {
			level = LevelDebug
		}
		l.peer.rarely(level, "connection ended", "session %s: the connection to %s ended: %v", l.logAttrs(errAttr(l.plain(cause)))...)
	}
	if lasting(cause) {
		r.forbid(cause)
	}
	err := l.end(cause)
	r.start()
	return err
}

// end is every link's end; the first cause counts.
func (l *link) end(cause error) error {
	s := l.sess
	s.mu.Lock()
	if l.ended.Load() {
		s.mu.Unlock()
		return nil
	}
	lingers := l.lingerLocked(cause)
	l.ended.Store(true)
	if l.done != nil {
		close(l.done)
	}
	if l.ending != nil {
		l.ending.Stop()
	}
	lost := s.lostLocked(l, cause)
	s.mu.Unlock()

	if lost {
		l.running.Add(1) // so that Shutdown waits for the hooks
	}
	l.peer.hub.detach(l)
	l.endCalls()
	l.wakeReader()
	for _, f := range l.pulls.Close() {
		f.complete(l.lostPull(cause))
	}
	var err error
	if !lingers {
		err = l.sock.Close()
		l.peer.workers.DropPulls(&l.queue)
	}
	if lost {
		go l.disconnected(cause)
	}
	if lingers {
		l.finishIfIdle(l.running.Load())
	}
	l.peer.activity()
	return err
}

// lostPull is what has happened to a pull that was in flight when the link ended.
func (l *link) lostPull(cause error) *xerror {
	var refused *refusedConn
	switch {
	case errors.As(cause, &refused):
		return refused.unrun()
	case tlsconf.RefusesCertificate(cause):
		return unrun(StatusConnClosed, "the other side does not want the connection, the pull was not run: "+cause.Error(), cause)
	case l.answered.Load():
		return unrun(StatusConnClosed, "the other side has shut down, the pull was not run", cause)
	}
	return newXerror(StatusConnClosed, "connection closed, the outcome of the pull is unknown: "+cause.Error(), cause)
}

// lose is called when the other side takes nothing any more. It may have sent much
// before that: the reader ends the link when it has read it.
func (l *link) lose(cause error) {
	if l.gone.Swap(true) {
		return
	}
	l.endWithin(drainLinger, cause)
	if r := l.sess.redial; r != nil {
		r.start()
	}
}

// endWithin ends the link after some time, if it has not ended by then.
func (l *link) endWithin(d time.Duration, cause error) {
	l.sess.mu.Lock()
	defer l.sess.mu.Unlock()
	if !l.ended.Load() && l.ending == nil {
		l.ending = time.AfterFunc(d, func() { _ = l.shut(cause) })
	}
}

// doneChan returns a channel that is closed when the link has ended.
func (l *link) doneChan() <-chan struct{} {
	l.sess.mu.Lock()
	defer l.sess.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.ended.Load() {
			close(l.done)
		}
	}
	return l.done
}
