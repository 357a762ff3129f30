package tp

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"net/url"
	"sync"
	"time"
	"unsafe"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/internal/calltable"
	"github.com/henrylee2cn/teleport/internal/stream"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// call is one pull or push that was received, with the reply to a pull. It implements the contexts that
// hooks and handlers get. A call is never used again, because programs may keep their contexts.
type call struct {
	conn *conn
	// exchange is nil when the call is over, unless somebody has asked for a packet.
	*exchange

	handler *Handler
	uri     string // of what was received

	mu      sync.Mutex // guards the fields below
	sealed  bool       // the handler has returned: settings come too late
	over    bool       // the call has ended, and so has its context
	kept    bool       // a program has asked for a packet, and may keep it
	entered bool       // the call is in the connection's table of calls
	values  *values    // made by valuesLocked
}

// values are the parts of a call that most calls never need.
type values struct {
	gone   error // why nobody waits for the reply any more; nil if somebody may
	public goutil.Map
	query  url.Values
	stream *stream.Stream    // nil unless the call is one
	ctx    context.Context   // nil until asked for
	meta   map[string]string // of the input, kept when the exchange was given back
	own    *ownCtx           // what ctx is, if this side ends it
}

// exchange is the part of a call that is used again for another call: the two packets, the memory that small
// ones are in, and what the handling keeps beside them. Programs see only the packets; a call whose packets
// somebody has asked for keeps its exchange.
type exchange struct {
	transit
	// Memory for a small body that is received and for a small frame that is sent.
	bodyMem, frameMem [smallPacket]byte
}

// transit is the contents of an exchange, in a struct of its own so that put can clear it at once.
type transit struct {
	in, out       packet.Packet
	inHdr, outHdr packet.Header

	entry calltable.Entry[call]

	// id and typ are those of the input as it was received, so that no hook can change whom the reply
	// goes to.
	id     string
	idText [20]byte // holds id if that fits
	typ    int32

	onReader bool   // the handler runs on the reading goroutine, which flushes the reply
	backlog  int    // bytes of output that waited when such a reply was queued
	timed    bool   // the handler's time is a sample for the route's pace
	refusal  Xerror // why the call has no handler
	failed   Xerror // why a push was not handled
	ran      bool   // the handler has begun
	offered  bool   // the reply must not wait for room in the output
	waited   bool   // a push that has waited for a worker

	raw  socket.Body // the input's body as it was received
	body []byte      // the body for an unknown handler, which may keep it
	held int64       // bytes taken from the connection's input budget, beside what raw has
	// unmarshalled is how many more bytes Unmarshal has taken; the call's mu guards it.
	unmarshalled int64
	lane         *workers.Lane    // in which the call waits for its turn; nil for none
	keyed        *workers.KeyLane // what lane belongs to, if it is that of a key
	owed         uint64           // credit that a push has cost, until it begins
	free         bool             // the call is too small to be counted in the budget
	inLane       bool             // it is the call's turn already
	start        time.Time        // zero unless the call is measured
	arrived      time.Duration    // when a pull with a timeout was received, since processStart
	received     time.Duration    // when all of it was received, since processStart, if somebody asks for it
	// printed is the input's body as the log shows it, made before the handler can change it. The call's
	// mu guards it.
	printed string
}

// readBody reads the body of the packet whose header was read last. With keep, for an unknown handler, the
// body is in memory that is not used again, because the handler may keep it.
func (x *exchange) readBody(sock *socket.Socket, length int64, keep bool) (err error) {
	mem := x.bodyMem[:0]
	if keep || length > smallPacket {
		mem = nil
	}
	if x.raw, err = sock.ReadBody(mem); err == nil && keep {
		x.raw.Detach()
		x.body = x.raw.B
	}
	return err
}

// put gives the exchange back to be used again. Nobody else may have it.
func (x *exchange) put() {
	x.transit = transit{}
	exchanges.Put(x)
}

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

func newReadCtx(cn *conn) *call {
	c := &call{conn: cn, exchange: exchanges.Get().(*exchange)}
	c.in.Header = &c.inHdr
	return c
}

// keep returns the exchange, which is not used again from now on: the program has a packet of it.
func (c *call) keep() *exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = true
	if c.exchange == nil {
		c.exchange = new(exchange)
		c.in.Header, c.out.Header = &c.inHdr, &c.outHdr
	}
	return c.exchange
}

// charge takes n bytes from the connection's budget for memory that the call keeps alive, until release. It
// reports false if the budget has not as much.
func (c *call) charge(n int64) bool {
	if !c.conn.inBudget.Take(n) {
		return false
	}
	c.held += n
	return true
}

