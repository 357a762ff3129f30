package partition

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/child"
	"github.com/henrylee2cn/teleport/internal/netns"
	"github.com/henrylee2cn/teleport/plugin/heartbeat"
)

var full = flag.Bool("partition", false,
	"take the default timeouts, which last half a minute, not those of a second")

// slack is what a busy machine may add to a time that is promised.
const slack = 5 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv("TP_PARTITION_LOG") == "" {
		tp.SetLogLevel(tp.LevelOff)
	}
	flag.Parse()
	netns.Check()
	os.Exit(m.Run())
}

// config is of all peers here.
func config() *tp.PeerConfig {
	if *full {
		return &tp.PeerConfig{}
	}
	return &tp.PeerConfig{KeepAlive: time.Second, UserTimeout: time.Second}
}

// promised is after how long a silent connection has ended.
func promised() time.Duration {
	if *full {
		return 30 * time.Second
	}
	return 4 * time.Second // keepalive counts in whole seconds: 1 + 3 x 1
}

// namespaced is [netns.Inside] with the flags of these tests.
func namespaced(t *testing.T) bool {
	return netns.Inside(t, fmt.Sprintf("-partition=%v", *full))
}

// sides are two peers on a network, and what they have to do with each other.
type sides struct {
	t          *testing.T
	net        *netns.Network
	cli, srv   *tp.Peer
	sess, back *tp.Session    // over the cable that is cut: the client's and the server's
	good       *tp.Session    // over the other
	dials      chan time.Time // when the client has dialled
	// waits and waitsBack are in flight, acknowledged and never answered.
	waits, waitsBack *tp.PullCmd
}

func newSides(t *testing.T) *sides { return newSidesWith(t, config(), nil) }

// inside returns a DialContext that dials from the namespace, and tells of each time on the channel, if there
// is room.
func inside(space *netns.Space, dials chan<- time.Time) func(ctx context.Context, network,
	addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		select {
		case dials <- time.Now():
		default:
		}
		if !space.Do(func() { conn, err = new(net.Dialer).DialContext(ctx, network, addr) }) {
			err = errors.New("the test is over")
		}
		return conn, err
	}
}

// newSidesWith is newSides with another configuration, and a plugin for each peer; nil for none.
func newSidesWith(t *testing.T, cfg *tp.PeerConfig, plugin func() tp.Plugin) *sides {
	newPeer := func(cfg *tp.PeerConfig) *tp.Peer {
		if plugin == nil {
			return tp.NewPeer(cfg)
		}
		return tp.NewPeer(cfg, plugin())
	}
	n, err := netns.New()
	require.NoError(t, err)
	t.Cleanup(n.Close)
	s := &sides{t: t, net: n, srv: newPeer(cfg), dials: make(chan time.Time, 10)}
	dialling := *cfg
	dialling.DialContext = inside(n.Client, s.dials)
	s.cli = newPeer(&dialling)
	release := make(chan struct{})
	arrived := make(chan *tp.Session, 1000)
	for _, p := range []*tp.Peer{s.cli, s.srv} {
		tp.HandlePull(p.PullRouter, "/echo", func(_ tp.PullCtx, text *string) (string, tp.Xerror) {
			return *text, nil
		})
		tp.HandlePull(p.PullRouter, "/wait", func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
			arrived <- ctx.Session()
			<-release
			return "", nil
		})
	}
	var ln net.Listener
	n.Server.Do(func() { ln, err = net.Listen("tcp4", "0.0.0.0:0") })
	require.NoError(t, err)
	served := make(chan error)
	go func() { served <- s.srv.Serve(ln) }()
	t.Cleanup(func() {
		close(release)
		_, _ = s.cli.Close(), s.srv.Close()
		<-served
	})
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	s.sess, err = s.cli.Dial(netns.Address + ":" + port)
	require.NoError(t, err)
	s.good, err = s.cli.Dial(netns.OtherAddress + ":" + port)
	require.NoError(t, err)
	<-s.dials
	<-s.dials
	s.requireOthersLive()
	s.waits = s.sess.GoPull("/wait", "", nil, nil) // tells which one it is there
	s.back = <-arrived
	s.waitsBack = s.back.GoPull("/wait", "", nil, nil)
	<-arrived
	return s
}

