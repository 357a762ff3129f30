package follow_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/race"
	"github.com/henrylee2cn/teleport/plugin/follow"
	"github.com/henrylee2cn/teleport/tptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rejoin joins the group on every connection.
type rejoin struct {
	follower *follow.Follower
	joined   func(tp.Recovery)
	failed   func(error)
}

func (rejoin) Name() string { return "rejoin" }

func (r rejoin) PostConnect(sess *tp.Session) error {
	rec, err := tp.Call[tp.Recovery](context.Background(), sess, "/join", r.follower.Position("room"))
	if err != nil {
		if r.failed != nil {
			r.failed(err)
		}
		return nil // the connection was cut meanwhile
	}
	if r.joined != nil {
		r.joined(rec)
	}
	return nil
}

// newRoom is a server with a group that clients join at their positions.
func newRoom(option ...tp.GroupOption) (*tp.Peer, *tp.Group) {
	srv := tp.NewPeer(nil)
	room := srv.Group("room", option...)
	tp.HandlePull(srv.PullRouter, "/join", func(ctx tp.PullCtx, at *tp.Position) (tp.Recovery, tp.Xerror) {
		rec, err := room.JoinAt(ctx.Session(), *at)
		if err != nil {
			return rec, tp.NewXerror(tp.StatusInternalServerError, err.Error())
		}
		return rec, nil
	})
	return srv, room
}

// member is a client that has joined, on a network in memory.
type member struct {
	*follow.Follower
	link   *tptest.Link
	sess   *tp.Session
	joined chan tp.Recovery

	mu     sync.Mutex
	seen   []int
	afresh int
	handle func(n int) // nil for nothing
}

func (m *member) list() []int {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.seen)
}

func newMember(network *tptest.Network, o ...follow.Option) *member {
	m := &member{joined: make(chan tp.Recovery, 100)}
	m.Follower = follow.New(append(o, follow.Afresh(func(_ *tp.Session, group string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.afresh++
		m.seen = append(m.seen, -1)
	}))...)
	cli := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{MinBackoff: time.Millisecond,
		MaxBackoff: 2 * time.Millisecond}, DialContext: network.DialContext}, m.Follower,
		rejoin{follower: m.Follower, joined: func(r tp.Recovery) { m.joined <- r }})
	tp.HandlePush(cli.PushRouter, "/n", func(_ tp.PushCtx, n *int) {
		m.mu.Lock()
		handle := m.handle
		m.mu.Unlock()
		if handle != nil {
			handle(*n)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.seen = append(m.seen, *n)
	})
	m.link = network.Dial(cli, "server")
	m.sess = m.link.Client
	return m
}

func count(from, to int) (list []int) {
	for i := from; i <= to; i++ {
		list = append(list, i)
	}
	return list
}

// inBubble runs the test with a room and a network in a bubble.
func inBubble(t *testing.T, size int, age time.Duration, test func(t *testing.T, room *tp.Group,
	network *tptest.Network)) {
	synctest.Test(t, func(t *testing.T) {
		srv, room := newRoom(tp.History(size, age))
		network := tptest.NewNetwork(t)
		network.Serve("server", srv)
		test(t, room, network)
	})
}

func push(t *testing.T, room *tp.Group, from, to int) {
	for i := from; i <= to; i++ {
		require.Nil(t, room.Push("/n", i).Err)
	}
}

