package nats_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
	"github.com/henrylee2cn/teleport/internal/pipe"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m, goleak.Cleanup(func(int) {}))
}

// patience is how long a test waits for what must come. None waits for all of it where nothing is wrong.
const patience = 60 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t testing.TB, is func() bool, what ...interface{}) {
	t.Helper()
	require.Eventually(t, is, patience, time.Millisecond, what...)
}

// broker is a NATS server in this process, with JetStream.
type broker struct {
	*server.Server
	opts server.Options
}

func newBroker(t testing.TB, change ...func(*server.Options)) *broker {
	b := &broker{opts: server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: t.TempDir(), DisableJetStreamBanner: true}}
	for _, f := range change {
		f(&b.opts)
	}
	opts := b.opts
	var err error
	b.Server, err = server.NewServer(&opts)
	require.NoError(t, err)
	b.Start()
	t.Cleanup(b.stop)
	return b
}

func startBroker(t testing.TB, change ...func(*server.Options)) *broker {
	b := newBroker(t, change...)
	b.isUp(t)
	return b
}

// dial returns a connection of the test's own, which ends with the test.
func (b *broker) dial(t testing.TB) *natsgo.Conn {
	nc, err := natsgo.Connect(b.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// jetStream is what the broker keeps, seen by a connection of the test's own.
func (b *broker) jetStream(t testing.TB) jetstream.JetStream {
	js, err := jetstream.New(b.dial(t))
	require.NoError(t, err)
	return js
}

func (b *broker) isUp(t testing.TB) {
	require.True(t, b.ReadyForConnections(patience))
	b.opts.Port = b.Addr().(*net.TCPAddr).Port // the same after another start
}

// start starts the broker again.
func (b *broker) start(t testing.TB) {
	opts := b.opts
	var err error
	b.Server, err = server.NewServer(&opts)
	require.NoError(t, err)
	b.Start()
	b.isUp(t)
}

func (b *broker) stop() {
	b.Shutdown()
	b.WaitForShutdown()
}

// cluster starts n brokers that know each other.
func cluster(t testing.TB, n int) (list []*broker) {
	var routes []*url.URL
	for range n { // each has to know the others' ports before it starts
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		routes = append(routes, &url.URL{Scheme: "nats", Host: ln.Addr().String()})
		require.NoError(t, ln.Close())
	}
	for i := range n {
		port, err := strconv.Atoi(routes[i].Port())
		require.NoError(t, err)
		list = append(list, newBroker(t, func(o *server.Options) {
			o.ServerName = fmt.Sprint("n", i)
			o.Cluster = server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: port}
			o.Routes = routes
		}))
	}
	for _, b := range list {
		b.isUp(t)
	}
	eventually(t, func() bool {
		for _, b := range list {
			if b.JetStreamIsLeader() && len(b.JetStreamClusterPeers()) == n {
				return true
			}
		}
		return false
	})
	return list
}

func urls(list []*broker) string {
	var s []string
	for _, b := range list {
		s = append(s, b.ClientURL())
	}
	return strings.Join(s, ",")
}

// node is a server of the service.
type node struct {
	*nats.Hub
	peer *tp.Peer
}

func newNode(t testing.TB, cfg *tp.PeerConfig, option ...nats.Option) *node {
	peer := tp.NewPeer(cfg)
	hub, err := nats.New(peer, option...)
	require.NoError(t, err)
	t.Cleanup(func() {
		hub.Close()
		peer.Close()
	})
	return &node{hub, peer}
}

// nodes makes n servers that know each other.
func nodes(t testing.TB, n int, option ...nats.Option) (list []*node) {
	for i := range n {
		list = append(list, newNode(t, nil, append(option, nats.Name(fmt.Sprint("server", i)))...))
	}
	for _, one := range list {
		eventually(t, func() bool { return len(one.Servers()) == n })
	}
	return list
}

// client is a session of a server, seen from both sides.
type client struct {
	peer       *tp.Peer
	here       *tp.Session // the client's side
	there      *tp.Session // the server's
	mu         sync.Mutex
	got        []string // pushes to /note
	joined     int      // pushes that say where a member is that has joined
	joinedLast map[string]string
}

// connect connects a client with the id.
func (n *node) connect(t testing.TB, id string, identity ...string) *client {
	c := &client{peer: tp.NewPeer(nil)}
	tp.HandlePush(c.peer.PushRouter, "/note", func(_ tp.PushCtx, text *string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.got = append(c.got, *text)
	})
	tp.HandlePush(c.peer.PushRouter, tp.JoinedURI, func(ctx tp.PushCtx, _ *struct{}) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.joined, c.joinedLast = c.joined+1, ctx.Meta()
	})
	c.attach(t, n, id, identity...)
	t.Cleanup(func() { c.peer.Close() })
	return c
}

// attach connects the client to a server, which knows it then.
func (c *client) attach(t testing.TB, n *node, id string, identity ...string) {
	a, b := pipe.New(pipe.Options{})
	var err error
	c.there, err = n.peer.ServeConn(a)
	require.NoError(t, err)
	c.here, err = c.peer.ServeConn(b)
	require.NoError(t, err)
	require.NoError(t, c.there.ReplaceId(id))
	require.NoError(t, n.Add(c.there, identity...))
}

// notes returns what was pushed to the client so far.
func (c *client) notes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.got...)
}

func (c *client) awaitNotes(t testing.TB, want ...string) {
	t.Helper()
	eventually(t, func() bool { return len(c.notes()) >= len(want) }, "%v", c)
	require.Equal(t, want, c.notes())
}

// named is a plugin that gives sessions ids, each another one.
type named struct{}

var lastId atomic.Int64

func (named) Name() string { return "named" }

func (named) PostAccept(fore tp.ForeSession) error {
	return fore.ChangeId(fmt.Sprint("n", lastId.Add(1)))
}

// connectTo connects the client to a peer.
func connectTo(t testing.TB, peer *tp.Peer, c *client) {
	a, b := pipe.New(pipe.Options{})
	var err error
	c.there, err = peer.ServeConn(a)
	require.NoError(t, err)
	c.here, err = c.peer.ServeConn(b)
	require.NoError(t, err)
}

// serveEcho has a client answer with what it is asked.
func serveEcho(client *tp.Peer) {
	tp.HandlePull(client.PullRouter, "/echo", func(_ tp.PullCtx, n *int) (int, tp.Xerror) { return *n, nil })
}
