package tp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/errno"
	"github.com/henrylee2cn/teleport/internal/pipe"
)

// testResolver is a resolver that tells of what the test gives it.
type testResolver struct {
	mu   sync.Mutex // guards list and news
	list []Server
	err  error
	news chan struct{} // closed when there is another list
}

func servers(list ...Server) *testResolver {
	return &testResolver{list: list, news: make(chan struct{})}
}

func (r *testResolver) set(list ...Server) { r.change(list, nil) }

func (r *testResolver) fail(err error) { r.change(nil, err) }

func (r *testResolver) change(list []Server, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list, r.err = list, err
	close(r.news)
	r.news = make(chan struct{})
}

func (r *testResolver) Resolve(ctx context.Context, update func([]Server)) error {
	for {
		r.mu.Lock()
		list, err, news := r.list, r.err, r.news
		r.mu.Unlock()
		if err != nil {
			return err
		}
		update(list)
		select {
		case <-news:
		case <-ctx.Done():
			return nil
		}
	}
}

// newTestCluster makes a cluster that is closed at the test's end.
func newTestCluster(t testing.TB, peer *Peer, r Resolver, option ...ClusterOption) *Cluster {
	t.Helper()
	c := NewCluster(peer, r, option...)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// testNet is servers in memory, and the connections to them. It is for one bubble of synctest.
type testNet struct {
	t       testing.TB
	mu      sync.Mutex // guards the fields below
	servers map[string]*Peer
	conns   map[string][]net.Conn // the servers' ends
	dials   map[string]int
}

func newTestNet(t testing.TB) *testNet {
	return &testNet{t: t, servers: map[string]*Peer{}, conns: map[string][]net.Conn{},
		dials: map[string]int{}}
}

// serve makes a server with the address. It serves what each server of a test has.
func (n *testNet) serve(addr string, cfg *PeerConfig, more ...func(p *Peer)) *Peer {
	p := newTestPeer(n.t, cfg)
	HandlePull(p.PullRouter, "/name", func(PullCtx, *int) (string, Xerror) { return addr, nil })
	for _, f := range more {
		f(p)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers[addr] = p
	return p
}

// stop shuts the server down as Shutdown does. It cannot be dialled any more.
func (n *testNet) stop(addr string) {
	n.mu.Lock()
	p := n.servers[addr]
	delete(n.servers, addr)
	n.mu.Unlock()
	require.NoError(n.t, p.Shutdown(n.t.Context()))
}

// kill cuts the server's connections. It cannot be dialled any more.
func (n *testNet) kill(addr string) {
	n.mu.Lock()
	delete(n.servers, addr)
	n.mu.Unlock()
	n.cut(addr)
}

// cut cuts the server's connections.
func (n *testNet) cut(addr string) {
	n.mu.Lock()
	conns := n.conns[addr]
	delete(n.conns, addr)
	n.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// dialled returns how often the server was dialled.
func (n *testNet) dialled(addr string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[addr]
}

func (n *testNet) dial(_ context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials[addr]++
	p := n.servers[addr]
	if p == nil {
		return nil, fmt.Errorf("dialling %s: %w", addr, errno.Refused)
	}
	near, far := pipe.New(pipe.Options{})
	n.conns[addr] = append(n.conns[addr], far)
	go func() { _, _ = p.ServeConn(far) }()
	return near, nil
}

// client makes a peer that dials the servers.
func (n *testNet) client(cfg *PeerConfig, plugins ...Plugin) *Peer {
	if cfg == nil {
		cfg = new(PeerConfig)
	}
	cfg.DialContext = n.dial
	return newTestPeer(n.t, cfg, plugins...)
}

// inBubble runs the test with a net of its own, and closes what the test has made before the bubble ends.
func inBubble(t *testing.T, f func(t *testing.T, n *testNet)) {
	synctest.Test(t, func(t *testing.T) { f(t, newTestNet(t)) })
}

// at makes servers whose ids are their addresses.
func at(addrs ...string) (list []Server) {
	for _, a := range addrs {
		list = append(list, Server{Addr: a})
	}
	return list
}

// tally makes pulls and counts which servers have answered.
func tally(t testing.TB, c *Cluster, calls int, setting ...PacketSetting) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for range calls {
		name, err := Call[string](t.Context(), c, "/name", 1, setting...)
		require.NoError(t, err)
		seen[name]++
	}
	return seen
}

// connected returns the ids of the servers that are.
func connected(c *Cluster) (ids []string) {
	for _, s := range c.Servers() {
		if s.Connected {
			ids = append(ids, s.Id)
		}
	}
	return ids
}

// requireIdle shows that no call is counted any more.
func requireIdle(t testing.TB, c *Cluster) {
	t.Helper()
	for _, s := range c.Servers() {
		require.Zero(t, s.Outstanding, s.Id)
	}
}

// Over TCP, each server gets its share, by all ways to call.
func TestClusterCalls(t *testing.T) {
	r := servers()
	var list []Server
	pushed := make(chan string, 100)
	for _, name := range []string{"a", "b", "c"} {
		p := newTestPeer(t, nil)
		HandlePull(p.PullRouter, "/name", func(PullCtx, *int) (string, Xerror) { return name, nil })
		HandlePush(p.PushRouter, "/note", func(PushCtx, *int) { pushed <- name })
		HandleStream(p.PullRouter, "/stream", func(_ PullCtx, s *Stream[string, int]) Xerror {
			for range s.All() {
				if err := s.Send(&name); err != nil {
					return nil
				}
			}
			return nil
		})
		list = append(list, Server{Id: name, Addr: serve(t, p)})
	}
	c := newTestCluster(t, newTestPeer(t, nil), r, RoundRobin())
	r.set(list...)
	for len(connected(c)) < 3 { // each change of which is told by the fleet
		<-c.fleet.choices.Load().changed
	}
	require.Len(t, tally(t, c, 300), 3)

	done := make(chan *PullCmd, 30)
	replies := make([]string, 30)
	for i := range replies {
		require.Equal(t, (<-chan *PullCmd)(done), c.GoPull("/name", 1, &replies[i], done).Done())
	}
	for range replies {
		require.Nil(t, (<-done).Xerror)
	}
	require.NotContains(t, replies, "")

	note := NewNote[int]("/note")
	got := map[string]int{}
	for range 60 {
		require.NoError(t, note.Push(t.Context(), c, 1))
		got[<-pushed]++
	}
	require.Len(t, got, 3)

	s, err := OpenStream[int, string](t.Context(), c, "/stream")
	require.NoError(t, err)
	first := ""
	for i := range 10 {
		require.NoError(t, s.Send(&i))
		name, err := s.Recv()
		require.NoError(t, err)
		if first == "" {
			first = *name
		}
		require.Equal(t, first, *name, "a stream stays where it is")
	}
	for _, state := range c.Servers() {
		want := 0
		if state.Id == first {
			want = 1
		}
		require.Equal(t, want, state.Outstanding)
		require.NotEmpty(t, state.RemoteIp)
	}
	require.NoError(t, s.Close())
	require.Equal(t, StatusNotFound, c.Pull("/nosuch", 1, nil).Xerror.Code())
}

func TestClusterMistakes(t *testing.T) {
	peer := newTestPeer(t, nil)
	for name, tc := range map[string]struct {
		want string
		f    func()
	}{
		"peer":     {"tp: NewCluster: the peer is nil.", func() { NewCluster(nil, servers()) }},
		"resolver": {"tp: NewCluster: the resolver is nil.", func() { NewCluster(peer, nil) }},
		"option": {"tp: NewCluster: option 2 of 2 is nil.", func() {
			NewCluster(peer, servers(), RoundRobin(), nil)
		}},
		"bound": {"tp: ConsistentHash(1): a bound greater than 1 was expected, 1.25 for example.",
			func() { ConsistentHash(1) }},
		"zone":   {"tp: InZone: the zone is empty.", func() { InZone("") }},
		"subset": {"tp: Subset(0): a size of 1 or more was expected.", func() { Subset(0) }},
		"idempotent": {`tp: Idempotent: "a" does not begin with a slash; a path such as /math/add was ` +
			"expected, or one such as /math/ for all below it.", func() { Idempotent("/b", "a") }},
		"hedge": {"tp: Hedge(-1ns): a time that is not negative was expected.", func() { Hedge(-1) }},
		"wait": {"tp: WaitForServer(-1s): a time that is not negative was expected.",
			func() { WaitForServer(-time.Second) }},
		"share": {"tp: Eject: MaxShare is 2, a number from 0 to 1 was expected.",
			func() { Eject(Ejection{MaxShare: 2}) }},
		"base": {"tp: Eject: Base is 2s and Max is 1s, times that are not negative were expected, and Max " +
			"not less than Base.", func() { Eject(Ejection{Base: 2 * time.Second, Max: time.Second}) }},
		"excess": {"tp: Eject: Excess is not a number.", func() { Eject(Ejection{Excess: math.NaN()}) }},
		"calls": {"tp: Eject: MinCalls is -1, a number that is not negative was expected.",
			func() { Eject(Ejection{MinCalls: -1}) }},
		"budget": {"tp: RetryBudget(-1, 0): two numbers that are not negative were expected.",
			func() { RetryBudget(-1, 0) }},
	} {
		t.Run(name, func(t *testing.T) { require.PanicsWithValue(t, tc.want, tc.f) })
	}
}

// The first call needs no ceremony: it waits until there is a server, and no longer than it may.
func TestClusterWaitsForServer(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		r := servers()
		c := newTestCluster(t, n.client(nil), r)
		start := time.Now()
		time.AfterFunc(3*time.Second, func() {
			n.serve("a", nil)
			r.set(at("a")...)
		})
		require.Equal(t, map[string]int{"a": 1}, tally(t, c, 1))
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

// How long a call waits for a server is bounded in several ways, and the error says what is known of them.
func TestClusterWithoutServer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		option []ClusterOption
		cfg    *PeerConfig
		ctx    time.Duration
		took   time.Duration
		code   int32
	}{
		{"default", nil, nil, 0, 5 * time.Second, StatusConnClosed},
		{"at once", []ClusterOption{WaitForServer(0)}, nil, 0, 0, StatusConnClosed},
		{"longer", []ClusterOption{WaitForServer(time.Minute)}, nil, 0, time.Minute, StatusConnClosed},
		{"pull timeout", nil, &PeerConfig{DefaultPullTimeout: time.Second}, 0, time.Second,
			StatusConnClosed},
		{"context", nil, nil, time.Second, time.Second, StatusDeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				var cfg PeerConfig
				if tc.cfg != nil {
					cfg = *tc.cfg
				}
				c := newTestCluster(t, n.client(&cfg), servers(at("a")...), tc.option...)
				ctx := t.Context()
				if tc.ctx > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.ctx)
					defer cancel()
				}
				synctest.Wait()
				start := time.Now()
				cmd := c.PullContext(ctx, "/name", 1, new(string), WithMeta("k", "v"))
				require.NotNil(t, cmd.Xerror)
				require.Equal(t, tc.took, time.Since(start))
				require.Equal(t, tc.code, cmd.Xerror.Code(), "%v", cmd.Xerror)
				require.True(t, NotRun(cmd.Xerror))
				require.Equal(t, tc.code == StatusConnClosed, isRetryable(cmd.Xerror))
				require.Contains(t, cmd.Xerror.Text(), "servers: 1 known, 0 connected, 0 ejected; server a:")
				require.Contains(t, cmd.Xerror.Text(), "refused")
				require.Equal(t, "no server", cmd.Session().Id())
				require.Equal(t, "/name", cmd.Output().Header.Uri)
				require.Equal(t, "v", cmd.Output().Header.Meta["k"])
				require.Nil(t, cmd.Meta())
				require.Empty(t, cmd.Input().Header.StatusCode)
				require.NotNil(t, cmd.Public())
				start = time.Now()
				require.Equal(t, tc.code, (<-c.GoPullContext(ctx, "/name", 1, nil, nil).Done()).Xerror.Code())
				if tc.ctx == 0 {
					require.Equal(t, tc.took, time.Since(start))
				}
				require.NotNil(t, c.PushContext(ctx, "/note", 1))
				_, err := OpenStream[int, int](ctx, c, "/stream")
				require.Error(t, err)
				require.True(t, NotRun(err))
			})
		})
	}
}