// Who was away gets what was missed, in order and once, and is told how much that was.
func TestCatchUp(t *testing.T) {
	inBubble(t, 100, time.Minute, func(t *testing.T, room *tp.Group, network *tptest.Network) {
		push(t, room, 1, 3)
		m := newMember(network)
		rec := <-m.joined
		require.Equal(t, tp.Recovery{Position: rec.Position}, rec)
		require.EqualValues(t, 3, rec.Position.Seq)
		push(t, room, 4, 10)
		require.Equal(t, count(4, 10), m.list())
		require.Equal(t, tp.Position{Epoch: rec.Position.Epoch, Seq: 10}, m.Position("room"))

		network.RefuseDials(nil)
		network.Cut()
		synctest.Wait()
		require.Zero(t, room.Len())
		push(t, room, 11, 20)
		network.AllowDials()
		rec = <-m.joined
		require.Equal(t, 10, rec.Pushes)
		require.False(t, rec.Afresh)
		push(t, room, 21, 22)
		require.Equal(t, count(4, 22), m.list())
		require.EqualValues(t, 22, m.Position("room").Seq)
		require.Zero(t, m.afresh)

		// Once more, without a push between.
		network.Cut()
		rec = <-m.joined
		require.Equal(t, tp.Recovery{Position: m.Position("room")}, rec)
		push(t, room, 23, 23)
		require.Equal(t, count(4, 23), m.list())
	})
}

// Who was away for too long, or missed too much, is told to start afresh before the next push comes.
func TestAfresh(t *testing.T) {
	for name, while := range map[string]func(t *testing.T, room *tp.Group){
		"too much": func(t *testing.T, room *tp.Group) { push(t, room, 101, 111) },
		"too long": func(t *testing.T, room *tp.Group) {
			push(t, room, 101, 102)
			time.Sleep(time.Minute)
		},
		"too large": func(t *testing.T, room *tp.Group) {
			for range 5 {
				require.Nil(t, room.Push("/large", make([]byte, 3<<20)).Err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 10, time.Minute, func(t *testing.T, room *tp.Group, network *tptest.Network) {
				m := newMember(network)
				first := <-m.joined
				push(t, room, 1, 2)
				require.Equal(t, count(1, 2), m.list())
				network.RefuseDials(nil)
				network.Cut()
				synctest.Wait()
				while(t, room)
				network.AllowDials()
				rec := <-m.joined
				require.True(t, rec.Afresh)
				require.Zero(t, rec.Pushes)
				require.Equal(t, first.Position.Epoch, rec.Position.Epoch)
				push(t, room, 3, 4)
				require.Equal(t, []int{1, 2, -1, 3, 4}, m.list())
				require.Equal(t, rec.Position.Seq+2, m.Position("room").Seq)
			})
		})
	}
}

// A position of another history is none, whatever its number: an epoch and a number belong together. The
// position is the new one as a whole then.
func TestPositionOfAnotherEpoch(t *testing.T) {
	inBubble(t, 100, time.Minute, func(t *testing.T, room *tp.Group, network *tptest.Network) {
		push(t, room, 1, 5)
		m := newMember(network)
		now := (<-m.joined).Position
		for _, at := range []tp.Position{{Epoch: "another", Seq: 3}, {Epoch: now.Epoch, Seq: 6}} {
			network.RefuseDials(nil)
			network.Cut()
			synctest.Wait()
			m.Set("room", at)
			network.AllowDials()
			rec := <-m.joined
			require.True(t, rec.Afresh)
			synctest.Wait()
			require.Equal(t, now, m.Position("room"))
		}
		push(t, room, 6, 6)
		require.Equal(t, []int{-1, -1, 6}, m.list())
	})
}

// A handler that breaks the connection, and waits until the client has joined again: the push that it
// handles is not delivered again, and those behind it are delivered once. The position has not moved
// before the handler is through.
func TestReconnectWithinAHandler(t *testing.T) {
	inBubble(t, 100, time.Minute, func(t *testing.T, room *tp.Group, network *tptest.Network) {
		m := newMember(network)
		<-m.joined
		m.handle = func(n int) {
			if n == 3 {
				require.EqualValues(t, 2, m.Position("room").Seq)
				m.sess.Disconnect(errors.New("enough"))
				rec := <-m.joined
				require.Equal(t, 8, rec.Pushes, "3 to 10")
			}
		}
		push(t, room, 1, 10)
		time.Sleep(time.Second)
		require.Equal(t, count(1, 10), m.list())
		require.EqualValues(t, 10, m.Position("room").Seq)
		require.Zero(t, m.afresh)
	})
}

