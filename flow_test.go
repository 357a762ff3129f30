package tp

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/credit"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// turnstile serves the push /wait, whose handlers wait until they are let through, one for each value on the
// channel.
type turnstile struct {
	let     chan struct{}
	handled atomic.Int64
}

func newTurnstile(r *PushRouter) *turnstile {
	g := &turnstile{let: make(chan struct{})}
	HandlePush(r, "/wait", func(PushCtx, *string) {
		<-g.let
		g.handled.Add(1)
	})
	return g
}

// A side that pushes faster than the other handles waits, and nothing is lost.
func TestPushesWaitForCredit(t *testing.T) {
	for name, text := range map[string]string{"small": "x", "of 5 KB": strings.Repeat("x", 5000)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const pushers, each = 16, 200
				srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 2, MaxSessionInput: 200_000})
				pullFn(srv, echo)
				g := newTurnstile(srv.PushRouter)
				sess, other := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
				var wg sync.WaitGroup
				var sent atomic.Int64
				for range pushers {
					wg.Go(func() {
						for range each {
							if x := sess.Push("/wait", text); x != nil {
								t.Error(x)
								return
							}
							sent.Add(1)
						}
					})
				}
				var most int64
				for range pushers * each {
					synctest.Wait()
					_, _, waits := srv.workers.Count(&other.conn.Load().queue)
					most = max(most, waits)
					g.let <- struct{}{}
				}
				wg.Wait()
				synctest.Wait()
				require.EqualValues(t, pushers*each, sent.Load())
				require.EqualValues(t, pushers*each, g.handled.Load())
				require.LessOrEqual(t, most, int64(400_000), "the memory of what waits")
				require.Zero(t, used(srv))
				sess.SetReadTimeout(0)
				require.NoError(t, sess.Err())
			})
		})
	}
}

// fill pushes to a turnstile until no credit is left, and returns how many pushes that were.
func fill(t *testing.T, sess *Session) (n int) {
	for ; ; n++ {
		x := sess.TryPush("/wait", "x")
		if x == nil {
			synctest.Wait()
			continue
		}
		require.Equal(t, StatusOverloaded, x.Code(), "%v", x)
		if synctest.Wait(); sess.conn.Load().flow.Out().Known() && sess.TryPush("/wait", "x") != nil {
			return n
		}
		require.Less(t, n, 1_000_000)
	}
}

func TestPushesWithoutCreditEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 100_000})
		pullFn(srv, echo)
		g := newTurnstile(srv.PushRouter)
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		require.Less(t, fill(t, sess), 50)

		x := sess.TryPush("/wait", "x")
		require.Equal(t, StatusOverloaded, x.Code())
		require.Contains(t, x.Text(), "the other side has not handled earlier pushes, nothing was sent")
		_, again := Retryable(x)
		require.True(t, NotRun(x) && again)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		x = sess.PushContext(ctx, "/wait", "x")
		require.Equal(t, StatusDeadlineExceeded, x.Code())
		require.ErrorIs(t, x, context.DeadlineExceeded)
		require.True(t, NotRun(x))

		sess.SetWriteTimeout(0) // no bound
		done := make(chan Xerror)
		go func() { done <- sess.Push("/wait", "x") }()
		time.Sleep(time.Hour)
		requireStill(t, done)
		for range 60 {
			select {
			case g.let <- struct{}{}:
			case x := <-done:
				require.Nil(t, x)
				close(g.let)
				return
			}
		}
		require.Nil(t, <-done)
		close(g.let)
	})
}

// A side that handles nothing for the write timeout is given up, however its pushes are made.
func TestSessionsWithoutProgressEnd(t *testing.T) {
	for name, push := range map[string]func(sess *Session) (x Xerror){
		"Push": func(sess *Session) Xerror { return sess.Push("/wait", "x") },
		"PushContext": func(sess *Session) Xerror {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return sess.PushContext(ctx, "/wait", "x")
		},
		"TryPush": func(sess *Session) Xerror {
			time.Sleep(time.Second)
			return sess.TryPush("/wait", "x")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 100_000})
				g := newTurnstile(srv.PushRouter)
				sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
				fill(t, sess)
				time.Sleep(10 * time.Second)
				for range 20 { // there is progress
					g.let <- struct{}{}
				}
				synctest.Wait()
				require.Nil(t, sess.TryPush("/wait", "x"))
				fill(t, sess)
				began := time.Now()
				for sess.Err() == nil {
					x := push(sess)
					require.NotNil(t, x)
					require.True(t, NotRun(x))
					require.LessOrEqual(t, time.Since(began), 31*time.Second)
				}
				require.GreaterOrEqual(t, time.Since(began), 29*time.Second)
				require.EqualError(t, sess.Err(),
					"the other side has not handled the pushes that wait there for 30s")
				close(g.let)
			})
		})
	}
}

func requireStill(t *testing.T, done chan Xerror) {
	t.Helper()
	synctest.Wait()
	select {
	case x := <-done:
		t.Fatalf("did not wait: %v", x)
	default:
	}
}

