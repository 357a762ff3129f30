package tp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// blockedPeer serves /wait and the push /wait, which wait until the channel is
// closed, and echo.
func blockedPeer(t *testing.T, cfg PeerConfig) (p *Peer, release chan struct{}, ran *atomic.Int32) {
	release, ran = make(chan struct{}), new(atomic.Int32)
	p = newTestPeer(t, &cfg)
	HandlePull(p.PullRouter, "/wait", func(PullCtx, *string) (string, Xerror) {
		ran.Add(1)
		<-release
		return "done", nil
	})
	HandlePush(p.PushRouter, "/wait", func(PushCtx, *string) {
		ran.Add(1)
		<-release
	}, Unordered())
	pullFn(p, echo)
	return p, release, ran
}

// A pull over the limit of handlers is answered at once and does not run. The
// session is read all the time.
func TestPullsOverTheLimitOfHandlers(t *testing.T) {
	for name, c := range map[string]struct {
		cfg      PeerConfig
		sessions int
	}{
		"one session": {PeerConfig{MaxSessionHandlers: 3}, 1},
		"all":         {PeerConfig{MaxHandlers: 3}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, release, ran := blockedPeer(t, c.cfg)
				cli := newTestPeer(t, nil)
				var sessions []*Session
				for range c.sessions {
					sess, _ := connect(t, cli, srv, pipe.Options{})
					sessions = append(sessions, sess)
				}
				done := make(chan *PullCmd, 3)
				for i := range 3 {
					sessions[i%c.sessions].GoPull("/wait", "", new(string), done)
				}
				synctest.Wait()
				require.EqualValues(t, 3, ran.Load())
				for _, sess := range sessions {
					for range 100 {
						cmd := sess.Pull("/wait", "", nil)
						require.Equal(t, StatusOverloaded, cmd.Xerror.Code())
						require.Contains(t, cmd.Xerror.Text(), "not run")
					}
				}
				require.EqualValues(t, 3, ran.Load())
				close(release)
				for range 3 {
					require.Nil(t, (<-done).Xerror)
				}
				synctest.Wait()
				for _, sess := range sessions {
					requireAlive(t, sess)
				}
			})
		})
	}
}

// While as many handlers run as may, one of them that pulls back gets its reply.
func TestPullBackAtTheLimitOfHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 2, MaxHandlers: 2}), newTestPeer(t, nil)
		pullFn(cli, echo)
		pullFn(srv, func(ctx PullCtx, args interface{}) (interface{}, Xerror) {
			time.Sleep(time.Second)
			var got interface{}
			cmd := ctx.Session().Pull("/fn/call", args, &got)
			return got, cmd.Xerror
		})
		sess, _ := connect(t, cli, srv, pipe.Options{})
		done := make(chan *PullCmd, 10)
		for i := range cap(done) {
			sess.GoPull("/fn/call", fmt.Sprint(i), new(interface{}), done)
		}
		good := 0
		for range cap(done) {
			if cmd := <-done; cmd.Xerror == nil {
				good++
			} else {
				require.Equal(t, StatusOverloaded, cmd.Xerror.Code())
			}
		}
		require.Equal(t, 2, good)
	})
}

// A push over the limit waits and is handled once, in whatever way the limit is
// reached.
func TestPushesOverTheLimitOfHandlers(t *testing.T) {
	for name, cfg := range map[string]PeerConfig{
		"one session": {MaxSessionHandlers: 1},
		"all":         {MaxHandlers: 1},
		"both":        {MaxSessionHandlers: 2, MaxHandlers: 3},
	} {
		for _, how := range []string{"return", "Goexit", "panic"} {
			t.Run(name+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const sessions, pushes = 4, 25
					release := make(chan struct{})
					var running, most, handled atomic.Int32
					srv, cli := newTestPeer(t, &cfg), newTestPeer(t, nil)
					pullFn(srv, echo)
					pushFn(srv, func(PushCtx, interface{}) {
						n := running.Add(1)
						for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
						}
						defer handled.Add(1)
						defer running.Add(-1)
						<-release
						switch how {
						case "Goexit":
							runtime.Goexit()
						case "panic":
							panic(how)
						}
					})
					var all, others []*Session
					for range sessions {
						sess, other := connect(t, cli, srv, pipe.Options{})
						all, others = append(all, sess), append(others, other)
						for i := range pushes {
							require.Nil(t, sess.Push("/fn_push/call", i))
						}
					}
					synctest.Wait()
					limit := map[string]int32{"one session": sessions, "all": 1, "both": 3}[name]
					require.Equal(t, limit, running.Load())
					require.Positive(t, srv.memory())
					close(release)
					synctest.Wait()
					require.EqualValues(t, sessions*pushes, handled.Load())
					require.LessOrEqual(t, most.Load(), limit)
					require.Zero(t, srv.memory())
					require.Zero(t, srv.workers.Running())
					for i, sess := range all {
						cn := others[i].conn.Load()
						running, pushes, pushBytes := srv.workers.Count(&cn.queue)
						require.Zero(t, running)
						require.Zero(t, pushes)
						require.Zero(t, pushBytes)
						require.Zero(t, cn.calls.Len())
						requireAlive(t, sess)
					}
				})
			})
		}
	}
}