// The log says what is wrong with each resolver, also if another one has failed a moment ago.
func TestClustersSayWhatIsWrong(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		log := captureLog(t, LevelWarn)
		peer := n.client(nil)
		for _, why := range []string{"one is away", "another is away"} {
			newTestCluster(t, peer, resolverFunc(func(context.Context, func([]Server)) error {
				return errors.New(why)
			}))
		}
		time.Sleep(time.Minute)
		text := strings.Join(log.take(), "\n")
		for _, why := range []string{"one is away", "another is away"} {
			require.Equal(t, 1, strings.Count(text, why+"; no servers are known yet"), text)
		}
	})
}

func isRetryable(err error) bool {
	_, ok := Retryable(err)
	return ok
}

// What is wrong in a list is left out, and a list of nothing but mistakes changes nothing.
func TestClusterChecksServers(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		n.serve("a", nil)
		n.serve("b", nil)
		r := servers(Server{Id: "1", Addr: "a"}, Server{Id: "1", Addr: "b"}, Server{Id: "2"},
			Server{Id: "3", Addr: "b", Weight: -1}, Server{Id: "4", Addr: "b", Routes: []string{"x"}},
			Server{Id: "5", Addr: "b,,a"},
			Server{Id: "6", Addr: "b", Weight: math.MaxInt}, Server{Addr: "b", Zone: "z"})
		c := newTestCluster(t, n.client(nil), r)
		synctest.Wait()
		require.Equal(t, []string{"1", "b"}, connected(c))
		require.Equal(t, Server{Id: "b", Addr: "b", Zone: "z", Weight: DefaultWeight}, c.Servers()[1].Server)
		r.set(Server{Id: "2"})
		synctest.Wait()
		require.Equal(t, []string{"1", "b"}, connected(c))
		r.set()
		synctest.Wait()
		require.Empty(t, c.Servers())
	})
}

