package etcd_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/etcd"
)

// shortest is a lease that is over soon.
var shortest = etcd.TTL(2 * time.Second)

// server is a peer that listens and registers itself.
type server struct {
	*tp.Peer
	reg  *etcd.Registration
	addr string
}

func serve(t testing.TB, client *clientv3.Client, service string, options ...etcd.RegisterOption) *server {
	t.Helper()
	s := &server{reg: etcd.Register(client, service, options...)}
	s.Peer = tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{"127.0.0.1:0"}}, s.reg)
	up := make(chan struct{})
	tp.HandlePull(s.PullRouter, "/who", func(tp.PullCtx, *struct{}) (string, tp.Xerror) {
		<-up
		return s.addr, nil
	})
	over := make(chan error, 1)
	go func() { over <- s.Listen() }()
	t.Cleanup(func() {
		_ = s.Close()
		require.NoError(t, <-over)
	})
	eventually(t, func() bool { return len(s.Addrs()) > 0 })
	s.addr = s.Addrs()[0].String()
	close(up)
	return s
}

// serveAll starts servers and returns when they are registered.
func serveAll(t testing.TB, client *clientv3.Client, n int, options ...etcd.RegisterOption) []*server {
	t.Helper()
	var all []*server
	for range n {
		all = append(all, serve(t, client, "orders", options...))
	}
	for _, s := range all {
		eventually(t, s.reg.Registered)
	}
	return all
}

// eventually waits until something holds that the test does not hear of otherwise.
func eventually(t testing.TB, holds func() bool) {
	t.Helper()
	require.Eventually(t, holds, time.Minute, 5*time.Millisecond)
}

// inEtcd waits until the servers are registered in etcd, and logs how long that has taken.
func inEtcd(t testing.TB, client *clientv3.Client, servers ...*server) {
	t.Helper()
	begun := time.Now()
	eventually(t, func() bool {
		there := keys(t, client, "orders")
		for _, s := range servers {
			if v := there[s.addr]; v == "" || strings.Contains(v, "leaving") {
				return false
			}
		}
		return true
	})
	t.Logf("%d servers were registered again %v after that", len(servers), time.Since(begun))
}

func TestRegister(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	s := serve(t, client, "orders", etcd.Zone("a"), etcd.Weight(50), etcd.Version("1.2"))
	eventually(t, s.reg.Registered)
	require.NoError(t, s.reg.Err())
	require.Equal(t, tp.Server{Id: s.addr, Addr: s.addr, Zone: "a", Weight: 50, Version: "1.2",
		Routes: []string{"/who"}}, s.reg.Server())
	require.Contains(t, keys(t, client, "orders")[s.addr], `"addr":"`+s.addr+`"`)

	// A route that is added while the peer serves is entered, and one for all takes the place of the list.
	tp.HandlePull(s.PullRouter, "/more", func(tp.PullCtx, *int) (int, tp.Xerror) { return 0, nil })
	eventually(t, func() bool {
		return strings.Contains(keys(t, client, "orders")[s.addr], `["/more","/who"]`)
	})
	s.PullRouter.Group("sub").SetUnknown(
		func(tp.UnknownPullCtx, *[]byte) (interface{}, tp.Xerror) { return nil, nil })
	eventually(t, func() bool {
		return strings.Contains(keys(t, client, "orders")[s.addr], `["/more","/sub/","/who"]`)
	})
	s.PullRouter.SetUnknown(func(tp.UnknownPullCtx, *[]byte) (interface{}, tp.Xerror) { return nil, nil })
	eventually(t, func() bool { return !strings.Contains(keys(t, client, "orders")[s.addr], "routes") })

	require.NoError(t, s.Shutdown(context.Background()))
	require.False(t, s.reg.Registered())
	require.ErrorContains(t, s.reg.Err(), "the peer has ended")
	require.Contains(t, keys(t, client, "orders")[s.addr], `"leaving":true`)
}

// A server takes itself off while it still accepts, and Close takes it off too.
func TestLeave(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	for _, how := range []string{"Shutdown", "Close"} {
		s := serveAll(t, client, 1, etcd.Id(how))[0]
		if how == "Close" {
			require.NoError(t, s.Close())
		} else {
			require.NoError(t, s.Shutdown(context.Background()))
		}
		require.Contains(t, keys(t, client, "orders")[how], `"leaving":true`)
	}
}

