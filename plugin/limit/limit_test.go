package limit_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/plugin/internal/plugintest"
	"github.com/henrylee2cn/teleport/plugin/limit"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	if how := os.Getenv(realServer); how != "" {
		serveReal(how)
		return
	}
	goleak.VerifyTestMain(m)
}

// server is a peer with the plugins, and handlers that wait until they are let go.
type server struct {
	*tp.Peer
	release chan struct{}
	clients *tp.Peer
}

func newServer(t *testing.T, plugins ...tp.Plugin) *server {
	s := &server{tp.NewPeer(nil, plugins...), make(chan struct{}), tp.NewPeer(nil)}
	tp.HandlePull(s.PullRouter, "/wait", func(_ tp.PullCtx, n *int) (int, tp.Xerror) {
		<-s.release
		return *n, nil
	})
	tp.HandlePull(s.PullRouter, "/ok", func(_ tp.PullCtx, n *int) (int, tp.Xerror) { return *n, nil })
	tp.HandlePull(s.PullRouter, "/panic", func(tp.PullCtx, *int) (int, tp.Xerror) { panic("oh") })
	tp.HandleStream(s.PullRouter, "/stream", func(_ tp.PullCtx, st *tp.Stream[int, int]) tp.Xerror {
		_, _ = st.Recv()
		return nil
	})
	t.Cleanup(func() { s.clients.Close(); s.Close() })
	return s
}

func (s *server) connect(t *testing.T, addr string) *tp.Session {
	ca, cb := pipe.New(pipe.Options{Buffer: 1 << 20})
	served := make(chan error, 1)
	go func() { _, err := s.ServeConn(plugintest.From{Conn: ca, Addr: addr}); served <- err }()
	sess, err := s.clients.ServeConn(cb)
	require.NoError(t, err)
	require.NoError(t, <-served)
	return sess
}

// requireOverloaded requires that the call was refused, with how long to wait.
func requireOverloaded(t *testing.T, x tp.Xerror, says string) time.Duration {
	t.Helper()
	require.NotNil(t, x)
	require.Equal(t, tp.StatusOverloaded, x.Code(), "%v", x)
	require.ErrorContains(t, x, says)
	require.True(t, tp.NotRun(x))
	after, ok := tp.Retryable(x)
	require.True(t, ok)
	require.Positive(t, after)
	return after
}

// So many calls a second for each key, and a burst; who waits as long as it is told is not refused again.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, limit.New(limit.Rate(limit.ByAddress, 10, 3)))
		one, two := s.connect(t, "10.0.0.1:1"), s.connect(t, "10.0.0.2:1")
		again := s.connect(t, "10.0.0.1:2")
		for range 3 {
			require.Nil(t, one.Pull("/ok", 1, nil).Xerror)
		}
		after := requireOverloaded(t, again.Pull("/ok", 1, nil).Xerror, "too many calls a second")
		require.LessOrEqual(t, after, 100*time.Millisecond)
		require.Nil(t, two.Pull("/ok", 1, nil).Xerror)
		require.Nil(t, one.Push("/nosuch", 1))
		time.Sleep(after)
		require.Nil(t, again.Pull("/ok", 1, nil).Xerror)
		requireOverloaded(t, again.Pull("/ok", 1, nil).Xerror, "too many calls a second")
		time.Sleep(time.Hour)
		for range 3 {
			require.Nil(t, one.Pull("/ok", 1, nil).Xerror)
		}
	})
}

// So many calls at a time for each key, however they end.
func TestConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, limit.New(limit.Concurrent(limit.BySession, 2), limit.Concurrent(limit.ByRoute, 3)))
		one, two := s.connect(t, "10.0.0.1:1"), s.connect(t, "10.0.0.2:1")
		a, b := one.GoPull("/wait", 1, nil, nil), one.GoPull("/wait", 1, nil, nil)
		synctest.Wait()
		requireOverloaded(t, one.Pull("/ok", 1, nil).Xerror, "no more than 2 may run at a time")
		c := two.GoPull("/wait", 1, nil, nil)
		synctest.Wait()
		requireOverloaded(t, two.Pull("/wait", 1, nil).Xerror, "no more than 3 may run at a time")
		require.Nil(t, two.Pull("/ok", 1, nil).Xerror, "the one that was refused holds nothing")
		close(s.release)
		for _, cmd := range []*tp.PullCmd{a, b, c} {
			<-cmd.Done()
		}
		synctest.Wait()
		for range 10 {
			require.NotNil(t, one.Pull("/panic", 1, nil).Xerror)
			require.NotNil(t, one.Pull("/ok", "no number", nil).Xerror)
			require.NotNil(t, one.Pull("/nosuch", 1, nil).Xerror)
			st, err := tp.OpenStream[int, int](t.Context(), one, "/stream")
			require.NoError(t, err)
			require.NoError(t, st.Close())
			synctest.Wait()
		}
		require.Nil(t, one.Pull("/ok", 1, nil).Xerror)
		s.release = make(chan struct{})
		for range 5 { // calls whose callers have gone
			lost := s.connect(t, "10.0.0.3:1")
			lost.GoPull("/wait", 1, nil, nil)
			synctest.Wait()
			require.NoError(t, lost.Close())
			close(s.release)
			synctest.Wait()
			s.release = make(chan struct{})
		}
		require.Nil(t, one.Pull("/ok", 1, nil).Xerror)
	})
}

