package tp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/stream"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// streamCore is a stream without the types of its values. A stream is a pull, with internal/stream for the
// values: it begins with a packet of type open, on which all that holds of pulls is done, and the reply ends
// it. The values go past the pull, by reader.value and streamCore.send.
type streamCore struct {
	at    *stream.Stream
	conn  *conn
	chain *pluginChain
	uri   string
	life  context.Context // ends with the stream
	typ   int32           // of the values that this side sends
	form  form            // of these values

	sending atomic.Bool // a goroutine is in send
	turn    atomic.Bool // a value was received since the last one was sent
	closed  atomic.Bool // CloseSend was called
	gaveUp  atomic.Bool // Close was called on the side that has opened it

	// Of the side that has opened the stream.
	pull *PullCmd
	stop context.CancelFunc // gives the stream up
	done chan struct{}      // closed when the pull is complete

	call *call // of the other side; nil where this side has opened the stream

	told  atomic.Pointer[toldCtx] // what Context returns; nil until asked for
	ended atomic.Bool             // the context ends at once
}

// toldCtx is the context of a stream, with the function that ends it.
type toldCtx struct {
	context.Context
	cancel context.CancelCauseFunc
}

// form is how values are encoded.
type form struct {
	headerCodec, bodyCodec string
	gzip                   int32
}

// RawValue is a value of a stream as it stands on the wire: its codec's id first, compressed if Gzip is not
// 0. Streams of RawValue neither encode nor decode. The memory of one that was received belongs to the
// program.
type RawValue struct {
	Body packet.RawBody
	Gzip int32
}

// openStream opens a stream by the session. Bytes says that the values are bytes, which the string codec
// leaves as they are.
func (s *Session) openStream(ctx context.Context, uri string, settings []PacketSetting,
	bytes bool) (*streamCore, Xerror) {
	ctx = orNone(ctx)
	cn := s.conn.Load()
	if s.redial != nil {
		var x Xerror
		if cn, x = s.redial.await(ctx, s.redial.patience(0)); x != nil {
			return nil, x
		}
	}
	if ctx.Err() != nil {
		return nil, notSent(ctx)
	}
	if x := cn.awaitWord(ctx); x != nil {
		return nil, x
	}
	c := &streamCore{conn: cn, chain: cn.peer.chain, uri: uri, typ: packet.TypeValue, at: new(stream.Stream),
		done: make(chan struct{})}
	var own ownPacket
	own.fill(&cn.peer.cfg, packet.TypeOpen, uri, nil, settings)
	c.form = form{own.packet.HeaderCodec, own.packet.BodyCodec, own.header.Gzip}
	of, err := codec.GetByName(c.form.bodyCodec) // which is for the other side's values too
	if err != nil {
		return nil, unrun(StatusUnsupportedCodec, "nothing was sent: "+err.Error(), err)
	}
	if bytes {
		c.form.bodyCodec = codec.NameString
	}
	c.life, c.stop = context.WithCancel(ctx)
	c.pull = &PullCmd{conn: cn, uri: uri, args: packet.RawBody{of.Id()}}
	pd := c.pull.newPending(c.life, false)
	pd.wire.open, pd.command = true, c
	if !c.pull.launch(c.life, pd, settings) {
		<-c.done
		return nil, c.pull.Xerror
	}
	return c, nil
}

// begins is called with the pull's id before the packet is sent.
func (c *streamCore) begins(id string) {
	c.at.Init(c.conn, id, false, &c.conn.inBudget)
	c.conn.streams.Add(c.at, -1)
}

// deliver is called when the pull is complete, see pending.
func (c *streamCore) deliver(pd *pending) {
	finished := false
	defer func() {
		if !finished { // a hook has called runtime.Goexit, or something here has panicked
			if p := recover(); p != nil {
				c.conn.peer.log.panicked(LevelCritical, "stream", "", p)
			}
			c.pull.Xerror = newXerror(StatusFailedPlugin, "", nil)
		}
		c.complete()
	}()
	c.pull.finish(pd)
	finished = true
}

