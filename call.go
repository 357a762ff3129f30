package tp

import (
	"context"
	"hash/maphash"
	"log/slog"
	"net/url"
	"sync"
	"time"
	"unsafe"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/internal/calltable"
	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// call is one packet received, with the reply to it, or one packet sent. It
// implements all the contexts and is never reused, as users may hold it.
type call struct {
	conn *conn
	// exchange is nil when the call is over and nobody has asked for a packet.
	*exchange

	handler *Handler
	uri     string // of what was received

	mu      sync.Mutex // guards the fields below
	sealed  bool       // the handler has returned, settings come too late
	over    bool       // the call is, and so is its context
	kept    bool       // a packet was asked for
	entered bool       // in the connection's call table
	values  *values    // made when asked for
}

// values is what few handlers ask for, or callers cause.
type values struct {
	gone   error // why nobody waits for the call any more; nil if somebody may
	public goutil.Map
	query  url.Values
	ctx    context.Context
	meta   map[string]string
	own    *ownCtx // that ctx is, of a packet that was received
}

// exchange is what of a call users do not see, but for the packets. Most
// handlers do not ask for those, so it is used again.
type exchange struct {
	transit
	// Memory for a small body that is received and for a small frame that is sent.
	bodyMem, frameMem [smallPacket]byte
}

// transit is what is in an exchange.
type transit struct {
	in, out       packet.Packet
	inHdr, outHdr packet.Header

	entry calltable.Entry[call]

	// id is the input's as it came: hooks cannot change whom the reply goes to. A
	// pull of this side's has the same in both packets.
	id     string
	idText [20]byte // where id is, if it fits
	typ    int32    // the input's, as it came

	onReader bool   // the handler runs on the reading goroutine, which will flush,
	backlog  int    // and this is how much output there was when its reply was queued
	timed    bool   // it is a sample for the route's pace
	refusal  Xerror // why there is no handler
	ran      bool   // the handler has begun
	offered  bool   // the reply must not wait for room in the output
	waited   bool   // a push that could not be handled at once

	raw  socket.Body // the input's raw body
	body []byte      // that of an unknown handler, which may keep it
	held int64       // taken from the connection's input budget, beside what raw has
	// unmarshalled is the same, by Unmarshal; the context's mu guards it.
	unmarshalled int64
	free         bool      // what the call takes is too little to be counted
	start        time.Time // zero unless it is measured
	// arrived is when a pull with a timeout did, since processStart.
	arrived time.Duration
	// printed is the input's body as the log shows it, made before the handler
	// gets to change it. The context's mu guards it.
	printed string
}

// readBody reads the body of a packet whose header was read last. An unknown handler may
// keep it: then it is in memory that is used once.
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

// put gives an exchange back that nobody else has.
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

// keep returns the packets, which are the caller's too from now on.
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

// charge takes memory that the call keeps alive from the connection's budget, until release. It
// reports false if there is not so much.
func (c *call) charge(n int64) bool {
	if !c.conn.inBudget.Take(n) {
		return false
	}
	c.held += n
	return true
}

// callCost is what a call takes beside its header and its body: its contexts, 1.2 KB,
// and about as much for the goroutine, of which most have a small stack.
const callCost = 5 << 9

// job is a call as the pool of workers has it: a type of its own, whose methods programs do not find in
// their contexts.
type job call

func (j *job) call() *call { return (*call)(j) }

func (j *job) Run() { j.call().handle() }

func (j *job) Drop() { j.call().drop() }

func (j *job) Waits() { j.waited = true }

func (j *job) Cost() int64 { return j.held + j.raw.Cost() } // all that is taken for the call

func (j *job) Queue() *workers.Queue { return &j.conn.queue }

func (j *job) Kind() workers.Kind {
	switch {
	case j.refusal != nil:
		return workers.Refusal
	case j.typ == packet.TypePull:
		return workers.Pull
	}
	return workers.Push
}

// drop gives up a call that was counted and will not run.
func (c *call) drop() {
	cn := c.conn
	c.release()
	cn.handlerDone()
}

// settle gives back what was taken for the call, but for what Unmarshal has taken.
func (c *call) giveBack() {
	c.raw.Release()
	if c.held > 0 {
		c.conn.inBudget.Give(c.held)
		c.held = 0
	}
}

// closeLocked is the end of what Unmarshal may charge to the call; what it has is to be
// given back.
func (c *call) closeLocked() (charged int64) {
	c.sealed = true
	if c.exchange != nil {
		charged, c.unmarshalled = c.unmarshalled, 0
	}
	return charged
}

// release is the end of a call whose packets are not needed any more.
func (c *call) release() {
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

// fixOutput is called after hooks, which may have put another header in, or
// changed what must not change.
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

func (c *call) Uri() string { return c.uri }

func (c *call) Path() string {
	path, _ := uri.Split(c.uri)
	return path
}

func (c *call) Public() goutil.Map {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.valuesLocked()
	if v.public == nil {
		v.public = c.conn.sess.copyPublic()
	}
	return v.public
}

func (c *call) Query() url.Values {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.valuesLocked()
	if v.query == nil {
		_, rawQuery := uri.Split(c.uri)
		v.query, _ = url.ParseQuery(rawQuery)
	}
	return v.query
}

func (c *call) valuesLocked() *values {
	if c.values == nil {
		c.values = new(values)
	}
	return c.values
}

// Meta keeps what release would let go.
func (c *call) Meta() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exchange != nil {
		return c.inHdr.Meta
	}
	if c.values == nil {
		return nil
	}
	return c.values.meta
}

func (c *call) SetMeta(key, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed {
		return
	}
	if c.outHdr.Meta == nil {
		c.outHdr.Meta = make(map[string]string)
	}
	c.outHdr.Meta[key] = value
}

func (c *call) SetBodyCodec(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sealed {
		c.out.BodyCodec = name
	}
}

func (c *call) SetGzip(level int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sealed {
		c.outHdr.Gzip = level
	}
}

func (c *call) Unmarshal(b []byte, v interface{}, assignToInput ...bool) (string, error) {
	name, cost, err := packet.DecodeCharged(b, c.inHdr.Gzip, v, c.conn.sock.Limits())
	assign := err == nil && len(assignToInput) > 0 && assignToInput[0]
	printed := ""
	if assign && c.conn.peer.packetLog.prints(c.start) {
		printed = printBody(v)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed { // the call's account is closed
		c.conn.inBudget.Give(cost)
		return name, err
	}
	c.unmarshalled += cost
	if assign {
		c.in.Body = v
		if printed != "" {
			c.printed = printed
		}
	}
	return name, err
}

// handle runs the rest of a pull or a push after its body has arrived: hooks,
// decoding, handler, reply. It is the top of a goroutine, or a quick route's call
// on the reading one.
// It returns how much output waits, of a quick one.
func (c *call) handle() (waiting int) {
	defer c.conn.handlerDone()
	if c.refusal != nil {
		c.prepareReply()
		c.reply(nil, c.refusal)
		c.logHandled(c.refusal)
		c.release()
		return 0
	}
	if c.waited && c.conn.peer.over.Load() {
		c.release()
		return 0
	}
	pull := c.handler.pull
	if pull {
		c.prepareReply()
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
		c.raw.Release() // it may not have been decoded
	}
	if pull {
		c.reply(reply, x)
	} else if x != nil {
		c.conn.peer.log.rarely(LevelWarn, "push failed", "push %s from %s: %v", uriAttr(c.inHdr.Uri), slog.String("remote", c.Ip()), errAttr(x), slog.String("session", c.conn.sess.Id()))
	}
	c.logHandled(x)
	waiting = c.backlog
	released = true
	c.release()
	return waiting
}

// process ends with the reply's body or with why there is none.
func (c *call) process() (interface{}, Xerror) {
	h := c.handler
	if err := h.chain.preReadBody.run(c); err != nil {
		return nil, err.xerror()
	}
	var arg interface{} = &c.body
	if h.unknown {
		c.keep()
	} else {
		arg = h.newArg()
		if err := c.decode(h.into(arg)); err != nil {
			return nil, bodyXerror(err)
		}
		c.raw.Release() // it is not needed any more
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

// decode decodes the body into v, which is charged to the call.
func (c *call) decode(v interface{}) error {
	if c.free {
		_, err := packet.DecodeBody(c.raw.B, 0, v, c.conn.peer.freeLimits)
		return err
	}
	_, cost, err := packet.DecodeCharged(c.raw.B, c.inHdr.Gzip, v, c.conn.sock.Limits())
	c.held += cost
	return err
}

// callHandler runs the user's function; its panic becomes a 500 whose cause
// stays here.
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
	if x != nil { // its methods may panic too; they are called here and never again
		x = &xerror{code: x.Code(), text: x.Text(), cause: x}
	}
	returned = true
	return reply, x
}

// seal ends the time in which the handler's settings count.
func (c *call) seal() {
	c.mu.Lock()
	c.sealed = true
	c.mu.Unlock()
}

// Context is the call's.
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
	if c.typ != packet.TypePull && c.typ != packet.TypePush { // nothing has come yet
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

// leave is the end of a call: its context ends, and who asks for it later finds it
// ended.
func (c *call) leave() {
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

// enter takes the call in among those that are told of their ends.
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

// idSeed makes it hard to choose ids that meet in one place of a table of calls.
var idSeed = maphash.MakeSeed()

// end tells the call that nobody waits for it any more, if it is the pull with the id, or whatever it is
// where that is nil.
func (c *call) callerGone(id []byte, cause error) {
	c.mu.Lock()
	var own *ownCtx
	if !c.over && (id == nil || c.typ == packet.TypePull && c.id == string(id)) {
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

// endCalls ends the contexts of all calls.
func (cn *conn) endCalls() {
	for _, c := range cn.calls.Close() {
		c.callerGone(nil, ErrSessionEnded)
	}
}

// deadlineLocked is the caller's, as this side knows it; zero if there is none.
func (c *call) deadlineLocked() time.Time {
	if c.arrived == 0 { // a hook has put in a timeout
		c.arrived = time.Since(processStart)
	}
	return deadlineOf(c.inHdr.Timeout, c.arrived)
}

// kind names the packet in logs.
func (c *call) kind() string {
	if c.typ == packet.TypePush {
		return "push"
	}
	return "pull"
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

// logHandled logs a pull or a push that this side was sent.
func (c *call) logHandled(x Xerror) {
	if c.start.IsZero() {
		return
	}
	line := packetLine{
		start: c.start, printed: c.printed, message: "pull handled", what: "pull-handle", kind: "pull", uri: c.inHdr.Uri,
		code: c.outHdr.StatusCode, status: c.outHdr.Status, in: &c.in, out: &c.out,
	}
	if c.handler != nil {
		line.route = c.handler.path
	}
	if c.typ == packet.TypePush {
		line.message, line.what, line.kind, line.code, line.status, line.out = "push handled", "push-handle", "push", 0, "", nil
		if x != nil {
			line.code, line.status = x.Code(), x.Text()
		}
	}
	c.conn.logPacket(line)
}
