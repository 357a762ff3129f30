package tp

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/packet"
)

// counting has a server count the calls that it handles, by route. A call that was answered with a number
// that is not 0 has that status.
type counting struct {
	mu     sync.Mutex // guards the fields below
	calls  map[string]int
	answer map[string]Xerror // by server
}

func newCounting() *counting {
	return &counting{calls: map[string]int{}, answer: map[string]Xerror{}}
}

func (n *counting) count(who string) Xerror {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls[who]++
	return n.answer[who]
}

func (n *counting) of(who string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls[who]
}

func (n *counting) set(who string, x Xerror) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answer[who] = x
}

// on serves /count at the server.
func (n *counting) on(who string) func(p *Peer) {
	return func(p *Peer) {
		HandlePull(p.PullRouter, "/count", func(PullCtx, *int) (string, Xerror) {
			x := n.count(who)
			return who, x
		})
	}
}

// What a server refuses goes to another one; what a handler answers does not, whatever it says.
func TestClusterFailover(t *testing.T) {
	ran := NewXerror(StatusServiceUnavailable, "no")
	not := WithNotRun(ran)
	for _, tc := range []struct {
		name   string
		answer Xerror
		option []ClusterOption
		over   bool // it goes to the other server
	}{
		{"refused", not, nil, true},
		{"overloaded", WithNotRun(NewXerror(StatusOverloaded, "no")), nil, true},
		{"refused, no budget", not, []ClusterOption{RetryBudget(0, 0)}, false},
		{"not found", WithNotRun(NewXerror(StatusNotFound, "no")), nil, false},
		{"ran", ran, nil, false},
		{"ran, idempotent", ran, []ClusterOption{Idempotent()}, false},
		{"retry after", WithRetryAfter(NewXerror(777, "no"), time.Second), nil, false},
		{"own", NewXerror(777, "no"), nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				calls := newCounting()
				calls.set("a", tc.answer)
				n.serve("a", nil, calls.on("a"))
				n.serve("b", nil, calls.on("b"))
				c := newTestCluster(t, n.client(nil), servers(at("a", "b")...),
					append(tc.option, RoundRobin(), NoEjection())...)
				synctest.Wait()
				failed := 0
				for range 6 {
					reply := ""
					cmd := c.Pull("/count", 1, &reply)
					g := <-c.GoPull("/count", 1, &reply, nil).Done()
					require.Equal(t, cmd.Xerror == nil, tc.over || cmd.Session().RemoteIp() !=
						c.Servers()[0].RemoteIp)
					for _, x := range []Xerror{cmd.Xerror, g.Xerror} {
						if x != nil {
							failed++
							require.Equal(t, tc.answer.Code(), x.Code())
							require.Equal(t, NotRun(tc.answer), NotRun(x))
							require.False(t, Local(x))
						}
					}
				}
				if tc.over {
					require.Zero(t, failed)
					require.Equal(t, 12, calls.of("b"))
					require.Positive(t, calls.of("a"))
				} else {
					require.Equal(t, 6, failed)
					require.Equal(t, 6, calls.of("b"))
					require.Equal(t, 6, calls.of("a"))
				}
				requireIdle(t, c)
			})
		})
	}
}

// A lost connection fails what was in flight there, unless it is idempotent: nobody knows whether it ran.
func TestClusterServerKilled(t *testing.T) {
	for name, tc := range map[string]struct {
		option  []ClusterOption
		setting []PacketSetting
		safe    bool
	}{
		"not idempotent": {nil, nil, false},
		"route":          {[]ClusterOption{Idempotent("/s/")}, nil, true},
		"other route":    {[]ClusterOption{Idempotent("/s", "/t/")}, nil, false},
		"setting":        {nil, []PacketSetting{WithIdempotent()}, true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				slow := func(p *Peer) {
					HandlePull(p.PullRouter, "/s/slow", func(ctx PullCtx, _ *int) (string, Xerror) {
						time.Sleep(time.Second)
						return "done", nil
					})
				}
				n.serve("a", nil, slow)
				n.serve("b", nil, slow)
				c := newTestCluster(t, n.client(nil), servers(at("a", "b")...),
					append(tc.option, RoundRobin())...)
				synctest.Wait()
				var cmds []*PullCmd
				replies := make([]string, 10)
				for i := range replies {
					cmds = append(cmds, c.GoPull("/s/slow?x", 1, &replies[i], nil, tc.setting...))
				}
				synced := make(chan *PullCmd)
				go func() { synced <- c.Pull("/s/slow", 1, nil, tc.setting...) }()
				time.Sleep(500 * time.Millisecond)
				n.kill("a")
				synctest.Wait()
				require.Equal(t, []string{"b"}, connected(c))
				require.Equal(t, map[string]int{"b": 20}, tally(t, c, 20), "calls avoid it at once")
				failed := 0
				for i, cmd := range cmds {
					<-cmd.Done()
					if cmd.Xerror == nil {
						require.Equal(t, "done", replies[i])
						continue
					}
					failed++
					require.Empty(t, replies[i])
					require.Equal(t, StatusConnClosed, cmd.Xerror.Code())
					require.False(t, NotRun(cmd.Xerror))
					require.True(t, Local(cmd.Xerror))
				}
				if x := (<-synced).Xerror; x != nil {
					failed++
				}
				if tc.safe {
					require.Zero(t, failed)
				} else {
					require.Contains(t, []int{5, 6}, failed)
				}
				requireIdle(t, c)
			})
		})
	}
}