// A session whose pushes wait in larger numbers than there is room for is closed,
// and the log says why. Others do not notice.
func TestTooManyPushesWait(t *testing.T) {
	log := captureLog(t, LevelInfo)
	synctest.Test(t, func(t *testing.T) {
		srv, release, ran := blockedPeer(t, PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 100_000})
		cli := withoutCredit(newTestPeer(t, nil))
		good, _ := connect(t, cli, srv, pipe.Options{})
		bad, other := connect(t, cli, srv, pipe.Options{})
		for range 1000 {
			if bad.Push("/wait", "x") != nil {
				break
			}
		}
		<-other.Done()
		requireAlive(t, good)
		close(release)
		synctest.Wait()
		require.EqualValues(t, 1, ran.Load(), "those that waited were dropped")
		require.Zero(t, other.conn.Load().handlers.Load())
		require.Zero(t, srv.memory())
		requireAlive(t, good)
	})
	log.next(t, "too many pushes wait to be handled", "dropped")
}

// Pushes that wait are handled before a peer that shuts down is through, also
// those of a session that the other side has closed.
func TestShutdownHandlesPushesThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxHandlers: 1})
		var handled atomic.Int32
		pushFn(srv, func(PushCtx, interface{}) {
			time.Sleep(time.Second)
			handled.Add(1)
		})
		sess, other := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for i := range 10 {
			require.Nil(t, sess.Push("/fn_push/call", i))
		}
		require.NoError(t, sess.Close())
		<-other.Done()
		require.NoError(t, srv.Shutdown(t.Context()))
		require.EqualValues(t, 10, handled.Load())
	})
}

// Close drops the pushes that wait.
func TestCloseDropsPushesThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, release, ran := blockedPeer(t, PeerConfig{MaxHandlers: 2})
		sess, other := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for range 100 {
			require.Nil(t, sess.Push("/wait", strings.Repeat("x", 1000)))
		}
		synctest.Wait()
		require.NoError(t, srv.Close())
		close(release)
		synctest.Wait()
		require.EqualValues(t, 2, ran.Load())
		require.Zero(t, other.conn.Load().handlers.Load())
		require.Zero(t, srv.memory())
	})
}

// What one side answers to nonsense takes bounded memory, even if the other side
// does not read it, and no goroutine each.
func TestRefusalsThatNobodyReads(t *testing.T) {
	for _, hooked := range []bool{false, true} {
		t.Run(fmt.Sprintf("hooks=%v", hooked), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var plugins []Plugin
				if hooked {
					plugins = append(plugins, hookPlugin("nothing", "", nil))
				}
				srv := newTestPeer(t, &PeerConfig{MaxSessionOutput: 100_000, MaxSessionHandlers: 10},
					plugins...)
				conn, far := pipe.New(pipe.Options{Buffer: 1000})
				defer far.Close()
				sess, err := srv.ServeConn(conn)
				require.NoError(t, err)
				frame, err := packet.Append(nil, &packet.Packet{
					Header: &packet.Header{Id: "1", Type: packet.TypePull, Uri: "/nowhere"},
				}, packet.Limits{})
				require.NoError(t, err)
				before := runtime.NumGoroutine()
				for range 20_000 {
					if _, err := far.Write(frame); err != nil {
						break
					}
				}
				<-sess.Done()
				require.Less(t, runtime.NumGoroutine(), before+30)
				synctest.Wait()
				require.Zero(t, srv.memory())
			})
		})
	}
}

