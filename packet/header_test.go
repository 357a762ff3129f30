package packet_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/packet/internal/headerpb"
)

func byName(t testing.TB, name string) codec.Codec {
	t.Helper()
	c, err := codec.GetByName(name)
	require.NoError(t, err)
	return c
}

func generated(h packet.Header) *headerpb.Header {
	return &headerpb.Header{Id: h.Id, Type: h.Type, Uri: h.Uri, Gzip: h.Gzip, StatusCode: h.StatusCode,
		Status: h.Status, Timeout: h.Timeout, Meta: h.Meta, NotRun: h.NotRun, Load: h.Load,
		QueueDelay: h.QueueDelay}
}

func fromGenerated(h *headerpb.Header) packet.Header {
	if len(h.Meta) == 0 {
		h.Meta = nil
	}
	return packet.Header{Id: h.Id, Type: h.Type, Uri: h.Uri, Gzip: h.Gzip, StatusCode: h.StatusCode,
		Status: h.Status, Timeout: h.Timeout, Meta: h.Meta, NotRun: h.NotRun, Load: h.Load,
		QueueDelay: h.QueueDelay}
}

// requireEncodesLikeGenerated: the bytes of generated code, or an error like it.
func requireEncodesLikeGenerated(t *testing.T, h packet.Header) {
	t.Helper()
	want, wantErr := proto.MarshalOptions{Deterministic: true}.Marshal(generated(h))
	got, err := packet.AppendHeader([]byte("front"), byName(t, "protobuf"), &h)
	if wantErr != nil {
		require.Error(t, err, "%+v", h)
		require.Equal(t, "front", string(got))
		return
	}
	require.NoError(t, err, "%+v", h)
	require.Equal(t, hex.EncodeToString(want), hex.EncodeToString(got[len("front"):]), "%+v", h)
}

// requireDecodesLikeGenerated: the fields of generated code, or an error like it.
func requireDecodesLikeGenerated(t *testing.T, b []byte) {
	t.Helper()
	var want headerpb.Header
	wantErr := proto.Unmarshal(b, &want)
	in := bytes.Clone(b)
	got := packet.Header{Id: "of", Type: 9, Uri: "the", Gzip: 9, StatusCode: 9, Status: "last", Timeout: 9,
		Meta: map[string]string{"a": "b"}, NotRun: true, Load: 9, QueueDelay: 9}
	err := packet.DecodeHeader(codec.IdProtobuf, in, &got)
	clear(in) // what was decoded must not be a part of it
	if wantErr != nil {
		require.ErrorIs(t, err, packet.ErrHeader, "%x: generated code says %v", b, wantErr)
		return
	}
	require.NoError(t, err, "%x", b)
	require.Equal(t, fromGenerated(&want), got, "%x", b)
	requireEncodesLikeGenerated(t, got)
}

var someHeaders = []packet.Header{
	{},
	{Id: "1", Type: packet.TypePull, Uri: "/group/home/test?peer_id=a", Gzip: 5},
	{Id: "18446744073709551615", Type: packet.TypeReply, StatusCode: 200, Status: "OK"},
	{Type: packet.TypePush, Uri: "/a"},
	{Id: "1", Type: packet.TypeReply, StatusCode: 503, Status: "later", NotRun: true},
	{Id: "1", Type: packet.TypePull, Uri: "/a", Load: 1},
	{Id: "1", Type: packet.TypeReply, StatusCode: 200, Load: 300, QueueDelay: 1},
	{Type: packet.TypeReply, StatusCode: 429, NotRun: true, Load: math.MaxInt32, QueueDelay: math.MaxInt32},
	{Type: packet.TypeReply, Load: math.MinInt32, QueueDelay: -1},
	{Id: "2", Type: packet.TypePull, Timeout: 1500, Meta: map[string]string{"b": "2", "a": "1", "": "",
		"long": strings.Repeat("m", 300)}},
	{Type: packet.TypeReply, Timeout: math.MinInt64, Meta: map[string]string{}},
	{Type: -1, Gzip: -2, StatusCode: -1},
	{Type: math.MaxInt32, Gzip: math.MaxInt32, StatusCode: math.MaxInt32},
	{Type: math.MinInt32, Gzip: math.MinInt32, StatusCode: math.MinInt32},
	{Type: 127, Gzip: 128, StatusCode: 16384},
	{Id: "\x00", Uri: "\t\n\"\\/<&>\u2028\u00e9\U0001F600", Status: "\u007f\u0080\ufffd"},
	{Id: strings.Repeat("i", 127), Uri: "/" + strings.Repeat("u", 127), Status: strings.Repeat("s", 20000)},
	{Id: "\xff"},
	{Uri: "/a\xc3"},
	{Status: "\xed\xa0\x80"}, // half of a surrogate pair
	{Meta: map[string]string{"\xff": ""}},
	{Meta: map[string]string{"k": "\xff"}},
}

