package tp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// The pushes and pulls of a connection go by credit, see internal/credit: a sender has no more bytes of
// pushes on the way, or waiting to be handled, than the receiver's PeerConfig.MaxSessionInput, and no more
// pulls without an answer than its PeerConfig.MaxSessionHandlers.

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

// awaitPlace waits for a place for a pull, and returns the pull's number. It waits no longer than ctx lasts,
// and for the time left, if that is not zero. If there is neither a deadline nor a time, it waits until no
// pull has been answered for the write timeout: handlers that pull each other in a circle, while no place is
// free, would otherwise wait for each other for ever.
func (cn *conn) awaitPlace(ctx context.Context, left time.Duration,
	settings []PacketSetting) (uint64, Xerror) {
	for i := range settings {
		if settings[i].kind == settingFailFast {
			return 0, unrun(StatusOverloaded, fmt.Sprintf(
				"%d pulls are not answered, which is as many as the other side takes, the pull was not sent",
				cn.flow.Pulls.Unanswered()), nil)
		}
	}
	bound := left
	if _, ends := ctx.Deadline(); bound == 0 && !ends {
		bound = cn.sock.WriteTimeout()
	}
	for {
		answered := cn.pulls.Taken()
		number, err := cn.takePlace(ctx, bound)
		switch {
		case err == nil:
			return number, nil
		case err == errGoesAway:
			return 0, unrun(StatusServiceUnavailable,
				"the other side is shutting down, the pull was not sent", nil)
		case ctx.Err() != nil:
			return 0, notSent(ctx)
		case !errors.Is(err, context.DeadlineExceeded): // the connection has ended
			return 0, cn.sess.closedXerror("connection closed, the pull was not sent", nil)
		case left > 0:
			return 0, unrun(StatusDeadlineExceeded, fmt.Sprintf(
				"the other side had no place for the pull for %v, the pull was not sent",
				left.Round(time.Millisecond)),
				context.DeadlineExceeded)
		case answered == cn.pulls.Taken():
			return 0, unrun(StatusOverloaded, fmt.Sprintf(
				"the other side has answered none of %d pulls for %v, the pull was not sent",
				cn.flow.Pulls.Unanswered(), bound), nil)
		}
	}
}

// takePlace waits for a place, no longer than the bound, if that is not zero.
func (cn *conn) takePlace(ctx context.Context, bound time.Duration) (uint64, error) {
	if bound > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	return cn.flow.Pulls.Take(ctx, cn.peer.keeper.Expect)
}

// awaitWord waits until the other side has said whether it knows streams, no longer than ctx lasts, and for
// the write timeout at most if ctx has no deadline. It returns why no stream can be opened.
func (cn *conn) awaitWord(ctx context.Context) Xerror {
	bounded, bound := ctx, cn.sock.WriteTimeout()
	if _, ends := ctx.Deadline(); !ends && bound > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	switch knows, err := cn.flow.KnowsStreams(bounded, cn.peer.keeper.Expect); {
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return notSent(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		return unrun(StatusDeadlineExceeded, fmt.Sprintf(
			"the other side has not said for %v whether it knows streams, nothing was sent", bound), err)
	case err != nil:
		return cn.sess.closedXerror("connection closed, the stream was not opened", nil)
	case !knows:
		return unrun(StatusUnsupportedType, "the other side does not know streams, nothing was sent", nil)
	}
	return nil
}

// AskForCredit asks what the other side takes. A peer that does not know credit answers the packet, as it has
// an id.
func (cn *conn) AskForCredit(meta map[string]string) {
	cn.sendControl(&packet.Header{Id: creditId, Type: packet.TypeCredit, Meta: meta})
}

// SendCredit says what the other side may send.
func (cn *conn) SendCredit(meta map[string]string) {
	cn.sendControl(&packet.Header{Type: packet.TypeCredit, Meta: meta})
}

// SendStreamCredit is SendCredit for the values of one stream, see [stream.Wire].
func (cn *conn) SendStreamCredit(id string, meta map[string]string) {
	cn.sendControl(&packet.Header{Id: id, Type: packet.TypeCredit, Meta: meta})
}

// OtherPackets counts pulls and replies that were received, see [stream.Wire].
func (cn *conn) OtherPackets() uint32 { return cn.calledRead.Load() }

// OtherTakesParts has large packets go in parts from now on.
func (cn *conn) OtherTakesParts() { cn.sock.CutLarge() }

// LargePacket is called by the socket, see [socket.Roomer].
func (cn *conn) LargePacket() {
	if cn.ready.Load() && !cn.peer.noCredit {
		cn.flow.Ask()
	}
}

// CreditWindow returns how many bytes of pushes may wait here.
func (cn *conn) CreditWindow() int64 { return cn.peer.cfg.MaxSessionInput }

// CreditPlaces returns how many pulls, and how many streams, this side takes at a time.
func (cn *conn) CreditPlaces() (pulls, streams int) {
	return cn.peer.cfg.MaxSessionHandlers, cn.peer.cfg.MaxSessionStreams
}

// CreditEnd returns why nothing can be sent any more.
func (cn *conn) CreditEnd() error {
	if cn.ended.Load() {
		return errSocketClosed
	}
	return nil
}
