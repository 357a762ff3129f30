package systems

import (
	"fmt"
	"log"
	"net"

	"github.com/henrylee2cn/teleport/bench/payload"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// socketAlone is package socket without the framework above it: its server
// handles each packet and writes the reply on the goroutine that reads.
var socketAlone = System{
	Name:  "socket",
	About: "package socket alone, handlers on the reading goroutine",
	Push:  true,
	Serve: func(w *payload.Work) (Server, error) {
		ln, err := listen()
		if err != nil {
			return nil, err
		}
		go accept(ln, func(conn net.Conn) { serveSocket(conn, w) })
		return server{addr: ln.Addr().String(), close: func() { ln.Close() }}, nil
	},
	NewClient: func(addr string) (Client, error) {
		return dialer(func() (Conn, error) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return nil, err
			}
			c := &socketConn{sock: socket.New(conn, socket.Options{})}
			go c.read()
			return c, nil
		}), nil
	},
}

// serveSocket answers until the connection ends.
func serveSocket(conn net.Conn, w *payload.Work) {
	sock := socket.New(conn, socket.Options{})
	defer sock.Close()
	routes := make(map[string]func(*payload.Message))
	for _, k := range payload.Kinds() {
		routes[k.Path()] = func(m *payload.Message) { w.Handle(k, m) }
	}
	routes[payload.NotePath] = w.Note

	var m *payload.Message
	newBody := func(*packet.Header) any {
		m = new(payload.Message)
		return m
	}
	in, header := new(packet.Packet), new(packet.Header)
	out := &packet.Packet{BodyCodec: "protobuf", Header: header}
	for {
		if err := sock.ReadPacket(in, newBody); err != nil {
			return
		}
		handle := routes[in.Header.Uri]
		if handle == nil {
			log.Printf("socket: no route %q", in.Header.Uri)
			return
		}
		handle(m)
		if in.Header.Type == packet.TypePush {
			continue
		}
		*header = packet.Header{Id: in.Header.Id, Type: packet.TypeReply, StatusCode: 200}
		out.Body = m
		if err := sock.WritePacket(out); err != nil {
			return
		}
	}
}

// socketConn is the least client that package socket needs: a table of calls, and
// a goroutine that reads until the connection ends.
type socketConn struct {
	sock  *socket.Socket
	calls pending
}

func (c *socketConn) Close() { c.sock.Close() }

func (c *socketConn) read() {
	var call *pendingCall
	newBody := func(h *packet.Header) any {
		if call = c.calls.take(slotOf(h.Id)); call == nil {
			return nil
		}
		return call.out
	}
	in := new(packet.Packet)
	for {
		call = nil
		err := c.sock.ReadPacket(in, newBody)
		if call != nil {
			call.done <- err
		}
		if err != nil {
			c.calls.fail(fmt.Errorf("reading: %w", err))
			c.sock.Close()
			return
		}
	}
}

func (c *socketConn) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	in, call := payload.New(data), newPendingCall()
	header := &packet.Header{Type: packet.TypePull, Uri: k.Path()}
	p := &packet.Packet{BodyCodec: "protobuf", Header: header, Body: in}
	return func(id uint64) error {
		in.Stamp(id)
		out := new(payload.Message)
		call.out = out
		slot, err := c.calls.add(call)
		if err != nil {
			return err
		}
		header.Id = wireID(slot)
		if err := c.sock.WritePacket(p); err != nil {
			return err
		}
		if err := <-call.done; err != nil {
			return err
		}
		return out.Check(id, len(data))
	}, nil
}

func (c *socketConn) Pusher() func(uint64) error {
	in := payload.New(nil)
	p := &packet.Packet{BodyCodec: "protobuf", Header: &packet.Header{Type: packet.TypePush,
		Uri: payload.NotePath}, Body: in}
	return func(id uint64) error {
		in.Stamp(id)
		return c.sock.WritePacket(p)
	}
}

func (c *socketConn) Flush() error { return nil }