// A resolver that fails, or panics, is tried again with growing pauses, and the servers stay.
func TestClusterKeepsServers(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		n.serve("a", nil)
		r := servers(at("a")...)
		var mu sync.Mutex // guards tries
		var tries []time.Duration
		start := time.Now()
		resolve := func(ctx context.Context, up func([]Server)) error {
			mu.Lock()
			tries = append(tries, time.Since(start))
			panics := len(tries) == 3
			mu.Unlock()
			if panics {
				panic("no")
			}
			return r.Resolve(ctx, up)
		}
		c := newTestCluster(t, n.client(nil), resolverFunc(resolve))
		require.Equal(t, map[string]int{"a": 10}, tally(t, c, 10))
		r.fail(errors.New("it is away"))
		time.Sleep(5 * time.Minute)
		require.Equal(t, map[string]int{"a": 10}, tally(t, c, 10))
		mu.Lock()
		require.Greater(t, len(tries), 8)
		require.Less(t, len(tries), 25, "%v", tries)
		require.Less(t, tries[1], time.Second)
		mu.Unlock()
		require.Contains(t, c.fleet.String(),
			"servers: 1 known, 1 connected, 0 ejected; the resolver: it is away")
		n.serve("b", nil)
		r.set(at("a", "b")...)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"a", "b"}, connected(c))
	})
}

