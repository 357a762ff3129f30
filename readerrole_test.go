package tp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// gate is called by whatever may hold up a reader in these tests.
var gate atomic.Pointer[func(point string)]

func passGate(point string) { (*gate.Load())(point) }

func setGate(t testing.TB, f func(point string)) {
	gate.Store(&f)
	t.Cleanup(func() { gate.Store(nil) })
}

// holdHandlers holds up the handlers of /slow until the channel is closed.
func holdHandlers(t testing.TB) (release chan struct{}) {
	release = make(chan struct{})
	setGate(t, func(p string) {
		if p == "handler" {
			<-release
		}
	})
	return release
}

type gatedArgs struct{}

func (*gatedArgs) UnmarshalJSON([]byte) error { passGate("decode"); return nil }

type gatedReply struct{}

func (gatedReply) MarshalJSON() ([]byte, error) { passGate("encode"); return []byte(`"slow"`), nil }

// gatedPeer serves /slow, which passes the gate wherever users' code may be, and
// /quick. Both are taken for quick.
func gatedPeer(t testing.TB) *Peer {
	points := &routePlugin{"points", map[string]func(interface{}) error{}}
	for _, point := range []string{"PreReadBody", "PostReadBody", "PreWriteReply", "PostWriteReply"} {
		points.on[point] = func(interface{}) error { passGate(point); return nil }
	}
	srv := newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/slow", func(PullCtx, *gatedArgs) (gatedReply, Xerror) {
		passGate("handler")
		return gatedReply{}, nil
	}, points)
	HandlePull(srv.PullRouter, "/quick", func(ctx PullCtx, args *string) (string, Xerror) {
		return *args, nil
	})
	takeForQuick(srv)
	return srv
}

func takeForQuick(p *Peer) {
	for _, r := range []*routes{p.PullRouter.routes, p.PushRouter.routes} {
		for _, h := range r.table.Load().all {
			h.pace.Assume()
		}
	}
}

// readers counts the goroutines that read sessions, in the test's bubble.
func readers() (n int) {
	synctest.Wait()
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		head, _, _ := strings.Cut(stack, "\n")
		if strings.Contains(head, "synctest bubble") && strings.Contains(stack, ".(*conn).read(") {
			n++
		}
	}
	return n
}

var gatePoints = []string{"PreReadBody", "decode", "PostReadBody", "handler", "PreWriteReply", "encode",
	"PostWriteReply"}

// Wherever a quick route's call is held up, what comes behind it on the same
// session waits a millisecond at most, the call itself is answered once, and one
// reader is left.
func TestHeldUpReaderIsReplaced(t *testing.T) {
	for _, point := range gatePoints {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				var calls, passed atomic.Int32
				setGate(t, func(p string) {
					if p == "handler" {
						calls.Add(1)
					}
					if p == point && passed.Add(1) == 1 {
						<-release
					}
				})
				cli := newTestPeer(t, nil)
				sess, _ := connect(t, cli, gatedPeer(t), pipe.Options{})

				slow := sess.GoPull("/slow", 1, new(string), nil)
				synctest.Wait()
				for i := range 3 {
					var got string
					start := time.Now()
					require.Nil(t, sess.Pull("/quick", "hello", &got).Xerror)
					require.Equal(t, "hello", got)
					took := time.Since(start)
					require.LessOrEqual(t, took, 2*role.Tick)
					require.Equal(t, i == 0, took > 0, "the first waits, the others do not: %v", took)
				}
				synctest.Wait()
				if point == "PostWriteReply" { // the reply has been sent by then
					require.Len(t, slow.Done(), 1)
				} else {
					require.Empty(t, slow.Done())
				}
				close(release)
				cmd := <-slow.Done()
				require.Nil(t, cmd.Xerror)
				require.Equal(t, "slow", *cmd.reply.(*string))
				require.EqualValues(t, 1, calls.Load())

				// The reader that was held up does not go on reading.
				synctest.Wait()
				require.Equal(t, 2, readers(), "one for each end")
				var got string
				require.Nil(t, sess.Pull("/quick", "still here", &got).Xerror)
				require.Equal(t, "still here", got)
			})
		})
	}
}

// Many are held up, one after the other, as when what all handlers wait for is
// gone. Every one costs what comes behind it a millisecond at most.
func TestManyHeldUpReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := holdHandlers(t)
		srv := gatedPeer(t)
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		done := make(chan *PullCmd, 100)
		start := time.Now()
		for range 100 {
			takeForQuick(srv)
			sess.GoPull("/slow", 1, new(string), done)
			var got string
			require.Nil(t, sess.Pull("/quick", "x", &got).Xerror)
		}
		require.LessOrEqual(t, time.Since(start), 100*2*role.Tick)
		require.Empty(t, done)
		close(release)
		for range 100 {
			cmd := <-done
			require.Nil(t, cmd.Xerror)
			require.Equal(t, "slow", *cmd.reply.(*string))
		}
		synctest.Wait()
		require.Equal(t, 2, readers())
	})
}