// callCost is how many bytes a call takes beside its header and its body: 1.2 KB for the call itself, and
// about as much for a goroutine with a small stack, as most have.
const callCost = 5 << 9

// drop gives up a call that was counted and will not run.
func (c *call) drop() {
	cn := c.conn
	c.failed = newXerror(StatusOverloaded, "dropped", nil)
	c.release()
	cn.handlerDone()
}

// giveBack gives back what was taken for the call, except for what Unmarshal has taken.
func (c *call) giveBack() {
	c.raw.Release()
	if c.held > 0 {
		c.conn.inBudget.Give(c.held)
		c.held = 0
	}
}

// closeLocked ends the time in which Unmarshal may charge the call. It returns how many bytes Unmarshal has
// taken, which the caller gives back.
func (c *call) closeLocked() (charged int64) {
	c.sealed = true
	if c.exchange != nil {
		charged, c.unmarshalled = c.unmarshalled, 0
	}
	return charged
}

// release ends a call: nothing of this package needs the packets any more.
func (c *call) release() {
	c.giveBackKey()
	c.finished()
	c.giveBack()
	c.mu.Lock()
	charged := c.closeLocked()
	own := c.leaveLocked()
	x, kept := c.exchange, c.kept
	if !kept {
		if meta := x.inHdr.Meta; meta != nil {
			c.valuesLocked().meta = meta
		}
		c.exchange = nil
	}
	c.mu.Unlock()
	if charged > 0 {
		c.conn.inBudget.Give(charged)
	}
	if own != nil {
		own.cancelWith(errHandlerReturned)
	}
	if !kept {
		x.put()
	}
}

// fixOutput is called after hooks: one may have replaced the header, which is copied, or changed the id or
// the type, which are set again.
func (c *call) fixOutput(id string, typ int32) {
	if h := c.out.Header; h != nil && h != &c.outHdr {
		c.outHdr = *h
	}
	c.out.Header = &c.outHdr
	c.outHdr.Id, c.outHdr.Type = id, typ
}

// fixInput is fixOutput for a header that was read.
func (c *call) fixInput() {
	if h := c.in.Header; h != nil && h != &c.inHdr {
		c.inHdr = *h
	}
	c.in.Header = &c.inHdr
	c.inHdr.Id, c.inHdr.Type = c.id, c.typ
	c.uri = c.inHdr.Uri
}

func (c *call) Peer() *Peer { return c.conn.peer }

func (c *call) lines() *lines     { return &c.conn.peer.log }
func (c *call) keepPackets()      { c.keep() }
func (c *call) Session() *Session { return c.conn.sess }

func (c *call) Ip() string { return c.conn.remoteIp() }

func (c *call) Input() *packet.Packet { return &c.keep().in }

func (c *call) Output() *packet.Packet { return &c.keep().out }

func (c *call) Public() goutil.Map {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.valuesLocked()
	if v.public == nil {
		v.public = c.conn.sess.copyPublic()
	}
	return v.public
}

func (c *call) valuesLocked() *values {
	if c.values == nil {
		c.values = new(values)
	}
	return c.values
}

// handle does the rest of a pull or a push when its body was received: hooks, decoding, handler, reply. It
// runs at the top of a worker's goroutine or, for a quick route, on the reading goroutine. There it returns
// how many bytes of output wait.
func (c *call) handle() (waiting int) {
	var lane *workers.Lane // that it leaves; the pool does that for a call that it counts
	if c.onReader && c.inLane {
		lane = c.lane
	}
	defer func() {
		if lane != nil {
			c.conn.peer.workers.Leave(lane)
		}
		c.conn.handlerDone()
	}()
	if c.refusal != nil {
		c.prepareReply()
		c.reply(nil, c.refusal)
		c.logHandled(c.refusal)
		c.release()
		return 0
	}
	if (c.waited || c.lane != nil) && c.conn.peer.over.Load() { // and none is skipped before one that is not
		c.failed = newXerror(StatusConnClosed, "not handled, as the peer was closed", nil)
		c.release()
		return 0
	}
	c.begins()
	pull := c.handler.pull
	if pull {
		c.prepareReply()
		if c.inHdr.Load != 0 {
			c.conn.peer.load.began(c.received, c.onReader)
		}
	}
	processed, released := false, false
	defer func() {
		if processed {
			if !released { // a codec has called runtime.Goexit, and the pull is answered
				c.leave()
			}
			return
		}
		// A hook or the handler has called runtime.Goexit, or something here has
		// panicked, which must not end the process.
		if p := recover(); p != nil {
			c.conn.peer.log.panicked(LevelCritical, "handling of", c.handler.path, p)
		}
		c.seal()
		if pull {
			c.reply(nil, newXerror(StatusInternalServerError, "", nil))
		}
		c.leave()
	}()
	var began time.Time
	if c.timed {
		began = time.Now()
	}
	reply, x := c.process()
	if c.timed {
		c.handler.pace.Sample(time.Since(began))
	}
	c.seal()
	processed = true
	if !c.handler.unknown { // which may reply with it
		c.raw.Release() // if the body was not decoded
	}
	if pull {
		c.reply(reply, x)
	} else if x != nil {
		c.failed = x
		c.conn.peer.log.rarely(LevelWarn, "push failed", "push %s from %s: %v", uriAttr(c.inHdr.Uri),
			slog.String("remote", c.Ip()), errAttr(x), slog.String("session", c.conn.sess.Id()))
	}
	c.logHandled(x)
	waiting = c.backlog
	released = true
	c.release()
	return waiting
}

