package tp

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Session is a live connection between two peers. Either side may pull and push
// at any time, inside and outside of handlers. All methods are safe for
// concurrent use.
type Session struct {
	peer *Peer
	// The mutex of sessions guards the two fields below; id may be read without it. A session is counted
	// when it takes one of the places of PeerConfig.MaxSessions.
	id      atomic.Pointer[string]
	counted bool
	// conn is the connection, or the last one while there is none. The session's first connection is in
	// first, so that a session is one piece of memory.
	conn   atomic.Pointer[conn]
	first  conn
	redial *redialer   // nil if the session ends with its connection
	closed atomic.Bool // set with stateClosed, before done is closed

	lanes workers.Lanes // for calls that are handled one after another

	mu     sync.Mutex // guards the fields below, and some of every connection's
	state  sessionState
	cause  error // of the end
	public goutil.Map
	done   chan struct{} // made when asked for
	rooms  []room        // that the session is in
	left   bool          // the session has ended, and is in no room any more; done is closed then
}

// room is what a session is in until it ends: a [Group], or the server of a [Cluster].
type room interface{ sessionEnded(s *Session) }

// enter notes that the session is in the room, and reports false if the session has ended.
func (s *Session) enter(r room) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == stateClosed {
		return false
	}
	s.rooms = append(s.rooms, r)
	return true
}

// leave notes that the session is not in the room any more, and reports false if it was not there.
func (s *Session) leave(r room) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.rooms, r)
	if i < 0 {
		return false
	}
	s.rooms = slices.Delete(s.rooms, i, i+1)
	return true
}

// goesAway tells the rooms that want to know that nothing more can be sent by a connection of the session.
func (s *Session) goesAway() {
	s.mu.Lock()
	rooms := slices.Clone(s.rooms)
	s.mu.Unlock()
	for _, r := range rooms {
		if r, ok := r.(interface{ sessionGoesAway(s *Session) }); ok {
			r.sessionGoesAway(s)
		}
	}
}

// sessionState only ever goes up.
type sessionState uint8

const (
	stateHandshaking sessionState = iota
	stateOpen
	stateClosed
)

func (s *Session) lines() *lines { return &s.peer.log }

// Peer returns the local peer.
func (s *Session) Peer() *Peer { return s.peer }

// Id returns the session's id, which no other session of the peer has at the
// same time.
func (s *Session) Id() string { return *s.id.Load() }

// ChangeId gives the session another id. If it belongs to another live session
// the error wraps [ErrIdTaken] and nothing changes.
func (s *Session) ChangeId(id string) error {
	_, err := s.peer.sessions.rename(s, id, false)
	return err
}

// ReplaceId gives the session another id, and closes the session that had it.
func (s *Session) ReplaceId(id string) error {
	other, err := s.peer.sessions.rename(s, id, true)
	if other != nil {
		other.shut(fmt.Errorf("its id %q was taken by a newer session", id))
	}
	return err
}

// RemoteIp returns the other side's address and port.
func (s *Session) RemoteIp() string { return s.conn.Load().remoteIp() }

// Socket returns what there is to know of the connection below: addresses, TLS state and counters. Of a
// session that redials it is the connection of now.
func (s *Session) Socket() socket.View { return s.conn.Load().sock.View() }

// Public returns the session's values, which all its hooks and handlers share: who the other
// side is, for example. Each call's context begins with a copy of them, see [Ctx]; what a
// call stores in that copy is not stored here. The map's methods are Load, Store,
// LoadOrStore, Delete, Range, Random, Clear and Len, and safe for concurrent use. Values stay
// when a session redials.
func (s *Session) Public() goutil.Map {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.public == nil {
		s.public = goutil.RwMap()
	}
	return s.public
}

// copyPublic returns a map of its own with the session's values.
func (s *Session) copyPublic() goutil.Map {
	s.mu.Lock()
	public := s.public
	s.mu.Unlock()
	m := goutil.RwMap()
	if public != nil {
		public.Range(func(k, v interface{}) bool {
			m.Store(k, v)
			return true
		})
	}
	return m
}

