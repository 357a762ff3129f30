package systems

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// grpcUnary is grpc-go with its defaults. The service's description is what the
// generator would write, by hand.
var grpcUnary = System{
	Name:  "grpc",
	About: "google.golang.org/grpc, unary calls",
	Serve: func(w *payload.Work) (Server, error) {
		ln, err := listen()
		if err != nil {
			return nil, err
		}
		s := grpc.NewServer()
		s.RegisterService(grpcService(w), w)
		go s.Serve(ln)
		return server{addr: ln.Addr().String(), close: s.Stop}, nil
	},
	NewClient: func(addr string) (Client, error) {
		return dialer(func() (Conn, error) {
			cc, err := grpc.NewClient("passthrough:///"+addr,
				grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return nil, err
			}
			return grpcConn{cc}, nil
		}), nil
	},
}

func grpcService(w *payload.Work) *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: "bench.Bench", HandlerType: (*any)(nil),
		Metadata: "payload/message.proto"}
	for _, k := range payload.Kinds() {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{
			MethodName: k.String(),
			Handler: func(_ any, _ context.Context, decode func(any) error,
				_ grpc.UnaryServerInterceptor) (any, error) {
				m := new(payload.Message)
				if err := decode(m); err != nil {
					return nil, err
				}
				w.Handle(k, m)
				return m, nil
			},
		})
	}
	return desc
}

type grpcConn struct{ cc *grpc.ClientConn }

func (c grpcConn) Close() { c.cc.Close() }

func (c grpcConn) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	in, method, ctx := payload.New(data), "/bench.Bench/"+k.String(), context.Background()
	opts := []grpc.CallOption{grpc.StaticMethod()}
	return func(id uint64) error {
		in.Stamp(id)
		out := new(payload.Message)
		if err := c.cc.Invoke(ctx, method, in, out, opts...); err != nil {
			return err
		}
		return out.Check(id, len(data))
	}, nil
}