// So many connections from each address; one that ends makes room.
func TestConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, limit.NewConnections(2))
		first := s.connect(t, "10.0.0.1:1")
		s.connect(t, "10.0.0.1:2")
		s.connect(t, "10.0.0.2:1")
		ca, cb := pipe.New(pipe.Options{})
		go s.ServeConn(plugintest.From{Conn: ca, Addr: "10.0.0.1:3"})
		sess, err := s.clients.ServeConn(cb)
		require.NoError(t, err)
		x := sess.Pull("/ok", 1, nil).Xerror
		require.NotNil(t, x)
		require.Equal(t, tp.StatusOverloaded, x.Code(), "%v", x)
		require.NoError(t, first.Close())
		synctest.Wait()
		s.connect(t, "10.0.0.1:4")
	})
}

// refusing refuses connections while it is set.
type refusing struct{ on atomic.Bool }

func (*refusing) Name() string { return "refusing" }

func (r *refusing) PostAccept(tp.ForeSession) error {
	if r.on.Load() {
		return tp.NewXerror(tp.StatusForbidden, "not today")
	}
	return nil
}

// Connections that another plugin refuses behind this one are not counted for ever.
func TestConnectionsThatAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := new(refusing)
		s := newServer(t, limit.NewConnections(2), other)
		other.on.Store(true)
		for range 10 {
			ca, cb := pipe.New(pipe.Options{})
			_, err := s.ServeConn(plugintest.From{Conn: ca, Addr: "10.0.0.1:1"})
			require.ErrorContains(t, err, "403 not today")
			require.NoError(t, cb.Close())
		}
		other.on.Store(false)
		s.connect(t, "10.0.0.1:1")
		s.connect(t, "10.0.0.1:2")
	})
}

// Calls wait for a moment, those of a higher priority first, and a full queue drops those of a lower one.
func TestAdaptiveQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limit.New(limit.Adaptive(limit.Bounds(1, 1), limit.Priority(func(ctx tp.ReadCtx) int {
			n, _ := strconv.Atoi(ctx.Input().Header.Meta["priority"])
			return n
		})))
		s := newServer(t, l)
		sess := s.connect(t, "10.0.0.1:1")
		done := make(chan *tp.PullCmd, 100)
		call := func(n, priority int) {
			sess.GoPull("/wait", n, new(int), done, tp.WithMeta("priority", fmt.Sprint(priority)))
			synctest.Wait()
		}
		call(0, 0) // runs
		call(1, 0)
		call(2, 9)
		call(3, -5)
		call(4, 1)
		stats, _ := l.Stats()
		require.Equal(t, 1, stats.Running)
		require.Equal(t, 4, stats.Waiting)
		var order []any
		for range 5 {
			s.release <- struct{}{}
			n, x := (<-done).Result()
			require.Nil(t, x)
			order = append(order, *n.(*int))
		}
		require.Equal(t, []any{0, 2, 4, 1, 3}, order)

		call(0, 0)
		for n := range 16 {
			call(n, 0)
		}
		call(100, 0) // there is no room
		require.Equal(t, tp.StatusOverloaded, (<-done).Xerror.Code())
		call(100, 3) // the last one of a lower priority goes
		cmd := <-done
		require.Equal(t, tp.StatusOverloaded, cmd.Xerror.Code())
		time.Sleep(time.Second) // those that wait have waited too long
		for range 16 {
			requireOverloaded(t, (<-done).Xerror, "more is asked for than can be done")
		}
		s.release <- struct{}{}
		require.Nil(t, (<-done).Xerror)
		stats, _ = l.Stats()
		require.Zero(t, stats.Running+stats.Waiting)

		call(0, 0) // a caller that gives up while it waits holds nothing
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- sess.PullContext(ctx, "/wait", 1, nil) }()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, (<-done).Xerror, context.Canceled)
		synctest.Wait()
		stats, _ = l.Stats()
		require.Zero(t, stats.Waiting)
		s.release <- struct{}{}
		<-done
	})
}