// Replies of handlers that ran before the one that blocks are not held back with
// it.
func TestRepliesBeforeAHeldUpHandlerLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := holdHandlers(t)
		srv := gatedPeer(t)
		ca, cb := pipe.New(pipe.Options{})
		raw := socket.New(ca, socket.Options{})
		defer raw.Close()
		// All requests are there before any is read.
		for i, uri := range []string{"/quick", "/quick", "/slow"} {
			_, err := raw.Send(context.Background(), encoded(t, raw, &packet.Packet{
				Header: &packet.Header{Id: fmt.Sprint(i), Type: packet.TypePull, Uri: uri}, Body: "x",
			}), socket.Queue)
			require.NoError(t, err)
		}
		require.NoError(t, raw.Flush())
		start := time.Now()
		_, err := srv.ServeConn(cb)
		require.NoError(t, err)
		for i := range 2 {
			var p packet.Packet
			require.NoError(t, raw.ReadPacket(&p, nil))
			require.Equal(t, fmt.Sprint(i), p.Header.Id)
		}
		require.LessOrEqual(t, time.Since(start), 2*role.Tick)
		close(release)
		var p packet.Packet
		require.NoError(t, raw.ReadPacket(&p, nil))
		require.Equal(t, "2", p.Header.Id)
	})
}

func encoded(t testing.TB, s *socket.Socket, p *packet.Packet) socket.Frame {
	t.Helper()
	f, err := s.Encode(socket.Permit{}, nil, p)
	require.NoError(t, err)
	return f
}

// A reader that is held up by its own write, because the other side does not
// read, is replaced too: what is sent is still taken in.
func TestReaderHeldUpByAWriteIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		HandlePull(srv.PullRouter, "/quick", func(ctx PullCtx, args *string) (string, Xerror) {
			return *args, nil
		})
		pushed := make(chan struct{}, 10)
		HandlePush(srv.PushRouter, "/note", func(PushCtx, *string) { pushed <- struct{}{} })
		takeForQuick(srv)
		ca, cb := pipe.New(pipe.Options{Buffer: 1000})
		raw := socket.New(ca, socket.Options{})
		defer raw.Close()
		sess, err := srv.ServeConn(cb)
		require.NoError(t, err)

		// The reply is larger than the connection holds, and is not read.
		text := strings.Repeat("x", 10000)
		require.NoError(t, raw.WritePacket(&packet.Packet{Header: &packet.Header{Id: "1",
			Type: packet.TypePull, Uri: "/quick"}, Body: text}))
		for range 3 {
			start := time.Now()
			require.NoError(t, raw.WritePacket(&packet.Packet{Header: &packet.Header{Type: packet.TypePush,
				Uri: "/note"}, Body: "x"}))
			<-pushed
			require.LessOrEqual(t, time.Since(start), 2*role.Tick)
		}
		var got string
		require.NoError(t, raw.ReadPacket(new(packet.Packet),
			func(*packet.Header) interface{} { return &got }))
		require.Equal(t, text, got)
		synctest.Wait()
		require.Equal(t, 1, readers())
		require.NoError(t, sess.Close())
	})
}

// A quick handler may pull from its caller: the reader that would take the reply
// is the one that waits for it, until it is replaced.
func TestQuickHandlerPullsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		HandlePull(srv.PullRouter, "/back", func(ctx PullCtx, args *string) (string, Xerror) {
			var got string
			cmd := ctx.Session().Pull("/echo", *args, &got)
			return got, cmd.Xerror
		})
		HandlePull(cli.PullRouter, "/echo", func(ctx PullCtx, args *string) (string, Xerror) {
			return *args, nil
		})
		takeForQuick(srv)
		takeForQuick(cli)
		sess, _ := connect(t, cli, srv, pipe.Options{})
		for range 5 {
			takeForQuick(srv)
			var got string
			require.Nil(t, sess.Pull("/back", "ping", &got).Xerror)
			require.Equal(t, "ping", got)
		}
	})
}

// runtime.Goexit in a quick handler ends its goroutine, which is the reader: the
// call is answered and another reader goes on.
func TestGoexitInAQuickHandler(t *testing.T) {
	for _, point := range gatePoints {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				setGate(t, func(p string) {
					if p == point {
						runtime.Goexit()
					}
				})
				srv := gatedPeer(t)
				sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
				for range 3 {
					takeForQuick(srv)
					cmd := sess.Pull("/slow", 1, new(string))
					if point == "PostWriteReply" {
						require.Nil(t, cmd.Xerror)
					} else {
						require.Equal(t, StatusInternalServerError, cmd.Xerror.Code())
					}
					var got string
					require.Nil(t, sess.Pull("/quick", "x", &got).Xerror)
				}
				require.Equal(t, 2, readers())
			})
		})
	}
}