// begins gives back the credit of a push, which does not wait any more.
func (c *call) begins() {
	c.conn.flow.Handled(c.owed)
	c.owed = 0
}

// process runs the hooks and the handler. It returns the reply's body, or the error that is the reply.
func (c *call) process() (interface{}, Xerror) {
	h := c.handler
	if err := h.chain.preReadBody.run(c); err != nil {
		return nil, err.xerror()
	}
	var arg interface{} = &c.body
	if h.stream {
		c.raw.Release()
	} else if h.unknown {
		c.keep()
	} else {
		arg = h.newArg()
		if err := c.decodeOrWait(h.into(arg)); err != nil {
			return nil, bodyXerror(err)
		}
		c.raw.Release()
		c.in.Body = arg
		if c.conn.peer.packetLog.prints(c.start) {
			c.printed = printBody(arg)
		}
	}
	if err := h.chain.postReadBody.run(c); err != nil {
		return nil, err.xerror()
	}
	return c.callHandler(arg)
}

// decodeOrWait is decode. A push, which nobody would hear of, waits for memory that other calls give back;
// but not on the goroutine that reads, which they may need.
func (c *call) decodeOrWait(v interface{}) error {
	err := c.decode(v)
	if err != nil && !c.handler.pull && !c.onReader && errors.Is(err, packet.ErrBudget) {
		waitUntil(defaultWriteTimeout, func() bool {
			err = c.decode(v)
			return !errors.Is(err, packet.ErrBudget)
		})
	}
	return err
}

// decode decodes the body into v, and charges the call with the memory that v takes.
func (c *call) decode(v interface{}) error {
	if c.free {
		_, err := packet.DecodeBody(c.raw.B, 0, v, c.conn.peer.freeLimits)
		return err
	}
	limits := c.conn.sock.Limits()
	if c.raw.HandOver(v, c.inHdr.Gzip, limits) {
		c.held += c.raw.TakeCost()
		return nil
	}
	_, cost, err := packet.DecodeCharged(c.raw.B, c.inHdr.Gzip, v, limits)
	c.held += cost
	return err
}

// callHandler runs the program's function. A panic becomes StatusInternalServerError; its cause does not
// go to the other side.
func (c *call) callHandler(arg interface{}) (reply interface{}, x Xerror) {
	returned := false
	defer func() {
		if !returned { // recover returns nil after panic(nil) with GODEBUG=panicnil=1
			p := recover()
			c.conn.peer.log.panicked(LevelError, "handler of", c.handler.path, p)
			reply, x = nil, newXerror(StatusInternalServerError, "", panicError(p))
		}
	}()
	c.ran = true
	reply, x = c.handler.call(c, arg)
	if x != nil { // the methods of the program's Xerror may panic too: they are called here only
		x = &xerror{code: x.Code(), text: x.Text(), cause: x}
	}
	returned = true
	return reply, x
}

// seal ends the time in which SetMeta, SetBodyCodec and SetGzip have an effect.
func (c *call) seal() {
	c.mu.Lock()
	c.sealed = true
	c.mu.Unlock()
}

