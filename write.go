package tp

import (
	"context"
	"errors"
	"log/slog"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// errSocketClosed is what the socket says when this side has closed it.
var errSocketClosed = socket.ErrClosed

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
		l.pushed.Add(1) // before anybody can say what has become of it
		if err = l.sock.PostFrame(ctx, frame); err != nil {
			l.pushed.Add(^uint64(0))
		}
	}
	return l.waited(ctx, err)
}

// encodeInTurn encodes the output when its turn has come, which is as long as it waits no
// longer than ctx lasts. Of a pull that takes a timeout the header says what is left then.
func (l *link) encodeInTurn(ctx context.Context, x *exchange, pull *PullCmd) (socket.Frame, error) {
	if err := l.sock.TakeTurn(ctx); err != nil {
		return socket.Frame{}, err
	}
	if pull != nil && x.outHdr.Timeout > 0 {
		x.outHdr.Timeout = min(x.outHdr.Timeout, pull.timeoutFor(ctx))
	}
	return l.sock.EncodeInTurn(ctx, x.frameMem[:0], &x.out)
}

// press sends one of the small packets that keep the connection in order. It does not
// wait for the connection.
func (l *link) press(h *packet.Header) {
	frame, err := l.encodeHeader(h)
	if err == nil && l.sock.PressFrame(frame) == nil {
		go l.flush()
	}
}

func (l *link) encodeHeader(h *packet.Header) (socket.Frame, error) {
	return l.sock.Encode(&packet.Packet{HeaderCodec: l.peer.cfg.DefaultHeaderCodec, Header: h})
}

// answer queues a reply that says nothing but that this side is there. It does not wait for
// room.
func (l *link) answer(id, headerCodec string) error {
	frame, err := l.sock.Encode(&packet.Packet{
		HeaderCodec: headerCodec,
		Header:      &packet.Header{Id: id, Type: packet.TypeReply, StatusCode: StatusOK},
	})
	if err == nil {
		err = l.sock.OfferFrame(frame)
	}
	return l.wrote(err)
}

// waited is wrote for what may have waited, and of which the end of ctx concerns nobody
// else.
func (l *link) waited(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil && errors.Is(err, e) {
		return err
	}
	return l.wrote(err)
}

// flush sends what quick handlers have left queued.
func (l *link) flush() { _ = l.wrote(l.sock.Flush()) }

// wrote ends the link if a write has failed. An error of encoding leaves it
// as it was.
func (l *link) wrote(err error) error {
	switch {
	case err == nil || !isWriteError(err):
	case l.lingers.Load():
		l.abandon()
	case errors.Is(err, errSocketClosed):
		// A socket that takes no more output because it is being drained must not be
		// closed for it: what it has sent may not have been read yet.
	case socket.Gone(err):
		l.lose(err)
	default:
		_ = l.shut(err)
	}
	return err
}

func isWriteError(err error) bool {
	var we *socket.WriteError
	return errors.As(err, &we)
}
