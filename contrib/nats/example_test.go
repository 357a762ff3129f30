package nats_test

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/nats-io/nats-server/v2/server"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
)

// Two servers of a service, and a client of each, with a broker in the process. Leave out nats.URL, and one
// server does the same alone.
func Example() {
	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)
	broker, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true,
		NoSigs: true, JetStream: true, StoreDir: dir})
	if err != nil {
		fmt.Println(err)
		return
	}
	broker.Start()
	defer broker.WaitForShutdown()
	defer broker.Shutdown()

	ctx := context.Background()
	var hubs []*nats.Hub
	for i, name := range []string{"ada", "bob"} {
		peer := tp.NewPeer(nil)
		hub, err := nats.New(peer, nats.URL(broker.ClientURL()), nats.Name(fmt.Sprint("server ", i)))
		if err != nil {
			fmt.Println(err)
			return
		}
		defer peer.Close()
		defer hub.Close()
		hubs = append(hubs, hub)
		// A client logs in: the server's side of its session gets a name, and joins a room.
		sess, client := connectClient(peer, name)
		defer client.Close()
		_ = hub.Add(sess, name)
		_ = hub.Group("room").Join(sess)
	}

	// Server 0 asks bob, who is connected to server 1.
	answer, err := nats.Call[string](ctx, hubs[0].Identity("bob"), "/ask", "how are you?")
	fmt.Println(answer, err)
	fmt.Println(hubs[0].Identity("eve").Push(ctx, "/said", "hello"))
	members, err := hubs[1].Group("room").Members(ctx)
	for _, m := range members {
		fmt.Println(m.Identity, "on", m.Server.Name, err)
	}
	fmt.Println(hubs[1].Group("room").Push("/said", "hello, all").Err)
	fmt.Println(<-said, "|", <-said)
	// Output:
	// how are you? Fine, says bob. <nil>
	// 404 identity "eve" is connected nowhere
	// [ada] on server 0 <nil>
	// [bob] on server 1 <nil>
	// <nil>
	// hello, all | hello, all
}

var said = make(chan string, 2)

// connectClient connects a client to the server's peer, and returns the server's side of the session.
func connectClient(to *tp.Peer, name string) (*tp.Session, *tp.Peer) {
	client := tp.NewPeer(nil)
	tp.HandlePull(client.PullRouter, "/ask", func(_ tp.PullCtx, text *string) (string, tp.Xerror) {
		return *text + " Fine, says " + name + ".", nil
	})
	tp.HandlePush(client.PushRouter, "/said", func(_ tp.PushCtx, text *string) { said <- *text })
	a, b := net.Pipe()
	sess, _ := to.ServeConn(a)
	_, _ = client.ServeConn(b)
	return sess, client
}
