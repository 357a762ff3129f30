package tp_test

import (
	"context"
	"errors"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// A packet that was carried is, at the session, the one that the peer itself would have sent.
func TestCarriedIsWhatIsSent(t *testing.T) {
	type seen struct {
		uri, header string
		gzip        int32
		meta        map[string]string
		body        string
	}
	got := make(chan seen, 10)
	srv := tp.NewPeer(nil)
	srv.PushRouter.SetUnknown(func(ctx tp.UnknownPushCtx, body *[]byte) {
		in := ctx.Input()
		got <- seen{ctx.Uri(), in.HeaderCodec, in.Header.Gzip, ctx.Meta(), string(*body)}
	})
	for name, set := range map[string][]tp.PacketSetting{
		"defaults": nil,
		"settings": {tp.WithBodyCodec("string"), tp.WithHeaderCodec("json"), tp.WithMeta("k", "v"),
			tp.WithMeta("", "é")},
		"gzip": {tp.WithGzip(9)},
	} {
		t.Run(name, func(t *testing.T) {
			cli := tp.NewPeer(&tp.PeerConfig{DefaultBodyCodec: "json", DefaultHeaderCodec: "protobuf"})
			ca, cb := net.Pipe()
			_, err := srv.ServeConn(ca)
			require.NoError(t, err)
			sess, err := cli.ServeConn(cb)
			require.NoError(t, err)
			defer cli.Close()
			args := strings.Repeat("text ", 100)
			require.Nil(t, sess.Push("/a?b=c", args, set...))
			p, x := cli.Carry("/a?b=c", args, set...)
			require.Nil(t, x)
			require.IsType(t, packet.RawBody{}, p.Body)
			again := []tp.PacketSetting{tp.WithHeaderCodec(p.HeaderCodec), tp.WithGzip(p.Header.Gzip)}
			for k, v := range p.Header.Meta {
				again = append(again, tp.WithMeta(k, v))
			}
			require.Nil(t, sess.Push(p.Header.Uri, p.Body, again...))
			require.Equal(t, <-got, <-got)
		})
	}
	srv.Close()
}

func TestCarryErrors(t *testing.T) {
	p := tp.NewPeer(&tp.PeerConfig{MaxBodyBytes: 100})
	for name, c := range map[string]struct {
		args interface{}
		set  tp.PacketSetting
		code int32
	}{
		"too large":     {strings.Repeat("x", 200), tp.PacketSetting{}, tp.StatusTooLarge},
		"no such codec": {1, tp.WithBodyCodec("nosuch"), tp.StatusWriteFailed},
		"not encodable": {math.Inf(1), tp.PacketSetting{}, tp.StatusWriteFailed},
	} {
		t.Run(name, func(t *testing.T) {
			_, x := p.Carry("/a", c.args, c.set)
			require.NotNil(t, x)
			require.Equal(t, c.code, x.Code(), x.Error())
			require.True(t, tp.NotRun(x))
		})
	}
}

func TestTakeReply(t *testing.T) {
	p := tp.NewPeer(nil)
	encode := func(v interface{}, set ...tp.PacketSetting) *packet.Packet {
		out, x := p.Carry("", v, set...)
		require.Nil(t, x)
		out.Header.StatusCode = tp.StatusOK
		return out
	}
	t.Run("good", func(t *testing.T) {
		for _, level := range []int32{0, 9} {
			in := encode(map[string]int{"a": 1}, tp.WithGzip(level), tp.WithMeta("k", "v"))
			var reply, meta = map[string]int{}, map[string]string{}
			require.Nil(t, p.TakeReply(in, &reply, tp.WithReplyMeta(&meta)))
			require.Equal(t, map[string]int{"a": 1}, reply)
			require.Equal(t, map[string]string{"k": "v"}, meta)
			require.Nil(t, p.TakeReply(in, nil))
		}
	})
	t.Run("no body", func(t *testing.T) {
		reply := 7
		require.Nil(t, p.TakeReply(&packet.Packet{Header: &packet.Header{StatusCode: 200}}, &reply))
		require.Equal(t, 7, reply)
	})
	t.Run("an error", func(t *testing.T) {
		in := encode([]int{1, 2}, tp.WithGzip(9), tp.WithMeta("tp-retry-after", "1500"))
		in.Header.StatusCode, in.Header.Status, in.Header.NotRun = 1001, "room full", true
		x := p.TakeReply(in, new(string))
		require.EqualError(t, x, "1001 room full")
		require.True(t, tp.NotRun(x))
		require.False(t, tp.Local(x))
		after, ok := tp.Retryable(x)
		require.True(t, ok)
		require.Equal(t, 1500*time.Millisecond, after)
		var details []int
		found, err := tp.Details(x, &details)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, []int{1, 2}, details)
	})
	t.Run("a code that is not sent", func(t *testing.T) {
		x := p.TakeReply(&packet.Packet{Header: &packet.Header{StatusCode: 101, NotRun: true}}, nil)
		require.Equal(t, tp.StatusBadGateway, x.Code())
		require.False(t, tp.NotRun(x))
	})
	t.Run("a reply that does not decode", func(t *testing.T) {
		x := p.TakeReply(encode("text"), new(int))
		require.Equal(t, tp.StatusBadRequest, x.Code())
		require.True(t, tp.Local(x))
	})
	t.Run("an argument that is no pointer", func(t *testing.T) {
		for _, reply := range []interface{}{1, (*int)(nil)} {
			require.NotNil(t, tp.CheckReply(reply))
			require.NotNil(t, p.TakeReply(encode("text"), reply))
		}
		require.Nil(t, tp.CheckReply(nil))
		require.Nil(t, tp.CheckReply(new(int)))
	})
}

// What settings say of a delivery goes through a Spread unchanged.
func TestSpreadOf(t *testing.T) {
	a, b := new(tp.Session), new(tp.Session)
	for name, want := range map[string]tp.Spread{
		"nothing": {},
		"all": {Latest: "key", Every: time.Second, DropOldest: 5, Disconnect: true, After: time.Minute,
			Except: []*tp.Session{a, b}},
		"at once": {Disconnect: true},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, want, tp.SpreadOf(append(want.Settings(), tp.WithMeta("k", "v"))...))
		})
	}
	require.Equal(t, "b", tp.SpreadOf(tp.Latest("a"), tp.Latest("b")).Latest)
	require.Panics(t, func() { tp.Spread{DropOldest: -1}.Settings() })
}

// The errors of a handler that hands on a reply are those that were replied.
func TestTakenErrorInAHandler(t *testing.T) {
	srv := tp.NewPeer(nil)
	tp.HandlePull(srv.PullRouter, "/a", func(tp.PullCtx, *int) (int, tp.Xerror) {
		return 0, tp.WithNotRun(srv.TakeReply(&packet.Packet{Header: &packet.Header{StatusCode: 429,
			Status: "full", NotRun: true}}, nil))
	})
	ca, cb := net.Pipe()
	cli := tp.NewPeer(nil)
	_, err := srv.ServeConn(ca)
	require.NoError(t, err)
	sess, err := cli.ServeConn(cb)
	require.NoError(t, err)
	defer srv.Close()
	defer cli.Close()
	x := sess.PullContext(context.Background(), "/a", 1, nil).Xerror
	require.True(t, errors.Is(x, tp.NewXerror(429, "full")))
	require.True(t, tp.NotRun(x))
}