// Every way in which a body takes from the budget gives it back, and one that
// finds nothing left fails alone.
func TestBudgetOfBodies(t *testing.T) {
	const budget = 12 << 20
	large := strings.Repeat("x", 300<<10)
	synctest.Test(t, func(t *testing.T) {
		srv, release, ran := blockedPeer(t, PeerConfig{MaxBufferedBytes: budget, DefaultBodyCodec: "string"})
		srv.PullRouter.SetUnknown(func(_ UnknownPullCtx, body *[]byte) (interface{}, Xerror) {
			return packet.RawBody(*body), nil
		})
		cli := newTestPeer(t, &PeerConfig{DefaultBodyCodec: "string"})
		sess, _ := connect(t, cli, srv, pipe.Options{})

		done := make(chan *PullCmd, 10)
		for range cap(done) {
			sess.GoPull("/wait", large, new(string), done)
		}
		refused := 0
		for synctest.Wait(); len(done) > 0; refused++ {
			require.Equal(t, StatusOverloaded, (<-done).Xerror.Code())
		}
		require.EqualValues(t, cap(done), refused+int(ran.Load()))
		require.Positive(t, refused)
		require.Positive(t, ran.Load())
		require.LessOrEqual(t, used(srv), int64(budget))
		require.Positive(t, used(srv))
		require.Nil(t, sess.Pull("/fn/call", "small", new(string)).Xerror, "there is room for small ones")
		close(release)
		for range ran.Load() {
			require.Nil(t, (<-done).Xerror)
		}
		require.Zero(t, used(srv))

		var got string
		for range 20 {
			require.Nil(t, sess.Pull("/unknown", large, &got).Xerror)
			require.Equal(t, large, got)
			require.Nil(t, sess.Pull("/unknown", large, &got, WithGzip(1)).Xerror)
			require.Equal(t, StatusBadRequest, sess.Pull("/a//b", large, &got).Xerror.Code())
			require.Nil(t, sess.Push("/nowhere", large))
			require.Equal(t, StatusBadRequest, sess.Pull("/fn/call", packet.RawBody("j{"+large),
				&got).Xerror.Code())
			require.Zero(t, used(srv))
		}
	})
}

// A peer takes its own replies from the budget too.
func TestBudgetOfReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		pullFn(srv, echo)
		cli := newTestPeer(t, &PeerConfig{MaxBufferedBytes: 400_000, DefaultBodyCodec: "json"})
		sess, _ := connect(t, cli, srv, pipe.Options{})
		var got interface{}
		cmd := sess.Pull("/fn/call", strings.Repeat("x", 200_000), &got)
		require.Equal(t, StatusTooLarge, cmd.Xerror.Code(), "the pull has run: it is no overload")
		requireAlive(t, sess)
		require.Nil(t, sess.Pull("/fn/call", strings.Repeat("x", 50_000), &got).Xerror)
		require.Zero(t, cli.memory())
	})
}

// A packet must come within FrameTimeout, however slowly its bytes trickle; a
// session that is idle between packets may be so for ever.
func TestFrameTimeout(t *testing.T) {
	log := captureLog(t, LevelInfo)
	for _, readTimeout := range []time.Duration{0, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			srv := newTestPeer(t, &PeerConfig{FrameTimeout: 10 * time.Second,
				DefaultReadTimeout: readTimeout})
			pullFn(srv, echo)
			conn, far := pipe.New(pipe.Options{})
			defer far.Close()
			sess, err := srv.ServeConn(conn)
			require.NoError(t, err)
			frame, err := packet.Append(nil, &packet.Packet{
				Header: &packet.Header{Id: "1", Type: packet.TypePull, Uri: "/fn/call"},
				Body:   strings.Repeat("x", 1000),
			}, packet.Limits{})
			require.NoError(t, err)
			go func() { _, _ = io.Copy(io.Discard, far) }()
			for range 5 { // 9 s each, in three pieces, with pauses between
				for piece := range 3 {
					_, err := far.Write(frame[len(frame)*piece/3 : len(frame)*(piece+1)/3])
					require.NoError(t, err)
					time.Sleep(3 * time.Second)
				}
				time.Sleep(30 * time.Second)
			}
			start := time.Now()
			for _, b := range frame {
				if _, err := far.Write([]byte{b}); err != nil {
					break
				}
				time.Sleep(time.Second)
			}
			<-sess.Done()
			require.Less(t, time.Since(start), 12*time.Second)
		})
		log.next(t, "a packet was not complete after 10s")
	}
}

