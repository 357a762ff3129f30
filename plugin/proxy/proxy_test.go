package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/plugin/proxy"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

// seen is what reaches the service behind the proxy.
type seen struct {
	uri, header string
	gzip        int32
	body        string
}

// chain is client -> proxy -> service.
type chain struct {
	client   *tp.Session
	upstream *tp.Session
	service  *tp.Peer
	pulls    chan seen
	pushes   chan seen
}

func join(t *testing.T, a, b *tp.Peer) (*tp.Session, *tp.Session) {
	ca, cb := net.Pipe()
	sa, err := a.ServeConn(ca)
	require.NoError(t, err)
	sb, err := b.ServeConn(cb)
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return sa, sb
}

func newChain(t *testing.T, reply func(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror)) *chain {
	c := &chain{pulls: make(chan seen, 100), pushes: make(chan seen, 100), service: tp.NewPeer(nil)}
	note := func(ctx tp.UnknownPushCtx, body *[]byte) seen {
		in := ctx.Input()
		return seen{ctx.Uri(), in.HeaderCodec, in.Header.Gzip, string(*body)}
	}
	c.service.PullRouter.SetUnknown(func(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror) {
		c.pulls <- note(ctx, body)
		return reply(ctx, body)
	})
	c.service.PushRouter.SetUnknown(func(ctx tp.UnknownPushCtx, body *[]byte) { c.pushes <- note(ctx, body) })
	middle := tp.NewPeer(nil)
	c.upstream, _ = join(t, middle, c.service)
	p := proxy.To(c.upstream)
	middle.PullRouter.SetUnknown(p.Pull)
	middle.PushRouter.SetUnknown(p.Push)
	c.client, _ = join(t, tp.NewPeer(nil), middle)
	return c
}

func TestBodiesPassUntouched(t *testing.T) {
	c := newChain(t, func(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror) {
		return packet.RawBody(*body), nil // as it came
	})
	for name, body := range map[string]struct {
		v     interface{}
		codec string
	}{
		"json":     {map[string]interface{}{"a": "b"}, "json"},
		"protobuf": {wrapperspb.String("hello"), "protobuf"},
		"string":   {"text", "string"},
		"none":     {nil, ""},
		// The middle knows neither this codec nor how to decode this.
		"unknown":     {packet.RawBody("\x01whatever"), ""},
		"undecodable": {packet.RawBody("j{{{"), "json"},
	} {
		for _, level := range []int32{0, 1, 9, -2} {
			for _, header := range []string{"json", "protobuf"} {
				t.Run(fmt.Sprint(name, level, header), func(t *testing.T) {
					var reply packet.RawBody
					set := []tp.PacketSetting{tp.WithHeaderCodec(header), tp.WithGzip(level)}
					if body.codec != "" {
						set = append(set, tp.WithBodyCodec(body.codec))
					}
					cmd := c.client.Pull("/some/where?x=%20y", body.v, &reply, set...)
					require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
					got := <-c.pulls
					require.Equal(t, "/some/where?x=%20y", got.uri)
					require.Equal(t, header, got.header)
					require.EqualValues(t, level, got.gzip)
					require.Equal(t, got.body, string(reply))
					require.Equal(t, level != 0, cmd.Input().Header.Gzip != 0)
					sent, err := packet.Append(nil, &packet.Packet{HeaderCodec: header, BodyCodec: body.codec,
						Header: cmd.Output().Header, Body: body.v}, packet.Limits{})
					require.NoError(t, err)
					require.True(t, strings.HasSuffix(string(sent), got.body))

					require.Nil(t, c.client.Push("/some/where?x=1", body.v, set...))
					require.Equal(t, seen{"/some/where?x=1", header, level, got.body}, <-c.pushes)
				})
			}
		}
	}
}

func TestReplyInAnotherCodecAndCompression(t *testing.T) {
	c := newChain(t, func(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror) {
		ctx.SetBodyCodec(codec.NameString)
		ctx.SetGzip(9)
		return strings.Repeat("long ", 100), nil
	})
	var reply string
	cmd := c.client.Pull("/x", 1, &reply)
	require.Nil(t, cmd.Xerror)
	require.Equal(t, strings.Repeat("long ", 100), reply)
	require.EqualValues(t, 9, cmd.Input().Header.Gzip)
	require.Equal(t, codec.NameString, cmd.Input().BodyCodec)
}

func TestStatusPassesThrough(t *testing.T) {
	var status tp.Xerror
	c := newChain(t, func(tp.UnknownPullCtx, *[]byte) (interface{}, tp.Xerror) { return nil, status })
	for _, status = range []tp.Xerror{tp.NewXerror(0, "zero"), tp.NewXerror(404, "no such user"),
		tp.NewXerror(502, "theirs"), tp.NewXerror(7777, "")} {
		cmd := c.client.Pull("/x", 1, nil)
		require.Equal(t, status.Error(), cmd.Xerror.Error())
	}
}

func TestUpstreamFailureIsBadGateway(t *testing.T) {
	var c *chain
	c = newChain(t, func(tp.UnknownPullCtx, *[]byte) (interface{}, tp.Xerror) {
		_ = c.service.Close() // in the middle of a call
		return nil, nil
	})
	for range 2 { // it dies under the first, and is gone for the second
		cmd := c.client.Pull("/x", 1, nil)
		require.Equal(t, "502 bad gateway: connection closed", cmd.Xerror.Error())
		<-c.upstream.Done()
	}
	require.Nil(t, c.client.Push("/x", 1))
	require.NotNil(t, c.client.Pull("/x", 1, nil).Xerror, "the client's session lives on")
}