// end waits until the pulls that wait have ended, and the sessions, and returns
// how long after start the client's and the server's pull did.
func (s *sides) end(start time.Time) (client, server time.Duration) {
	for range 2 {
		select {
		case cmd := <-s.waits.Done():
			client = time.Since(start)
			require.Equal(s.t, tp.StatusConnClosed, cmd.Xerror.Code())
		case cmd := <-s.waitsBack.Done():
			server = time.Since(start)
			require.Equal(s.t, tp.StatusConnClosed, cmd.Xerror.Code())
		}
	}
	<-s.sess.Done()
	<-s.back.Done()
	return client, server
}

func (s *sides) requireOthersLive() {
	s.t.Helper()
	require.Nil(s.t, s.good.Pull("/echo", "x", nil).Xerror)
}

// pulls starts pulls that are not going to be answered and returns a function that
// waits for them, and how long after start the last one ended.
func (s *sides) pulls(start time.Time, from *tp.Session, n int) func() time.Duration {
	var mu sync.Mutex
	var last time.Duration
	var codes []int32
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			cmd := from.Pull("/wait", "", nil)
			mu.Lock()
			defer mu.Unlock()
			last = max(last, time.Since(start))
			if cmd.Xerror == nil {
				codes = append(codes, tp.StatusOK)
			} else {
				codes = append(codes, cmd.Xerror.Code())
			}
		})
	}
	return func() time.Duration {
		wg.Wait()
		for _, code := range codes {
			// Those that come when it is already over could not be written.
			require.Contains(s.t, []int32{tp.StatusConnClosed, tp.StatusWriteFailed}, code)
		}
		return last
	}
}

// Whatever way the network falls silent, every pull ends: those that were sent
// into it and those that only wait, of both sides. Sessions elsewhere live.
func TestPartition(t *testing.T) {
	if !namespaced(t) {
		return
	}
	for name, cut := range netns.Cuts() {
		// The pull was acknowledged and nothing is sent any more.
		t.Run(name+", idle", func(t *testing.T) {
			t.Parallel()
			s := newSides(t)
			require.NoError(t, cut(s.net))
			start := time.Now()
			client, server := s.end(start)
			t.Logf("FIGURE %s, idle: client's pull ended after %v, server's after %v", name, client, server)
			require.Less(t, client, promised()+slack)
			require.Less(t, server, promised()+slack)
			s.requireOthersLive()
		})
		// Pulls are sent after the cut.
		t.Run(name+", unacknowledged", func(t *testing.T) {
			t.Parallel()
			s := newSides(t)
			require.NoError(t, cut(s.net))
			start := time.Now()
			fromClient, fromServer := s.pulls(start, s.sess, 10), s.pulls(start, s.back, 10)
			client, server := fromClient(), fromServer()
			t.Logf("FIGURE %s, unacknowledged: client's pulls ended after %v, server's after %v", name,
				client, server)
			require.Less(t, client, promised()+slack)
			require.Less(t, server, promised()+slack)
			s.requireOthersLive()
		})
	}
}

// With the plugin heartbeat, and nothing else that notices, every pull ends within one interval more than may
// be missed, and the client dials again.
func TestPartitionWithHeartbeat(t *testing.T) {
	if !namespaced(t) {
		return
	}
	every := 250 * time.Millisecond
	if *full {
		every = 2 * time.Second
	}
	for name, cut := range netns.Cuts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := &tp.PeerConfig{KeepAlive: -1, UserTimeout: -1, Redial: &tp.Redial{}}
			s := newSidesWith(t, cfg, func() tp.Plugin {
				return heartbeat.New(heartbeat.Every(every), heartbeat.Misses(3))
			})
			require.NoError(t, cut(s.net))
			start := time.Now()
			fromClient, fromServer := s.pulls(start, s.sess, 10), s.pulls(start, s.back, 10)
			client, server := fromClient(), fromServer()
			again := (<-s.dials).Sub(start)
			t.Logf("FIGURE %s, heartbeat %v x 3: client's pulls ended after %v, server's after %v, and the "+
				"client dialled again after %v", name, every, client, server, again)
			require.Less(t, client, 4*every+slack)
			require.Less(t, server, 4*every+slack)
			require.Less(t, again, 4*every+slack)
			s.requireOthersLive()
		})
	}
}

