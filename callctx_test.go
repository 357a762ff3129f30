package tp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// ctxServer serves /wait, whose handler waits for the end of its context and says why
// that ended, and /left, which answers how much time there is.
func ctxServer(t testing.TB) (*Peer, chan error) {
	p := newTestPeer(t, nil)
	ends := make(chan error, 100)
	HandlePull(p.PullRouter, "/wait", func(ctx PullCtx, _ *string) (string, Xerror) {
		<-ctx.Context().Done()
		ends <- context.Cause(ctx.Context())
		time.Sleep(10 * time.Millisecond) // the caller is to see its own end, not a reply
		return "", nil
	})
	HandlePull(p.PullRouter, "/left", func(ctx PullCtx, _ *string) (time.Duration, Xerror) {
		deadline, ok := ctx.Context().Deadline()
		if !ok {
			return 0, nil
		}
		return time.Until(deadline), nil
	})
	return p, ends
}

// A pull ends with its context, and the other side is told.
func TestPullContext(t *testing.T) {
	for name, c := range map[string]struct {
		ctx  func(context.Context) (context.Context, context.CancelFunc)
		code int32
		err  error
	}{
		"deadline": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, StatusDeadlineExceeded, context.DeadlineExceeded},
		"cancel": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			return ctx, cancel
		}, StatusCanceled, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, ends := ctxServer(t)
				sess, far := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
				ctx, cancel := c.ctx(t.Context())
				defer cancel()
				began := time.Now()
				x := sess.PullContext(ctx, "/wait", "", nil).Xerror
				require.Equal(t, time.Second, time.Since(began))
				require.Equal(t, c.code, x.Code())
				require.ErrorIs(t, x, c.err)
				require.False(t, NotRun(x))
				require.Contains(t, x.Text(), "the outcome of the pull is unknown")
				require.ErrorIs(t, <-ends, c.err)
				time.Sleep(time.Second)
				synctest.Wait()
				require.Zero(t, far.conn.Load().calls.Len())
				require.Zero(t, sess.conn.Load().pulls.Len())

				x = sess.PullContext(ctx, "/wait", "", nil).Xerror
				require.ErrorIs(t, x, c.err)
				require.True(t, NotRun(x), "it was not sent")
				x = sess.PushContext(ctx, "/wait", "")
				require.ErrorIs(t, x, c.err)
				require.True(t, NotRun(x))
				x = (<-sess.GoPullContext(ctx, "/wait", "", nil, nil).Done()).Xerror
				require.ErrorIs(t, x, c.err)
				require.Empty(t, ends)
			})
		})
	}
}

// What is left of the time travels, by a context and by DefaultPullTimeout; the shorter
// one counts.
func TestDeadlineTravels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, _ := ctxServer(t)
		left := func(cfg *PeerConfig, ctx context.Context) time.Duration {
			sess, _ := connect(t, newTestPeer(t, cfg), srv, pipe.Options{})
			defer sess.Close()
			var d time.Duration
			require.Nil(t, sess.PullContext(ctx, "/left", "", &d).Xerror)
			return d
		}
		minute, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Zero(t, left(nil, t.Context()))
		require.Equal(t, time.Minute, left(nil, minute))
		require.Equal(t, time.Second, left(&PeerConfig{DefaultPullTimeout: time.Second}, t.Context()))
		require.Equal(t, time.Second, left(&PeerConfig{DefaultPullTimeout: time.Second}, minute))
		require.Equal(t, time.Minute, left(&PeerConfig{DefaultPullTimeout: time.Hour}, minute))
		require.Equal(t, time.Minute, left(&PeerConfig{Redial: new(Redial)}, minute))
	})
}

