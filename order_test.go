package tp

import (
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/race"
	"github.com/henrylee2cn/teleport/internal/workers"
)

// numbers checks that those that are handled come in order.
type numbers struct {
	mu   sync.Mutex
	last map[string]int
	bad  []string
	n    int
	// thousand is closed when there were so many; nil if nobody waits for that
	thousand chan struct{}
}

func newNumbers() *numbers { return &numbers{thousand: make(chan struct{})} }

func (o *numbers) see(key string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last == nil {
		o.last = make(map[string]int)
	}
	if n != o.last[key]+1 && len(o.bad) < 10 {
		o.bad = append(o.bad, fmt.Sprintf("%s: %d after %d", key, n, o.last[key]))
	}
	o.last[key] = n
	if o.n++; o.n == 1000 && o.thousand != nil {
		close(o.thousand)
	}
}

func (o *numbers) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.n
}

// The pushes of a session are handled in the order in which they were sent, whatever their routes and however
// long handlers take, on the goroutine that reads and elsewhere.
func TestPushesAreInOrder(t *testing.T) {
	n := 100_000
	if race.Enabled {
		n = 10_000
	}
	srv := newTestPeer(t, nil)
	var seen numbers
	var running, most atomic.Int32
	handle := func(pause time.Duration) func(PushCtx, *int) {
		return func(_ PushCtx, i *int) {
			if now := running.Add(1); now > most.Load() {
				most.Store(now)
			}
			seen.see("", *i)
			if pause > 0 && *i%1000 == 0 {
				time.Sleep(pause) // so long that another goroutine reads
			}
			running.Add(-1)
		}
	}
	HandlePush(srv.PushRouter, "/a", handle(0))
	HandlePush(srv.PushRouter, "/b", handle(3*time.Millisecond))
	HandlePush(srv.PushRouter.Group("g"), "/c", handle(0))
	srv.PushRouter.SetUnknown(func(ctx UnknownPushCtx, body *[]byte) {
		i, _ := strconv.Atoi(string((*body)[1:]))
		handle(0)(nil, &i)
	})
	sess, err := newTestPeer(t, nil).Dial(serve(t, srv))
	require.NoError(t, err)
	uris := []string{"/a", "/b", "/g/c", "/unknown", "/a?x=y"}
	for i := 1; i <= n; i++ {
		require.Nil(t, sess.Push(uris[i%len(uris)], i))
	}
	require.Eventually(t, func() bool { return seen.count() == n }, time.Minute, time.Millisecond)
	require.Empty(t, seen.bad)
	require.EqualValues(t, 1, most.Load())
}

// A reader takes a line over again in which pushes have waited, when their handlers are quick.
func TestReaderTakesOverALine(t *testing.T) {
	const first = 1000
	srv := newTestPeer(t, nil)
	release, began := make(chan struct{}), make(chan *call, 1)
	var seen numbers
	var taken atomic.Bool
	HandlePush(srv.PushRouter, "/n", func(ctx PushCtx, i *int) {
		c := ctx.(*call)
		switch {
		case *i == 1:
			began <- c
			<-release
		case !c.onReader:
			// Calls wait in the line until the reader has taken it over. Few of the handlers have to wait
			// for that, so that the route is known to be quick.
			for c.lane.Waiting() < first/2 && !taken.Load() {
				time.Sleep(time.Microsecond)
			}
		case c.waited:
			taken.Store(true)
		}
		seen.see("", *i)
	})
	sess, err := newTestPeer(t, nil).Dial(serve(t, srv))
	require.NoError(t, err)
	n := 0
	push := func() {
		for range first {
			n++
			require.Nil(t, sess.Push("/n", n))
		}
	}
	push()
	lane := (<-began).lane
	require.Eventually(t, func() bool { return lane.Waiting() == first-1 }, time.Minute, time.Millisecond)
	close(release)
	require.Eventually(t, func() bool {
		push()
		return taken.Load()
	}, time.Minute, time.Microsecond)
	require.Eventually(t, func() bool { return seen.count() == n }, time.Minute, time.Millisecond)
	require.Empty(t, seen.bad)
}