func TestHeaderIsEncodedLikeGeneratedCode(t *testing.T) {
	for _, h := range someHeaders {
		requireEncodesLikeGenerated(t, h)
	}
}

// Bytes that generated code and this package must see alike, one thing each.
var someHeaderBytes = map[string]string{
	"empty":                      "",
	"all fields":                 "0a0131 1001 1a022f61 2005 28c801 32024f4b 4801 5003 58fa01",
	"a load that is too large":   "50ffffffffff7f 588080808010",
	"a load of another type":     "5200 5d01020304",
	"a flag of two":              "4802",
	"a time of ten bytes":        "38ffffffffffffffffff01",
	"an entry":                   "42060a016b120176",
	"an entry of nothing":        "4200",
	"an entry turned round":      "42061201760a016b",
	"an entry twice":             "42060a016b120176 42060a016b120177",
	"an entry's key twice":       "42090a016b0a016c120176",
	"an entry with more in it":   "42080a016b1201761805",
	"an entry cut off":           "42060a016b120276",
	"an entry of bad text":       "42060a01ff120176",
	"an entry of another type":   "4005",
	"a flag of 64 bits":          "4880808080808080808001",
	"a flag unset again":         "4801 4800",
	"a flag of another type":     "4a0131",
	"another order":              "32024f4b 28c801 2005 1a022f61 1001 0a0131",
	"defaults written out":       "0a00 1000 1a00 2000 2800 3200",
	"strings twice":              "0a0131 0a0132 1a0161 1a0162 320163 320164",
	"a string emptied again":     "0a0131 0a00",
	"numbers twice":              "1001 1002 2003 2004 2805 2806",
	"a number zero again":        "1001 1000",
	"negative":                   "10ffffffffffffffffff01 20feffffffffffffffff01 2880808080f8ffffffff01",
	"negative in five bytes":     "10ffffffff0f",
	"more than 32 bits":          "1080808080802010818080808010",
	"64 bits":                    "10ffffffffffffffff7f",
	"number in too many bytes":   "1081808000",
	"number of ten bytes":        "10ffffffffffffffffff01",
	"number past 64 bits":        "10ffffffffffffffffff02",
	"number of eleven bytes":     "1080808080808080808080 01",
	"tag in too many bytes":      "8a8000 0131",
	"number without an end":      "10ff",
	"number without a byte":      "10",
	"tag without an end":         "ff",
	"string too short":           "0a0531",
	"string without length":      "0a",
	"length without an end":      "0aff",
	"length past 2 GiB":          "0affffffff0f31",
	"length past 64 bits":        "0affffffffffffffffff02",
	"invalid UTF-8":              "0a01ff",
	"invalid UTF-8 in uri":       "1a02c328",
	"invalid UTF-8 in status":    "3203eda080",
	"invalid UTF-8, then valid":  "0a01ff 0a0131",
	"invalid UTF-8 of no field":  "3a01ff",
	"invalid after valid":        "0a0131 1a01ff",
	"unknown varint":             "3805 0a0131",
	"unknown bytes":              "3a0178 0a0131",
	"unknown fixed":              "390001020304050607 3d00010203 0a0131",
	"unknown without an end":     "3900",
	"unknown varint, no end":     "38ff",
	"unknown bytes, no end":      "3a05 78",
	"unknown large number":       "c03e01",
	"largest field number":       "f8ffffff0f01",
	"field number 2^29":          "8080808010 01",
	"field number 2^31-1":        "f8ffffff3f01",
	"field number 2^31":          "808080804001",
	"field number 2^32":          "80808080800101",
	"field number 2^60":          "8080808080808080400a",
	"field number 0":             "0001",
	"field number 0 as bytes":    "0200",
	"wire type 6":                "0e",
	"wire type 7":                "0f",
	"id as a varint":             "0801 0a0131",
	"id as 64 bits":              "090001020304050607",
	"id as 32 bits":              "0d00010203",
	"id as a group":              "0b0c 0a0131",
	"type as bytes":              "1203010203",
	"type as 32 bits":            "1500010203",
	"type as packed numbers":     "12020102",
	"uri as a varint":            "1801",
	"gzip as bytes":              "2200",
	"status code as bytes":       "2a00",
	"status as a varint":         "3001",
	"group":                      "5b 0801 5c 0a0131",
	"empty group":                "5b5c",
	"group in a group":           "5b 63 64 5c",
	"group with known fields":    "5b 0a0139 5c 0a0131",
	"group with invalid UTF-8":   "5b 0a01ff 5c",
	"group without an end":       "5b 0801",
	"group with another's end":   "5b 64",
	"group crossed with another": "5b 63 5c 64",
	"end of no group":            "5c",
	"end of no group, field 1":   "0c",
	"deep groups":                strings.Repeat("5b", 200) + strings.Repeat("5c", 200),
	"groups past the limit":      strings.Repeat("5b", 20000) + strings.Repeat("5c", 20000),
	"groups at the limit":        strings.Repeat("5b", 10000) + strings.Repeat("5c", 10000),
	"groups just past the limit": strings.Repeat("5b", 10001) + strings.Repeat("5c", 10001),
	"field number 2^29 in group": "5b 808080801001 5c",
}

