package tp

import (
	"errors"
	"fmt"
	"io"
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
	sock *socket.Socket
	// id is written under the hub's mutex.
	id    atomic.Pointer[string]
	pulls pullTable
	// running counts pulls and pushes from the time their body was read until
	// their reply is queued on the socket.
	running atomic.Int64
	// ended is state == stateClosed, to be read without mu.
	ended atomic.Bool
	// away is set when the other side shuts down: nothing more is to be sent that it
	// would have to handle.
	away atomic.Bool
	// answered is set when it has answered all pulls that it will.
	answered atomic.Bool
	// turn says whether the reader may be replaced, see inline.go; slot is where
	// it begins to look for a slot of the watch.
	turn atomic.Uint64
	slot uint32
	// inline is the route whose handler the reader runs; nil in a write. It is
	// set before a turn becomes odd and is read by who has made it even.
	inline *Handler
	calls  calls // on workers; guarded by workers.mu

	mu     sync.Mutex // guards the fields below
	state  sessionState
	public goutil.Map
	done   chan struct{} // made when asked for
	ending *time.Timer   // of endWithin
}

// sessionState never goes back.
type sessionState uint8

const (
	stateHandshaking sessionState = iota
	stateOpen
	stateClosed
)

// errClosedHere is the cause of an end that this side wanted.
var errClosedHere = errors.New("closed by this side")

// Peer returns the local peer.
func (s *Session) Peer() *Peer { return s.peer }

// Id returns the session's id, which no other session of the peer has at the
// same time.
func (s *Session) Id() string { return *s.id.Load() }

// ChangeId gives the session another id. If it belongs to another live session
// the error wraps [ErrIdTaken] and nothing changes.
func (s *Session) ChangeId(id string) error {
	_, err := s.peer.hub.rename(s, id, false)
	return err
}

// ReplaceId gives the session another id, and closes the session that had it.
func (s *Session) ReplaceId(id string) error {
	other, err := s.peer.hub.rename(s, id, true)
	if other != nil {
		other.shut(fmt.Errorf("its id %q was taken by a newer session", id))
	}
	return err
}

// RemoteIp returns the other side's address and port.
func (s *Session) RemoteIp() string { return s.sock.RemoteAddr().String() }

// Socket returns the socket below, for addresses, TLS state and statistics. The
// session reads from it; others must not.
func (s *Session) Socket() *socket.Socket { return s.sock }

// Public returns the session's values, which plugins and handlers share. Each
// call's context begins with a copy of them.
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
func (s *Session) ReadTimeout() time.Duration { return s.sock.ReadTimeout() }

// SetReadTimeout changes how long the session waits for the next packet,
// counted from now for the wait under way.
func (s *Session) SetReadTimeout(d time.Duration) { s.sock.SetReadTimeout(d) }

// WriteTimeout returns how long one write may take before the session is closed;
// zero means no bound.
func (s *Session) WriteTimeout() time.Duration { return s.sock.WriteTimeout() }

// SetWriteTimeout changes how long one write may take, from the next one on.
func (s *Session) SetWriteTimeout(d time.Duration) { s.sock.SetWriteTimeout(d) }

// Pull sends a request to the URI and waits for the reply, which is decoded into
// reply, a pointer; a nil reply drops the body. The returned command's Xerror
// is nil on success. Args and reply belong to the call until it returns.
func (s *Session) Pull(uri string, args, reply interface{}, setting ...PacketSetting) *PullCmd {
	cmd := newPullCmd(s, uri, args, reply)
	f := cmd.flight.Load()
	cmd.launch(setting)
	f.settled.park()
	cmd.finish()
	return cmd
}

// GoPull is Pull without the wait. The command is delivered on done when it is
// complete, exactly once and without holding up anything else, whether done is
// buffered or not; if done is nil a buffered channel is made. Args and reply
// belong to the call until then. Like Pull and Push it may wait while the
// connection takes no output. The command that
// is returned gives the same channel with [PullCmd.Done], and nothing else of it
// may be used before it was delivered.
func (s *Session) GoPull(uri string, args, reply interface{}, done chan *PullCmd, setting ...PacketSetting) *PullCmd {
	if done == nil {
		done = make(chan *PullCmd, 1)
	}
	cmd := newPullCmd(s, uri, args, reply)
	cmd.done = done
	cmd.launch(setting)
	return cmd
}

// Push sends args to the URI, one way. Nil means that the packet was handed to
// the connection, not that it was handled.
func (s *Session) Push(uri string, args interface{}, setting ...PacketSetting) Xerror {
	if s.goneAway() {
		return unrun(StatusServiceUnavailable, "the other side is shutting down, the push was not sent", nil)
	}
	chain := s.peer.chain
	start := s.peer.startTime()
	if len(chain.preWritePush) == 0 && len(chain.postWritePush) == 0 && start.IsZero() {
		return s.pushBare(uri, args, setting)
	}
	c := &packetCtx{sess: s, exchange: new(exchange)}
	c.start = start
	c.setOutput(packet.TypePush, uri, args, setting)
	if err := chain.preWritePush.run(c); err != nil {
		return err.xerror()
	}
	c.fixOutput(c.outHdr.Id, packet.TypePush)
	if err := s.push(c.exchange); err != nil {
		return sendXerror(err)
	}
	if err := chain.postWritePush.run(c); err != nil {
		Warnf("push %s: %v", quote(uri), err)
	}
	c.logPushed()
	return nil
}