// An idempotent pull that may have run somewhere does not say that it has not, when other servers refuse it.
func TestClusterNeverClaimsNotRun(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		calls := newCounting()
		n.serve("a", nil, func(p *Peer) {
			HandlePull(p.PullRouter, "/count", func(PullCtx, *int) (string, Xerror) {
				calls.count("a")
				go n.kill("a")
				time.Sleep(time.Second)
				return "", nil
			})
		})
		n.serve("b", nil, calls.on("b"))
		calls.set("b", WithNotRun(NewXerror(StatusOverloaded, "no")))
		c := newTestCluster(t, n.client(nil), servers(at("a", "b")...), RoundRobin())
		synctest.Wait()
		for calls.of("a") == 0 {
			cmd := c.Pull("/count", 1, nil, WithIdempotent())
			require.NotNil(t, cmd.Xerror)
			if calls.of("a") > 0 {
				require.Equal(t, StatusConnClosed, cmd.Xerror.Code(), "%v", cmd.Xerror)
				require.False(t, NotRun(cmd.Xerror))
			}
		}
		require.Positive(t, calls.of("b"))
		time.Sleep(time.Second)
	})
}

// Servers that are restarted one after another lose no call.
func TestClusterRollingRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		var handled atomic.Int64
		work := func(p *Peer) {
			HandlePull(p.PullRouter, "/work", func(_ PullCtx, d *time.Duration) (int, Xerror) {
				handled.Add(1)
				time.Sleep(*d)
				return 1, nil
			})
			HandlePush(p.PushRouter, "/note", func(PushCtx, *int) {})
		}
		all := []string{"a", "b", "c"}
		for _, a := range all {
			n.serve(a, nil, work)
		}
		c := newTestCluster(t, n.client(nil), servers(at(all...)...))
		require.NoError(t, c.Ready(t.Context()))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var calls atomic.Int64
		var failed sync.Map
		for w := range 20 { // 500 a second, with more of them in flight than one at a time
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(w), 1))
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(r.IntN(60)) * time.Millisecond):
					}
					d := time.Duration(r.IntN(20)) * time.Millisecond
					calls.Add(1)
					if x := c.Pull("/work", d, nil).Xerror; x != nil {
						failed.Store(x.Error(), true)
					}
					if x := c.Push("/note", 1); x != nil {
						failed.Store(x.Error(), true)
					}
				}
			})
		}
		for range 2 {
			for _, a := range all {
				time.Sleep(time.Second)
				n.stop(a)
				time.Sleep(time.Second)
				n.serve(a, nil, work)
			}
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, all, connected(c))
		close(stop)
		wg.Wait()
		failed.Range(func(k, _ any) bool { t.Error(k); return true })
		require.Equal(t, calls.Load(), handled.Load(), "none ran twice")
		require.Greater(t, calls.Load(), int64(4000))
		requireIdle(t, c)
	})
}

// When all servers refuse everything, the attempts stay within the budget.
func TestClusterBudget(t *testing.T) {
	for _, tc := range []struct {
		name  string
		share float64
		most  float64
	}{{"a fifth", 0.2, 1.21}, {"none", 0, 1}, {"half", 0.5, 1.51}} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				calls := newCounting()
				for _, a := range []string{"a", "b", "c"} {
					n.serve(a, nil, calls.on("x"))
				}
				calls.set("x", WithNotRun(NewXerror(StatusOverloaded, "no")))
				c := newTestCluster(t, n.client(nil), servers(at("a", "b", "c")...), RetryBudget(tc.share, 0))
				synctest.Wait()
				const made = 2000
				for i := range made {
					x := c.Pull("/count", 1, nil, WithIdempotent()).Xerror
					require.Equal(t, StatusOverloaded, x.Code())
					if i%10 == 0 {
						time.Sleep(10 * time.Millisecond)
					}
				}
				require.LessOrEqual(t, float64(calls.of("x")), tc.most*made)
				require.GreaterOrEqual(t, float64(calls.of("x")), (tc.most-0.05)*made, "it is used")
			})
		})
	}
}

