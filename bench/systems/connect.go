package systems

import (
	"context"
	"io"
	"log"
	"net/http"

	"connectrpc.com/connect"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// connectUnary is connect-go's own protocol over HTTP/2 without TLS, on the
// standard library's server and client. Gzip, which connect offers by default,
// is taken out, and the server takes as many streams on one connection as there
// are callers; the standard library's limit of 250 would open further connections.
var connectUnary = System{
	Name:  "connect",
	About: "connectrpc.com/connect over HTTP/2 without TLS",
	Serve: func(w *payload.Work) (Server, error) {
		mux := http.NewServeMux()
		for _, k := range payload.Kinds() {
			handle := func(_ context.Context,
				req *connect.Request[payload.Message]) (*connect.Response[payload.Message], error) {
				w.Handle(k, req.Msg)
				return connect.NewResponse(req.Msg), nil
			}
			mux.Handle(connectPath(k), connect.NewUnaryHandler(connectPath(k), handle,
				connect.WithCompression("gzip", nil, nil)))
		}
		ln, err := listen()
		if err != nil {
			return nil, err
		}
		s := &http.Server{
			Handler:   mux,
			Protocols: unencryptedHTTP2(),
			HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 4096},
			ErrorLog:  log.New(io.Discard, "", 0),
		}
		go s.Serve(ln)
		return server{addr: ln.Addr().String(), close: func() { s.Close() }}, nil
	},
	NewClient: func(addr string) (Client, error) {
		return dialer(func() (Conn, error) {
			return connectConn{
				url: "http://" + addr,
				transport: &http.Transport{Protocols: unencryptedHTTP2(),
					HTTP2: &http.HTTP2Config{StrictMaxConcurrentRequests: true}},
			}, nil
		}), nil
	},
}

func connectPath(k payload.Kind) string { return "/bench.Bench/" + k.String() }

func unencryptedHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// connectConn has a transport of its own, and therefore a connection.
type connectConn struct {
	url       string
	transport *http.Transport
}

func (c connectConn) Close() { c.transport.CloseIdleConnections() }

func (c connectConn) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	client := connect.NewClient[payload.Message, payload.Message](
		&http.Client{Transport: c.transport}, c.url+connectPath(k),
		connect.WithAcceptCompression("gzip", nil, nil),
	)
	in, ctx := payload.New(data), context.Background()
	return func(id uint64) error {
		in.Stamp(id)
		res, err := client.CallUnary(ctx, connect.NewRequest(in))
		if err != nil {
			return err
		}
		return res.Msg.Check(id, len(data))
	}, nil
}
