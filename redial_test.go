package tp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// net0 is a network of pipes: peers that serve addresses.
type net0 struct {
	mu    sync.Mutex
	peers map[string]*Peer
	dials []string // what was dialled, and when
	began time.Time
	conns []net.Conn // the dialling ends
}

func newNet() *net0 { return &net0{peers: map[string]*Peer{}, began: time.Now()} }

// serve puts p, or nobody, at the address.
func (n *net0) serve(addr string, p *Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers[addr] = p
}

var errNobody = errors.New("nobody is there")

func (n *net0) dial(_ context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.dials = append(n.dials, addr)
	p := n.peers[addr]
	n.mu.Unlock()
	if p == nil {
		return nil, errNobody
	}
	here, there := pipe.New(pipe.Options{})
	n.mu.Lock()
	n.conns = append(n.conns, here)
	n.mu.Unlock()
	p.admit(there, nil)
	return here, nil
}

func (n *net0) dialled() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.dials)
}

// cut ends the connections as a broken network does.
func (n *net0) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		_ = c.Close()
	}
	n.conns = nil
}

// client makes a peer that dials on the network.
func (n *net0) client(t testing.TB, cfg *PeerConfig, plugins ...Plugin) *Peer {
	p := newTestPeer(t, cfg, plugins...)
	p.dialConn = n.dial
	return p
}

// notes is what has happened, in order.
type notes struct {
	mu   sync.Mutex
	list []string
}

func (n *notes) add(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, s)
}

func (n *notes) take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := n.list
	n.list = nil
	return list
}

func named(t testing.TB, name string) *Peer {
	p := newTestPeer(t, nil)
	HandlePull(p.PullRouter, "/name", func(PullCtx, *string) (string, Xerror) { return name, nil })
	return p
}

func nameOf(sess *Session) string {
	var name string
	if x := sess.Pull("/name", "", &name).Xerror; x != nil {
		return x.Error()
	}
	return name
}

// A session goes on by another connection when the first is lost, as the same one.
func TestRedial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		n.serve("a", named(t, "A"))
		cli := n.client(t, &PeerConfig{Redial: new(Redial)})
		sess, err := cli.Dial("a", "me")
		require.NoError(t, err)
		sess.Public().Store("k", "v")
		sess.SetReadTimeout(time.Hour)
		require.Equal(t, "A", nameOf(sess))
		first := sess.Socket()

		n.cut()
		synctest.Wait()
		require.Equal(t, "A", nameOf(sess), "it waits for the new connection")
		require.True(t, first != sess.Socket())
		require.Equal(t, time.Hour, sess.ReadTimeout())
		same, ok := cli.GetSession("me")
		require.True(t, ok)
		require.Same(t, sess, same)
		v, _ := sess.Public().Load("k")
		require.Equal(t, "v", v)
		require.Equal(t, 1, cli.CountSession())
		select {
		case <-sess.Done():
			t.Fatal("the session has ended")
		default:
		}

		require.NoError(t, sess.Close())
		<-sess.Done()
		require.Zero(t, cli.CountSession())
		x := sess.Pull("/name", "", nil).Xerror
		require.Equal(t, StatusConnClosed, x.Code())
		require.True(t, NotRun(x))
		require.True(t, NotRun(sess.Push("/name", "")))
		time.Sleep(time.Hour)
		require.Len(t, n.dialled(), 2, "a session that was closed does not redial")
	})
}

// Before each attempt a random time passes, of which the bound grows.
func TestRedialBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions, attempts = 200, 40
		n := newNet()
		srv := named(t, "A")
		n.serve("a", srv)
		cli := n.client(t, &PeerConfig{Redial: &Redial{Attempts: attempts}})
		var all []*Session
		for range sessions {
			sess, err := cli.Dial("a")
			require.NoError(t, err)
			all = append(all, sess)
		}
		time.Sleep(time.Minute)
		var mu sync.Mutex
		times := map[string][]time.Duration{} // by address, one for each session
		last := time.Now()
		cli.dialConn = func(_ context.Context, _, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			times[addr] = append(times[addr], time.Since(last))
			return nil, errNobody
		}
		for i, sess := range all {
			sess.redial.addrs = []string{fmt.Sprint(i)}
		}
		n.cut()
		for _, sess := range all {
			<-sess.Done()
		}
		require.Len(t, times, sessions)
		for i := range attempts {
			var early, late int
			for _, at := range times {
				require.Len(t, at, attempts)
				took, bound := at[i], 100*time.Millisecond
				if i > 0 {
					took -= at[i-1]
					bound = min(max(bound, at[i-1]/2), 30*time.Second)
				}
				require.Less(t, took, bound)
				if took < bound/4 {
					early++
				} else if took > bound-bound/4 {
					late++
				}
			}
			require.Greater(t, early, sessions/8, "attempt %d", i)
			require.Greater(t, late, sessions/8, "attempt %d", i)
		}
		x := all[0].Pull("/name", "", nil).Xerror
		require.True(t, NotRun(x))
	})
}