// A deadline crosses three peers: when the first caller's time is over all contexts
// are, and nothing is left.
func TestDeadlineCrossesThreePeers(t *testing.T) {
	before := runtime.NumGoroutine()
	a, b := newTestPeer(t, nil), newTestPeer(t, nil)
	c, ends := ctxServer(t)
	toC := dial(t, b, c)
	told := make(chan Xerror, 1)
	HandlePull(b.PullRouter, "/through", func(ctx PullCtx, _ *string) (string, Xerror) {
		x := toC.PullContext(ctx.Context(), "/wait", "", nil).Xerror
		told <- x
		return "", x
	})
	sess := dial(t, a, b)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	x := sess.PullContext(ctx, "/through", "", nil).Xerror
	if !errors.Is(x, context.DeadlineExceeded) { // what b says of c may come before a's own timer
		require.Equal(t, StatusBadGateway, x.Code())
	}
	require.ErrorIs(t, <-told, context.DeadlineExceeded)
	require.ErrorIs(t, <-ends, context.DeadlineExceeded)

	// And a cancellation.
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	require.ErrorIs(t, sess.PullContext(ctx, "/through", "", nil).Xerror, context.Canceled)
	require.ErrorIs(t, <-told, context.Canceled)
	require.ErrorIs(t, <-ends, context.Canceled)
	for _, p := range []*Peer{a, b, c} {
		require.NoError(t, p.Close())
	}
	for runtime.NumGoroutine() > before {
		runtime.Gosched()
	}
}

// A handler's context ends with its session, and when its call is over.
func TestHandlersContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, ends := ctxServer(t)
		var kept []context.Context
		var ctxs []PullCtx
		HandlePull(srv.PullRouter, "/keep", func(ctx PullCtx, _ *string) (string, Xerror) {
			kept = append(kept, ctx.Context())
			require.NoError(t, ctx.Context().Err())
			require.Same(t, ctx.Context(), ctx.Context())
			ctxs = append(ctxs, ctx)
			return "", nil
		})
		HandlePull(srv.PullRouter, "/later", func(ctx PullCtx, _ *string) (string, Xerror) {
			ctxs = append(ctxs, ctx)
			return "", nil
		})
		HandlePull(srv.PullRouter, "/goexit", func(ctx PullCtx, _ *string) (string, Xerror) {
			kept = append(kept, ctx.Context())
			runtime.Goexit()
			return "", nil
		})
		pushed := make(chan context.Context, 1)
		HandlePush(srv.PushRouter, "/push", func(ctx PushCtx, _ *string) {
			pushed <- ctx.Context()
			<-ctx.Context().Done()
			ends <- context.Cause(ctx.Context())
		})
		sess, far := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		require.Nil(t, sess.Pull("/keep", "", nil).Xerror)
		require.Nil(t, sess.Pull("/later", "", nil).Xerror)
		require.NotNil(t, sess.Pull("/goexit", "", nil).Xerror)
		synctest.Wait()
		for _, ctx := range kept {
			require.ErrorIs(t, ctx.Err(), context.Canceled)
			require.ErrorIs(t, context.Cause(ctx), errHandlerReturned)
		}
		require.ErrorIs(t, ctxs[1].Context().Err(), context.Canceled, "asked for too late")
		require.Zero(t, far.conn.Load().calls.Len())

		cmd := sess.GoPull("/wait", "", nil, nil)
		require.Nil(t, sess.Push("/push", ""))
		require.NoError(t, (<-pushed).Err())
		synctest.Wait()
		require.EqualValues(t, 2, far.conn.Load().calls.Len())
		require.NoError(t, sess.Close())
		require.ErrorIs(t, <-ends, ErrSessionEnded)
		require.ErrorIs(t, <-ends, ErrSessionEnded)
		require.NotNil(t, (<-cmd.Done()).Xerror)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Zero(t, far.conn.Load().calls.Len())
	})
}