// Context returns the call's context, made when it is first asked for.
func (c *call) Context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.valuesLocked()
	if v.ctx != nil {
		return v.ctx
	}
	if c.exchange == nil || c.over {
		own := newOwnCtx(time.Time{})
		own.cancelWith(errHandlerReturned)
		v.ctx = own
		return own
	}
	if c.typ == 0 { // nothing has come yet
		return context.Background()
	}
	own := newOwnCtx(c.deadlineLocked())
	v.ctx, v.own = own, own
	switch {
	case v.gone != nil:
		own.cancelWith(v.gone)
	case !c.enterLocked():
		own.cancelWith(ErrSessionEnded)
	}
	return own
}

// leave ends a call whose packets the program may have: its context ends, and a context that is asked for
// later has ended.
func (c *call) leave() {
	c.giveBackKey()
	c.finished()
	c.giveBack()
	c.mu.Lock()
	charged := c.closeLocked()
	own := c.leaveLocked()
	c.mu.Unlock()
	c.conn.inBudget.Give(charged)
	if own != nil {
		own.cancelWith(errHandlerReturned)
	}
}

// giveBackKey says that the call does not need the line of its key any more.
func (c *call) giveBackKey() {
	if k := c.keyed; k != nil {
		c.keyed = nil
		k.Of().GiveBack(k)
	}
}

// leaveLocked returns the context that the caller is to end, nil if there is none.
func (c *call) leaveLocked() *ownCtx {
	c.over = true
	if c.entered {
		c.entered = false
		c.conn.calls.Remove(&c.entry)
	}
	if c.values == nil {
		return nil
	}
	return c.values.own
}

// enter puts the call into the table of calls, so that the other side can cancel it.
func (c *call) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over && !c.enterLocked() {
		c.valuesLocked().gone = ErrSessionEnded
	}
}

// enterLocked reports false if the connection has ended.
func (c *call) enterLocked() bool {
	if !c.entered {
		c.entered = c.conn.calls.Add(&c.entry, maphash.String(idSeed, c.id), c)
	}
	return c.entered
}

// idSeed makes it hard for the other side to choose ids that fall into one bucket of a table of calls.
var idSeed = maphash.MakeSeed()

// callerGone tells the call that nobody waits for its reply any more, if it is the pull with the id. With
// a nil id any call is told.
func (c *call) callerGone(id []byte, cause error) {
	c.mu.Lock()
	var own *ownCtx
	if !c.over && (id == nil || c.typ != packet.TypePush && c.id == string(id)) {
		v := c.valuesLocked()
		if v.gone == nil {
			v.gone = cause
		}
		own = v.own
	}
	c.mu.Unlock()
	if own != nil {
		own.cancelWith(cause)
	}
}

// endCalls ends the contexts of all calls in the table.
func (cn *conn) endCalls() {
	for _, c := range cn.calls.Close() {
		c.callerGone(nil, ErrSessionEnded)
	}
}

// deadlineLocked returns the caller's deadline by this side's clock; zero if there is none.
func (c *call) deadlineLocked() time.Time {
	if c.arrived == 0 { // a hook has put in a timeout
		c.arrived = time.Since(processStart)
	}
	return deadlineOf(c.inHdr.Timeout, c.arrived)
}

// kind names the packet in logs.
func (c *call) kind() string {
	return kindOf(c.typ)
}

// kindOf names a packet of the type in logs.
func kindOf(typ int32) string {
	switch typ {
	case packet.TypePush:
		return "push"
	case packet.TypeOpen:
		return "stream"
	}
	return "pull"
}

// setInput sets the input to the header that was read, with the id that keepId has kept.
func (c *call) setInput(v *packet.HeaderView, bodyLength int64, uri string) {
	c.inHdr = packet.Header{
		Id: c.id, Type: v.Type, Uri: uri, Gzip: v.Gzip, StatusCode: v.StatusCode, Status: string(v.Status),
		Timeout: v.Timeout, Meta: v.Meta, NotRun: v.NotRun, Load: v.Load, QueueDelay: v.QueueDelay,
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

// logHandled logs a pull or a push that was received and handled.
func (c *call) logHandled(x Xerror) {
	if c.start.IsZero() {
		return
	}
	line := packetLine{
		start: c.start, printed: c.printed, message: c.kind() + " handled", what: c.kind() + "-handle",
		kind: c.kind(),
		uri:  c.inHdr.Uri,
		code: c.outHdr.StatusCode, status: c.outHdr.Status, in: &c.in, out: &c.out,
	}
	if c.handler != nil {
		line.route = c.handler.path
	}
	if c.typ == packet.TypePush {
		line.code, line.status, line.out = 0, "", nil
		if x != nil {
			line.code, line.status = x.Code(), x.Text()
		}
	}
	c.conn.logPacket(line)
}