// A network of 64 bits, which one subscriber has, is one address.
func TestNetworksOfIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, limit.NewConnections(2), limit.New(limit.Rate(limit.ByAddress, 1, 2)))
		one, two := s.connect(t, "[2001:db8::1]:1"), s.connect(t, "[2001:db8::2]:1")
		require.Nil(t, one.Pull("/ok", 1, nil).Xerror)
		require.Nil(t, two.Pull("/ok", 1, nil).Xerror)
		requireOverloaded(t, two.Pull("/ok", 1, nil).Xerror, "too many calls a second")
		near, far := pipe.New(pipe.Options{})
		_, err := s.ServeConn(plugintest.From{Conn: near, Addr: "[2001:db8::3]:1"})
		require.ErrorContains(t, err, "no more than 2 connections are taken from this address")
		require.NoError(t, far.Close())
		other := s.connect(t, "[2001:db8:0:1::1]:1")
		require.Nil(t, other.Pull("/ok", 1, nil).Xerror)
	})
}

// A function of the program that panics, and a call that another limit refuses, leave nothing taken.
func TestNothingIsTakenByWhatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := func(ctx tp.ReadCtx) string { return ctx.Input().Header.Meta["k"][:1] }
		s := newServer(t, limit.New(limit.Rate(limit.ByAll, 1, 3), limit.Concurrent(limit.ByAll, 1),
			limit.Concurrent(panics, 1), limit.Rate(panics, 1, 2), limit.Adaptive(limit.Bounds(1, 1),
				limit.Priority(func(ctx tp.ReadCtx) int { return len(panics(ctx)) }))))
		sess := s.connect(t, "10.0.0.1:1")
		for range 5 {
			require.Equal(t, tp.StatusFailedPlugin, sess.Pull("/ok", 1, nil).Xerror.Code())
		}
		key := func(k string) tp.PacketSetting { return tp.WithMeta("k", k) }
		require.Nil(t, sess.Pull("/ok", 1, nil, key("a")).Xerror)
		require.Nil(t, sess.Pull("/ok", 1, nil, key("a")).Xerror)
		for range 5 { // of its own rate, which is used up
			requireOverloaded(t, sess.Pull("/ok", 1, nil, key("a")).Xerror, "too many calls a second")
		}
		cmd := sess.GoPull("/wait", 1, nil, nil, key("b"))
		synctest.Wait()
		close(s.release)
		require.Nil(t, (<-cmd.Done()).Xerror, "one of the three was left for it")
	})
}

// A side that does not read its reply holds no place.
func TestUnreadRepliesHoldNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limit.New(limit.Concurrent(limit.ByAll, 1), limit.Adaptive(limit.Bounds(1, 1)))
		s := newServer(t, l)
		tp.HandlePull(s.PullRouter, "/large", func(tp.PullCtx, *int) ([]byte, tp.Xerror) {
			return make([]byte, 1<<20), nil
		})
		near, far := pipe.New(pipe.Options{Buffer: 4 << 10})
		_, err := s.ServeConn(plugintest.From{Conn: near, Addr: "10.0.0.1:1"})
		require.NoError(t, err)
		frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypePull,
			Uri: "/large"}, Body: 1}, packet.Limits{})
		require.NoError(t, err)
		_, err = far.Write(frame)
		require.NoError(t, err)
		synctest.Wait()
		require.Nil(t, s.connect(t, "10.0.0.2:1").Pull("/ok", 1, nil).Xerror)
		require.NoError(t, far.Close())
	})
}

// What fails says nothing about the load, and neither does a body that is late.
func TestWhatTheAdaptiveLimitLearnsFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limit.New(limit.Adaptive())
		s := newServer(t, l)
		tp.HandlePull(s.PullRouter, "/five", func(_ tp.PullCtx, n *int) (int, tp.Xerror) {
			time.Sleep(5 * time.Millisecond)
			return *n, nil
		})
		tp.HandlePull(s.PullRouter, "/fail", func(tp.PullCtx, *int) (int, tp.Xerror) {
			return 0, tp.NewXerror(404, "no")
		})
		sess := s.connect(t, "10.0.0.1:1")
		for range 1000 {
			require.Nil(t, sess.Pull("/five", 1, nil).Xerror)
			require.NotNil(t, sess.Pull("/five", "no number", nil).Xerror)
			require.NotNil(t, sess.Pull("/fail", 1, nil).Xerror)
		}
		stats, _ := l.Stats()
		require.Equal(t, 5*time.Millisecond, stats.Alone.Round(time.Millisecond))
		require.Equal(t, 5*time.Millisecond, stats.Now.Round(time.Millisecond))

		near, far := pipe.New(pipe.Options{})
		_, err := s.ServeConn(plugintest.From{Conn: near, Addr: "10.0.0.1:1"})
		require.NoError(t, err)
		frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypePull,
			Uri: "/ok"}, Body: "0"}, packet.Limits{})
		require.NoError(t, err)
		for range 3 {
			_, err = far.Write(frame[:len(frame)-1])
			require.NoError(t, err)
			time.Sleep(time.Second)
			_, err = far.Write(frame[len(frame)-1:])
			require.NoError(t, err)
			synctest.Wait()
		}
		stats, _ = l.Stats()
		require.Zero(t, stats.Refused)
		require.NoError(t, far.Close())
	})
}