// A handler that asks for its context after its caller has given up finds it ended, and
// the ids of pulls that are over are forgotten.
func TestContextAskedForLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		ask, got := make(chan struct{}), make(chan error, 1)
		HandlePull(srv.PullRouter, "/late", func(ctx PullCtx, _ *string) (string, Xerror) {
			<-ask
			got <- ctx.Context().Err()
			return "", nil
		})
		HandlePull(srv.PullRouter, "/never", func(PullCtx, *string) (string, Xerror) {
			<-ask
			return "", nil
		})
		sess, far := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		a := sess.GoPullContext(ctx, "/late", "", nil, nil)
		b := sess.GoPullContext(ctx, "/never", "", nil, nil)
		synctest.Wait()
		cancel()
		require.ErrorIs(t, (<-a.Done()).Xerror, context.Canceled)
		require.ErrorIs(t, (<-b.Done()).Xerror, context.Canceled)
		synctest.Wait()
		require.EqualValues(t, 2, far.conn.Load().calls.Len())
		close(ask)
		require.ErrorIs(t, <-got, context.Canceled)
		synctest.Wait()
		require.Zero(t, far.conn.Load().calls.Len())

		// Cancels of what is not there leave nothing.
		for _, id := range []string{"", "1", "99", "text"} {
			require.NoError(t, sess.conn.Load().sock.WritePacket(&packet.Packet{Header: &packet.Header{Id: id,
				Type: packet.TypeCancel, Uri: "/x"}, Body: 1}))
		}
		synctest.Wait()
		require.Zero(t, far.conn.Load().calls.Len())
		require.Equal(t, 1, srv.CountSession())
	})
}

// Who has a deadline is not held up by a side that does not read.
func TestPullContextToASideThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cli := newTestPeer(t, &PeerConfig{MaxSessionOutput: 10_000, DefaultWriteTimeout: time.Hour})
		near, far := pipe.New(pipe.Options{Buffer: 1000})
		defer far.Close()
		sess, err := cli.ServeConn(near)
		require.NoError(t, err)
		body := strings.Repeat("x", 900)
		for range 50 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			began := time.Now()
			require.ErrorIs(t, sess.PullContext(ctx, "/x", body, nil).Xerror, context.DeadlineExceeded)
			require.Equal(t, time.Second, time.Since(began))
			cancel()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		x := sess.PushContext(ctx, "/x", body)
		require.ErrorIs(t, x, context.DeadlineExceeded)
		require.True(t, NotRun(x))
		require.Equal(t, time.Second, time.Since(began))
		require.Equal(t, 1, cli.CountSession(), "the session lives on")
		require.NoError(t, sess.Close())
		synctest.Wait()
	})
}

// Nor is who cancels, where there is no room for the packet that says so.
func TestCancelToASideThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cli := newTestPeer(t, &PeerConfig{MaxSessionOutput: 1000, DefaultWriteTimeout: time.Hour})
		near, far := pipe.New(pipe.Options{Buffer: 100})
		sess, err := cli.ServeConn(near)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cmds := []*PullCmd{}
		for range 2 {
			cmds = append(cmds, sess.GoPullContext(ctx, "/x", strings.Repeat("x", 900), nil, nil))
			synctest.Wait()
		}
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		require.ErrorIs(t, sess.PullContext(ctx, "/x", strings.Repeat("x", 900), nil).Xerror,
			context.Canceled)
		for _, cmd := range cmds {
			require.ErrorIs(t, (<-cmd.Done()).Xerror, context.Canceled)
		}
		require.Equal(t, time.Second, time.Since(began))
		require.NoError(t, far.Close())
		<-sess.Done()
	})
}

