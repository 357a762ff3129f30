package packet_test

import (
	"bytes"
	"encoding/hex"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/packet"
)

// A golden frame is in testdata/<name>.hex, taken apart and explained.
type golden struct {
	name   string
	packet packet.Packet
	// into makes what the body is decoded into; nil for frames without a body.
	into func() interface{}
	// parseOnly: this side writes the packet in another way.
	parseOnly bool
}

func header(h packet.Header) *packet.Header { return &h }

func into[T any]() func() interface{} { return func() interface{} { return new(T) } }

var goldens = []golden{
	{
		name: "ping",
		packet: packet.Packet{HeaderCodec: "protobuf", Header: header(packet.Header{Id: "ping",
			Type: packet.TypePing})},
	},
	{
		name: "pull-json-body",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "json", Body: [2]int{1, 2},
			Header: header(packet.Header{Id: "1", Type: packet.TypePull, Uri: "/group/home/test?peer_id=a"})},
		into: into[[2]int](),
	},
	{
		name: "pull-json-header",
		packet: packet.Packet{HeaderCodec: "json", BodyCodec: "json", Body: [2]int{1, 2},
			Header: header(packet.Header{Id: "1", Type: packet.TypePull, Uri: "/group/home/test?peer_id=a"})},
		into: into[[2]int](),
	},
	{
		name: "push-string-body",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "string", Body: "héllo",
			Header: header(packet.Header{Type: packet.TypePush, Uri: "/msg/test"})},
		into: into[string](),
	},
	{
		name: "push-bytes-body",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "string", Body: []byte{0x00, 0x70, 0xff,
			0xfe},
			Header: header(packet.Header{Type: packet.TypePush, Uri: "/blob"})},
		into: into[[]byte](),
	},
	{
		name: "push-empty-string",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "string", Body: "",
			Header: header(packet.Header{Type: packet.TypePush, Uri: "/msg/test"})},
		into: into[string](),
	},
	{
		name: "push-json-all",
		packet: packet.Packet{HeaderCodec: "json", BodyCodec: "json",
			Body:   []interface{}{"x", -1.5, true, nil, map[string]interface{}{"k": []interface{}{}}},
			Header: header(packet.Header{Type: packet.TypePush, Uri: "/a"})},
		into: into[[]interface{}](),
	},
	{
		name: "pull-protobuf-body",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "protobuf", Body: wrapperspb.String("hi"),
			Header: header(packet.Header{Id: "2", Type: packet.TypePull, Uri: "/greet"})},
		into: into[wrapperspb.StringValue](),
	},
	{
		name: "reply-ok",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "json", Body: 3,
			Header: header(packet.Header{Id: "1", Type: packet.TypeReply, Uri: "/group/home/test",
				StatusCode: 200, Status: "OK"})},
		into: into[int](),
	},
	{
		name: "reply-error",
		packet: packet.Packet{HeaderCodec: "protobuf",
			Header: header(packet.Header{Id: "7", Type: packet.TypeReply, StatusCode: 404,
				Status: "not found"})},
	},
	{
		name: "reply-error-json",
		packet: packet.Packet{HeaderCodec: "json",
			Header: header(packet.Header{Id: "7", Type: packet.TypeReply, StatusCode: 404,
				Status: "not found"})},
	},
	{
		name: "reply-negative-status",
		packet: packet.Packet{HeaderCodec: "protobuf",
			Header: header(packet.Header{Id: "7", Type: packet.TypeReply, StatusCode: -1, Status: "mine"})},
	},
	{
		name: "reply-negative-status-json",
		packet: packet.Packet{HeaderCodec: "json",
			Header: header(packet.Header{Id: "7", Type: packet.TypeReply, StatusCode: math.MinInt32,
				Status: "mine"})},
	},
	{
		name:   "header-empty",
		packet: packet.Packet{HeaderCodec: "protobuf", Header: new(packet.Header)},
	},
	{
		name:   "header-empty-json",
		packet: packet.Packet{HeaderCodec: "json", Header: new(packet.Header)},
	},
	{
		name: "header-all",
		packet: packet.Packet{HeaderCodec: "protobuf",
			Header: header(packet.Header{Id: "é-1", Type: packet.TypeReply, Uri: "/a?b=c&d=世", Gzip: 9,
				StatusCode: math.MaxInt32, Status: "über"})},
	},
	{
		name: "raw-body",
		packet: packet.Packet{HeaderCodec: "protobuf", Body: packet.RawBody("\x01whatever"),
			Header: header(packet.Header{Id: "9", Type: packet.TypePull, Uri: "/x"})},
		into: into[packet.RawBody](),
	},
	{
		name: "gzip-no-body",
		packet: packet.Packet{HeaderCodec: "protobuf",
			Header: header(packet.Header{Type: packet.TypePush, Uri: "/a", Gzip: 5})},
	},
	{
		name: "pull-timeout-meta",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "json", Body: "x",
			Header: header(packet.Header{
				Id: "1", Type: packet.TypePull, Uri: "/a", Timeout: 1500, Meta: map[string]string{"a": "1",
					"b": ""},
			})},
		into: into[string](),
	},
	{
		name: "pull-asks-load",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "json", Body: "x",
			Header: header(packet.Header{Id: "1", Type: packet.TypePull, Uri: "/a", Load: 1})},
		into: into[string](),
	},
	{
		name: "reply-load",
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "json", Body: 3,
			Header: header(packet.Header{Id: "1", Type: packet.TypeReply, StatusCode: 200, Load: 3,
				QueueDelay: 250})},
		into: into[int](),
	},
	{
		name: "reply-load-json",
		packet: packet.Packet{HeaderCodec: "json",
			Header: header(packet.Header{Id: "1", Type: packet.TypeReply, StatusCode: 429, NotRun: true,
				Load: math.MaxInt32, QueueDelay: 1})},
	},
	{
		name: "reply-load-negative",
		packet: packet.Packet{HeaderCodec: "protobuf",
			Header: header(packet.Header{Id: "1", Type: packet.TypeReply, StatusCode: 200, Load: -1,
				QueueDelay: math.MinInt32})},
	},
	{
		name: "header-unknown-fields", parseOnly: true,
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "json", Body: "x",
			Header: header(packet.Header{Id: "1", Type: packet.TypePush, Uri: "/a"})},
		into: into[string](),
	},
	{
		name: "header-unknown-keys-json", parseOnly: true,
		packet: packet.Packet{HeaderCodec: "json", BodyCodec: "json", Body: "x",
			Header: header(packet.Header{Type: packet.TypePush, Uri: "/a"})},
		into: into[string](),
	},
	// Compressors differ in the bytes that they make of the same input.
	{
		name: "gzip-json-body", parseOnly: true,
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "json", Body: [2]int{1, 2},
			Header: header(packet.Header{Id: "1", Type: packet.TypePull, Uri: "/a", Gzip: 5})},
		into: into[[2]int](),
	},
	{
		name: "gzip-huffman-only", parseOnly: true,
		packet: packet.Packet{HeaderCodec: "json", BodyCodec: "string", Body: "héllo",
			Header: header(packet.Header{Type: packet.TypePush, Uri: "/a", Gzip: -2})},
		into: into[string](),
	},
	{
		name: "gzip-two-members", parseOnly: true,
		packet: packet.Packet{HeaderCodec: "protobuf", BodyCodec: "json", Body: [2]int{1, 2},
			Header: header(packet.Header{Id: "1", Type: packet.TypePull, Uri: "/a", Gzip: -1})},
		into: into[[2]int](),
	},
}