// Whoever deletes the record, or writes something else there, is corrected.
func TestRecordIsPutRight(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	s := serveAll(t, client, 1, shortest)[0]
	key := "/teleport/v1/orders/" + s.addr
	_, err := client.Delete(context.Background(), key)
	require.NoError(t, err)
	inEtcd(t, client, s)
	_, err = client.Put(context.Background(), key, "nonsense")
	require.NoError(t, err)
	eventually(t, func() bool { return strings.Contains(keys(t, client, "orders")[s.addr], "addr") })
	resp, err := client.Get(context.Background(), key)
	require.NoError(t, err)
	_, err = client.Revoke(context.Background(), clientv3.LeaseID(resp.Kvs[0].Lease))
	require.NoError(t, err)
	inEtcd(t, client, s)
}

// A server whose Id another takes says so and does not fight for it. That the first one leaves takes nothing
// from the second, as when a process replaces another at the same address.
func TestTwoWithOneId(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	first := serveAll(t, client, 1, etcd.Id("one"), shortest)[0]
	second := serveAll(t, client, 1, etcd.Id("one"), shortest)[0]
	eventually(t, func() bool { return first.reg.Err() != nil })
	require.ErrorContains(t, first.reg.Err(),
		"/teleport/v1/orders/one is the record of another server now, at "+second.addr)
	require.False(t, first.reg.Registered())
	require.Contains(t, keys(t, client, "orders")["one"], second.addr)

	// When the second has left, the first takes its place again.
	require.NoError(t, second.Shutdown(context.Background()))
	eventually(t, first.reg.Registered)
	require.Contains(t, keys(t, client, "orders")["one"], first.addr)

	third := serveAll(t, client, 1, etcd.Id("one"), shortest)[0]
	require.NoError(t, first.Shutdown(context.Background()))
	require.Contains(t, keys(t, client, "orders")["one"], third.addr)
}

// A server starts without etcd, and is registered when there is one.
func TestStartWithoutEtcd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.stopAll()
	client := c.client()
	s := serve(t, client, "orders")
	eventually(t, func() bool { return s.reg.Err() != nil })
	require.False(t, s.reg.Registered())

	required := etcd.Register(client, "orders", etcd.Required())
	p := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{"127.0.0.1:0"}, HookTimeout: 100 * time.Millisecond},
		required)
	err := p.Listen()
	require.ErrorContains(t, err, "PostListen")
	require.NoError(t, p.Close())

	c.startAll()
	inEtcd(t, client, s)
	eventually(t, s.reg.Registered)
	must := serve(t, client, "orders", etcd.Required())
	eventually(t, must.reg.Registered)
}

// The client of an etcd in the same process has no connection.
func TestClientWithoutAConnection(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	client := v3client.New(c.members[0].server.Server)
	t.Cleanup(func() { _ = client.Close() })
	s := serve(t, client, "orders", shortest)
	eventually(t, s.reg.Registered)
	r := follow(t, etcd.NewResolver(client, "orders"))
	eventually(t, func() bool { return r.has(s) })
	lease := leaseOf(t, client, s)
	outlives(t, client)
	require.Equal(t, lease, leaseOf(t, client, s))
	_, err := client.Revoke(t.Context(), lease)
	require.NoError(t, err)
	eventually(t, func() bool { return leaseOf(t, client, s) != lease })
	require.NoError(t, s.Shutdown(context.Background()))
	eventually(t, func() bool { return !r.has(s) })
}

// outlives waits until a lease that is longer than those of servers is over.
func outlives(t testing.TB, client *clientv3.Client) {
	t.Helper()
	lease, err := client.Grant(t.Context(), 3)
	require.NoError(t, err)
	eventually(t, func() bool {
		left, err := client.TimeToLive(t.Context(), lease.ID)
		require.NoError(t, err)
		return left.TTL < 0
	})
}

// leaseOf waits until the server is in etcd, and returns its record's lease.
func leaseOf(t testing.TB, client *clientv3.Client, s *server) (id clientv3.LeaseID) {
	t.Helper()
	eventually(t, func() bool {
		resp, err := client.Get(t.Context(), "/teleport/v1/orders/", clientv3.WithPrefix())
		require.NoError(t, err)
		if len(resp.Kvs) == 1 {
			id = clientv3.LeaseID(resp.Kvs[0].Lease)
		}
		return len(resp.Kvs) == 1
	})
	return id
}

