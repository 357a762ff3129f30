package systems

import (
	"context"
	"net"

	"github.com/containerd/ttrpc"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// ttrpcUnary is containerd's ttrpc: gRPC's services without HTTP/2.
var ttrpcUnary = System{
	Name:  "ttrpc",
	About: "github.com/containerd/ttrpc",
	Serve: func(w *payload.Work) (Server, error) {
		s, err := ttrpc.NewServer()
		if err != nil {
			return nil, err
		}
		methods := make(map[string]ttrpc.Method)
		for _, k := range payload.Kinds() {
			methods[k.String()] = func(_ context.Context, decode func(any) error) (any, error) {
				m := new(payload.Message)
				if err := decode(m); err != nil {
					return nil, err
				}
				w.Handle(k, m)
				return m, nil
			}
		}
		s.RegisterService("bench.Bench", &ttrpc.ServiceDesc{Methods: methods})
		ln, err := listen()
		if err != nil {
			return nil, err
		}
		go s.Serve(context.Background(), ln)
		return server{addr: ln.Addr().String(), close: func() { s.Close() }}, nil
	},
	NewClient: func(addr string) (Client, error) {
		return dialer(func() (Conn, error) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return nil, err
			}
			return ttrpcConn{ttrpc.NewClient(conn)}, nil
		}), nil
	},
}

type ttrpcConn struct{ c *ttrpc.Client }

func (c ttrpcConn) Close() { c.c.Close() }

func (c ttrpcConn) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	in, method, ctx := payload.New(data), k.String(), context.Background()
	return func(id uint64) error {
		in.Stamp(id)
		out := new(payload.Message)
		if err := c.c.Call(ctx, "bench.Bench", method, in, out); err != nil {
			return err
		}
		return out.Check(id, len(data))
	}, nil
}
