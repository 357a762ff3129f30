// Package proxy forwards what a peer has no handler for to another peer. Bodies
// pass through as they stand on the wire: neither decoded nor decompressed,
// whatever their codec.
package proxy

import (
	"errors"
	"fmt"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/printable"
	"github.com/henrylee2cn/teleport/internal/rarely"
	"github.com/henrylee2cn/teleport/packet"
)

// Proxy is a pair of unknown handlers. It counts in the metadata, under [HopsKey], how
// often a packet was forwarded: one that goes round, because proxies point at each other,
// is forwarded [MaxHops] times; then a pull is answered with tp.StatusLoopDetected and a
// push is dropped and logged. Make it with [New] and set it on a router
// or a group:
//
//	p := proxy.New(pick)
//	peer.PullRouter.SetUnknown(p.Pull)
//	peer.PushRouter.SetUnknown(p.Push)
//
// It is safe for concurrent use.
type Proxy struct {
	pick  func(ctx tp.UnknownPushCtx) (*tp.Session, error)
	lines rarely.Limiter[string] // by format
}

// New returns a proxy that asks pick for the upstream session of each packet.
// Pick may look at the packet's path, query and session; it is called from many
// goroutines at once. Its error means that there is no upstream: a pull is
// answered with the error's status where it is a tp.Xerror, otherwise with
// tp.StatusBadGateway, as not run, and a push is dropped and logged. It panics if pick is
// nil.
func New(pick func(ctx tp.UnknownPushCtx) (*tp.Session, error)) *Proxy {
	if pick == nil {
		panic("proxy: New: pick is nil.")
	}
	return &Proxy{pick: pick}
}

// To returns a proxy with one upstream for everything.
func To(upstream *tp.Session) *Proxy {
	return New(func(tp.UnknownPushCtx) (*tp.Session, error) { return upstream, nil })
}

var errNoSession = errors.New("no upstream session")

func (p *Proxy) upstream(ctx tp.UnknownPushCtx) (*tp.Session, tp.Xerror) {
	sess, err := p.pick(ctx)
	if err == nil && sess == nil {
		err = errNoSession
	}
	if err == nil {
		return sess, nil
	}
	var x tp.Xerror
	if errors.As(err, &x) {
		return nil, tp.WithNotRun(x)
	}
	p.warnf("proxy: no upstream for %s: %s", ctx.Path(), err)
	return nil, tp.WithNotRun(tp.NewXerror(tp.StatusBadGateway, "bad gateway: no upstream"))
}

// Pull forwards a pull and returns the upstream's reply, status included. If the
// upstream did not answer, the status is tp.StatusBadGateway. What tp.NotRun and
// tp.Retryable say of the upstream's error holds for the caller too. The pull's header
// codec is used towards the upstream too. Metadata goes both ways, and the upstream
// is told of the caller's deadline and of its end.
func (p *Proxy) Pull(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror) {
	sess, x := p.upstream(ctx)
	if x != nil {
		return nil, x
	}
	var reply packet.RawBody
	hop, x := nextHop(ctx)
	if x != nil {
		p.warnf("proxy: pull %s not forwarded: %s", ctx.Path(), x)
		return nil, tp.WithNotRun(x)
	}
	cmd := sess.PullContext(ctx.Context(), ctx.Uri(), packet.RawBody(*body), &reply, settings(ctx, hop)...)
	for k, v := range cmd.Meta() {
		ctx.SetMeta(k, v)
	}
	if x := cmd.Xerror; x != nil {
		if answered(cmd) {
			return nil, asUpstream(x, x)
		}
		p.warnf("proxy: pull %s from upstream %s: %s", ctx.Path(), sess.RemoteIp(), x)
		if errors.Is(x, packet.ErrTooLarge) && tp.NotRun(x) {
			return nil, tp.WithNotRun(tp.NewXerror(tp.StatusTooLarge,
				"too large: the header has no room for the proxy's "+HopsKey))
		}
		return nil, asUpstream(tp.NewXerror(tp.StatusBadGateway, "bad gateway: "+tp.StatusText(x.Code())), x)
	}
	ctx.SetGzip(cmd.Input().Header.Gzip)
	return reply, nil
}

// asUpstream makes an error say what the upstream's says of another attempt: that the pull has
// not run, and for how long to wait.
func asUpstream(x, upstream tp.Xerror) tp.Xerror {
	if tp.NotRun(upstream) {
		x = tp.WithNotRun(x)
	}
	if after, _ := tp.Retryable(upstream); after > 0 {
		x = tp.WithRetryAfter(x, after)
	}
	return x
}

// Push forwards a push. If it cannot be sent that is logged.
func (p *Proxy) Push(ctx tp.UnknownPushCtx, body *[]byte) {
	sess, x := p.upstream(ctx)
	var hop tp.PacketSetting
	if x == nil {
		hop, x = nextHop(ctx)
	}
	if x == nil {
		x = sess.Push(ctx.Uri(), packet.RawBody(*body), settings(ctx, hop)...)
	}
	if x != nil {
		p.warnf("proxy: push %s dropped: %s", ctx.Path(), x)
	}
}

// warnf logs at tp.LevelWarn: one line a second of a format, as clients can cause any
// number of them, with all that comes from clients and upstreams made safe to print.
func (p *Proxy) warnf(format string, args ...interface{}) {
	if tp.LogLevel() > tp.LevelWarn {
		return
	}
	left, ok := p.lines.Allow(format)
	if !ok {
		return
	}
	for i, arg := range args {
		args[i] = printable.Value(arg, maxQuoted)
	}
	tp.Warnf("%s", printable.Text(fmt.Sprintf(format, args...)+rarely.More(left), maxLine))
}

const (
	maxLine   = 4 << 10
	maxQuoted = 1 << 10
)

// settings make the packet to the upstream what the packet received is, but for the hop.
func settings(ctx tp.UnknownPushCtx, hop tp.PacketSetting) []tp.PacketSetting {
	in := ctx.Input()
	set := []tp.PacketSetting{tp.WithHeaderCodec(in.HeaderCodec), tp.WithGzip(in.Header.Gzip)}
	for k, v := range in.Header.Meta {
		set = append(set, tp.WithMeta(k, v))
	}
	return append(set, hop)
}

// answered reports whether the error is the status that the upstream replied
// with, and not a failure to get a reply.
func answered(cmd *tp.PullCmd) bool {
	h := cmd.Input().Header
	if h.StatusCode >= 100 && h.StatusCode < tp.StatusOK { // which is not for it to say
		return h.Type == packet.TypeReply && cmd.Xerror.Code() == tp.StatusBadGateway
	}
	return h.Type == packet.TypeReply && h.StatusCode != tp.StatusOK && h.StatusCode == cmd.Xerror.Code()
}
