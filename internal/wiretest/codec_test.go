package wiretest

import (
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bodyCase is one body codec with a body for it.
type bodyCase struct {
	name    string
	codecID byte
	plain   []byte
	echo    string // the URI that answers with the same
	note    string // the URI that takes it as a push
}

const sampleText = "text with \x00 \" \\ < & é 世界 🙂"

func bodyCases() []bodyCase {
	return []bodyCase{
		{"json", idJSON, []byte(`{"note":"a \"note\"","n":[1,2.5,null,{"deep":true}]}`), "/echo/map",
			"/note/map"},
		{"protobuf", idProtobuf, stringValue(sampleText), "/echo/message", "/note/message"},
		{"string", idString, []byte(sampleText), "/echo/text", "/note/text"},
	}
}

// requireSameBody requires that the frame carries the case's body.
func (bc bodyCase) requireSameBody(t *testing.T, f frame) {
	t.Helper()
	got := f.plain(t)
	require.Equal(t, string(bc.codecID), string(f.body[:1]))
	switch bc.codecID {
	case idJSON:
		require.JSONEq(t, string(bc.plain), string(got))
	case idProtobuf:
		require.Equal(t, parseStringValue(t, bc.plain), parseStringValue(t, got))
	default:
		require.Equal(t, string(bc.plain), string(got))
	}
}

func headerCodecs() map[string]byte {
	return map[string]byte{"json": idJSON, "protobuf": idProtobuf}
}

// TestKnownBytes anchors the second implementation: bytes that were put down by
// hand.
func TestKnownBytes(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		require.NoError(t, err)
		return b
	}
	pull := header{ID: "1", Type: typePull, URI: "/echo/text"}
	reply := header{ID: "1", Type: typeReply, Gzip: -1, StatusCode: 200, Status: "OK"}

	protobufPull := unhex("00000012" + "70" + "0a0131" + "1001" + "1a0a2f6563686f2f74657874" + "00000003" +
		"73" + "6869")
	jsonPull := unhex("0000002a" + "6a" +
		hex.EncodeToString([]byte(`{"id":"1","type":1,"uri":"/echo/text"}   `)) + "00000003" + "73" + "6869")
	protobufReply := unhex("0000001b" + "70" + "0a0131" + "1002" + "20ffffffffffffffffff01" + "28c801" +
		"32024f4b" + "3a0179" + "00000000")

	require.Equal(t, protobufPull, frame{headerCodec: idProtobuf, header: pull}.withBody(idString,
		[]byte("hi")).encode())
	r := &chunks{b: append(protobufReply, jsonPull...)}
	f, err := readFrame(r)
	require.NoError(t, err)
	require.Equal(t, reply, f.header)
	require.Nil(t, f.body)
	f, err = readFrame(r)
	require.NoError(t, err)
	require.Equal(t, pull, f.header)
	require.Equal(t, "shi", string(f.body))

	_, c := start(t)
	for _, b := range [][]byte{protobufPull, jsonPull} {
		c.write(t, b)
		f := c.receive(t)
		assert.Equal(t, string(b[4]), string(f.headerCodec))
		assert.Equal(t, typeReply, f.header.Type)
		assert.Equal(t, "1", f.header.ID)
		assert.Equal(t, int32(0), f.header.Gzip)
		assert.Equal(t, int32(200), f.header.StatusCode)
		assert.Equal(t, "shi", string(f.body))
	}
	c.alive(t)
}

// TestPull makes a pull with each combination of header codec, body codec and
// compression.
func TestPull(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		for _, bc := range bodyCases() {
			for _, level := range gzipLevels {
				t.Run(fmt.Sprintf("%s header, %s body, gzip %d", headerName, bc.name, level),
					func(t *testing.T) {
						_, c := start(t)
						pull := frame{
							headerCodec: headerCodec,
							header:      header{ID: "an id", Type: typePull, URI: bc.echo, Gzip: level},
						}.withBody(bc.codecID, bc.plain)
						reply := c.ask(t, pull)
						requireReply(t, pull, reply)
						bc.requireSameBody(t, reply)
						c.alive(t)
					})
			}
		}
	}
}

