package wiretest

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tp "github.com/henrylee2cn/teleport"
)

// TestPush: a push is handled once and never answered. That nothing follows is
// what serve requires at the end of every test.
func TestPush(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		for _, bc := range bodyCases() {
			for _, level := range gzipLevels {
				t.Run(fmt.Sprintf("%s header, %s body, gzip %d", headerName, bc.name, level),
					func(t *testing.T) {
						s, c := start(t)
						push := frame{
							headerCodec: headerCodec,
							header: header{ID: "an id", Type: typePush, URI: bc.note + "?a=1",
								Gzip: level},
						}.withBody(bc.codecID, bc.plain)
						want := sampleText
						if bc.codecID == idJSON {
							want = "a \"note\""
							push = push.withBody(idJSON, []byte(`{"note":"a \"note\""}`))
						}
						c.write(t, push.encode())
						require.Equal(t, want, receiveChan(t, s.notes))
						c.alive(t)
					})
			}
		}
	}
}

// TestPushes sends many pushes between pulls.
func TestPushes(t *testing.T) {
	s, c := start(t)
	const n = 200
	var stream []byte
	for i := range n {
		push := frame{headerCodec: idProtobuf, header: header{Type: typePush, URI: "/note/text"}}
		stream = append(stream, push.withBody(idString, fmt.Append(nil, i)).encode()...)
	}
	c.write(t, stream)
	seen := map[string]bool{}
	for range n {
		note := receiveChan(t, s.notes)
		require.False(t, seen[note], "%s was handled twice", note)
		seen[note] = true
	}
	c.alive(t)
}

// TestFailedPush: what is wrong with a push is not told to its sender, and does
// not end the session.
func TestFailedPush(t *testing.T) {
	tests := []struct {
		name string
		uri  string
		gzip int32
		body string
		note string // what the handler gets before it fails
	}{
		{"unknown URI", "/nobody", 0, "stext", ""},
		{"unknown URI without a body", "/nobody", 0, "", ""},
		{"a route of pulls", "/echo/text", 0, "stext", ""},
		{"bad URI", "/note/text%zz", 0, "stext", ""},
		{"body that does not decode", "/note/map", 0, "j{", ""},
		{"unknown body codec", "/note/text", 0, "xtext", ""},
		{"body codec 0", "/note/text", 0, "\x00text", ""},
		{"broken gzip", "/note/text", 5, "stext", ""},
		{"gzip level 77", "/note/text", 77, "s" + string(compress(5, []byte("text"))), ""},
		{"handler's panic", "/note/panic", 0, "stext", "text"},
	}
	for _, tt := range tests {
		for headerName, headerCodec := range headerCodecs() {
			for _, id := range []string{"", "an id"} {
				t.Run(fmt.Sprintf("%s, %s header, id %q", tt.name, headerName, id), func(t *testing.T) {
					s, c := start(t)
					push := frame{headerCodec: headerCodec, header: header{ID: id, Type: typePush,
						URI: tt.uri, Gzip: tt.gzip}}
					if tt.body != "" {
						push.body = []byte(tt.body)
					}
					c.write(t, push.encode())
					if tt.note != "" {
						require.Equal(t, tt.note, receiveChan(t, s.notes))
					}
					c.alive(t)
				})
			}
		}
	}
}

// TestPushWithoutBody: no body leaves the handler's argument as it is made.
func TestPushWithoutBody(t *testing.T) {
	s, c := start(t)
	for _, headerCodec := range headerCodecs() {
		c.write(t, frame{headerCodec: headerCodec, header: header{Type: typePush,
			URI: "/note/text"}}.encode())
		require.Empty(t, receiveChan(t, s.notes))
	}
	c.alive(t)
}

// settings are those for a packet that a peer sends.
func settings(headerName, bodyName string, level int32) []tp.PacketSetting {
	return []tp.PacketSetting{tp.WithHeaderCodec(headerName), tp.WithBodyCodec(bodyName), tp.WithGzip(level)}
}

// args is the Go value of a body case.
func (bc bodyCase) args() any {
	switch bc.codecID {
	case idJSON:
		return map[string]any{"note": "a \"note\"", "n": []any{1, 2.5, nil, map[string]bool{"deep": true}}}
	case idProtobuf:
		return wrapperspb.String(sampleText)
	default:
		return sampleText
	}
}

// TestPeerPushes: what a peer pushes is as the format says.
func TestPeerPushes(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		for _, bc := range bodyCases() {
			for _, level := range gzipLevels {
				t.Run(fmt.Sprintf("%s header, %s body, gzip %d", headerName, bc.name, level),
					func(t *testing.T) {
						s, c := start(t)
						sess := s.session(t, c)
						require.Nil(t, sess.Push("/client/note?a=1", bc.args(), settings(headerName, bc.name,
							level)...))
						push := c.receive(t)
						require.Equal(t, string(headerCodec), string(push.headerCodec))
						require.Equal(t, header{ID: push.header.ID, Type: typePush, URI: "/client/note?a=1",
							Gzip: level}, push.header)
						bc.requireSameBody(t, push)

						require.Nil(t, sess.Push("/client/note", nil, settings(headerName, bc.name,
							level)...))
						push = c.receive(t)
						require.Equal(t, typePush, push.header.Type)
						require.Empty(t, push.body)
						c.alive(t)
					})
			}
		}
	}
}