// Routes, weights, keys and zones decide where calls go.
func TestClusterChoices(t *testing.T) {
	run := func(name string, f func(t *testing.T, n *testNet)) {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				for _, a := range []string{"a", "b", "c"} {
					n.serve(a, nil)
				}
				f(t, n)
			})
		})
	}
	run("weight", func(t *testing.T, n *testNet) {
		c := newTestCluster(t, n.client(nil), servers(Server{Addr: "a", Weight: 300}, Server{Addr: "b"},
			Server{Addr: "c"}), RoundRobin())
		synctest.Wait()
		got := tally(t, c, 500)
		require.InDelta(t, 300, got["a"], 2)
		require.InDelta(t, 100, got["b"], 2)
	})
	run("routes", func(t *testing.T, n *testNet) {
		r := servers(Server{Addr: "a", Routes: []string{"/other", "/na"}},
			Server{Addr: "b", Routes: []string{"/x", "/name"}})
		c := newTestCluster(t, n.client(nil), r)
		synctest.Wait()
		require.Equal(t, map[string]int{"b": 50}, tally(t, c, 50))
		r.set(Server{Addr: "a", Routes: []string{"/"}}, Server{Addr: "b", Routes: []string{"/x"}})
		synctest.Wait()
		require.Equal(t, map[string]int{"a": 50}, tally(t, c, 50))
		r.set(Server{Addr: "a", Routes: []string{"/y"}}, Server{Addr: "b", Routes: []string{"/x"}})
		synctest.Wait()
		x := c.Pull("/name?token=secret", 1, nil).Xerror
		require.True(t, NotRun(x))
		require.Contains(t, x.Text(), "no server has the route /name within 5s")
	})
	run("zone", func(t *testing.T, n *testNet) {
		c := newTestCluster(t, n.client(nil), servers(Server{Addr: "a", Zone: "1"},
			Server{Addr: "b", Zone: "1"}, Server{Addr: "c", Zone: "2"}), InZone("1"))
		synctest.Wait()
		tally(t, c, 20) // until the latencies are known
		require.NotContains(t, tally(t, c, 200), "c")
		n.kill("a")
		synctest.Wait()
		require.Equal(t, map[string]int{"b": 200}, tally(t, c, 200))
		n.kill("b")
		synctest.Wait()
		require.Equal(t, map[string]int{"c": 200}, tally(t, c, 200))
	})
	run("key", func(t *testing.T, n *testNet) {
		r := servers(at("a", "b", "c")...)
		cli := n.client(nil)
		c := newTestCluster(t, cli, r, ConsistentHash(2))
		synctest.Wait()
		where := map[string]string{}
		used := map[string]int{}
		for i := range 100 {
			key := "user-" + strconv.Itoa(i)
			for server := range tally(t, c, 5, WithKey(key)) {
				require.Empty(t, where[key], "it stays")
				where[key] = server
				used[server]++
			}
		}
		require.Len(t, used, 3)
		require.Len(t, tally(t, c, 100), 3, "without a key")
		other := newTestCluster(t, cli, r, ConsistentHash(2)) // another client agrees
		synctest.Wait()
		n.stop("b")
		for key, server := range where {
			for _, c := range []*Cluster{c, other} {
				got := tally(t, c, 1, WithKey(key))
				if server != "b" {
					require.Equal(t, map[string]int{server: 1}, got, "only other keys move")
				}
				require.NotContains(t, got, "b")
			}
		}
	})
}

// serveThirty serves at thirty addresses, which it returns.
func (n *testNet) serveThirty() (addrs []string) {
	for i := range 30 {
		addrs = append(addrs, fmt.Sprintf("s%02d", i))
		n.serve(addrs[i], nil)
	}
	return addrs
}

// A server that has taken a place, and is down itself, has nobody in its place when the place is another's
// again.
func TestClusterSubsetWithoutThoseInOthersPlaces(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		addrs := n.serveThirty()
		c := newTestCluster(t, n.client(nil), servers(at(addrs...)...), Subset(5, "client", "7"))
		time.Sleep(time.Second)
		own := connected(c)
		kill := func(addr string) (instead string) {
			before := connected(c)
			n.kill(addr)
			time.Sleep(time.Hour)
			now := connected(c)
			require.Len(t, now, 5)
			for _, s := range before {
				now = slices.DeleteFunc(now, func(other string) bool { return s == other })
			}
			require.Len(t, now, 1)
			return now[0]
		}
		serve := func(addr string) {
			n.serve(addr, nil)
			time.Sleep(time.Hour)
			require.Len(t, connected(c), 5)
		}
		sixth := kill(own[0])
		seventh := kill(sixth)
		kill(seventh)
		serve(sixth)
		serve(own[0])
		require.Equal(t, own, connected(c))
	})
}

