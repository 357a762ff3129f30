package tp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/credit"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/race"
)

// Ten thousand goroutines that pull at once by a session on which nothing was said yet are all answered.
func TestManyPullsOnAColdSession(t *testing.T) {
	n := 10_000
	if race.Enabled {
		n = 2000
	}
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	sess, _ := connect(t, cli, srv, pipe.Options{})
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			var got int
			if x := sess.Pull("/fn/call", i, &got).Xerror; x != nil || got != i {
				t.Errorf("pull %d: %v, %d", i, x, got)
			}
		})
	}
	close(start)
	wg.Wait()
	cn := sess.conn.Load()
	require.Zero(t, cn.flow.Pulls.Unanswered())
	require.False(t, cn.flow.Pulls.Awaited())
}

// No more pulls run than may, those beyond that wait, and none fails.
func TestPullsWaitForPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, n = 100, 1000
		var running, peak atomic.Int64
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: most})
		HandlePull(srv.PullRouter, "/slow", func(PullCtx, *int) (int, Xerror) {
			if now := running.Add(1); now > peak.Load() {
				peak.Store(now)
			}
			defer running.Add(-1)
			time.Sleep(time.Second)
			return 0, nil
		})
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		sess.conn.Load().flow.Ask()
		synctest.Wait()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if x := sess.Pull("/slow", i, nil).Xerror; x != nil {
					t.Errorf("pull %d: %v", i, x)
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, peak.Load(), int64(most))
	})
}

// fillPlaces has as many pulls of /wait run as the other side takes, and returns what ends the handlers.
func fillPlaces(t *testing.T, most int, of *PeerConfig) (sess, back *Session, release chan struct{}) {
	srv, release, _ := blockedPeer(t, PeerConfig{MaxSessionHandlers: most})
	sess, back = connect(t, newTestPeer(t, of), srv, pipe.Options{})
	sess.conn.Load().flow.Ask()
	synctest.Wait()
	done := make(chan *PullCmd, most)
	for range most {
		sess.GoPull("/wait", "", nil, done)
	}
	synctest.Wait()
	require.EqualValues(t, most, sess.conn.Load().flow.Pulls.Unanswered())
	return sess, back, release
}

// A pull that finds no place fails as its caller has asked for, and certainly has not run.
func TestEndsOfTheWaitForAPlace(t *testing.T) {
	const most = 100
	for name, tc := range map[string]struct {
		of   *PeerConfig
		pull func(sess, back *Session) Xerror
		code int32
		text string
	}{
		"fail fast": {nil, func(sess, _ *Session) Xerror {
			return sess.Pull("/wait", "", nil, WithFailFast()).Xerror
		}, StatusOverloaded, "100 pulls are not answered, which is as many as the other side takes"},
		"deadline": {nil, func(sess, _ *Session) Xerror {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return sess.PullContext(ctx, "/wait", "", nil).Xerror
		}, StatusDeadlineExceeded, ""},
		"cancel": {nil, func(sess, _ *Session) Xerror {
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(time.Second, cancel)
			return sess.PullContext(ctx, "/wait", "", nil).Xerror
		}, StatusCanceled, ""},
		"the pull's own time": {&PeerConfig{DefaultPullTimeout: time.Minute}, func(sess, _ *Session) Xerror {
			return sess.Pull("/wait", "", nil).Xerror
		}, StatusDeadlineExceeded, "the other side had no place for the pull for 1m0s"},
		"no progress": {nil, func(sess, _ *Session) Xerror {
			return sess.Pull("/wait", "", nil).Xerror
		}, StatusOverloaded, "the other side has answered none of 100 pulls for 30s"},
		"close": {nil, func(sess, _ *Session) Xerror {
			time.AfterFunc(time.Second, func() { _ = sess.Close() })
			return sess.Pull("/wait", "", nil).Xerror
		}, StatusConnClosed, "not sent"},
		"the other side goes": {nil, func(sess, back *Session) Xerror {
			time.AfterFunc(time.Second, func() { _ = back.Close() })
			return sess.Pull("/wait", "", nil).Xerror
		}, StatusConnClosed, "not sent"},
		"the other side drains": {nil, func(sess, back *Session) Xerror {
			time.AfterFunc(time.Second, func() { back.conn.Load().goAway(false) })
			return sess.Pull("/wait", "", nil).Xerror
		}, StatusServiceUnavailable, "the other side is shutting down"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sess, back, release := fillPlaces(t, most, tc.of)
				defer close(release)
				if tc.of != nil { // the pulls of fillPlaces have no place any more when they are over
					time.Sleep(tc.of.DefaultPullTimeout / 2)
				}
				x := tc.pull(sess, back)
				require.NotNil(t, x)
				require.Equal(t, tc.code, x.Code(), "%v", x)
				require.Contains(t, x.Text(), tc.text)
				require.True(t, NotRun(x), "%v", x)
				require.Zero(t, sess.conn.Load().flow.Pulls.Waiting())
			})
		})
	}
}

