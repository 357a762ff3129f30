package tp

import (
	"context"
	"log/slog"

	"github.com/henrylee2cn/teleport/packet"
)

// push is Session.Push by this link.
func (l *link) push(ctx context.Context, uri string, args interface{}, settings []PacketSetting) Xerror {
	if l.goneAway() {
		return unrun(StatusServiceUnavailable, "the other side is shutting down, the push was not sent", nil)
	}
	if ctx.Err() != nil {
		return notSent(ctx)
	}
	chain := l.peer.chain
	start := l.peer.startTime()
	if len(chain.preWritePush) == 0 && len(chain.postWritePush) == 0 && start.IsZero() {
		return l.pushBare(ctx, uri, args, settings)
	}
	c := &packetCtx{link: l, exchange: new(exchange)}
	c.start = start
	c.setOutput(packet.TypePush, uri, args, settings)
	c.valuesLocked().ctx = ctx // which nobody else has yet
	if err := chain.preWritePush.run(c); err != nil {
		return notRun(err.xerror())
	}
	c.fixOutput(c.outHdr.Id, packet.TypePush)
	if err := l.post(ctx, c.exchange); err != nil {
		return l.sendXerror(ctx, err)
	}
	if err := chain.postWritePush.run(c); err != nil {
		l.peer.rarely(LevelWarn, "hook failed", "push %s: %v", append([]slog.Attr{uriAttr(uri), errAttr(err)}, l.logAttrs()...)...)
	}
	c.logPushed()
	return nil
}

// pushBare is push where no hook and no log needs a context.
func (l *link) pushBare(ctx context.Context, uri string, args interface{}, settings []PacketSetting) Xerror {
	x := exchanges.Get().(*exchange)
	l.peer.cfg.fill(&x.out, &x.outHdr, packet.TypePush, uri, args, settings)
	err := l.post(ctx, x)
	x.put()
	if err != nil {
		return l.sendXerror(ctx, err)
	}
	return nil
}

// post encodes and sends the output, which has no answer.
func (l *link) post(ctx context.Context, x *exchange) error {
	frame, err := l.encodeInTurn(ctx, x, nil)
	if err == nil {
		err = l.sock.PostFrame(ctx, frame)
	}
	return l.waited(ctx, err)
}
