package tp

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unsafe"

	"github.com/henrylee2cn/teleport/internal/rarely"
	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// reader is a goroutine that reads a session's packets and hands them on. It
// never waits for a handler for long: see inline.go. A session has one reader at
// a time.
type reader struct {
	l     *conn
	turn  role.Turn
	dirty bool // replies of quick handlers are queued
	began bool // a packet has been read
	// pending is set when the header of a packet has been read, and that is all.
	pending bool
	view    packet.HeaderView // of the packet that is being read
	length  int64             // of its body
}

// read reads packets until the connection ends, or this reader is replaced by
// another. The first one is started by the peer, after the handshake.
func (cn *conn) read(replaces bool) { newReader(cn, replaces).read() }

func newReader(cn *conn, replaces bool) *reader {
	return &reader{l: cn, turn: cn.role.Begin(&cn.peer.watch), dirty: replaces}
}

func (r *reader) read() {
	cn := r.l
	var err error
	defer func() {
		p := recover()
		if p != nil { // a defect here must not end the process
			cn.peer.logPanic(LevelCritical, "reading", "", p)
			err = fmt.Errorf("reading panicked")
		}
		inHandler := r.turn.Away() // which has called runtime.Goexit
		if err == errReplaced {
			return
		}
		if inHandler && !r.leave() {
			cn.flush() // the other reader may have done so before there was a reply
			return
		}
		r.turn.Unwatch()
		if inHandler {
			go cn.read(true)
			return
		}
		if errors.Is(err, socket.ErrClosed) {
			err = errClosedHere
		}
		if errors.Is(err, packet.ErrTLS) { // who waits for a handshake then sees what comes instead
			cn.sendControl(&packet.Header{Type: packet.TypeGoAway})
		}
		cn.farewell(err)
		_ = cn.fail(err)
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
func (r *reader) await() (c *call, err error) {
	cn := r.l
	buffered := r.pending || cn.sock.Buffered()
	if !buffered {
		if err := r.rest(); err != nil {
			return nil, err
		}
	}
	cn.restWhileFull()
	if hooks := cn.peer.chain.preReadHeader; len(hooks) > 0 {
		c = newReadCtx(cn)
		if err := hooks.run(c); err != nil {
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
	if err = cn.sock.Await(quiet); err == socket.ErrQuiet {
		go cn.read(false)
		err = errReplaced
	}
	return nil, err
}

// next reads one packet and hands it on; c is that of await. An error ends the
// reader.
func (r *reader) next(c *call) error {
	cn := r.l
	var err error
	if r.pending {
		r.pending = false
	} else if r.length, err = cn.sock.ReadHeaderView(&r.view); err != nil {
		return err
	}
	r.began = true
	switch r.view.Type {
	case packet.TypeReply:
		return r.reply(c)
	case packet.TypePull:
		return r.call(c, cn.peer.PullRouter.routes.table.Load())
	case packet.TypePush:
		cn.pushesRead++
		return r.call(c, cn.peer.PushRouter.routes.table.Load())
	case packet.TypeCancel:
		cn.sock.SkipBody()
		cn.heardCancel(r.view.Id)
		return nil
	case packet.TypePing:
		cn.sock.SkipBody()
		if len(r.view.Id) > 0 {
			r.dirty = true
			_ = cn.answer(string(r.view.Id), r.view.Codec) // which ends the session if there is no room
		}
		return nil
	case packet.TypeGoAway:
		cn.sock.SkipBody()
		cn.heardFarewell(r.view.StatusCode, r.view.Meta)
		cn.heardGoAway(r.view.StatusCode == StatusOK)
		return nil
	}
	// An answer to what this side does not know is a reply, and a reply is never
	// answered: two peers cannot keep each other busy.
	cn.sock.SkipBody()
	c = r.input(c, string(r.view.Uri))
	logf(LevelDebug, "packet of unknown type dropped", "session %s: packet of unknown type %d dropped", slog.String("session", cn.sess.Id()), slog.Int("type", int(c.typ)), slog.String("remote", c.Ip()))
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
		if !r.enter(nil, nil) {
			go r.l.flush()
			return nil
		}
		r.l.flush()
		if !r.leave() {
			return errReplaced
		}
	}
	r.turn.Unwatch()
	return nil
}

// input returns the context of a packet whose header has been read: c if hooks
// have seen it already.
func (r *reader) input(c *call, uri string) *call {
	if c == nil {
		c = newReadCtx(r.l)
	}
	v := &r.view
	c.keepId(v.Id)
	c.typ, c.uri = v.Type, uri
	c.setInput(v, r.length, uri)
	if v.Timeout > 0 {
		c.arrived = time.Since(processStart)
	}
	c.start = r.l.peer.startTime()
	return c
}

// call routes a pull or a push, reads its body and runs its handler, here or on
// a goroutine of its own.
func (r *reader) call(c *call, table *routeTable) error {
	cn := r.l
	h := table.handlers[string(r.view.Uri)]
	if h != nil {
		c = r.input(c, h.path) // which is the same text
	} else if canonical, err := canonicalURI(string(r.view.Uri)); err == nil {
		c = r.input(c, canonical)
	} else {
		c = r.input(c, string(r.view.Uri))
		return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
	}
	if err := packet.CheckGzip(c.inHdr.Gzip); err != nil {
		return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
	}
	if len(table.postReadHeader) > 0 {
		if err := table.postReadHeader.run(c); err != nil {
			logf(LevelDebug, "hook failed", "%s %s from %s: %v", slog.String("kind", c.kind()), uriAttr(c.inHdr.Uri), slog.String("remote", c.Ip()), errAttr(err), slog.String("session", cn.sess.Id()))
			return r.reject(c, err.xerror())
		}
		c.fixInput()
	}
	if h == nil || c.uri != h.path {
		canonical, err := canonicalURI(c.uri) // hooks may have put another one in
		if err != nil {
			return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
		}
		c.uri, c.inHdr.Uri = canonical, canonical
		path, _ := uri.Split(canonical)
		if h = table.find(path); h == nil {
			return r.reject(c, r.notFound(path))
		}
	}
	c.handler = h
	quick := h.pace.Quick() && !cn.sock.OutputFull()
	c.free = quick && h.small && r.small()
	if !c.free && !c.charge(callCost+headerCost(&r.view)) {
		return r.noMemory(c)
	}
	if err := c.readBody(cn.sock, r.length, h.unknown); err != nil {
		if socket.Fatal(err) {
			c.giveBack()
			return err
		}
		if errors.Is(err, packet.ErrBudget) {
			return r.noMemory(c)
		}
		return r.reject(c, bodyXerror(err))
	}
	// Counted first and checked second, while Shutdown does it the other way
	// round: one of the two sees the other.
	cn.handlers.Add(1)
	if cn.peer.draining() && c.typ == packet.TypePull {
		cn.goAway(false) // if Shutdown has not come to it yet: a refusal comes after it
		r.refuse(c, newXerror(StatusServiceUnavailable, "shutting down, the pull was not run", nil))
		cn.handlerDone()
		return nil
	}
	c.in.BodyCodec, _ = packet.RawBody(c.raw.B).Codec()
	if quick && r.enter(h, c) {
		c.timed = h.pace.Timed(true)
		return r.runQuick(c)
	}
	if c.free { // no place to be watched in: a worker runs it
		c.free = false
		c.held += callCost
		cn.inBudget.Force(callCost)
	}
	c.timed = h.pace.Timed(false)
	c.enter()
	if c.typ == packet.TypePull && cn.unread() {
		r.refuse(c, newXerror(StatusOverloaded, "the replies are not read, the pull was not run", nil))
		cn.handlerDone()
		return nil
	}
	switch cn.peer.workers.Run((*job)(c)) {
	case workers.Overloaded:
		r.refuse(c, newXerror(StatusOverloaded, "too many handlers are running, the pull was not run", nil))
		cn.handlerDone()
	case workers.Overflown:
		c.drop()
		return r.overflow(1)
	}
	return nil
}

// notFound says that nothing serves the path, to which hooks may have led, of the URI that has
// come.
func (r *reader) notFound(path string) Xerror {
	p := r.l.peer
	kind, other, others := "pulls", "pushes", p.PushRouter.routes
	if r.view.Type == packet.TypePush {
		kind, other, others = "pushes", "pulls", p.PullRouter.routes
	}
	text := fmt.Sprintf("not found: nothing here takes %s to %q", kind, quote(uri.WithoutQuery(string(r.view.Uri))))
	if others.table.Load().handlers[path] != nil {
		text += ", it is a route for " + other
	}
	return newXerror(StatusNotFound, text, nil)
}

// small reports whether what a packet takes is too little to be counted, while it is on
// the reading goroutine: there is one of them a session.
func (r *reader) small() bool {
	v := &r.view
	return r.length <= smallPacket && v.Length <= smallPacket && v.Gzip == 0 && len(v.Meta) == 0
}

// headerCost is what a header takes in memory when it is kept.
func headerCost(v *packet.HeaderView) int64 {
	const pair = 100 // of a map of strings, beside the texts
	return v.Length + pair*int64(len(v.Meta))
}

// noMemory ends a packet for which the budget has no memory left. A push is never lost
// without a word: the session ends with it.
func (r *reader) noMemory(c *call) error {
	if c.typ == packet.TypePush {
		c.release()
		return r.overflow(1)
	}
	return r.reject(c, newXerror(StatusOverloaded, "there is no memory for it, the pull was not run", packet.ErrBudget))
}

// overflow is the end of a session that has pushed more than may wait; so many pushes are
// lost beside those that wait.
func (r *reader) overflow(lost int) error {
	dropped := uint64(lost + r.l.peer.workers.DropPushes(&r.l.queue))
	return &overflow{taken: r.l.pushesRead - dropped, dropped: dropped}
}

// run runs a quick handler.
func (r *reader) runQuick(c *call) error {
	c.onReader, r.dirty = true, true
	if waiting := c.handle(); waiting >= flushAt {
		r.l.flush()
		r.dirty = false
	}
	if !r.leave() {
		r.l.flush()
		return errReplaced
	}
	return nil
}

// flushAt is how many bytes of replies are not held back any longer.
const flushAt = 64 << 10

// kind names the packet in logs.
func (c *call) kind() string {
	if c.typ == packet.TypePush {
		return "push"
	}
	return "pull"
}

// reject ends a pull or push before its handler: the pull is answered and the
// push logged. The session lives on.
func (r *reader) reject(c *call, x Xerror) error {
	r.l.sock.SkipBody()
	if c.typ == packet.TypePush {
		r.l.peer.rarely(LevelWarn, "push dropped", "push %s from %s dropped: %v", uriAttr(c.inHdr.Uri), slog.String("remote", c.Ip()), errAttr(x), slog.String("session", r.l.sess.Id()))
		c.release()
		return nil
	}
	r.refuse(c, x)
	return nil
}

// refuse answers a packet that no handler is for. The reader never waits for the
// other side to read: where there are hooks a worker writes the reply, unless there
// are too many already, and if there is no room for it the session ends.
func (r *reader) refuse(c *call, x Xerror) {
	cn := r.l
	c.raw.Release()
	c.refusal = x
	if x.Code() == StatusOverloaded {
		cn.refusedForALimit(c, x)
	}
	if chain := c.replyChain(); len(chain.preWriteReply)+len(chain.postWriteReply) > 0 && x.Code() != StatusOverloaded && (c.held > 0 || c.charge(callCost)) {
		cn.handlers.Add(1)
		c.enter()
		if cn.peer.workers.Run((*job)(c)) == workers.Accepted {
			return
		}
		cn.handlerDone()
	}
	c.prepareReply()
	c.setReply(nil, x)
	r.dirty = true
	c.offered = true
	_ = c.writeReply() // which ends the session if there is no room
	c.logHandled(x)
	c.release()
}

// refusedForALimit logs that, once a second with the count of the others.
func (cn *conn) refusedForALimit(c *call, x Xerror) {
	const format = "%s %s from %s refused: %v"
	if !logEnabled(LevelWarn) {
		return
	}
	if left, ok := cn.peer.lines.Allow(lineKind{format: format}); ok {
		attrs := []slog.Attr{slog.String("kind", c.kind()), uriAttr(c.inHdr.Uri), slog.String("remote", c.Ip()), errAttr(x), slog.String("session", cn.sess.Id())}
		logLine(LevelWarn, "refused for a limit", lineOf(format, attrs)+rarely.More(left), withLeft(attrs, left))
	}
}

// reply hands a reply to the pull that waits for it. The context c is that of
// PreReadHeader hooks; nil if there are none.
func (r *reader) reply(c *call) error {
	cn, v := r.l, &r.view
	id, ok := parsePullId(v.Id)
	var late *socket.Body // that had not come with its header
	var err error
	if !cn.sock.BodyBuffered() {
		cn.handlers.Add(1) // so that Shutdown waits for the body too
		defer cn.handlerDone()
		if ok && cn.pulls.Has(id) { // until the body has come, whoever waits for the pull may give up
			v.Id, v.Uri, v.Status = bytes.Clone(v.Id), bytes.Clone(v.Uri), bytes.Clone(v.Status) // which last until the next read
			late = new(socket.Body)
			if err = cn.sock.ReadBody(late); socket.Fatal(err) {
				return fmt.Errorf("in the middle of a reply: %w", err)
			}
		}
	}
	var pd *pending
	if ok {
		pd = cn.takePull(id)
	}
	if pd == nil {
		if late != nil {
			late.Release()
		}
		return r.strayReply()
	}
	pd.received(v, r.length)
	if o := pd.seen; o != nil {
		if c != nil {
			o.addPublic(c)
		}
		if err := cn.peer.chain.postReadHeader.run(o); err != nil {
			cn.sock.SkipBody()
			if late != nil {
				late.Release()
			}
			pd.complete(err.xerror())
			return nil
		}
		o.in.fix(o.out.header.Id, packet.TypeReply)
	}
	if late != nil {
		pd.body = *late
	} else {
		pd.body.B = pd.bodyMem[:0]
		err = cn.sock.ReadBody(&pd.body)
	}
	switch {
	case err == nil:
		pd.receivedBody()
		pd.complete(nil)
	case socket.Fatal(err):
		pd.complete(newXerror(StatusConnClosed, "connection closed in the middle of the reply: "+err.Error(), err))
		return err
	default:
		pd.complete(replyXerror(err))
	}
	return nil
}

// strayReply passes over a reply that no pull waits for, or takes the reply that ends a handshake.
func (r *reader) strayReply() error {
	cn, id := r.l, r.view.Id
	if string(id) == refusedId && cn.pushesRead == 0 {
		return r.refusal()
	}
	cn.sock.SkipBody()
	logf(LevelDebug, "reply to no pull in flight dropped", "session %s: reply %s to no pull in flight dropped", slog.String("session", cn.sess.Id()), slog.String("id", string(id)), slog.String("remote", cn.remoteIp()))
	return nil
}

// setInput makes a header that has been read the context's own. Its id is c.id.
func (c *call) setInput(v *packet.HeaderView, bodyLength int64, uri string) {
	c.inHdr = packet.Header{
		Id: c.id, Type: v.Type, Uri: uri, Gzip: v.Gzip, StatusCode: v.StatusCode, Status: string(v.Status), Timeout: v.Timeout, Meta: v.Meta, NotRun: v.NotRun,
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

// addPublic adds what hooks have stored in another context.
func (o *outgoing) addPublic(from *call) {
	if from.values != nil {
		public := o.Public()
		from.Public().Range(func(k, v interface{}) bool {
			public.Store(k, v)
			return true
		})
	}
}