// Unordered lets pushes run at once: on a peer, a group, or a route; the innermost counts.
func TestUnordered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil, Unordered())
		release := make(chan struct{})
		var running atomic.Int32
		wait := func(PushCtx, *int) {
			running.Add(1)
			<-release
			running.Add(-1)
		}
		HandlePush(srv.PushRouter, "/a", wait)
		group := srv.PushRouter.Group("g", Ordered())
		HandlePush(group, "/in", wait)
		HandlePush(group, "/out", wait, Unordered())
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for _, c := range []struct {
			uri string
			n   int32
		}{{"/a", 5}, {"/g/in", 1}, {"/g/out", 5}} {
			for i := range 5 {
				require.Nil(t, sess.Push(c.uri, i))
			}
			synctest.Wait()
			require.Equal(t, c.n, running.Load(), c.uri)
			for range 5 {
				release <- struct{}{}
			}
			synctest.Wait()
			require.Zero(t, running.Load())
		}
	})
}

// Sessions do not wait for each other, and neither do pulls for pushes.
func TestOrderIsOfASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, release, ran := blockedPeer(t, PeerConfig{})
		HandlePush(srv.PushRouter, "/ordered", func(PushCtx, *string) {
			ran.Add(1)
			<-release
		})
		for range 3 {
			sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
			for range 3 {
				require.Nil(t, sess.Push("/ordered", ""))
			}
			sess.GoPull("/wait", "", nil, nil)
			sess.GoPull("/wait", "", nil, nil)
		}
		synctest.Wait()
		require.EqualValues(t, 3*(1+2), ran.Load())
		close(release)
		synctest.Wait()
		require.EqualValues(t, 3*(3+2), ran.Load())
	})
}

// OrderedBy is over all sessions, key by key; what has no key has no order.
func TestOrderedBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		release, waits := make(chan struct{}), make(chan string, 100)
		byKey := OrderedBy(func(ctx PushCtx) string {
			key := ctx.Query().Get("key")
			if key == "panic" {
				panic("oh")
			}
			return key
		})
		handle := func(ctx PushCtx, _ *int) {
			waits <- ctx.Query().Get("key")
			<-release
		}
		HandlePush(srv.PushRouter, "/a", handle, byKey)
		HandlePush(srv.PushRouter, "/b", handle, byKey) // in the same lines
		one, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		two, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for range 2 {
			require.Nil(t, one.Push("/a?key=x", 1))
			synctest.Wait()
			require.Nil(t, two.Push("/b?key=x", 1))
			require.Nil(t, one.Push("/b?key=y", 1))
			require.Nil(t, one.Push("/a", 1))
			require.Nil(t, one.Push("/a?key=panic", 1))
			synctest.Wait()
		}
		count := make(map[string]int)
		for len(waits) > 0 {
			count[<-waits]++
		}
		require.Equal(t, map[string]int{"x": 1, "y": 1, "": 2, "panic": 2}, count)
		close(release)
		synctest.Wait()
		for len(waits) > 0 {
			count[<-waits]++
		}
		require.Equal(t, map[string]int{"x": 4, "y": 2, "": 2, "panic": 2}, count)
		srv.keyed.Range(func(_, v any) bool {
			require.Zero(t, v.(*workers.KeyLanes).Len(), "nothing is kept of keys")
			return true
		})
	})
}