// Contexts that hooks and others ask for at odd times are forgotten too.
func TestContextsAskedForAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := func(c interface{}) error { c.(Ctx).Context(); return nil }
		refuse := errors.New("refused")
		srv := newTestPeer(t, nil, newTestPlugin("p", map[string]func(interface{}) error{
			"PreReadHeader": ask,
			"PostReadHeader": func(c interface{}) error {
				_ = ask(c)
				if strings.HasPrefix(c.(ReadCtx).Input().Header.Uri, "/refused") {
					return refuse
				}
				return nil
			},
			"PreWriteReply": ask, "PostWriteReply": ask,
		}))
		var held []Ctx
		var mu sync.Mutex
		HandlePull(srv.PullRouter, "/pull", func(ctx PullCtx, _ *string) (string, Xerror) {
			mu.Lock()
			defer mu.Unlock()
			held = append(held, ctx)
			deadline, ok := ctx.Context().Deadline()
			require.True(t, ok, "not that of PreReadHeader")
			require.Equal(t, time.Minute, time.Until(deadline))
			return "", nil
		})
		HandlePush(srv.PushRouter, "/push", func(ctx PushCtx, _ *string) {})
		sess, far := connect(t, newTestPeer(t, &PeerConfig{DefaultPullTimeout: time.Minute}), srv,
			pipe.Options{})
		for range 3 {
			require.Nil(t, sess.Pull("/pull", "", nil).Xerror)
			for _, uri := range []string{"/refused", "/nowhere", "/%2e"} {
				require.NotNil(t, sess.Pull(uri, "", nil).Xerror)
				require.Nil(t, sess.Push(uri, ""))
			}
			require.Nil(t, sess.Push("/push", ""))
			require.Nil(t, sess.Push("/push", []int{1})) // does not decode
		}
		synctest.Wait()
		for _, ctx := range held {
			require.Error(t, ctx.Context().Err())
		}
		require.Zero(t, far.conn.Load().calls.Len())
		for i := range 3 * defaultMaxSessionHandlers { // of no pulls that run, while one does
			if i == 0 {
				HandlePull(srv.PullRouter, "/wait", func(ctx PullCtx, _ *string) (string, Xerror) {
					time.Sleep(30 * time.Second)
					return "", nil
				})
				sess.GoPull("/wait", "", nil, nil)
			}
			require.NoError(t,
				sess.conn.Load().sock.WritePacket(&packet.Packet{Header: &packet.Header{Id: fmt.Sprint("x", i,
					strings.Repeat("i", i%2*100)), Type: packet.TypeCancel}}))
		}
		synctest.Wait()
		require.Equal(t, 1, far.conn.Load().calls.Len(), "nothing is kept of them")
		time.Sleep(time.Minute)
		require.Zero(t, far.conn.Load().calls.Len())
	})
}

// A context ends the wait of a session that has no connection.
func TestPullContextWhileRedialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		n.serve("a", named(t, "A"))
		sess, err := n.client(t, &PeerConfig{Redial: &Redial{MaxWait: -1}}).Dial("a")
		require.NoError(t, err)
		n.serve("a", nil)
		n.cut()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		x := sess.PullContext(ctx, "/name", "", nil).Xerror
		require.ErrorIs(t, x, context.DeadlineExceeded)
		require.True(t, NotRun(x))
		require.Equal(t, time.Second, time.Since(began))
		require.ErrorIs(t, sess.PushContext(ctx, "/name", ""), context.DeadlineExceeded)
	})
}

// Hooks have the context of their call.
func TestContextInHooks(t *testing.T) {
	type key struct{}
	var mu sync.Mutex
	seen := map[string]int{}
	note := func(side, point string) func(interface{}) error {
		return func(c interface{}) error {
			ctx := c.(Ctx).Context()
			_, timed := ctx.Deadline()
			mu.Lock()
			defer mu.Unlock()
			if ctx.Value(key{}) != nil || side == "server" && timed {
				seen[side+" "+point]++
			}
			return nil
		}
	}
	hooks := func(side string, points ...string) *testPlugin {
		p := newTestPlugin(side, map[string]func(interface{}) error{})
		for _, point := range points {
			p.on[point] = note(side, point)
		}
		return p
	}
	srv := newTestPeer(t, nil, hooks("server", "PostReadHeader", "PreReadBody", "PostReadBody",
		"PreWriteReply", "PostWriteReply"))
	pullFn(srv, echo)
	cli := newTestPeer(t, nil, hooks("client", "PreWritePull", "PostWritePull", "PostReadHeader",
		"PreReadBody", "PostReadBody", "PreWritePush", "PostWritePush"))
	sess, _ := connect(t, cli, srv, pipe.Options{})
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, 1), time.Minute)
	defer cancel()
	require.Nil(t, sess.PullContext(ctx, "/fn/call", "x", new(interface{})).Xerror)
	require.Nil(t, sess.PushContext(ctx, "/nowhere", "x"))
	require.NoError(t, sess.Close())
	require.NoError(t, srv.Shutdown(t.Context()))
	for _, want := range []string{
		"server PostReadHeader", "server PreReadBody", "server PostReadBody", "server PreWriteReply",
		"server PostWriteReply",
		"client PreWritePull", "client PostWritePull", "client PostReadHeader", "client PreReadBody",
		"client PostReadBody",
		"client PreWritePush", "client PostWritePush",
	} {
		require.Equal(t, 1, seen[want], "%s: %v", want, seen)
	}
}