// The end of a connection, and the other side's shutdown, end the wait.
func TestEndsWakeWaitingPushes(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(srv *Peer, sess *Session)
		code int32
	}{
		"close here":  {func(_ *Peer, sess *Session) { _ = sess.Close() }, StatusConnClosed},
		"close there": {func(srv *Peer, _ *Session) { _ = srv.Close() }, StatusConnClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 100_000})
				g := newTurnstile(srv.PushRouter)
				sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
				fill(t, sess)
				done := make(chan Xerror, 1)
				go func() { done <- sess.Push("/wait", "x") }()
				requireStill(t, done)
				c.end(srv, sess)
				x := <-done
				require.Equal(t, c.code, x.Code(), "%v", x)
				require.True(t, NotRun(x))
				require.NotNil(t, sess.TryPush("/wait", "x"))
				close(g.let)
			})
		})
	}
}

// A side that shuts down handles what it has, and is sent no more.
func TestShutdownWithPushesThatWaitForCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 100_000})
		g := newTurnstile(srv.PushRouter)
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		n := fill(t, sess)
		done := make(chan Xerror, 1)
		go func() { done <- sess.Push("/wait", "x") }()
		requireStill(t, done)
		over := make(chan error, 1)
		go func() { over <- srv.Shutdown(context.Background()) }()
		synctest.Wait()
		close(g.let)
		require.NoError(t, <-over)
		x := <-done
		require.Equal(t, StatusServiceUnavailable, x.Code(), "%v", x)
		require.True(t, NotRun(x))
		require.EqualValues(t, n, g.handled.Load())
	})
}

// A push that waits when the connection is lost goes by the next one.
func TestPushesThatWaitAreSentAgainAfterARedial(t *testing.T) {
	n := newNet()
	srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 1})
	let := make(chan struct{})
	started := make(chan struct{}, 10)
	HandlePush(srv.PushRouter, "/block", func(PushCtx, *string) { started <- struct{}{}; <-let })
	n.serve("a", srv)
	cli := n.client(t, &PeerConfig{Redial: new(Redial)})
	sess, err := cli.Dial("a")
	require.NoError(t, err)
	big := strings.Repeat("x", 40_000)
	require.Nil(t, sess.Push("/block", big))
	<-started
	require.Nil(t, sess.Push("/block", big))
	before := sess.conn.Load()
	done := make(chan Xerror, 1)
	go func() { done <- sess.Push("/block", big) }()
	require.Eventually(t, func() bool { return before.flow.Waits() }, time.Minute, time.Millisecond)
	srv.RangeSession(func(s *Session) bool { _ = s.Close(); return true })
	require.Nil(t, <-done)
	require.NotSame(t, before, sess.conn.Load())
	close(let)
}

// Two peers whose handlers push to each other until no credit is left would wait for each other for ever.
// When there was no progress for the write timeout the connection ends, and the handlers with it.
func TestPeersThatPushToEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failed, handled atomic.Int64
		newPeer := func() *Peer {
			p := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 2, MaxSessionInput: 1})
			pullFn(p, echo)
			HandlePush(p.PushRouter, "/more", func(ctx PushCtx, text *string) {
				handled.Add(1)
				for range 3 {
					if x := ctx.Session().Push("/more", *text); x != nil {
						failed.Add(1)
					}
				}
			})
			return p
		}
		a, b := connect(t, newPeer(), newPeer(), pipe.Options{})
		require.Nil(t, a.Push("/more", strings.Repeat("x", 20_000)))
		<-a.Done()
		<-b.Done()
		synctest.Wait()
		require.Positive(t, failed.Load())
		require.Greater(t, handled.Load(), int64(5))
		for _, s := range []*Session{a, b} {
			require.Zero(t, s.conn.Load().handlers.Load())
		}
	})
}

// A push that is larger than all that may wait is sent when little waits.
func TestPushesLargerThanTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 100_000})
		g := newTurnstile(srv.PushRouter)
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		large := strings.Repeat("x", 1<<20)
		for range 2 { // one is handled, and one waits
			require.Nil(t, sess.Push("/wait", large))
			synctest.Wait()
		}
		require.NotNil(t, sess.TryPush("/wait", large))
		done := make(chan Xerror, 1)
		go func() { done <- sess.Push("/wait", large) }()
		requireStill(t, done)
		g.let <- struct{}{}
		require.Nil(t, <-done)
		close(g.let)
		synctest.Wait()
		require.EqualValues(t, 3, g.handled.Load())
		require.Zero(t, used(srv))
	})
}

// A peer that does not know credit is pushed to without a bound, after a question that it answers.
func TestPushesToAPeerWithoutCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := withoutCredit(newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1}))
		g := newTurnstile(srv.PushRouter)
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for range 1000 {
			require.Nil(t, sess.Push("/wait", "x"))
		}
		require.Nil(t, sess.TryPush("/wait", strings.Repeat("x", 1<<20)))
		close(g.let)
		synctest.Wait()
		require.EqualValues(t, 1001, g.handled.Load())
	})
}