// load reads a golden frame: hexadecimal digits, with comments behind #.
func load(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(text, []byte("# ")), "%s: the first line says what the frame is", name)
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.TrimSpace(line))
	}
	frame, err := hex.DecodeString(digits.String())
	require.NoError(t, err, name)
	return frame
}

// newBody is g.into for Parse.
func (g golden) newBody() func(*packet.Header) interface{} {
	if g.into == nil {
		return nil
	}
	return func(*packet.Header) interface{} { return g.into() }
}

// requirePacket compares all of a packet that was read with the golden one.
func (g golden) requirePacket(t *testing.T, frame []byte, got *packet.Packet) {
	t.Helper()
	want := g.packet
	require.Equal(t, want.HeaderCodec, got.HeaderCodec)
	require.Equal(t, want.BodyCodec, got.BodyCodec)
	require.Equal(t, want.Header, got.Header)
	switch {
	case g.into == nil:
		require.Nil(t, got.Body)
	case isMessage(want.Body):
		require.True(t, proto.Equal(want.Body.(proto.Message), got.Body.(proto.Message)), "%v", got.Body)
	default:
		require.Equal(t, want.Body, reflect.ValueOf(got.Body).Elem().Interface())
	}
	require.Equal(t, int64(len(frame))-2*packet.LengthSize, got.Length)
	require.Equal(t, got.Length, got.HeaderLength+got.BodyLength)
	require.Equal(t, frame[:4], []byte{0, 0, byte(got.HeaderLength >> 8), byte(got.HeaderLength)})
}