// The same when the reader was held up before, and replaced: there is nobody else
// to flush the reply.
func TestGoexitOfAReplacedReader(t *testing.T) {
	for _, point := range gatePoints {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				setGate(t, func(p string) {
					if p == point {
						time.Sleep(20 * role.Tick)
						runtime.Goexit()
					}
				})
				sess, _ := connect(t, newTestPeer(t, nil), gatedPeer(t), pipe.Options{})
				cmd := sess.GoPull("/slow", 1, new(string), nil)
				synctest.Wait()
				time.Sleep(30 * role.Tick)
				synctest.Wait()
				require.Len(t, cmd.Done(), 1, "the pull was not answered")
				if point == "PostWriteReply" {
					require.Nil(t, (<-cmd.Done()).Xerror)
				} else {
					require.Equal(t, StatusInternalServerError, (<-cmd.Done()).Xerror.Code())
				}
				require.Equal(t, 2, readers())
			})
		})
	}
}

// A handler that is held up when its session ends, and when its peer shuts down,
// holds up neither the end nor the other sessions, and Shutdown waits for it.
func TestEndWithAHeldUpReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := holdHandlers(t)
		srv := gatedPeer(t)
		first, other := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		second, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		done := make(chan *PullCmd, 2)
		first.GoPull("/slow", 1, new(string), done)
		takeForQuick(srv)
		second.GoPull("/slow", 1, new(string), done)
		synctest.Wait()
		require.NoError(t, other.Close())
		require.Equal(t, StatusConnClosed, (<-done).Xerror.Code())

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		down := make(chan error, 1)
		go func() { down <- srv.Shutdown(ctx) }()
		time.Sleep(time.Second) // of the bubble's time
		require.Empty(t, down)
		close(release)
		require.Nil(t, (<-done).Xerror)
		require.NoError(t, <-down)
	})
}

// Where no slot of the watch is free, quick routes are given goroutines too.
func TestReadersWithoutASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		var inline atomic.Bool
		HandlePull(srv.PullRouter, "/where", func(PullCtx, *string) (string, Xerror) {
			inline.Store(runsOnReader())
			return "", nil
		})
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		require.Nil(t, sess.Pull("/where", "", new(string)).Xerror)
		require.False(t, inline.Load())
		takeForQuick(srv)
		require.Nil(t, sess.Pull("/where", "", new(string)).Xerror)
		require.True(t, inline.Load())
		synctest.Wait()

		var others []role.Turn // until there is no slot left
		for i := range uint32(1000) {
			nobody := new(role.Role)
			nobody.Init(nil, &srv.watch, i)
			if turn := nobody.Begin(); turn.Watched() {
				others = append(others, turn)
			}
		}
		require.NotEmpty(t, others)
		require.Nil(t, sess.Pull("/where", "", new(string)).Xerror)
		require.False(t, inline.Load())
		for i := range others {
			others[i].Unwatch()
		}
		require.Nil(t, sess.Pull("/where", "", new(string)).Xerror)
		require.True(t, inline.Load())
	})
}

func runsOnReader() bool { return strings.Contains(string(debug.Stack()), "(*reader).run") }

// The watch's goroutine ends when nobody has been seen for some time, and is
// there again when it is needed.
func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := holdHandlers(t)
		srv := gatedPeer(t)
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for range 3 {
			require.Nil(t, sess.Pull("/quick", "", new(string)).Xerror)
			require.True(t, srv.watch.Running())
			time.Sleep((role.IdleTicks + 1) * role.Tick) // of the bubble's time
			synctest.Wait()
			require.False(t, srv.watch.Running())
		}
		// It does not end while somebody is held up, and not before it has helped.
		takeForQuick(srv)
		cmd := sess.GoPull("/slow", 1, new(string), nil)
		require.Nil(t, sess.Pull("/quick", "", new(string)).Xerror)
		close(release)
		require.Nil(t, (<-cmd.Done()).Xerror)
	})
}