// One that never reads costs its output's limit, and is closed when the write
// timeout is over.
func TestOutputOfASessionThatNeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := withoutCredit(newTestPeer(t, &PeerConfig{MaxSessionOutput: 1 << 20,
			DefaultWriteTimeout: 5 * time.Second}))
		conn, far := pipe.New(pipe.Options{})
		defer far.Close()
		sess, err := srv.ServeConn(conn)
		require.NoError(t, err)
		start := time.Now()
		body := strings.Repeat("x", 1000)
		var x Xerror
		for n := 0; x == nil; n++ {
			require.Less(t, n, 2000)
			x = sess.Push("/x", body, WithBodyCodec("string"))
			require.LessOrEqual(t, srv.memory(), int64(2<<20))
		}
		<-sess.Done()
		require.LessOrEqual(t, time.Since(start), 6*time.Second)
		require.Zero(t, srv.memory())
	})
}

// A session that would have to wait for the budget may still have one packet on
// its way, so that no session holds up another.
func TestBudgetOfOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := withoutCredit(newTestPeer(t, &PeerConfig{MaxBufferedBytes: 1 << 20}))
		cli := newTestPeer(t, nil)
		pullFn(cli, echo)
		stuckConn, far := pipe.New(pipe.Options{})
		defer far.Close()
		stuck, err := srv.ServeConn(stuckConn)
		require.NoError(t, err)
		good, _ := connect(t, srv, cli, pipe.Options{})
		go func() {
			for stuck.Push("/x", strings.Repeat("x", 10_000), WithBodyCodec("string")) == nil {
			}
		}()
		synctest.Wait()
		require.LessOrEqual(t, srv.memory(), int64(192<<10), "an eighth, and its share")
		require.Greater(t, srv.memory(), int64(100<<10))
		for range 10 {
			requireAlive(t, good)
		}
		require.NoError(t, stuck.Close())
		synctest.Wait()
		require.Zero(t, srv.memory())
	})
}

func TestDefaultPullTimeout(t *testing.T) {
	for _, plugins := range [][]Plugin{nil, {hookPlugin("nothing", "", nil)}} {
		synctest.Test(t, func(t *testing.T) {
			srv, release, _ := blockedPeer(t, PeerConfig{})
			cli := newTestPeer(t, &PeerConfig{DefaultPullTimeout: 3 * time.Second}, plugins...)
			sess, _ := connect(t, cli, srv, pipe.Options{})
			requireAlive(t, sess)
			start := time.Now()
			cmd := sess.Pull("/wait", "", nil)
			require.Equal(t, StatusDeadlineExceeded, cmd.Xerror.Code())
			require.Equal(t, 3*time.Second, time.Since(start))
			cmd = <-sess.GoPull("/wait", "", nil, nil).Done()
			require.Equal(t, StatusDeadlineExceeded, cmd.Xerror.Code())
			require.Equal(t, 6*time.Second, time.Since(start))
			require.Zero(t, sess.conn.Load().pulls.Len())
			close(release) // the replies come too late
			synctest.Wait()
			for range 100 {
				requireAlive(t, sess)
			}
			time.Sleep(time.Minute) // no timer of theirs is left
			requireAlive(t, sess)
		})
	}
}

// Connections beyond the limits are closed at once, and there is room again when
// others have gone.
func TestLimitsOfSessions(t *testing.T) {
	log := captureLog(t, LevelInfo)
	srv, cli := newTestPeer(t, &PeerConfig{MaxSessions: 3}), newTestPeer(t, nil)
	pullFn(srv, echo)
	addr := serve(t, srv)
	var sessions []*Session
	for range 3 {
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		requireAlive(t, sess)
		sessions = append(sessions, sess)
	}
	for range 10 {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		_, err = conn.Read(make([]byte, 1))
		require.Error(t, err)
		_ = conn.Close()
	}
	log.next(t, "refused", "MaxSessions")
	_, err := srv.Dial(addr)
	require.ErrorContains(t, err, "MaxSessions")
	for _, sess := range sessions {
		requireAlive(t, sess)
	}
	other, ok := srv.GetSession(sessions[0].Socket().LocalAddr().String())
	require.True(t, ok)
	require.NoError(t, sessions[0].Close())
	<-other.Done()
	for srv.sessions.full() { // its socket is being closed
		runtime.Gosched()
	}
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	requireAlive(t, sess)
}