// pushBare is Push where no hook and no log needs a context.
func (s *Session) pushBare(uri string, args interface{}, settings []PacketSetting) Xerror {
	x := exchanges.Get().(*exchange)
	s.peer.cfg.fill(&x.out, &x.outHdr, packet.TypePush, uri, args, settings)
	err := s.push(x)
	x.put()
	if err != nil {
		return sendXerror(err)
	}
	return nil
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
	s.state = stateClosed
	s.ended.Store(true)
	if s.done != nil {
		close(s.done)
	}
	if s.ending != nil {
		s.ending.Stop()
	}
	s.mu.Unlock()

	if was == stateOpen {
		level := LevelDebug
		if cause != errClosedHere && !errors.Is(cause, io.EOF) {
			level = LevelInfo
		}
		logf(level, "session %s ended: %s", quote(s.Id()), quote(cause.Error()))
	}
	s.peer.hub.remove(s)
	for _, cmd := range s.pulls.close() {
		x := newXerror(StatusConnClosed, "connection closed, the outcome of the pull is unknown: "+cause.Error(), cause)
		if s.answered.Load() {
			x = unrun(StatusConnClosed, "the other side has shut down, the pull was not run", cause)
		}
		cmd.settle(x)
	}
	err := s.sock.Close()
	s.peer.activity()
	return err
}

// endWithin ends the session after some time, if it has not ended by then.
func (s *Session) endWithin(d time.Duration, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateClosed && s.ending == nil {
		s.ending = time.AfterFunc(d, func() { _ = s.shut(cause) })
	}
}

// goneAway reports whether the other side has asked to begin nothing more.
func (s *Session) goneAway() bool { return s.away.Load() && !s.ended.Load() }

// takePull makes the caller the owner of the pull in flight with the id; nil
// means that it is none, or another's.
func (s *Session) takePull(id uint64) *PullCmd {
	cmd := s.pulls.take(id)
	if cmd != nil {
		s.peer.activity()
	}
	return cmd
}

// open lets the session be seen and read, unless it was closed meanwhile.
func (s *Session) open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateHandshaking {
		return false
	}
	s.state = stateOpen
	return true
}

func (s *Session) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stateOpen
}

// handlerDone counts a handler that has replied.
func (s *Session) handlerDone() {
	if s.running.Add(-1) == 0 {
		if s.ended.Load() {
			s.peer.hub.left(s)
		}
		s.peer.activity()
	}
}

// ForeSession is a session whose handshake is under way: PostDial and PostAccept
// hooks may exchange packets with the other side before anything is routed, for
// example to authenticate. It is valid until the hook returns.
type ForeSession interface {
	// Peer is the local peer.
	Peer() *Peer
	// Id is the session's id so far.
	Id() string
	// ChangeId gives the session another id; see [Session.ChangeId].
	ChangeId(id string) error
	// ReplaceId takes an id over from a live session; see [Session.ReplaceId].
	ReplaceId(id string) error
	// RemoteIp is the other side's address and port.
	RemoteIp() string
	// Socket is the socket below, for addresses and TLS state.
	Socket() *socket.Socket
	// Public is the session's values.
	Public() goutil.Map
	// Send sends a packet. Codecs that are not set are the peer's defaults.
	Send(p *packet.Packet) error
	// Receive reads the next packet and decodes its body into body, a pointer; a
	// nil body is skipped.
	Receive(body interface{}) (*packet.Packet, error)
	// ReadTimeout and the three methods below are those of Session.
	ReadTimeout() time.Duration
	SetReadTimeout(d time.Duration)
	WriteTimeout() time.Duration
	SetWriteTimeout(d time.Duration)
	// Close ends the session.
	Close() error
}

type foreSession struct {
	*Session
	over atomic.Bool
}

var errHandshakeOver = errors.New("tp: the handshake is over: Send and Receive are for PostDial and PostAccept")

func (f *foreSession) Send(p *packet.Packet) error {
	if f.over.Load() {
		return errHandshakeOver
	}
	cfg := &f.peer.cfg
	if p.HeaderCodec == "" {
		p.HeaderCodec = cfg.DefaultHeaderCodec
	}
	if p.BodyCodec == "" {
		p.BodyCodec = cfg.DefaultBodyCodec
	}
	return f.sock.WritePacket(p)
}

func (f *foreSession) Receive(body interface{}) (*packet.Packet, error) {
	if f.over.Load() {
		return nil, errHandshakeOver
	}
	p := new(packet.Packet)
	return p, f.sock.ReadPacket(p, func(*packet.Header) interface{} { return body })
}
