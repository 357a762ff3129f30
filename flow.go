package tp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/henrylee2cn/teleport/socket"
)

// The pushes of a connection go by credit, see internal/credit: a sender has no more bytes of pushes on the
// way, or waiting to be handled, than the receiver's PeerConfig.MaxSessionInput.

// awaitCredit takes credit for a push. It waits no longer than ctx lasts, and for the write timeout at most
// if ctx has no end.
func (cn *conn) awaitCredit(ctx context.Context, amount uint64) (cost uint64, x Xerror) {
	var bound time.Duration // of the wait, beside ctx
	if ctx.Done() == nil {
		bound = cn.sock.WriteTimeout()
	}
	if bound > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	cost, err := cn.flow.Take(ctx, amount, cn.peer.keeper.Expect) // a side that does not read gives no credit
	switch {
	case err == nil:
		return cost, nil
	case err == errGoesAway:
		return 0, goneAwayPush()
	case ctx.Err() == nil || !errors.Is(err, ctx.Err()): // the connection has ended
		return 0, cn.sendXerror(ctx, err)
	}
	cn.endIfStalled()
	if bound > 0 {
		return 0, unrun(StatusWriteFailed, fmt.Sprintf(
			"the other side has not handled earlier pushes for %v, nothing was sent", bound), nil)
	}
	return 0, notSent(ctx)
}

// endIfStalled ends the connection if the other side has given no credit for the write timeout, as it ends
// one whose other side does not read. Otherwise such a side would hold up everything that pushes to it, again
// and again.
func (cn *conn) endIfStalled() {
	bound := cn.sock.WriteTimeout()
	if bound <= 0 || cn.flow.Stalled() < bound {
		return
	}
	if !cn.flow.Out().Known() { // not even the reader of the other side has answered
		_ = cn.fail(&socket.WriteError{Err: os.ErrDeadlineExceeded, Unsent: true})
		return
	}
	_ = cn.fail(fmt.Errorf("the other side has not handled the pushes that wait there for %v", bound))
}