// The least that the zero configuration promises.
func TestDefaultLimits(t *testing.T) {
	p := newTestPeer(t, nil)
	require.Equal(t, 30*time.Second, p.cfg.DefaultWriteTimeout)
	require.Equal(t, 30*time.Second, p.cfg.FrameTimeout)
	require.Zero(t, p.cfg.DefaultReadTimeout)
	require.Zero(t, p.cfg.DefaultPullTimeout)
	require.Equal(t, []time.Duration{10 * time.Second, 10 * time.Second, 10 * time.Second},
		[]time.Duration{p.cfg.DefaultDialTimeout, p.cfg.HandshakeTimeout, p.cfg.HookTimeout})
	require.Equal(t, 15*time.Second, p.cfg.KeepAlive)
	require.Equal(t, 30*time.Second, p.cfg.UserTimeout)
	require.EqualValues(t, 256<<20, p.cfg.MaxBufferedBytes)
	require.Equal(t, []int64{8 << 20, 8 << 20}, []int64{p.cfg.MaxSessionInput, p.cfg.MaxSessionOutput})
	require.Equal(t, []int{4096, 65536, 1024, 256}, []int{p.cfg.MaxSessionHandlers, p.cfg.MaxHandlers,
		p.cfg.MaxHandshakes, p.cfg.MaxHandshakesPerAddr})
	require.LessOrEqual(t, p.cfg.MaxSessions, 65536)
	require.Positive(t, p.cfg.MaxSessions)
}

// Negative values are no bounds, in every field.
func TestNoLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := PeerConfig{
			DefaultReadTimeout: -1, DefaultWriteTimeout: -1, DefaultPullTimeout: -1, DefaultDialTimeout: -1,
			HandshakeTimeout: -1, HookTimeout: -1, FrameTimeout: -1, KeepAlive: -1, UserTimeout: -1,
			MaxHeaderBytes: -1, MaxBodyBytes: -1, MaxInflatedBytes: -1, MaxBodyDepth: -1,
			MaxBufferedBytes: -1,
			MaxSessionInput:  -1, MaxSessionOutput: -1, MaxSessionHandlers: -1, MaxHandlers: -1,
			MaxSessions: -1, MaxHandshakes: -1, MaxHandshakesPerAddr: -1,
		}
		a, b := newTestPeer(t, &cfg, hookPlugin("nothing", "", nil)), newTestPeer(t, &cfg)
		pullFn(b, echo)
		sess, _ := connect(t, a, b, pipe.Options{})
		requireAlive(t, sess)
		large := strings.Repeat("x", 17<<20)
		var got interface{}
		require.Nil(t, sess.Pull("/fn/call", large, &got).Xerror)
		require.Equal(t, large, got)
		deep := strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
		require.Nil(t, sess.Pull("/fn/call", packet.RawBody("j"+deep), &got).Xerror)
	})
}

// Bodies that are nested too deep are refused before they are decoded.
func TestDepthOfBodies(t *testing.T) {
	srv, cli := newTestPeer(t, &PeerConfig{MaxBodyDepth: 10}), newTestPeer(t, nil)
	pullFn(srv, echo)
	sess, _ := connect(t, cli, srv, pipe.Options{})
	for depth, ok := range map[int]bool{1: true, 10: true, 11: false, 1 << 20: false} {
		for _, open := range []string{"[", `{"a":`} {
			end := map[string]string{"[": "]", `{"a":`: "}"}[open]
			body := strings.Repeat(open, depth) + "1" + strings.Repeat(end, depth)
			var got interface{}
			cmd := sess.Pull("/fn/call", packet.RawBody("j"+body), &got)
			if ok {
				require.Nil(t, cmd.Xerror, "%d %v", depth, cmd.Xerror)
			} else {
				require.Equal(t, StatusBadRequest, cmd.Xerror.Code())
				require.Contains(t, cmd.Xerror.Text(), "nested deeper than 10")
			}
		}
	}
	var got interface{}
	texts := `["[[[[[[[[[[[[[", "\"[[[[[[[[[[[[[[", {"a\\":"{{{{{{{{{{{{{{{"}]`
	require.Nil(t, sess.Pull("/fn/call", packet.RawBody("j"+texts), &got).Xerror,
		"brackets in texts do not count")
}

