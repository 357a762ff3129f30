// Package plugintest has what the tests of several plugins need.
package plugintest

import (
	"net"
	"testing"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/pipe"
)

// From is a connection that comes from a TCP address.
type From struct {
	net.Conn
	Addr string
}

// RemoteAddr returns the address.
func (f From) RemoteAddr() net.Addr {
	addr, _ := net.ResolveTCPAddr("tcp", f.Addr)
	return addr
}

// BenchmarkPulls measures a pull of the path, which cli makes and srv answers with what it gets, over a pipe.
// It closes the two peers.
func BenchmarkPulls(b *testing.B, path string, srv, cli *tp.Peer) {
	defer srv.Close()
	defer cli.Close()
	tp.HandlePull(srv.PullRouter, path, func(_ tp.PullCtx, s *string) (string, tp.Xerror) { return *s, nil })
	near, far := pipe.New(pipe.Options{})
	go srv.ServeConn(near)
	sess, err := cli.DialConn(b.Context(), far)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if x := sess.Pull(path, "x", nil).Xerror; x != nil {
			b.Fatal(x)
		}
	}
}