// ReadTimeout returns how long the session waits for the next packet before it
// is closed; zero means for ever.
func (s *Session) ReadTimeout() time.Duration { return s.conn.Load().sock.ReadTimeout() }

// SetReadTimeout changes how long the session waits for the next packet,
// counted from now for the wait under way.
func (s *Session) SetReadTimeout(d time.Duration) {
	s.onConns(func(cn *conn) { cn.sock.SetReadTimeout(d) })
}

// onConns calls f once for each connection of the session. It holds no lock meanwhile, so it looks again
// until no connection has come that f has not seen.
func (s *Session) onConns(f func(cn *conn)) {
	var done []*conn
	for {
		s.mu.Lock()
		conns := slices.DeleteFunc(slices.Clone(s.connsLocked()), func(cn *conn) bool {
			return slices.Contains(done, cn)
		})
		s.mu.Unlock()
		if len(conns) == 0 {
			return
		}
		for _, cn := range conns {
			f(cn)
		}
		done = append(done, conns...)
	}
}

// WriteTimeout returns how long one write may take before the session is closed;
// zero means no bound.
func (s *Session) WriteTimeout() time.Duration { return s.conn.Load().sock.WriteTimeout() }

// SetWriteTimeout changes how long one write may take, from the next one on.
func (s *Session) SetWriteTimeout(d time.Duration) {
	s.onConns(func(cn *conn) { cn.sock.SetWriteTimeout(d) })
}

// Done returns a channel that is closed when the session has ended, and has left its groups. The channel is
// closed when Close returns, unless another Close has begun and the session is in groups that it has not left
// yet.
func (s *Session) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.left {
			close(s.done)
		}
	}
	return s.done
}

// Close ends the session at once. Pulls in flight complete with
// StatusConnClosed, streams end, handlers run on but can no longer reply. What has been
// handed to the connection is given up to a second to leave and, if there were pushes, for
// the other side to read it and to close the connection too. It may be called
// more than once and from anywhere, handlers and hooks included.
func (s *Session) Close() error { return s.shut(errClosedHere) }

// shut ends the session. All ways to end a session lead here, and the first cause counts.
func (s *Session) shut(cause error) error {
	s.mu.Lock()
	if s.state == stateClosed {
		s.mu.Unlock()
		return nil
	}
	was := s.state
	s.state, s.cause = stateClosed, cause
	s.closed.Store(true)
	conns, rooms := s.connsLocked(), s.rooms
	s.rooms = nil
	if s.redial != nil {
		s.redial.wakeLocked()
	}
	if len(rooms) == 0 {
		s.endDoneLocked() // here, so that Done is closed when another Close returns
	}
	s.mu.Unlock()
	for _, r := range rooms {
		r.sessionEnded(s)
	}
	if len(rooms) > 0 {
		s.mu.Lock()
		s.endDoneLocked()
		s.mu.Unlock()
	}

	if was == stateOpen {
		level := endLevel(cause)
		if cause == errClosedHere || errors.Is(cause, io.EOF) {
			level = LevelDebug
		}
		cn := s.conn.Load()
		s.peer.log.rarely(level, "session ended", "session %s with %s ended: %v",
			cn.logAttrs(errAttr(plain(cause, cn.sock)))...)
	}
	s.peer.sessions.remove(s)
	var err error
	lingers := false
	for _, cn := range conns {
		if e := cn.end(cause); err == nil {
			err = e
		}
		lingers = lingers || cn.lingers.Load()
	}
	if !lingers { // otherwise the end of conn.linger does it
		s.peer.sessions.leave(s)
	}
	return err
}

// endDoneLocked closes the channel of Done, if there is one.
func (s *Session) endDoneLocked() {
	s.left = true
	if s.done != nil {
		close(s.done)
	}
}

