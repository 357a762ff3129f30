package systems

import (
	"context"
	"fmt"
	"net"
	"sync"

	"google.golang.org/protobuf/proto"
	"storj.io/drpc"
	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// drpcUnary is storj's drpc. One of its connections carries one call at a time,
// so here every caller has a connection of its own, as from a pool that is always
// large enough, and what the tables call one connection is as many as callers.
var drpcUnary = System{
	Name:  "drpc",
	About: "storj.io/drpc, a connection for every caller",
	Serve: func(w *payload.Work) (Server, error) {
		mux := drpcmux.New()
		if err := mux.Register(drpcService{w}, drpcDescription{}); err != nil {
			return nil, err
		}
		ln, err := listen()
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		go drpcserver.New(mux).Serve(ctx, ln)
		return server{addr: ln.Addr().String(), close: cancel}, nil
	},
	NewClient: func(addr string) (Client, error) {
		return dialer(func() (Conn, error) { return &drpcConns{addr: addr}, nil }), nil
	},
}

type drpcService struct{ work *payload.Work }

func (s drpcService) Echo(_ context.Context, m *payload.Message) (*payload.Message, error) {
	s.work.Handle(payload.Echo, m)
	return m, nil
}

func (s drpcService) Doze(_ context.Context, m *payload.Message) (*payload.Message, error) {
	s.work.Handle(payload.Doze, m)
	return m, nil
}

func (s drpcService) Compute(_ context.Context, m *payload.Message) (*payload.Message, error) {
	s.work.Handle(payload.Compute, m)
	return m, nil
}

// drpcDescription is what the generator would write, by hand.
type drpcDescription struct{}

type drpcMethod = func(drpcService, context.Context, *payload.Message) (*payload.Message, error)

var drpcMethods = [...]drpcMethod{drpcService.Echo, drpcService.Doze, drpcService.Compute}

func (drpcDescription) NumMethods() int { return len(drpcMethods) }

func (drpcDescription) Method(n int) (string, drpc.Encoding, drpc.Receiver, any, bool) {
	if n < 0 || n >= len(drpcMethods) {
		return "", nil, nil, nil, false
	}
	method := drpcMethods[n]
	receive := func(srv any, ctx context.Context, in, _ any) (drpc.Message, error) {
		return method(srv.(drpcService), ctx, in.(*payload.Message))
	}
	return drpcName(payload.Kind(n)), drpcEncoding{}, receive, method, true
}

func drpcName(k payload.Kind) string { return "/bench.Bench/" + k.String() }

// drpcEncoding is protobuf. MarshalAppend is drpc's way around an allocation.
type drpcEncoding struct{}

func (drpcEncoding) Marshal(m drpc.Message) ([]byte, error) { return proto.Marshal(m.(proto.Message)) }

func (drpcEncoding) MarshalAppend(dst []byte, m drpc.Message) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(dst, m.(proto.Message))
}

func (drpcEncoding) Unmarshal(b []byte, m drpc.Message) error {
	return proto.Unmarshal(b, m.(proto.Message))
}

type drpcConns struct {
	addr string

	mu    sync.Mutex // guards conns
	conns []*drpcconn.Conn
}

func (c *drpcConns) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
}

func (c *drpcConns) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	tcp, err := net.Dial("tcp", c.addr)
	if err != nil {
		return nil, fmt.Errorf("drpc: %w", err)
	}
	conn := drpcconn.New(tcp)
	c.mu.Lock()
	c.conns = append(c.conns, conn)
	c.mu.Unlock()
	in, method, ctx := payload.New(data), drpcName(k), context.Background()
	return func(id uint64) error {
		in.Stamp(id)
		out := new(payload.Message)
		if err := conn.Invoke(ctx, method, drpcEncoding{}, in, out); err != nil {
			return err
		}
		return out.Check(id, len(data))
	}, nil
}