// A client that reaches nobody does not dial every server in the end.
func TestClusterSubsetThatIsDown(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		var addrs []string
		for i := range 500 {
			addrs = append(addrs, fmt.Sprintf("s%03d", i))
		}
		c := newTestCluster(t, n.client(nil), servers(at(addrs...)...), Subset(5, "client"))
		time.Sleep(time.Hour)
		var dialled []string
		for _, s := range c.Servers() {
			if s.Err != nil {
				dialled = append(dialled, s.Addr)
			}
		}
		require.Len(t, dialled, 105)
		for _, addr := range dialled { // they are up again: the client goes back to its own
			n.serve(addr, nil)
		}
		time.Sleep(time.Hour)
		require.Len(t, connected(c), 5)
	})
}

// A cluster with a subset has that many connections, and another one for each server that is down.
func TestClusterSubset(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		addrs := n.serveThirty()
		cli := n.client(nil)
		r := servers(at(addrs...)...)
		c := newTestCluster(t, cli, r, Subset(5, "client", "7"))
		time.Sleep(time.Second)
		first := connected(c)
		require.Len(t, first, 5)
		require.Equal(t, 5, cli.CountSession())
		require.Len(t, c.Servers(), 30)
		same := newTestCluster(t, cli, r, Subset(5, "client", "7"))
		random := newTestCluster(t, cli, r, Subset(5))
		time.Sleep(time.Second)
		require.Equal(t, first, connected(same))
		require.Len(t, connected(random), 5)

		n.kill(first[0])
		n.kill(first[1])
		time.Sleep(time.Minute)
		now := connected(c)
		require.Len(t, now, 5)
		require.Subset(t, now, first[2:])
		n.serve(first[0], nil)
		n.serve(first[1], nil)
		time.Sleep(time.Minute)
		require.Equal(t, first, connected(c))

		var zoned []Server
		for i, a := range addrs {
			zoned = append(zoned, Server{Addr: a, Zone: []string{"x", "y", "z"}[i%3]})
		}
		z := newTestCluster(t, cli, servers(zoned...), Subset(8, "me"), InZone("x"))
		time.Sleep(time.Second)
		zones := map[string]int{}
		for _, s := range z.Servers() {
			if s.Connected {
				zones[s.Zone]++
			}
		}
		require.Equal(t, 8, zones["x"])
		require.Equal(t, 2, zones["y"]+zones["z"])
	})
}

// A server whose calls fail gets none for some time, and comes back.
func TestClusterEjection(t *testing.T) {
	for name, policy := range map[string]ClusterOption{
		"two choices": func(*clusterOptions) {}, "round robin": RoundRobin(), "hash": ConsistentHash(2),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				calls := newCounting()
				for _, a := range []string{"a", "b", "c"} {
					n.serve(a, nil, calls.on(a))
				}
				c := newTestCluster(t, n.client(nil), servers(at("a", "b", "c")...), policy,
					Eject(Ejection{Base: time.Minute}))
				synctest.Wait()
				run := func(calls int) (failed int) {
					for range calls {
						if c.Pull("/count", 1, nil).Xerror != nil {
							failed++
						}
						time.Sleep(10 * time.Millisecond)
					}
					return failed
				}
				run(30)
				calls.set("a", NewXerror(StatusInternalServerError, "broken"))
				require.LessOrEqual(t, run(300), 10)
				at := calls.of("a")
				require.True(t, c.Servers()[0].Ejected)
				require.True(t, c.Servers()[0].Connected)
				require.Zero(t, run(1000))
				require.Equal(t, at, calls.of("a"))
				time.Sleep(time.Minute)
				calls.set("a", nil)
				require.Zero(t, run(300))
				require.False(t, c.Servers()[0].Ejected)
				require.Greater(t, calls.of("a"), at+5)
				for _, a := range []string{"a", "b", "c"} { // what is common to all is no server's fault
					calls.set(a, NewXerror(StatusInternalServerError, "broken"))
				}
				require.Equal(t, 100, run(100))
				require.LessOrEqual(t, countEjected(c), 1)
				requireIdle(t, c)
			})
		})
	}
}

func countEjected(c *Cluster) (n int) {
	for _, s := range c.Servers() {
		if s.Ejected {
			n++
		}
	}
	return n
}

// Without ejection the calls go on to a server that fails.
func TestClusterNoEjection(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		calls := newCounting()
		n.serve("a", nil, calls.on("a"))
		n.serve("b", nil, calls.on("b"))
		calls.set("a", NewXerror(StatusInternalServerError, "broken"))
		c := newTestCluster(t, n.client(nil), servers(at("a", "b")...), RoundRobin(), NoEjection())
		synctest.Wait()
		for range 100 {
			c.Pull("/count", 1, nil)
		}
		require.Equal(t, 50, calls.of("a"))
	})
}