// A key whose handler sleeps holds up its own pushes alone, which stay in order.
func TestOrderedByWhileAnotherSleeps(t *testing.T) {
	n := 100_000
	if race.Enabled {
		n = 10_000
	}
	srv := newTestPeer(t, nil)
	var seen numbers
	release := make(chan struct{})
	HandlePush(srv.PushRouter, "/n", func(ctx PushCtx, i *int) {
		key := ctx.Query().Get("key")
		if key == "slow" {
			<-release
		}
		seen.see(key, *i)
	}, OrderedBy(func(ctx PushCtx) string { return ctx.Query().Get("key") }))
	addr := serve(t, srv)
	var wg sync.WaitGroup
	sess, err := newTestPeer(t, nil).Dial(addr)
	require.NoError(t, err)
	for i := 1; i <= 10; i++ {
		require.Nil(t, sess.Push("/n?key=slow", i))
	}
	for k := range 4 {
		wg.Go(func() {
			for i := 1; i <= n/4; i++ {
				if x := sess.Push(fmt.Sprintf("/n?key=%d", k), i); x != nil {
					t.Error(x)
					return
				}
			}
		})
	}
	wg.Wait()
	require.Eventually(t, func() bool { return seen.count() == n/4*4 }, time.Minute, time.Millisecond)
	close(release)
	require.Eventually(t, func() bool { return seen.count() == n/4*4+10 }, time.Minute, time.Millisecond)
	require.Empty(t, seen.bad)
}

// Ordered has the pulls of a session wait for each other; those of other routes do not wait. What is too
// many is refused.
func TestOrderedPulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 20})
		var seen numbers
		release := make(chan struct{})
		handle := func(_ PullCtx, i *int) (int, Xerror) {
			<-release
			seen.see("", *i)
			return *i, nil
		}
		group := srv.PullRouter.Group("g", Ordered())
		HandlePull(group, "/a", handle)
		HandlePull(group, "/b", handle)
		HandlePull(srv.PullRouter, "/free", func(PullCtx, *int) (int, Xerror) { return 0, nil })
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		done := make(chan *PullCmd, 50)
		for i := 1; i <= 21; i++ {
			sess.GoPull([]string{"/g/a", "/g/b"}[i%2], i, new(int), done)
			synctest.Wait()
		}
		require.Empty(t, done)
		require.Nil(t, sess.Pull("/free", 0, nil).Xerror)
		x := sess.Pull("/g/a", 22, nil).Xerror
		require.Equal(t, StatusOverloaded, x.Code())
		require.True(t, NotRun(x))
		close(release)
		synctest.Wait()
		require.Empty(t, seen.bad)
		for range 21 {
			require.Nil(t, (<-done).Xerror)
		}
		require.Nil(t, sess.Pull("/g/a", 22, nil).Xerror)
	})
}

// Whatever ends a handler, the next one runs; and calls that are given up leave the line.
func TestLinesGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, release, ran := blockedPeer(t, PeerConfig{})
		line := Ordered()
		ways := map[string]func(){"return": func() {}, "Goexit": runtime.Goexit,
			"panic": func() { panic("oh") }}
		for path, how := range ways {
			HandlePush(srv.PushRouter, "/"+path, func(PushCtx, *string) { ran.Add(1); how() }, line)
			HandlePull(srv.PullRouter, "/"+path, func(PullCtx, *string) (string, Xerror) {
				ran.Add(1)
				how()
				return "", nil
			}, line)
		}
		HandlePull(srv.PullRouter, "/last", func(PullCtx, *string) (string, Xerror) {
			ran.Add(1)
			<-release
			return "", nil
		}, line)
		sess, back := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		n := 0
		for range 200 { // until they are quick
			for path := range ways {
				require.Nil(t, sess.Push("/"+path, ""))
				_ = sess.Pull("/"+path, "", nil)
				n += 2
			}
		}
		synctest.Wait()
		require.EqualValues(t, n, ran.Load())
		for range 3 {
			sess.GoPull("/last", "", nil, nil)
		}
		require.Nil(t, sess.Push("/return", "")) // behind them
		synctest.Wait()
		require.EqualValues(t, n+1, ran.Load())
		require.NoError(t, sess.Close())
		close(release)
		synctest.Wait()
		require.Zero(t, back.conn.Load().handlers.Load())
		require.Zero(t, srv.memory())
	})
}