// complete ends the stream on the side that has opened it, when the pull is complete. What the other side has
// sent before its reply can still be received, unless this side has given up.
func (c *streamCore) complete() {
	c.conn.streams.Remove(c.at)
	if x := c.pull.Xerror; x != nil && x.Code() == StatusGatewayTimeout && c.overdue() {
		c.pull.Xerror = newXerror(StatusDeadlineExceeded, x.Text(), context.DeadlineExceeded)
	}
	close(c.done) // first: who receives the end, or cannot send any more, finds the stream over
	x := c.pull.Xerror
	if x == nil {
		c.at.Out.End(errOverStream)
		c.at.In.End(io.EOF)
	} else {
		c.at.Out.End(x) // before In: who has received the end can send nothing more
		switch {
		case c.gaveUp.Load(): // which says so itself
		case x.Code() == StatusCanceled || x.Code() == StatusDeadlineExceeded:
			c.at.In.Drop(x)
		default:
			c.at.In.End(x)
		}
	}
	c.end() // before stop, so that the context has this cause
	c.stop()
}

// overdue reports whether the stream's deadline has passed, or will in a moment: the two sides' clocks, and
// the times when they look at them, are not quite the same.
func (c *streamCore) overdue() bool {
	deadline, ok := c.life.Deadline()
	return ok && time.Until(deadline) < time.Second
}

var (
	errTwoSenders   = newXerror(StatusBadRequest, "two goroutines send values of one stream at a time", nil)
	errTwoReceivers = newXerror(StatusBadRequest, "two goroutines receive values of one stream at a time",
		nil)
	errClosedStream = newXerror(StatusCanceled, "the stream was closed by this side", ErrStreamClosed)
	errOverStream   = newXerror(StatusCanceled, "the stream is over", ErrStreamOver)
)

// serve runs fn with the stream of the call, on the side that has not opened the stream.
func (c *call) serve(bytes bool, fn func(*streamCore) Xerror) Xerror {
	s := &streamCore{conn: c.conn, chain: c.handler.chain, uri: c.uri, typ: packet.TypeAnswer, call: c,
		life: c.Context()}
	c.mu.Lock()
	s.at = c.values.stream
	s.form = form{c.in.HeaderCodec, c.out.BodyCodec, c.outHdr.Gzip}
	c.mu.Unlock()
	if bytes {
		s.form.bodyCodec = codec.NameString
	}
	unwatch := context.AfterFunc(s.life, s.callerGone)
	defer func() {
		unwatch()
		s.at.Out.End(errOverStream)
		s.at.In.End(errOverStream)
		s.end()
	}()
	x := fn(s)
	if x == nil && errors.Is(context.Cause(s.life), context.DeadlineExceeded) {
		// Most handlers return nil when they cannot go on. The other side must not take that for
		// the good end.
		return newXerror(StatusGatewayTimeout, "the time for the stream was over before its end", nil)
	}
	return x
}

// callerGone is called when the handler's context ends.
func (c *streamCore) callerGone() {
	var x *xerror
	switch cause := context.Cause(c.life); {
	case cause == errHandlerReturned:
		return
	case cause == ErrSessionEnded:
		x = newXerror(StatusConnClosed, "connection closed, the stream is over", cause)
		c.at.Out.End(x)
		c.at.In.End(x)
		return
	case errors.Is(cause, context.DeadlineExceeded):
		x = newXerror(StatusDeadlineExceeded, "the other side's time for the stream is over", cause)
	default:
		x = newXerror(StatusCanceled, "the other side has given the stream up", cause)
	}
	c.at.Out.End(x)
	c.at.In.Drop(x)
}

// over returns what Stream.Done returns.
func (c *streamCore) over() <-chan struct{} {
	if c.call != nil {
		return c.life.Done()
	}
	return c.done
}

// context returns what Stream.Context returns.
func (c *streamCore) context() context.Context {
	if ctx := c.told.Load(); ctx != nil {
		return ctx
	}
	ctx := new(toldCtx)
	ctx.Context, ctx.cancel = context.WithCancelCause(c.life)
	if !c.told.CompareAndSwap(nil, ctx) {
		ctx.cancel(nil)
		return c.told.Load()
	}
	if c.ended.Load() {
		ctx.cancel(ErrStreamOver)
	}
	c.at.OnAway(func() { ctx.cancel(ErrPeerClosed) })
	return ctx
}

