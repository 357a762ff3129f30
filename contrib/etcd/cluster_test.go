package etcd_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/henrylee2cn/teleport/contrib/etcd"
)

// gate is a TCP proxy in front of a member of etcd: its address stays the same when the member is stopped
// and started again, and it can be silent.
type gate struct {
	ln   net.Listener
	done sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	target string     // "" refuses
	silent chan struct{}
	conns  map[net.Conn]bool
}

func newGate(t testing.TB) *gate {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	open := make(chan struct{})
	close(open)
	g := &gate{ln: ln, silent: open, conns: make(map[net.Conn]bool)}
	g.done.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			g.done.Go(func() { g.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		g.setSilent(false)
		g.lead("")
		g.done.Wait()
	})
	return g
}

func (g *gate) addr() string { return g.ln.Addr().String() }

// lead has connections go to the target from now on, and ends those that there are.
func (g *gate) lead(target string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.target = target
	for c := range g.conns {
		_ = c.Close()
	}
}

// setSilent says whether bytes wait. Connections are still accepted, as by a machine that hangs.
func (g *gate) setSilent(silent bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	isSilent := true
	select {
	case <-g.silent:
		isSilent = false
	default:
	}
	switch {
	case silent && !isSilent:
		g.silent = make(chan struct{})
	case !silent && isSilent:
		close(g.silent)
	}
}

func (g *gate) serve(conn net.Conn) {
	defer conn.Close()
	g.mu.Lock()
	target := g.target
	g.mu.Unlock()
	if target == "" {
		return
	}
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	g.mu.Lock()
	gone := g.target != target
	g.conns[conn], g.conns[out] = true, true
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.conns, conn)
		delete(g.conns, out)
	}()
	if gone {
		return
	}
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		defer to.Close()
		defer from.Close()
		b := make([]byte, 32<<10)
		for {
			n, err := from.Read(b)
			g.mu.Lock()
			silent := g.silent
			g.mu.Unlock()
			<-silent
			if n > 0 {
				if _, err := to.Write(b[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	both.Go(func() { pass(out, conn) })
	both.Go(func() { pass(conn, out) })
	both.Wait()
}

// member is one etcd of a cluster, in this process.
type member struct {
	name          string
	dir           string
	clients, peer *gate
	server        *embed.Etcd // nil while it is stopped
	starts        int
}

// cluster is an etcd of some members.
type cluster struct {
	t       testing.TB
	members []*member
	initial string
	change  []func(*embed.Config)
}

// newCluster starts an etcd of n members, with changes of their configuration. Nothing is written to disk for
// good.
func newCluster(t testing.TB, n int, change ...func(*embed.Config)) *cluster {
	c := &cluster{t: t, change: change}
	var initial []string
	for i := range n {
		m := &member{name: fmt.Sprintf("m%d", i), dir: t.TempDir(), clients: newGate(t), peer: newGate(t)}
		c.members = append(c.members, m)
		initial = append(initial, m.name+"=http://"+m.peer.addr())
	}
	c.initial = strings.Join(initial, ",")
	t.Cleanup(c.stopAll)
	c.startAll()
	return c
}

func (c *cluster) startAll() {
	c.t.Helper()
	for _, m := range c.members {
		c.start(m)
	}
	for _, m := range c.members {
		<-m.server.Server.ReadyNotify()
	}
}

// start starts a member on the data that it has.
func (c *cluster) start(m *member) {
	c.t.Helper()
	cfg := embed.NewConfig()
	cfg.Name = m.name
	cfg.Dir = filepath.Join(m.dir, "data")
	any := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.ListenPeerUrls = any, slices.Clone(any)
	cfg.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: m.clients.addr()}}
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: m.peer.addr()}}
	cfg.InitialCluster = c.initial
	cfg.UnsafeNoFsync = true
	cfg.BcryptCost = 4 // the least, as passwords take seconds under the race detector otherwise
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	for _, change := range c.change {
		change(cfg)
	}
	server, err := embed.StartEtcd(cfg)
	require.NoError(c.t, err)
	m.server = server
	m.starts++
	m.peer.lead(server.Peers[0].Addr().String())
	m.clients.lead(server.Clients[0].Addr().String())
}

// stop kills a member, as far as one in the same process can be.
func (c *cluster) stop(m *member) {
	if m.server == nil {
		return
	}
	m.clients.lead("")
	m.peer.lead("")
	m.server.Server.HardStop() // without a word to the others
	m.server.Close()
	m.server = nil
}

func (c *cluster) stopAll() {
	var all sync.WaitGroup
	for _, m := range c.members {
		all.Go(func() { c.stop(m) })
	}
	all.Wait()
}

// stopUnder stops all members, and waits until the servers know that they are not registered any more.
func (c *cluster) stopUnder(servers []*server) {
	c.t.Helper()
	c.stopAll()
	for _, s := range servers {
		eventually(c.t, func() bool { return !s.reg.Registered() && s.reg.Err() != nil })
	}
}

// forget has the members, which are stopped, start without data the next time.
func (c *cluster) forget() {
	for _, m := range c.members {
		require.Nil(c.t, m.server)
		m.dir = c.t.TempDir()
	}
}

// leader returns the member that leads.
func (c *cluster) leader() *member {
	for _, m := range c.members {
		if m.server != nil && m.server.Server.Leader() == m.server.Server.MemberID() {
			return m
		}
	}
	c.t.Fatal("etcd has no leader")
	return nil
}

// client returns a client of all members.
func (c *cluster) client() *clientv3.Client {
	c.t.Helper()
	var endpoints []string
	for _, m := range c.members {
		endpoints = append(endpoints, m.clients.addr())
	}
	return newClient(c.t, endpoints...)
}

func newClient(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	return connect(t, etcd.ClientConfig(endpoints...))
}

// connect returns a client that is closed at the test's end.
func connect(t testing.TB, cfg clientv3.Config) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// keys returns the values of all keys of a service.
func keys(t testing.TB, client *clientv3.Client, service string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := client.Get(ctx, "/teleport/v1/"+service+"/", clientv3.WithPrefix())
	require.NoError(t, err)
	all := make(map[string]string)
	for _, kv := range resp.Kvs {
		all[strings.TrimPrefix(string(kv.Key), "/teleport/v1/"+service+"/")] = string(kv.Value)
	}
	return all
}