// A slow server gets few calls: the one that is chosen is the better one of two.
func TestClusterAvoidsSlowServer(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		calls := newCounting()
		for i, a := range []string{"a", "b", "c", "d"} {
			n.serve(a, nil, func(p *Peer) {
				HandlePull(p.PullRouter, "/work", func(PullCtx, *int) (int, Xerror) {
					calls.count(a)
					time.Sleep([]time.Duration{100, 10, 10, 10}[i] * time.Millisecond)
					return 1, nil
				})
			})
		}
		c := newTestCluster(t, n.client(nil), servers(at("a", "b", "c", "d")...))
		synctest.Wait()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 500 {
					require.Nil(t, c.Pull("/work", 1, nil).Xerror)
				}
			})
		}
		wg.Wait()
		require.Less(t, calls.of("a"), 100)
		require.Greater(t, calls.of("b"), 400)
	})
}

// The deadline of a pull holds for all of its attempts together, and so does the peer's timeout.
func TestClusterDeadline(t *testing.T) {
	for _, how := range []string{"context", "peer"} {
		for _, gone := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", how, gone), func(t *testing.T) {
				inBubble(t, func(t *testing.T, n *testNet) {
					work := func(p *Peer) {
						HandlePull(p.PullRouter, "/slow", func(ctx PullCtx, _ *int) (int, Xerror) {
							<-ctx.Context().Done()
							time.Sleep(10 * time.Millisecond) // so that the caller's own end is first
							return 1, nil
						})
					}
					t.Cleanup(func() { time.Sleep(time.Second) }) // for handlers to end
					n.serve("a", nil, work)
					n.serve("b", nil, work)
					cfg, ctx := &PeerConfig{}, t.Context()
					if how == "peer" {
						cfg.DefaultPullTimeout = time.Second
					} else {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, time.Second)
						defer cancel()
					}
					c := newTestCluster(t, n.client(cfg), servers(at("a", "b")...), Idempotent())
					synctest.Wait()
					if gone {
						time.AfterFunc(600*time.Millisecond, func() { n.cut("a"); n.cut("b") })
					}
					start := time.Now()
					x := c.PullContext(ctx, "/slow", 1, nil).Xerror
					require.Equal(t, StatusDeadlineExceeded, x.Code(), "%v", x)
					require.False(t, NotRun(x))
					require.Equal(t, time.Second, time.Since(start))
				})
			})
		}
	}
}

// slowRoom is a room that takes its time when a session ends. Rooms that the session has entered later wait.
type slowRoom struct{}

func (slowRoom) sessionEnded(*Session) { time.Sleep(20 * time.Millisecond) }

type slowRooms struct{}

func (slowRooms) Name() string { return "slow rooms" }

func (slowRooms) PostDial(fore ForeSession) error {
	fore.Session().enter(slowRoom{})
	return nil
}

// A session that has ended is among the choices until the cluster is told. A call does not go there, nor is
// it refused because there is no other server: it waits for the next session.
func TestClusterCallOnASessionThatEnds(t *testing.T) {
	for what, call := range map[string]func(c *Cluster) error{
		"pull":   func(c *Cluster) error { return c.Pull("/name", 1, nil).Xerror },
		"goPull": func(c *Cluster) error { return (<-c.GoPull("/name", 1, nil, nil).Done()).Xerror },
		"hedged": func(c *Cluster) error { return c.Pull("/name", 1, nil, WithIdempotent()).Xerror },
		"push":   func(c *Cluster) error { return c.Push("/note", 1) },
		"stream": func(c *Cluster) error {
			s, err := OpenStream[int, int](context.Background(), c, "/stream")
			if err == nil {
				err = s.Close()
			}
			return err
		},
	} {
		for _, all := range [][]string{{"a"}, {"a", "b", "c", "d", "e", "f", "g", "h"}} {
			t.Run(fmt.Sprintf("%s of %d", what, len(all)), func(t *testing.T) {
				inBubble(t, func(t *testing.T, n *testNet) {
					t.Cleanup(func() { time.Sleep(time.Second) }) // for the rooms
					for _, a := range all {
						n.serve(a, nil, func(p *Peer) {
							HandlePush(p.PushRouter, "/note", func(PushCtx, *int) {})
							HandleStream(p.PullRouter, "/stream", func(PullCtx, *Stream[int, int]) Xerror {
								return nil
							})
						})
					}
					c := newTestCluster(t, n.client(nil, slowRooms{}), servers(at(all...)...),
						Hedge(time.Second))
					synctest.Wait()
					for _, a := range all {
						n.cut(a)
					}
					synctest.Wait()
					require.True(t, c.Servers()[0].Connected, "it is not known yet")
					start := time.Now()
					require.Nil(t, call(c)) // not NoError, which a nil Xerror in an error is
					require.Positive(t, time.Since(start))
				})
			})
		}
	}
}

