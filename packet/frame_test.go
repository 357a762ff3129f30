package packet_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// frame puts a frame together by hand: codec ids first in both parts.
func frame(header, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(header)))
	b = append(b, header...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

func push(body interface{}) *packet.Packet {
	return &packet.Packet{Header: &packet.Header{Type: packet.TypePush, Uri: "/a"}, Body: body}
}

func TestAppendDefaults(t *testing.T) {
	p := push("x")
	got, err := packet.Append(nil, p, packet.Limits{})
	require.NoError(t, err)
	require.Equal(t, string(frame("p\x10\x03\x1a\x02/a", `j"x"`)), string(got))
	require.Equal(t, []int64{7, 4, 11}, []int64{p.HeaderLength, p.BodyLength, p.Length})
	require.Empty(t, p.HeaderCodec+p.BodyCodec, "what the caller left open stays so")
}

func TestAppendWithoutBody(t *testing.T) {
	for name, body := range map[string]interface{}{
		"nil":                nil,
		"a nil RawBody":      packet.RawBody(nil),
		"an empty RawBody":   packet.RawBody{},
		"a nil *RawBody":     (*packet.RawBody)(nil),
		"an empty *RawBody":  new(packet.RawBody),
		"nil, codec unknown": nil,
	} {
		t.Run(name, func(t *testing.T) {
			p := push(body)
			p.Header.Gzip = 5
			if strings.Contains(name, "unknown") {
				p.BodyCodec = "nope" // which is not asked for
			}
			got, err := packet.Append(nil, p, packet.Limits{})
			require.NoError(t, err)
			require.Equal(t, string(frame("p\x10\x03\x1a\x02/a\x20\x05", "")), string(got))
			require.Zero(t, p.BodyLength)
		})
	}
}

// A nil of some type is a value, as any other: null in json.
func TestAppendTypedNil(t *testing.T) {
	got, err := packet.Append(nil, push((*int)(nil)), packet.Limits{})
	require.NoError(t, err)
	require.True(t, bytes.HasSuffix(got, []byte("\x00\x00\x00\x05jnull")))
}

func TestAppendThatFailsLeavesDstAndLengthsAlone(t *testing.T) {
	long := strings.Repeat("long", 100)
	for _, tc := range []struct {
		name   string
		packet *packet.Packet
		limits packet.Limits
		is     []error
		says   string
	}{
		{name: "no header", packet: &packet.Packet{Body: "x"}, says: "Header is nil"},
		{name: "unknown header codec", packet: &packet.Packet{HeaderCodec: "nope",
			Header: new(packet.Header)}, is: []error{codec.ErrUnknown},
			says: `packet: header: unknown codec: name "nope"`},
		{name: "unknown body codec", packet: &packet.Packet{BodyCodec: "nope", Header: new(packet.Header),
			Body: "x"}, is: []error{codec.ErrUnknown}, says: `packet: body: unknown codec: name "nope"`},
		{name: "header is no text", packet: &packet.Packet{Header: &packet.Header{Uri: "/\xff"}},
			says: "UTF-8"},
		{name: "codec without headers", packet: &packet.Packet{HeaderCodec: "string",
			Header: new(packet.Header)}, says: "*packet.Header"},
		{name: "header codec fails", packet: &packet.Packet{HeaderCodec: "refusing",
			Header: new(packet.Header)}, is: []error{errRefused}},
		{name: "header codec panics", packet: &packet.Packet{HeaderCodec: "panicking",
			Header: new(packet.Header)}, says: "panicked"},
		{name: "header too large", packet: &packet.Packet{Header: &packet.Header{Uri: long}},
			limits: packet.Limits{Header: 400}, is: []error{packet.ErrTooLarge},
			says: "header length 404 exceeds limit 400"},
		{name: "json header too large", packet: &packet.Packet{HeaderCodec: "json",
			Header: &packet.Header{Uri: long}}, limits: packet.Limits{Header: 400},
			is: []error{packet.ErrTooLarge}},
		{name: "header past the default",
			packet: &packet.Packet{Header: &packet.Header{Uri: strings.Repeat("x", packet.DefaultMaxHeader)}},
			is:     []error{packet.ErrTooLarge}},
		{name: "body too large", packet: push(long), limits: packet.Limits{Body: 400},
			is: []error{packet.ErrTooLarge}, says: "body length 403 exceeds limit 400"},
		{name: "raw body too large", packet: push(packet.RawBody("j" + long)),
			limits: packet.Limits{Body: 400}, is: []error{packet.ErrTooLarge}},
		{name: "compressed body too large", packet: gzipped(5, long), limits: packet.Limits{Body: 20},
			is: []error{packet.ErrTooLarge}, says: "exceeds limit 20"},
		{name: "body too large to inflate", packet: gzipped(5, long), limits: packet.Limits{Inflated: 401},
			is: []error{packet.ErrTooLarge}, says: "body length 402 before compression exceeds limit 401"},
		{name: "gzip level 10", packet: gzipped(10, "x"), is: []error{packet.ErrGzip},
			says: "level 10 is outside -2..9"},
		{name: "gzip level -3", packet: gzipped(-3, "x"), is: []error{packet.ErrGzip}},
		{name: "gzip level 10 without a body", packet: gzipped(10, nil), is: []error{packet.ErrGzip}},
		{name: "gzip level 10 of a raw body", packet: gzipped(10, packet.RawBody("j1")),
			is: []error{packet.ErrGzip}},
		{name: "body does not encode", packet: push(make(chan int)), says: "codec json: encoding chan int"},
		{name: "body to compress does not encode", packet: gzipped(5, make(chan int)),
			says: "codec json: encoding chan int"},
		{name: "body does not encode half way", packet: push([]interface{}{long, math.NaN()}), says: "NaN"},
		{name: "body codec fails", packet: &packet.Packet{BodyCodec: "refusing", Header: new(packet.Header),
			Body: "x"}, is: []error{errRefused}},
		{name: "body codec panics", packet: &packet.Packet{BodyCodec: "panicking", Header: new(packet.Header),
			Body: "x"}, says: "panicked: no"},
		{name: "not a message", packet: &packet.Packet{BodyCodec: "protobuf", Header: new(packet.Header),
			Body: "x"}, says: "encoding string: not a protobuf message"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, room := range []int{0, 10, 10000} {
				p := *tc.packet
				p.HeaderLength, p.BodyLength, p.Length = 11, 12, 13
				dst := append(make([]byte, 0, 5+room), "front"...)
				out, err := packet.Append(dst, &p, tc.limits)
				require.Error(t, err)
				for _, is := range tc.is {
					require.ErrorIs(t, err, is)
				}
				require.ErrorContains(t, err, tc.says)
				require.Equal(t, "front", string(out))
				require.Equal(t, "front", string(dst))
				require.Same(t, unsafe.SliceData(dst), unsafe.SliceData(out))
				require.Equal(t, []int64{11, 12, 13}, []int64{p.HeaderLength, p.BodyLength, p.Length})
			}
		})
	}
}

