package tp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/places"
	"github.com/henrylee2cn/teleport/internal/uri"
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

// origin says where a new connection comes from, and what its handshake consists of.
type origin struct {
	hooks    hooks[ForeSession]
	id       []string        // the session's id; empty to use the address
	place    *places.Place   // its place in the handshake; nil unless a listener has accepted it
	stranger bool            // the other side has dialled: until the hooks have passed anybody may be there
	confirms bool            // this side asks the other whether it wants the connection
	redial   *redialer       // nil unless the session may outlive the connection
	connect  hooks[*Session] // run when the session is in use
}

// newSession makes a session of a connection: it runs the handshake, and starts to read. A session that was
// accepted while the peer drains is told at once that this peer is shutting down.
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

// connected starts to read the session's first connection, and runs the PostConnect hooks.
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

// sessionOfHooks is Session by another name, as foreSession has a method of that one.
type sessionOfHooks = Session

// foreSession is the ForeSession that the hooks of one handshake get.
type foreSession struct {
	*sessionOfHooks
	conn    *conn // the connection in its handshake
	dialled bool  // this side has dialled
	over    atomic.Bool
	waits   atomic.Bool // a hook waits for a packet
	// strays are the ids of pulls that came instead of packets of the handshake. Only the goroutine of
	// the hooks adds to them.
	strays []string
}

var errHandshakeOver = errors.New("tp: the handshake is over: Send and Receive are for PostDial and " +
	"PostAccept")

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
	f.waits.Store(true)
	defer f.waits.Store(false)
	for {
		p, err := f.receive(body)
		if h := p.Header; h == nil || h.Type != packet.TypeCredit || err != nil && socket.Fatal(err) {
			return p, err
		}
		// It is about the pushes of the session, which may be ahead of the handshake.
		if err := f.conn.heardCredit([]byte(p.Header.Id), p.Header.Meta); err != nil {
			return p, err
		}
	}
}

