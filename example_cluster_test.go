package tp_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// Fleet is a resolver of three servers that do not change. Package resolver has resolvers for programs.
type Fleet []tp.Server

func (f Fleet) Resolve(ctx context.Context, update func([]tp.Server)) error {
	update(f)
	<-ctx.Done()
	return nil
}

// newFleet starts servers that say which they are, and returns them with a resolver.
func newFleet(names ...string) (servers []*tp.Peer, fleet Fleet) {
	for _, name := range names {
		srv := tp.NewPeer(nil)
		tp.HandlePull(srv.PullRouter, "/who", func(tp.PullCtx, *string) (string, tp.Xerror) {
			return name, nil
		})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		go srv.Serve(ln)
		servers = append(servers, srv)
		fleet = append(fleet, tp.Server{Id: name, Addr: ln.Addr().String()})
	}
	return servers, fleet
}

// A cluster is called as a session is. A server that shuts down gets no more calls, and none of them fails.
func ExampleNewCluster() {
	servers, fleet := newFleet("one", "two", "three")
	peer := tp.NewPeer(nil)
	defer peer.Close()
	cluster := tp.NewCluster(peer, fleet)
	defer cluster.Close()
	who := func(calls int) (failed int, seen map[string]bool) {
		seen = map[string]bool{}
		for range calls {
			name, err := tp.Call[string](context.Background(), cluster, "/who", "")
			if err != nil {
				failed++
			}
			seen[name] = true
		}
		return failed, seen
	}
	failed, _ := who(100)
	fmt.Println("failed:", failed)
	if err := servers[0].Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	failed, seen := who(100)
	fmt.Println("failed:", failed, "- one is called:", seen["one"])
	for _, srv := range servers[1:] {
		srv.Close()
	}
	// Output:
	// failed: 0
	// failed: 0 - one is called: false
}

// The calls that are about one thing go to one server, as long as that has room.
func ExampleConsistentHash() {
	servers, fleet := newFleet("one", "two", "three")
	peer := tp.NewPeer(nil)
	defer peer.Close()
	cluster := tp.NewCluster(peer, fleet, tp.ConsistentHash(1.25))
	defer cluster.Close()
	for len(connected(cluster)) < len(fleet) { // a program would not wait for all of them
		time.Sleep(time.Millisecond)
	}
	seen := map[string]bool{}
	for range 50 {
		name, err := tp.Call[string](context.Background(), cluster, "/who", "", tp.WithKey("user-7"))
		if err != nil {
			fmt.Println(err)
		}
		seen[name] = true
	}
	fmt.Println("servers:", len(seen))
	for _, srv := range servers {
		srv.Close()
	}
	// Output: servers: 1
}

func connected(c *tp.Cluster) (ids []string) {
	for _, s := range c.Servers() {
		if s.Connected {
			ids = append(ids, s.Id)
		}
	}
	return ids
}

// What a call says when there is no server.
func ExampleWaitForServer() {
	peer := tp.NewPeer(nil)
	defer peer.Close()
	cluster := tp.NewCluster(peer, Fleet{}, tp.WaitForServer(10*time.Millisecond))
	defer cluster.Close()
	_, err := tp.Call[string](context.Background(), cluster, "/who", "")
	var x tp.Xerror
	fmt.Println(errors.As(err, &x) && x.Code() == tp.StatusConnClosed, tp.NotRun(err))
	fmt.Println(err)
	// Output:
	// true true
	// 101 no server for the call within 10ms, nothing was sent: servers: 0 known, 0 connected, 0 ejected
}