// requireShort requires what Parse says of a frame that is not all there.
func requireShort(t *testing.T, b []byte, newBody func(*packet.Header) interface{}) {
	t.Helper()
	var p packet.Packet
	n, err := packet.Parse(b, &p, newBody, packet.Limits{})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "%x", b)
	require.NotErrorIs(t, err, packet.ErrHeader)
	require.Zero(t, n)
}

func TestParseOfEveryTruncation(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			frame := load(t, g.name)
			for n := range frame {
				requireShort(t, frame[:n:n], g.newBody())
				requireShort(t, frame[:n:n], nil)
			}
		})
	}
	var p packet.Packet
	_, err := packet.Parse(nil, &p, nil, packet.Limits{})
	require.EqualError(t, err, "packet: unexpected EOF in header length after 0 bytes")
	_, err = packet.Parse(frame("p", "j1")[:6], &p, nil, packet.Limits{})
	require.EqualError(t, err, "packet: unexpected EOF in body length after 6 bytes")
}

func TestParseErrorsThatEndTheStream(t *testing.T) {
	for _, tc := range []struct {
		name   string
		frame  []byte
		limits packet.Limits
		is     []error
	}{
		{"header length 0", []byte{0, 0, 0, 0, 'p', 0, 0, 0, 0}, packet.Limits{}, []error{packet.ErrHeader}},
		{"header past its limit", frame("p"+strings.Repeat("\x10\x01", 50), ""), packet.Limits{Header: 100},
			[]error{packet.ErrHeader, packet.ErrTooLarge}},
		{"header of 4 GiB", []byte{255, 255, 255, 255}, packet.Limits{}, []error{packet.ErrHeader,
			packet.ErrTooLarge}},
		{"unknown header codec", frame("\x01", ""), packet.Limits{}, []error{packet.ErrHeader,
			codec.ErrUnknown}},
		{"header codec 0", frame("\x00", ""), packet.Limits{}, []error{packet.ErrHeader, codec.ErrUnknown}},
		{"broken header", frame("p\xff", ""), packet.Limits{}, []error{packet.ErrHeader}},
		{"broken json header", frame("j{", ""), packet.Limits{}, []error{packet.ErrHeader}},
		{"no json header", frame("j", ""), packet.Limits{}, []error{packet.ErrHeader}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p packet.Packet
			n, err := packet.Parse(tc.frame, &p, nil, tc.limits)
			for _, is := range tc.is {
				require.ErrorIs(t, err, is)
			}
			require.Zero(t, n)
		})
	}
}

