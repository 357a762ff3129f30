package socket_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// BenchmarkWriteRead sends packets one way over TCP: several writers on one
// socket, one reader.
func BenchmarkWriteRead(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 64 << 10} {
		for _, writers := range []int{1, 16} {
			b.Run(fmt.Sprintf("%dB-%dwriters", size, writers), func(b *testing.B) {
				ca, cb := overTCP(b)
				from, to := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
				body := strings.Repeat("x", size)
				var wg sync.WaitGroup
				for range writers {
					wg.Go(func() {
						p := message("12345", body)
						for from.WritePacket(p) == nil {
						}
					})
				}
				var p packet.Packet
				var got []byte
				newBody := func(*packet.Header) interface{} { return &got }
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if err := to.ReadPacket(&p, newBody); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				_ = to.Close()
				_ = from.Close()
				wg.Wait()
			})
		}
	}
}

// BenchmarkRoundTrip sends a packet and waits for its answer.
func BenchmarkRoundTrip(b *testing.B) {
	for _, tr := range []conns{transports[0], transports[3]} {
		b.Run(tr.name, func(b *testing.B) {
			ca, cb := tr.open(b)
			from, to := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			var wg sync.WaitGroup
			wg.Go(func() {
				var p packet.Packet
				var raw packet.RawBody
				for to.ReadPacket(&p, func(*packet.Header) interface{} { return &raw }) == nil {
					if to.WritePacket(&p) != nil {
						return
					}
				}
			})
			out := message("12345", strings.Repeat("x", 64))
			var p packet.Packet
			var got []byte
			b.ReportAllocs()
			for b.Loop() {
				if err := from.WritePacket(out); err != nil {
					b.Fatal(err)
				}
				if err := from.ReadPacket(&p, func(*packet.Header) interface{} { return &got }); err != nil {
					b.Fatal(err)
				}
			}
			_ = from.Close()
			wg.Wait()
		})
	}
}