// Connections that break while what was missed comes, again and again, each in another place: the
// position never moves back, and nothing is delivered twice or lost.
func TestCutWhileCatchingUp(t *testing.T) {
	inBubble(t, 1000, time.Hour, func(t *testing.T, room *tp.Group, network *tptest.Network) {
		m := newMember(network)
		<-m.joined
		network.RefuseDials(nil)
		network.Cut()
		synctest.Wait()
		push(t, room, 1, 200)
		last := uint64(0)
		m.handle = func(int) {
			at := m.Position("room").Seq
			require.GreaterOrEqual(t, at, last)
			last = at
		}
		for cut := int64(300); m.Position("room").Seq < 200; cut += 777 {
			network.ToClient.CutAfter(cut)
			network.AllowDials()
			time.Sleep(time.Second)
			network.RefuseDials(nil)
			network.Heal()
			network.Cut()
			synctest.Wait()
		}
		require.Equal(t, count(1, 200), m.list())
		require.Zero(t, m.afresh)
	})
}

// A stored position is where a new program goes on.
func TestStoredPosition(t *testing.T) {
	inBubble(t, 100, time.Minute, func(t *testing.T, room *tp.Group, network *tptest.Network) {
		m := newMember(network)
		<-m.joined
		push(t, room, 1, 5)
		require.Equal(t, count(1, 5), m.list())
		text, err := m.Position("room").MarshalText()
		require.NoError(t, err)
		require.NoError(t, m.sess.Close())
		push(t, room, 6, 9)

		var at tp.Position
		require.NoError(t, at.UnmarshalText(text))
		follower := follow.New()
		follower.Set("room", at)
		got := make(chan int, 10)
		rec := make(chan tp.Recovery, 1)
		cli := tp.NewPeer(&tp.PeerConfig{DialContext: network.DialContext}, follower,
			rejoin{follower: follower, joined: func(r tp.Recovery) { rec <- r }})
		tp.HandlePush(cli.PushRouter, "/n", func(_ tp.PushCtx, n *int) { got <- *n })
		network.Dial(cli, "server")
		require.Equal(t, 4, (<-rec).Pushes)
		for i := 6; i <= 9; i++ {
			require.Equal(t, i, <-got)
		}
		follower.Forget("room")
		require.Equal(t, tp.Position{}, follower.Position("room"))
	})
}

// Ticks are in the history as they went out: values that were replaced within the tick are not.
func TestTicksInAHistory(t *testing.T) {
	inBubble(t, 100, time.Minute, func(t *testing.T, room *tp.Group, network *tptest.Network) {
		m := newMember(network)
		<-m.joined
		room.Batch(time.Second)
		room.Push("/n", 1, tp.Latest("k"))
		room.Push("/n", 2)
		room.Push("/n", 3, tp.Latest("k"))
		room.Push("/n", 4, tp.Except(room.Members()[0]))
		time.Sleep(time.Second)
		require.Equal(t, []int{2, 3}, m.list())
		require.EqualValues(t, 2, m.Position("room").Seq)
		network.Cut()
		rec := <-m.joined
		require.Equal(t, 1, rec.Pushes, "what was left out for the session that is gone")
		require.Equal(t, []int{2, 3, 4}, m.list())
	})
}

// Only what a session says that this side has dialled counts: another one cannot stop a group.
func TestAcceptedSessionsAreNotFollowed(t *testing.T) {
	inBubble(t, 100, time.Hour, func(t *testing.T, room *tp.Group, network *tptest.Network) {
		m := newMember(network)
		<-m.joined
		push(t, room, 1, 2)
		require.Equal(t, count(1, 2), m.list())
		evil := tp.NewPeer(nil)
		link := tptest.Pair(t, m.sess.Peer(), evil)
		x := link.Client.Push(tp.JoinedURI, nil, tp.WithMeta(tp.MetaGroup, "room"),
			tp.WithMeta(tp.MetaAt, "0.evil"), tp.WithMeta(tp.MetaAfresh, "1"))
		require.Nil(t, x)
		require.Nil(t, link.Client.Push("/n", 100, tp.WithMeta(tp.MetaGroup, "room"),
			tp.WithMeta(tp.MetaAt, "9."+m.Position("room").Epoch)))
		m.list()
		push(t, room, 3, 4)
		got := m.list()
		require.Contains(t, got, 3)
		require.Contains(t, got, 4)
		require.EqualValues(t, 4, m.Position("room").Seq)
		require.Zero(t, m.afresh)
	})
}