func TestParseErrorsOfTheBodyAlone(t *testing.T) {
	compressed, err := packet.Append(nil, gzipped(9, strings.Repeat("x", 1000)), packet.Limits{})
	require.NoError(t, err)
	for _, tc := range []struct {
		name   string
		frame  []byte
		limits packet.Limits
		is     error
		says   string
		codec  string
	}{
		{"past its limit", frame("p\x0a\x011", "j"+strings.Repeat(" ", 100)), packet.Limits{Body: 100},
			packet.ErrTooLarge, "body length 101 exceeds limit 100", ""},
		{"unknown codec", frame("p\x0a\x011", "\x01abc"), packet.Limits{}, codec.ErrUnknown,
			"packet: body: unknown codec: id 1", ""},
		{"codec 0", frame("p\x0a\x011", "\x00abc"), packet.Limits{}, codec.ErrUnknown, "id 0", ""},
		{"does not decode", frame("p\x0a\x011", "j{"), packet.Limits{}, nil,
			"codec json: decoding into *interface {}", "json"},
		{"not one value", frame("p\x0a\x011", "j1 2"), packet.Limits{}, nil, "codec json", "json"},
		{"empty json", frame("p\x0a\x011", "j"), packet.Limits{}, nil, "codec json", "json"},
		{"the codec's error", frame("p\x0a\x011", "R"), packet.Limits{}, errRefused, "", "refusing"},
		{"the codec's panic", frame("p\x0a\x011", "Q"), packet.Limits{}, nil, "panicked", "panicking"},
		{"no gzip stream", frame("p\x0a\x011\x20\x05", "jplain"), packet.Limits{}, packet.ErrGzip, "",
			"json"},
		{"an empty gzip stream", frame("p\x0a\x011\x20\x05", "j"), packet.Limits{}, packet.ErrGzip, "",
			"json"},
		{"gzip level 10", frame("p\x0a\x011\x20\x0a", "j1"), packet.Limits{}, packet.ErrGzip, "level 10",
			"json"},
		{"inflated past its limit", compressed, packet.Limits{Inflated: 1001}, packet.ErrTooLarge,
			"inflated body exceeds limit 1001", "json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var body interface{} = "untouched"
			var p packet.Packet
			n, err := packet.Parse(append(tc.frame, "the next"...), &p,
				func(h *packet.Header) interface{} { return &body }, tc.limits)
			require.Equal(t, len(tc.frame), n)
			if tc.is != nil {
				require.ErrorIs(t, err, tc.is)
			}
			require.ErrorContains(t, err, tc.says)
			require.NotErrorIs(t, err, packet.ErrHeader)
			require.NotErrorIs(t, err, io.EOF)
			require.Equal(t, "1", p.Header.Id)
			require.Equal(t, tc.codec, p.BodyCodec)
			require.Equal(t, int64(n-8), p.Length)
			require.Equal(t, p.Length, p.HeaderLength+p.BodyLength)
		})
	}
}

// Of a body past the limit nothing is left of the packet that was read before.
func TestParseTooLargeBodyIntoAUsedPacket(t *testing.T) {
	var p packet.Packet
	_, err := packet.Parse(frame("p", "j1"), &p, func(*packet.Header) interface{} { return new(int) },
		packet.Limits{})
	require.NoError(t, err)
	_, err = packet.Parse(frame("p", "s"+strings.Repeat("x", 20)), &p, nil, packet.Limits{Body: 10})
	require.ErrorIs(t, err, packet.ErrTooLarge)
	require.Nil(t, p.Body)
	require.Empty(t, p.BodyCodec)
	require.Equal(t, []int64{1, 21, 22}, []int64{p.HeaderLength, p.BodyLength, p.Length})
}

// That a body is too large is known before it is there.
func TestParseTooLargeBodyThatIsNotThere(t *testing.T) {
	var p packet.Packet
	n, err := packet.Parse([]byte("\x00\x00\x00\x01p\xff\xff\xff\xff"), &p, nil, packet.Limits{})
	require.ErrorIs(t, err, packet.ErrTooLarge)
	require.Zero(t, n)
}

