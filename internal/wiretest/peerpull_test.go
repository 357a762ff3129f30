package wiretest

import (
	"bytes"
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tp "github.com/henrylee2cn/teleport"
)

// TestPeerPulls: a peer pulls from the second implementation, outside of
// handlers.
func TestPeerPulls(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		for _, bc := range bodyCases() {
			for _, level := range gzipLevels {
				t.Run(fmt.Sprintf("%s header, %s body, gzip %d", headerName, bc.name, level),
					func(t *testing.T) {
						s, c := start(t)
						sess := s.session(t, c)
						var value map[string]any
						var message wrapperspb.StringValue
						var text string
						reply := map[byte]any{idJSON: &value, idProtobuf: &message,
							idString: &text}[bc.codecID]

						cmd := sess.GoPull("/client/ask?a=1", bc.args(), reply, nil, settings(headerName,
							bc.name, level)...)
						pull := c.receive(t)
						require.Equal(t, string(headerCodec), string(pull.headerCodec))
						require.NotEmpty(t, pull.header.ID)
						require.Equal(t, header{ID: pull.header.ID, Type: typePull, URI: "/client/ask?a=1",
							Gzip: level}, pull.header)
						bc.requireSameBody(t, pull)
						c.write(t, answer(pull).withBody(bc.codecID, pull.plain(t)).encode())
						require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
						switch bc.codecID {
						case idJSON:
							require.Equal(t, map[string]any{"note": "a \"note\"", "n": []any{1.0, 2.5, nil,
								map[string]any{"deep": true}}}, value)
						case idProtobuf:
							require.Equal(t, sampleText, message.Value)
						default:
							require.Equal(t, sampleText, text)
						}

						// No body, in both directions.
						text = "as it was"
						cmd = sess.GoPull("/client/ask", nil, &text, nil, settings(headerName, bc.name,
							level)...)
						pull = c.receive(t)
						require.Equal(t, typePull, pull.header.Type)
						require.Empty(t, pull.body)
						c.write(t, answer(pull).encode())
						require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
						require.Equal(t, "as it was", text)
						c.alive(t)
					})
			}
		}
	}
}

// TestReplyChoosesBody: each packet says for itself how its body is encoded.
func TestReplyChoosesBody(t *testing.T) {
	s, c := start(t)
	sess := s.session(t, c)
	for _, level := range gzipLevels {
		var text string
		cmd := sess.GoPull("/client/ask", wrapperspb.String("text"), &text, nil, settings("protobuf",
			"protobuf", 5)...)
		reply := answer(c.receive(t))
		reply.header.Gzip = level
		c.write(t, reply.withBody(idString, []byte(fmt.Sprint(level))).encode())
		require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
		require.Equal(t, fmt.Sprint(level), text)
	}
	c.alive(t)
}

// TestPullInsideHandler: a handler pulls from its caller, on the same session.
func TestPullInsideHandler(t *testing.T) {
	_, c := start(t)
	outer := textPull("outer", "/client/ask")
	outer.header.URI = "/call/back"
	inner := c.ask(t, outer)
	require.Equal(t, typePull, inner.header.Type)
	require.Equal(t, "/client/ask", inner.header.URI)
	require.Equal(t, "from the handler", string(inner.plain(t)))

	// The two directions do not share their ids.
	between := textPull(inner.header.ID, "between")
	reply := c.ask(t, between)
	requireReply(t, between, reply)
	require.Equal(t, "between", string(reply.plain(t)))

	c.write(t, answer(inner).withBody(idString, []byte("from the client")).encode())
	reply = c.receive(t)
	requireReply(t, outer, reply)
	require.Equal(t, "from the client", string(reply.plain(t)))

	// An error passes through the handler.
	inner = c.ask(t, outer)
	refusal := answer(inner)
	refusal.header.StatusCode, refusal.header.Status = 4321, "refused by the client"
	reply = c.ask(t, refusal)
	requireFailed(t, outer, reply, 4321)
	require.Equal(t, "refused by the client", reply.header.Status)
	c.alive(t)
}

