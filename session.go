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

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Session is a live connection between two peers. Either side may pull and push
// at any time, inside and outside of handlers. All methods are safe for
// concurrent use.
type Session struct {
	peer *Peer
	// id is written under the table of sessions's mutex, which guards counted: the session is one of
	// PeerConfig.MaxSessions.
	id      atomic.Pointer[string]
	counted bool
	// connection is the connection, or the last one while there is none; first is where it
	// is to begin with.
	conn   atomic.Pointer[conn]
	first  conn
	redial *redialer // nil if the session ends with its connection

	mu     sync.Mutex // guards the fields below, and some of every connection's
	state  sessionState
	cause  error // of the end
	public goutil.Map
	done   chan struct{} // made when asked for
}

// sessionState never goes back.
type sessionState uint8

const (
	stateHandshaking sessionState = iota
	stateOpen
	stateClosed
)

var (
	// errClosedHere is the cause of an end that this side wanted.
	errClosedHere        = errors.New("closed by this side")
	errClosedInHandshake = errors.New("closed during the handshake")
)

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

// Socket returns the socket below, for addresses, TLS state and statistics. The
// session reads from it; others must not.
func (s *Session) Socket() *socket.Socket { return s.conn.Load().sock }

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
func (s *Session) ReadTimeout() time.Duration { return s.Socket().ReadTimeout() }

// SetReadTimeout changes how long the session waits for the next packet,
// counted from now for the wait under way.
func (s *Session) SetReadTimeout(d time.Duration) {
	s.onConns(func(cn *conn) { cn.sock.SetReadTimeout(d) })
}

// onLinks calls f for the session's connections, without its lock: one may be in its handshake,
// and others may come meanwhile.
func (s *Session) onConns(f func(cn *conn)) {
	var done []*conn
	for {
		s.mu.Lock()
		links := slices.DeleteFunc(slices.Clone(s.connsLocked()), func(cn *conn) bool { return slices.Contains(done, cn) })
		s.mu.Unlock()
		if len(links) == 0 {
			return
		}
		for _, cn := range links {
			f(cn)
		}
		done = append(done, links...)
	}
}

// WriteTimeout returns how long one write may take before the session is closed;
// zero means no bound.
func (s *Session) WriteTimeout() time.Duration { return s.Socket().WriteTimeout() }

// SetWriteTimeout changes how long one write may take, from the next one on.
func (s *Session) SetWriteTimeout(d time.Duration) {
	s.onConns(func(cn *conn) { cn.sock.SetWriteTimeout(d) })
}

// Done returns a channel that is closed when the session has ended.
func (s *Session) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.state == stateClosed {
			close(s.done)
		}
	}
	return s.done
}

// Close ends the session at once. Pulls in flight complete with
// StatusConnClosed, handlers run on but can no longer reply. What has been
// handed to the connection is given up to a second to leave. It may be called
// more than once and from anywhere, handlers and hooks included.
func (s *Session) Close() error { return s.shut(errClosedHere) }

// shut is every session's end; the first cause counts.
func (s *Session) shut(cause error) error {
	s.mu.Lock()
	if s.state == stateClosed {
		s.mu.Unlock()
		return nil
	}
	was := s.state
	s.state, s.cause = stateClosed, cause
	if s.done != nil {
		close(s.done)
	}
	links := s.connsLocked()
	if s.redial != nil {
		s.redial.wakeLocked()
	}
	s.mu.Unlock()

	if was == stateOpen {
		level := endLevel(cause)
		if cause == errClosedHere || errors.Is(cause, io.EOF) {
			level = LevelDebug
		}
		cn := s.conn.Load()
		s.peer.rarely(level, "session ended", "session %s with %s ended: %v", cn.logAttrs(errAttr(cn.plain(cause)))...)
	}
	s.peer.sessions.remove(s)
	var err error
	lingers := false
	for _, cn := range links {
		if e := cn.end(cause); err == nil {
			err = e
		}
		lingers = lingers || cn.lingers.Load()
	}
	if !lingers { // otherwise that is for who finishes it
		s.peer.sessions.leave(s)
	}
	return err
}

// endLevel is the level of the line that says why a connection has ended.
func endLevel(cause error) slog.Level {
	var hook *hookError
	var pushes *overflow
	var memory *evicted
	switch {
	case errors.Is(cause, packet.ErrHeader), errors.As(cause, &hook), lasting(cause):
		return LevelWarn
	case errors.As(cause, &pushes), errors.As(cause, &memory), errors.Is(cause, socket.ErrOutputFull): // limits
		return LevelWarn
	}
	return LevelInfo
}

// open lets the session be seen and read, unless it was closed meanwhile.
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
