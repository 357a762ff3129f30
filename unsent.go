package tp

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// notSent is the error of a pull or a push whose context was done before it was sent.
func notSent(ctx context.Context) Xerror {
	x := ctxXerror(ctx, "nothing was sent")
	x.notRun = true
	return x
}

// notRun makes x say that the pull has not run.
func notRun(x Xerror) Xerror {
	return &xerror{code: x.Code(), text: x.Text(), cause: x, notRun: true, after: afterOf(x)}
}

// goneAwayPush is the error of a push to a side that shuts down.
func goneAwayPush() Xerror {
	return unrun(StatusServiceUnavailable, "the other side is shutting down, the push was not sent", nil)
}

// closedXerror is the error of a packet that was not sent because its connection had ended.
func (s *Session) closedXerror(text string, err error) *xerror {
	cause := s.Err()
	var refused *refusedConn
	if errors.As(cause, &refused) {
		return refused.unrun()
	}
	if cause != nil && cause != errClosedHere && cause != ErrPeerClosed && cause != io.EOF {
		text += ": " + cause.Error()
	}
	return unrun(StatusConnClosed, text, err)
}

// sendXerror turns err, the reason why a packet was not sent within ctx, into the error that the caller gets.
func (cn *conn) sendXerror(ctx context.Context, err error) Xerror {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return notSent(ctx)
	}
	if errors.Is(err, errSocketClosed) {
		return cn.sess.closedXerror("connection closed, the packet was not sent", err)
	}
	var we *socket.WriteError
	if !errors.As(err, &we) {
		return doesNotEncode(err)
	}
	x := newXerror(StatusWriteFailed, fmt.Sprintf("write failed: %v", err), err)
	if socket.Gone(err) {
		x = newXerror(StatusConnClosed, fmt.Sprintf("connection closed by the other side: %v", err), err)
	}
	x.notRun = we.Unsent
	return x
}

// doesNotEncode is the error of a packet that does not encode.
func doesNotEncode(err error) *xerror {
	code := StatusWriteFailed
	if errors.Is(err, packet.ErrTooLarge) {
		code = StatusTooLarge
	}
	return unrun(code, "nothing was sent: "+err.Error(), err)
}