// TestRepliesOutOfOrder: the id alone says which reply is whose.
func TestRepliesOutOfOrder(t *testing.T) {
	s, c := start(t)
	sess := s.session(t, c)
	const n = 100
	cmds := make([]*tp.PullCmd, n)
	replies := make([]string, n)
	for i := range n {
		cmds[i] = sess.GoPull("/client/ask", fmt.Sprint(i), &replies[i], nil, tp.WithBodyCodec("string"))
	}
	seen := map[string]bool{}
	var stream []byte
	for i := range n {
		pull := c.receive(t)
		require.False(t, seen[pull.header.ID], "id %q was used twice", pull.header.ID)
		seen[pull.header.ID] = true
		require.Equal(t, fmt.Sprint(i), string(pull.plain(t)), "packets leave in the order of their calls")
		reply := answer(pull).withBody(idString, append([]byte("re "), pull.plain(t)...))
		stream = append(reply.encode(), stream...)
	}
	c.write(t, stream)
	for i, cmd := range cmds {
		require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
		require.Equal(t, fmt.Sprintf("re %d", i), replies[i])
	}
	// Now they are replies to nothing.
	c.write(t, stream)
	c.alive(t)
}

// TestReplyIdsAreExact: a reply is a pull's only if it carries the pull's id as
// it was sent, not another spelling of what the id may look like.
func TestReplyIdsAreExact(t *testing.T) {
	for _, format := range []string{"0%s", "000%s", "+%s", "-%s", " %s", "%s ", "%s\n", "%s\x00", "%s.0",
		"%se0", "0x%s", "%s_", "\"%s\"", "%[1]s%[1]s"} {
		t.Run(fmt.Sprintf("%q", format), func(t *testing.T) {
			s, c := start(t)
			var text string
			cmd := s.session(t, c).GoPull("/client/ask", nil, &text, nil)
			pull := c.receive(t)
			other := answer(pull)
			other.header.ID = fmt.Sprintf(format, pull.header.ID)
			c.write(t, other.withBody(idString, []byte("wrong")).encode())
			c.write(t, answer(pull).withBody(idString, []byte("right")).encode())
			require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
			require.Equal(t, "right", text)
			c.alive(t)
		})
	}
}

// TestReplyToNothing: a reply that nobody waits for is passed over.
func TestReplyToNothing(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		for _, id := range []string{"", "1", "never asked"} {
			t.Run(fmt.Sprintf("%s header, id %q", headerName, id), func(t *testing.T) {
				s, c := start(t)
				f := frame{headerCodec: headerCodec, header: header{ID: id, Type: typeReply, StatusCode: 200,
					URI: "/echo/text"}}
				for _, body := range []string{"", "s", "stext", "j{", "xtext", "\x00"} {
					for _, level := range []int32{0, 5, 77} {
						f.header.Gzip, f.body = level, []byte(body)
						c.write(t, f.encode())
						c.alive(t)
					}
				}
				// It is not kept for a pull to come, either.
				sess := s.session(t, c)
				var text string
				cmd := sess.GoPull("/client/ask", nil, &text, nil)
				c.write(t, answer(c.receive(t)).withBody(idString, []byte("asked")).encode())
				require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
				require.Equal(t, "asked", text)
				c.alive(t)
			})
		}
	}
}

// TestFailedReply: a reply that is an error, or cannot be understood, ends its
// call and nothing else.
func TestFailedReply(t *testing.T) {
	good := compress(6, []byte("a text to compress"))
	long := make([]byte, maxBody+1)
	long[0] = idString
	tests := []struct {
		name   string
		code   int32
		status string
		gzip   int32
		body   string
		want   int32
	}{
		{"status 404", 404, "not found", 0, "", 404},
		{"status 500", 500, "internal server error", 0, "", 500},
		{"status of a service", 123456, "its own", 0, "", 123456},
		{"status negative", -5, "its own", 0, "", -5},
		{"status 201", 201, "created", 0, "", 201},
		{"status 0", 0, "zero", 0, "", 0},
		{"no status at all", 0, "", 0, "", 0},
		{"error with a body", 404, "not found", 0, "stext", 404},
		{"error with a body that does not decode", 404, "not found", 0, "xtext", 404},
		{"error with a broken gzip", 404, "not found", 9, "stext", 404},

		{"body that does not decode", 200, "", 0, "j{", 400},
		{"body of another type", 200, "", 0, "j[1]", 400},
		{"body of no bytes", 200, "", 0, "j", 400},
		{"unknown codec", 200, "", 0, "xtext", 415},
		{"codec 0", 200, "", 0, "\x00text", 415},
		{"not gzip", 200, "", 1, "stext", 400},
		{"gzip cut short", 200, "", -1, "s" + string(good[:len(good)-1]), 400},
		{"gzip level 77", 200, "", 77, "s" + string(good), 400},
		{"over the limit", 200, "", 0, string(long), 413},
	}
	for _, tt := range tests {
		for headerName := range headerCodecs() {
			t.Run(tt.name+", "+headerName+" header", func(t *testing.T) {
				s, c := start(t)
				sess := s.session(t, c)
				var text string
				cmd := sess.GoPull("/client/ask", "args", &text, nil, tp.WithHeaderCodec(headerName))
				reply := answer(c.receive(t))
				reply.header.StatusCode, reply.header.Status, reply.header.Gzip = tt.code, tt.status, tt.gzip
				if tt.body != "" {
					reply.body = []byte(tt.body)
				}
				c.write(t, reply.encode())
				cmd = receiveChan(t, cmd.Done())
				require.NotNil(t, cmd.Xerror)
				require.Equal(t, tt.want, cmd.Xerror.Code(), cmd.Xerror.Text())
				if tt.code != 200 {
					require.Equal(t, tt.status, cmd.Xerror.Text())
				}
				require.Empty(t, text)

				cmd = sess.GoPull("/client/ask", "args", &text, nil)
				c.write(t, answer(c.receive(t)).withBody(idString, []byte("next")).encode())
				require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
				require.Equal(t, "next", text)
				c.alive(t)
			})
		}
	}
}

