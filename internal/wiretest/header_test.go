package wiretest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	tp "github.com/henrylee2cn/teleport"
)

// TestIds: an id means nothing to the receiver, and comes back as it was.
func TestIds(t *testing.T) {
	ids := map[string]string{
		"empty":              "",
		"number":             "1",
		"path":               "a/b",
		"URI":                "/a/b?c=d%20#e",
		"200 bytes":          strings.Repeat("0123456789", 20),
		"4 KiB":              strings.Repeat("x", 4096),
		"unicode":            "ünïcödé 世界 🙂",
		"combining":          "e\u0301 is not é",
		"separators":         "\u2028\u2029\ufeff\u0085",
		"control characters": "\x00\x01\b\t\n\r\x1b\x7f",
		"json":               `"}\","id":"another\u0031`,
		"html":               "<b>&amp;</b>",
		"spaces":             "  ",
		"replacement":        "\ufffd",
	}
	for idName, id := range ids {
		for headerName, headerCodec := range headerCodecs() {
			t.Run(idName+", "+headerName+" header", func(t *testing.T) {
				_, c := start(t)
				pull := textPull(id, "text")
				pull.headerCodec = headerCodec
				requireReply(t, pull, c.ask(t, pull))
				pull.header.URI = "/nobody"
				requireFailed(t, pull, c.ask(t, pull), 404)
				c.alive(t)
			})
		}
	}
}

// TestUnknownType: a packet of a type that the peer does not know is answered
// if it can be, and never the session's end.
func TestUnknownType(t *testing.T) {
	bodies := map[string][]byte{
		"no body":       nil,
		"body":          []byte("sbody"),
		"unknown codec": []byte("xbody"),
	}
	for _, typ := range []int32{9, 0, -1, math.MaxInt32, math.MinInt32} {
		for bodyName, body := range bodies {
			for headerName, headerCodec := range headerCodecs() {
				t.Run(fmt.Sprintf("%d, %s, %s header", typ, bodyName, headerName), func(t *testing.T) {
					_, c := start(t)
					f := frame{headerCodec: headerCodec, header: header{ID: "unknown", Type: typ,
						URI: "/echo/text"}, body: body}
					requireFailed(t, f, c.ask(t, f), 410)
					c.alive(t)

					f.header.ID = ""
					c.write(t, f.encode())
					c.alive(t)
				})
			}
		}
	}
	t.Run("header without a field", func(t *testing.T) {
		_, c := start(t)
		for headerCodec, h := range map[byte]string{idProtobuf: "", idJSON: "{}"} {
			c.write(t, rawFrame(headerCodec, []byte(h), nil))
			c.alive(t)
		}
	})
}

// TestPing: whoever asks whether the peer is there is answered, with the id of the question,
// while a handler runs and whatever body the question has.
func TestPing(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		t.Run(headerName, func(t *testing.T) {
			_, c := start(t)
			for _, id := range []string{"ping", "1", strings.Repeat("x", 1000)} {
				f := frame{headerCodec: headerCodec, header: header{ID: id, Type: 6}, body: []byte("sbody")}
				got := c.ask(t, f)
				require.Equal(t, id, got.header.ID)
				require.EqualValues(t, 2, got.header.Type)
				require.EqualValues(t, 200, got.header.StatusCode)
				require.Empty(t, got.body)
			}
			c.write(t, frame{headerCodec: headerCodec, header: header{Type: 6}}.encode())
			c.alive(t)
		})
	}
}