// When the other side shuts down there is another connection before the old one is
// let go, and nothing fails.
func TestRedialWhenTheOtherSideShutsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		a, b := named(t, "A"), named(t, "B")
		release := make(chan struct{})
		HandlePull(a.PullRouter, "/slow", func(PullCtx, *string) (string, Xerror) {
			<-release
			return "A, slowly", nil
		})
		var hooks notes
		note := func(name string) func(interface{}) error {
			return func(interface{}) error { hooks.add(name); return nil }
		}
		n.serve("x", a)
		cli := n.client(t, &PeerConfig{Redial: &Redial{FailFast: true}}, newTestPlugin("p",
			map[string]func(interface{}) error{
				"PostDial": note("PostDial"), "PostReconnect": note("PostReconnect"),
				"PostDisconnect": note("PostDisconnect"),
			}))
		sess, err := cli.Dial("x")
		require.NoError(t, err)
		old := sess.conn.Load()
		var got string
		slow := sess.GoPull("/slow", "", &got, nil)
		synctest.Wait()

		n.serve("x", b)
		began := time.Now()
		down := make(chan error)
		go func() { down <- a.Shutdown(t.Context()) }()
		synctest.Wait()
		require.Equal(t, "B", nameOf(sess))
		require.Zero(t, time.Since(began), "the first attempt is made at once")
		require.False(t, old.ended.Load(), "the old connection is still there")
		require.Empty(t, slow.Done())
		close(release)
		require.Nil(t, (<-slow.Done()).Xerror)
		require.Equal(t, "A, slowly", got)
		require.NoError(t, <-down)
		synctest.Wait()
		require.True(t, old.ended.Load())
		require.Less(t, time.Since(began), time.Second)
		require.Equal(t, "B", nameOf(sess))
		require.Equal(t, []string{"PostDial", "PostDial", "PostReconnect"}, hooks.take())
		require.Equal(t, 2, cli.hubSize(), "a session and its connection")
	})
}

// Pulls and pushes that cross a shutdown run once, here or there, whether they are
// refused, not sent, or answered.
func TestRedialCrossingShutdowns(t *testing.T) {
	const callers, rounds = 8, 20
	n := newNet()
	var mu sync.Mutex
	ran := map[string]int{}
	count := func(id string) {
		mu.Lock()
		defer mu.Unlock()
		ran[id]++
	}
	newServer := func() *Peer {
		p := newTestPeer(t, nil)
		HandlePull(p.PullRouter, "/pull", func(_ PullCtx, id *string) (string, Xerror) {
			count(*id)
			return *id, nil
		})
		HandlePush(p.PushRouter, "/push", func(_ PushCtx, id *string) { count(*id) })
		return p
	}
	srv := newServer()
	n.serve("x", srv)
	cli := n.client(t, &PeerConfig{Redial: &Redial{MinBackoff: time.Millisecond,
		MaxBackoff: time.Millisecond}})
	sess, err := cli.Dial("x")
	require.NoError(t, err)
	var ending atomic.Bool
	var wg sync.WaitGroup
	var sent sync.Map
	var calls atomic.Int64
	for i := range callers {
		wg.Go(func() {
			for k := 0; !ending.Load(); k++ {
				id := fmt.Sprint(i, "-", k)
				var got string
				var x Xerror
				switch k % 3 {
				case 0:
					x = sess.Pull("/pull", id, &got).Xerror
				case 1:
					x = (<-sess.GoPull("/pull", id, &got, nil).Done()).Xerror
				case 2:
					x = sess.Push("/push", id)
				}
				if x != nil || k%3 < 2 && got != id {
					t.Errorf("%s: %v, %q", id, x, got)
					return
				}
				sent.Store(id, true)
				calls.Add(1)
			}
		})
	}
	for range rounds {
		enough := calls.Load() + 50
		for calls.Load() < enough && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		next := newServer()
		n.serve("x", next)
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		srv = next
	}
	ending.Store(true)
	wg.Wait()
	require.NoError(t, cli.Shutdown(t.Context()))
	require.NoError(t, srv.Shutdown(t.Context()))
	sent.Range(func(id, _ any) bool {
		require.Equal(t, 1, ran[id.(string)], "%s", id)
		return true
	})
}

