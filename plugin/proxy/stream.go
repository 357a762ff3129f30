package proxy

import (
	"fmt"
	"io"

	tp "github.com/henrylee2cn/teleport"
)

// Stream forwards a stream, in both directions and with the flow control of both sides: a side that does not
// receive stops the one that sends, through the proxy. Set it on a router or a group:
//
//	peer.PullRouter.SetUnknownStream(p.Stream)
//
// The upstream's end is the stream's end, status and metadata included. If the upstream's connection ends the
// status is tp.StatusBadGateway. For the rest it is as [Proxy.Pull].
func (p *Proxy) Stream(ctx tp.UnknownPullCtx, s *tp.Stream[tp.RawValue, tp.RawValue]) tp.Xerror {
	sess, x := p.upstream(ctx)
	if x != nil {
		return x
	}
	hop, x := nextHop(ctx)
	if x != nil {
		p.warnf("proxy: stream %s not forwarded: %s", ctx.Path(), x)
		return tp.WithNotRun(x)
	}
	set := settings(ctx, hop)
	if name := ctx.Input().BodyCodec; name != "" {
		set = append(set, tp.WithBodyCodec(name))
	}
	up, err := tp.OpenStream[tp.RawValue, tp.RawValue](ctx.Context(), sess, ctx.Uri(), set...)
	if err != nil {
		return p.upstreamEnd(ctx, sess, err)
	}
	defer up.Close()
	go forward(up, s)
	if err = down(s, up); err == nil {
		select {
		case <-up.Done():
			_, err = up.Recv() // the status, behind the values
		case <-ctx.Context().Done():
			return nil // which nobody waits for
		}
	}
	for k, v := range up.Meta() {
		ctx.SetMeta(k, v)
	}
	if err != io.EOF {
		return p.upstreamEnd(ctx, sess, err)
	}
	return nil
}

// down sends the values of the upstream to the caller, until one of the two takes or sends no more. The error
// is the upstream's.
func down(s, up *tp.Stream[tp.RawValue, tp.RawValue]) error {
	for v, err := range up.All() {
		if err != nil {
			return err
		}
		if s.Send(v) != nil {
			stop(up, s)
			return nil
		}
	}
	_ = s.CloseSend()
	return nil
}

// forward sends the values of the caller to the upstream, until one of the two takes or sends no more.
func forward(up, s *tp.Stream[tp.RawValue, tp.RawValue]) {
	for v, err := range s.All() {
		if err != nil { // the caller has gone
			up.Close()
			return
		}
		if up.Send(v) != nil {
			stop(s, up)
			return
		}
	}
	_ = up.CloseSend()
}

// stop stops the values of from, because they cannot be sent onto the other stream. If that is over, its end
// is what ends from, and nothing is to be said before that.
func stop(from, onto *tp.Stream[tp.RawValue, tp.RawValue]) {
	select {
	case <-onto.Done():
	default:
		from.CloseRecv()
	}
}

// upstreamEnd returns the status of a stream that the upstream has ended with the error.
func (p *Proxy) upstreamEnd(ctx tp.UnknownPullCtx, sess *tp.Session, err error) tp.Xerror {
	x, ok := err.(tp.Xerror)
	if ok && (x.Code() >= tp.StatusOK || x.Code() < 100) {
		return asUpstream(x, x)
	}
	p.warnf("proxy: stream %s from upstream %s: %s", ctx.Path(), sess.RemoteIp(), err)
	if !ok {
		return tp.NewXerror(tp.StatusBadGateway, "bad gateway")
	}
	return asUpstream(tp.NewXerror(tp.StatusBadGateway,
		fmt.Sprintf("bad gateway: %s", tp.StatusText(x.Code()))), x)
}