// TestUnknownFields: what a header has beside its eleven fields is passed over.
func TestUnknownFields(t *testing.T) {
	var unknown []byte
	for _, n := range []protowire.Number{12, 15, 16, 1000, protowire.MaxValidNumber} {
		unknown = protowire.AppendTag(unknown, n, protowire.VarintType)
		unknown = protowire.AppendVarint(unknown, math.MaxUint64)
		unknown = protowire.AppendTag(unknown, n, protowire.Fixed32Type)
		unknown = protowire.AppendFixed32(unknown, math.MaxUint32)
		unknown = protowire.AppendTag(unknown, n, protowire.Fixed64Type)
		unknown = protowire.AppendFixed64(unknown, math.MaxUint64)
		unknown = protowire.AppendTag(unknown, n, protowire.BytesType)
		unknown = protowire.AppendBytes(unknown, []byte("\xff not a text\x00"))
		unknown = protowire.AppendTag(unknown, n, protowire.BytesType)
		unknown = protowire.AppendBytes(unknown, nil)
		unknown = protowire.AppendTag(unknown, n, protowire.StartGroupType)
		unknown = protowire.AppendTag(unknown, 1, protowire.BytesType)
		unknown = protowire.AppendString(unknown, "not the id")
		unknown = protowire.AppendTag(unknown, 2, protowire.StartGroupType)
		unknown = protowire.AppendTag(unknown, 2, protowire.EndGroupType)
		unknown = protowire.AppendTag(unknown, n, protowire.EndGroupType)
	}
	pull := textPull("right", "text")
	known := protobufHeader(pull.header)
	_, _, idLength := protowire.ConsumeField(known)

	tests := []struct {
		name   string
		codec  byte
		header string
	}{
		{"protobuf, behind", idProtobuf, string(known) + string(unknown)},
		{"protobuf, in front", idProtobuf, string(unknown) + string(known)},
		{"protobuf, between", idProtobuf,
			string(known[:idLength]) + string(unknown) + string(known[idLength:])},
		{"json, scalars", idJSON,
			`{"a":1,"id":"right","b":-1.5e300,"type":1,"c":true,"uri":"/echo/text","d":null,"e":"text"}`},
		{"json, nested", idJSON,
			`{"z":{"id":"wrong","type":[1,{"uri":"}"},"]"]},"id":"right","type":1,"y":[[],{},[{}]],"uri":"/echo/text"}`},
		{"json, numbers", idJSON,
			`{"a":-0,"id":"right","b":1E+5,"type":1,"c":123456789012345678901234567890,"uri":"/echo/text","d":-1e-999}`},
		{"json, a number out of range", idJSON, `{"id":"right","type":1,"uri":"/echo/text","a":1e999}`},
		{"json, strings", idJSON,
			`{"":"","id":"right","\"id\":":"\\","type":1,"a":"\ud83d\ude42\ud800\u0000","uri":"/echo/text"}`},
		{"json, extension fields", idJSON,
			`{"id":"right","type":1,"uri":"/echo/text","metas":{"k":["v"]},"timeouts":1000}`},
		{"json, the Go field names", idJSON,
			`{"Id":"wrong","Type":2,"Uri":"/wrong","Gzip":9,"StatusCode":1,"id":"right","type":1,"uri":"/echo/text","ID":"wrong","TYPE":2,"URI":"/wrong","GZIP":9}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, c := start(t)
			pull := pull
			pull.headerCodec = tt.codec
			c.write(t, rawFrame(tt.codec, []byte(tt.header), pull.body))
			reply := c.receive(t)
			requireReply(t, pull, reply)
			require.Equal(t, "text", string(reply.plain(t)))
			c.alive(t)
		})
	}
}

// TestSpellings: a header may be written in every way that its codec allows.
func TestSpellings(t *testing.T) {
	text := []byte("stext")
	packed := append([]byte{idString}, compress(5, []byte("text"))...)
	tests := []struct {
		name   string
		codec  byte
		header string
		body   []byte
	}{
		{"json, zeros given", idJSON,
			`{"id":"spelt","type":1,"uri":"/echo/text","gzip":0,"status_code":0,"status":""}`, text},
		{"json, other order", idJSON, `{"status":"","uri":"/echo/text","gzip":5,"type":1,"id":"spelt"}`,
			packed},
		{"json, space", idJSON, " \t\r\n{ \"id\" : \"spelt\" ,\n\"type\":\t1 , \"uri\" : \"/echo/text\" } \n",
			text},
		{"json, escapes in values", idJSON, `{"id":"\u0073pelt","type":1,"uri":"\/echo\/te\u0078t"}`, text},
		{"json, escapes in names", idJSON, `{"\u0069d":"spelt","t\u0079pe":1,"uri":"/echo/text"}`, text},
		{"protobuf, zeros given", idProtobuf,
			"\x0a\x05spelt\x10\x01\x1a\x0a/echo/text\x20\x00\x28\x00\x32\x00", text},
		{"protobuf, other order", idProtobuf, "\x20\x05\x1a\x0a/echo/text\x10\x01\x0a\x05spelt", packed},
		{"protobuf, long numbers", idProtobuf, "\x0a\x85\x00spelt\x10\x81\x80\x80\x00\x1a\x8a\x00/echo/text",
			text},
		{"protobuf, long tags", idProtobuf, "\x8a\x00\x05spelt\x90\x80\x00\x01\x9a\x00\x0a/echo/text", text},
		{"protobuf, the last one counts", idProtobuf,
			"\x0a\x05wrong\x10\x02\x1a\x06/wrong\x0a\x05spelt\x10\x01\x1a\x0a/echo/text", text},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, c := start(t)
			c.write(t, rawFrame(tt.codec, []byte(tt.header), tt.body))
			reply := c.receive(t)
			require.Equal(t, header{ID: "spelt", Type: typeReply, StatusCode: 200},
				header{ID: reply.header.ID, Type: reply.header.Type, StatusCode: reply.header.StatusCode})
			require.Equal(t, string(tt.codec), string(reply.headerCodec))
			require.Equal(t, "text", string(reply.plain(t)))
			c.alive(t)
		})
	}
}

// TestHeaderLimit: a header of the limit's length passes.
func TestHeaderLimit(t *testing.T) {
	_, c := start(t)
	pull := textPull("long header", "text")
	h := protobufHeader(pull.header)
	h = protowire.AppendTag(h, 7, protowire.BytesType)
	// a length of this size takes three bytes
	h = protowire.AppendBytes(h, make([]byte, maxHeader-1-len(h)-3))
	b := rawFrame(idProtobuf, h, pull.body)
	require.Equal(t, uint32(maxHeader), binary.BigEndian.Uint32(b))
	c.write(t, b)
	requireReply(t, pull, c.receive(t))
	c.alive(t)
}

// TestLongIds: where an id leaves little room in the header of the reply, the
// pull is answered all the same.
func TestLongIds(t *testing.T) {
	fill := func(overhead int) string { return strings.Repeat("i", maxHeader-1-overhead) }
	uri := "/gate/refuse"
	tests := []struct {
		name   string
		codec  byte
		id     string
		header string
		ok     bool // the handler's reply is a success
		ends   bool // no answer fits, and the session ends
	}{
		{name: "protobuf, no room for the status text", codec: idProtobuf, id: fill(4 + 2 + 2 + len(uri))},
		{name: "json, no room for the status text", codec: idJSON,
			id: fill(len(`{"id":"","type":1,"uri":"/gate/refuse"}`))},
		{
			name: "json, an id that may grow in another spelling", codec: idJSON, id: strings.Repeat("\b",
				8000), ok: true,
			header: `{"id":"` + strings.Repeat(`\b`, 8000) + `","type":1,"uri":"/gate/wait"}`,
		},
		{
			name: "json, an id that outgrows the limit in another spelling", codec: idJSON,
			id: strings.Repeat("\b", 15000), ends: true,
			header: `{"id":"` + strings.Repeat(`\b`, 15000) + `","type":1,"uri":"/gate/wait"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, c := start(t)
			b := rawFrame(tt.codec, []byte(tt.header), nil)
			if tt.header == "" {
				b = frame{headerCodec: tt.codec, header: header{ID: tt.id, Type: typePull, URI: uri}}.encode()
				require.Equal(t, uint32(maxHeader), binary.BigEndian.Uint32(b))
			}
			c.write(t, b)
			receiveChan(t, s.entered)
			done := s.shutdown() // ends the session as soon as the pull is done with
			close(s.release)
			if tt.ends {
				c.requireEnd(t)
				require.NoError(t, receiveChan(t, done))
				return
			}
			reply := c.receive(t)
			require.Equal(t, tt.id, reply.header.ID)
			require.Equal(t, typeReply, reply.header.Type)
			require.Equal(t, tt.ok, reply.header.StatusCode == 200)
			c.requireEnd(t)
			require.NoError(t, receiveChan(t, done))
		})
	}
}