type resolverFunc func(ctx context.Context, update func([]Server)) error

func (f resolverFunc) Resolve(ctx context.Context, update func([]Server)) error {
	return f(ctx, update)
}

// Servers come and go. A call in flight to one that is taken away comes to its end.
func TestClusterFollowsResolver(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		release := make(chan struct{})
		slow := func(p *Peer) {
			HandlePull(p.PullRouter, "/slow", func(PullCtx, *int) (string, Xerror) {
				<-release
				return "slow", nil
			})
		}
		a := n.serve("a", nil, slow)
		n.serve("b", nil)
		r := servers(at("a")...)
		cli := n.client(nil)
		c := newTestCluster(t, cli, r)
		require.NoError(t, c.Ready(t.Context()))
		cmd := c.GoPull("/slow", 1, new(string), nil)
		synctest.Wait()
		r.set(at("b")...)
		time.Sleep(20 * time.Second)
		require.Equal(t, map[string]int{"b": 10}, tally(t, c, 10))
		require.Equal(t, 1, a.CountSession(), "a call is in flight")
		close(release)
		require.Nil(t, (<-cmd.Done()).Xerror)
		time.Sleep(2 * time.Second)
		require.Zero(t, a.CountSession())
		require.Equal(t, 1, cli.CountSession())

		// another address under the same id is another server
		r.set(Server{Id: "b", Addr: "a"})
		time.Sleep(time.Second)
		require.Equal(t, map[string]int{"a": 10}, tally(t, c, 10))
		// the same server with another weight keeps its connection
		before := n.dialled("a")
		r.set(Server{Id: "b", Addr: "a", Weight: 7, Version: "2"})
		synctest.Wait()
		require.Equal(t, before, n.dialled("a"))
		require.Equal(t, 7, c.Servers()[0].Weight)
		require.Equal(t, "2", c.Servers()[0].Version)
	})
}

// A call that never ends does not keep a server's connection for ever that was taken away.
func TestClusterLetsServersGo(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		a := n.serve("a", nil, func(p *Peer) {
			HandlePull(p.PullRouter, "/never", func(ctx PullCtx, _ *int) (string, Xerror) {
				<-ctx.Context().Done()
				return "", nil
			})
		})
		r := servers(at("a")...)
		c := newTestCluster(t, n.client(nil), r)
		require.NoError(t, c.Ready(t.Context()))
		cmd := c.GoPull("/never", 1, new(string), nil)
		synctest.Wait()
		r.set()
		start := time.Now()
		require.Equal(t, StatusConnClosed, (<-cmd.Done()).Xerror.Code())
		require.Equal(t, retireTime, time.Since(start))
		synctest.Wait()
		require.Zero(t, a.CountSession())
	})
}