func TestHeaderIsDecodedLikeGeneratedCode(t *testing.T) {
	for name, digits := range someHeaderBytes {
		t.Run(name, func(t *testing.T) {
			requireDecodesLikeGenerated(t, unhex(t, digits))
		})
	}
	for _, h := range someHeaders {
		if b, err := proto.Marshal(generated(h)); err == nil {
			requireDecodesLikeGenerated(t, b)
		}
	}
}

func unhex(t testing.TB, digits string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
	require.NoError(t, err)
	return b
}

// Generated headers cut off at every byte, and with every bit of them changed.
func TestHeaderWithOneFaultIsDecodedLikeGeneratedCode(t *testing.T) {
	for _, h := range someHeaders[:9] {
		b, err := proto.Marshal(generated(h))
		require.NoError(t, err)
		for i := range b {
			requireDecodesLikeGenerated(t, b[:i])
			for bit := range 8 {
				changed := bytes.Clone(b)
				changed[i] ^= 1 << bit
				requireDecodesLikeGenerated(t, changed)
			}
		}
	}
}

func TestRandomHeadersLikeGeneratedCode(t *testing.T) {
	random := rand.New(rand.NewPCG(2017, 8))
	text := func() string {
		pieces := []string{"", "/", "a", "é", "世界", "\x00", "\xff", strings.Repeat("long ", 30)}
		var s string
		for range random.IntN(4) {
			s += pieces[random.IntN(len(pieces))]
		}
		return s
	}
	number := func() int32 { return int32(random.Uint64()) >> random.IntN(32) }
	for range 3000 {
		requireEncodesLikeGenerated(t, packet.Header{
			Id: text(), Type: number(), Uri: text(), Gzip: number(), StatusCode: number(), Status: text(),
			Timeout: int64(random.Uint64()) >> random.IntN(64), Meta: map[string]string{text(): text(),
				text(): text()}, NotRun: random.IntN(2) == 0, Load: number(), QueueDelay: number(),
		})
	}
	for range 3000 {
		var b []byte
		for range random.IntN(8) {
			num := protowire.Number(random.IntN(13))
			switch random.IntN(6) {
			case 0, 1:
				b = protowire.AppendTag(b, num, protowire.VarintType)
				b = protowire.AppendVarint(b, random.Uint64()>>random.IntN(64))
			case 2, 3:
				b = protowire.AppendTag(b, num, protowire.BytesType)
				b = protowire.AppendString(b, text())
			case 4:
				b = protowire.AppendTag(b, num, protowire.Type(random.IntN(8)))
			case 5:
				b = append(b, byte(random.Uint32()))
			}
		}
		requireDecodesLikeGenerated(t, b)
	}
}

