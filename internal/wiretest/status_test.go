package wiretest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// TestFailedPull makes pulls that fail, each with both header codecs. What
// fails is one call; the session lives on.
func TestFailedPull(t *testing.T) {
	good := compress(6, []byte("a text to compress"))
	crc := bytes.Clone(good)
	crc[len(crc)-8]++
	body := func(id byte, b string) []byte { return append([]byte{id}, b...) }
	text := body(idString, "text")

	tests := []struct {
		name string
		uri  string
		gzip int32
		body []byte
		code int32
	}{
		{"json cut short", "/echo/map", 0, body(idJSON, `{"a":`), 400},
		{"json of another type", "/echo/map", 0, body(idJSON, `[1,2]`), 400},
		{"json with more behind it", "/echo/map", 0, body(idJSON, `{"a":1} {"b":2}`), 400},
		{"json with a comma too many", "/echo/map", 0, body(idJSON, `{"a":1,}`), 400},
		{"json with a leading zero", "/echo/map", 0, body(idJSON, `{"a":01}`), 400},
		{"json with an unknown escape", "/echo/map", 0, body(idJSON, `{"a":"\x"}`), 400},
		{"json with a bare line feed", "/echo/map", 0, body(idJSON, "{\"a\":\"\n\"}"), 400},
		{"json with a bare name", "/echo/map", 0, body(idJSON, `{a:1}`), 400},
		{"json of spaces", "/echo/map", 0, body(idJSON, "  "), 400},
		{"not json", "/echo/map", 0, body(idJSON, "\x00\xff"), 400},
		{"protobuf cut short", "/echo/message", 0, body(idProtobuf, "\x0a\x05a"), 400},
		{"protobuf without a type", "/echo/message", 0, body(idProtobuf, "\x0f"), 400},
		{"not protobuf", "/echo/message", 0, body(idProtobuf, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
			400},
		{"protobuf for what is no message", "/echo/text", 0, body(idProtobuf, "\x0a\x01a"), 400},
		{"string for a map", "/echo/map", 0, body(idString, "{}"), 400},

		{"unknown body codec", "/echo/text", 0, body('x', "text"), 415},
		{"body codec 0", "/echo/text", 0, body(0, "text"), 415},
		{"unknown body codec alone", "/echo/text", 0, body('x', ""), 415},

		{"not gzip", "/echo/text", 1, text, 400},
		{"gzip cut short", "/echo/text", 6, body(idString, string(good[:len(good)-1])), 400},
		{"gzip header alone", "/echo/text", 6, body(idString, string(good[:10])), 400},
		{"gzip cut in its header", "/echo/text", -1, body(idString, string(good[:5])), 400},
		{"gzip with a wrong checksum", "/echo/text", -2, body(idString, string(crc)), 400},
		{"gzip with more behind it", "/echo/text", 9, body(idString, string(good)+"more"), 400},
		{"gzip around a broken body", "/echo/map", 9, body(idJSON, string(compress(9, []byte("{")))), 400},
		{"gzip level 77", "/echo/text", 77, body(idString, string(good)), 400},
		{"gzip level 10", "/echo/text", 10, body(idString, string(good)), 400},
		{"gzip level -3", "/echo/text", -3, body(idString, string(good)), 400},
		{"gzip level 1<<31-1", "/echo/text", 1<<31 - 1, body(idString, string(good)), 400},
		{"gzip level -1<<31", "/echo/text", -1 << 31, body(idString, string(good)), 400},

		{"unknown URI", "/nobody", 0, text, 404},
		{"unknown method", "/echo/nobody", 0, text, 404},
		{"above a method", "/echo", 0, text, 404},
		{"below a method", "/echo/text/more", 0, text, 404},
		{"other case", "/Echo/Text", 0, text, 404},
		{"a route of pushes", "/note/text", 0, text, 404},
		{"unknown URI without a body", "/nobody", 0, nil, 404},
		{"unknown URI with a query", "/nobody?uri=/echo/text", 0, text, 404},

		{"URI with a broken escape", "/echo/text%zz", 0, text, 400},
		{"URI with an escape cut short", "/echo/text%2", 0, text, 400},

		{"error of code 0", "/fail/zero", 0, text, 0},
		{"error of code 0, compressed", "/fail/zero", 5, body(idString, string(good)), 0},
		{"error of code 0 without a body", "/fail/zero", 0, nil, 0},
		{"error of another code", "/fail/status", 0, text, 1234},
		{"error of a negative code", "/fail/code", 0, body(idJSON, "-7"), -7},
		{"error of the largest code", "/fail/code", 0, body(idJSON, "2147483647"), 1<<31 - 1},
		{"panic", "/fail/panic", 0, text, 500},
		{"panic with an error", "/fail/panic_error", 0, text, 500},
		{"reply that does not encode as string", "/fail/encode", 0, text, 500},
		{"reply that does not encode as json", "/fail/encode", 0, body(idJSON, `""`), 500},
	}
	for _, tt := range tests {
		for headerName, headerCodec := range headerCodecs() {
			t.Run(tt.name+", "+headerName+" header", func(t *testing.T) {
				_, c := start(t)
				pull := frame{
					headerCodec: headerCodec,
					header:      header{ID: "pull", Type: typePull, URI: tt.uri, Gzip: tt.gzip},
					body:        tt.body,
				}
				reply := c.ask(t, pull)
				requireFailed(t, pull, reply, tt.code)
				require.NotContains(t, string(reply.rawHeader), secret)
				switch {
				case strings.HasPrefix(tt.uri, "/fail/panic"):
					require.Equal(t, "internal server error", reply.header.Status)
				case tt.uri == "/fail/zero":
					require.Equal(t, "zero", reply.header.Status)
				case tt.uri == "/fail/status":
					require.Equal(t, "text", reply.header.Status)
				}
				c.alive(t)
			})
		}
	}
}

// TestQuery: the query takes no part in finding the handler.
func TestQuery(t *testing.T) {
	_, c := start(t)
	for _, uri := range []string{"/echo/text?", "/echo/text?a=1&b=%20", "/echo/text?path=/nobody"} {
		pull := textPull("query", "text")
		pull.header.URI = uri
		requireReply(t, pull, c.ask(t, pull))
	}
	c.alive(t)
}

// TestLocalCodes: the codes of what one side finds out for itself do not leave
// it, not even if a handler returns them.
func TestLocalCodes(t *testing.T) {
	for code := 100; code <= 103; code++ {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			_, c := start(t)
			pull := frame{
				headerCodec: idProtobuf,
				header:      header{ID: "local", Type: typePull, URI: "/fail/code"},
			}.withBody(idJSON, []byte(fmt.Sprint(code)))
			reply := c.ask(t, pull)
			require.Equal(t, typeReply, reply.header.Type)
			require.Equal(t, "local", reply.header.ID)
			require.NotEqual(t, int32(200), reply.header.StatusCode)
			require.False(t, 100 <= reply.header.StatusCode && reply.header.StatusCode < 200,
				"status code %d was sent", reply.header.StatusCode)
			c.alive(t)
		})
	}
}

