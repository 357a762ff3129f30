package packet_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/henrylee2cn/teleport/packet"
)

var benchSizes = []int{0, 64, 1 << 10, 64 << 10, 1 << 20}

// benchPacket is a pull with a body of that many bytes of text; 0 is no body.
func benchPacket(size int, gzip int32) *packet.Packet {
	p := &packet.Packet{BodyCodec: "string", Header: &packet.Header{Id: "12345", Type: packet.TypePull,
		Uri: "/group/home/test?peer_id=a", Gzip: gzip}}
	if size > 0 {
		p.Body = strings.Repeat("some text, ", size/11+1)[:size]
	}
	return p
}

func benchName(size int, gzip int32) string {
	if gzip != 0 {
		return fmt.Sprintf("%dB-gzip%d", size, gzip)
	}
	return fmt.Sprintf("%dB", size)
}

func BenchmarkAppend(b *testing.B) {
	for _, gzip := range []int32{0, 5} {
		for _, size := range benchSizes {
			if gzip != 0 && size == 0 {
				continue
			}
			b.Run(benchName(size, gzip), func(b *testing.B) {
				p := benchPacket(size, gzip)
				var dst []byte
				var err error
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if dst, err = packet.Append(dst[:0], p, packet.Limits{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, gzip := range []int32{0, 5} {
		for _, size := range benchSizes {
			if gzip != 0 && size == 0 {
				continue
			}
			b.Run(benchName(size, gzip), func(b *testing.B) {
				frame, err := packet.Append(nil, benchPacket(size, gzip), packet.Limits{})
				if err != nil {
					b.Fatal(err)
				}
				var p packet.Packet
				var body []byte
				newBody := func(*packet.Header) interface{} { return &body }
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := packet.Parse(frame, &p, newBody, packet.Limits{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkAppendHeader(b *testing.B) {
	h := &packet.Header{Id: "12345", Type: packet.TypeReply, Uri: "/group/home/test?peer_id=a",
		StatusCode: 200, Status: "OK"}
	for _, name := range []string{"protobuf", "json"} {
		b.Run(name, func(b *testing.B) {
			c := byName(b, name)
			var dst []byte
			var err error
			b.ReportAllocs()
			for b.Loop() {
				if dst, err = packet.AppendHeader(dst[:0], c, h); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecodeHeader(b *testing.B) {
	want := &packet.Header{Id: "12345", Type: packet.TypeReply, Uri: "/group/home/test?peer_id=a",
		StatusCode: 200, Status: "OK"}
	for _, name := range []string{"protobuf", "json"} {
		b.Run(name, func(b *testing.B) {
			c := byName(b, name)
			data, err := packet.AppendHeader(nil, c, want)
			if err != nil {
				b.Fatal(err)
			}
			var h packet.Header
			b.ReportAllocs()
			for b.Loop() {
				if err := packet.DecodeHeader(c.Id(), data, &h); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
