package tp

import (
	"context"
	"errors"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// errSocketClosed is what the socket says when this side has closed it.
var errSocketClosed = socket.ErrClosed

// encodeInTurn encodes a packet when its turn has come, which is as long as it waits no longer than ctx
// lasts.
func (l *link) encodeInTurn(ctx context.Context, p *packet.Packet, mem []byte) (socket.Frame, error) {
	if err := l.sock.TakeTurn(ctx); err != nil {
		return socket.Frame{}, err
	}
	return l.sock.EncodeInTurn(ctx, mem, p)
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