// Close ends the cluster and nothing else of its peer.
func TestClusterClose(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		a := n.serve("a", nil)
		cli := n.client(nil)
		own, err := cli.Dial("a")
		require.NoError(t, err)
		c := newTestCluster(t, cli, servers(at("a", "b")...))
		require.NoError(t, c.Ready(t.Context()))
		synctest.Wait()
		require.Equal(t, 2, a.CountSession())
		require.NoError(t, c.Close())
		require.NoError(t, c.Close())
		synctest.Wait()
		require.Equal(t, 1, a.CountSession())
		x := c.Pull("/name", 1, nil).Xerror
		require.ErrorIs(t, x, ErrClusterClosed)
		require.True(t, NotRun(x))
		require.ErrorIs(t, c.Push("/name", 1), ErrClusterClosed)
		require.ErrorIs(t, c.Ready(t.Context()), ErrClusterClosed)
		require.Nil(t, own.Pull("/name", 1, nil).Xerror)
	})
}

// A cluster ends with its peer, and its calls are a part of the peer's Shutdown.
func TestClusterEndsWithPeer(t *testing.T) {
	for _, how := range []string{"Close", "Shutdown"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				a := n.serve("a", nil, func(p *Peer) {
					HandlePull(p.PullRouter, "/slow", func(PullCtx, *int) (int, Xerror) {
						time.Sleep(time.Second)
						return 1, nil
					})
				})
				cli := n.client(nil)
				c := newTestCluster(t, cli, servers(at("a", "b")...))
				require.NoError(t, c.Ready(t.Context()))
				cmd := c.GoPull("/slow", 1, nil, nil)
				synctest.Wait()
				if how == "Close" {
					require.NoError(t, cli.Close())
					require.NotNil(t, (<-cmd.Done()).Xerror)
				} else {
					require.NoError(t, cli.Shutdown(t.Context()))
					require.Nil(t, (<-cmd.Done()).Xerror)
				}
				x := c.Pull("/name", 1, nil).Xerror
				require.ErrorIs(t, x, ErrPeerClosed)
				require.True(t, NotRun(x))
				require.ErrorIs(t, c.Ready(t.Context()), ErrPeerClosed)
				synctest.Wait()
				require.Zero(t, a.CountSession())
				require.NoError(t, c.Close())
				time.Sleep(time.Second) // the handler ends
			})
		})
	}
}

// A server that is not there is dialled again with pauses, and at once when it has said that it shuts down.
func TestClusterDialsAgain(t *testing.T) {
	for name, redial := range map[string]*Redial{
		"default": nil,
		"redial": {MinBackoff: time.Second, MaxBackoff: time.Second, FailFast: true, Attempts: 1,
			First: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				n.serve("a", nil)
				cli := n.client(&PeerConfig{Redial: redial})
				c := newTestCluster(t, cli, servers(at("a", "b")...), WaitForServer(time.Minute))
				require.NoError(t, c.Ready(t.Context()))
				time.Sleep(time.Hour)
				tries := n.dialled("b")
				require.Greater(t, tries, 360)
				require.Less(t, tries, 10000)
				n.kill("a")
				synctest.Wait()
				require.Empty(t, connected(c))
				require.Error(t, c.Servers()[0].Err)
				n.serve("a", nil)
				tally(t, c, 1)
				time.Sleep(time.Minute)

				// what has the address is a new process by now
				before := n.dialled("a")
				old := n.servers["a"]
				n.serve("a", nil)
				go func() { require.NoError(t, old.Shutdown(t.Context())) }()
				synctest.Wait()
				require.Equal(t, before+1, n.dialled("a"))
				require.Equal(t, []string{"a"}, connected(c))
			})
		})
	}
}

// The hooks and the authentication of the peer hold for the cluster's connections.
func TestClusterHooks(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		var hooks []string
		note := func(name string) Plugin {
			return hookPlugin(name, name, func(interface{}) error { hooks = append(hooks, name); return nil })
		}
		n.serve("a", nil)
		c := newTestCluster(t, n.client(nil, note("PostDial"), note("PostConnect"), note("PreWritePull")),
			servers(at("a")...))
		tally(t, c, 1)
		require.Equal(t, []string{"PostDial", "PostConnect", "PreWritePull"}, hooks)
	})
}
