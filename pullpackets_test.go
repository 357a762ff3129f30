package tp

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/henrylee2cn/goutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// newPacketServer serves the routes that the tests below pull.
func newPacketServer(t *testing.T) *Peer {
	srv := newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, a *interface{}) (interface{}, Xerror) {
		return *a, nil
	})
	HandlePull(srv.PullRouter, "/text", func(_ PullCtx, a *string) (string, Xerror) { return *a, nil })
	HandlePull(srv.PullRouter, "/proto", func(_ PullCtx, a *wrapperspb.StringValue) (*wrapperspb.StringValue,
		Xerror) {
		return a, nil
	})
	HandlePull(srv.PullRouter, "/nothing", func(PullCtx, *interface{}) (interface{}, Xerror) {
		return nil, nil
	})
	HandlePull(srv.PullRouter, "/other-codec", func(ctx PullCtx, _ *interface{}) (string, Xerror) {
		ctx.SetBodyCodec("string")
		return "in another codec", nil
	})
	HandlePull(srv.PullRouter, "/other-gzip", func(ctx PullCtx, a *interface{}) (interface{}, Xerror) {
		ctx.SetGzip(9)
		return *a, nil
	})
	HandlePull(srv.PullRouter, "/fail", func(PullCtx, *interface{}) (interface{}, Xerror) {
		return "a body", NewXerror(1234, "a failure")
	})
	HandlePull(srv.PullRouter, "/fail-silently", func(PullCtx, *interface{}) (interface{}, Xerror) {
		return nil, NewXerror(0, "")
	})
	return srv
}

// newPacketPair connects two peers to the server. The first has no hooks, so that its commands make their
// packets again when they are asked. The second has hooks, so that its packets are kept.
func newPacketPair(t *testing.T, srv *Peer) (bare, hooked *Session) {
	_, bare = connect(t, srv, newTestPeer(t, nil), pipe.Options{})
	_, hooked = connect(t, srv, newTestPeer(t, nil, newTestPlugin("nothing", nil)), pipe.Options{})
	return bare, hooked
}

// What a command says about its packets is the same whether they were kept or
// made again.
func TestPacketsAreTheSameMadeAgain(t *testing.T) {
	long := strings.Repeat("a long text, ", 100)
	iface := func() interface{} { return new(interface{}) }
	text := func() interface{} { return new(string) }
	proto := func() interface{} { return new(wrapperspb.StringValue) }
	none := func() interface{} { return nil }
	bare, hooked := newPacketPair(t, newPacketServer(t))
	for _, c := range []struct {
		name  string
		uri   string
		args  interface{}
		reply func() interface{}
		codec string
		fits  bool // into wire
	}{
		{"json", "/echo", map[string]interface{}{"a": 1., "b": long}, iface, "json", true},
		{"json default", "/echo?with=query", []interface{}{1., 2.}, iface, "", true},
		{"json raw", "/echo", packet.RawBody("j1"), iface, "json", true},
		{"string", "/text", "a text", text, "string", true},
		{"string long", "/text", long, text, "string", true},
		{"string empty", "/text", "", text, "string", true},
		{"protobuf", "/proto", wrapperspb.String("a text"), proto, "protobuf", true},
		{"protobuf long", "/proto", wrapperspb.String(long), proto, "protobuf", true},
		{"protobuf empty", "/proto", wrapperspb.String(""), proto, "protobuf", true},
		{"nil reply", "/echo", "x", none, "json", true},
		{"nil args", "/proto", nil, proto, "json", true},
		{"nothing back", "/nothing", "x", iface, "json", true},
		{"nothing at all", "/nothing", nil, none, "json", true},
		{"other codec", "/other-codec", "x", text, "json", true},
		{"other codec, as it happens", "/other-codec", "x", text, "string", true},
		{"other gzip", "/other-gzip", long, iface, "json", true},
		{"error", "/fail", "x", iface, "json", false},
		{"silent error", "/fail-silently", "x", iface, "json", false},
		{"no route", "/nowhere", "x", iface, "json", false},
		{"does not encode", "/echo", func() {}, iface, "json", false},
		{"does not decode", "/echo", "x", func() interface{} { return new(int) }, "json", false},
		{"unknown codec", "/echo", "x", iface, "nope", false},
	} {
		for _, header := range []string{"json", "protobuf"} {
			for _, gzip := range []int32{0, 5, -2} {
				t.Run(fmt.Sprintf("%s/header=%s/gzip=%d", c.name, header, gzip), func(t *testing.T) {
					if _, raw := c.args.(packet.RawBody); raw && gzip != 0 {
						t.Skip("a raw body is sent as it is")
					}
					settings := []PacketSetting{WithHeaderCodec(header), WithGzip(gzip)}
					if c.codec != "" {
						settings = append(settings, WithBodyCodec(c.codec))
					}
					got := bare.Pull(c.uri, c.args, c.reply(), settings...)
					want := hooked.Pull(c.uri, c.args, c.reply(), settings...)
					if c.fits {
						require.Nil(t, got.Xerror, "%v", got.Xerror)
						require.Nil(t, got.seen.Load(), "kept")
					}
					require.NotNil(t, want.seen.Load(), "not kept")
					if want.Xerror == nil {
						require.Nil(t, got.Xerror)
					} else {
						require.Equal(t, want.Xerror.Error(), got.Xerror.Error())
					}
					if _, isFunc := c.args.(func()); isFunc { // which are never equal
						require.NotNil(t, got.Output().Body)
						got.Output().Body, want.Output().Body = nil, nil
					}
					require.Equal(t, want.Output(), got.Output())
					require.Equal(t, want.Input(), got.Input())
					require.Same(t, got.Output(), got.Output())
					require.Same(t, got.Input(), got.Input())
					gotReply, _ := got.Result()
					wantReply, _ := want.Result()
					require.Equal(t, wantReply, gotReply)
					require.Same(t, bare, got.Session())
				})
			}
		}
	}
}