func TestParseAsksForTheBodyByHeader(t *testing.T) {
	b := frame("p\x1a\x02/a", "j7")
	var p packet.Packet
	n, err := packet.Parse(b, &p, func(h *packet.Header) interface{} {
		require.Equal(t, "/a", h.Uri)
		return nil
	}, packet.Limits{})
	require.NoError(t, err)
	require.Equal(t, len(b), n)
	require.Nil(t, p.Body)
	require.Equal(t, "json", p.BodyCodec, "known, though not decoded")
	require.Equal(t, int64(2), p.BodyLength)
}

func TestParseHeaderWithoutABytes(t *testing.T) {
	var p packet.Packet
	require.ErrorIs(t, p.ParseHeader(nil), packet.ErrHeader)
	require.ErrorIs(t, p.ParseHeader([]byte{}), packet.ErrHeader)
}

func TestDecodeBody(t *testing.T) {
	t.Run("into nil", func(t *testing.T) {
		name, err := packet.DecodeBody([]byte("j{broken"), 0, nil, packet.Limits{})
		require.NoError(t, err)
		require.Equal(t, "json", name)
	})
	t.Run("no body", func(t *testing.T) {
		v := 7
		name, err := packet.DecodeBody(nil, 5, &v, packet.Limits{})
		require.NoError(t, err)
		require.Empty(t, name)
		require.Equal(t, 7, v)
	})
	t.Run("raw", func(t *testing.T) {
		raw := packet.RawBody("before")
		before := raw
		in := []byte("j\x1f\x8b")
		name, err := packet.DecodeBody(in, 5, &raw, packet.Limits{})
		require.NoError(t, err)
		require.Equal(t, "json", name)
		clear(in)
		require.Equal(t, "j\x1f\x8b", string(raw), "a copy, neither inflated nor decoded")
		require.Equal(t, "before", string(before))
	})
	t.Run("raw of an unknown codec", func(t *testing.T) {
		var raw packet.RawBody
		name, err := packet.DecodeBody([]byte("\x01x"), 99, &raw, packet.Limits{})
		require.NoError(t, err)
		require.Empty(t, name)
		require.Equal(t, "\x01x", string(raw))
	})
	t.Run("no raw body", func(t *testing.T) {
		raw := packet.RawBody("before")
		name, err := packet.DecodeBody(nil, 0, &raw, packet.Limits{})
		require.NoError(t, err)
		require.Empty(t, name)
		require.Empty(t, raw)
	})
	t.Run("nil *RawBody", func(t *testing.T) {
		_, err := packet.DecodeBody([]byte("sx"), 0, (*packet.RawBody)(nil), packet.Limits{})
		require.Error(t, err)
	})
	t.Run("each codec", func(t *testing.T) {
		var s string
		name, err := packet.DecodeBody([]byte("stext"), 0, &s, packet.Limits{})
		require.NoError(t, err)
		require.Equal(t, "string text", name+" "+s)
		m := new(wrapperspb.StringValue)
		name, err = packet.DecodeBody([]byte("p\x0a\x02hi"), 0, m, packet.Limits{})
		require.NoError(t, err)
		require.Equal(t, "protobuf hi", name+" "+m.Value)
	})
}

func TestLimits(t *testing.T) {
	length := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	const largest = min(math.MaxUint32, math.MaxInt-1<<10) // where an int has 32 bits
	for _, tc := range []struct {
		name         string
		limits       packet.Limits
		header, body uint32 // the largest that passes
	}{
		{"default", packet.Limits{}, packet.DefaultMaxHeader, packet.DefaultMaxBody},
		{"set", packet.Limits{Header: 10, Body: 20}, 10, 20},
		{"least", packet.Limits{Header: 1, Body: 1}, 1, 1},
		{"none", packet.Limits{Header: -1, Body: math.MinInt64}, largest, largest},
		{"past the format's own", packet.Limits{Header: math.MaxInt64, Body: math.MaxUint32 + 1}, largest,
			largest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := tc.limits.HeaderLength(length(tc.header))
			require.NoError(t, err)
			require.Equal(t, int64(tc.header), n)
			n, err = tc.limits.BodyLength(length(tc.body))
			require.NoError(t, err)
			require.Equal(t, int64(tc.body), n)
			n, err = tc.limits.BodyLength(length(0))
			require.NoError(t, err)
			require.Zero(t, n)
			_, err = tc.limits.HeaderLength(length(0))
			require.ErrorIs(t, err, packet.ErrHeader)
			if tc.header == math.MaxUint32 {
				return
			}
			_, err = tc.limits.HeaderLength(length(tc.header + 1))
			require.ErrorIs(t, err, packet.ErrHeader)
			require.ErrorIs(t, err, packet.ErrTooLarge)
			n, err = tc.limits.BodyLength(length(tc.body + 1))
			require.ErrorIs(t, err, packet.ErrTooLarge)
			require.NotErrorIs(t, err, packet.ErrHeader)
			require.Equal(t, int64(tc.body)+1, n)
		})
	}
}