// TestBrokenHeader: a frame that cannot be followed ends its session, and no
// other one.
func TestBrokenHeader(t *testing.T) {
	h := protobufHeader(textPull("broken", "text").header)
	withLength := func(n uint32, rest ...byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, n), rest...)
	}
	text := []byte("stext")
	tests := []struct {
		name  string
		bytes []byte
	}{
		{"length 0", withLength(0)},
		{"length 0 and more", withLength(0, bytes.Repeat([]byte{0}, 64)...)},
		{"length over the limit", withLength(maxHeader+1, append([]byte{idProtobuf, 3<<3 | 2, 0xfb, 0xff,
			0x03}, bytes.Repeat([]byte("x"), maxHeader-4)...)...)},
		{"length far over the limit", withLength(math.MaxUint32, append([]byte{idProtobuf}, h...)...)},
		{"length with the sign bit", withLength(1<<31, append([]byte{idProtobuf}, h...)...)},
		{"a line of another protocol", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")},
		{"codec 0", rawFrame(0, h, text)},
		{"codec unknown", rawFrame('x', h, text)},
		{"codec string", rawFrame(idString, []byte(`{"id":"1","type":1}`), text)},
		{"codec alone, unknown", rawFrame('x', nil, nil)},
		{"codec alone, json", rawFrame(idJSON, nil, nil)},
		{"protobuf cut short", rawFrame(idProtobuf, h[:len(h)-1], text)},
		{"protobuf cut in a tag", rawFrame(idProtobuf, append(bytes.Clone(h), 0x80), text)},
		{"protobuf cut in an unknown field", rawFrame(idProtobuf, append(bytes.Clone(h), 7<<3|2, 5, 'x'),
			text)},
		{"protobuf wire type 6", rawFrame(idProtobuf, append(bytes.Clone(h), 7<<3|6, 0), text)},
		{"protobuf wire type 7", rawFrame(idProtobuf, append(bytes.Clone(h), 7<<3|7, 0), text)},
		{"protobuf field 0", rawFrame(idProtobuf, append(bytes.Clone(h), 0, 0), text)},
		{"protobuf endless number", rawFrame(idProtobuf, append(bytes.Clone(h), append([]byte{7 << 3},
			bytes.Repeat([]byte{0xff}, 11)...)...), text)},
		{"protobuf end of no group", rawFrame(idProtobuf, append(bytes.Clone(h), 7<<3|4), text)},
		{"protobuf group without end", rawFrame(idProtobuf, append(bytes.Clone(h), 7<<3|3), text)},
		{"protobuf in codec json", rawFrame(idJSON, h, text)},
		{"json in codec protobuf", rawFrame(idProtobuf, []byte(`{"id":"1","type":1,"uri":"/echo/text"}`),
			text)},
		{"json cut short", rawFrame(idJSON, []byte(`{"id":"1","type":1,"uri":"/echo/text"`), text)},
		{"json with more behind it", rawFrame(idJSON, []byte(`{"id":"1","type":1,"uri":"/echo/text"}}`),
			text)},
		{"json with a comma too many", rawFrame(idJSON, []byte(`{"id":"1","type":1,"uri":"/echo/text",}`),
			text)},
		{"json without a comma", rawFrame(idJSON, []byte(`{"id":"1" "type":1,"uri":"/echo/text"}`), text)},
		{"json with a leading zero", rawFrame(idJSON, []byte(`{"id":"1","type":01,"uri":"/echo/text"}`),
			text)},
		{"json with an unknown escape", rawFrame(idJSON, []byte(`{"id":"\x","type":1,"uri":"/echo/text"}`),
			text)},
		{"json with a bare line feed",
			rawFrame(idJSON, []byte("{\"id\":\"\n\",\"type\":1,\"uri\":\"/echo/text\"}"), text)},
		{"json with a fraction for a type",
			rawFrame(idJSON, []byte(`{"id":"1","type":1.5,"uri":"/echo/text"}`), text)},
		{"json of spaces", rawFrame(idJSON, []byte("  "), text)},
		{"json array", rawFrame(idJSON, []byte(`["1",1,"/echo/text"]`), text)},
		{"json number", rawFrame(idJSON, []byte(`1`), text)},
		{"json with a number for an id", rawFrame(idJSON, []byte(`{"id":1,"type":1,"uri":"/echo/text"}`),
			text)},
		{"json with a text for a type",
			rawFrame(idJSON, []byte(`{"id":"1","type":"pull","uri":"/echo/text"}`), text)},
		{"json broken in an unknown field",
			rawFrame(idJSON, []byte(`{"id":"1","type":1,"uri":"/echo/text","a":[}`), text)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, other := start(t)
			other.alive(t)
			c := s.dial(t)
			c.alive(t)
			// The other side may have closed before all is written.
			_, _ = c.conn.Write(tt.bytes)
			c.requireCut(t)
			other.alive(t)
			s.dial(t).alive(t)
		})
	}
}

