package socket_test

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

func TestRoundTrip(t *testing.T) {
	pull := packet.Header{Id: "1", Type: packet.TypePull, Uri: "/group/home/test?peer_id=a"}
	compressed := pull
	compressed.Gzip = 5
	text := "text"
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			for _, tc := range []struct {
				name string
				out  packet.Packet
				into interface{}
				want interface{}
			}{
				{"defaults", packet.Packet{Header: &pull, Body: []int{1, 2}}, new([]int), &[]int{1, 2}},
				{"json header", packet.Packet{HeaderCodec: "json", Header: &pull, Body: "x"},
					new(interface{}), func() *interface{} { var v interface{} = "x"; return &v }()},
				{"string", packet.Packet{BodyCodec: "string", Header: &pull, Body: text}, new(string), &text},
				{"bytes", packet.Packet{BodyCodec: "string", Header: &pull, Body: []byte{0, 255}},
					new([]byte), &[]byte{0, 255}},
				{"raw", packet.Packet{Header: &pull, Body: packet.RawBody("\xeeanything")},
					new(packet.RawBody),
					func() *packet.RawBody { b := packet.RawBody("\xeeanything"); return &b }()},
				{"gzip", packet.Packet{Header: &compressed, Body: strings.Repeat("long ", 1000)}, new(string),
					func() *string { s := strings.Repeat("long ", 1000); return &s }()},
				{"no body", packet.Packet{Header: &packet.Header{Id: "2", Type: packet.TypeReply,
					StatusCode: 404, Status: "not found"}}, nil, nil},
				{"empty header", packet.Packet{Header: new(packet.Header)}, nil, nil},
			} {
				for _, dir := range []struct{ from, to *socket.Socket }{{a, b}, {b, a}} {
					out := tc.out
					done := make(chan error, 1)
					go func() { done <- dir.from.WritePacket(&out) }()
					got, err := receivePacket(dir.to, tc.into)
					require.NoError(t, err, tc.name)
					require.NoError(t, <-done)
					require.Equal(t, tc.out.Header, got.Header, tc.name)
					require.Equal(t, tc.want, got.Body, tc.name)
					require.Equal(t, []int64{out.HeaderLength, out.BodyLength, out.Length},
						[]int64{got.HeaderLength, got.BodyLength, got.Length}, tc.name)
				}
			}
			m := new(wrapperspb.StringValue)
			done := make(chan error, 1)
			go func() {
				done <- a.WritePacket(&packet.Packet{BodyCodec: "protobuf", Header: &pull,
					Body: wrapperspb.String("hi")})
			}()
			got, err := receivePacket(b, m)
			require.NoError(t, err)
			require.NoError(t, <-done)
			require.Equal(t, "hi protobuf", m.Value+" "+got.BodyCodec)
		})
	}
}

func TestLargeBodies(t *testing.T) {
	sizes := []int{4 << 10, 16<<10 - 20, 16 << 10, 64 << 10, 64<<10 + 1, 1 << 20, 8 << 20}
	for _, tr := range transports {
		if tr.name == "one byte a read" || tr.name == "small buffer" {
			sizes = sizes[:5] // for their slowness
		} else {
			sizes = sizes[:cap(sizes)]
		}
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				for _, size := range sizes {
					assert.NoError(t, a.WritePacket(message("large", strings.Repeat("0123456789abcdef",
						size/16))))
					assert.NoError(t, a.WritePacket(message("small", "x")))
				}
			})
			for _, size := range sizes {
				requireMessage(t, b, "large", strings.Repeat("0123456789abcdef", size/16))
				requireMessage(t, b, "small", "x")
			}
		})
	}
}

// A header that takes many reads and a buffer that grows.
func TestLargeHeader(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			uris := []string{strings.Repeat("x", 5000), "/short", strings.Repeat("y",
				packet.DefaultMaxHeader-5), "/short", strings.Repeat("z", 3000)}
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				for _, uri := range uris {
					assert.NoError(t, a.WritePacket(&packet.Packet{Header: &packet.Header{Uri: uri},
						Body: uri}))
				}
			})
			for _, uri := range uris {
				var body string
				p, err := receivePacket(b, &body)
				require.NoError(t, err)
				require.True(t, uri == p.Header.Uri)
				require.True(t, uri == body)
			}
		})
	}
}

func TestOptionsAndAddresses(t *testing.T) {
	ca, cb := pipe.New(pipe.Options{})
	defer cb.Close()
	limits := packet.Limits{Header: 1000, Body: 2000, Inflated: 3000}
	s := socket.New(ca, socket.Options{Limits: limits, ReadTimeout: time.Second, WriteTimeout: time.Minute})
	defer s.Close()
	require.Equal(t, limits, s.Limits())
	require.Equal(t, ca, s.Conn())
	require.Equal(t, ca.LocalAddr(), s.LocalAddr())
	require.Equal(t, ca.RemoteAddr(), s.RemoteAddr())
	require.Equal(t, ca.LocalAddr().String()+"<->"+ca.RemoteAddr().String(), s.String())
	require.Equal(t, time.Second, s.ReadTimeout())
	require.Equal(t, time.Minute, s.WriteTimeout())
	s.SetReadTimeout(2 * time.Second)
	s.SetWriteTimeout(2 * time.Minute)
	require.Equal(t, 2*time.Second, s.ReadTimeout())
	require.Equal(t, 2*time.Minute, s.WriteTimeout())
	for _, d := range []time.Duration{0, -1} {
		s.SetReadTimeout(d)
		s.SetWriteTimeout(d)
		require.Zero(t, s.ReadTimeout())
		require.Zero(t, s.WriteTimeout())
	}
	negative := socket.New(cb, socket.Options{ReadTimeout: -1, WriteTimeout: -1})
	require.Zero(t, negative.ReadTimeout())
	require.Zero(t, negative.WriteTimeout())
}

func TestFatalOfOtherErrors(t *testing.T) {
	require.False(t, socket.Fatal(nil))
	require.False(t, socket.Fatal(packet.ErrTooLarge))
	require.False(t, socket.Fatal(&net.ParseError{}))
	require.True(t, socket.Fatal(socket.ErrClosed))
}

// A packet's fields may be used again for the next one.
func TestReadIntoAUsedPacket(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	require.NoError(t, a.WritePacket(message("1", "first")))
	require.NoError(t, a.WritePacket(&packet.Packet{HeaderCodec: "json",
		Header: &packet.Header{Type: packet.TypeReply}}))
	var p packet.Packet
	var body string
	newBody := func(*packet.Header) interface{} { return &body }
	require.NoError(t, b.ReadPacket(&p, newBody))
	require.NoError(t, b.ReadPacket(&p, nil))
	require.Equal(t, packet.Packet{HeaderCodec: "json", Header: &packet.Header{Type: packet.TypeReply},
		HeaderLength: 11, Length: 11}, p)
}