func TestJSONHeaderOnTheWire(t *testing.T) {
	c := byName(t, "json")
	for _, tc := range []struct {
		header packet.Header
		want   string
	}{
		{packet.Header{}, `{}`},
		{packet.Header{Id: "1", Type: 1, Uri: "/a?b=c&d", Gzip: 5, StatusCode: 200, Status: "OK"},
			`{"id":"1","type":1,"uri":"/a?b=c&d","gzip":5,"status_code":200,"status":"OK"}`},
		{packet.Header{Type: -1, Gzip: -2, StatusCode: math.MinInt32},
			`{"type":-1,"gzip":-2,"status_code":-2147483648}`},
		{packet.Header{Type: 2, StatusCode: 200, Load: 3, QueueDelay: 250},
			`{"type":2,"status_code":200,"load":3,"queue_delay":250}`},
		{packet.Header{Uri: "\"\\\n世", Status: "<b>"}, `{"uri":"\"\\\n世","status":"<b>"}`},
	} {
		got, err := packet.AppendHeader([]byte("front"), c, &tc.header)
		require.NoError(t, err)
		require.Equal(t, "front"+tc.want, string(got))

		back := packet.Header{Id: "of", Type: 9, Uri: "the", Gzip: 9, StatusCode: 9, Status: "last"}
		require.NoError(t, packet.DecodeHeader(codec.IdJSON, got[len("front"):], &back))
		require.Equal(t, tc.header, back)
	}
}

func TestJSONHeaderDecodes(t *testing.T) {
	for _, tc := range []struct {
		name, data string
		want       packet.Header
	}{
		{"absent is zero", `{}`, packet.Header{}},
		{"unknown keys are ignored", `{"trace":{"a":[1,"}"]},"id":"1","x":null,"y":1.5e3}`,
			packet.Header{Id: "1"}},
		{"the names are exact", `{"Id":"1","TYPE":1,"StatusCode":5,"statusCode":5}`, packet.Header{}},
		{"any order", `{"status_code":404,"id":"7"}`, packet.Header{Id: "7", StatusCode: 404}},
		{"white space", " {\n\t\"id\" : \"7\" \r} ", packet.Header{Id: "7"}},
		{"escapes", `{"id":"\u00e9\ud83d\ude00\n","uri":"\/a"}`, packet.Header{Id: "é😀\n", Uri: "/a"}},
		{"the last one holds", `{"type":1,"type":3}`, packet.Header{Type: 3}},
		{"null is absent", `{"id":null,"type":null}`, packet.Header{}},
		{"numbers of others may be of any size",
			`{"x":1e999,"id":"1","type":2,"uri":"/a","gzip":-1,"status_code":5,"status":"s","y":[-1e-999,123456789012345678901234567890]}`,
			packet.Header{Id: "1", Type: 2, Uri: "/a", Gzip: -1, StatusCode: 5, Status: "s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := packet.Header{Id: "of", Type: 9, Uri: "the", Gzip: 9, StatusCode: 9, Status: "last",
				NotRun: true}
			data := []byte(tc.data)
			require.NoError(t, packet.DecodeHeader(codec.IdJSON, data, &got))
			clear(data)
			require.Equal(t, tc.want, got)
		})
	}
}