// Without a bound of what waits there is no bound of what is sent.
func TestCreditWithoutABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: -1})
		g := newTurnstile(srv.PushRouter)
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for range 6000 { // more than 8 MiB
			require.Nil(t, sess.Push("/wait", "x"))
		}
		close(g.let)
		synctest.Wait()
		require.EqualValues(t, 6000, g.handled.Load())
	})
}

// A side that reads nothing is given up when a push has waited for the write timeout.
func TestPushesToOneThatReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pipe.New(pipe.Options{})
		defer far.Close()
		sess, err := newTestPeer(t, nil).ServeConn(near)
		require.NoError(t, err)
		began := time.Now()
		var x Xerror
		for n := 0; x == nil; n++ {
			require.Less(t, n, 100)
			x = sess.Push("/x", "x")
		}
		require.Equal(t, StatusWriteFailed, x.Code())
		<-sess.Done()
		require.Equal(t, 30*time.Second, time.Since(began))
		require.ErrorContains(t, plain(sess.Err(), sess.conn.Load().sock),
			"the other side has not read for 30s")
	})
}

// rawFlow is a session of a peer with the far end in the test's hands.
func rawFlow(t *testing.T, cfg *PeerConfig) (*Peer, *Session, *rawPeer) {
	near, far := pipe.New(pipe.Options{Buffer: 1 << 20})
	p := newTestPeer(t, cfg)
	sess, err := p.ServeConn(near)
	require.NoError(t, err)
	return p, sess, newRawPeer(t, far)
}

// What a side gets that sends beyond its credit, and one that grants nonsense.
func TestCreditThatIsBroken(t *testing.T) {
	grant := func(meta map[string]string) *packet.Packet {
		return &packet.Packet{Header: &packet.Header{Type: packet.TypeCredit, Meta: meta}}
	}
	window := func(window, amount string) *packet.Packet {
		return grant(map[string]string{credit.KeyWindow: window, credit.KeyAmount: amount})
	}
	push := func(n int) *packet.Packet {
		return &packet.Packet{Header: &packet.Header{Type: packet.TypePush, Uri: "/wait"},
			BodyCodec: "string", Body: strings.Repeat("x", n)}
	}
	ask := &packet.Packet{Header: &packet.Header{Type: packet.TypeCredit, Id: "credit"}}
	for name, c := range map[string]struct {
		pushes bool // the peer has pushed before
		sends  []*packet.Packet
		want   string // empty if the session goes on
	}{
		"pushes beyond credit": {false, []*packet.Packet{ask, push(50_000), push(50_000), push(50_000),
			push(50_000)},
			"the other side has pushed beyond its credit: more was sent than was granted"},
		"pushes without credit": {false, []*packet.Packet{push(50_000), push(10)}, ""},
		"asks again and again":  {false, []*packet.Packet{ask, ask, ask}, ""},
		"a grant that nobody asked for": {false, []*packet.Packet{window("100", "100")},
			"a grant makes no sense: this side has not asked for it"},
		"no numbers": {true, []*packet.Packet{grant(nil)},
			`push_window is "", expected a decimal number`},
		"a negative window": {true, []*packet.Packet{window("-1", "1")},
			`push_window is "-1", expected a decimal number`},
		"a window of 0": {true, []*packet.Packet{window("0", "0")}, "a window of 0"},
		"an amount that overflows": {true, []*packet.Packet{window("100000", "18446744073709551616")},
			"pushes is \"18446744073709551616\", expected a decimal number"},
		"an amount beyond the window": {true, []*packet.Packet{window("100000", strconv.Itoa(math.MaxInt))},
			"and the window is 100000"},
		"the same again": {true, []*packet.Packet{window("100000", "100000"), window("100000", "100000")},
			""},
		"less than before": {true, []*packet.Packet{window("100000", "100000"), window("100000", "5"),
			window("100000", "0")}, ""},
		"no bound": {true, []*packet.Packet{grant(map[string]string{credit.KeyWindow: credit.None})}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, sess, raw := rawFlow(t, &PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 100_000})
				g := newTurnstile(p.PushRouter)
				defer close(g.let)
				go func() {
					for raw.receive() != nil {
					}
				}()
				if c.pushes {
					for range 20 {
						require.Nil(t, sess.Push("/x", "x"))
					}
				}
				for _, s := range c.sends {
					if raw.sock.WritePacket(s) != nil {
						break // the session has ended already
					}
				}
				synctest.Wait()
				if c.want == "" {
					require.NoError(t, sess.Err())
					require.Nil(t, sess.TryPush("/x", "x"))
					return
				}
				require.ErrorContains(t, sess.Err(), c.want)
				require.True(t, errors.Is(sess.Err(), credit.ErrGrant) || errors.Is(sess.Err(),
					credit.ErrOverdrawn))
			})
		})
	}
}

// A side that pushes little says nothing of credit.
func TestFewPushesSayNothingOfCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, sess, raw := rawFlow(t, nil)
		for range 10 {
			require.Nil(t, sess.Push("/x", "x"))
			require.Equal(t, packet.TypePush, raw.receive().Header.Type)
		}
	})
}
