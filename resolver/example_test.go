package resolver_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/resolver"
)

// server starts a server that tells its name, and returns its address.
func server(name string) (addr string, peer *tp.Peer) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	peer = tp.NewPeer(nil)
	tp.HandlePull(peer.PullRouter, "/name", func(tp.PullCtx, *struct{}) (string, tp.Xerror) {
		return name, nil
	})
	go peer.Serve(ln)
	return ln.Addr().String(), peer
}

// A program that knows the servers itself, from its own configuration for example, changes them when it
// likes.
func ExampleList() {
	addr, blue := server("blue")
	defer blue.Close()
	client := tp.NewPeer(nil)
	defer client.Close()

	servers := resolver.Static(addr)
	cluster := tp.NewCluster(client, servers)
	defer cluster.Close()
	var name string
	fmt.Println(cluster.Pull("/name", nil, &name).Xerror, name)

	addr, green := server("green")
	defer green.Close()
	if err := servers.Set(tp.Server{Addr: addr}); err != nil {
		fmt.Println(err)
	}
	for name != "green" { // what is under way at the old server comes to its end
		cluster.Pull("/name", nil, &name)
	}
	fmt.Println(name)
	fmt.Println(servers.Set(tp.Server{Addr: addr, Weight: -1}))
	// Output:
	// <nil> blue
	// green
	// server 1 of 1: the weight is -1, expected 0 to 1000000
}

// The file may be one that a program of configuration management writes. It is seen when it changes.
func ExampleFile() {
	addr, peer := server("blue")
	defer peer.Close()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "servers.json")
	text := fmt.Sprintf(`[{"addr": %q, "zone": "eu-1"}]`, addr)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		panic(err)
	}

	client := tp.NewPeer(nil)
	defer client.Close()
	cluster := tp.NewCluster(client, resolver.File(path, resolver.Every(time.Second)))
	defer cluster.Close()
	var name string
	fmt.Println(cluster.Pull("/name", nil, &name).Xerror, name)
	// Output: <nil> blue
}

func ExampleDNS() {
	client := tp.NewPeer(nil)
	defer client.Close()

	// All addresses of a name, such as that of a headless service of Kubernetes.
	shop := tp.NewCluster(client, resolver.DNS("shop.default.svc.cluster.local:9090"))
	defer shop.Close()

	// SRV records of Consul, with the backups that have other priorities.
	stock := tp.NewCluster(client, resolver.DNS("_stock._tcp.service.consul.",
		resolver.Nameservers("127.0.0.1:8600"), resolver.Backups()), tp.InZone(resolver.Primary))
	defer stock.Close()
}