// Each of many numbered pulls that are not idempotent runs once at most, and exactly once if it succeeds,
// while connections are cut and servers shut down at random. A pull whose error says that it has not run has
// not. Calls that do not depend on each other need no more than counting.
func TestClusterRunsOnce(t *testing.T) {
	for seed, option := range [][]ClusterOption{nil, {RoundRobin()}, {ConsistentHash(1.5)}} {
		inBubble(t, func(t *testing.T, n *testNet) { runsOnce(t, n, uint64(seed), option) })
	}
}

func runsOnce(t *testing.T, n *testNet, seed uint64, option []ClusterOption) {
	var mu sync.Mutex // guards ran
	ran := map[int]int{}
	work := func(p *Peer) {
		HandlePull(p.PullRouter, "/work", func(_ PullCtx, i *int) (int, Xerror) {
			mu.Lock()
			ran[*i]++
			mu.Unlock()
			if *i%3 == 0 {
				time.Sleep(time.Duration(*i%17) * time.Millisecond)
			}
			return *i, nil
		})
	}
	all := []string{"a", "b", "c", "d"}
	cfg := func() *PeerConfig { return &PeerConfig{MaxSessionHandlers: 3} }
	for _, a := range all {
		n.serve(a, cfg(), work)
	}
	c := newTestCluster(t, n.client(nil), servers(at(all...)...), append(option, RetryBudget(1, 100))...)
	require.NoError(t, c.Ready(t.Context()))
	results := make(map[int]Xerror)
	var next atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 12 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(r.IntN(10)) * time.Millisecond):
				}
				i, reply := int(next.Add(1)), 0
				var setting []PacketSetting
				if r.IntN(4) == 0 {
					setting = append(setting, WithFailFast())
				}
				var cmd *PullCmd
				if r.IntN(2) == 0 {
					cmd = c.Pull("/work", i, &reply, setting...)
				} else {
					cmd = <-c.GoPull("/work", i, &reply, nil, setting...).Done()
				}
				mu.Lock()
				results[i] = cmd.Xerror
				mu.Unlock()
				if cmd.Xerror == nil && reply != i {
					t.Errorf("pull %d has the reply %d", i, reply)
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(seed, 100))
	for range 100 {
		time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
		a := all[r.IntN(len(all))]
		switch r.IntN(3) {
		case 0:
			n.stop(a)
			n.serve(a, cfg(), work)
		default:
			n.cut(a)
		}
	}
	close(stop)
	wg.Wait()
	time.Sleep(time.Second)
	requireIdle(t, c)
	failed, unknown := 0, 0
	for i, x := range results {
		switch {
		case ran[i] > 1:
			t.Errorf("pull %d has run %d times: %v", i, ran[i], x)
		case x == nil && ran[i] != 1:
			t.Errorf("pull %d has succeeded and not run", i)
		case x != nil && NotRun(x) && ran[i] != 0:
			t.Errorf("pull %d has run, but its error says that it has not: %v", i, x)
		case x != nil && NotRun(x):
			failed++
		case x != nil:
			unknown++
		}
	}
	require.Greater(t, len(results), 1000)
	require.Less(t, failed, len(results)/2, "of so few places for calls that not all of them find one")
	require.Positive(t, unknown, "connections were cut under calls")
	require.Less(t, unknown, len(results)/3)
	t.Logf("%d pulls, %d not run, %d of unknown outcome", len(results), failed, unknown)
}

// The packets of an attempt are those that the command has.
func TestClusterPullCmd(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		calls := newCounting()
		meta := func(who string) func(p *Peer) {
			return func(p *Peer) {
				HandlePull(p.PullRouter, "/meta", func(ctx PullCtx, s *string) (string, Xerror) {
					ctx.SetMeta("from", who)
					return who + *s, calls.count(who)
				})
			}
		}
		n.serve("a", nil, meta("a"))
		n.serve("b", nil, meta("b"))
		calls.set("a", WithDetails(WithNotRun(NewXerror(StatusServiceUnavailable, "no")), "because"))
		c := newTestCluster(t, n.client(nil), servers(at("a", "b")...), RoundRobin(), NoEjection())
		synctest.Wait()
		for range 10 {
			var reply string
			var replied map[string]string
			cmd := c.Pull("/meta", "x", &reply, WithReplyMeta(&replied), WithMeta("k", "v"))
			require.Nil(t, cmd.Xerror)
			require.Equal(t, "bx", reply)
			require.Equal(t, "b", replied["from"])
			require.Equal(t, "b", cmd.Meta()["from"])
			require.Equal(t, "v", cmd.Output().Header.Meta["k"])
			require.Equal(t, StatusOK, cmd.Input().Header.StatusCode)
			require.Equal(t, packet.TypeReply, cmd.Input().Header.Type)
			require.Equal(t, c.Servers()[1].RemoteIp, cmd.Session().RemoteIp())
			got, x := cmd.Result()
			require.Nil(t, x)
			require.Equal(t, &reply, got)
		}
		require.Positive(t, calls.of("a"))
	})
}

