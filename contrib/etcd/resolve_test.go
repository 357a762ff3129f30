package etcd_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/etcd"
)

// Servers come and go, and one that leaves goes at once.
func TestResolve(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	r := follow(t, etcd.NewResolver(client, "orders"))
	eventually(t, func() bool { return r.count() == 1 })
	require.Empty(t, r.last(), "nobody is there, which is an answer")
	a := serve(t, client, "orders", etcd.Zone("z"), etcd.Weight(7), etcd.Version("v"))
	eventually(t, func() bool { return r.has(a) })
	require.Equal(t, []tp.Server{{Id: a.addr, Addr: a.addr, Zone: "z", Weight: 7, Version: "v",
		Routes: []string{"/who"}}}, r.last())
	b := serve(t, client, "orders", etcd.Id("with/slash"), etcd.Routes())
	eventually(t, func() bool { return r.has(a, b) })
	require.Equal(t, tp.Server{Id: "with/slash", Addr: b.addr}, r.last()[1])
	require.NoError(t, a.Shutdown(context.Background()))
	eventually(t, func() bool { return r.has(b) })
	require.NoError(t, b.Shutdown(context.Background()))
	eventually(t, func() bool { return r.has() })
}

// Services whose names begin alike, or have slashes, are others.
func TestOtherServices(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	a := serve(t, client, "orders")
	serve(t, client, "orders/eu", etcd.Id("x"))
	serve(t, client, "orders2")
	b := serve(t, client, "last")
	r, last := follow(t, etcd.NewResolver(client, "orders")), follow(t, etcd.NewResolver(client, "last"))
	eu := follow(t, etcd.NewResolver(client, "orders/eu"))
	eventually(t, func() bool { return r.has(a) && last.has(b) && len(eu.last()) == 1 })
	require.Equal(t, "x", eu.last()[0].Id)
}

// What is no server is left out, and one that was good before stays as it was.
func TestBadRecords(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	put := func(key, value string) {
		_, err := client.Put(context.Background(), "/teleport/v1/orders/"+key, value)
		require.NoError(t, err)
	}
	bad := map[string]string{"json": "{", "text": `"hello"`, "noaddr": `{"weight":1}`,
		"weight": `{"addr":"a:1","weight":-1}`, "huge": `{"addr":"a:1","zone":"` + strings.Repeat("z", 1e5) + `"}`,
		"sl/ash": `{"addr":"a:1"}`, "%zz": `{"addr":"a:1"}`, "": `{"addr":"a:1"}`,
		strings.Repeat("i", 257): `{"addr":"a:1"}`}
	for key, value := range bad {
		put(key, value)
	}
	put("good", `{"addr":"g:1","unknown":[1]}`)
	r := follow(t, etcd.NewResolver(client, "orders", etcd.Recheck(50*time.Millisecond)))
	eventually(t, func() bool { return len(r.last()) == 1 })
	for key, value := range bad {
		put(key, value) // in the watch too
	}
	put("good", "no more")
	put("other", `{"addr":"o:1"}`)
	eventually(t, func() bool { return len(r.last()) == 2 })
	require.Equal(t, []tp.Server{{Id: "good", Addr: "g:1"}, {Id: "other", Addr: "o:1"}}, r.last())
}

// A server that was killed is kept for KeepMissed when its lease has run out, and the last one for longer.
func TestMissed(t *testing.T) {
	t.Parallel()
	client := newCluster(t, 1).client()
	put := func(id string) {
		_, err := client.Put(context.Background(), "/teleport/v1/orders/"+id, `{"addr":"`+id+`:1"}`)
		require.NoError(t, err)
	}
	remove := func(id string) {
		_, err := client.Delete(context.Background(), "/teleport/v1/orders/"+id)
		require.NoError(t, err)
	}
	put("a")
	put("b")
	r := follow(t, etcd.NewResolver(client, "orders", etcd.KeepMissed(time.Second)))
	eventually(t, func() bool { return len(r.last()) == 2 })
	begun := time.Now()
	remove("a")
	eventually(t, func() bool { return len(r.last()) == 1 })
	require.GreaterOrEqual(t, time.Since(begun), time.Second)
	remove("b")
	put("other") // so that it is known when the removal was seen
	eventually(t, func() bool { return len(r.last()) == 2 })
	remove("other")
	put("b")
	put("c")
	eventually(t, func() bool { return len(r.last()) == 2 && r.last()[1].Id == "c" })
	require.Equal(t, 1, r.fewest(1))
}

// Resolve ends with the client.
func TestClientClosed(t *testing.T) {
	t.Parallel()
	client := newClient(t, newCluster(t, 1).members[0].clients.addr())
	over := make(chan error)
	told := make(chan []tp.Server, 1)
	go func() {
		r := etcd.NewResolver(client, "orders")
		over <- r.Resolve(context.Background(), func(s []tp.Server) { told <- s })
	}()
	<-told
	require.NoError(t, client.Close())
	require.ErrorContains(t, <-over, "the client is closed")
}

// The list goes on when what it waits for was compacted away meanwhile.
func TestCompacted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	client := c.client() // of the servers
	away := newGate(t)
	target := c.members[0].server.Clients[0].Addr().String()
	away.lead(target)
	servers := serveAll(t, client, 2)
	l := newLoad(t, etcd.NewResolver(newClient(t, away.addr()), "orders"), 2)
	away.lead("")
	require.NoError(t, servers[0].Shutdown(context.Background()))
	more := serveAll(t, client, 1)[0]
	var revision int64
	for range 20 {
		resp, err := client.Put(context.Background(), "/other", "x")
		require.NoError(t, err)
		revision = resp.Header.Revision
	}
	_, err := client.Compact(context.Background(), revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	away.lead(target)
	eventually(t, func() bool { return l.has(servers[1], more) })
	eventually(t, func() bool { return l.answered(servers[1], more) })
	l.none(t)
}