// A header announces a body of 1 MiB and more, and nothing of it comes: that
// takes no memory.
func TestAnnouncedBodiesTakeNoMemory(t *testing.T) {
	for range 3 { // buffers that other tests have left may be taken: the collector empties the pools
		runtime.GC()
	}
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		pullFn(srv, echo)
		frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypePull,
			Uri: "/fn/call"}}, packet.Limits{})
		require.NoError(t, err)
		binary.BigEndian.PutUint32(frame[len(frame)-4:], 4<<20)
		for range 100 {
			conn, far := pipe.New(pipe.Options{})
			defer far.Close()
			_, err := srv.ServeConn(conn)
			require.NoError(t, err)
			_, err = far.Write(append(bytes.Clone(frame), 'j'))
			require.NoError(t, err)
		}
		synctest.Wait()
		require.LessOrEqual(t, srv.memory(), int64(100*64<<10))
	})
}

// used returns what of the peer's budget is taken when nothing goes on.
func used(p *Peer) int64 {
	synctest.Wait()
	return p.memory()
}

// exitJSON ends the goroutine that encodes it.
type exitJSON struct{}

func (exitJSON) MarshalJSON() ([]byte, error) { runtime.Goexit(); return nil, nil }

// Whatever ends a call, its body is paid back and its turn to encode ends: those
// that come after it find the session as it was.
func TestGoexitAndTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		cli := newTestPeer(t, nil, hookPlugin("exit", "PostReadBody", func(c interface{}) error {
			if c.(WriteCtx).Output().Header.Uri == "/fn/call?exit" {
				runtime.Goexit()
			}
			return nil
		}))
		pullFn(srv, echo)
		HandlePull(srv.PullRouter, "/exit", func(PullCtx, *string) (string, Xerror) {
			runtime.Goexit()
			return "", nil
		})
		HandlePull(srv.PullRouter, "/exit-later", func(PullCtx, *string) (exitJSON, Xerror) {
			return exitJSON{}, nil
		})
		sess, _ := connect(t, cli, srv, pipe.Options{})
		body := strings.Repeat("x", 5000)
		for range 10 {
			require.Equal(t, StatusInternalServerError, sess.Pull("/exit", body, nil).Xerror.Code())
			require.Equal(t, StatusInternalServerError, sess.Pull("/exit-later", body, nil).Xerror.Code())
			cmd := <-sess.GoPull("/fn/call?exit", body, new(string), nil).Done()
			require.Equal(t, StatusFailedPlugin, cmd.Xerror.Code())
			requireAlive(t, sess)
		}
		require.Zero(t, used(srv))
		require.Zero(t, used(cli))
	})
}

// A push that is too much for its session is paid back like those that wait.
func TestLargePushThatCannotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, release, _ := blockedPeer(t, PeerConfig{MaxSessionHandlers: 1})
		sess, other := connect(t, withoutCredit(newTestPeer(t, nil)), srv, pipe.Options{})
		require.Nil(t, sess.Push("/wait", "x"))
		require.Nil(t, sess.Push("/wait", strings.Repeat("x", 10<<20)), "one may wait, whatever its size")
		synctest.Wait()
		_, _, pushBytes := srv.workers.Count(&other.conn.Load().queue)
		require.Greater(t, pushBytes, int64(10<<20))
		require.Nil(t, sess.Push("/wait", strings.Repeat("x", 5000)))
		<-other.Done()
		close(release)
		require.Zero(t, used(srv))
	})
}

