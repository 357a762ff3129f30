package tp

import (
	"context"
	"errors"
	"log/slog"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Push sends args to the URI, one way. Nil means that the packet was handed to the connection, not that it
// was handled. Push waits while the other side has not handled as many bytes of earlier pushes as may wait
// there, see [PeerConfig], and while the connection takes no output: in each case for the session's write
// timeout at most. If there was no progress in that time the session ends.
func (s *Session) Push(uri string, args interface{}, setting ...PacketSetting) Xerror {
	return s.PushContext(context.Background(), uri, args, setting...)
}

// PushContext is Push unless ctx is done before the packet is handed to the
// connection: then it fails as [Session.PullContext] does, and nothing was sent.
func (s *Session) PushContext(ctx context.Context, uri string, args interface{},
	setting ...PacketSetting) Xerror {
	ctx = orNone(ctx)
	if s.redial != nil {
		return s.redial.push(ctx, uri, args, setting)
	}
	return s.conn.Load().push(ctx, uri, args, setting, true)
}

// TryPush is Push without the wait. It fails at once, and nothing was sent, with StatusOverloaded if the
// other side has not handled as many bytes of earlier pushes as may wait there, or if the connection takes no
// more output, and with StatusConnClosed if a session that redials has no connection. [Retryable] is true of
// these errors. Until the other side has said how many bytes may wait, a push of more than 45 KiB fails so
// too. Hooks of pushes run, and may wait.
func (s *Session) TryPush(uri string, args interface{}, setting ...PacketSetting) Xerror {
	return s.conn.Load().push(context.Background(), uri, args, setting, false)
}

// push is Session.PushContext on this connection, or without waits Session.TryPush.
func (cn *conn) push(ctx context.Context, uri string, args interface{}, settings []PacketSetting,
	waits bool) Xerror {
	if cn.goneAway() {
		return goneAwayPush()
	}
	if ctx.Err() != nil {
		return notSent(ctx)
	}
	return cn.peer.makePush(ctx, uri, args, settings, func() *conn { return cn },
		func(p *packet.Packet, mem []byte) Xerror { return cn.sendPush(ctx, p, mem, waits) })
}

// makePush makes a push and has send take it, with memory to encode it in. Hooks and the log see the packet
// as one of the connection that of returns.
func (p *Peer) makePush(ctx context.Context, uri string, args interface{}, settings []PacketSetting,
	of func() *conn, send func(p *packet.Packet, mem []byte) Xerror) Xerror {
	d := newDraft()
	defer d.put()
	w := &d.ownPacket
	var o *outgoing // nil unless hooks or the log see the packet
	if start := p.packetLog.start(); len(p.chain.preWritePush)+len(p.chain.postWritePush) > 0 ||
		!start.IsZero() {
		o = newOutgoing(of(), ctx, start)
		w = &o.out
	}
	w.fill(&p.cfg, packet.TypePush, uri, args, settings)
	if o != nil {
		if err := p.chain.preWritePush.run(o); err != nil {
			return notRun(err.xerror())
		}
		w.fix(w.header.Id, packet.TypePush)
	}
	if x := send(&w.packet, d.frame[:0]); x != nil || o == nil {
		return x
	}
	if err := p.chain.postWritePush.run(o); err != nil {
		p.log.rarely(LevelWarn, "hook failed", "push %s: %v",
			append([]slog.Attr{uriAttr(uri), errAttr(err)}, o.conn.logAttrs()...)...)
	}
	o.conn.logPacket(packetLine{start: o.start, message: "push sent", what: "push-launch", kind: "push",
		uri: w.header.Uri, out: &w.packet})
	return nil
}

// sendPush encodes a push, takes credit for it and sends it. While it waits for credit it holds no encoded
// packet, which could be large, and no permit, which others need: it encodes the packet again afterwards.
func (cn *conn) sendPush(ctx context.Context, p *packet.Packet, mem []byte, waits bool) Xerror {
	var taken, cost uint64 // the amount of credit that was taken, and what that has cost
	for {
		frame, err := cn.encodePush(ctx, p, mem, waits)
		if err != nil {
			cn.flow.Out().Return(cost)
			return cn.pushXerror(ctx, err, waits)
		}
		amount, ok := uint64(p.Length+pushCost), true
		if taken != amount && !cn.peer.noCredit {
			cn.flow.Out().Return(cost)
			cost, ok = cn.flow.TryTake(amount)
		}
		if ok {
			mode := socket.Later
			if !waits {
				mode = socket.Offer
			}
			if _, err = cn.sock.Send(ctx, frame.In(&cn.pushLane), mode); err == nil {
				return nil
			}
			cn.flow.Out().Return(cost)
			return cn.pushXerror(ctx, err, waits)
		}
		frame.Drop()
		if !waits {
			if err := cn.flow.Out().Err(); err != nil {
				return cn.sendXerror(ctx, err)
			}
			cn.endIfStalled()
			return unrun(StatusOverloaded, "the other side has not handled earlier pushes, nothing was sent",
				nil)
		}
		var x Xerror
		if cost, x = cn.awaitCredit(ctx, amount); x != nil {
			return x
		}
		taken = amount
	}
}

// encodePush encodes a push. Without waits it fails where it would have to wait for memory.
func (cn *conn) encodePush(ctx context.Context, p *packet.Packet, mem []byte,
	waits bool) (socket.Frame, error) {
	if waits {
		return cn.encode(ctx, p, mem)
	}
	return cn.sock.Encode(socket.Permit{}, mem, p)
}

// pushXerror is the error of a push that was not sent.
func (cn *conn) pushXerror(ctx context.Context, err error, waits bool) Xerror {
	if !waits && errors.Is(err, socket.ErrOutputFull) {
		return unrun(StatusOverloaded, "the other side has not read earlier packets, nothing was sent", nil)
	}
	return cn.sendXerror(ctx, cn.waited(ctx, err))
}

// push is Session.PushContext of a session that redials: while the push certainly was not taken, it is sent
// again on the next connection.
func (r *redialer) push(ctx context.Context, uri string, args interface{}, settings []PacketSetting) Xerror {
	p := r.patience(0)
	for {
		cn, x := r.await(ctx, p)
		if x != nil {
			return x
		}
		if x = cn.push(ctx, uri, args, settings, true); x == nil || cn.usable() || !NotRun(x) {
			return x
		}
	}
}