// receive reads the next packet.
func (f *foreSession) receive(body interface{}) (*packet.Packet, error) {
	p := new(packet.Packet)
	var stray Xerror
	var refused packet.RawBody
	err := f.conn.sock.ReadPacket(p, func(h *packet.Header) interface{} {
		if h.Type == packet.TypeReply && h.Id == refusedId {
			return &refused
		}
		if stray = f.stray(h); stray != nil || h.Type == packet.TypeCredit {
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

func (f *foreSession) Session() *Session { return f.sessionOfHooks }

func (f *foreSession) RemoteIp() string { return f.conn.remoteIp() }

func (f *foreSession) Socket() socket.View { return f.conn.sock.View() }

func (f *foreSession) ReadTimeout() time.Duration { return f.conn.sock.ReadTimeout() }

func (f *foreSession) SetReadTimeout(d time.Duration) { f.conn.sock.SetReadTimeout(d) }

func (f *foreSession) WriteTimeout() time.Duration { return f.conn.sock.WriteTimeout() }

func (f *foreSession) SetWriteTimeout(d time.Duration) { f.conn.sock.SetWriteTimeout(d) }

// runHandshake runs the hooks of the handshake, for HookTimeout at most, and then asks the other side for the
// outcome if from says so. After an error the caller ends the connection. If a packet has come that is not a
// part of the handshake, runHandshake returns the reader that has read its header.
func (cn *conn) runHandshake(ctx context.Context, from *origin) (*reader, error) {
	if len(from.hooks) == 0 && !from.confirms {
		return nil, nil
	}
	ctx, cancel := bounded(ctx, cn.peer.cfg.HookTimeout)
	defer cancel()
	// The hooks get a goroutine of their own, because one may wait for something that does not end when
	// the connection is closed.
	fore := &foreSession{sessionOfHooks: cn.sess, conn: cn, dialled: !from.stranger}
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
			err = refused // a hook may have wrapped it in an error of its own
		case err != nil && from.stranger:
			cn.refuse(err, fore.strays)
		default:
			for _, id := range fore.strays { // the hooks have gone on in spite of them
				cn.sendRefusal(id, newXerror(StatusUnauthorized, "it came before the handshake was over",
					nil))
			}
		}
		return first, err
	case <-ctx.Done():
		fore.over.Store(true)
		what := ""
		if fore.waits.Load() {
			what = fmt.Sprintf(": this side's hook waits for a packet of the other side's %s hook, which "+
				"may not have the plugin", fore.otherHook())
		}
		err := fmt.Errorf("the handshake took too long%s: %w", what, ctx.Err())
		_ = cn.end(err)
		cn.peer.handshakes.Count(1) // until the hook has returned
		go func() {
			<-done
			cn.peer.handshakes.Count(-1)
			cn.peer.activity()
		}()
		return nil, err
	}
}

// maxStrays is how many pulls that came instead of packets of the handshake are answered when the handshake
// is over. Others are dropped.
const maxStrays = 16

// refuse tells the other side why a hook did not want its connection, and answers the pulls with the ids in
// strays with the same error. A connection that a limit turns away is told nothing, because that would cost
// more than to close it.
func (cn *conn) refuse(cause error, strays []string) {
	var hook *hookError
	if cn.ended.Load() || !errors.As(cause, &hook) {
		return
	}
	x := hook.xerror()
	for _, id := range strays {
		cn.sendRefusal(id, x)
	}
	cn.sendRefusal(refusedId, x)
}

// sendRefusal sends x as the reply with the id, ahead of everything that waits to be written.
func (cn *conn) sendRefusal(id string, x Xerror) {
	h := &packet.Header{Id: id, Type: packet.TypeReply, NotRun: true}
	h.StatusCode, h.Status = sentStatus(x)
	h.Meta = addRetryAfter(nil, x)
	body, gzip := detailsOf(x)
	h.Gzip = gzip
	cfg := &cn.peer.cfg
	frame, err := cn.sock.Encode(socket.Permit{}, nil, &packet.Packet{HeaderCodec: cfg.DefaultHeaderCodec,
		BodyCodec: cfg.DefaultBodyCodec, Header: h, Body: body})
	if err != nil { // the details do not encode
		h.Gzip = 0
		frame, err = cn.encodeHeader(h)
	}
	if err == nil {
		cn.sendControlFrame(frame)
	}
}

// confirm asks the other side for the outcome of the handshake, and returns when the other side has passed
// it, or why it does not want the connection. If the first packet of the session comes instead, confirm
// returns the reader that has read its header.
func (cn *conn) confirm() (*reader, error) {
	cn.sendControl(&packet.Header{Id: outcomeId, Type: packet.TypePing})
	r := newReader(cn, false)
	var err error
	if err = r.readHeader(); err != nil {
		return nil, err
	}
	if r.view.Type == packet.TypeReply {
		switch string(r.view.Id) {
		case outcomeId: // with status 200, or 410 from a peer that does not know pings
			cn.sock.SkipBody()
			return nil, nil
		case refusedId:
			return nil, r.refusal()
		}
	}
	r.pending = true
	return r, nil
}

// lastWord looks at what the other side sent before it closed the connection, and returns its refusal; nil if
// there is none.
func (cn *conn) lastWord() error {
	r := newReader(cn, false)
	for range maxStrays {
		var err error
		if err = r.readHeader(); err != nil {
			return nil
		}
		if r.view.Type == packet.TypeReply && string(r.view.Id) == refusedId {
			return r.refusal()
		}
		cn.sock.SkipBody()
	}
	return nil
}

// stray returns an error if h is not the header of a packet of a handshake. That is so when the other side
// has no hook for this one's, and already pulls or pushes.
func (f *foreSession) stray(h *packet.Header) Xerror {
	kind := ""
	switch h.Type {
	case packet.TypePull:
		if _, ok := parsePullId([]byte(h.Id)); !ok {
			return nil
		}
		if len(f.strays) < maxStrays {
			f.strays = append(f.strays, h.Id)
		}
		kind = fmt.Sprintf("a pull of %q", quote(uri.WithoutQuery(h.Uri)))
	case packet.TypePush:
		path, _ := uri.Split(h.Uri)
		if h.Id == handshakeId || f.peer.PushRouter.routes.table.Load().handlers[path] == nil {
			return nil
		}
		kind = fmt.Sprintf("a push to %q", quote(uri.WithoutQuery(h.Uri)))
	case packet.TypeReply:
		if h.Id != outcomeId {
			return nil
		}
		kind = "the answer to a ping"
	case packet.TypePing:
		kind = "a ping; its hooks are through"
	case packet.TypeCancel:
		kind = "a cancellation"
	case packet.TypeGoAway:
		return newXerror(StatusServiceUnavailable, "the other side is shutting down", nil)
	default:
		return nil
	}
	code := StatusUnauthorized
	if f.dialled {
		code = StatusFailedPlugin
	}
	return newXerror(code, fmt.Sprintf("expected a packet of the other side's %s hook, which may not have "+
		"the plugin, and there came %s", f.otherHook(), kind), nil)
}

// otherHook is the hook of the other side from which packets of the handshake come.
func (f *foreSession) otherHook() string {
	if f.dialled {
		return "PostAccept"
	}
	return "PostDial"
}