// TestPluginErrors: a hook that fails, or panics, fails the call with 424.
func TestPluginErrors(t *testing.T) {
	fails := map[string]func() error{"error": refuse, "panic": explode}
	for _, point := range []string{"PostReadHeader", "PreReadBody", "PostReadBody", "PreWriteReply"} {
		for failName, fail := range fails {
			for headerName, headerCodec := range headerCodecs() {
				t.Run(fmt.Sprintf("%s, %s, %s header", point, failName, headerName), func(t *testing.T) {
					uri := "/echo/text?fail"
					var s *server
					var c *client
					if point == "PreWriteReply" {
						s, c = start(t)
						if uri = "/guarded/text"; failName == "panic" {
							uri = "/mined/text"
						}
					} else {
						s, c = start(t, hook{point, fail})
					}
					for _, pull := range []frame{
						{headerCodec: headerCodec, header: header{ID: "no body", Type: typePull, URI: uri}},
						frame{headerCodec: headerCodec, header: header{ID: "body", Type: typePull,
							URI: uri}}.withBody(idString, []byte("text")),
						frame{headerCodec: headerCodec, header: header{ID: "gzip", Type: typePull, URI: uri,
							Gzip: 5}}.withBody(idString, []byte("text")),
					} {
						reply := c.ask(t, pull)
						requireFailed(t, pull, reply, 424)
						require.NotContains(t, string(reply.rawHeader), secret)
						c.alive(t)
					}
					if point == "PreWriteReply" {
						return
					}
					// A push that a hook refuses is dropped; the next one is not.
					push := frame{headerCodec: headerCodec, header: header{Type: typePush,
						URI: "/note/text?fail"}}.withBody(idString, []byte("refused"))
					c.write(t, push.encode())
					push.header.URI = "/note/text"
					c.write(t, push.withBody(idString, []byte("passed")).encode())
					require.Equal(t, "passed", receiveChan(t, s.notes))
					c.alive(t)
				})
			}
		}
	}
}

