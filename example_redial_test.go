package tp_test

import (
	"context"
	"fmt"
	"net"

	tp "github.com/henrylee2cn/teleport"
)

// Hello introduces the client to every server that it is connected to.
type Hello struct{}

func (Hello) Name() string { return "hello" }

// PostDial runs on every new connection, before anything else is sent on it.
func (Hello) PostDial(sess tp.ForeSession) error {
	fmt.Println("connected")
	return nil
}

// PostReconnect may use the session.
func (Hello) PostReconnect(sess *tp.Session) error {
	if x := sess.Pull("/subscribe", "news", nil).Xerror; x != nil {
		return x
	}
	return nil
}

// A server is replaced while a client is connected. The client's session goes on.
func ExampleRedial() {
	subscribed := make(chan string, 2)
	serve := func(version, addr string) (*tp.Peer, string) {
		srv := tp.NewPeer(nil)
		tp.HandlePull(srv.PullRouter, "/version", func(tp.PullCtx, *string) (string, tp.Xerror) {
			return version, nil
		})
		tp.HandlePull(srv.PullRouter, "/subscribe", func(_ tp.PullCtx, what *string) (string, tp.Xerror) {
			subscribed <- version + " is subscribed to for " + *what
			return "", nil
		})
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			panic(err)
		}
		go srv.Serve(ln)
		return srv, ln.Addr().String()
	}
	v1, addr1 := serve("version 1", "127.0.0.1:0")
	v2, addr2 := serve("version 2", "127.0.0.1:0")
	defer v2.Close()

	cli := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}}, Hello{})
	defer cli.Close()
	sess, err := cli.Dial(addr1 + "," + addr2)
	if err != nil {
		fmt.Println(err)
		return
	}
	var version string
	fmt.Println(sess.Pull("/version", "", &version).Xerror, version)
	if err := v1.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	fmt.Println(sess.Pull("/version", "", &version).Xerror, version)
	fmt.Println(<-subscribed)
	// Unordered output:
	// connected
	// <nil> version 1
	// connected
	// version 2 is subscribed to for news
	// <nil> version 2
}