// A command that was delivered by GoPull can be asked as one of Pull's, and what
// it says stays when its pending pull has long been used for others.
func TestPacketsOfGoPull(t *testing.T) {
	bare, hooked := newPacketPair(t, newPacketServer(t))
	const n = 200
	var cmds [2][]*PullCmd
	for i, sess := range []*Session{bare, hooked} {
		for j := range n {
			cmd := sess.GoPull("/text", fmt.Sprint("text ", j), new(string), nil, WithBodyCodec("string"))
			require.Same(t, cmd, <-cmd.Done())
			require.Nil(t, cmd.Xerror)
			cmds[i] = append(cmds[i], cmd)
		}
	}
	for j := range n {
		got, want := cmds[0][j], cmds[1][j]
		require.Nil(t, got.seen.Load())
		require.Equal(t, want.Output(), got.Output())
		require.Equal(t, want.Input(), got.Input())
		reply, x := got.Result()
		require.Nil(t, x)
		require.Equal(t, fmt.Sprint("text ", j), *reply.(*string))
	}
}

// Whoever asks a complete command, and however many do at once, sees the same
// packets and the same values.
func TestPacketsAskedForByManyAtOnce(t *testing.T) {
	const askers, pulls = 8, 100
	bare, hooked := newPacketPair(t, newPacketServer(t))
	bare.Public().Store("session's", 1)
	for i := range pulls {
		cmd := bare.Pull("/text", "x", new(string), WithBodyCodec("string"))
		require.Nil(t, cmd.Xerror)
		want := hooked.Pull("/text", "x", new(string), WithBodyCodec("string"))
		require.Nil(t, cmd.seen.Load())
		type answer struct {
			out, in packet.Packet
			outHdr  *packet.Header
			public  goutil.Map
			reply   interface{}
		}
		var answers [askers]answer
		start := make(chan struct{})
		var wg sync.WaitGroup
		for k := range askers {
			wg.Go(func() {
				<-start
				a := &answers[k]
				for q := range 4 { // each begins with another question
					switch (k + q) % 4 {
					case 0:
						a.out, a.outHdr = *cmd.Output(), cmd.Output().Header
					case 1:
						a.in = *cmd.Input()
					case 2:
						a.public = cmd.Public()
						a.public.Store(k, i)
					case 3:
						a.reply, _ = cmd.Result()
					}
				}
			})
		}
		close(start)
		wg.Wait()
		for k := range answers {
			require.Equal(t, *want.Output(), answers[k].out)
			require.Equal(t, *want.Input(), answers[k].in)
			require.Same(t, answers[0].outHdr, answers[k].outHdr)
			require.Equal(t, "x", *answers[k].reply.(*string))
			v, ok := answers[0].public.Load(k)
			require.True(t, ok, "all have the same map")
			require.Equal(t, i, v)
		}
		require.Equal(t, askers+1, cmd.Public().Len())
	}
}

// Public works on a command that is complete: it begins with the session's
// values and is the command's own.
func TestPublicOfACompletePull(t *testing.T) {
	bare, _ := newPacketPair(t, newPacketServer(t))
	bare.Public().Store("a", 1)
	first, second := bare.Pull("/echo", "x", nil), bare.Pull("/echo", "x", nil)
	require.Nil(t, first.seen.Load())
	v, ok := first.Public().Load("a")
	require.True(t, ok)
	require.Equal(t, 1, v)
	first.Public().Store("b", 2)
	v, _ = first.Public().Load("b")
	require.Equal(t, 2, v)
	for _, other := range []goutil.Map{second.Public(), bare.Public()} {
		_, ok = other.Load("b")
		require.False(t, ok)
	}
}

// The same for replies whose bodies cannot be read.
func TestPacketsOfBadReplies(t *testing.T) {
	answer := func(p *Peer, body []byte, length int) *PullCmd {
		conn, far := pipe.New(pipe.Options{})
		sess, err := p.ServeConn(conn)
		require.NoError(t, err)
		go func() {
			b, err := packet.Append(nil, &packet.Packet{
				Header: &packet.Header{Id: "1", Type: packet.TypeReply, StatusCode: StatusOK},
			}, packet.Limits{})
			if err != nil {
				return
			}
			binary.BigEndian.PutUint32(b[len(b)-4:], uint32(length))
			_, _ = far.Read(make([]byte, 1)) // then the pull is in flight
			_, _ = far.Write(append(b, body...))
		}()
		cmd := sess.Pull("/a", 1, new(int), WithHeaderCodec("protobuf"))
		_, _ = sess.Close(), far.Close()
		return cmd
	}
	bare, hooked := newTestPeer(t, nil), newTestPeer(t, nil, newTestPlugin("nothing", nil))
	for name, c := range map[string]struct {
		body   []byte
		length int
		want   int32
	}{
		"no codec has this id": {[]byte("\x01body"), 5, StatusUnsupportedCodec},
		"malformed":            {[]byte("j{"), 2, StatusBadRequest},
		"over the limit":       {nil, 1 << 30, StatusTooLarge},
	} {
		got, want := answer(bare, c.body, c.length), answer(hooked, c.body, c.length)
		require.Equal(t, c.want, want.Xerror.Code(), name)
		require.Equal(t, want.Xerror.Error(), got.Xerror.Error(), name)
		require.Equal(t, want.Input(), got.Input(), name)
		require.Equal(t, want.Output(), got.Output(), name)
	}
}