// What may have run is not sent again.
func TestRedialNeverRunsTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		srv := newTestPeer(t, nil)
		var ran atomic.Int32
		HandlePull(srv.PullRouter, "/slow", func(PullCtx, *string) (string, Xerror) {
			ran.Add(1)
			time.Sleep(time.Minute)
			return "", nil
		})
		n.serve("a", srv)
		cli := n.client(t, &PeerConfig{Redial: new(Redial)})
		sess, err := cli.Dial("a")
		require.NoError(t, err)
		cmd := sess.GoPull("/slow", "", nil, nil)
		synctest.Wait()
		n.cut()
		x := (<-cmd.Done()).Xerror
		require.Equal(t, StatusConnClosed, x.Code())
		require.False(t, NotRun(x))
		time.Sleep(time.Hour)
		require.EqualValues(t, 1, ran.Load())
	})
}

// A session whose connection takes nothing any more redials, while what has come by it
// is still being read.
func TestRedialWhenNothingCanBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		srv := named(t, "A")
		n.serve("a", srv)
		stuck := make(chan struct{})
		var first atomic.Bool
		cli := n.client(t, &PeerConfig{Redial: new(Redial)}, hookPlugin("p", "PreReadHeader",
			func(interface{}) error {
				if !first.Swap(true) {
					<-stuck
				}
				return nil
			}))
		var pushed atomic.Int32
		HandlePush(cli.PushRouter, "/push", func(PushCtx, *string) { pushed.Add(1) })
		sess, err := cli.Dial("a")
		require.NoError(t, err)
		synctest.Wait()
		srv.RangeSession(func(far *Session) bool {
			require.Nil(t, far.Push("/push", ""))
			require.NoError(t, far.Close())
			return true
		})
		require.False(t, NotRun(sess.Pull("/name", "", nil).Xerror), "it may have been sent")
		require.Equal(t, "A", nameOf(sess))
		require.Zero(t, pushed.Load())
		close(stuck)
		synctest.Wait()
		require.EqualValues(t, 1, pushed.Load())
		require.Equal(t, 2, cli.hubSize())
	})
}

// How long pulls and pushes wait for a connection.
func TestRedialWaits(t *testing.T) {
	for name, c := range map[string]struct {
		redial  Redial
		timeout time.Duration // of pulls
		pull    int32
		took    time.Duration
		push    time.Duration
	}{
		"default": {took: 30 * time.Second, pull: StatusConnClosed, push: 30 * time.Second},
		"MaxWait": {redial: Redial{MaxWait: time.Second}, pull: StatusConnClosed, took: time.Second,
			push: time.Second},
		"fail fast": {redial: Redial{FailFast: true}, pull: StatusConnClosed},
		"pull timeout": {timeout: 3 * time.Second, pull: StatusDeadlineExceeded, took: 3 * time.Second,
			push: 30 * time.Second},
		"until it ends": {redial: Redial{MaxWait: -1, Attempts: 1, MinBackoff: time.Hour,
			MaxBackoff: time.Hour}, pull: StatusConnClosed, took: -1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet()
				n.serve("a", named(t, "A"))
				cli := n.client(t, &PeerConfig{Redial: &c.redial, DefaultPullTimeout: c.timeout})
				sess, err := cli.Dial("a")
				require.NoError(t, err)
				n.serve("a", nil)
				n.cut()
				synctest.Wait()
				began := time.Now()
				cmd := sess.GoPull("/name", "", nil, nil)
				require.Zero(t, time.Since(began), "GoPull does not wait")
				x := (<-cmd.Done()).Xerror
				require.Equal(t, c.pull, x.Code(), "%v", x)
				require.True(t, NotRun(x), "%v", x)
				require.Equal(t, "/name", cmd.Output().Header.Uri)
				if c.took < 0 {
					<-sess.Done()
					return
				}
				require.Equal(t, c.took, time.Since(began))
				began = time.Now()
				x = sess.Push("/name", "")
				require.Equal(t, StatusConnClosed, x.Code(), "%v", x)
				require.True(t, NotRun(x))
				require.Equal(t, c.push, time.Since(began))

				n.serve("a", named(t, "back"))
				for nameOf(sess) != "back" {
					time.Sleep(time.Second)
				}
			})
		})
	}
}