// end ends the context that the program has, and one that it asks for later.
func (c *streamCore) end() {
	c.ended.Store(true)
	if ctx := c.told.Load(); ctx != nil {
		ctx.cancel(ErrStreamOver)
	}
}

// giveUp is Stream.Close.
func (c *streamCore) giveUp() error {
	c.closed.Store(true)
	c.at.Out.End(errClosedStream)
	if c.call != nil {
		c.at.Stop(errClosedStream)
	} else {
		c.gaveUp.Store(true)
		c.at.In.Drop(errClosedStream)
		c.stop()
	}
	return nil
}

// stopReceiving tells the other side that no more of its values are taken.
func (c *streamCore) stopReceiving() { c.at.Stop(errClosedStream) }

// closeSend is Stream.CloseSend.
func (c *streamCore) closeSend() error {
	if c.closed.Swap(true) {
		return nil
	}
	if err := c.at.Out.Err(); err != nil {
		return c.sendError(err)
	}
	c.at.Out.End(errClosedStream) // before the other side hears of it, and may end the stream
	d := newDraft()
	defer d.put()
	c.fill(&d.ownPacket, nil)
	frame, err := c.conn.sock.Encode(socket.Permit{}, d.frame[:0], &d.packet)
	if err == nil {
		_, err = c.conn.sock.Send(c.life, frame.In(&c.at.Lane), socket.Control)
	}
	if err != nil {
		return c.conn.sendXerror(c.life, c.conn.wrote(err))
	}
	go c.conn.flush()
	return nil
}

// fill makes the packet one with the value.
func (c *streamCore) fill(w *ownPacket, v interface{}) {
	w.header = packet.Header{Id: c.at.Id(), Type: c.typ, Gzip: c.form.gzip}
	w.packet = packet.Packet{Header: &w.header, HeaderCodec: c.form.headerCodec, BodyCodec: c.form.bodyCodec,
		Body: v}
	switch raw := v.(type) {
	case nil:
		w.header.Gzip = 0
	case *RawValue:
		w.packet.Body, w.header.Gzip = raw.Body, raw.Gzip
	}
}

// send sends the value.
func (c *streamCore) send(v interface{}) error {
	if !c.sending.CompareAndSwap(false, true) {
		return errTwoSenders
	}
	defer c.sending.Store(false)
	d := newDraft()
	defer d.put()
	w := &d.ownPacket
	var o *outgoing // nil unless hooks or the log see the packet
	if start := c.conn.peer.packetLog.start(); len(c.chain.preWriteValue) > 0 || !start.IsZero() {
		o = newOutgoing(c.conn, c.life, start)
		w = &o.out
	}
	c.fill(w, v)
	if o != nil {
		if err := c.chain.preWriteValue.run(o); err != nil {
			return notRun(err.xerror())
		}
		w.fix(c.at.Id(), c.typ)
	}
	if err := c.write(&w.packet, d.frame[:0]); err != nil {
		return err
	}
	if o != nil {
		c.conn.logPacket(packetLine{start: o.start, message: "value sent", what: "value-send", kind: "stream",
			uri: c.uri, out: &w.packet})
	}
	return nil
}

// write encodes the packet, takes credit for it and sends it. As with a push, while the stream waits for
// credit it holds no encoded packet and no permit.
func (c *streamCore) write(p *packet.Packet, mem []byte) error {
	cn, out := c.conn, &c.at.Out
	mode := socket.Later
	if c.turn.Swap(false) {
		mode = socket.Try
	}
	frame, err := cn.sock.Encode(socket.Permit{}, mem, p)
	if errors.Is(err, socket.ErrOutputFull) { // there is no memory for a large packet
		frame, err = cn.encode(c.life, p, mem)
	}
	var cost uint64 // that was taken
	for taken := false; err == nil && !taken; {
		amount := uint64(p.Length)
		if cost, taken = out.TryTake(amount); taken {
			break
		}
		frame.Drop()
		if err := out.Err(); err != nil {
			return c.sendError(err)
		}
		if cost, err = out.Take(c.life, amount, c.at.Waits); err != nil {
			return c.sendError(err)
		}
		frame, err = cn.encode(c.life, p, mem)
		if taken = uint64(p.Length) == amount; !taken || err != nil { // its own methods have changed it
			out.Return(cost)
		}
	}
	if err == nil {
		if _, err = cn.sock.Send(c.life, frame.In(&c.at.Lane), mode); err != nil {
			out.Return(cost)
		}
	}
	switch {
	case err == nil:
		return nil
	case c.life.Err() != nil:
		return c.sendError(c.life.Err())
	}
	return cn.sendXerror(c.life, cn.waited(c.life, err))
}