// cutConn is a connection that breaks when so many bytes have been read.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		_ = c.Conn.Close()
		return 0, errors.New("cut")
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// 200 members are cut at random bytes while very many pushes go out. Each ends with all of them, once and
// in order. TELEPORT_PUSHES sets how many there are.
func TestManyMembersCutAtRandomBytes(t *testing.T) {
	members, pushes := 200, 2000
	if race.Enabled {
		members, pushes = 50, 500
	}
	if n, err := strconv.Atoi(os.Getenv("TELEPORT_PUSHES")); err == nil {
		members, pushes = 200, n
	}
	srv, room := newRoom(tp.History(pushes, time.Hour))
	defer srv.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln)
	}()
	defer func() { _ = srv.Close(); <-served }()

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var cuts, again atomic.Int64
	var done sync.WaitGroup
	for i := range members {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		// about four cuts for each member, from the first bytes on
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			cuts.Add(1)
			return &cutConn{conn, 200 + r.IntN(pushes*25)}, nil
		}
		follower := follow.New(follow.Afresh(func(*tp.Session, string) { t.Error("a member starts afresh") }))
		cli := tp.NewPeer(&tp.PeerConfig{DialContext: dial, Redial: &tp.Redial{MinBackoff: time.Millisecond,
			MaxBackoff: 5 * time.Millisecond}}, follower,
			rejoin{follower: follower, joined: func(r tp.Recovery) { again.Add(int64(r.Pushes)) }})
		done.Add(1)
		last := 0
		tp.HandlePush(cli.PushRouter, "/n", func(_ tp.PushCtx, n *int) {
			if *n != last+1 {
				t.Errorf("member %d gets %d after %d", i, *n, last)
			}
			if last = *n; last == pushes {
				done.Done()
			}
		})
		defer cli.Close()
		for {
			if _, err := cli.Dial(ln.Addr().String()); err == nil {
				break
			}
		}
	}
	require.Eventually(t, func() bool { return room.Len() >= members*9/10 }, time.Minute, time.Millisecond)
	for i := 1; i <= pushes; i++ {
		require.Nil(t, room.Push("/n", i).Err)
	}
	done.Wait()
	t.Logf("%d members, %d pushes, %d connections, %d pushes sent again", members, pushes, cuts.Load(),
		again.Load())
	require.Positive(t, again.Load())
}

// A client that catches up after its connection has broken.
func Example() {
	srv, room := newRoom(tp.History(1000, time.Minute)) // with a handler that calls room.JoinAt
	defer srv.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)

	follower := follow.New(follow.Afresh(func(*tp.Session, string) { fmt.Println("starts afresh") }))
	joined := make(chan tp.Recovery, 2)
	client := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}}, follower,
		rejoin{follower: follower, joined: func(r tp.Recovery) { joined <- r }}) // pulls /join in PostConnect
	defer client.Close()
	got := make(chan int)
	tp.HandlePush(client.PushRouter, "/n", func(_ tp.PushCtx, n *int) { got <- *n })

	sess := make(chan *tp.Session, 1)
	go func() {
		s, err := client.Dial(ln.Addr().String())
		if err != nil {
			fmt.Println(err)
		}
		sess <- s
	}()
	<-joined
	room.Push("/n", 1)
	fmt.Println(<-got)
	(<-sess).Disconnect(errors.New("for the example"))
	room.Push("/n", 2) // perhaps to nobody
	fmt.Println(<-got)
	// Output:
	// 1
	// 2
}
