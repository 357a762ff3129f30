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

// connection is a session's connection with all that ends when it does: the pulls that
// wait for a reply and the handlers that have one to send. Most sessions have one
// connection all their life; one that redials has another when it has lost that, and two
// while the other side of the first shuts down. See redial.go.
type conn struct {
	sess  *Session
	peer  *Peer // the session's
	sock  *socket.Socket
	pulls pulls
	// running counts pulls and pushes from the time their body was read until
	// their reply is queued on the socket.
	handlers atomic.Int64
	// ready is set when the handshake is over, gone when the other side takes nothing
	// any more, though something of it may still be to be read, and ended by end.
	ready, gone, ended atomic.Bool
	// lingers is set when the connection has ended and its socket is still to be closed, and
	// finishing when that has begun; see halfclose.go.
	lingers, finishing atomic.Bool
	// away is set when the other side shuts down: nothing more is to be sent that it
	// would have to handle. answered is set when it has answered all pulls that it
	// will.
	away, answered atomic.Bool
	// role is the reading of the connection, see inline.go.
	role role.Role
	// inline is the route whose handler the reader runs; nil in a write. It is
	// set before a turn becomes odd and is read by who has made it even.
	quickRoute *Handler
	quickCall  *call // the same for its call
	// pushesRead counts the pushes that have come; only the reader uses it. taken is how many
	// of those that were sent the other side says that it has taken.
	pushesRead uint64
	taken      atomic.Pointer[uint64]
	queue      workers.Queue // of calls for workers
	calls      calltable.Table[call]
	// The connection's parts of the peer's memory: for what is received, and what waits to be
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
}

// limitReading changes the limits of what is read from now on. It is for who reads.
func (cn *conn) limitReading(limits packet.Limits) {
	limits.Budget = &cn.inBudget
	cn.sock.SetReadLimits(limits)
}

func (cn *conn) remoteIp() string { return cn.sock.RemoteAddr().String() }

// usable reports whether a pull or push may go by the connection.
func (cn *conn) usable() bool { return !cn.ended.Load() && !cn.away.Load() && !cn.gone.Load() }

// goneAway reports whether the other side has asked to begin nothing more.
func (cn *conn) goneAway() bool { return cn.away.Load() && !cn.ended.Load() }

// takePull makes the caller the owner of the pull in flight with the number; nil
// means that it is none, or another's.
func (cn *conn) takePull(number uint64) *pending {
	pd := cn.pulls.Take(number)
	if pd != nil {
		cn.peer.activity()
	}
	return pd
}

// handlerDone counts a handler that has replied.
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

// start begins to read, after the handshake, with what has come already.
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

// goAway asks the other side to begin nothing more, and with done says that every
// pull that has run, or will, is answered. It does not wait: a side that is not
// asked is answered with StatusServiceUnavailable.
func (cn *conn) goAway(done bool) {
	h := &packet.Header{Type: packet.TypeGoAway}
	if done {
		h.StatusCode = StatusOK
	}
	frame, err := cn.encodeHeader(h) // before the lock, as the codec may be anybody's
	if cn.tell(done, frame, err == nil) {
		go cn.flush()
	}
}

// tell queues the packet that says that this side goes away, if it is to be said, and
// reports whether it has. Who finds it told finds it queued.
func (cn *conn) tell(done bool, frame socket.Frame, encoded bool) bool {
	cn.sess.mu.Lock()
	defer cn.sess.mu.Unlock()
	if !cn.ready.Load() || cn.ended.Load() || cn.told && !done {
		frame.Drop()
		return false
	}
	cn.told = true
	return encoded && cn.sock.PressFrame(frame) == nil
}

// heardGoAway is called by the reader when the other side shuts down.
func (cn *conn) heardGoAway(answered bool) {
	if answered {
		cn.answered.Store(true)
	}
	if cn.away.Swap(true) {
		return
	}
	logf(LevelDebug, "the other side is shutting down", "session %s: the other side is shutting down", cn.logAttrs()...)
	if r := cn.sess.redial; r != nil {
		r.start()
	}
}

// shut ends the connection, and the session unless that redials.
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
		cn.peer.rarely(level, "connection ended", "session %s: the connection to %s ended: %v", cn.logAttrs(errAttr(cn.plain(cause)))...)
	}
	if lasting(cause) {
		r.forbid(cause)
	}
	err := cn.end(cause)
	r.start()
	return err
}

// end is every connection's end; the first cause counts.
func (cn *conn) end(cause error) error {
	s := cn.sess
	s.mu.Lock()
	if cn.ended.Load() {
		s.mu.Unlock()
		return nil
	}
	lingers := cn.lingerLocked(cause)
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
	cn.endCalls()
	cn.wakeReader()
	for _, pd := range cn.pulls.Close() {
		pd.complete(cn.lostPull(cause))
	}
	var err error
	if !lingers {
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

// lostPull is what has happened to a pull that was in flight when the connection ended.
func (cn *conn) lostPull(cause error) *xerror {
	var refused *refusedConn
	switch {
	case errors.As(cause, &refused):
		return refused.unrun()
	case tlsconf.RefusesCertificate(cause):
		return unrun(StatusConnClosed, "the other side does not want the connection, the pull was not run: "+cause.Error(), cause)
	case cn.answered.Load():
		return unrun(StatusConnClosed, "the other side has shut down, the pull was not run", cause)
	}
	return newXerror(StatusConnClosed, "connection closed, the outcome of the pull is unknown: "+cause.Error(), cause)
}

// lose is called when the other side takes nothing any more. It may have sent much
// before that: the reader ends the connection when it has read it.
func (cn *conn) lose(cause error) {
	if cn.gone.Swap(true) {
		return
	}
	cn.endWithin(drainLinger, cause)
	if r := cn.sess.redial; r != nil {
		r.start()
	}
}

// endWithin ends the connection after some time, if it has not ended by then.
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
