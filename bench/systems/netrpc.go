package systems

import (
	"net"
	"net/rpc"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// netRPC is the standard library's RPC with its own encoding, gob, and therefore
// the message as a plain struct.
var netRPC = System{
	Name:  "netrpc",
	About: "net/rpc of the standard library, gob bodies",
	Serve: func(w *payload.Work) (Server, error) {
		ln, err := listen()
		if err != nil {
			return nil, err
		}
		s := rpc.NewServer()
		if err := s.RegisterName("Bench", netrpcService{w}); err != nil {
			return nil, err
		}
		go accept(ln, func(conn net.Conn) { s.ServeConn(conn) })
		return server{addr: ln.Addr().String(), close: func() { ln.Close() }}, nil
	},
	NewClient: func(addr string) (Client, error) {
		return dialer(func() (Conn, error) {
			c, err := rpc.Dial("tcp", addr)
			if err != nil {
				return nil, err
			}
			return netrpcConn{c}, nil
		}), nil
	},
}

type netrpcService struct{ work *payload.Work }

func (s netrpcService) Echo(in, out *payload.Plain) error { return s.handle(payload.Echo, in, out) }
func (s netrpcService) Doze(in, out *payload.Plain) error { return s.handle(payload.Doze, in, out) }
func (s netrpcService) Compute(in, out *payload.Plain) error {
	return s.handle(payload.Compute, in, out)
}

func (s netrpcService) handle(k payload.Kind, in, out *payload.Plain) error {
	s.work.HandlePlain(k, in)
	*out = *in
	return nil
}

type netrpcConn struct{ c *rpc.Client }

func (c netrpcConn) Close() { c.c.Close() }

func (c netrpcConn) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	in, method := payload.NewPlain(data), "Bench."+k.String()
	return func(id uint64) error {
		in.Stamp(id)
		out := new(payload.Plain)
		if err := c.c.Call(method, in, out); err != nil {
			return err
		}
		return out.Check(id, len(data))
	}, nil
}