// sendError returns the error of a value that was not sent because the stream is over.
func (c *streamCore) sendError(err error) error {
	if errors.Is(err, stream.ErrTakesNoMore) {
		return unrun(StatusServiceUnavailable, err.Error(), err)
	}
	if end := c.at.Out.Err(); end != nil { // it says more than the end of a context
		return end
	}
	return err
}

// receive waits for a value, and decodes it into v.
func (c *streamCore) receive(v interface{}) error {
	var o *outgoing // nil unless hooks or the log see the packet
	err := c.at.In.Next(func(raw []byte, gzip int32) error {
		if start := c.conn.peer.packetLog.start(); len(c.chain.postReadValue) > 0 || !start.IsZero() {
			o = c.incoming(raw, gzip, start)
		}
		return c.decode(raw, gzip, v)
	})
	if err == nil {
		c.turn.Store(true)
		if o != nil {
			return c.seen(o, v)
		}
		return nil
	}
	return c.receiveError(err)
}

// decode decodes a value.
func (c *streamCore) decode(raw []byte, gzip int32, v interface{}) error {
	var err error
	switch into, ok := v.(*RawValue); {
	case ok:
		into.Body, into.Gzip = append(into.Body[:0], raw...), gzip
	case len(raw) <= smallPacket && gzip == 0: // too little to be counted
		_, err = packet.DecodeBody(raw, 0, v, c.conn.peer.freeLimits)
	default:
		_, err = packet.DecodeBody(raw, gzip, v, c.conn.sock.Limits())
	}
	if err != nil {
		x := newXerror(bodyCode(err), "this side cannot take the value: "+err.Error(), err)
		x.ofReply = true
		return x
	}
	return nil
}

// incoming returns the context in which hooks see a value.
func (c *streamCore) incoming(raw []byte, gzip int32, start time.Time) *outgoing {
	o := newOutgoing(c.conn, c.life, start)
	typ := packet.TypeValue
	if c.typ == typ {
		typ = packet.TypeAnswer
	}
	o.in.header = packet.Header{Id: c.at.Id(), Type: typ, Uri: c.uri, Gzip: gzip}
	o.in.packet.BodyCodec, _ = packet.RawBody(raw).Codec()
	o.in.packet.BodyLength, o.in.packet.Length = int64(len(raw)), int64(len(raw))
	return o
}

// seen runs the hooks of a value that was received, and logs it.
func (c *streamCore) seen(o *outgoing, v interface{}) error {
	o.in.packet.Body = v
	line := packetLine{start: o.start, message: "value received", what: "value-receive", kind: "stream",
		uri: c.uri, in: &o.in.packet}
	if c.conn.peer.packetLog.prints(o.start) {
		line.printed = printBody(v)
	}
	if err := c.chain.postReadValue.run(o); err != nil {
		logf(LevelDebug, "hook failed", "value of %s: %v", append([]slog.Attr{uriAttr(c.uri), errAttr(err)},
			c.conn.logAttrs()...)...)
		return err.xerror()
	}
	c.conn.logPacket(line)
	return nil
}

// receiveError returns the error of Recv.
func (c *streamCore) receiveError(err error) error {
	if _, ok := err.(Xerror); ok || err == io.EOF {
		return err
	}
	if err == stream.ErrBusy {
		return errTwoReceivers
	}
	return newXerror(bodyCode(err), "this side cannot take a value, and takes no more: "+err.Error(), err)
}

// meta is Stream.Meta.
func (c *streamCore) meta() map[string]string {
	if c.call != nil {
		return c.call.Meta()
	}
	select {
	case <-c.done:
		return c.pull.Meta()
	default:
		return nil
	}
}
