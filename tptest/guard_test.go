package tptest_test

import (
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/tptest"
)

// failingTests has the name of a test that is to fail, in a process of its own.
const failingTests = "TPTEST_FAILING"

// stuckServer has handlers that stay until the channel is closed.
func stuckServer(until <-chan struct{}, began chan<- struct{}) *tp.Peer {
	p := tp.NewPeer(nil)
	wait := func() {
		began <- struct{}{}
		<-until
	}
	tp.HandlePull(p.PullRouter, "/stuck", func(tp.PullCtx, *int) (int, tp.Xerror) { wait(); return 0, nil })
	tp.HandlePush(p.PushRouter, "/stuck_push", func(tp.PushCtx, *int) { wait() })
	tp.HandleStream(p.PullRouter, "/stuck_stream", func(tp.PullCtx, *tp.Stream[int, int]) tp.Xerror {
		wait()
		return nil
	})
	tp.HandlePull(p.PullRouter, "/leave", func(tp.PullCtx, *int) (int, tp.Xerror) {
		go wait()
		return 0, nil
	})
	return p
}

func TestHandlersThatDoNotEnd(t *testing.T) {
	t.Parallel()
	pull := func(_ testing.TB, l *tptest.Link) {
		l.Client.GoPull("/stuck", 1, nil, make(chan *tp.PullCmd, 1))
	}
	for _, tc := range []struct {
		name string
		call func(t testing.TB, l *tptest.Link)
		want string
	}{
		{"pull", pull, "the handler of the pull /stuck, called by pipe-"},
		{"push", func(t testing.TB, l *tptest.Link) { require.Nil(t, l.Client.Push("/stuck_push", 1)) },
			"the handler of the push /stuck_push, called by pipe-"},
		{"stream", func(t testing.TB, l *tptest.Link) {
			_, err := tp.OpenStream[int, int](t.Context(), l.Client, "/stuck_stream")
			require.NoError(t, err)
		}, "the handler of the stream /stuck_stream, called by pipe-"},
		{"goroutine of a handler", func(t testing.TB, l *tptest.Link) {
			require.Nil(t, l.Client.Pull("/leave", 1, nil).Xerror)
		}, "tptest_test.stuckServer.func1"},
		{"cut meanwhile", func(t testing.TB, l *tptest.Link) {
			pull(t, l)
			time.AfterFunc(time.Millisecond, l.Cut)
			<-l.Server.Done()
		}, "the handler of the pull /stuck, called by pipe-"},
		{"client closed meanwhile", func(t testing.TB, l *tptest.Link) {
			pull(t, l)
			time.AfterFunc(time.Millisecond, func() { l.Client.Close() })
			<-l.Server.Done()
		}, "the handler of the pull /stuck, called by pipe-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBoth(t, func(t *testing.T) {
				until, began := make(chan struct{}), make(chan struct{}, 1)
				said := run(t, func(t testing.TB) {
					link := tptest.Pair(t, stuckServer(until, began), tp.NewPeer(nil),
						tptest.Grace(50*time.Millisecond))
					tc.call(t, link)
					<-began
					t.Fatal("the test ends here")
				})
				close(until)
				require.Contains(t, said, "the test ends here")
				require.Contains(t, said, "tptest: 50ms after the peers were closed there are still "+
					"goroutines of theirs.")
				require.Contains(t, said, tc.want)
				require.Contains(t, said, "guard_test.go:")
			})
		})
	}
}

// Handlers that end with their context, or soon, are no leak.
func TestHandlersThatEnd(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		server := tp.NewPeer(nil)
		began := make(chan struct{}, 2)
		tp.HandlePull(server.PullRouter, "/context", func(ctx tp.PullCtx, _ *int) (int, tp.Xerror) {
			began <- struct{}{}
			<-ctx.Context().Done()
			return 0, nil
		})
		tp.HandlePull(server.PullRouter, "/slow", func(ctx tp.PullCtx, _ *int) (int, tp.Xerror) {
			began <- struct{}{}
			<-time.After(20 * time.Millisecond)
			return 0, nil
		})
		require.Empty(t, run(t, func(t testing.TB) {
			link := tptest.Pair(t, server, tp.NewPeer(nil))
			link.Client.GoPull("/context", 1, nil, make(chan *tp.PullCmd, 1))
			link.Client.GoPull("/slow", 1, nil, make(chan *tp.PullCmd, 1))
			<-began
			<-began
		}))
	})
}