// What one side may just send, the other may just receive.
func TestLimitsAreTheSameInBothDirections(t *testing.T) {
	p := push(strings.Repeat("x", 100))
	b, err := packet.Append(nil, p, packet.Limits{})
	require.NoError(t, err)
	exact := packet.Limits{Header: p.HeaderLength, Body: p.BodyLength}
	for _, tc := range []struct {
		name   string
		limits packet.Limits
		ok     bool
	}{
		{"exact", exact, true},
		{"header one less", packet.Limits{Header: exact.Header - 1, Body: exact.Body}, false},
		{"body one less", packet.Limits{Header: exact.Header, Body: exact.Body - 1}, false},
		{"none", packet.Limits{Header: -1, Body: -1}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := packet.Append(nil, push(strings.Repeat("x", 100)), tc.limits)
			require.Equal(t, tc.ok, err == nil, "%v", err)
			var got packet.Packet
			_, err = packet.Parse(b, &got, nil, tc.limits)
			require.Equal(t, tc.ok, err == nil, "%v", err)
		})
	}
}

func TestNoLimits(t *testing.T) {
	none := packet.Limits{Header: -1, Body: -1}
	large := strings.Repeat("x", packet.DefaultMaxBody)
	p := &packet.Packet{BodyCodec: "string", Body: large, Header: &packet.Header{Uri: strings.Repeat("u",
		2*packet.DefaultMaxHeader)}}
	b, err := packet.Append(nil, p, none)
	require.NoError(t, err)
	var got packet.Packet
	var body string
	_, err = packet.Parse(b, &got, func(*packet.Header) interface{} { return &body }, none)
	require.NoError(t, err)
	require.Equal(t, p.Header, got.Header)
	require.True(t, large == body)
}

// always makes the same kind of body for every header.
func always[T any](*packet.Header) interface{} { return new(T) }

func FuzzParse(f *testing.F) {
	var all []byte
	for _, g := range goldens {
		b := load(f, g.name)
		f.Add(b)
		all = append(all, b...)
	}
	f.Add(all)
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 'p'})
	f.Add([]byte("\x00\x00\x00\x01p\xff\xff\xff\xff"))
	limits := packet.Limits{Body: 1 << 16, Inflated: 1 << 16}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, newBody := range []func(*packet.Header) interface{}{
			nil, always[interface{}], always[string], always[wrapperspb.StringValue],
			always[[]map[string]int],
		} {
			var p packet.Packet
			n, err := packet.Parse(b, &p, newBody, limits)
			require.GreaterOrEqual(t, n, 0)
			require.LessOrEqual(t, n, len(b))
			if err == nil || n > 0 {
				require.Equal(t, int64(n), p.Length+2*packet.LengthSize)
			}
		}

		var p packet.Packet
		n, err := packet.Parse(b, &p, always[packet.RawBody], limits)
		if err != nil {
			require.True(t, errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, packet.ErrHeader) ||
				errors.Is(err, packet.ErrTooLarge), "%v", err)
			return
		}
		requireShort(t, b[:n-1], nil)

		// It can be passed on, and arrives as the same packet.
		p2 := p
		again, err := packet.Append(nil, &p2, packet.Limits{Header: -1})
		if packet.CheckGzip(p.Header.Gzip) != nil || packet.CheckHeaderCodec(p.HeaderCodec) != nil {
			return // this side would not send such a one
		}
		require.NoError(t, err)
		var got packet.Packet
		n, err = packet.Parse(again, &got, always[packet.RawBody], packet.Limits{Header: -1})
		require.NoError(t, err)
		require.Equal(t, len(again), n)
		require.Equal(t, p.Header, got.Header)
		require.Equal(t, string(*p.Body.(*packet.RawBody)), string(*got.Body.(*packet.RawBody)))
	})
}