// A pull that was given up has its place until the handler has ended.
func TestPullsGivenUpKeepTheirPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 100
		srv, release, ran := blockedPeer(t, PeerConfig{MaxSessionHandlers: most})
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		sess.conn.Load().flow.Ask()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan *PullCmd, most)
		for range most {
			sess.GoPullContext(ctx, "/wait", "", nil, done)
		}
		synctest.Wait()
		cancel()
		for range most {
			require.Equal(t, StatusCanceled, (<-done).Xerror.Code())
		}
		go func() { done <- sess.Pull("/wait", "", nil) }()
		synctest.Wait()
		require.EqualValues(t, most, ran.Load())
		close(release)
		require.Nil(t, (<-done).Xerror)
		synctest.Wait()
		require.Zero(t, sess.conn.Load().flow.Pulls.Unanswered())
	})
}

// Two sides whose handlers pull each other, in a circle, while no place is free: the wait ends, with an error
// that says so, and the rest goes on.
func TestHandlersThatPullBackWithoutAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 40
		a, b := newTestPeer(t, &PeerConfig{MaxSessionHandlers: most}),
			newTestPeer(t, &PeerConfig{MaxSessionHandlers: most})
		for _, p := range []*Peer{a, b} {
			HandlePull(p.PullRouter, "/deep", func(ctx PullCtx, left *int) (int, Xerror) {
				if *left == 0 {
					return 0, nil
				}
				time.Sleep(time.Second)
				return 0, ctx.Session().PullContext(ctx.Context(), "/deep", *left-1, nil).Xerror
			})
		}
		sess, back := connect(t, a, b, pipe.Options{})
		for _, s := range []*Session{sess, back} {
			s.conn.Load().flow.Ask()
		}
		synctest.Wait()
		var wg sync.WaitGroup
		var good, overloaded atomic.Int64
		for range 3 * most {
			wg.Go(func() {
				switch x := sess.Pull("/deep", 4, nil).Xerror; {
				case x == nil:
					good.Add(1)
				case x.Code() == StatusOverloaded:
					overloaded.Add(1)
				default:
					t.Error(x)
				}
			})
		}
		wg.Wait()
		t.Log(good.Load(), overloaded.Load())
		require.Nil(t, sess.Pull("/deep", 4, nil).Xerror)
		require.Nil(t, back.Pull("/deep", 4, nil).Xerror)
	})
}

// A session that redials sends the pulls that wait by its next connection.
func TestPullsThatWaitAreSentAgain(t *testing.T) {
	srv, release, ran := blockedPeer(t, PeerConfig{MaxSessionHandlers: 100})
	addr := serve(t, srv)
	cli := newTestPeer(t, &PeerConfig{Redial: &Redial{MinBackoff: time.Millisecond}})
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	_, x := sess.conn.Load().flow.KnowsStreams(t.Context(), func() {})
	require.NoError(t, x)
	done := make(chan *PullCmd, 101)
	for range 100 {
		sess.GoPull("/wait", "", nil, done)
	}
	require.Eventually(t, func() bool { return ran.Load() == 100 }, 20*time.Second, time.Millisecond)
	go func() { done <- sess.Pull("/wait", "", nil) }()
	first := sess.conn.Load()
	require.Eventually(t, func() bool { return first.flow.Pulls.Waiting() == 1 }, 20*time.Second,
		time.Millisecond)
	_ = first.fail(errors.New("cut"))
	require.Eventually(t, func() bool { return ran.Load() == 101 }, 20*time.Second, time.Millisecond)
	close(release)
	lost := 0
	for range 101 {
		if cmd := <-done; cmd.Xerror != nil {
			require.Equal(t, StatusConnClosed, cmd.Xerror.Code())
			lost++
		}
	}
	require.Equal(t, 100, lost)
}

// A side that does not know of places is asked once, and then pulled from without a bound.
func TestPlacesOfASideThatDoesNotKnowThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, release, ran := blockedPeer(t, PeerConfig{})
		sess, _ := connect(t, newTestPeer(t, nil), withoutCredit(srv), pipe.Options{})
		const n = 5 * credit.FirstPlaces
		done := make(chan *PullCmd, n)
		for range n {
			go func() { done <- sess.Pull("/wait", "", nil) }()
		}
		synctest.Wait()
		require.EqualValues(t, n, ran.Load())
		close(release)
		for range n {
			require.Nil(t, (<-done).Xerror)
		}
	})
}

// Pulls that have a place wait for a handler while pushes run in all of them.
func TestPullsWaitForHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, release, ran := blockedPeer(t, PeerConfig{MaxSessionHandlers: 50})
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for i := range 60 {
			require.Nil(t, sess.Push("/wait", fmt.Sprint(i)))
		}
		synctest.Wait()
		require.EqualValues(t, 50, ran.Load())
		sess.conn.Load().flow.Ask()
		synctest.Wait()
		done := make(chan *PullCmd, 50)
		for range cap(done) {
			sess.GoPull("/wait", "", nil, done)
		}
		synctest.Wait()
		require.EqualValues(t, 50, ran.Load())
		close(release)
		for range cap(done) {
			require.Nil(t, (<-done).Xerror)
		}
		synctest.Wait()
		require.EqualValues(t, 110, ran.Load())
	})
}