// Goroutines of the test's own, and ignored ones, are not the guard's business.
func TestGoroutinesThatMayStay(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		until, began := make(chan struct{}), make(chan struct{}, 1)
		require.Empty(t, run(t, func(t testing.TB) {
			link := tptest.Pair(t, stuckServer(until, began), tp.NewPeer(nil), tptest.Grace(time.Millisecond),
				tptest.Ignore("github.com/henrylee2cn/teleport/tptest_test.stuckServer.func1"))
			go func() { <-until }()
			require.Nil(t, link.Client.Pull("/leave", 1, nil).Xerror)
			<-began
		}))
		close(until)
	})
}

// A line that delivers nothing does not hold up the end of a test.
func TestEndWithFaults(t *testing.T) {
	t.Parallel()
	for _, f := range []tptest.Faults{{Stalled: true}, {Silent: true}, {Delay: time.Hour}, {Bandwidth: 1}} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			require.Empty(t, run(t, func(t testing.TB) {
				link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil), tptest.Both(f))
				require.Nil(t, link.Client.Push("/nowhere", 1))
				link.Client.GoPull("/echo", "x", nil, make(chan *tp.PullCmd, 1))
			}))
			require.Less(t, time.Since(began), 100*time.Millisecond, "%+v", f)
		})
	}
}

// failing are tests that have to fail, with what they have to say.
var failing = map[string]struct {
	test func(t *testing.T)
	want []string
}{
	"handler that blocks in a bubble": {func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began := make(chan struct{}, 1)
			link := tptest.Pair(t, stuckServer(make(chan struct{}), began), tp.NewPeer(nil))
			link.Client.GoPull("/stuck", 1, nil, make(chan *tp.PullCmd, 1))
			<-began
		})
	}, []string{"tptest: 5s after the peers were closed there are still goroutines of theirs.",
		"the handler of the pull /stuck, called by pipe-", "deadlock: main bubble goroutine has exited"}},
	"peers of a bubble outside": {func(t *testing.T) {
		var server, client *tp.Peer
		synctest.Test(t, func(t *testing.T) { server, client = tp.NewPeer(nil), tp.NewPeer(nil) })
		tptest.Pair(t, server, client)
	}, []string{"tptest: Pair is called outside of a bubble of package synctest, and the server was made " +
		"in one"}},
	"peers of outside in a bubble": {func(t *testing.T) {
		server := tp.NewPeer(nil)
		synctest.Test(t, func(t *testing.T) { tptest.Pair(t, server, tp.NewPeer(nil)) })
	}, []string{"tptest: Pair is called in a bubble of package synctest, and the server was made outside " +
		"of it"}},
	"t of outside in a bubble": {func(t *testing.T) {
		synctest.Test(t, func(*testing.T) { tptest.Pair(t, tp.NewPeer(nil), tp.NewPeer(nil)) })
	}, []string{"tptest: Pair is called in a bubble of package synctest with a t of outside of it"}},
	"network with a t of outside": {func(t *testing.T) {
		synctest.Test(t, func(*testing.T) { tptest.NewNetwork(t).Serve("a:1", tp.NewPeer(nil)) })
	}, []string{"tptest: NewNetwork is called in a bubble of package synctest with a t of outside of it"}},
	"network of a bubble outside": {func(t *testing.T) {
		var n *tptest.Network
		var server *tp.Peer
		synctest.Test(t, func(t *testing.T) { n, server = tptest.NewNetwork(t), tp.NewPeer(nil) })
		n.Serve("server:1", server)
	}, []string{"tptest: Serve is called outside of a bubble"}},
}

func TestFailing(t *testing.T) {
	if name := os.Getenv(failingTests); name != "" {
		failing[name].test(t)
		return
	}
	t.Parallel()
	for name, tc := range failing {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestFailing$", "-test.timeout=1m")
			cmd.Env = append(os.Environ(), failingTests+"="+name)
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "%s", out)
			for _, want := range tc.want {
				require.Contains(t, string(out), want)
			}
			require.NotContains(t, string(out), "fatal error")
		})
	}
}
