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
func (cn *conn) encodeInTurn(ctx context.Context, p *packet.Packet, mem []byte) (socket.Frame, error) {
	if err := cn.sock.TakeTurn(ctx); err != nil {
		return socket.Frame{}, err
	}
	return cn.sock.EncodeInTurn(ctx, mem, p)
}

// press sends one of the small packets that keep the connection in order. It does not
// wait for the connection.
func (cn *conn) sendControl(h *packet.Header) {
	frame, err := cn.encodeHeader(h)
	if err == nil && cn.sock.PressFrame(frame) == nil {
		go cn.flush()
	}
}

func (cn *conn) encodeHeader(h *packet.Header) (socket.Frame, error) {
	return cn.sock.Encode(&packet.Packet{HeaderCodec: cn.peer.cfg.DefaultHeaderCodec, Header: h})
}

// answer queues a reply that says nothing but that this side is there. It does not wait for
// room.
func (cn *conn) answer(id, headerCodec string) error {
	frame, err := cn.sock.Encode(&packet.Packet{
		HeaderCodec: headerCodec,
		Header:      &packet.Header{Id: id, Type: packet.TypeReply, StatusCode: StatusOK},
	})
	if err == nil {
		err = cn.sock.OfferFrame(frame)
	}
	return cn.wrote(err)
}

// waited is wrote for what may have waited, and of which the end of ctx concerns nobody
// else.
func (cn *conn) waited(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil && errors.Is(err, e) {
		return err
	}
	return cn.wrote(err)
}

// flush sends what quick handlers have left queued.
func (cn *conn) flush() { _ = cn.wrote(cn.sock.Flush()) }

// wrote ends the connection if a write has failed. An error of encoding leaves it
// as it was.
func (cn *conn) wrote(err error) error {
	switch {
	case err == nil || !isWriteError(err):
	case cn.lingers.Load():
		cn.abandon()
	case errors.Is(err, errSocketClosed):
		// A socket that takes no more output because it is being drained must not be
		// closed for it: what it has sent may not have been read yet.
	case socket.Gone(err):
		cn.lose(err)
	default:
		_ = cn.fail(err)
	}
	return err
}

func isWriteError(err error) bool {
	var we *socket.WriteError
	return errors.As(err, &we)
}
