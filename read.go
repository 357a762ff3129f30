package tp

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"
	"unsafe"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// reader is a goroutine that reads a session's packets and hands them on. It
// never waits for a handler for long: see inline.go. A session has one reader at
// a time.
type reader struct {
	s      *Session
	turn   uint64            // s.turn
	slot   int               // of the watch; -1 none
	dirty  bool              // replies of quick handlers are queued
	began  bool              // a packet has been read
	view   packet.HeaderView // of the packet that is being read
	length int64             // of its body
}

// read reads packets until the connection ends, or this reader is replaced by
// another. The first one is started by the peer, after the handshake.
func (s *Session) read(replaces bool) {
	r := reader{s: s, turn: s.turn.Load(), slot: -1, dirty: replaces}
	var err error
	defer func() {
		p := recover()
		if p != nil { // a defect here must not end the process
			Criticalf("session %s: reading panicked: %s\n%s", quote(s.Id()), quote(fmt.Sprint(p)), debug.Stack())
			err = fmt.Errorf("reading panicked")
		}
		inHandler := r.turn%2 == 1 // which has called runtime.Goexit
		if err == errReplaced {
			return
		}
		if inHandler && !r.leave() {
			s.flush() // the other reader may have done so before there was a reply
			return
		}
		r.unwatch()
		if inHandler {
			go s.read(true)
			return
		}
		if errors.Is(err, socket.ErrClosed) {
			err = errClosedHere
		}
		_ = s.shut(err)
	}()
	for {
		err = errReaderGone // should a hook call runtime.Goexit
		c, e := r.await()
		if e == nil {
			e = r.next(c)
		}
		if err = e; err != nil {
			return
		}
	}
}

var errReaderGone = errors.New("a hook has ended the reading goroutine")

// quietTime is after how long without a packet a session is given a new reader:
// the stack of the old one has grown with what it did, and most sessions do
// nothing most of the time.
const quietTime = time.Second

// await waits for the next packet, or some of it. It returns the context of
// PreReadHeader hooks; nil if there are none.
func (r *reader) await() (c *packetCtx, err error) {
	s := r.s
	buffered := s.sock.Buffered()
	if !buffered {
		if err := r.rest(); err != nil {
			return nil, err
		}
	}
	if hooks := s.peer.chain.preReadHeader; len(hooks) > 0 {
		c = newReadCtx(s)
		if err := hooks.run(c); err != nil {
			Warnf("session %s: %v", quote(s.Id()), err)
			return nil, err
		}
		return c, nil // they are not to be run twice
	}
	if buffered {
		return nil, nil
	}
	quiet := quietTime
	if !r.began {
		quiet = 0
	}
	if err = s.sock.Await(quiet); err == socket.ErrQuiet {
		go s.read(false)
		err = errReplaced
	}
	return nil, err
}

// next reads one packet and hands it on; c is that of await. An error ends the
// reader.
func (r *reader) next(c *packetCtx) error {
	s := r.s
	var err error
	if r.length, err = s.sock.ReadHeaderView(&r.view); err != nil {
		if errors.Is(err, packet.ErrHeader) {
			Warnf("session %s from %s: %v", quote(s.Id()), s.RemoteIp(), err)
		}
		return err
	}
	r.began = true
	switch r.view.Type {
	case packet.TypeReply:
		return r.reply(c)
	case packet.TypePull:
		return r.call(c, s.peer.PullRouter.routes.table.Load())
	case packet.TypePush:
		return r.call(c, s.peer.PushRouter.routes.table.Load())
	case packet.TypeGoAway:
		s.sock.SkipBody()
		if r.view.StatusCode == StatusOK {
			s.answered.Store(true)
		}
		if !s.away.Swap(true) {
			Debugf("session %s: the other side is shutting down", quote(s.Id()))
		}
		return nil
	}
	// An answer to what this side does not know is a reply, and a reply is never
	// answered: two peers cannot keep each other busy.
	s.sock.SkipBody()
	c = r.input(c, string(r.view.Uri))
	Debugf("session %s: packet of unknown type %d dropped", quote(s.Id()), c.typ)
	if c.id != "" {
		r.refuse(c, newXerror(StatusUnsupportedType, fmt.Sprintf("unsupported type %d", c.typ), nil))
	}
	return nil
}

