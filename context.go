package tp

import (
	"context"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/internal/calltable"
	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Ctx is what every hook and handler knows about its packet. It is one call's
// own and stays valid as long as it is held.
type Ctx interface {
	// Peer is the local peer.
	Peer() *Peer
	// Session is the session that the packet came or goes by.
	Session() *Session
	// Ip is the other side's address and port.
	Ip() string
	// Context ends with the call: when its handler has returned and the reply is sent,
	// when the caller's deadline passes or the caller gives up, and when the
	// connection ends; context.Cause says which. A pull by it inherits what is left of
	// the time. Of a packet that this side sends it is the context that was given.
	Context() context.Context
	// Public holds values of this call alone, which its hooks and its handler share. At
	// first it is a copy of the session's; what is stored here no other call sees: values
	// for all calls belong into Session().Public(). A reply shares its pull's. The methods
	// of the map are Load, Store, LoadOrStore, Delete, Range, Random, Clear and Len, and
	// safe for concurrent use.
	Public() goutil.Map
}

// ReadCtx is what hooks see of a packet that is read.
type ReadCtx interface {
	Ctx
	// Input is the packet as far as it has been read: the header from
	// PostReadHeader on, the body from PostReadBody on. Until the handler runs
	// hooks may change it.
	Input() *packet.Packet
}

// WriteCtx is what hooks see of a packet that is sent.
type WriteCtx interface {
	Ctx
	// Output is the packet. Before it is encoded hooks may change it; its lengths
	// are set after that.
	Output() *packet.Packet
}

// PushCtx is what a push handler knows. A push controller embeds it.
type PushCtx interface {
	Ctx
	// Uri is the packet's URI: the path, unescaped, and ?query as it came, if there
	// was one.
	Uri() string
	// Path is the URI's path.
	Path() string
	// Meta is the metadata that came with the packet, see [WithMeta]; nil if there is
	// none. The map is the call's own.
	Meta() map[string]string
	// Query is the URI's query; pairs that are malformed are left out. The map is
	// the call's own.
	Query() url.Values
}

// PullCtx is what a pull handler knows. A pull controller embeds it.
type PullCtx interface {
	PushCtx
	// SetBodyCodec chooses the codec of the reply's body; without it the reply
	// has the pull's codec.
	SetBodyCodec(name string)
	// SetMeta sends a pair of metadata with the reply, errors included; see
	// [PullCmd.Meta].
	SetMeta(key, value string)
	// SetGzip chooses the compression of the reply's body, see [WithGzip];
	// without it the reply has the pull's.
	SetGzip(level int32)
}

// UnknownPushCtx is what a handler of unknown pushes knows.
type UnknownPushCtx interface {
	PushCtx
	// Input is the packet. Its body is nil until Unmarshal assigns it.
	Input() *packet.Packet
	// Unmarshal decodes b, a raw body with its codec id first, as the handler got
	// it, into v, and returns the codec's name. With true v also becomes the
	// input's body, so that the log shows it decoded.
	Unmarshal(b []byte, v interface{}, assignToInput ...bool) (codecName string, err error)
}

// UnknownPullCtx is what a handler of unknown pulls knows.
type UnknownPullCtx interface {
	PullCtx
	// Input is the packet. Its body is nil until Unmarshal assigns it.
	Input() *packet.Packet
	// Unmarshal decodes b, a raw body with its codec id first, as the handler got
	// it, into v, and returns the codec's name. With true v also becomes the
	// input's body, so that the log shows it decoded.
	Unmarshal(b []byte, v interface{}, assignToInput ...bool) (codecName string, err error)
}

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

// smallPacket is the size in bytes up to which a packet needs no other memory.
const smallPacket = 256

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
	x.raw.B = mem
	if err = sock.ReadBody(&x.raw); err == nil && keep {
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

func (j *job) call() *call           { return (*call)(j) }
func (j *job) Run()                  { j.call().handle() }
func (j *job) Drop()                 { j.call().drop() }
func (j *job) Waits()                { j.waited = true }
func (j *job) Cost() int64           { return j.held + j.raw.Cost() } // all that is taken for the call
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

func (c *call) Peer() *Peer            { return c.conn.peer }
func (c *call) Session() *Session      { return c.conn.sess }
func (c *call) Ip() string             { return c.conn.remoteIp() }
func (c *call) Input() *packet.Packet  { return &c.keep().in }
func (c *call) Output() *packet.Packet { return &c.keep().out }
func (c *call) Uri() string            { return c.uri }

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
	if assign && c.conn.prints(c.start) {
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
			c.conn.peer.logPanic(LevelCritical, "handling of", c.handler.path, p)
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
		c.conn.peer.rarely(LevelWarn, "push failed", "push %s from %s: %v", uriAttr(c.inHdr.Uri), slog.String("remote", c.Ip()), errAttr(x), slog.String("session", c.conn.sess.Id()))
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
		if c.conn.prints(c.start) {
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
			c.conn.peer.logPanic(LevelError, "handler of", c.handler.path, p)
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