// Quick routes whose handlers block now and then, under load and the race
// detector: no reply is lost, doubled or another's.
func TestHeldUpReadersUnderLoad(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/some", func(_ PullCtx, n *uint64) (uint64, Xerror) {
		switch {
		case *n%97 == 0:
			time.Sleep(2 * time.Millisecond) // it is what the test is about
		case *n%89 == 0:
			runtime.Gosched()
		}
		return *n + 1, nil
	})
	addr := serve(t, srv)
	stop := make(chan struct{})
	var promoting sync.WaitGroup
	promoting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				srv.PullRouter.routes.table.Load().handlers["/some"].pace.Assume()
				runtime.Gosched()
			}
		}
	})
	var wg sync.WaitGroup
	for s := range 3 {
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		for c := range 8 {
			wg.Go(func() {
				for i := range 300 {
					n := uint64(s)<<40 | uint64(c)<<32 | uint64(i*7+c)
					var got uint64
					if cmd := sess.Pull("/some", n, &got); !assert.Nil(t, cmd.Xerror) || !assert.Equal(t, n+1,
						got) {
						return
					}
				}
			})
		}
	}
	wg.Wait()
	close(stop)
	promoting.Wait()
}

// Every route is sampled, whatever the pattern of the calls: here two routes are
// called in turn, and on many short sessions. One that was quick is found out when
// it no longer is, even if it never takes long enough to be seen by the watch.
func TestEveryRouteIsSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var took time.Duration
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		paths := []string{"/a", "/b"}
		for _, path := range paths {
			HandlePull(srv.PullRouter, path, func(PullCtx, *string) (string, Xerror) {
				time.Sleep(took)
				return "", nil
			})
		}
		callUntil := func(quick bool) {
			for n := 0; ; n++ {
				sess, other := connect(t, cli, srv, pipe.Options{})
				for range 10 {
					for _, path := range paths {
						require.Nil(t, sess.Pull(path, "", nil).Xerror)
					}
				}
				require.NoError(t, sess.Close())
				<-other.Done()
				same := true
				for _, h := range srv.PullRouter.routes.table.Load().all {
					same = same && h.pace.Quick() == quick
				}
				if same {
					return
				}
				require.Less(t, n, 10_000, "quick: %v", !quick)
			}
		}
		callUntil(true)
		took = role.Tick / 2
		callUntil(false)
	})
}

// A session that does nothing for a while is given a new reader, whose stack is
// small, and loses nothing by it.
func TestQuietSessionGetsANewReader(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, s *string) (string, Xerror) { return *s, nil })
	sess := dial(t, cli, srv)
	for i := range 3 {
		text := strings.Repeat("x", 1+i*100000)
		var got string
		require.Nil(t, sess.Pull("/echo", text, &got).Xerror)
		require.Equal(t, text, got)
		require.Eventually(t, func() bool { // both ends have been quiet
			buf := make([]byte, 1<<20)
			all := string(buf[:runtime.Stack(buf, true)])
			const by = "created by github.com/henrylee2cn/teleport."
			return strings.Count(all, by+"(*reader).await")+strings.Count(all, by+
				"(*conn).ReplaceReader") == 2
		}, 20*time.Second, 50*time.Millisecond)
	}
	require.NoError(t, sess.Close())
}

// The length that a frame declares is not waited for by a replaced reader alone:
// a packet that is only half there when the reader is replaced is read whole.
func TestHalfAPacketWhenTheReaderIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := holdHandlers(t)
		srv := gatedPeer(t)
		ca, cb := pipe.New(pipe.Options{})
		_, err := srv.ServeConn(cb)
		require.NoError(t, err)
		frame := func(id, uri string) []byte {
			b, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: id, Type: packet.TypePull,
				Uri: uri}, Body: "x"}, packet.Limits{})
			require.NoError(t, err)
			return b
		}
		second := frame("2", "/quick")
		require.Greater(t, int(binary.BigEndian.Uint32(second)), 4)
		_, err = ca.Write(append(frame("1", "/slow"), second[:7]...))
		require.NoError(t, err)
		time.Sleep(10 * role.Tick) // of the bubble's time
		_, err = ca.Write(second[7:])
		require.NoError(t, err)
		raw := socket.New(ca, socket.Options{})
		defer raw.Close()
		var p packet.Packet
		require.NoError(t, raw.ReadPacket(&p, nil))
		require.Equal(t, "2", p.Header.Id)
		close(release)
		require.NoError(t, raw.ReadPacket(&p, nil))
		require.Equal(t, "1", p.Header.Id)
	})
}

var errGate = errors.New("gate")

// A hook's error on a quick route reaches the caller as on any other.
func TestHookErrorOnAQuickRoute(t *testing.T) {
	srv := newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/no", func(PullCtx, *string) (string, Xerror) { return "", nil },
		hookPlugin("no", "PostReadBody", func(interface{}) error { return errGate }))
	takeForQuick(srv)
	sess := dial(t, newTestPeer(t, nil), srv)
	for range 3 {
		cmd := sess.Pull("/no", "", new(string))
		require.Equal(t, StatusFailedPlugin, cmd.Xerror.Code())
		require.Equal(t, "gate", cmd.Xerror.Text())
	}
}