// rest is called before the reader may have to wait: the replies that quick
// handlers have left go out now.
func (r *reader) rest() error {
	if r.dirty {
		r.dirty = false
		if !r.enter(nil) {
			go r.s.flush()
			return nil
		}
		r.s.flush()
		if !r.leave() {
			return errReplaced
		}
	}
	r.unwatch()
	return nil
}

// input returns the context of a packet whose header has been read: c if hooks
// have seen it already.
func (r *reader) input(c *packetCtx, uri string) *packetCtx {
	if c == nil {
		c = newReadCtx(r.s)
	}
	v := &r.view
	c.keepId(v.Id)
	c.typ, c.uri = v.Type, uri
	c.setInput(v, r.length, uri)
	c.start = r.s.peer.startTime()
	return c
}

// call routes a pull or a push, reads its body and runs its handler, here or on
// a goroutine of its own.
func (r *reader) call(c *packetCtx, table *routeTable) error {
	s := r.s
	h := table.handlers[string(r.view.Uri)]
	if h != nil {
		c = r.input(c, h.path) // which is the same text
	} else if uri, err := canonicalURI(string(r.view.Uri)); err == nil {
		c = r.input(c, uri)
	} else {
		c = r.input(c, string(r.view.Uri))
		return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
	}
	if err := packet.CheckGzip(c.inHdr.Gzip); err != nil {
		return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
	}
	if len(table.postReadHeader) > 0 {
		if err := table.postReadHeader.run(c); err != nil {
			Debugf("%s %s from %s: %v", c.kind(), quote(c.inHdr.Uri), c.Ip(), err)
			return r.reject(c, err.xerror())
		}
		c.fixInput()
	}
	if h == nil || c.uri != h.path {
		uri, err := canonicalURI(c.uri) // hooks may have put another one in
		if err != nil {
			return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
		}
		c.uri, c.inHdr.Uri = uri, uri
		path, _ := splitURI(uri)
		if h = table.find(path); h == nil {
			return r.reject(c, newXerror(StatusNotFound, "", nil))
		}
	}
	c.handler = h
	if err := c.readBody(s.sock, r.length, h.unknown); err != nil {
		if socket.Fatal(err) {
			return err
		}
		return r.reject(c, bodyXerror(err))
	}
	// Counted first and checked second, while Shutdown does it the other way
	// round: one of the two sees the other.
	s.running.Add(1)
	if s.peer.draining() && c.typ == packet.TypePull {
		r.refuse(c, newXerror(StatusServiceUnavailable, "shutting down, the pull was not run", nil))
		s.handlerDone()
		return nil
	}
	c.in.BodyCodec, _ = packet.RawBody(c.body).Codec()
	if h.pace.quick.Load() && r.enter(h) {
		c.timed = oneIn(sampleQuick)
		return r.run(c)
	}
	c.timed = oneIn(sampleSlow)
	switch s.peer.workers.run(c) {
	case overloaded:
		r.refuse(c, newXerror(StatusOverloaded, "too many handlers are running, the pull was not run", nil))
		s.handlerDone()
	case noMemory:
		Warnf("push %s from %s dropped: it would have to wait, and the memory budget is used up", quote(c.inHdr.Uri), c.Ip())
		c.giveUp()
	case overflown:
		c.giveUp()
		return fmt.Errorf("too many pushes wait to be handled, %d of them are dropped", 1+s.peer.workers.drop(s))
	}
	return nil
}

// run runs a quick handler.
func (r *reader) run(c *packetCtx) error {
	c.inline, r.dirty = true, true
	if waiting := c.handle(); waiting >= flushAt {
		r.s.flush()
		r.dirty = false
	}
	if !r.leave() {
		r.s.flush()
		return errReplaced
	}
	return nil
}

// flushAt is how many bytes of replies are not held back any longer.
const flushAt = 64 << 10

// kind names the packet in logs.
func (c *packetCtx) kind() string {
	if c.typ == packet.TypePush {
		return "push"
	}
	return "pull"
}

// reject ends a pull or push before its handler: the pull is answered and the
// push logged. The session lives on.
func (r *reader) reject(c *packetCtx, x Xerror) error {
	r.s.sock.SkipBody()
	if c.typ == packet.TypePush {
		Warnf("push %s from %s dropped: %s", quote(c.inHdr.Uri), c.Ip(), quote(x.Error()))
		return nil
	}
	r.refuse(c, x)
	return nil
}