// The turn in the line of a key goes to another session, and the place of the handler to the session that had
// it: both go on.
func TestTurnAndPlaceGoToTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1})
		release := make(chan struct{})
		var ran atomic.Int32
		HandlePush(srv.PushRouter, "/key", func(PushCtx, *int) {
			<-release
			ran.Add(1)
		}, OrderedBy(func(PushCtx) string { return "one" }))
		HandlePush(srv.PushRouter, "/own", func(PushCtx, *int) { ran.Add(1) })
		one, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		two, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		require.Nil(t, one.Push("/key", 1)) // runs
		synctest.Wait()
		require.Nil(t, two.Push("/key", 1)) // waits for its turn
		require.Nil(t, one.Push("/own", 1)) // waits for a handler
		synctest.Wait()
		require.Zero(t, ran.Load())
		close(release)
		synctest.Wait()
		require.EqualValues(t, 3, ran.Load())
		require.Zero(t, srv.workers.Running())
	})
}

// Keys are forgotten however their handlers end.
func TestKeysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		by := OrderedBy(func(ctx PushCtx) string { return ctx.Query().Get("key") })
		for path, how := range map[string]func(){"/return": func() {}, "/Goexit": runtime.Goexit,
			"/panic": func() { panic("oh") }} {
			HandlePush(srv.PushRouter, path, func(PushCtx, *int) { how() }, by)
		}
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for i := range 50 {
			for _, path := range []string{"/return", "/Goexit", "/panic"} {
				require.Nil(t, sess.Push(fmt.Sprint(path, "?key=", i), 1))
				require.Nil(t, sess.Push(fmt.Sprint(path, "?key=", i), "no number"))
			}
		}
		synctest.Wait()
		lanes, ok := srv.keyed.Load(by)
		require.True(t, ok)
		require.Zero(t, lanes.(*workers.KeyLanes).Len())
	})
}

// Pushes that wait in a line take no room of pulls that wait there.
func TestPullsWaitBehindManyPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := Ordered()
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 3})
		release := make(chan struct{})
		HandlePush(srv.PushRouter, "/push", func(PushCtx, *int) { <-release }, line)
		HandlePull(srv.PullRouter, "/pull", func(PullCtx, *int) (int, Xerror) { return 0, nil }, line)
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for range 30 {
			require.Nil(t, sess.Push("/push", 1))
		}
		synctest.Wait()
		done := make(chan *PullCmd, 3)
		for range 3 {
			sess.GoPull("/pull", 1, nil, done)
		}
		synctest.Wait()
		require.Empty(t, done)
		close(release)
		for range 3 {
			require.Nil(t, (<-done).Xerror)
		}
	})
}

// Whatever handlers do, and however connections end, each session's pushes are handled once and in order, and
// nothing is left over.
func TestOrderWhateverHappens(t *testing.T) {
	for round := range 6 {
		cfg := PeerConfig{MaxHandlers: 1 + round*2, MaxSessionHandlers: 1 + round, MaxSessionOutput: 64 << 10}
		if round == 5 {
			cfg = PeerConfig{}
		}
		srv := newTestPeer(t, &cfg)
		var seen, ran sync.Map // by session: numbers; how many run
		handle := func(ctx PushCtx, n *int) {
			id := ctx.Session().Id()
			running, _ := ran.LoadOrStore(id, new(atomic.Int32))
			if running.(*atomic.Int32).Add(1) != 1 {
				t.Error("two at once")
			}
			v, _ := seen.LoadOrStore(id, newNumbers())
			v.(*numbers).see(id, *n)
			defer running.(*atomic.Int32).Add(-1)
			switch *n % 50 {
			case 7:
				time.Sleep(time.Millisecond)
			case 17:
				runtime.Goexit()
			case 27:
				panic("oh")
			case 37:
				_ = ctx.Session().Pull("/back", 1, nil)
			}
		}
		HandlePush(srv.PushRouter, "/a", handle)
		HandlePush(srv.PushRouter, "/b", handle)
		keyed := OrderedBy(func(ctx PushCtx) string { return ctx.Query().Get("key") })
		HandlePush(srv.PushRouter, "/key", func(PushCtx, *int) {}, keyed)
		HandlePull(srv.PullRouter, "/pull", func(PullCtx, *int) (int, Xerror) { return 0, nil }, Ordered())
		addr := serve(t, srv)
		var wg sync.WaitGroup
		for c := range 4 {
			wg.Go(func() {
				cli := newTestPeer(t, nil)
				HandlePull(cli.PullRouter, "/back", func(PullCtx, *int) (int, Xerror) { return 0, nil })
				sess, err := cli.Dial(addr)
				if err != nil {
					t.Error(err)
					return
				}
				for i := 1; i <= 1000; i++ {
					_ = sess.Push([]string{"/a", "/b"}[i%2], i)
					if i%5 == 0 {
						_ = sess.Push(fmt.Sprint("/key?key=", i%3), i)
						sess.GoPull("/pull", i, nil, nil)
					}
					if c == 0 && i == 500 {
						_ = sess.Close()
						return
					}
				}
				_ = sess.Pull("/pull", 1, nil)
				v, _ := seen.LoadOrStore(sess.Socket().LocalAddr().String(), newNumbers())
				<-v.(*numbers).thousand
			})
		}
		wg.Wait()
		seen.Range(func(_, v any) bool {
			require.Empty(t, v.(*numbers).bad)
			return true
		})
		require.Eventually(t, func() bool {
			lanes, ok := srv.keyed.Load(keyed)
			return srv.workers.Running() == 0 && ok && lanes.(*workers.KeyLanes).Len() == 0
		}, 20*time.Second, time.Millisecond)
	}
}

