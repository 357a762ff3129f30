package tp

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// What a reply says is believed only as far as another side can know it: that a connection
// has ended, or that nothing was sent, it cannot.
func TestRepliesWithCodesOfTheCallersSide(t *testing.T) {
	for _, plugins := range [][]Plugin{nil, {hookPlugin("seen", "PostReadHeader",
		func(interface{}) error { return nil })}} {
		cli := newTestPeer(t, nil, plugins...)
		conn, far := pipe.New(pipe.Options{})
		sess, err := cli.ServeConn(conn)
		require.NoError(t, err)
		sock := socket.New(far, socket.Options{WriteTimeout: time.Minute})
		t.Cleanup(func() { _ = sock.Close() })
		for _, c := range []struct {
			code   int32
			notRun bool
			want   string // "" is success
			unrun  bool
		}{
			{100, true, "502 text", false}, {101, true, "502 text", false}, {101, false, "502 text", false},
			{102, true, "502 text", false},
			{103, true, "502 text", false}, {150, true, "502 text", false}, {199, true, "502 text", false},
			{200, true, "", false},
			{0, false, "0 text", false}, {-1, false, "-1 text", false}, {99, false, "99 text", false},
			{503, false, "503 text", false},
			// a plugin may refuse with any
			{503, true, "503 text", true}, {404, true, "404 text", true}, {7, true, "7 text", true},
		} {
			cmd := sess.GoPull("/a", 1, nil, nil)
			var pull packet.Packet
			require.NoError(t, sock.ReadPacket(&pull, func(*packet.Header) interface{} { return nil }))
			require.NoError(t, sock.WritePacket(&packet.Packet{
				HeaderCodec: "protobuf", BodyCodec: "json", Body: 5,
				Header: &packet.Header{Id: pull.Header.Id, Type: packet.TypeReply, StatusCode: c.code,
					Status: "text", NotRun: c.notRun},
			}))
			<-cmd.Done()
			if c.want == "" {
				require.Nil(t, cmd.Xerror)
				continue
			}
			require.EqualError(t, cmd.Xerror, c.want)
			require.Equal(t, c.unrun, NotRun(cmd.Xerror), "%d", c.code)
			var details int
			found, err := Details(cmd.Xerror, &details)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, 5, details)
			require.Equal(t, c.code, cmd.Input().Header.StatusCode, "the packet is as it came")
		}
	}
}
