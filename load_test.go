package tp

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/load"
	"github.com/henrylee2cn/teleport/internal/pipe"
)

// serverLoad is what the other side has told of its load with a reply.
type serverLoad struct {
	calls int
	delay time.Duration
}

func (l *serverLoad) set(calls int, delay time.Duration) { *l = serverLoad{calls, delay} }

// pullLoad pulls, and asks for the load of the other side as a cluster does.
func pullLoad(ctx context.Context, sess *Session, args interface{}, to *serverLoad) *PullCmd {
	cmd := newPullCmd(sess, "/fn/call", args, nil)
	pd := cmd.newPending(ctx, true)
	taker := loadTaker(to)
	pd.load = &taker
	cmd.launch(ctx, pd, nil)
	cmd.await(ctx, pd)
	cmd.finish(pd)
	return cmd
}

// A peer that does nothing else tells of one call, the one that is answered, and of no delay.
func TestAnIdlePeerTellsItsLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		pullFn(srv, echo)
		sess, _ := connect(t, cli, srv, pipe.Options{})
		for range 300 { // by workers at first, and then by the reader
			var got serverLoad
			cmd := pullLoad(context.Background(), sess, "x", &got)
			require.Nil(t, cmd.Xerror)
			require.Equal(t, serverLoad{calls: 1}, got)
			require.EqualValues(t, 1, cmd.Output().Header.Load)
			require.Zero(t, cmd.Input().Header.Load, "what is told is not kept twice")
			synctest.Wait() // until the worker has counted that the call is over
		}
	})
}

// While handlers are busy, calls wait, and the replies tell how many and for how long. When all is quiet for
// a while the delay is forgotten.
func TestABusyPeerTellsOfTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const calls, each = 8, 10 * time.Millisecond
		srv, cli := newTestPeer(t, &PeerConfig{MaxHandlers: 1}), newTestPeer(t, nil)
		pullFn(srv, func(PullCtx, interface{}) (interface{}, Xerror) {
			time.Sleep(each)
			return nil, nil
		})
		var all sync.WaitGroup
		got := make([]serverLoad, calls)
		for i := range calls {
			sess, other := connect(t, cli, srv, pipe.Options{})
			srv.workers.Trust(&other.conn.Load().queue) // so that pulls are not refused, but wait
			all.Go(func() {
				assert.Nil(t, pullLoad(context.Background(), sess, i, &got[i]).Xerror)
			})
			synctest.Wait() // so that they wait in this order
		}
		all.Wait()
		for i, l := range got {
			require.Equal(t, calls-i, l.calls, "the call itself and those that wait")
			// Of the calls that have begun the last one has waited i times, and the mean is half of that.
			want := time.Duration(i) * each / 2
			require.InDelta(t, want, l.delay, float64(time.Microsecond))
		}

		time.Sleep(2 * load.Window)
		sess, _ := connect(t, cli, srv, pipe.Options{})
		var idle serverLoad
		require.Nil(t, pullLoad(context.Background(), sess, 0, &idle).Xerror)
		require.Equal(t, serverLoad{calls: 1}, idle)
	})
}

// A pull that is refused because too many run tells the load, too.
func TestARefusalTellsTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, &PeerConfig{MaxHandlers: 2}), newTestPeer(t, nil)
		release := make(chan struct{})
		pullFn(srv, func(PullCtx, interface{}) (interface{}, Xerror) {
			<-release
			return nil, nil
		})
		cli.noCredit = true // so that the server refuses pulls that would wait
		sess, _ := connect(t, cli, srv, pipe.Options{})
		done := make(chan *PullCmd, 2)
		sess.GoPull("/fn/call", nil, nil, done)
		sess.GoPull("/fn/call", nil, nil, done)
		synctest.Wait()
		var got serverLoad
		cmd := pullLoad(context.Background(), sess, nil, &got)
		require.Equal(t, StatusOverloaded, cmd.Xerror.Code())
		require.Equal(t, 2, got.calls)
		close(release)
		require.Nil(t, (<-done).Xerror)
		require.Nil(t, (<-done).Xerror)
	})
}

// Who is asked may say what it likes, or nothing: a caller takes in what makes sense, within bounds.
func TestWhatIsToldIsBounded(t *testing.T) {
	for name, c := range map[string]struct {
		calls, micros int32
		want          serverLoad
	}{
		"nothing, as of earlier versions": {0, 0, serverLoad{-1, -1}},
		"a delay alone":                   {0, 5, serverLoad{-1, -1}},
		"a negative number of calls":      {-3, 5, serverLoad{-1, -1}},
		"the least":                       {math.MinInt32, math.MinInt32, serverLoad{-1, -1}},
		"a negative delay":                {3, -5, serverLoad{3, 0}},
		"the most": {math.MaxInt32, math.MaxInt32,
			serverLoad{math.MaxInt32, math.MaxInt32 * time.Microsecond}},
	} {
		t.Run(name, func(t *testing.T) {
			srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
			pullFn(srv, echo, hookPlugin("liar", "PreWriteReply", func(ctx interface{}) error {
				h := ctx.(WriteCtx).Output().Header
				h.Load, h.QueueDelay = c.calls, c.micros
				return nil
			}))
			sess, _ := connect(t, cli, srv, pipe.Options{})
			got := serverLoad{-1, -1}
			require.Nil(t, pullLoad(context.Background(), sess, "x", &got).Xerror)
			require.Equal(t, c.want, got)
			requireAlive(t, sess)
		})
	}
}

// Many ask at once, some give up, and some replies are of streams: each is told, or is left as it was.
func TestManyAskForTheLoad(t *testing.T) {
	const callers, calls = 16, 200
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	HandleStream(srv.PullRouter, "/stream", func(_ PullCtx, s *Stream[int, int]) Xerror {
		_, _ = s.Recv()
		return nil
	})
	var all sync.WaitGroup
	var told atomic.Int64
	asker := newTestPeer(t, nil, hookPlugin("ask", "PreWritePull", func(ctx interface{}) error {
		ctx.(WriteCtx).Output().Header.Load = 1
		return nil
	}), hookPlugin("told", "PostReadHeader", func(ctx interface{}) error {
		if ctx.(ReadCtx).Input().Header.Load > 0 {
			told.Add(1)
		}
		return nil
	}))
	for range callers {
		sess, _ := connect(t, cli, srv, pipe.Options{})
		asks, _ := connect(t, asker, srv, pipe.Options{})
		all.Go(func() {
			for i := range calls {
				var got serverLoad
				switch i % 10 {
				case 0:
					ctx, cancel := context.WithCancel(context.Background())
					go cancel()
					pullLoad(ctx, sess, i, &got)
				case 1:
					s, x := OpenStream[int, int](context.Background(), asks, "/stream")
					if x != nil || s.CloseSend() != nil {
						t.Errorf("no stream: %v", x)
						return
					}
					if _, err := s.Recv(); err == nil {
						t.Error("a value from nowhere")
					}
				default:
					if x := pullLoad(context.Background(), sess, i, &got).Xerror; x != nil || got.calls < 1 {
						t.Errorf("%v, %+v", x, got)
					}
				}
				if got.calls > 0 {
					told.Add(1)
				}
			}
		})
	}
	all.Wait()
	require.GreaterOrEqual(t, told.Load(), int64(callers*calls*9/10))
	require.Eventually(t, func() bool { return srv.workers.Load() == 0 }, time.Minute, time.Millisecond)
}