// Very many cancelled pulls leave nothing behind, on either side.
func TestManyCancelledPulls(t *testing.T) {
	const pulls, callers = 100_000, 50
	srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: -1})
	var running, told atomic.Int64
	HandlePull(srv.PullRouter, "/wait", func(ctx PullCtx, _ *string) (string, Xerror) {
		running.Add(1)
		defer running.Add(-1)
		<-ctx.Context().Done()
		told.Add(1)
		return "", nil
	})
	pullFn(srv, echo)
	cli := newTestPeer(t, nil)
	sess := dial(t, cli, srv)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for k := range pulls / callers {
				ctx, cancel := context.WithCancel(context.Background())
				cmd := sess.GoPullContext(ctx, "/wait", "", nil, nil)
				if (i+k)%2 == 0 {
					runtime.Gosched()
				}
				cancel()
				if x := (<-cmd.Done()).Xerror; !errors.Is(x, context.Canceled) {
					t.Error(fmt.Sprint(x))
					return
				}
			}
		})
	}
	wg.Wait()
	requireAlive(t, sess)
	require.Eventually(t, func() bool { return running.Load() == 0 }, time.Minute, time.Millisecond,
		"every handler is told")
	require.Zero(t, sess.conn.Load().pulls.Len())
	var far *conn
	srv.RangeSession(func(s *Session) bool { far = s.conn.Load(); return true })
	require.Eventually(t, func() bool { return far.handlers.Load() == 0 && far.calls.Len() == 0 },
		time.Minute, time.Millisecond)
	t.Logf("%d of %d had begun", told.Load(), pulls)
}

// A pull that is refused by one connection after another and then cancelled is nobody else's.
func TestCancelOfAPullThatWaitsForALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20
		dialled := make(chan *socket.Socket, 2)
		refusing := false
		cli := newTestPeer(t, &PeerConfig{Redial: &Redial{MaxWait: -1}})
		cli.dialConn = func(context.Context, string, string) (net.Conn, error) {
			if refusing {
				return nil, errNobody
			}
			near, far := pipe.New(pipe.Options{})
			dialled <- socket.New(far, socket.Options{})
			return near, nil
		}
		sess, err := cli.Dial("x")
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		pulls := func(ctx context.Context, s *socket.Socket) (ids []string, done chan Xerror) {
			done = make(chan Xerror, n)
			for range n {
				go func() { done <- sess.PullContext(ctx, "/x", "x", nil).Xerror }()
				var p packet.Packet
				require.NoError(t, s.ReadPacket(&p, nil))
				ids = append(ids, p.Header.Id)
			}
			return ids, done
		}
		answer := func(s *socket.Socket, ids []string, h packet.Header) {
			for _, h.Id = range ids {
				require.NoError(t, s.WritePacket(&packet.Packet{Header: &h}))
			}
		}
		away := packet.Header{Type: packet.TypeGoAway}
		first := <-dialled
		ids, canceled := pulls(ctx, first)
		answer(first, []string{""}, away)
		second := <-dialled
		synctest.Wait()
		others, answered := pulls(t.Context(), second)
		refusing = true
		answer(second, []string{""}, away)
		synctest.Wait()
		answer(first, ids, packet.Header{Type: packet.TypeReply, StatusCode: StatusServiceUnavailable,
			NotRun: true})
		synctest.Wait()
		cancel()
		for range n {
			require.ErrorIs(t, <-canceled, context.Canceled)
		}
		answer(second, others, packet.Header{Type: packet.TypeReply, StatusCode: StatusOK})
		for range n {
			require.Nil(t, <-answered)
		}
		require.NoError(t, cli.Close())
		require.NoError(t, first.Close())
		require.NoError(t, second.Close())
	})
}