// TestReplyHeaderFails: a reply whose frame cannot be followed ends the
// session, and with it the call.
func TestReplyHeaderFails(t *testing.T) {
	for name, b := range map[string][]byte{
		"length 0":      {0, 0, 0, 0},
		"unknown codec": rawFrame('x', []byte("header"), nil),
		"undecodable":   rawFrame(idJSON, []byte("{"), nil),
	} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			cmd := s.session(t, c).GoPull("/client/ask", nil, nil, nil)
			c.receive(t)
			c.write(t, b)
			cmd = receiveChan(t, cmd.Done())
			require.NotNil(t, cmd.Xerror)
			require.Equal(t, int32(101), cmd.Xerror.Code())
			c.requireCut(t)
			s.dial(t).alive(t)
		})
	}
}

// TestReplyCutOff ends the connection at every offset of a reply, in good order
// and not. The call ends too, and no other session notices.
func TestReplyCutOff(t *testing.T) {
	for headerName := range headerCodecs() {
		for _, level := range []int32{0, 5} {
			for endName, reset := range map[string]bool{"end": false, "reset": true} {
				t.Run(fmt.Sprintf("%s header, gzip %d, %s", headerName, level, endName), func(t *testing.T) {
					s, other := start(t)
					for cut := 0; ; cut++ {
						c := s.dial(t)
						var text string
						cmd := s.session(t, c).GoPull("/client/ask", nil, &text, nil, settings(headerName,
							"string", level)...)
						b := answer(c.receive(t)).withBody(idString, []byte("text")).encode()
						c.write(t, b[:cut])
						if cut == len(b) {
							// Nothing is missing.
							c.close()
							require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
							require.Equal(t, "text", text)
							break
						}
						if reset {
							require.NoError(t, c.conn.(*net.TCPConn).SetLinger(0))
						}
						c.close()
						cmd = receiveChan(t, cmd.Done())
						require.NotNil(t, cmd.Xerror, "cut at %d of %d", cut, len(b))
						require.Equal(t, int32(101), cmd.Xerror.Code())
						require.Empty(t, text)
						other.alive(t)
					}
				})
			}
		}
	}
}

// TestReplySpelling: a reply's header may have fields that the peer does not
// know.
func TestReplySpelling(t *testing.T) {
	s, c := start(t)
	sess := s.session(t, c)
	for headerName, headerCodec := range headerCodecs() {
		var text string
		cmd := sess.GoPull("/client/ask", nil, &text, nil, tp.WithHeaderCodec(headerName))
		reply := answer(c.receive(t))
		var h []byte
		if headerCodec == idJSON {
			h = fmt.Appendf(nil, `{"meta":{"id":"wrong"},"status":"fine","status_code":200,"type":2,"id":%q}`,
				reply.header.ID)
		} else {
			h = bytes.Join([][]byte{{7<<3 | 2, 1, 0}, protobufHeader(reply.header), {8 << 3, 1}}, nil)
		}
		c.write(t, rawFrame(headerCodec, h, []byte("stext")))
		require.Nil(t, receiveChan(t, cmd.Done()).Xerror)
		require.Equal(t, "text", text)
	}
	c.alive(t)
}
