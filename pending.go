package tp

import (
	"context"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/calltable"
	"github.com/henrylee2cn/teleport/internal/waiter"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// ownPacket is a packet with its header and the text of its id in one piece of memory.
type ownPacket struct {
	packet packet.Packet
	header packet.Header
	idText [20]byte // where a pull's number is as text
}

// fill makes the packet one that this side sends: the peer's defaults, then the call's settings.
func (w *ownPacket) fill(cfg *PeerConfig, typ int32, uri string, body interface{}, settings []PacketSetting) {
	cfg.fill(&w.packet, &w.header, typ, uri, body, settings)
}

// number sets the packet's id to the number of a pull.
func (w *ownPacket) number(n uint64) {
	w.header.Id = unsafe.String(&w.idText[0], len(appendPullId(w.idText[:0], n)))
}

// fix is called after hooks: one may have replaced the header, which is copied, or changed the id or the
// type, which are set again.
func (w *ownPacket) fix(id string, typ int32) {
	if h := w.packet.Header; h != nil && h != &w.header {
		w.header = *h
	}
	w.packet.Header = &w.header
	w.header.Id, w.header.Type = id, typ
}

// receive sets the packet to a header that was read, with the id given. The texts of v are copied.
func (w *ownPacket) receive(v *packet.HeaderView, bodyLength int64, id, uri string) {
	w.header = packet.Header{
		Id: id, Type: v.Type, Uri: uri, Gzip: v.Gzip, StatusCode: v.StatusCode, Status: string(v.Status),
		Timeout: v.Timeout, Meta: v.Meta, NotRun: v.NotRun, Load: v.Load, QueueDelay: v.QueueDelay,
	}
	w.packet = packet.Packet{
		Header: &w.header, HeaderCodec: v.Codec,
		HeaderLength: v.Length, BodyLength: bodyLength, Length: v.Length + bodyLength,
	}
}

// draft is a packet to be sent that no hook sees, with memory for a small frame. Drafts are used again.
type draft struct {
	ownPacket
	frame [smallPacket]byte
}

var drafts = sync.Pool{New: func() any { return new(draft) }}

func newDraft() *draft { return drafts.Get().(*draft) }

// put gives the draft back.
func (d *draft) put() {
	d.packet, d.header = packet.Packet{}, packet.Header{}
	drafts.Put(d)
}

// outgoing is a pull or a push that this side sends, with the reply to a pull, as hooks and the log see them.
// It is made where there are hooks, where the log is to show the packets, and when a program asks a PullCmd
// for its packets. It is never used again, because programs may keep it.
type outgoing struct {
	conn    *conn
	out, in ownPacket
	ctx     context.Context // of the call
	start   time.Time       // zero unless the call is measured
	printed string          // the reply's body as the log shows it

	mu     sync.Mutex // guards public
	public goutil.Map // nil until asked for
}

var (
	_ WriteCtx = (*outgoing)(nil)
	_ ReadCtx  = (*outgoing)(nil)
)

func newOutgoing(cn *conn, ctx context.Context, start time.Time) *outgoing {
	o := &outgoing{conn: cn, ctx: ctx, start: start}
	o.out.packet.Header, o.in.packet.Header = &o.out.header, &o.in.header
	return o
}

// pullOver is a pull that is over, for hooks.
type pullOver struct {
	*outgoing
	failure Xerror
}

func (p pullOver) Failure() Xerror { return p.failure }

// over runs the hooks of a pull that is over. Each of them is called.
func (o *outgoing) over(x Xerror) {
	o.conn.peer.chain.postPull.runEach(pullOver{o, x}, func(err *hookError) {
		o.conn.peer.log.rarely(LevelWarn, "hook failed", "pull %s: %v",
			append([]slog.Attr{uriAttr(o.out.header.Uri), errAttr(err)}, o.conn.logAttrs()...)...)
	})
}

func (o *outgoing) Peer() *Peer              { return o.conn.peer }
func (o *outgoing) lines() *lines            { return &o.conn.peer.log }
func (o *outgoing) Session() *Session        { return o.conn.sess }
func (o *outgoing) Ip() string               { return o.conn.remoteIp() }
func (o *outgoing) Context() context.Context { return o.ctx }
func (o *outgoing) Output() *packet.Packet   { return &o.out.packet }
func (o *outgoing) Input() *packet.Packet    { return &o.in.packet }

func (o *outgoing) Public() goutil.Map {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.public == nil {
		o.public = o.conn.sess.copyPublic()
	}
	return o.public
}

// pending is a pull from its start until it is complete, as its connection knows it. It has three owners in
// turn. While it is in the connection's table nobody owns it. Whoever takes it out owns it, and completes it
// once. From then on the goroutine that waits for the pull owns it: that decodes the reply and gives the
// pending pull back to be used again.
type pending struct {
	entry calltable.Entry[pending]

	// What became of the pull: why there is no reply, or what of the reply was read.
	failure Xerror
	wire    wire
	reply   *ownPacket  // the reply, if it has more in it than fits into wire
	seen    *outgoing   // the packets, if hooks or the log see them, or the pull does not fit into wire
	body    socket.Body // of the reply
	bodyMem [smallPacket]byte

	// One of these is told when the pull is complete: completed, on which a Pull waits that cannot give
	// up; ended, not nil for a Pull that can; or command, not nil for a GoPull, which a new goroutine
	// delivers.
	completed waiter.Waiter
	ended     chan struct{}
	command   interface{ deliver(pd *pending) }

	// began is when the pull began to wait for a place, or a cluster made its first attempt, since
	// processStart; 0 if the pull's time has begun only now.
	began time.Duration
	timer *time.Timer        // of the time that the pull may take; nil if there is none
	stop  func() bool        // ends the watch of the pull's context; nil if that never ends
	meta  *map[string]string // of WithReplyMeta
	load  *loadTaker         // what the other side's load is for; nil if the pull does not ask
}

var pendings = sync.Pool{New: func() any {
	pd := new(pending)
	pd.completed.Init()
	return pd
}}

// put gives the pending pull back to be used again. Nobody else may have it.
func (pd *pending) put() {
	pd.failure, pd.wire, pd.reply, pd.seen, pd.ended, pd.command, pd.meta, pd.load, pd.began = nil, wire{},
		nil, nil, nil, nil, nil, nil, 0
	pendings.Put(pd)
}

// complete ends the pending pull: with an error, or without one with the reply that was received. Only the
// owner may call it, once.
func (pd *pending) complete(x Xerror) {
	pd.failure = x
	switch {
	case pd.command != nil:
		go pd.command.deliver(pd)
	case pd.ended != nil:
		pd.ended <- struct{}{}
	default:
		pd.completed.Done()
	}
}

// sent keeps the packet that was sent, or was to be sent, for PullCmd.Output.
func (pd *pending) sent(cn *conn, w *ownPacket, number uint64) {
	if pd.seen == nil && !pd.wire.sent(&w.packet) {
		o := newOutgoing(cn, context.Background(), time.Time{})
		o.out.packet, o.out.header = w.packet, w.header
		o.out.packet.Header = &o.out.header
		o.out.number(number)
		pd.seen = o
	}
}

// received keeps the header of the reply, for PullCmd.Input.
func (pd *pending) received(v *packet.HeaderView, bodyLength int64) {
	if pd.load != nil {
		takeLoad(*pd.load, v.Load, v.QueueDelay)
	}
	if o := pd.seen; o != nil {
		o.in.receive(v, bodyLength, "", string(v.Uri))
		o.in.number(pd.entry.Number()) // as a hook may be changing that of o.out
	} else if !pd.wire.received(v, bodyLength) {
		pd.reply = new(ownPacket)
		pd.reply.receive(v, bodyLength, "", string(v.Uri))
	}
}

// receivedBody keeps the codec of the reply's body, for PullCmd.Input.
func (pd *pending) receivedBody() {
	if pd.seen == nil && pd.reply == nil {
		if len(pd.body.B) > 0 {
			pd.wire.inCodec = pd.body.B[0]
		}
		return
	}
	pd.replied().packet.BodyCodec, _ = packet.RawBody(pd.body.B).Codec()
}

// replied returns the reply if the whole of it is kept, and nil if wire is enough.
func (pd *pending) replied() *ownPacket {
	if pd.seen != nil {
		return &pd.seen.in
	}
	return pd.reply
}

// wire is what is kept of a pull's two packets: with the command's own fields it is enough to make them again
// for a program that asks. Most packets fit into it: metadata, an error, and unusual lengths do not. The load
// that a reply tells is left out.
type wire struct {
	outBody, inBody          uint32 // lengths
	timeout                  uint32 // in milliseconds
	outHeader, inHeader      uint16 // lengths; inHeader is 0 if there was no reply
	outHeaderCodec, outCodec byte   // ids; 0 is none
	inHeaderCodec, inCodec   byte
	outGzip, inGzip          int8
	open                     bool // the packet that was sent opens a stream
	asks                     bool // and asks for the other side's load
}

// typ returns the type of the packet that was sent.
func (w *wire) typ() int32 {
	if w.open {
		return packet.TypeOpen
	}
	return packet.TypePull
}

// sent takes in the packet that was sent. It reports false if the packet does not fit.
func (w *wire) sent(p *packet.Packet) bool {
	h := p.Header
	headerCodec, err := codec.GetByName(p.HeaderCodec)
	if err != nil {
		return false
	}
	bodyCodec, err := codec.GetByName(p.BodyCodec)
	if err != nil || p.HeaderLength > math.MaxUint16 || h.Timeout > math.MaxUint32 || len(h.Meta) > 0 ||
		packet.CheckGzip(h.Gzip) != nil {
		return false
	}
	w.outHeaderCodec, w.outCodec = headerCodec.Id(), bodyCodec.Id()
	w.outHeader, w.outBody = uint16(p.HeaderLength), uint32(p.BodyLength)
	w.outGzip, w.timeout, w.asks = int8(h.Gzip), uint32(h.Timeout), h.Load != 0
	return true
}

// received takes in the header of a reply. It reports false if the reply does not fit.
func (w *wire) received(v *packet.HeaderView, body int64) bool {
	if v.StatusCode != StatusOK || len(v.Status) > 0 || len(v.Uri) > 0 || len(v.Meta) > 0 ||
		v.Timeout != 0 || v.NotRun ||
		v.Length > math.MaxUint16 || packet.CheckGzip(v.Gzip) != nil {
		return false
	}
	if v.Codec == codec.NameProtobuf {
		w.inHeaderCodec = codec.IdProtobuf
	} else if c, err := codec.GetByName(v.Codec); err == nil {
		w.inHeaderCodec = c.Id()
	} else {
		return false
	}
	w.inHeader, w.inBody, w.inGzip = uint16(v.Length), uint32(body), int8(v.Gzip)
	return true
}

// packets makes the two packets again, in o.
func (w *wire) packets(o *outgoing, number uint64, uri string, args interface{}) {
	o.out.header = packet.Header{Type: w.typ(), Uri: uri, Gzip: int32(w.outGzip),
		Timeout: int64(w.timeout)}
	if w.asks {
		o.out.header.Load = 1
	}
	o.out.number(number)
	o.out.packet = packet.Packet{
		HeaderCodec: codecName(w.outHeaderCodec), BodyCodec: codecName(w.outCodec), Header: &o.out.header,
		Body:         args,
		HeaderLength: int64(w.outHeader), BodyLength: int64(w.outBody), Length: int64(w.outHeader) +
			int64(w.outBody),
	}
	if w.inHeader == 0 {
		return
	}
	o.in.header = packet.Header{Id: o.out.header.Id, Type: packet.TypeReply, Gzip: int32(w.inGzip),
		StatusCode: StatusOK}
	o.in.packet = packet.Packet{
		HeaderCodec: codecName(w.inHeaderCodec), BodyCodec: codecName(w.inCodec), Header: &o.in.header,
		HeaderLength: int64(w.inHeader), BodyLength: int64(w.inBody), Length: int64(w.inHeader) +
			int64(w.inBody),
	}
}

// codecName returns the name of the codec with the id; "" for 0, which stands for none.
func codecName(id byte) string {
	if c, err := codec.GetById(id); err == nil {
		return c.Name()
	}
	return ""
}

// appendPullId and parsePullId turn a pull's number into its id on the wire and back. Each number has one id:
// parsePullId takes no other spelling.
func appendPullId(dst []byte, n uint64) []byte { return strconv.AppendUint(dst, n, 10) }

func parsePullId(id []byte) (uint64, bool) {
	if len(id) == 0 || id[0] == '0' {
		return 0, false
	}
	var n uint64
	for _, c := range id {
		d := uint64(c - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = 10*n + d
	}
	return n, true
}

// smallPacket is the size in bytes up to which a packet is in memory that its call has anyway.
const smallPacket = 256