// The timeout that is sent is what is left when the pull is sent.
func TestTimeoutOfAPullThatHasWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cli := newTestPeer(t, &PeerConfig{MaxSessionOutput: 1000})
		near, end := pipe.New(pipe.Options{Buffer: 100})
		sess, err := cli.ServeConn(near)
		require.NoError(t, err)
		far := socket.New(end, socket.Options{})
		for range 2 { // the output is full behind these
			go sess.Push("/x", strings.Repeat("x", 900))
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		done := make(chan *PullCmd, 1)
		go sess.GoPullContext(ctx, "/timed", "x", nil, done)
		time.Sleep(1500 * time.Millisecond)
		var p packet.Packet
		for p.Header == nil || p.Header.Uri != "/timed" {
			require.NoError(t, far.ReadPacket(&p, nil))
		}
		require.LessOrEqual(t, p.Header.Timeout, int64(18500))
		require.Greater(t, p.Header.Timeout, int64(18000))
		require.NoError(t, far.Close())
		<-done
	})
}

// An id that is used again is that of another pull.
func TestCancelOfAnIdThatIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		busy := make(chan struct{})
		HandlePull(srv.PullRouter, "/busy", func(PullCtx, *string) (string, Xerror) {
			<-busy
			return "", nil
		})
		errs := make(chan error, 1)
		HandlePull(srv.PullRouter, "/ask", func(ctx PullCtx, _ *string) (string, Xerror) {
			errs <- ctx.Context().Err()
			return "", nil
		})
		near, end := pipe.New(pipe.Options{})
		_, err := srv.ServeConn(near)
		require.NoError(t, err)
		far := socket.New(end, socket.Options{})
		for _, h := range []packet.Header{
			{Id: "1", Type: packet.TypePull, Uri: "/busy"},
			{Id: "2", Type: packet.TypeCancel},
			{Id: "2", Type: packet.TypePull, Uri: "/ask"},
		} {
			require.NoError(t, far.WritePacket(&packet.Packet{Header: &h, Body: ""}))
		}
		require.NoError(t, <-errs)
		close(busy)
		require.NoError(t, far.Close())
	})
}

// Nor is who waits for a reply of which only a part comes.
func TestPullContextWithAPartOfAReply(t *testing.T) {
	for _, size := range []int{10, 100_000} {
		synctest.Test(t, func(t *testing.T) {
			for _, whole := range []bool{false, true} {
				cli := newTestPeer(t, &PeerConfig{MaxBufferedBytes: 1 << 20})
				near, far := pipe.New(pipe.Options{})
				sess, err := cli.ServeConn(near)
				require.NoError(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				var got string
				cmd := sess.GoPullContext(ctx, "/x", "", &got, nil)
				began := time.Now()
				text := strings.Repeat("x", size)
				b, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1",
					Type: packet.TypeReply, StatusCode: StatusOK}, Body: text}, packet.Limits{})
				require.NoError(t, err)
				n := len(b) - 3
				go func() {
					_, _ = far.Write(b[:n])
					time.Sleep(500 * time.Millisecond)
					if whole {
						_, _ = far.Write(b[n:])
					}
				}()
				x := (<-cmd.Done()).Xerror
				if whole {
					require.Nil(t, x)
					require.Equal(t, text, got)
					require.Equal(t, 500*time.Millisecond, time.Since(began))
				} else {
					require.ErrorIs(t, x, context.DeadlineExceeded)
					require.Equal(t, time.Second, time.Since(began))
				}
				cancel()
				require.NoError(t, sess.Close())
				synctest.Wait()
				require.Zero(t, cli.memory())
			}
		})
	}
}