func isMessage(v interface{}) bool {
	_, ok := v.(proto.Message)
	return ok
}

func TestGoldenFramesAreAppended(t *testing.T) {
	for _, g := range goldens {
		if g.parseOnly {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			want := load(t, g.name)
			p := g.packet
			got, err := packet.Append([]byte("front"), &p, packet.Limits{})
			require.NoError(t, err)
			require.Equal(t, "front"+string(want), string(got), "%x", got)

			// The lengths are as they are when the same frame is read.
			var read packet.Packet
			_, err = packet.Parse(want, &read, nil, packet.Limits{})
			if g.name != "raw-body" { // whose codec is unknown
				require.NoError(t, err)
			}
			require.Equal(t, []int64{read.HeaderLength, read.BodyLength, read.Length}, []int64{p.HeaderLength,
				p.BodyLength, p.Length})
		})
	}
}

func TestGoldenFramesAreParsed(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			frame := load(t, g.name)
			var p packet.Packet
			n, err := packet.Parse(frame, &p, g.newBody(), packet.Limits{})
			require.NoError(t, err)
			require.Equal(t, len(frame), n)
			g.requirePacket(t, frame, &p)
		})
	}
}

// What was read may be kept: nothing of it is the input.
func TestParseKeepsNothingOfTheInput(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			frame := load(t, g.name)
			b := bytes.Clone(frame)
			var p packet.Packet
			_, err := packet.Parse(b, &p, g.newBody(), packet.Limits{})
			require.NoError(t, err)
			for i := range b {
				b[i] = 0xA5
			}
			g.requirePacket(t, frame, &p)
		})
	}
}

// A Packet that is used for one frame after the other holds nothing of the last.
func TestParseIntoAUsedPacket(t *testing.T) {
	var p packet.Packet
	for range 2 {
		for _, g := range goldens {
			frame := load(t, g.name)
			_, err := packet.Parse(frame, &p, g.newBody(), packet.Limits{})
			require.NoError(t, err, g.name)
			g.requirePacket(t, frame, &p)
		}
	}
}

func TestParseTakesFramesOneByOne(t *testing.T) {
	var stream []byte
	for _, g := range goldens {
		stream = append(stream, load(t, g.name)...)
	}
	for _, g := range goldens {
		var p packet.Packet
		n, err := packet.Parse(stream, &p, g.newBody(), packet.Limits{})
		require.NoError(t, err, g.name)
		g.requirePacket(t, stream[:n], &p)
		stream = stream[n:]
	}
	require.Empty(t, stream)
}

// A body that is passed on raw is the same on the wire, whatever its codec and
// whether or not it is compressed.
func TestGoldenFramesArePassedOnRaw(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			frame := load(t, g.name)
			var p packet.Packet
			n, err := packet.Parse(frame, &p, func(*packet.Header) interface{} { return new(packet.RawBody) },
				packet.Limits{})
			require.NoError(t, err)
			require.Equal(t, len(frame), n)
			require.Equal(t, g.packet.BodyCodec, p.BodyCodec)
			raw := *p.Body.(*packet.RawBody)
			require.Equal(t, p.BodyLength, int64(len(raw)))
			require.True(t, bytes.HasSuffix(frame, raw))

			for _, body := range []interface{}{raw, &raw} {
				out := p
				out.Body = body
				got, err := packet.Append(nil, &out, packet.Limits{})
				require.NoError(t, err)
				require.True(t, bytes.HasSuffix(got, frame[4+p.HeaderLength:]), "%x", got)
				if !strings.HasPrefix(g.name, "header-unknown") {
					require.Equal(t, frame, got)
				}
			}
		})
	}
}

// No file in testdata is forgotten.
func TestEveryGoldenFrameIsInTheTable(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.hex"))
	require.NoError(t, err)
	var onDisk, inTable []string
	for _, f := range files {
		onDisk = append(onDisk, strings.TrimSuffix(filepath.Base(f), ".hex"))
	}
	for _, g := range goldens {
		inTable = append(inTable, g.name)
	}
	require.ElementsMatch(t, onDisk, inTable)
}