// What waits is counted as what it takes. Who pushes more than there is memory for ends
// with that, and others have their share all the same.
func TestPushesThatWaitAndTheBudget(t *testing.T) {
	log := captureLog(t, LevelInfo)
	synctest.Test(t, func(t *testing.T) {
		srv, release, _ := blockedPeer(t, PeerConfig{MaxSessionHandlers: 1, MaxBufferedBytes: 12 << 20})
		cli := newTestPeer(t, nil)
		greedy, other := connect(t, cli, srv, pipe.Options{})
		for range 20 {
			require.Nil(t, greedy.Push("/wait", strings.Repeat("x", 5000)))
		}
		synctest.Wait()
		_, _, pushBytes := srv.workers.Count(&other.conn.Load().queue)
		require.GreaterOrEqual(t, pushBytes, used(srv)-2*(65<<10))
		modest, another := connect(t, cli, srv, pipe.Options{})
		require.Nil(t, modest.Push("/wait", "x"))
		for i := 0; i < 10_000 && greedy.Push("/wait", "x") == nil; i++ {
			require.LessOrEqual(t, srv.memory(), int64(3<<20))
		}
		for range 10 {
			require.Nil(t, modest.Push("/wait", "x"))
		}
		<-other.Done()
		require.True(t, another.isOpen())
		close(release)
		require.Zero(t, used(srv))
		requireAlive(t, modest)
	})
	log.next(t, "too many pushes wait to be handled")
}

// A session that always has pushes waiting does not keep another's from being
// handled.
func TestWaitingSessionsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var of [2]atomic.Int32
		srv, cli := newTestPeer(t, &PeerConfig{MaxHandlers: 1}), newTestPeer(t, nil)
		pushFn(srv, func(_ PushCtx, args interface{}) {
			of[int(args.(float64))].Add(1)
			time.Sleep(10 * time.Millisecond)
		})
		busy, _ := connect(t, cli, srv, pipe.Options{})
		other, _ := connect(t, cli, srv, pipe.Options{})
		for range 20 {
			require.Nil(t, busy.Push("/fn_push/call", 0))
		}
		synctest.Wait()
		require.Nil(t, other.Push("/fn_push/call", 1))
		for range 5 {
			require.Nil(t, busy.Push("/fn_push/call", 0))
			time.Sleep(10 * time.Millisecond)
		}
		require.EqualValues(t, 1, of[1].Load())
		require.Less(t, of[0].Load(), int32(10))
		time.Sleep(time.Minute)
		require.EqualValues(t, 25, of[0].Load())
	})
}

// The hooks of a route see the reply that refuses a body of its own.
func TestHooksOfARouteSeeRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen atomic.Int32
		srv := newTestPeer(t, &PeerConfig{MaxBodyBytes: 100})
		pullFn(srv, echo, hookPlugin("route", "PreWriteReply", func(c interface{}) error {
			if c.(WriteCtx).Output().Header.StatusCode == StatusTooLarge {
				seen.Add(1)
			}
			return nil
		}))
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		require.Equal(t, StatusTooLarge, sess.Pull("/fn/call", strings.Repeat("x", 200), nil).Xerror.Code())
		require.EqualValues(t, 1, seen.Load())
	})
}

// A hook that goes on after its time counts as a handshake as long as it does.
func TestHooksThatHangAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		srv := newTestPeer(t, &PeerConfig{HookTimeout: time.Second}, hookPlugin("hang", "PostAccept",
			func(interface{}) error {
				<-hold
				return nil
			}))
		for range 3 {
			conn, far := pipe.New(pipe.Options{})
			_, err := srv.ServeConn(conn)
			require.ErrorContains(t, err, "took too long")
			require.NoError(t, far.Close())
		}
		require.EqualValues(t, 3, srv.handshakes.Len())
		close(hold)
		synctest.Wait()
		require.Zero(t, srv.handshakes.Len())
	})
}

// Pushes and pulls to a session that does not read are not encoded before there is
// room for them.
func TestPushersOfOneThatNeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxSessionOutput: 2 << 20, DefaultBodyCodec: "string",
			DefaultWriteTimeout: -1})
		conn, far := pipe.New(pipe.Options{})
		sess, err := srv.ServeConn(conn)
		require.NoError(t, err)
		body := strings.Repeat("x", 1<<20)
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 100 {
			go sess.Push("/x", body)
			go sess.Pull("/x", body, nil)
		}
		synctest.Wait()
		runtime.GC()
		runtime.ReadMemStats(&after)
		require.Less(t, int64(after.HeapInuse)-int64(before.HeapInuse), int64(30<<20))
		require.NoError(t, sess.Close())
		_ = far.Close()
		synctest.Wait()
	})
}

// A level is what a header's gzip is: one that does not fit cannot be written down.
var (
	_ *int32                    = &new(PeerConfig).DefaultBodyGzipLevel
	_ func(int32) PacketSetting = WithGzip
	_ func(PullCtx, int32)      = PullCtx.SetGzip
)