// A server whose process is stopped looks as one behind a silent network does, but that its kernel still
// acknowledges and accepts: with the plugin heartbeat the pulls end in time too, and when the process goes on
// the session is connected again.
func TestStoppedServer(t *testing.T) {
	if os.Getenv(stoppedServer) != "" {
		serveUntilStdinEnds()
		return
	}
	every := 250 * time.Millisecond
	if *full {
		every = 2 * time.Second
	}
	server, addr := child.Start(t, []string{stoppedServer + "=1"}, "-test.run=^TestStoppedServer$")
	dials := make(chan time.Time, 10)
	cli := tp.NewPeer(&tp.PeerConfig{KeepAlive: -1, UserTimeout: -1, Redial: &tp.Redial{},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			select {
			case dials <- time.Now():
			default:
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}}, heartbeat.New(heartbeat.Every(every), heartbeat.Misses(3)))
	defer cli.Close()
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	<-dials
	require.Nil(t, sess.Pull("/echo", "x", nil).Xerror)
	done := make(chan *tp.PullCmd, 20)
	for range 10 {
		sess.GoPull("/wait", "", nil, done)
	}
	require.Nil(t, sess.Pull("/echo", "x", nil).Xerror)
	require.NoError(t, server.Signal(syscall.SIGSTOP))
	var stopped syscall.WaitStatus
	for err = syscall.EINTR; err == syscall.EINTR; {
		_, err = syscall.Wait4(server.Pid, &stopped, syscall.WUNTRACED, nil)
	}
	require.NoError(t, err)
	require.True(t, stopped.Stopped())
	goOn := sync.OnceFunc(func() { _ = server.Signal(syscall.SIGCONT) })
	defer goOn()
	start := time.Now()
	for range 10 {
		sess.GoPull("/echo", "x", nil, done)
	}
	for range 20 {
		require.Equal(t, tp.StatusConnClosed, (<-done).Xerror.Code())
	}
	ended := time.Since(start)
	again := (<-dials).Sub(start)
	t.Logf("FIGURE the server is stopped, heartbeat %v x 3: 20 pulls ended after %v, and the client dialled "+
		"again after %v", every, ended, again)
	require.Less(t, ended, 4*every+slack)
	require.Less(t, again, 4*every+slack)
	goOn()
	require.Nil(t, sess.Pull("/echo", "x", nil).Xerror, "it waits for a connection")
}

// stoppedServer is set in the environment of the process that is stopped.
const stoppedServer = "TP_PARTITION_STOPPED"

// serveUntilStdinEnds is that process.
func serveUntilStdinEnds() {
	srv := tp.NewPeer(nil)
	release := make(chan struct{})
	tp.HandlePull(srv.PullRouter, "/echo", func(_ tp.PullCtx, s *string) (string, tp.Xerror) {
		return *s, nil
	})
	tp.HandlePull(srv.PullRouter, "/wait", func(tp.PullCtx, *string) (string, tp.Xerror) {
		<-release
		return "", nil
	})
	child.Announce(srv.Serve)
	close(release)
	_ = srv.Close()
}

// What is sent long after the cut, to a connection that was idle until then, begins
// its time anew, and the pulls that have waited until then wait on with it: at most
// twice as long, all in all.
func TestPartitionWithLatePush(t *testing.T) {
	if !namespaced(t) {
		return
	}
	for name, cut := range netns.Cuts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSides(t)
			require.NoError(t, cut(s.net))
			start := time.Now()
			after := config().KeepAlive * 3 / 2 // after the first probe
			if after == 0 {
				after = 22 * time.Second
			}
			late := time.AfterFunc(after, func() { _ = s.sess.Push("/late", "") })
			defer late.Stop()
			took, _ := s.end(start)
			t.Logf("FIGURE %s, a push %v after the cut: the pull ended after %v", name, after, took)
			require.Less(t, took, 2*promised()+slack)
			s.requireOthersLive()
		})
	}
}

// A server has forgotten the connection while the network was cut, as after a
// crash. When the network is back the first pull meets a reset, and all end.
func TestResetAfterPartition(t *testing.T) {
	if !namespaced(t) {
		return
	}
	s := newSides(t)
	require.NoError(t, s.net.Lose())
	require.NoError(t, setLinger0(s.back))
	require.NoError(t, s.back.Close()) // its reset is lost
	select {
	case <-s.sess.Done():
		t.Fatal("the client cannot know yet")
	default:
	}
	require.NoError(t, s.net.Heal())
	start := time.Now()
	took := s.pulls(start, s.sess, 10)()
	<-s.sess.Done()
	t.Logf("FIGURE reset after a partition: 10 pulls ended after %v", took)
	require.Less(t, took, time.Second+slack)
	s.requireOthersLive()
}