// TestBytes sends every byte value, which the string codec leaves alone.
func TestBytes(t *testing.T) {
	_, c := start(t)
	plain := make([]byte, 256)
	for i := range plain {
		plain[i] = byte(i)
	}
	for _, level := range gzipLevels {
		pull := frame{
			headerCodec: idProtobuf,
			header:      header{ID: "bytes", Type: typePull, URI: "/echo/bytes", Gzip: level},
		}.withBody(idString, plain)
		reply := c.ask(t, pull)
		requireReply(t, pull, reply)
		require.Equal(t, plain, reply.plain(t))
	}
	c.alive(t)
}

// TestHandlerChoosesReply: the handler has the last word on the codec and the
// compression of its reply, but not on the header's codec.
func TestHandlerChoosesReply(t *testing.T) {
	_, c := start(t)
	for _, headerCodec := range headerCodecs() {
		pull := frame{
			headerCodec: headerCodec,
			header:      header{ID: "other", Type: typePull, URI: "/echo/other", Gzip: -2},
		}.withBody(idString, []byte("text"))
		reply := c.ask(t, pull)
		require.Equal(t, "other", reply.header.ID)
		require.Equal(t, int32(200), reply.header.StatusCode)
		require.Equal(t, string(headerCodec), string(reply.headerCodec))
		require.Equal(t, int32(9), reply.header.Gzip)
		require.Equal(t, string(idProtobuf), string(reply.body[:1]))
		require.Equal(t, "text", parseStringValue(t, reply.plain(t)))
	}
	c.alive(t)
}

// TestNoBody: a BodyLength of 0 is followed by the next frame, in both
// directions, whatever the header says of compression.
func TestNoBody(t *testing.T) {
	for headerName, headerCodec := range headerCodecs() {
		for _, level := range gzipLevels {
			t.Run(fmt.Sprintf("%s header, gzip %d", headerName, level), func(t *testing.T) {
				_, c := start(t)
				neither := frame{
					headerCodec: headerCodec,
					header:      header{ID: "neither", Type: typePull, URI: "/echo/nothing", Gzip: level},
				}
				reply := c.ask(t, neither)
				requireReply(t, neither, reply)
				require.Empty(t, reply.body)

				onlyPull := neither.withBody(idString, []byte("text"))
				reply = c.ask(t, onlyPull)
				requireReply(t, onlyPull, reply)
				require.Empty(t, reply.body)

				onlyReply := neither
				onlyReply.header.URI = "/echo/length"
				reply = c.ask(t, onlyReply)
				requireReply(t, onlyReply, reply)
				require.Equal(t, "j0", string(reply.body[:1])+string(reply.plain(t)))
				c.alive(t)
			})
		}
	}
}

// TestEmptyBody sends bodies of length 1, which are a codec id alone.
func TestEmptyBody(t *testing.T) {
	_, c := start(t)
	pull := func(uri string, codecID byte, level int32) frame {
		return frame{
			headerCodec: idProtobuf,
			header:      header{ID: uri, Type: typePull, URI: uri, Gzip: level},
			body:        []byte{codecID},
		}
	}

	text := pull("/echo/text", idString, 0)
	reply := c.ask(t, text)
	requireReply(t, text, reply)
	require.Equal(t, "s", string(reply.body), "an empty text has a codec")

	message := pull("/echo/message", idProtobuf, 0)
	reply = c.ask(t, message)
	requireReply(t, message, reply)
	require.Empty(t, parseStringValue(t, reply.plain(t)))

	// No bytes are neither a JSON text nor a gzip stream.
	broken := pull("/echo/map", idJSON, 0)
	requireFailed(t, broken, c.ask(t, broken), 400)
	broken = pull("/echo/text", idString, 5)
	requireFailed(t, broken, c.ask(t, broken), 400)
	c.alive(t)
}