// Another implementation's json decoder reads the header of this one.
func TestJSONHeaderIsReadByTheStandardLibrary(t *testing.T) {
	want := packet.Header{Id: "é", Type: 2, Uri: "/\"\\\u2028<>&", Gzip: -2, StatusCode: -404,
		Status: "\x00\x1f", Timeout: 7, Meta: map[string]string{"é": "\x01"}, NotRun: true, Load: 2,
		QueueDelay: -1}
	b, err := packet.AppendHeader(nil, byName(t, "json"), &want)
	require.NoError(t, err)
	var got struct {
		Id         string `json:"id"`
		Type       int32  `json:"type"`
		Uri        string `json:"uri"`
		Gzip       int32  `json:"gzip"`
		StatusCode int32  `json:"status_code"`
		Status     string `json:"status"`
		Timeout    int64  `json:"timeout"`

		Meta   map[string]string `json:"meta"`
		NotRun bool              `json:"not_run"`

		Load       int32 `json:"load"`
		QueueDelay int32 `json:"queue_delay"`
	}
	require.NoError(t, json.Unmarshal(b, &got))
	require.Equal(t, want, packet.Header(got))
}

func TestHeaderThatDoesNotDecode(t *testing.T) {
	for _, tc := range []struct {
		name string
		id   byte
		data string
	}{
		{"json: nothing", 'j', ``},
		{"json: cut off", 'j', `{"id":"1"`},
		{"json: an array", 'j', `[1]`},
		{"json: a number for the id", 'j', `{"id":1}`},
		{"json: text for the type", 'j', `{"type":"1"}`},
		{"json: a fraction for the type", 'j', `{"type":1.5}`},
		{"json: past 32 bits", 'j', `{"status_code":2147483648}`},
		{"json: more behind it", 'j', `{}{}`},
		{"json: garbage", 'j', "\xff\x00"},
		{"json: invalid UTF-8", 'j', "{\"id\":\"\xff\"}"},
		{"json: invalid UTF-8 of others", 'j', "{\"x\":\"\xff\"}"},
		{"json: a large number of others, and text for the type", 'j', `{"x":1e999,"type":"1"}`},
		{"protobuf: garbage", 'p', "\xff\x00"},
		{"string", 's', "text"},
		{"no such codec", 0x01, ""},
		{"no codec at all", 0, ""},
		{"the codec's error", 'R', ""},
		{"the codec's panic", 'Q', ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h packet.Header
			err := packet.DecodeHeader(tc.id, []byte(tc.data), &h)
			require.ErrorIs(t, err, packet.ErrHeader)
			require.NotErrorIs(t, err, packet.ErrTooLarge)
		})
	}
	var h packet.Header
	require.ErrorIs(t, packet.DecodeHeader(1, nil, &h), codec.ErrUnknown)
	require.ErrorIs(t, packet.DecodeHeader('R', nil, &h), errRefused)
}

func TestAppendHeaderThatFailsLeavesDstAlone(t *testing.T) {
	for _, tc := range []struct {
		codec  string
		header packet.Header
	}{
		{"protobuf", packet.Header{Id: "\xff"}},
		{"protobuf", packet.Header{Id: "1", Uri: "\xff"}},
		{"protobuf", packet.Header{Id: "1", Uri: "/a", Status: "\xff"}},
		{"json", packet.Header{Id: "\xff"}},
		{"json", packet.Header{Id: "1", Uri: "\xff"}},
		{"json", packet.Header{Id: "1", Uri: "/a", Status: "\xff"}},
		{"std", packet.Header{Id: "\xff"}},
		{"string", packet.Header{}},
		{"refusing", packet.Header{}},
		{"panicking", packet.Header{}},
	} {
		dst := append(make([]byte, 0, 100), "front"...)
		out, err := packet.AppendHeader(dst, byName(t, tc.codec), &tc.header)
		require.Error(t, err)
		require.Equal(t, "front", string(out))
		require.Equal(t, "front", string(dst))
		require.Same(t, unsafe.SliceData(dst), unsafe.SliceData(out))
	}
}

// Codecs of users, registered once a process.
func init() {
	codec.Reg(std{'H', "std"})
	codec.Reg(lossy{std{'L', "lossy"}})
	codec.Reg(refusing{std{'R', "refusing"}})
	codec.Reg(panicking{std{'Q', "panicking"}})
	codec.Reg(oneWay{std{'W', "one-way"}})
}

// std is encoding/json.
type std struct {
	id   byte
	name string
}

func (c std) Id() byte                                   { return c.id }
func (c std) Name() string                               { return c.name }
func (c std) Marshal(v interface{}) ([]byte, error)      { return json.Marshal(v) }
func (c std) Unmarshal(data []byte, v interface{}) error { return json.Unmarshal(data, v) }