// refuse answers a packet that no handler is for. The reader never waits for the
// other side to read: where there are hooks a worker writes the reply, unless there
// are too many already, and if there is no room for it the session ends.
func (r *reader) refuse(c *packetCtx, x Xerror) {
	s := r.s
	c.dropBody()
	c.refusal = x
	if chain := c.replyChain(); len(chain.preWriteReply)+len(chain.postWriteReply) > 0 && x.Code() != StatusOverloaded {
		s.running.Add(1)
		if s.peer.workers.run(c) == accepted {
			return
		}
		s.handlerDone()
	}
	c.prepareReply()
	c.setReply(nil, x)
	r.dirty = true
	c.offered = true
	_ = c.writeReply() // which ends the session if there is no room
	c.logHandled(x)
	c.release()
}

// reply hands a reply to the pull that waits for it. The context c is that of
// PreReadHeader hooks; nil if there are none.
func (r *reader) reply(c *packetCtx) error {
	s := r.s
	if !s.sock.BodyBuffered() {
		s.running.Add(1) // so that Shutdown waits for the body too
		defer s.handlerDone()
	}
	var cmd *PullCmd
	if id, ok := parsePullId(r.view.Id); ok {
		cmd = s.takePull(id)
	}
	if cmd == nil {
		s.sock.SkipBody()
		Debugf("session %s: reply %s to no pull in flight dropped", quote(s.Id()), quote(string(r.view.Id)))
		return nil
	}
	f := cmd.flight.Load()
	if f.bare && !cmd.packInput(&r.view, r.length) {
		f.show(s)
		f.unpack(cmd)
	}
	if !f.bare {
		pull := &f.ctx
		pull.typ = packet.TypeReply
		pull.setInput(&r.view, r.length, string(r.view.Uri))
		if c != nil {
			pull.addPublic(c)
		}
		if hooks := s.peer.chain.postReadHeader; len(hooks) > 0 {
			if err := hooks.run(pull); err != nil {
				s.sock.SkipBody()
				cmd.settle(err.xerror())
				return nil
			}
			pull.fixInput()
		}
	}
	err := f.readBody(s.sock, r.length, false)
	if f.bare && (err != nil || f.body[0] != cmd.packed.bodyCodec) {
		f.show(s)
		f.unpack(cmd)
		f.in.BodyCodec = ""
	}
	switch {
	case err == nil:
		if !f.bare {
			f.in.BodyCodec, _ = packet.RawBody(f.body).Codec()
		}
		cmd.settle(nil)
	case socket.Fatal(err):
		cmd.settle(newXerror(StatusConnClosed, "connection closed in the middle of the reply: "+err.Error(), err))
		return err
	default:
		cmd.settle(replyXerror(err))
	}
	return nil
}

// setInput makes a header that has been read the context's own. Its id is c.id.
func (c *packetCtx) setInput(v *packet.HeaderView, bodyLength int64, uri string) {
	c.inHdr = packet.Header{
		Id: c.id, Type: v.Type, Uri: uri, Gzip: v.Gzip, StatusCode: v.StatusCode, Status: string(v.Status), NotRun: v.NotRun,
	}
	c.in = packet.Packet{
		Header: &c.inHdr, HeaderCodec: v.Codec,
		HeaderLength: v.Length, BodyLength: bodyLength, Length: v.Length + bodyLength,
	}
}

// keepId sets x.id to a copy of id.
func (x *exchange) keepId(id []byte) {
	if len(id) > len(x.idText) {
		x.id = string(id)
		return
	}
	x.id = unsafe.String(&x.idText[0], copy(x.idText[:], id))
}

// numberId sets x.id to a pull's number.
func (x *exchange) numberId(n uint64) {
	x.id = unsafe.String(&x.idText[0], len(appendPullId(x.idText[:0], n)))
}

// addPublic adds what hooks have stored in another context.
func (c *packetCtx) addPublic(from *packetCtx) {
	if from.values != nil {
		public := c.Public()
		from.Public().Range(func(k, v interface{}) bool {
			public.Store(k, v)
			return true
		})
	}
}