// TestJSONNames: a json header has the names that are agreed, and no other, in
// everything that a peer sends.
func TestJSONNames(t *testing.T) {
	s, c := start(t)
	seen := map[string]bool{}
	requireNames := func(f frame, want header) {
		t.Helper()
		require.Equal(t, string(idJSON), string(f.headerCodec))
		var fields map[string]any
		require.NoError(t, json.Unmarshal(f.rawHeader, &fields))
		values := map[string]any{
			"id": want.ID, "type": float64(want.Type), "uri": want.URI,
			"gzip": float64(want.Gzip), "status_code": float64(want.StatusCode), "status": want.Status,
		}
		for name, v := range fields {
			require.Contains(t, values, name)
			seen[name] = true
			assert.Equal(t, values[name], v, name)
		}
		for name, v := range values {
			if v != "" && v != 0.0 {
				assert.Contains(t, fields, name)
			}
		}
	}

	pull := textPull("an id", "text")
	pull.headerCodec = idJSON
	reply := c.ask(t, pull)
	// Whether a reply repeats the URI, and what text goes with 200, is left open.
	requireNames(reply, header{ID: "an id", Type: typeReply, URI: reply.header.URI, StatusCode: 200,
		Status: reply.header.Status})

	pull.header.Gzip = -1
	reply = c.ask(t, pull.withBody(idString, []byte("text")))
	requireNames(reply, header{ID: "an id", Type: typeReply, URI: reply.header.URI, Gzip: -1, StatusCode: 200,
		Status: reply.header.Status})

	pull.header.Gzip, pull.header.URI = 0, "/fail/status"
	reply = c.ask(t, pull.withBody(idString, []byte("a status")))
	requireNames(reply, header{ID: "an id", Type: typeReply, URI: reply.header.URI, StatusCode: 1234,
		Status: "a status"})

	pull.header.URI = "/fail/zero"
	reply = c.ask(t, pull)
	requireNames(reply, header{ID: "an id", Type: typeReply, URI: reply.header.URI, Status: "zero"})

	sess := s.session(t, c)
	require.Nil(t, sess.Push("/client/note?a=1", "text", tp.WithHeaderCodec("json"), tp.WithGzip(3)))
	push := c.receive(t)
	requireNames(push, header{ID: push.header.ID, Type: typePush, URI: "/client/note?a=1", Gzip: 3})

	cmd := sess.GoPull("/client/ask?a=1", "text", nil, nil, tp.WithHeaderCodec("json"))
	asked := c.receive(t)
	requireNames(asked, header{ID: asked.header.ID, Type: typePull, URI: "/client/ask?a=1"})
	c.write(t, answer(asked).encode())
	require.Nil(t, receiveChan(t, cmd.Done()).Xerror)

	for _, name := range []string{"id", "type", "uri", "gzip", "status_code", "status"} {
		require.True(t, seen[name], name)
	}
	c.alive(t)
}