// A call that held up others may have ended when that is told.
func TestWhatHeldUpALineHasEnded(t *testing.T) {
	srv := newTestPeer(t, nil)
	calls := make(chan *call, 2)
	HandlePull(srv.PullRouter, "/pull", func(ctx PullCtx, _ *int) (int, Xerror) {
		calls <- ctx.(*call)
		return 0, nil
	})
	HandlePush(srv.PushRouter, "/push", func(ctx PushCtx, _ *int) { calls <- ctx.(*call) })
	sess, err := newTestPeer(t, nil).Dial(serve(t, srv))
	require.NoError(t, err)
	require.Nil(t, sess.Pull("/pull", 1, nil).Xerror)
	require.Nil(t, sess.Push("/push", 1))
	for range 2 {
		c := <-calls
		require.Eventually(t, func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.exchange == nil
		}, time.Minute, time.Millisecond)
		(*job)(c).HoldsUp(3)
	}
}

// A handler for which others wait long is named in the log, once.
func TestWhatHoldsUpALineIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := captureLog(t, LevelWarn)
		srv := newTestPeer(t, nil)
		second := make(chan struct{})
		HandlePush(srv.PushRouter, "/first", func(PushCtx, *string) { <-second })
		HandlePush(srv.PushRouter, "/second", func(PushCtx, *string) { close(second) })
		HandlePush(srv.PushRouter, "/quick", func(PushCtx, *string) {})
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for range 5 {
			require.Nil(t, sess.Push("/quick", ""))
			time.Sleep(time.Minute)
		}
		require.Nil(t, sess.Push("/first", ""))
		require.Nil(t, sess.Push("/second", ""))
		time.Sleep(time.Minute)
		lines := log.take()
		require.Len(t, lines, 1)
		require.Contains(t, lines[0], "the handler of the push /first")
		require.Contains(t, lines[0], "for 3s or longer, and calls of its line wait for it")
		require.Contains(t, lines[0], "see tp.Unordered")
		require.NoError(t, srv.Close())
		second <- struct{}{}
	})
}

// Mistakes panic where they are made.
func TestMistakesWithOrder(t *testing.T) {
	p := newTestPeer(t, nil)
	by := OrderedBy(func(PushCtx) string { return "" })
	require.PanicsWithValue(t, "tp: OrderedBy: the function is nil.", func() { OrderedBy(nil) })
	require.PanicsWithValue(t,
		`tp: HandlePull("/a"): OrderedBy is for pushes, and these are pulls: expected Ordered.`, func() {
			HandlePull(p.PullRouter, "/a", func(PullCtx, *string) (string, Xerror) { return "", nil }, by)
		})
	require.Panics(t, func() { p.PullRouter.Group("a", by) })
	newTestPeer(t, nil, by) // leaves pulls alone
}