// Without any namespace: a connection that is reset ends every pull of both sides.
func TestResetOnLoopback(t *testing.T) {
	for _, bySide := range []string{"client", "server"} {
		cli, srv := tp.NewPeer(config()), tp.NewPeer(config())
		release, arrived := make(chan struct{}), make(chan *tp.Session, 1000)
		for _, p := range []*tp.Peer{cli, srv} {
			tp.HandlePull(p.PullRouter, "/wait", func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
				arrived <- ctx.Session()
				<-release
				return "", nil
			})
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		served := make(chan error)
		go func() { served <- srv.Serve(ln) }()
		sess, err := cli.Dial(ln.Addr().String())
		require.NoError(t, err)
		done := make(chan *tp.PullCmd, 200)
		sess.GoPull("/wait", "", nil, done)
		back := <-arrived
		for range 100 {
			back.GoPull("/wait", "", nil, done)
			<-arrived
			if sess.GoPull("/wait", "", nil, done); len(done) == 0 {
				<-arrived
			}
		}
		resetting := map[string]*tp.Session{"client": sess, "server": back}[bySide]
		require.NoError(t, setLinger0(resetting))
		start := time.Now()
		require.NoError(t, resetting.Close())
		for range 201 {
			require.Equal(t, tp.StatusConnClosed, (<-done).Xerror.Code())
		}
		took := time.Since(start)
		t.Logf("FIGURE reset by the %s: 201 pulls ended after %v", bySide, took)
		require.Less(t, took, time.Second+slack)
		close(release)
		require.NoError(t, cli.Close())
		require.NoError(t, srv.Close())
		require.NoError(t, <-served)
	}
}

// setLinger0 has the kernel send a reset when the session closes its connection.
func setLinger0(sess *tp.Session) (err error) {
	control := sess.Socket().Control(func(fd uintptr) {
		err = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER,
			&syscall.Linger{Onoff: 1})
	})
	return errors.Join(control, err)
}

// The kernel is told when to give up, on both sides; a negative value leaves it
// alone.
func TestSocketOptions(t *testing.T) {
	const tcpUserTimeout = 18
	option := func(sess *tp.Session, level, name int) (v int) {
		var err error
		require.NoError(t, sess.Socket().Control(func(fd uintptr) {
			v, err = syscall.GetsockoptInt(int(fd),
				level, name)
		}))
		require.NoError(t, err)
		return v
	}
	for _, c := range []struct {
		cfg  tp.PeerConfig
		want [5]int // on, idle, interval, count, user timeout
	}{
		{tp.PeerConfig{}, [5]int{1, 15, 5, 3, 30_000}},
		{tp.PeerConfig{KeepAlive: time.Second, UserTimeout: 1500 * time.Millisecond}, [5]int{1, 1, 1, 3,
			1500}},
		{tp.PeerConfig{KeepAlive: -1, UserTimeout: -1}, [5]int{0, -1, -1, -1, 0}},
	} {
		cli, srv := tp.NewPeer(&c.cfg), tp.NewPeer(&c.cfg)
		arrived := make(chan *tp.Session, 1)
		tp.HandlePull(srv.PullRouter, "/hello", func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
			arrived <- ctx.Session()
			return "", nil
		})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		served := make(chan error)
		go func() { served <- srv.Serve(ln) }()
		sess, err := cli.Dial(ln.Addr().String())
		require.NoError(t, err)
		require.Nil(t, sess.Pull("/hello", "", nil).Xerror)
		for side, s := range map[string]*tp.Session{"client": sess, "server": <-arrived} {
			for i, o := range [][2]int{
				{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE}, {syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE},
				{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL}, {syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT},
				{syscall.IPPROTO_TCP, tcpUserTimeout},
			} {
				if c.want[i] >= 0 {
					require.Equal(t, c.want[i], option(s, o[0], o[1]), "%s, option %d", side, i)
				}
			}
		}
		require.NoError(t, cli.Close())
		require.NoError(t, srv.Close())
		require.NoError(t, <-served)
	}
}