// Several addresses are tried in turn, at first and again.
func TestRedialSeveralAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		cli := n.client(t, &PeerConfig{Redial: new(Redial)})
		_, err := cli.Dial("a,b,unix:c")
		require.EqualError(t, err,
			"tp: dial a,b,unix:c: a: nobody is there; b: nobody is there; unix:c: nobody is there")
		require.ErrorIs(t, err, errNobody)
		require.Equal(t, []string{"a", "b", "c"}, n.dialled())

		n.serve("b", named(t, "B"))
		n.dials = nil
		sess, err := cli.Dial("a,b,unix:c")
		require.NoError(t, err)
		require.Equal(t, "B", nameOf(sess))
		require.Equal(t, []string{"a", "b"}, n.dialled())
		n.serve("a", named(t, "A"))
		n.dials = nil
		n.cut()
		synctest.Wait()
		require.Equal(t, "A", nameOf(sess))
		require.Equal(t, []string{"c", "a"}, n.dialled())
		require.Equal(t, 1, cli.CountSession())

		// Without Redial too, but once.
		once := n.client(t, nil)
		n.serve("a", nil)
		sess, err = once.Dial("a,b")
		require.NoError(t, err)
		require.Equal(t, "B", nameOf(sess))
		n.cut()
		<-sess.Done()
	})
}

// The hooks of a session that redials come in order, and may pull.
func TestRedialHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		srv := named(t, "A")
		var subscribed atomic.Int32
		HandlePull(srv.PullRouter, "/subscribe", func(PullCtx, *string) (string, Xerror) {
			subscribed.Add(1)
			return "", nil
		})
		n.serve("a", srv)
		var mu sync.Mutex
		var hooks notes
		note := hooks.add
		fail := map[string]int{}
		cli := n.client(t, &PeerConfig{Redial: new(Redial)}, newTestPlugin("p",
			map[string]func(interface{}) error{
				"PostDial": func(s interface{}) error {
					note("PostDial")
					require.Equal(t, "me", s.(ForeSession).Id())
					require.NotNil(t, s.(ForeSession).Socket())
					mu.Lock()
					defer mu.Unlock()
					if fail["PostDial"]--; fail["PostDial"] >= 0 {
						return errors.New("not now")
					}
					return nil
				},
				"PostReconnect": func(s interface{}) error {
					x := s.(*Session).Pull("/subscribe", "", nil).Xerror
					note("PostReconnect")
					mu.Lock()
					defer mu.Unlock()
					if fail["PostReconnect"]--; fail["PostReconnect"] >= 0 {
						return errors.New("nor now")
					}
					if x != nil {
						return x
					}
					return nil
				},
				"PostDisconnect": func(interface{}) error {
					time.Sleep(time.Second)
					note("PostDisconnect")
					return nil
				},
			}))
		sess, err := cli.Dial("a", "me")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		hooks.take()
		mu.Lock()
		fail = map[string]int{"PostDial": 2, "PostReconnect": 1}
		mu.Unlock()
		n.cut()
		time.Sleep(time.Minute)
		require.Equal(t, []string{
			"PostDisconnect", "PostDial", "PostDial", "PostDial", "PostReconnect",
			"PostDisconnect", "PostDial", "PostReconnect",
		}, hooks.take())
		require.EqualValues(t, 2, subscribed.Load())
		require.Equal(t, "A", nameOf(sess))
		require.NoError(t, sess.Close())
		time.Sleep(time.Minute)
		require.Equal(t, []string{"PostDisconnect"}, hooks.take())
		require.Zero(t, cli.hubSize())
	})
}

// A PostReconnect hook whose connection goes while it pulls waits for the next one.
func TestRedialWhileHooksPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		n.serve("a", named(t, "A"))
		var running, ran atomic.Int32
		cli := n.client(t, &PeerConfig{Redial: new(Redial)}, hookPlugin("p", "PostReconnect",
			func(s interface{}) error {
				require.EqualValues(t, 1, running.Add(1), "one at a time")
				defer running.Add(-1)
				if ran.Add(1) == 1 {
					n.cut()
					<-s.(*Session).conn.Load().doneChan()
				}
				for range 3 {
					require.Equal(t, "A", nameOf(s.(*Session)))
				}
				return nil
			}))
		sess, err := cli.Dial("a")
		require.NoError(t, err)
		n.cut()
		time.Sleep(time.Minute)
		require.EqualValues(t, 2, ran.Load())
		require.Equal(t, "A", nameOf(sess))
		require.True(t, sess.redial.rests())
	})
}