// Keys of which nothing needs to be known are forgotten, and long ones are kept short.
func TestManyKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, limit.New(limit.Rate(func(ctx tp.ReadCtx) string {
			return ctx.Input().Header.Meta["k"]
		}, 1, 1), limit.Rate(limit.ByAll, 1e-9, 50)))
		sess := s.connect(t, "10.0.0.1:1")
		long := strings.Repeat("x", 10_000)
		for i := range 50 {
			require.Nil(t, sess.Pull("/ok", 1, nil, tp.WithMeta("k", fmt.Sprint(long, i))).Xerror)
		}
		requireOverloaded(t, sess.Pull("/ok", 1, nil, tp.WithMeta("k", "new")).Xerror, "too many")
	})
}

// On a group and a registration, beside the peer's.
func TestOnRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, limit.New(limit.Rate(limit.ByAll, 1, 4)))
		group := s.PullRouter.Group("g", limit.New(limit.Rate(limit.ByAll, 1, 3), limit.Named("group")))
		tp.HandlePull(group, "/a", func(tp.PullCtx, *int) (int, tp.Xerror) { return 0, nil },
			limit.New(limit.Rate(limit.ByAll, 1, 1), limit.Named("registration")))
		tp.HandlePull(group, "/b", func(tp.PullCtx, *int) (int, tp.Xerror) { return 0, nil })
		sess := s.connect(t, "10.0.0.1:1")
		require.Nil(t, sess.Pull("/g/a", 1, nil).Xerror)
		requireOverloaded(t, sess.Pull("/g/a", 1, nil).Xerror, "too many calls a second")
		require.Nil(t, sess.Pull("/g/b", 1, nil).Xerror, "two of three were taken, and one of them in vain")
		requireOverloaded(t, sess.Pull("/g/b", 1, nil).Xerror, "too many calls a second")
	})
}

func TestMistakes(t *testing.T) {
	for says, f := range map[string]func(){
		"limit: New has nothing to limit":             func() { limit.New() },
		"limit: New: option 2 of 2 is nil":            func() { limit.New(limit.Adaptive(), nil) },
		"limit: Rate: the key is nil":                 func() { limit.Rate(nil, 1, 1) },
		"limit: Concurrent: the key is nil":           func() { limit.Concurrent(nil, 1) },
		"limit: Rate: 0 calls a second":               func() { limit.Rate(limit.ByAll, 0, 1) },
		"limit: Concurrent: 0 is less than 1":         func() { limit.Concurrent(limit.ByAll, 0) },
		"limit: NewConnections: -1 is less than 1":    func() { limit.NewConnections(-1) },
		"limit: Bounds: 5 to 4 is no range from 1 on": func() { limit.Bounds(5, 4) },
	} {
		func() {
			defer func() { require.Contains(t, fmt.Sprint(recover()), says) }()
			f()
		}()
	}
}

// Two calls at once, and then one each ten seconds.
func ExampleRate() {
	srv := tp.NewPeer(nil, limit.New(limit.Rate(limit.BySession, 0.1, 2)))
	cli := tp.NewPeer(nil)
	defer srv.Close()
	defer cli.Close()
	tp.HandlePull(srv.PullRouter, "/hello", func(tp.PullCtx, *struct{}) (string, tp.Xerror) {
		return "hello", nil
	})
	ca, cb := net.Pipe()
	_, _ = srv.ServeConn(ca)
	sess, err := cli.ServeConn(cb)
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 3 {
		_, err := tp.Call[string](context.Background(), sess, "/hello", struct{}{})
		var x tp.Xerror
		if errors.As(err, &x) {
			after, _ := tp.Retryable(err)
			fmt.Println(x, after > 0)
		} else {
			fmt.Println("hello")
		}
	}
	// Output:
	// hello
	// hello
	// 429 too many calls a second, the call was not run true
}

// BenchmarkCall measures what the plugin adds to a call.
func BenchmarkCall(b *testing.B) {
	for name, plugins := range map[string][]tp.Plugin{
		"none":       nil,
		"rate":       {limit.New(limit.Rate(limit.ByAddress, 1e9, 1e9))},
		"concurrent": {limit.New(limit.Concurrent(limit.BySession, 1000))},
		"adaptive":   {limit.New(limit.Adaptive())},
	} {
		b.Run(name, func(b *testing.B) {
			plugintest.BenchmarkPulls(b, "/who", tp.NewPeer(nil, plugins...), tp.NewPeer(nil))
		})
	}
}
