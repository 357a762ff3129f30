package tp

import (
	"context"
	"log/slog"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Push sends args to the URI, one way. Nil means that the packet was handed to
// the connection, not that it was handled.
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
	return s.conn.Load().push(ctx, uri, args, setting)
}

// push is Session.PushContext on this connection.
func (cn *conn) push(ctx context.Context, uri string, args interface{}, settings []PacketSetting) Xerror {
	if cn.goneAway() {
		return unrun(StatusServiceUnavailable, "the other side is shutting down, the push was not sent", nil)
	}
	if ctx.Err() != nil {
		return notSent(ctx)
	}
	chain := cn.peer.chain
	d := newDraft()
	defer d.put()
	w := &d.ownPacket
	var o *outgoing // nil unless hooks or the log see the packet
	if start := cn.peer.packetLog.start(); len(chain.preWritePush)+len(chain.postWritePush) > 0 ||
		!start.IsZero() {
		o = newOutgoing(cn, ctx, start)
		w = &o.out
	}
	w.fill(&cn.peer.cfg, packet.TypePush, uri, args, settings)
	if o != nil {
		if err := chain.preWritePush.run(o); err != nil {
			return notRun(err.xerror())
		}
		w.fix(w.header.Id, packet.TypePush)
	}
	frame, err := cn.encode(ctx, &w.packet, d.frame[:0])
	if err == nil {
		_, err = cn.sock.Send(ctx, frame, socket.Later)
	}
	if err != nil {
		return cn.sendXerror(ctx, cn.waited(ctx, err))
	}
	if o == nil {
		return nil
	}
	if err := chain.postWritePush.run(o); err != nil {
		cn.peer.log.rarely(LevelWarn, "hook failed", "push %s: %v",
			append([]slog.Attr{uriAttr(uri), errAttr(err)}, cn.logAttrs()...)...)
	}
	cn.logPacket(packetLine{start: o.start, message: "push sent", what: "push-launch", kind: "push",
		uri: w.header.Uri, out: &w.packet})
	return nil
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
		if x = cn.push(ctx, uri, args, settings); x == nil || cn.usable() || !NotRun(x) {
			return x
		}
	}
}