// lossy encodes a header without its status.
type lossy struct{ std }

func (c lossy) Marshal(v interface{}) ([]byte, error) {
	h := *v.(*packet.Header)
	h.Status = ""
	return json.Marshal(h)
}

type refusing struct{ std }

var errRefused = errors.New("refused")

func (refusing) Marshal(v interface{}) ([]byte, error)      { return []byte("half"), errRefused }
func (refusing) Unmarshal(data []byte, v interface{}) error { return errRefused }

type panicking struct{ std }

func (panicking) Marshal(v interface{}) ([]byte, error)      { panic("no") }
func (panicking) Unmarshal(data []byte, v interface{}) error { panic("no") }

// oneWay encodes and does not decode.
type oneWay struct{ std }

func (oneWay) Unmarshal(data []byte, v interface{}) error { return errRefused }

func TestCheckHeaderCodec(t *testing.T) {
	for _, name := range []string{"json", "protobuf", "std"} {
		require.NoError(t, packet.CheckHeaderCodec(name), name)
	}
	require.ErrorIs(t, packet.CheckHeaderCodec("nope"), codec.ErrUnknown)
	require.ErrorIs(t, packet.CheckHeaderCodec(""), codec.ErrUnknown)
	require.ErrorContains(t, packet.CheckHeaderCodec("string"), "codec string: encoding *packet.Header")
	require.ErrorContains(t, packet.CheckHeaderCodec("lossy"), "codec lossy does not carry a header")
	require.ErrorIs(t, packet.CheckHeaderCodec("refusing"), errRefused)
	require.ErrorContains(t, packet.CheckHeaderCodec("panicking"), "panicked")
	require.ErrorIs(t, packet.CheckHeaderCodec("one-way"), packet.ErrHeader)
}

// A user's codec is handed the *Header itself.
func TestHeaderInAUsersCodec(t *testing.T) {
	want := packet.Packet{HeaderCodec: "std", BodyCodec: "std", Body: "x", Header: &packet.Header{Id: "1",
		Type: packet.TypePush, Uri: "/a"}}
	frame, err := packet.Append(nil, &want, packet.Limits{})
	require.NoError(t, err)
	require.Contains(t, string(frame), `H{"Id":"1","Type":3,"Uri":"/a","Gzip":0,"StatusCode":0,"Status":""}`)
	var got packet.Packet
	var body string
	_, err = packet.Parse(frame, &got, func(*packet.Header) interface{} { return &body }, packet.Limits{})
	require.NoError(t, err)
	require.Equal(t, want.Header, got.Header)
	require.Equal(t, "std", got.HeaderCodec)
	require.Equal(t, "std", got.BodyCodec)
	require.Equal(t, "x", body)
}

// The header of every packet that is sent or received passes here.
func TestProtobufHeaderAllocations(t *testing.T) {
	c := byName(t, "protobuf")
	h := packet.Header{Id: "12345", Type: packet.TypeReply, Uri: "/group/home/test?peer_id=a", Gzip: 5,
		StatusCode: 200, Status: "OK"}
	dst := make([]byte, 0, 256)
	var err error
	require.Zero(t, testing.AllocsPerRun(100, func() {
		dst, err = packet.AppendHeader(dst[:0], c, &h)
	}))
	require.NoError(t, err)

	var got packet.Header
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		err = packet.DecodeHeader(codec.IdProtobuf, dst, &got)
	}), 1.0)
	require.NoError(t, err)
	require.Equal(t, h, got)

	none := []byte{0x10, 0x01} // only a type
	require.Zero(t, testing.AllocsPerRun(100, func() {
		err = packet.DecodeHeader(codec.IdProtobuf, none, &got)
	}))
	require.NoError(t, err)
}

