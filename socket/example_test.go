package socket_test

import (
	"fmt"
	"io"
	"log"
	"net"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Two ends exchange packets, with no peer, session or route about them: one adds
// numbers, the other has some added.
func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()

	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			log.Print(err)
			return
		}
		s := socket.New(conn, socket.Options{})
		defer s.Close()
		for {
			var p packet.Packet
			var numbers []int
			err := s.ReadPacket(&p, func(*packet.Header) interface{} { return &numbers })
			if err == io.EOF {
				return // the other end is done
			}
			reply := &packet.Packet{
				BodyCodec: p.BodyCodec,
				Header:    &packet.Header{Type: packet.TypeReply, StatusCode: 200},
			}
			switch {
			case err == nil:
				sum := 0
				for _, n := range numbers {
					sum += n
				}
				reply.Body = sum
			case socket.Fatal(err):
				log.Print(err)
				return
			default: // only this body was bad: the connection lives on
				reply.Header.StatusCode, reply.Header.Status = 400, "not a list of numbers"
			}
			reply.Header.Id = p.Header.Id
			if err := s.WritePacket(reply); err != nil {
				log.Print(err)
				return
			}
		}
	}()

	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	s := socket.New(conn, socket.Options{})
	for i, body := range []interface{}{[]int{1, 2, 3}, "text", []int{40, 2}} {
		err := s.WritePacket(&packet.Packet{
			BodyCodec: "json",
			Header:    &packet.Header{Id: fmt.Sprint(i), Type: packet.TypePull, Uri: "/sum"},
			Body:      body,
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	for range 3 {
		var p packet.Packet
		var sum int
		if err := s.ReadPacket(&p, func(*packet.Header) interface{} { return &sum }); err != nil {
			log.Fatal(err)
		}
		fmt.Println(p.Header.Id, p.Header.StatusCode, p.Header.Status, sum)
	}
	s.Close()
	<-done
	// Output:
	// 0 200  6
	// 1 400 not a list of numbers 0
	// 2 200  42
}
