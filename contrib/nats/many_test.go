package nats_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/race"
)

// crowd is many sessions over some servers, all of them members of a room. One peer has all of the clients'
// sides.
type crowd struct {
	servers []*node
	clients *tp.Peer
	sess    []*tp.Session // the clients' sides
	got     sync.Map      // by session: *atomic.Int64
	all     atomic.Int64
}

func newCrowd(t testing.TB, servers []*node, n int) *crowd {
	c := &crowd{servers: servers, clients: tp.NewPeer(&tp.PeerConfig{MaxSessions: -1})}
	t.Cleanup(func() { c.clients.Close() })
	tp.HandlePush(c.clients.PushRouter, "/note", func(ctx tp.PushCtx, _ *string) {
		n, _ := c.got.Load(ctx.Session())
		n.(*atomic.Int64).Add(1)
		c.all.Add(1)
	})
	serveEcho(c.clients)
	c.sess = make([]*tp.Session, n)
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < n; i += 32 {
				server := servers[i%len(servers)]
				a, b := pipe.New(pipe.Options{})
				there, err := server.peer.ServeConn(a)
				require.NoError(t, err)
				c.sess[i], err = c.clients.ServeConn(b)
				require.NoError(t, err)
				c.got.Store(c.sess[i], new(atomic.Int64))
				require.NoError(t, there.ReplaceId(fmt.Sprint("c", i)))
				require.NoError(t, server.Add(there))
				require.NoError(t, server.Group("room").Join(there))
			}
		})
	}
	wg.Wait()
	return c
}

// crowdNodes are n servers that take any number of sessions.
func crowdNodes(t testing.TB, n int, option ...nats.Option) (list []*node) {
	for range n {
		list = append(list, newNode(t, &tp.PeerConfig{MaxSessions: -1, MaxBufferedBytes: -1}, option...))
	}
	for _, one := range list {
		eventually(t, func() bool { return len(one.Servers()) == n })
	}
	return list
}

// 10,000 sessions over three servers: everyone gets each push once, and every one of them is reached by its
// id from another server.
func TestManySessions(t *testing.T) {
	n := 10_000
	if race.Enabled || testing.Short() {
		n = 600
	}
	b := startBroker(t)
	c := newCrowd(t, crowdNodes(t, 3, nats.URL(b.ClientURL())), n)
	const pushes = 9
	for i := range pushes {
		d := c.servers[i%3].Group("room").Push("/note", "hello")
		require.Nil(t, d.Err)
	}
	eventually(t, func() bool { return c.all.Load() == int64(n*pushes) }, "%d of %d", c.all.Load(), n*pushes)
	for i := range 100 {
		id := i * n / 100
		reply := 0
		require.Nil(t, c.servers[(id+1)%3].Session(fmt.Sprint("c", id)).Pull(within(t), "/echo", id, &reply))
		require.Equal(t, id, reply)
		require.Nil(t, c.servers[(id+1)%3].Session(fmt.Sprint("c", id)).Push(within(t), "/note", "one"))
	}
	eventually(t, func() bool { return c.all.Load() == int64(n*pushes+100) })
	over := 0
	c.got.Range(func(_, v any) bool {
		switch got := v.(*atomic.Int64).Load(); {
		case got < pushes || got > pushes+1:
			t.Errorf("a session has got %d pushes", got)
		case got == pushes+1:
			over++
		}
		return true
	})
	require.Equal(t, 100, over)
	count, err := c.servers[0].Group("room").Count(within(t))
	require.NoError(t, err)
	require.Equal(t, n, count)
	list, err := c.servers[1].Group("room").Members(within(t))
	require.NoError(t, err)
	require.Len(t, list, n)
}
