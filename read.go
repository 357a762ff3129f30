package tp

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// readLoop reads packets until the connection ends. It never waits for a
// handler. It is started once by the peer, after the handshake, and ends with
// the session.
func (s *Session) readLoop() {
	var err error
	defer func() {
		if p := recover(); p != nil { // a defect here must not end the process
			Criticalf("session %s: reading panicked: %v\n%s", quote(s.Id()), p, debug.Stack())
			err = fmt.Errorf("reading panicked")
		}
		if errors.Is(err, socket.ErrClosed) {
			err = errClosedHere
		}
		_ = s.shut(err)
	}()
	in := packet.Packet{Header: new(packet.Header)}
	for {
		err = errReaderGone // should a hook call runtime.Goexit
		e := s.readPacket(&in)
		if err = e; err != nil {
			return
		}
	}
}

var errReaderGone = errors.New("a hook has ended the reading goroutine")

// readPacket reads one packet and hands it on; in is where its header is read
// into until it is known whose it is. An error ends the session.
func (s *Session) readPacket(in *packet.Packet) error {
	var c *packetCtx
	if hooks := s.peer.chain.preReadHeader; len(hooks) > 0 {
		c = newReadCtx(s)
		if err := hooks.run(c); err != nil {
			Warnf("session %s: %v", quote(s.Id()), err)
			return err
		}
	}
	if err := s.sock.ReadHeader(in); err != nil {
		if errors.Is(err, packet.ErrHeader) {
			Warnf("session %s from %s: %v", quote(s.Id()), s.RemoteIp(), err)
		}
		return err
	}
	if in.Header.Type == packet.TypeReply {
		return s.readReply(c, in)
	}
	if c == nil {
		c = newReadCtx(s)
	}
	c.setInput(in)
	c.start = s.peer.startTime()
	switch c.inHdr.Type {
	case packet.TypePull:
		return s.readCall(c, &s.peer.PullRouter.group)
	case packet.TypePush:
		return s.readCall(c, &s.peer.PushRouter.group)
	}
	// An answer to what this side does not know is a reply, and a reply is never
	// answered: two peers cannot keep each other busy.
	s.sock.SkipBody()
	Debugf("session %s: packet of unknown type %d dropped", quote(s.Id()), c.inHdr.Type)
	if c.inHdr.Id != "" {
		s.refuse(c, newXerror(StatusUnsupportedType, fmt.Sprintf("unsupported type %d", c.inHdr.Type), nil))
	}
	return nil
}

// readCall routes a pull or a push, reads its body and hands it to a goroutine
// of its own.
func (s *Session) readCall(c *packetCtx, root *group) error {
	if err := packet.CheckGzip(c.inHdr.Gzip); err != nil {
		return s.reject(c, newXerror(StatusBadRequest, err.Error(), err))
	}
	table := root.routes.table.Load()
	if err := table.postReadHeader.run(c); err != nil {
		Debugf("%s %s from %s: %v", c.kind(), quote(c.inHdr.Uri), c.Ip(), err)
		return s.reject(c, err.xerror())
	}
	c.fixInput()
	var err error
	if c.path, c.rawQuery, err = splitURI(c.inHdr.Uri); err != nil {
		return s.reject(c, newXerror(StatusBadRequest, err.Error(), err))
	}
	if c.handler = table.find(c.path); c.handler == nil {
		return s.reject(c, newXerror(StatusNotFound, "", nil))
	}
	var raw []byte
	if c.handler.unknown {
		c.raw, err = s.sock.ReadBody(nil)
		raw = c.raw
	} else {
		c.body = bufpool.Get()
		c.body.B, err = s.sock.ReadBody(c.body.B)
		raw = c.body.B
	}
	if err != nil {
		if socket.Fatal(err) {
			return err
		}
		return s.reject(c, bodyXerror(err))
	}
	// Counted first and checked second, while Shutdown does it the other way
	// round: one of the two sees the other.
	s.running.Add(1)
	if s.peer.draining() && c.typ == packet.TypePull {
		s.refuse(c, newXerror(StatusServiceUnavailable, "shutting down, the pull was not run", nil))
		s.handlerDone()
		return nil
	}
	c.in.BodyCodec, _ = packet.RawBody(raw).Codec()
	go c.handle()
	return nil
}

// kind names the packet in logs.
func (c *packetCtx) kind() string {
	if c.typ == packet.TypePush {
		return "push"
	}
	return "pull"
}

// reject ends a pull or push before its handler: the pull is answered and the
// push logged. The session lives on.
func (s *Session) reject(c *packetCtx, x Xerror) error {
	s.sock.SkipBody()
	if c.typ == packet.TypePush {
		Warnf("push %s from %s dropped: %s", quote(c.inHdr.Uri), c.Ip(), quote(x.Error()))
		return nil
	}
	s.refuse(c, x)
	return nil
}

// refuse answers a packet that no handler is for. The reply is written on
// another goroutine, for the reading one must not wait for the other side to
// read.
func (s *Session) refuse(c *packetCtx, x Xerror) {
	s.running.Add(1)
	go func() {
		defer s.handlerDone()
		c.prepareReply()
		c.reply(nil, x)
		c.logHandled(x)
	}()
}

// readReply hands a reply to the pull that waits for it. The context c is that
// of PreReadHeader hooks; nil if there are none.
func (s *Session) readReply(c *packetCtx, in *packet.Packet) error {
	s.running.Add(1) // so that Shutdown waits for the body too
	defer s.handlerDone()
	var cmd *PullCmd
	if id, ok := parsePullId(in.Header.Id); ok {
		cmd = s.takePull(id)
	}
	if cmd == nil {
		s.sock.SkipBody()
		Debugf("session %s: reply %s to no pull in flight dropped", quote(s.Id()), quote(in.Header.Id))
		return nil
	}
	cmd.ctx.setInput(in)
	if c != nil {
		cmd.ctx.addPublic(c)
	}
	if err := s.peer.chain.postReadHeader.run(&cmd.ctx); err != nil {
		s.sock.SkipBody()
		cmd.settle(err.xerror())
		return nil
	}
	cmd.ctx.fixInput()
	cmd.body = bufpool.Get()
	var err error
	cmd.body.B, err = s.sock.ReadBody(cmd.body.B)
	switch {
	case err == nil:
		cmd.ctx.in.BodyCodec, _ = packet.RawBody(cmd.body.B).Codec()
		cmd.settle(nil)
	case socket.Fatal(err):
		cmd.settle(newXerror(StatusConnClosed, "connection closed in the middle of the reply: "+err.Error(), err))
		return err
	default:
		cmd.settle(bodyXerror(err))
	}
	return nil
}

// setInput makes a packet whose header has been read the context's own.
func (c *packetCtx) setInput(in *packet.Packet) {
	c.in, c.inHdr = *in, *in.Header
	c.in.Header = &c.inHdr
	c.id, c.typ = c.inHdr.Id, c.inHdr.Type
}

// addPublic adds what hooks have stored in another context.
func (c *packetCtx) addPublic(from *packetCtx) {
	if from.public != nil {
		public := c.Public()
		from.public.Range(func(k, v interface{}) bool {
			public.Store(k, v)
			return true
		})
	}
}