func TestPick(t *testing.T) {
	front, back := tp.NewPeer(nil), tp.NewPeer(nil)
	up, _ := join(t, front, back)
	back.PullRouter.SetUnknown(func(ctx tp.UnknownPullCtx, _ *[]byte) (interface{}, tp.Xerror) {
		return ctx.Path(), nil
	})
	p := proxy.New(func(ctx tp.UnknownPushCtx) (*tp.Session, error) {
		switch ctx.Query().Get("to") {
		case "back":
			return up, nil
		case "nil":
			return nil, nil
		case "status":
			return nil, fmt.Errorf("wrapped: %w", error(tp.NewXerror(tp.StatusUnauthorized, "not you")))
		}
		return nil, errors.New("a secret")
	})
	front.PullRouter.SetUnknown(p.Pull)
	front.PushRouter.SetUnknown(p.Push)
	client, _ := join(t, tp.NewPeer(nil), front)
	for to, want := range map[string]string{
		"back":   "",
		"nil":    "502 bad gateway: no upstream",
		"status": "401 not you",
		"error":  "502 bad gateway: no upstream",
	} {
		var got string
		cmd := client.Pull("/path?to="+to, nil, &got)
		if want == "" {
			require.Nil(t, cmd.Xerror)
			require.Equal(t, "/path", got)
		} else {
			require.Equal(t, want, cmd.Xerror.Error())
		}
		require.Nil(t, client.Push("/path?to="+to, nil))
	}
	require.Panics(t, func() { proxy.New(nil) })
}

func Example() {
	serve := func(p *tp.Peer) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		go p.Serve(ln)
		return ln.Addr().String()
	}
	service := tp.NewPeer(nil)
	defer service.Close()
	service.PullRouter.SetUnknown(func(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror) {
		return "the service answers " + ctx.Uri(), nil
	})

	gateway := tp.NewPeer(nil)
	defer gateway.Close()
	upstream, err := gateway.Dial(serve(service))
	if err != nil {
		panic(err)
	}
	p := proxy.To(upstream)
	gateway.PullRouter.SetUnknown(p.Pull)
	gateway.PushRouter.SetUnknown(p.Push)

	client := tp.NewPeer(nil)
	defer client.Close()
	sess, err := client.Dial(serve(gateway))
	if err != nil {
		panic(err)
	}
	var reply string
	if cmd := sess.Pull("/any/path?x=1", nil, &reply); cmd.Xerror != nil {
		panic(cmd.Xerror)
	}
	fmt.Println(reply)
	// Output: the service answers /any/path?x=1
}

// Metadata passes both ways, the caller's deadline and its end on, and details back.
func TestCallsPassThrough(t *testing.T) {
	ended := make(chan error, 1)
	c := newChain(t, func(ctx tp.UnknownPullCtx, _ *[]byte) (interface{}, tp.Xerror) {
		switch ctx.Path() {
		case "/wait":
			<-ctx.Context().Done()
			ended <- ctx.Context().Err()
			return nil, nil
		case "/fail":
			return nil, tp.WithDetails(tp.NewXerror(777, "no"), "details")
		}
		ctx.SetMeta("back", ctx.Meta()["there"])
		return nil, nil
	})
	cmd := c.client.Pull("/meta", nil, nil, tp.WithMeta("there", "value"))
	require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
	require.Equal(t, map[string]string{"back": "value"}, cmd.Meta())

	var details string
	found, err := tp.Details(c.client.Pull("/fail", nil, nil).Xerror, &details)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "details", details)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	// the proxy may notice first
	if x := c.client.PullContext(ctx, "/wait", nil, nil).Xerror; x.Code() != tp.StatusBadGateway {
		require.ErrorIs(t, x, context.DeadlineExceeded)
	}
	require.ErrorIs(t, <-ended, context.DeadlineExceeded)
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	require.ErrorIs(t, c.client.PullContext(ctx, "/wait", nil, nil).Xerror, context.Canceled)
	require.ErrorIs(t, <-ended, context.Canceled)
}

// What the caller may do about an error is the same by the proxy and without it.
func TestRetryableByTheProxy(t *testing.T) {
	service, gateway, client := tp.NewPeer(nil), tp.NewPeer(nil), tp.NewPeer(nil)
	tp.HandlePull(service.PullRouter, "/later", func(tp.PullCtx, *int) (int, tp.Xerror) {
		return 0, tp.WithRetryAfter(tp.NewXerror(tp.StatusOverloaded, "later"), time.Minute)
	})
	tp.HandlePull(service.PullRouter, "/ran", func(tp.PullCtx, *int) (int, tp.Xerror) {
		return 0, tp.NewXerror(tp.StatusServiceUnavailable, "ran")
	})
	_, direct := join(t, service, gateway)
	p := proxy.To(direct)
	gateway.PullRouter.SetUnknown(p.Pull)
	_, through := join(t, gateway, client)
	same := func(uri string, args interface{}) {
		t.Helper()
		want, got := direct.Pull(uri, args, nil).Xerror, through.Pull(uri, args, nil).Xerror
		require.Equal(t, tp.NotRun(want), tp.NotRun(got), "%v", got)
		after, ok := tp.Retryable(got)
		wantAfter, wantOk := tp.Retryable(want)
		require.Equal(t, wantOk, ok, "%v", got)
		require.Equal(t, wantAfter, after)
	}
	same("/nope", 1)
	same("/later", 1)
	same("/later", "not a number")
	same("/ran", 1)
	require.NoError(t, service.Close())
	<-direct.Done()
	same("/later", 1)
	x := through.Pull("/later", 1, nil).Xerror
	require.Equal(t, tp.StatusBadGateway, x.Code())
	_, ok := tp.Retryable(x)
	require.True(t, ok)
}
