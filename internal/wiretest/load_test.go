package wiretest

import (
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

// TestLoadIsTold: a pull that asks is answered with the load, and with nothing else that is new.
func TestLoadIsTold(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		t.Run(headerName, func(t *testing.T) {
			_, c := start(t)
			pull := textPull("asks", "text")
			pull.headerCodec = headerCodec
			for _, question := range []int32{1, 2, -1, math.MaxInt32, math.MinInt32} {
				pull.header.Load = question
				reply := c.ask(t, pull)
				requireReply(t, pull, reply)
				requireSomeLoad(t, reply)
				require.Equal(t, "text", string(reply.plain(t)))
			}
			pull.header.Load, pull.header.QueueDelay = 0, 1 // which asks for nothing
			reply := c.ask(t, pull)
			requireReply(t, pull, reply)
			require.Zero(t, reply.header.Load)
			require.Zero(t, reply.header.QueueDelay)

			// An error tells it too, of a handler and of a pull that has none.
			for uri, code := range map[string]int32{"/nobody": 404, "/fail/panic": 500} {
				pull.header.URI, pull.header.Load = uri, 1
				reply := c.ask(t, pull)
				require.Equal(t, code, reply.header.StatusCode)
				requireSomeLoad(t, reply)
			}
			c.alive(t)
		})
	}
}

// requireSomeLoad requires that the reply tells a load of the few calls of a test. Those that were answered
// before may count for a moment.
func requireSomeLoad(t *testing.T, reply frame) {
	t.Helper()
	require.Positive(t, reply.header.Load)
	require.Less(t, reply.header.Load, int32(20))
	require.GreaterOrEqual(t, reply.header.QueueDelay, int32(0))
}

// TestLoadIsToldOfPullsOnly: what is no pull gets no load, whatever it asks.
func TestLoadIsToldOfPullsOnly(t *testing.T) {
	_, c := start(t)
	for _, typ := range []int32{6, 9} { // a ping, and what nobody knows
		f := frame{headerCodec: idProtobuf, header: header{ID: "asks", Type: typ, URI: "/echo/text",
			Load: 1}}
		reply := c.ask(t, f)
		require.Equal(t, typeReply, reply.header.Type)
		require.Zero(t, reply.header.Load)
		require.Zero(t, reply.header.QueueDelay)
	}
	c.alive(t)
}

// TestNoRoomForTheLoad: where an id leaves no room for the load in the header of the reply, the pull is
// answered all the same.
func TestNoRoomForTheLoad(t *testing.T) {
	_, c := start(t)
	id := strings.Repeat("i", maxHeader-1-len("\x0a\xff\xff\x03\x10\x01\x1a\x02/x\x50\x01"))
	f := frame{headerCodec: idProtobuf, header: header{ID: id, Type: typePull, URI: "/x", Load: 1}}
	require.Equal(t, uint32(maxHeader), binary.BigEndian.Uint32(f.encode()))
	reply := c.ask(t, f)
	require.Equal(t, id, reply.header.ID)
	require.Equal(t, int32(404), reply.header.StatusCode)
	require.Zero(t, reply.header.Load)
	c.alive(t)
}

// TestLoadOfPullsThatWait: calls of other connections count, those that are answered do not.
func TestLoadOfPullsThatWait(t *testing.T) {
	s, c := start(t)
	other := s.dial(t)
	for _, id := range []string{"a", "b"} {
		other.write(t, frame{headerCodec: idProtobuf, header: header{ID: id, Type: typePull,
			URI: "/gate/wait"}}.encode())
		receiveChan(t, s.entered)
	}
	pull := textPull("asks", "text")
	pull.header.URI, pull.header.Load = "/nobody", 1
	require.EqualValues(t, 2, c.ask(t, pull).header.Load)
	close(s.release)
	other.receive(t)
	other.receive(t)
	other.alive(t)
	c.alive(t)
}

// asks has each pull ask for the load, by the hook that any program may have.
type asks struct{}

func (asks) Name() string { return "asks" }

func (asks) PreWritePull(ctx tp.WriteCtx) error {
	ctx.Output().Header.Load = 1
	return nil
}

// TestPeerAsksForTheLoad: the question is one small field, and any answer will do: one of a peer that does
// not know it, and numbers that make no sense. A reply that tells what nobody has asked for is a reply.
func TestPeerAsksForTheLoad(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		for _, asking := range []bool{true, false} {
			t.Run(headerName, func(t *testing.T) {
				var plugins []tp.Plugin
				question := int32(0)
				if asking {
					plugins, question = append(plugins, asks{}), 1
				}
				s, c := start(t, plugins...)
				sess := s.session(t, c)
				for _, told := range [][2]int32{{0, 0}, {1, 0}, {7, 250}, {0, 250}, {-7, -250},
					{math.MaxInt32, math.MaxInt32}, {math.MinInt32, math.MinInt32}} {
					var text string
					cmd := sess.GoPull("/client/ask", nil, &text, nil, tp.WithHeaderCodec(headerName))
					pull := c.receive(t)
					require.Equal(t, string(headerCodec), string(pull.headerCodec))
					require.Equal(t, header{ID: pull.header.ID, Type: typePull, URI: "/client/ask",
						Load: question}, pull.header)
					reply := answer(pull).withBody(idString, []byte("text"))
					reply.header.Load, reply.header.QueueDelay = told[0], told[1]
					c.write(t, reply.encode())
					require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
					require.Equal(t, "text", text)
					if asking {
						in := cmd.Input().Header
						require.Equal(t, told, [2]int32{in.Load, in.QueueDelay})
					}
				}
				c.alive(t)
			})
		}
	}
}