// Whoever has the wrong address, or forgets TLS, reads what is wrong.
func TestErrorSaysWhyThereIsNoConnection(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	s := serve(t, newClient(t, ln.Addr().String()), "orders")
	eventually(t, func() bool {
		err := s.reg.Err()
		return err != nil && strings.Contains(err.Error(), "connection refused") &&
			strings.Contains(err.Error(), ln.Addr().String())
	})
}

// Without etcd a server's end is not held up for longer than Close or Shutdown say.
func TestEndWithoutEtcd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	client := c.client()
	both := serveAll(t, client, 2)
	c.members[0].clients.setSilent(true)
	require.NoError(t, both[0].Shutdown(context.Background()))
	require.NoError(t, both[1].Close())
}

// A peer whose listeners have failed is taken off, and comes back with the next listener.
func TestListenerFails(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	reg := etcd.Register(client, "orders", etcd.Id("s"), shortest)
	p := tp.NewPeer(nil, reg)
	defer p.Close()
	for range 2 {
		ln, err := tp.NewListener("127.0.0.1:0")
		require.NoError(t, err)
		over := make(chan error, 1)
		go func() { over <- p.Serve(ln) }()
		eventually(t, reg.Registered)
		require.Contains(t, keys(t, client, "orders")["s"], ln.Addr().String())
		require.NoError(t, ln.Close())
		require.Error(t, <-over)
		eventually(t, func() bool { return strings.Contains(keys(t, client, "orders")["s"], "leaving") })
		eventually(t, func() bool { return reg.Err() != nil })
		require.ErrorContains(t, reg.Err(), "does not listen")
	}
}

// What cannot be registered is told when the server starts, or when the route is registered.
func TestTooManyRoutes(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	many := func(p *tp.Peer, n int) {
		for i := range n {
			tp.HandlePull(p.PullRouter, fmt.Sprintf("/%s/%d", strings.Repeat("r", 200), i),
				func(tp.PullCtx, *int) (int, tp.Xerror) { return 0, nil })
		}
	}
	reg := etcd.Register(client, "orders")
	p := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{"127.0.0.1:0"}}, reg)
	many(p, 500)
	require.ErrorContains(t, p.Listen(), "500 routes are most: expected at most 65536")
	require.NoError(t, p.Close())

	s := serveAll(t, client, 1)[0]
	defer func() { require.Contains(t, fmt.Sprint(recover()), "expected at most 65536") }()
	many(s.Peer, 500)
}

func TestOnePeerOnly(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	s := serveAll(t, client, 1)[0]
	p := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{"127.0.0.1:0"}}, s.reg)
	require.ErrorContains(t, p.Listen(), "expected one for each peer")
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	client := newClient(t, "127.0.0.1:1")
	long := strings.Repeat("x", 257)
	tests := map[string]struct {
		do   func()
		want string
	}{
		"no client":           {func() { etcd.Register(nil, "orders") }, "the client is nil"},
		"no client, resolver": {func() { etcd.NewResolver(nil, "orders") }, "the client is nil"},
		"no name":             {func() { etcd.Register(client, "") }, "the name is empty"},
		"long name":           {func() { etcd.NewResolver(client, long) }, "257 bytes: expected at most 256"},
		"no UTF-8":            {func() { etcd.Register(client, "\xff") }, "is not UTF-8"},
		"nil option":          {func() { etcd.Register(client, "orders", nil) }, "option 1 of 1 is nil"},
		"nil option, resolver": {func() { etcd.NewResolver(client, "orders", nil) },
			"option 1 of 1 is nil"},
		"no Id":         {func() { etcd.Id("") }, "the name is empty"},
		"no address":    {func() { etcd.Advertise() }, "there are no addresses"},
		"empty address": {func() { etcd.Advertise("a", "") }, `address 2 of 2 is ""`},
		"weight":        {func() { etcd.Weight(0) }, "Weight(0): expected a number from 1 to 1000000"},
		"route":         {func() { etcd.Routes("/a", "b") }, `route 2 of 2 is "b"`},
		"lease":         {func() { etcd.TTL(time.Second) }, "TTL(1s): expected 2s or more"},
		"kept":          {func() { etcd.KeepMissed(-1) }, "expected 0 or more"},
		"recheck":       {func() { etcd.Recheck(0) }, "expected a positive time"},
		"no endpoints":  {func() { etcd.ClientConfig() }, "there are no endpoints"},
		"endpoint":      {func() { etcd.ClientConfig("a", "") }, "endpoint 2 of 2 is empty"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() { require.Contains(t, fmt.Sprint(recover()), tt.want) }()
			tt.do()
		})
	}
}