func FuzzHeaderProtobuf(f *testing.F) {
	for _, digits := range someHeaderBytes {
		if b := unhex(f, digits); len(b) < 1000 {
			f.Add(b)
		}
	}
	for _, g := range goldens {
		if b, ok := goldenHeader(f, g, "protobuf"); ok {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		requireDecodesLikeGenerated(t, b)
		if len(b) > 6 {
			n := len(b) / 3
			requireEncodesLikeGenerated(t, packet.Header{
				Id: string(b[:n]), Uri: string(b[n : 2*n]), Status: string(b[2*n:]), Type: int32(b[0]) << 24,
				Gzip: int32(b[1]), StatusCode: -int32(b[2]),
			})
		}
	})
}

// decodeStandard decodes a json header with encoding/json alone.
func decodeStandard(b []byte) (h packet.Header, ok bool) {
	var fields map[string]json.RawMessage
	if !utf8.Valid(b) || json.Unmarshal(b, &fields) != nil {
		return h, false
	}
	for name, to := range map[string]interface{}{
		"id": &h.Id, "type": &h.Type, "uri": &h.Uri, "gzip": &h.Gzip, "status_code": &h.StatusCode,
		"status": &h.Status, "timeout": &h.Timeout, "meta": &h.Meta, "not_run": &h.NotRun,
		"load": &h.Load, "queue_delay": &h.QueueDelay,
	} {
		if v, there := fields[name]; there && json.Unmarshal(v, to) != nil {
			return h, false
		}
	}
	return h, true
}

// Whatever the standard library decodes is decoded, and to the same. Whatever is
// decoded can be sent on, and is the same header then.
func FuzzHeaderJSON(f *testing.F) {
	for _, g := range goldens {
		if b, ok := goldenHeader(f, g, "json"); ok {
			f.Add(b)
		}
	}
	for _, s := range []string{``, `null`, `{"id":null}`, `{"id":"\ud800"}`, "{\"id\":\"\xff\"}",
		`{"type":-0}`, `{"type":1e2}`, `[`, `{"a":[[[[`} {
		f.Add([]byte(s))
	}
	c := byName(f, "json")
	f.Fuzz(func(t *testing.T, b []byte) {
		var h packet.Header
		err := packet.DecodeHeader(codec.IdJSON, b, &h)
		if want, ok := decodeStandard(b); ok {
			require.NoError(t, err)
			require.Equal(t, want, h)
		}
		if err != nil {
			require.ErrorIs(t, err, packet.ErrHeader)
			return
		}
		again, err := packet.AppendHeader(nil, c, &h)
		require.NoError(t, err)
		var same packet.Header
		require.NoError(t, packet.DecodeHeader(codec.IdJSON, again, &same))
		require.Equal(t, h, same)
	})
}

// goldenHeader cuts the header out of a golden frame with that header codec.
func goldenHeader(t testing.TB, g golden, codec string) ([]byte, bool) {
	if g.packet.HeaderCodec != codec {
		return nil, false
	}
	frame := load(t, g.name)
	var p packet.Packet
	_, _ = packet.Parse(frame, &p, nil, packet.Limits{})
	return frame[5 : 4+p.HeaderLength], true
}

// A header has a bounded number of pairs, whatever their size.
func TestHeaderWithTooMuchMetadata(t *testing.T) {
	h := packet.Header{Meta: map[string]string{}}
	for i := range 256 {
		h.Meta[fmt.Sprint(i)] = ""
	}
	for _, name := range []string{"protobuf", "json"} {
		c := byName(t, name)
		b, err := packet.AppendHeader(nil, c, &h)
		require.NoError(t, err)
		var got packet.Header
		require.NoError(t, packet.DecodeHeader(c.Id(), b, &got))
		require.Equal(t, h, got)
	}
	h.Meta["one more"] = ""
	for _, name := range []string{"protobuf", "json"} {
		_, err := packet.AppendHeader(nil, byName(t, name), &h)
		require.ErrorContains(t, err, "more than 256 pairs of metadata")
	}
	b, err := proto.Marshal(generated(h))
	require.NoError(t, err)
	require.ErrorIs(t, packet.DecodeHeader(codec.IdProtobuf, b, new(packet.Header)), packet.ErrHeader)
	b, err = json.Marshal(map[string]interface{}{"meta": h.Meta})
	require.NoError(t, err)
	require.ErrorIs(t, packet.DecodeHeader(codec.IdJSON, b, new(packet.Header)), packet.ErrHeader)
}