// Pushes and streams go elsewhere if nothing was sent, and a stream counts as long as it lasts.
func TestClusterPushAndStream(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		pushed := newCounting()
		work := func(a string) func(p *Peer) {
			return func(p *Peer) {
				HandlePush(p.PushRouter, "/note", func(PushCtx, *int) { pushed.count(a) })
				HandleStream(p.PullRouter, "/stream", func(_ PullCtx, s *Stream[string, int]) Xerror {
					for range s.All() {
						_ = s.Send(&a)
					}
					return nil
				})
			}
		}
		for _, a := range []string{"a", "b", "c"} {
			n.serve(a, nil, work(a))
		}
		c := newTestCluster(t, n.client(nil), servers(at("a", "b", "c")...))
		synctest.Wait()
		var streams []*Stream[int, string]
		for range 9 {
			s, err := OpenStream[int, string](t.Context(), c, "/stream")
			require.NoError(t, err)
			streams = append(streams, s)
		}
		load := func() (all []int) {
			for _, s := range c.Servers() {
				all = append(all, s.Outstanding)
			}
			return all
		}
		require.Equal(t, 9, load()[0]+load()[1]+load()[2])
		// A sixth one goes only where another server has five too, which would be ten.
		require.Less(t, slices.Max(load()), 6, "streams spread by how many there are")
		for range 30 {
			require.Nil(t, c.Push("/note", 1))
		}
		synctest.Wait()
		require.Equal(t, 30, pushed.of("a")+pushed.of("b")+pushed.of("c"))
		go n.stop("a") // which waits for its streams
		synctest.Wait()
		before := pushed.of("a")
		for range 30 {
			require.Nil(t, c.Push("/note", 1))
			s, err := OpenStream[int, string](t.Context(), c, "/stream")
			require.NoError(t, err)
			streams = append(streams, s)
		}
		synctest.Wait()
		require.Equal(t, before, pushed.of("a"))
		for _, s := range streams {
			require.NoError(t, s.CloseSend())
			_, _ = s.Recv()
		}
		synctest.Wait()
		require.Equal(t, []int{0, 0, 0}, load())
	})
}

// A client that pulls once, to log in, pushes to the server that it has pulled from as to the others.
func TestClusterLoginThenPush(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		pushed := newCounting()
		for _, a := range []string{"a", "b"} {
			n.serve(a, nil, func(p *Peer) {
				HandlePush(p.PushRouter, "/note", func(PushCtx, *int) { pushed.count(a) })
			})
		}
		c := newTestCluster(t, n.client(nil), servers(at("a", "b")...))
		synctest.Wait()
		_, err := Call[string](t.Context(), c, "/name", 1)
		require.NoError(t, err)
		for range 1000 {
			require.Nil(t, c.Push("/note", 1))
		}
		synctest.Wait()
		require.InDelta(t, 500, pushed.of("a"), 120)
	})
}

// takesAll is the handler of a stream that takes all values.
func takesAll(_ PullCtx, s *Stream[int, int]) Xerror {
	for range s.All() {
	}
	return nil
}

// A server that fails all streams at once, and so has the fewest, is not where they go.
func TestClusterStreamsThatFail(t *testing.T) {
	for _, all := range [][]string{{"a", "bad"}, {"a", "b", "c", "d", "bad"}} {
		t.Run(fmt.Sprint(len(all)), func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				opened := newCounting()
				for _, a := range all {
					n.serve(a, nil, func(p *Peer) {
						HandleStream(p.PullRouter, "/stream", func(ctx PullCtx, s *Stream[int, int]) Xerror {
							opened.count(a)
							if a == "bad" {
								return NewXerror(StatusInternalServerError, "broken")
							}
							return takesAll(ctx, s)
						})
					})
				}
				c := newTestCluster(t, n.client(nil), servers(at(all...)...))
				synctest.Wait()
				for range 200 {
					_, err := OpenStream[int, int](t.Context(), c, "/stream")
					require.NoError(t, err)
					synctest.Wait()
				}
				require.LessOrEqual(t, opened.of("bad"), 10)
				require.Equal(t, 1, countEjected(c))
			})
		})
	}
}