// A server that takes connections and drops them is not dialled in a loop.
func TestRedialToAServerThatDropsConnections(t *testing.T) {
	for name, drop := range map[string]func(*Session){
		"closes":    func(s *Session) { _ = s.Close() },
		"goes away": func(s *Session) { s.conn.Load().goAway(false) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet()
				srv := named(t, "A")
				n.serve("a", srv)
				cli := n.client(t, &PeerConfig{Redial: new(Redial)})
				_, err := cli.Dial("a")
				require.NoError(t, err)
				end := time.Now().Add(time.Minute)
				for ; time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
					srv.RangeSession(func(s *Session) bool { drop(s); return true })
				}
				require.Less(t, len(n.dialled()), 40)
			})
		})
	}
}

// A peer that shuts down or closes does not redial, and does not wait for sessions
// that have no connection.
func TestRedialEndsWithItsPeer(t *testing.T) {
	for name, end := range map[string]func(context.Context, *Peer) error{
		"Shutdown": func(ctx context.Context, p *Peer) error { return p.Shutdown(ctx) },
		"Close":    func(_ context.Context, p *Peer) error { return p.Close() },
	} {
		for _, connected := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " ", connected), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := newNet()
					n.serve("a", named(t, "A"))
					cli := n.client(t, &PeerConfig{Redial: &Redial{MaxWait: -1}})
					sess, err := cli.Dial("a")
					require.NoError(t, err)
					var cmd *PullCmd
					if !connected {
						n.serve("a", nil)
						n.cut()
						synctest.Wait()
						cmd = sess.GoPull("/name", "", nil, nil)
						time.Sleep(time.Minute)
					}
					began, dials := time.Now(), len(n.dialled())
					require.NoError(t, end(t.Context(), cli))
					require.Less(t, time.Since(began), time.Second)
					<-sess.Done()
					if cmd != nil {
						require.True(t, NotRun((<-cmd.Done()).Xerror))
					}
					time.Sleep(time.Hour)
					require.Len(t, n.dialled(), dials)
				})
			})
		}
	}
}

// When all attempts have failed the session ends, but not before a connection that
// goes away has answered.
func TestRedialGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		srv := named(t, "A")
		HandlePull(srv.PullRouter, "/slow", func(PullCtx, *string) (string, Xerror) {
			time.Sleep(time.Minute)
			return "done", nil
		})
		n.serve("a", srv)
		log := captureLog(t, LevelInfo)
		cli := n.client(t, &PeerConfig{Redial: &Redial{Attempts: 3}})
		sess, err := cli.Dial("a")
		require.NoError(t, err)
		var got string
		slow := sess.GoPull("/slow", "", &got, nil)
		synctest.Wait()
		n.serve("a", nil)
		go srv.Shutdown(t.Context())
		synctest.Wait() // the client has been told to go
		x := sess.Pull("/name", "", nil).Xerror
		require.True(t, NotRun(x))
		require.Nil(t, (<-slow.Done()).Xerror)
		require.Equal(t, "done", got)
		<-sess.Done()
		log.next(t, "session ", " ended: 3 attempts in a row to dial again have failed: nobody is there")
		synctest.Wait()
	})
}

func TestRedialConfig(t *testing.T) {
	for want, r := range map[string]Redial{
		"tp: PeerConfig.Redial.MinBackoff: -1ns is negative.":                 {MinBackoff: -1},
		"tp: PeerConfig.Redial.MaxBackoff: 1ns is less than MinBackoff, 2ns.": {MinBackoff: 2, MaxBackoff: 1},
	} {
		require.PanicsWithValue(t, want, func() { NewPeer(&PeerConfig{Redial: &r}) })
	}
	r := (&Redial{MinBackoff: time.Minute}).withDefaults()
	require.Equal(t, time.Minute, r.MaxBackoff)
	require.Equal(t, time.Minute, r.bound(0))
	r = new(Redial).withDefaults()
	require.Equal(t, 100*time.Millisecond, r.bound(0))
	require.Equal(t, 2*time.Second, r.bound(4*time.Second))
	require.Equal(t, 30*time.Second, r.bound(time.Hour))
}
