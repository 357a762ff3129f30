package etcd_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/henrylee2cn/teleport/contrib/etcd"
)

// The leader of etcd is killed and comes back: nobody notices.
func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	client := c.client()
	servers := serveAll(t, client, 3)
	l := newLoad(t, etcd.NewResolver(c.client(), "orders"), 3)
	leader := c.leader()
	c.stop(leader)
	more := serve(t, client, "orders")
	eventually(t, func() bool { return l.has(append(servers, more)...) })
	eventually(t, func() bool { return l.answered(append(servers, more)...) })
	c.start(leader)
	require.NoError(t, more.Shutdown(context.Background()))
	eventually(t, func() bool { return l.has(servers...) })
	l.none(t)
	require.GreaterOrEqual(t, l.fewest(l.count()-1), 3)
}

// All of etcd is away for longer than the leases, and comes back with its data or without.
func TestEtcdAway(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		members int
		empty   bool
	}{{"back with its data", 1, false}, {"back empty", 1, true}, {"three members, back empty", 3, true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, tt.members)
			client := c.client()
			// The revisions before are higher than those that come after.
			for range 50 {
				_, err := client.Put(context.Background(), "/other", "x")
				require.NoError(t, err)
			}
			servers := serveAll(t, client, 3, shortest)
			l := newLoad(t, etcd.NewResolver(c.client(), "orders"), 3)
			from := l.count() - 1
			c.stopUnder(servers)
			if tt.empty {
				c.forget()
			}
			c.startAll()
			inEtcd(t, client, servers...)
			for _, s := range servers {
				eventually(t, s.reg.Registered)
			}
			// What happens from now on is seen.
			more := serve(t, client, "orders")
			eventually(t, func() bool { return l.has(append(servers, more)...) })
			require.NoError(t, more.Shutdown(context.Background()))
			eventually(t, func() bool { return l.has(servers...) })
			require.Equal(t, 3, l.fewest(from), "no server was ever missing")
			l.none(t)
		})
	}
}

// Etcd is back empty, and the servers do not find it for a while, when others do: they are not missed.
func TestServersBackLate(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	way := newGate(t)
	way.lead(c.members[0].server.Clients[0].Addr().String())
	servers := serveAll(t, newClient(t, way.addr()), 2, shortest)
	l := newLoad(t, etcd.NewResolver(c.client(), "orders"), 2)
	from := l.count() - 1
	way.lead("")
	c.stopAll()
	c.forget()
	c.startAll()
	more := serve(t, c.client(), "orders") // the client knows of it when it has read the list
	eventually(t, func() bool { return l.has(append(servers, more)...) })
	l.more(t, 100)
	way.lead(c.members[0].server.Clients[0].Addr().String())
	inEtcd(t, c.client(), servers...)
	require.Equal(t, 2, l.fewest(from))
	require.True(t, l.has(append(servers, more)...))
	l.none(t)
}

// Servers that cannot reach etcd, while their clients can, are called for as long as they are known: nobody
// else is registered.
func TestServersCutOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	way := newGate(t)
	way.lead(c.members[0].server.Clients[0].Addr().String())
	servers := serveAll(t, newClient(t, way.addr()), 2, shortest)
	r := etcd.NewResolver(c.client(), "orders")
	l := newLoad(t, r, 2)
	from := l.count() - 1
	way.setSilent(true)
	watcher := c.client()
	eventually(t, func() bool { return len(keys(t, watcher, "orders")) == 0 })
	eventually(t, func() bool { return l.answered(servers...) })
	require.Equal(t, 2, l.fewest(from))
	way.setSilent(false)
	inEtcd(t, watcher, servers...)
	require.Equal(t, 2, l.fewest(from))
	l.none(t)
}

// A client that is cut off from etcd goes on with the servers that it knows, and catches up.
func TestClientCutOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	client := c.client()
	way := newGate(t)
	way.lead(c.members[0].server.Clients[0].Addr().String())
	servers := serveAll(t, client, 2)
	l := newLoad(t, etcd.NewResolver(newClient(t, way.addr()), "orders", etcd.Recheck(time.Second)), 2)
	way.setSilent(true)
	more := serveAll(t, client, 1)[0]
	require.NoError(t, servers[0].Shutdown(context.Background()))
	l.more(t, 200)
	way.setSilent(false)
	eventually(t, func() bool { return l.has(servers[1], more) })
	eventually(t, func() bool { return l.answered(servers[1], more) })
	l.none(t)
}

// One of three members hangs, without an end of its connections: leases are kept with the others, and the
// list is followed with them.
func TestMemberHangs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	client := c.client()
	var servers []*server
	for range 3 { // each with a client of its own, as servers are that do not share a process
		servers = append(servers, serveAll(t, c.client(), 1)...)
	}
	watcher := newClient(t, c.members[1].clients.addr())
	l := newLoad(t, etcd.NewResolver(c.client(), "orders", etcd.Recheck(time.Second)), 3)
	from := l.count() - 1
	c.members[0].clients.setSilent(true)
	more := serve(t, client, "orders")
	eventually(t, func() bool { return l.has(append(servers, more)...) })
	for _, s := range servers { // the time that is left of its lease goes up
		resp, err := watcher.Get(context.Background(), "/teleport/v1/orders/"+s.addr)
		require.NoError(t, err)
		require.Len(t, resp.Kvs, 1)
		last, kept := int64(0), 0
		eventually(t, func() bool {
			left, err := watcher.TimeToLive(context.Background(), clientv3.LeaseID(resp.Kvs[0].Lease))
			require.NoError(t, err)
			if left.TTL > last {
				kept++
			}
			last = left.TTL
			return kept > 3
		})
	}
	require.Equal(t, 3, l.fewest(from))
	l.none(t)
}

// Three servers are replaced one after the other while they are called.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	client := c.client()
	servers := serveAll(t, client, 3)
	l := newLoad(t, etcd.NewResolver(c.client(), "orders"), 3)
	for range 2 {
		for i, old := range servers {
			next := serveAll(t, client, 1)[0]
			require.NoError(t, old.Shutdown(context.Background()))
			servers[i] = next
			eventually(t, func() bool { return l.has(servers...) })
			l.more(t, 100)
			eventually(t, func() bool { return l.answered(servers...) })
		}
	}
	l.none(t)
}