// Streams that last speak for their servers: a stream that fails now and then ejects none of them, and takes
// no pulls away.
func TestClusterStreamsThatLast(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		for _, a := range []string{"a", "b"} {
			n.serve(a, nil, func(p *Peer) {
				HandleStream(p.PullRouter, "/stream", takesAll)
				HandleStream(p.PullRouter, "/broken", func(PullCtx, *Stream[int, int]) Xerror {
					return NewXerror(StatusInternalServerError, "broken")
				})
			})
		}
		c := newTestCluster(t, n.client(nil), servers(at("a", "b")...))
		synctest.Wait()
		open := func(route string, n int) {
			for range n {
				_, err := OpenStream[int, int](t.Context(), c, route)
				require.NoError(t, err)
				synctest.Wait()
			}
		}
		open("/broken", 1)
		require.InDelta(t, 500, tally(t, c, 1000)["a"], 250)
		for range 60 {
			open("/stream", 20)
			time.Sleep(time.Hour)
			open("/broken", 1)
			require.Zero(t, countEjected(c))
		}
	})
}

// Streams that are lost with their connection, or cancelled, do not speak against their server.
func TestClusterStreamsThatAreLost(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		for _, a := range []string{"a", "b"} {
			n.serve(a, nil, func(p *Peer) { HandleStream(p.PullRouter, "/stream", takesAll) })
		}
		c := newTestCluster(t, n.client(nil), servers(at("a", "b")...))
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 100 {
			of := t.Context()
			if i%2 == 0 {
				of = ctx
			}
			_, err := OpenStream[int, int](of, c, "/stream")
			require.NoError(t, err)
		}
		cancel()
		synctest.Wait()
		n.cut("a")
		synctest.Wait()
		for _, s := range c.Servers() {
			require.False(t, s.Ejected, s.Addr)
			require.Less(t, s.Outstanding, 51)
		}
		n.cut("b")
		synctest.Wait()
		requireIdle(t, c)
	})
}

// The balancer hears what the servers tell of their load, and avoids one that lets calls wait.
func TestClusterHearsLoad(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		calls := newCounting()
		for _, a := range []string{"a", "b"} {
			p := n.serve(a, nil)
			HandlePull(p.PullRouter, "/count", func(_ PullCtx, asks *bool) (bool, Xerror) {
				calls.count(a)
				return *asks, nil
			}, hookPlugin("load", "PreWriteReply", func(ctx interface{}) error {
				h := ctx.(WriteCtx).Output().Header
				assert.Equal(t, ctx.(WriteCtx).Output().Body, h.Load > 0)
				if h.Load > 0 && a == "a" {
					h.Load, h.QueueDelay = 100, 1e6
				}
				return nil
			}))
		}
		cli := n.client(nil)
		c := newTestCluster(t, cli, servers(at("a", "b")...))
		other := newTestCluster(t, cli, servers(at("a", "b")...), RoundRobin())
		synctest.Wait()
		for range 200 {
			require.Nil(t, c.Pull("/count", true, nil).Xerror)
			time.Sleep(askEvery)
			require.Nil(t, (<-c.GoPull("/count", true, nil, nil).Done()).Xerror)
			time.Sleep(askEvery)
		}
		require.Less(t, calls.of("a"), 40)
		require.Nil(t, other.Pull("/count", false, nil).Xerror, "this one does not ask")
	})
}

// Over TCP, servers are replaced one after another under load, and no call fails.
func TestClusterReplacesServers(t *testing.T) {
	start := func(name string) (*Peer, Server) {
		p := newTestPeer(t, nil)
		HandlePull(p.PullRouter, "/work", func(_ PullCtx, i *int) (int, Xerror) { return *i, nil })
		return p, Server{Id: name, Addr: serve(t, p)}
	}
	var peers []*Peer
	var list []Server
	for i := range 3 {
		p, s := start(strconv.Itoa(i))
		peers, list = append(peers, p), append(list, s)
	}
	r := servers(list...)
	c := newTestCluster(t, newTestPeer(t, nil), r)
	progress := make(chan struct{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				reply := 0
				if x := c.Pull("/work", i, &reply).Xerror; x != nil || reply != i {
					t.Errorf("pull %d: %v, reply %d", i, x, reply)
				}
				select {
				case progress <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	await := func(calls int) {
		for range calls {
			<-progress
		}
	}
	for i := range 6 {
		await(200)
		p, s := start(strconv.Itoa(3 + i))
		old := peers[i%3]
		peers[i%3], list[i%3] = p, s
		if i%2 == 0 { // the resolver is late
			done := make(chan error)
			go func() { done <- old.Shutdown(context.Background()) }()
			await(200)
			r.set(slices.Clone(list)...)
			await(200)
			for running := true; running; {
				select {
				case err := <-done:
					require.NoError(t, err)
					running = false
				case <-progress:
				}
			}
			continue
		}
		r.set(slices.Clone(list)...)
		await(200)
		done := make(chan error)
		go func() { done <- old.Shutdown(context.Background()) }()
		for running := true; running; {
			select {
			case err := <-done:
				require.NoError(t, err)
				running = false
			case <-progress:
			}
		}
	}
	await(200)
	close(stop)
	wg.Wait()
	requireIdle(t, c)
	require.Len(t, c.Servers(), 3)
}
