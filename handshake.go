package tp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/internal/places"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// patience is how long a handshake may take in all; a negative number is no bound.
func (p *Peer) patience(overTLS bool) (total time.Duration) {
	if overTLS {
		total = p.cfg.HandshakeTimeout
	}
	if len(p.chain.postAccept) > 0 {
		if p.cfg.HookTimeout < 0 || total < 0 {
			return -1
		}
		total += p.cfg.HookTimeout
	}
	return total
}

// origin is where a connection comes from.
type origin struct {
	hooks    hooks[ForeSession]
	id       []string        // the session's, if it is given
	place    *places.Place   // if a listener of the peer's has accepted it
	stranger bool            // the other side is one, until the hooks have passed
	confirms bool            // the other side is asked whether it wants the connection
	redial   *redialer       // if the session outlives it
	connect  hooks[*Session] // to be run when the connection is in use
}

// newSession runs the hooks and starts the session. One that was accepted while the
// peer drains is told at once to go elsewhere.
func (p *Peer) newSession(ctx context.Context, nc net.Conn, from origin) (*Session, error) {
	s := &Session{peer: p, redial: from.redial}
	if s.redial != nil {
		s.redial.sess = s
	}
	cn := &s.first
	cn.init(s, nc)
	s.conn.Store(cn)
	id, given := nc.RemoteAddr().String(), len(from.id) > 0
	if given {
		id = from.id[0]
	}
	if err := p.sessions.add(s, id, given); err != nil {
		_ = nc.Close()
		return nil, err
	}
	p.register()
	if p.draining() && from.place == nil {
		_ = s.shut(ErrPeerClosed)
		return nil, ErrPeerClosed
	}
	if from.stranger {
		cn.limitReading(p.cfg.handshakeLimits())
	}
	first, err := cn.runHandshake(ctx, &from)
	if err == nil && from.place != nil && !from.place.Pass() {
		err = context.Cause(from.place.Ctx)
	}
	if err == nil {
		err = p.sessions.open(s)
	}
	if err == nil && from.stranger {
		cn.limitReading(p.limits)
	}
	if err == nil && !s.open() {
		err = errClosedInHandshake
	}
	if err != nil {
		cn.linger()
		_ = s.shut(err)
		return nil, err
	}
	if err := s.connected(ctx, first, from.connect); err != nil {
		_ = s.shut(err)
		return nil, err
	}
	return s, nil
}

// connected starts the session, and runs the hooks of its first connection.
func (s *Session) connected(ctx context.Context, first *reader, hs hooks[*Session]) error {
	if len(hs) == 0 {
		s.first.start(first)
		return nil
	}
	over := make(chan error)
	defer close(over)
	if s.redial != nil {
		s.redial.hooks = over
	}
	s.first.start(first)
	ctx, cancel := bounded(ctx, s.peer.cfg.HookTimeout)
	defer cancel()
	select {
	case err := <-hs.start(s):
		return err
	case <-ctx.Done():
		return fmt.Errorf("PostConnect took too long: %w", ctx.Err())
	case <-s.Done():
		return s.Err()
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
	// Public is the session's values, see [Session.Public].
	Public() goutil.Map
	// Send sends a packet. Codecs that are not set are the peer's defaults, and a push
	// without an id is given one that says that it is a part of a handshake.
	Send(p *packet.Packet) error
	// Receive reads the next packet and decodes its body into body, a pointer; a
	// nil body is skipped. If the other side does not want the connection the error is
	// the Xerror that its PostAccept hook has returned. A packet that is none of a
	// handshake, a pull of a client that has no PostDial hook for example, is an Xerror
	// too, with StatusUnauthorized; the pull is answered with what the hook returns.
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
	conn    *conn // the one whose handshake it is
	dialled bool  // by this side
	over    atomic.Bool
	strays  []string // ids of pulls that were received instead; the hooks' goroutine's
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
	if h := p.Header; h != nil && h.Type == packet.TypePush && h.Id == "" {
		h.Id = handshakeId
	}
	return f.conn.sock.WritePacket(p)
}

func (f *foreSession) Receive(body interface{}) (*packet.Packet, error) {
	if f.over.Load() {
		return nil, errHandshakeOver
	}
	p := new(packet.Packet)
	var stray Xerror
	var refused packet.RawBody
	err := f.conn.sock.ReadPacket(p, func(h *packet.Header) interface{} {
		if h.Type == packet.TypeReply && h.Id == refusedId {
			return &refused
		}
		if stray = f.stray(h); stray != nil {
			return nil
		}
		return body
	})
	switch h := p.Header; {
	case err != nil && socket.Fatal(err):
		return p, err
	case h != nil && h.Type == packet.TypeReply && h.Id == refusedId:
		return p, f.conn.heardRefusal(h, refused)
	case stray != nil:
		return p, stray
	case err != nil:
		return p, bodyXerror(err)
	}
	return p, nil
}

func (f *foreSession) RemoteIp() string                { return f.conn.remoteIp() }
func (f *foreSession) Socket() *socket.Socket          { return f.conn.sock }
func (f *foreSession) ReadTimeout() time.Duration      { return f.conn.sock.ReadTimeout() }
func (f *foreSession) SetReadTimeout(d time.Duration)  { f.conn.sock.SetReadTimeout(d) }
func (f *foreSession) WriteTimeout() time.Duration     { return f.conn.sock.WriteTimeout() }
func (f *foreSession) SetWriteTimeout(d time.Duration) { f.conn.sock.SetWriteTimeout(d) }

// greet runs the hooks of the handshake, for at most HookTimeout, and waits for its outcome
// where it is to. After an error the connection is to be ended. A reader is returned if a packet
// has come that is not a part of the handshake.
func (cn *conn) runHandshake(ctx context.Context, from *origin) (*reader, error) {
	if len(from.hooks) == 0 && !from.confirms {
		return nil, nil
	}
	ctx, cancel := bounded(ctx, cn.peer.cfg.HookTimeout)
	defer cancel()
	// On a goroutine of their own: a hook may wait for something that closing
	// the connection does not end.
	fore := &foreSession{Session: cn.sess, conn: cn, dialled: !from.stranger}
	var first *reader
	done := onItsOwn(func() error {
		err := from.hooks.run(fore).orNil()
		fore.over.Store(true)
		switch {
		case err == nil && from.confirms:
			first, err = cn.confirm()
		case err != nil && !from.stranger && isWriteError(err): // perhaps the other side has said why
			if refused := cn.lastWord(); refused != nil {
				err = refused
			}
		}
		return err
	})
	select {
	case err := <-done:
		fore.over.Store(true) // if a hook has ended its goroutine
		var refused *refusedConn
		switch {
		case errors.As(err, &refused):
			err = refused // whatever the hook has made of it
		case err != nil && from.stranger:
			cn.refuse(err, fore.strays)
		default:
			for _, id := range fore.strays { // which the hooks have passed over
				cn.sendRefusal(id, newXerror(StatusUnauthorized, "it came before the handshake was over", nil))
			}
		}
		return first, err
	case <-ctx.Done():
		fore.over.Store(true)
		err := fmt.Errorf("the handshake took too long: %w", ctx.Err())
		_ = cn.end(err)
		cn.peer.handshakes.Count(1) // as long as the hook goes on
		go func() {
			<-done
			cn.peer.handshakes.Count(-1)
			cn.peer.activity()
		}()
		return nil, err
	}
}
