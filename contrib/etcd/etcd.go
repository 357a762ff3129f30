// Package etcd keeps the list of a service's servers in etcd: servers enter themselves, and clients follow
// the list.
//
//	client, err := clientv3.New(etcd.ClientConfig("10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"))
//
//	peer := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{":9090"}}, etcd.Register(client, "orders"))
//	err = peer.Listen()                                      // a server
//
//	orders := tp.NewCluster(peer, etcd.NewResolver(client, "orders")) // a client
//
// Neither side needs etcd in order to go on: a server that cannot reach etcd serves, and enters itself when
// etcd is back, however long that takes; a client goes on with the servers that it knew last.
//
// The work of etcd's protocol is that of go.etcd.io/etcd/client/v3.
package etcd

import (
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// ClientConfig returns the configuration of a client of the endpoints, such as 127.0.0.1:2379 or
// https://etcd.example.com:2379, with times that fit this package: a connection is tried again after a second
// at most, where the client would wait for two minutes in the end, and a connection that has become silent
// while something is asked of it is found after 13 s. The client logs nothing, as this package has lines of
// its own.
//
// Set TLS, Username, Password and whatever else in the result before it is given to [clientv3.New]. With a
// Username New asks etcd for a token, and fails if etcd does not answer. ClientConfig panics if there are no
// endpoints.
//
// A client with another configuration does too. Its own waits may then make a server's return slower.
func ClientConfig(endpoints ...string) clientv3.Config {
	if len(endpoints) == 0 {
		panic("etcd: ClientConfig: there are no endpoints: expected addresses such as 127.0.0.1:2379.")
	}
	for i, e := range endpoints {
		if e == "" {
			panic(fmt.Sprintf("etcd: ClientConfig: endpoint %d of %d is empty: expected an address such as "+
				"127.0.0.1:2379.", i+1, len(endpoints)))
		}
	}
	return clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: 5 * time.Second,
		// The client's grpc pings no more often than every 10 s. Without a request or a watch under way it
		// does not ping: etcd would end the connection for that.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
				MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		})},
	}
}

// hurry has the client try at once to connect to endpoints that it waits with.
func hurry(client *clientv3.Client) {
	if conn := client.ActiveConnection(); conn != nil {
		conn.ResetConnectBackoff()
	}
}