// endLevel is the level of the line that says why a connection has ended.
func endLevel(cause error) slog.Level {
	var hook *hookError
	var pushes *overflow
	var memory *evicted
	var cut *cutOff
	switch {
	case errors.Is(cause, packet.ErrHeader), errors.As(cause, &hook), lasting(cause):
		return LevelWarn
	// limits
	case errors.As(cause, &cut), errors.As(cause, &pushes), errors.As(cause, &memory),
		errors.Is(cause, socket.ErrOutputFull):
		return LevelWarn
	}
	return LevelInfo
}

// open makes the session visible to the program and its first connection ready to be read. It reports false
// if the session was closed during the handshake.
func (s *Session) open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateHandshaking {
		return false
	}
	s.state = stateOpen
	s.first.ready.Store(true)
	return true
}

func (s *Session) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stateOpen
}

// Err returns why the session has ended, and nil while it has not. Errors.As finds
// [PushesLost] there if this side has pushed more than the other could take; io.EOF is the
// usual end by the other side. A session that was closed by this side has an error that says
// so.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// redialer keeps a session connected. While the session has no connection that can be used, one goroutine
// runs redial.
type redialer struct {
	sess  *Session
	cfg   *Redial
	addrs []string
	at    int          // index of the address of the session's connection; only redial uses it
	hooks <-chan error // the result of the PostConnect hooks of the first connection; nil without hooks
	// redial dials until the session has a connection that can be used, or wants none. At most one
	// goroutine runs it at a time. It is redialer.stayConnected, see redial.go.
	redial func()

	// The session's mu guards the fields below.
	others   []*conn   // connections besides Session.conn: older ones, and one that is being made
	dialling bool      // a goroutine runs redial
	since    time.Time // when the session's connection was made
	without  time.Time // since when there has been no connection that lasted
	tries    int       // attempts in a row that came to nothing, as far as is known
	failed   bool      // the last attempt has failed
	err      error     // why the last attempt failed, or why the connection that it made has ended
	gaveUp   error     // why there will be no other connection; nil while there may be one
	// changed is closed when the calls that wait for a connection are to look again. It is made when a
	// call waits.
	changed chan struct{}
	// hooked is closed when the PostDisconnect hooks of the last connection that had any have ended.
	hooked chan struct{}
}

// survives reports whether the session goes on when the connection ends: it has another connection, or it can
// dial one.
func (r *redialer) survives(cn *conn) bool {
	s := r.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stateOpen && (s.conn.Load() != cn || len(r.others) > 0 || !s.peer.draining())
}

// start starts redial if the session needs a connection, and ends the session if it needs one and cannot have
// one.
func (r *redialer) start() {
	s := r.sess
	s.mu.Lock()
	r.wakeLocked()
	cn := s.conn.Load()
	idle := !r.dialling && s.state == stateOpen && !cn.usable()
	cause := r.gaveUp
	if s.peer.draining() {
		cause = ErrPeerClosed
	}
	if idle && cause == nil {
		r.dialling = true
		go r.redial()
	}
	over := idle && cause != nil && cn.ended.Load() && len(r.others) == 0
	s.mu.Unlock()
	if over {
		_ = s.shut(cause)
	}
}

// forbid ends the redialling for a reason that another attempt would meet again.
func (r *redialer) forbid(cause error) {
	r.sess.mu.Lock()
	defer r.sess.mu.Unlock()
	if r.gaveUp == nil {
		r.gaveUp = fmt.Errorf("redialling is given up: %w", cause)
	}
}

// changeLocked returns a channel that is closed by the next wakeLocked. The caller holds the session's mu.
func (r *redialer) changeLocked() <-chan struct{} {
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

// wakeLocked has all calls that wait for a connection look again. The caller holds the session's mu.
func (r *redialer) wakeLocked() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

func (r *redialer) forgetLocked(cn *conn) {
	r.others = slices.DeleteFunc(r.others, func(other *conn) bool { return other == cn })
}

// connsLocked returns all connections of the session that may not have ended. The caller holds s.mu.
func (s *Session) connsLocked() []*conn {
	conns := []*conn{s.conn.Load()}
	if s.redial != nil {
		conns = append(conns, s.redial.others...)
	}
	return conns
}