// TestStatusText: a text that is long, or that would do things to a terminal or
// a log, is sent cut and escaped.
func TestStatusText(t *testing.T) {
	tests := []struct {
		name, text string
		same       bool
	}{
		{"plain", "a plain text: 100%, \"quoted\", /path?x=<y>&z", true},
		{"not ascii", "ünïcödé 世界 🙂", true},
		{"1 KiB", strings.Repeat("k", 1024), true},
		{"1 KiB and a byte", strings.Repeat("k", 1025), false},
		{"1 MiB", strings.Repeat("m", 1<<20), false},
		{"long, cut inside a rune", "k" + strings.Repeat("é", 1024), false},
		{"long, cut inside a longer rune", "kk" + strings.Repeat("🙂", 1024), false},
		{"line feed", "before\nafter", false},
		{"carriage return", "before\r\nafter", false},
		{"nul", "before\x00after", false},
		{"terminal escape", "before\x1b[31mafter", false},
		{"delete", "before\x7fafter", false},
		{"C1 control", "before\u009bafter", false},
		{"long with control characters", strings.Repeat("\x1b", 2000), false},
		{"not UTF-8", "before\xff\xc3after", false},
	}
	for _, tt := range tests {
		for headerName, headerCodec := range headerCodecs() {
			t.Run(tt.name+", "+headerName+" header", func(t *testing.T) {
				_, c := start(t)
				pull := textPull("status", tt.text)
				pull.headerCodec, pull.header.URI = headerCodec, "/fail/status"
				reply := c.ask(t, pull)
				requireFailed(t, pull, reply, 1234)
				status := reply.header.Status
				if tt.same {
					require.Equal(t, tt.text, status)
				}
				requireClean(t, status)
				if utf8.ValidString(tt.text) {
					require.NotContains(t, status, "\uFFFD", "a rune was cut")
				}
				if strings.HasPrefix(tt.text, "before") {
					require.True(t, strings.HasPrefix(status, "before"), "%q", status)
					require.True(t, strings.HasSuffix(status, "after"), "%q", status)
					require.Greater(t, len(status), len("beforeafter"),
						"the control character left no trace: %q", status)
				}
				c.alive(t)
			})
		}
	}
}

// requireClean requires that a status text is short and fit to be shown.
func requireClean(t *testing.T, status string) {
	t.Helper()
	require.NotEmpty(t, status)
	require.LessOrEqual(t, len(status), 1024)
	require.True(t, utf8.ValidString(status), "%q", status)
	require.Equal(t, -1, strings.IndexFunc(status, unicode.IsControl), "%q", status)
}

// TestStatusTextOfPeer: the texts that a peer makes itself, of what it was
// sent, are held to the same.
func TestStatusTextOfPeer(t *testing.T) {
	dirt := "\x1b[31m\r\n\x00\u009b"
	long := strings.Repeat("dirt"+dirt, 2000)
	for headerName, headerCodec := range headerCodecs() {
		t.Run(headerName+" header", func(t *testing.T) {
			_, c := start(t, hook{"PostReadHeader", func() error { return errors.New(long) }})
			pull := func(uri string, codecID byte, body string) {
				t.Helper()
				f := frame{headerCodec: headerCodec, header: header{ID: "dirt", Type: typePull,
					URI: uri}}.withBody(codecID, []byte(body))
				reply := c.ask(t, f)
				require.NotEqual(t, int32(200), reply.header.StatusCode)
				requireFailed(t, f, reply, reply.header.StatusCode)
				requireClean(t, reply.header.Status)
			}
			pull("/echo/text?fail", idString, "a plugin's text")
			// As json three fifths of it are escapes of six bytes.
			pull("/%zz"+long[:12000], idString, "")
			pull("/nobody"+long[:12000], idString, "")
			pull("/echo/map", idJSON, dirt)
			pull("/echo/map", idJSON, `{"a":"`+long)
			pull("/echo/message", idProtobuf, dirt)
			c.alive(t)
		})
	}
}

// TestShuttingDown: a peer that shuts down answers what it has begun, and new
// pulls with 503.
func TestShuttingDown(t *testing.T) {
	s, c := start(t)
	begun := textPull("begun", "text")
	begun.header.URI = "/gate/wait"
	c.write(t, begun.encode())
	receiveChan(t, s.entered)

	done := s.shutdown()
	for refused := false; !refused; {
		pull := textPull("new", "text")
		reply := c.ask(t, pull)
		if refused = reply.header.StatusCode != 200; refused {
			requireFailed(t, pull, reply, 503)
		}
	}
	close(s.release)
	requireReply(t, begun, c.receive(t))
	c.requireEnd(t)
	require.Equal(t, []int32{0, 200}, c.away)
	require.NoError(t, receiveChan(t, done))
}
