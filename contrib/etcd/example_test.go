package etcd_test

import (
	"context"
	"fmt"
	"net/url"
	"os"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/etcd"
)

var greet = tp.NewMethod[string, string]("/greet")

func Example() {
	engine, endpoint := startEtcd()
	defer engine()
	client, err := clientv3.New(etcd.ClientConfig(endpoint))
	if err != nil {
		panic(err)
	}
	defer client.Close()

	// A server registers itself when it listens. Listen would not wait for that without Required.
	server := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{"127.0.0.1:0"}},
		etcd.Register(client, "greetings", etcd.Required()))
	greet.Handle(server.PullRouter, func(_ tp.PullCtx, name *string) (string, tp.Xerror) {
		return "hello " + *name, nil
	})
	served := make(chan error, 1)
	go func() { served <- server.Listen() }()

	// A client finds the servers of the service, and follows their coming and going.
	peer := tp.NewPeer(nil)
	defer peer.Close()
	greetings := tp.NewCluster(peer, etcd.NewResolver(client, "greetings"))
	defer greetings.Close()
	reply, err := greet.Call(context.Background(), greetings, "etcd")
	fmt.Println(reply, err)

	// Shutdown takes the server off before it stops to accept.
	fmt.Println(server.Shutdown(context.Background()), <-served)
	// Output:
	// hello etcd <nil>
	// <nil> <nil>
}

// startEtcd runs an etcd in this process, which a program would not do.
func startEtcd() (stop func(), endpoint string) {
	dir, err := os.MkdirTemp("", "etcd")
	if err != nil {
		panic(err)
	}
	cfg := embed.NewConfig()
	cfg.Dir = dir
	some := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = some, some
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = some, some
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		panic(err)
	}
	<-server.Server.ReadyNotify()
	return func() { server.Close(); os.RemoveAll(dir) }, server.Clients[0].Addr().String()
}
