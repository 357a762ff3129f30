package partition

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/heartbeat"
)

var full = flag.Bool("partition", false,
	"take the default timeouts, which last half a minute, not those of a second")

// slack is what a busy machine may add to a time that is promised.
const slack = 5 * time.Second

// inNamespace is set in the environment of the child process that runs in
// namespaces of its own; noNamespace is what it exits with if it cannot make more.
const (
	inNamespace = "TP_PARTITION_CHILD"
	noNamespace = 77
)

func TestMain(m *testing.M) {
	if os.Getenv("TP_PARTITION_LOG") == "" {
		tp.SetLogLevel(tp.LevelOff)
	}
	flag.Parse()
	if os.Getenv(inNamespace) != "" {
		if err := tryNetwork(); err != nil {
			fmt.Println(err)
			os.Exit(noNamespace)
		}
	}
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

// A space is a network namespace. It belongs to a thread: sockets that are made
// there stay in it, whoever uses them afterwards.
type space struct {
	tid  int
	jobs chan func()
}

func newSpace() (*space, error) {
	s := &space{jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		s.tid = syscall.Gettid()
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		ready <- err
		if err == nil {
			for job := range s.jobs {
				job()
			}
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	return s, nil
}

// do runs f on the thread of the namespace.
func (s *space) do(f func()) {
	done := make(chan struct{})
	s.jobs <- func() { defer close(done); f() }
	<-done
}

// run runs programs in the namespace, each given as one line.
func (s *space) run(lines ...string) error {
	for _, line := range lines {
		var out []byte
		var err error
		args := strings.Fields(line)
		s.do(func() { out, err = exec.Command(args[0], args[1:]...).CombinedOutput() })
		if err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}

// A network is a client's and a server's namespace with two cables between them:
// 10.0.0.1 to 10.0.0.2, which tests cut, and 10.0.1.1 to 10.0.1.2, which they do
// not.
type network struct{ client, server *space }

// Nobody has this hardware address: what is sent there is lost without a word.
const (
	clientMAC, serverMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
	nobodysMAC           = "02:00:00:00:00:99"
)

func newNetwork() (*network, error) {
	client, err := newSpace()
	if err != nil {
		return nil, err
	}
	server, err := newSpace()
	if err != nil {
		close(client.jobs)
		return nil, err
	}
	n := &network{client, server}
	err = errors.Join(
		client.run(
			fmt.Sprintf("ip link add eth0 address %s type veth peer name eth0 address %s netns %d", clientMAC,
				serverMAC, server.tid),
			fmt.Sprintf("ip link add eth1 type veth peer name eth1 netns %d", server.tid),
			"ip addr add 10.0.0.1/24 dev eth0", "ip addr add 10.0.1.1/24 dev eth1", "ip link set eth0 up",
			"ip link set eth1 up"),
		server.run("ip addr add 10.0.0.2/24 dev eth0", "ip addr add 10.0.1.2/24 dev eth1",
			"ip link set eth0 up", "ip link set eth1 up"),
	)
	if err == nil {
		err = n.heal()
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *network) close() { close(n.client.jobs); close(n.server.jobs) }

// loseFromClient and loseFromServer lose what that side sends.
func (n *network) loseFromClient() error {
	return n.client.run("ip neigh replace 10.0.0.2 lladdr " + nobodysMAC + " dev eth0 nud permanent")
}

func (n *network) loseFromServer() error {
	return n.server.run("ip neigh replace 10.0.0.1 lladdr " + nobodysMAC + " dev eth0 nud permanent")
}

func (n *network) lose() error { return errors.Join(n.loseFromClient(), n.loseFromServer()) }

func (n *network) heal() error {
	return errors.Join(
		n.client.run("ip neigh replace 10.0.0.2 lladdr "+serverMAC+" dev eth0 nud permanent"),
		n.server.run("ip neigh replace 10.0.0.1 lladdr "+clientMAC+" dev eth0 nud permanent"))
}

// cuts are the ways in which the first cable is cut.
func cuts() map[string]func(*network) error {
	all := map[string]func(*network) error{
		"link down at the client": func(n *network) error { return n.client.run("ip link set eth0 down") },
		"link down at the server": func(n *network) error { return n.server.run("ip link set eth0 down") },
		"packets lost":            (*network).lose,
		"client's packets lost":   (*network).loseFromClient,
		"server's packets lost":   (*network).loseFromServer,
	}
	if _, err := exec.LookPath("nft"); err == nil {
		all["packets dropped by nftables"] = func(n *network) error {
			return n.client.run("nft add table ip t",
				"nft add chain ip t in { type filter hook input priority 0 ; }",
				"nft add rule ip t in iif eth0 drop",
				"nft add chain ip t out { type filter hook output priority 0 ; }",
				"nft add rule ip t out oif eth0 drop")
		}
	}
	return all
}

// tryNetwork says why there can be no network; nil means that there can.
func tryNetwork() error {
	n, err := newNetwork()
	if err == nil {
		n.close()
	}
	return err
}

// namespaced runs the test that calls it in a child process with namespaces of its
// own, as root there, and reports false in the parent, where the caller returns.
func namespaced(t *testing.T) bool {
	if os.Getenv(inNamespace) != "" {
		return true
	}
	var why string
	for _, flags := range []uintptr{syscall.CLONE_NEWNET, syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER} {
		args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.parallel=100", "-test.timeout=3m"}
		if *full {
			args = append(args, "-partition")
		}
		cmd := exec.Command(os.Args[0], args...)
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
		if flags&syscall.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err == nil || errors.As(err, &exit) && exit.ExitCode() != noNamespace {
			t.Logf("%s", out)
			require.NoError(t, err)
			return false
		}
		why += fmt.Sprintf("; %v: %s", err, out)
	}
	t.Logf("NOT TESTED: no network namespaces can be made here%s", why)
	return false
}

// sides are two peers on a network, and what they have to do with each other.
type sides struct {
	t          *testing.T
	net        *network
	cli, srv   *tp.Peer
	sess, back *tp.Session // over the cable that is cut: the client's and the server's
	good       *tp.Session // over the other
	// waits and waitsBack are in flight, acknowledged and never answered.
	waits, waitsBack *tp.PullCmd
}

func newSides(t *testing.T) *sides { return newSidesWith(t, config(), nil) }

// newSidesWith is newSides with another configuration, and a plugin for each peer; nil for none.
func newSidesWith(t *testing.T, cfg *tp.PeerConfig, plugin func() tp.Plugin) *sides {
	newPeer := func() *tp.Peer {
		if plugin == nil {
			return tp.NewPeer(cfg)
		}
		return tp.NewPeer(cfg, plugin())
	}
	n, err := newNetwork()
	require.NoError(t, err)
	t.Cleanup(n.close)
	s := &sides{t: t, net: n, cli: newPeer(), srv: newPeer()}
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
	n.server.do(func() { ln, err = net.Listen("tcp4", "0.0.0.0:0") })
	require.NoError(t, err)
	served := make(chan error)
	go func() { served <- s.srv.Serve(ln) }()
	t.Cleanup(func() {
		close(release)
		_, _ = s.cli.Close(), s.srv.Close()
		<-served
	})
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	n.client.do(func() { s.sess, err = s.cli.Dial("10.0.0.2:" + port) })
	require.NoError(t, err)
	n.client.do(func() { s.good, err = s.cli.Dial("10.0.1.2:" + port) })
	require.NoError(t, err)
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
	for name, cut := range cuts() {
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
// be missed.
func TestPartitionWithHeartbeat(t *testing.T) {
	if !namespaced(t) {
		return
	}
	every := 250 * time.Millisecond
	if *full {
		every = 2 * time.Second
	}
	for name, cut := range cuts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := &tp.PeerConfig{KeepAlive: -1, UserTimeout: -1}
			s := newSidesWith(t, cfg, func() tp.Plugin {
				return heartbeat.New(heartbeat.Every(every), heartbeat.Misses(3))
			})
			require.NoError(t, cut(s.net))
			start := time.Now()
			fromClient, fromServer := s.pulls(start, s.sess, 10), s.pulls(start, s.back, 10)
			client, server := fromClient(), fromServer()
			t.Logf("FIGURE %s, heartbeat %v x 3: client's pulls ended after %v, server's after %v", name,
				every, client, server)
			require.Less(t, client, 4*every+slack)
			require.Less(t, server, 4*every+slack)
			s.requireOthersLive()
		})
	}
}

// What is sent long after the cut, to a connection that was idle until then, begins
// its time anew, and the pulls that have waited until then wait on with it: at most
// twice as long, all in all.
func TestPartitionWithLatePush(t *testing.T) {
	if !namespaced(t) {
		return
	}
	for name, cut := range cuts() {
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
	require.NoError(t, s.net.lose())
	require.NoError(t, setLinger0(s.back))
	require.NoError(t, s.back.Close()) // its reset is lost
	select {
	case <-s.sess.Done():
		t.Fatal("the client cannot know yet")
	default:
	}
	require.NoError(t, s.net.heal())
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
