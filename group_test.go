package tp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/race"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// texts are what handlers have seen.
type texts struct {
	mu  sync.Mutex
	all []string
}

func (l *texts) add(v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, strings.TrimSpace(fmt.Sprintln(v...)))
}

// list returns them when nothing goes on in the bubble any more.
func (l *texts) list() []string {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// inRoom dials n sessions to srv, whose clients handle pushes, and returns those of srv.
func inRoom(t *testing.T, srv *Peer, n int, handle func(i int, ctx PushCtx, v *string)) (all []*Session) {
	t.Helper()
	addr := serve(t, srv)
	for i := range n {
		cli := newTestPeer(t, nil)
		cli.PushRouter.SetUnknown(func(ctx UnknownPushCtx, body *[]byte) {
			var v string
			if _, err := ctx.Unmarshal(*body, &v); err != nil {
				t.Error(err)
			}
			handle(i, ctx, &v)
		})
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		all = append(all, sessionOf(t, srv, sess.Socket().LocalAddr()))
	}
	return all
}

// sessionOf returns srv's session with the address.
func sessionOf(t *testing.T, srv *Peer, addr net.Addr) (found *Session) {
	t.Helper()
	require.Eventually(t, func() bool {
		srv.RangeSession(func(s *Session) bool {
			if s.RemoteIp() == addr.String() {
				found = s
			}
			return found == nil
		})
		return found != nil
	}, 10*time.Second, time.Millisecond)
	return found
}

func TestGroup(t *testing.T) {
	srv := newTestPeer(t, nil)
	got := make(chan string, 100)
	all := inRoom(t, srv, 4, func(i int, ctx PushCtx, v *string) {
		got <- fmt.Sprint(i, " ", ctx.Uri(), " ", *v, " ", ctx.Meta()["k"])
	})
	g := srv.Group("room")
	require.Same(t, g, srv.Group("room"))
	require.NotSame(t, g, srv.Group("other"))
	require.Equal(t, "room", g.Name())
	require.Equal(t, Delivery{}, g.Push("/x", "nobody"))
	for _, s := range all[:3] {
		require.NoError(t, g.Join(s))
		require.NoError(t, g.Join(s), "twice")
	}
	require.Equal(t, 3, g.Len())
	require.ElementsMatch(t, all[:3], g.Members())
	receive := func(n int) (list []string) {
		for range n {
			list = append(list, <-got)
		}
		slices.Sort(list)
		return list
	}
	require.Equal(t, Delivery{Queued: 3}, g.Push("/x?a=b", "hello", WithMeta("k", "v")))
	require.Equal(t, []string{"0 /x?a=b hello v", "1 /x?a=b hello v", "2 /x?a=b hello v"}, receive(3))

	require.True(t, g.Leave(all[1]))
	require.False(t, g.Leave(all[1]))
	require.False(t, g.Leave(nil))
	require.Equal(t, Delivery{Queued: 2}, g.Push("/x", "without 1"))
	require.Equal(t, []string{"0 /x without 1 ", "2 /x without 1 "}, receive(2))

	require.Equal(t, Delivery{Queued: 1}, g.Push("/x", "not for 0", Except(all[0])))
	require.Equal(t, []string{"2 /x not for 0 "}, receive(1))
	require.Equal(t, Delivery{}, g.Push("/x", "for nobody", Except(all[0]), Except(all[2]), Except(all[2]),
		Except(nil)))

	require.NoError(t, all[2].Close())
	require.Equal(t, 1, g.Len())
	require.ErrorContains(t, g.Join(all[2]), "has ended")
	require.ErrorContains(t, g.Join(nil), "the session is nil")
	require.ErrorContains(t, newTestPeer(t, nil).Group("room").Join(all[0]), "is of another peer")

	not0 := func(s *Session) bool { return s != all[0] }
	require.Equal(t, Delivery{Queued: 2}, srv.Broadcast(not0, "/y", "b"))
	require.Equal(t, []string{"1 /y b ", "3 /y b "}, receive(2))
	require.Equal(t, Delivery{Queued: 3}, srv.Broadcast(nil, "/y", "all"))
	require.Equal(t, []string{"0 /y all ", "1 /y all ", "3 /y all "}, receive(3))
	require.Empty(t, got)
}

// A push that cannot be made goes to nobody, and says why.
func TestGroupPushThatFails(t *testing.T) {
	srv := newTestPeer(t, nil, hookPlugin("no", "PreWritePush", func(ctx interface{}) error {
		if strings.HasPrefix(ctx.(WriteCtx).Output().Header.Uri, "/no") {
			return errors.New("not this one")
		}
		return nil
	}))
	all := inRoom(t, srv, 1, func(i int, ctx PushCtx, v *string) { t.Error("pushed", *v) })
	g := srv.Group("room")
	require.NoError(t, g.Join(all[0]))
	for text, d := range map[string]Delivery{
		"nothing was sent": g.Push("/x", make(chan int)),
		"not this one":     g.Push("/no", 1),
		"codec":            g.Push("/x", 1, WithBodyCodec("unheard of")),
	} {
		require.NotNil(t, d.Err, text)
		require.ErrorContains(t, d.Err, text)
		require.True(t, NotRun(d.Err))
		require.Zero(t, d.Queued)
	}
}

// countingCodec counts what it encodes.
type countingCodec struct {
	codec.Codec
	n *atomic.Int32
}

func (c countingCodec) Name() string { return "counting" }
func (c countingCodec) Id() byte     { return 222 }
func (c countingCodec) Marshal(v interface{}) ([]byte, error) {
	c.n.Add(1)
	return c.Codec.Marshal(v)
}

var marshalled atomic.Int32

func init() {
	json, err := codec.GetByName(codec.NameJSON)
	if err != nil {
		panic(err)
	}
	codec.Reg(countingCodec{json, &marshalled})
}

// A push is encoded once, and its hooks run once, for all members. The session that hooks see has an
// address and takes nothing.
func TestGroupPushIsMadeOnce(t *testing.T) {
	var hooks atomic.Int32
	look := func(ctx interface{}) error {
		hooks.Add(1)
		w := ctx.(WriteCtx)
		require.Equal(t, "group room", w.Ip())
		require.Equal(t, "group room", w.Session().Id())
		require.ErrorContains(t, w.Session().Err(), "stands for")
		return nil
	}
	srv := newTestPeer(t, nil, hookPlugin("pre", "PreWritePush", look),
		hookPlugin("post", "PostWritePush", look))
	var wg sync.WaitGroup
	wg.Add(20)
	all := inRoom(t, srv, 20, func(_ int, _ PushCtx, v *string) {
		require.Equal(t, strings.Repeat("a", 5000), *v)
		wg.Done()
	})
	g := srv.Group("room")
	for _, s := range all {
		require.NoError(t, g.Join(s))
	}
	marshalled.Store(0)
	d := g.Push("/x", strings.Repeat("a", 5000), WithBodyCodec("counting"), WithGzip(5))
	require.Equal(t, Delivery{Queued: 20}, d)
	wg.Wait()
	require.EqualValues(t, 1, marshalled.Load())
	require.EqualValues(t, 2, hooks.Load())
}

// All members get the pushes of a group in one order, whoever pushes, large and small ones, and once.
func TestGroupPushesAreInOneOrder(t *testing.T) {
	const members, pushers = 5, 4
	n := 500
	if race.Enabled {
		n = 100
	}
	for name, cfg := range map[string]PeerConfig{"": {}, "little credit": {MaxSessionInput: 100_000},
		"batches": {}} {
		t.Run(name, func(t *testing.T) {
			srv := newTestPeer(t, nil)
			var mu sync.Mutex
			var seen [members][]string
			var wg sync.WaitGroup
			wg.Add(members * pushers * n)
			addr := serve(t, srv)
			g := srv.Group("room")
			if name == "batches" {
				g.Batch(time.Millisecond)
			}
			for i := range members {
				cli := newTestPeer(t, &cfg)
				HandlePush(cli.PushRouter, "/n", func(_ PushCtx, v *string) {
					mu.Lock()
					defer mu.Unlock()
					seen[i] = append(seen[i], (*v)[:10])
					wg.Done()
				})
				sess, err := cli.Dial(addr)
				require.NoError(t, err)
				require.NoError(t, g.Join(sessionOf(t, srv, sess.Socket().LocalAddr())))
			}
			for p := range pushers {
				go func() {
					for i := range n {
						v := fmt.Sprintf("%10d", p*100_000+i)
						if i%50 == 7 {
							v += strings.Repeat("x", 100_000)
						}
						if d := g.Push("/n", v); d != (Delivery{Queued: members}) {
							t.Error(d)
						}
					}
				}()
			}
			wg.Wait()
			for i := range members {
				require.Len(t, seen[i], pushers*n)
				require.Equal(t, seen[0], seen[i])
			}
		})
	}
}

// Who joins gets what is pushed from then on, and no older push of the tick.
func TestJoinWithinATick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		g := srv.Group("room")
		g.Batch(50 * time.Millisecond)
		var got [3]texts
		start := time.Now()
		var sess [3]*Session
		for i := range sess {
			cli := newTestPeer(t, nil)
			HandlePush(cli.PushRouter, "/n", func(_ PushCtx, v *string) {
				got[i].add(*v, time.Since(start).Milliseconds())
			})
			sess[i], _ = connect(t, srv, cli, pipe.Options{})
		}
		require.NoError(t, g.Join(sess[0]))
		require.Equal(t, Delivery{Queued: 1}, g.Push("/n", "a"))
		require.NoError(t, g.Join(sess[1]))
		require.Equal(t, Delivery{Queued: 2}, g.Push("/n", "pos1", Latest("pos")))
		require.Equal(t, Delivery{Queued: 2}, g.Push("/n", "b"))
		require.Equal(t, Delivery{Queued: 2, Replaced: 2}, g.Push("/n", "pos2", Latest("pos")))
		require.Equal(t, Delivery{Queued: 1}, g.Push("/n", "not for 1", Except(sess[1])))
		require.Equal(t, Delivery{Queued: 2}, g.Push("/n", "other", Latest("other")))
		require.NoError(t, g.Join(sess[2]))
		time.Sleep(49 * time.Millisecond)
		require.Empty(t, got[0].list())
		time.Sleep(2 * time.Millisecond)
		require.Equal(t, []string{"a 50", "b 50", "pos2 50", "not for 1 50", "other 50"}, got[0].list())
		require.Equal(t, []string{"b 50", "pos2 50", "other 50"}, got[1].list())
		require.Empty(t, got[2].list())

		g.Push("/n", "c")
		g.Flush()
		require.Equal(t, []string{"c 51"}, got[2].list())
		g.Push("/n", "d")
		g.Batch(0)
		g.Push("/n", "e")
		require.Equal(t, []string{"c 51", "d 51", "e 51"}, got[2].list())
		require.Panics(t, func() { g.Batch(-1) })
	})
}

// writes counts the writes of a connection.
type writes struct {
	net.Conn
	n atomic.Int32
}

func (c *writes) Write(b []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(b)
}

// The pushes of a tick go in one write, and a megabyte ends a tick.
func TestTicksAreOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		var n atomic.Int32
		HandlePush(cli.PushRouter, "/n", func(_ PushCtx, v *string) { n.Add(1) })
		a, b := pipe.New(pipe.Options{})
		w := &writes{Conn: a}
		go cli.ServeConn(b)
		sess, err := srv.ServeConn(w)
		require.NoError(t, err)
		synctest.Wait()
		g := srv.Group("room")
		require.NoError(t, g.Join(sess))
		g.Batch(time.Second)
		synctest.Wait()
		before := w.n.Load()
		for range 20 {
			g.Push("/n", "x")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, 20, n.Load())
		require.Equal(t, before+1, w.n.Load())

		for range 11 {
			g.Push("/n", strings.Repeat("x", 100_000))
		}
		synctest.Wait()
		require.EqualValues(t, 31, n.Load())
	})
}

// Every lets a key go once in a while, with its last value in the end.
func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		start := time.Now()
		var got texts
		cli.PushRouter.SetUnknown(func(ctx UnknownPushCtx, body *[]byte) {
			got.add(ctx.Uri(), string((*body)[1:]), time.Since(start).Milliseconds())
		})
		sess, _ := connect(t, srv, cli, pipe.Options{})
		g := srv.Group("room")
		require.NoError(t, g.Join(sess))
		for i := range 7 {
			want := Delivery{Queued: 1}
			if i == 2 || i == 3 || i == 4 { // 1 waits until 100, 5 until 200, 6 comes behind it
				want.Replaced = 1
			}
			if i == 6 {
				want.Replaced = 1
			}
			require.Equal(t, want, g.Push("/a", i, Latest("k"), Every(100*time.Millisecond)), i)
			if i == 0 {
				require.Equal(t, Delivery{Queued: 1}, g.Push("/b", i, Every(100*time.Millisecond)))
			}
			time.Sleep(24 * time.Millisecond)
		}
		time.Sleep(time.Second)
		g.Push("/a", 7, Latest("k"), Every(100*time.Millisecond))
		require.Equal(t, []string{"/a 0 0", "/b 0 0", "/a 4 100", "/a 6 200", "/a 7 1168"}, got.list())
		time.Sleep(time.Second)
		synctest.Wait()
		g.mu.Lock()
		defer g.mu.Unlock()
		require.Empty(t, g.paces, "keys are forgotten")
		require.Panics(t, func() { Every(0) })
		require.Panics(t, func() { Latest("") })
		require.Panics(t, func() { DropOldest(0) })
	})
}

// Watchers see who joins and who leaves, one after another.
func TestWatchGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := captureLog(t, LevelError)
		srv := newTestPeer(t, nil)
		g := srv.Group("room")
		var got texts
		stop := g.Watch(func(e GroupEvent) {
			require.Same(t, g, e.Group)
			time.Sleep(time.Second) // others do not wait for it
			got.add(e.Session.Id(), e.Joined, e.Len)
		})
		g.Watch(func(e GroupEvent) { panic("oh") })
		var all []*Session
		for i := range 3 {
			sess, _ := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
			require.NoError(t, sess.ChangeId(fmt.Sprint(i)))
			require.NoError(t, g.Join(sess))
			all = append(all, sess)
		}
		g.Leave(all[1])
		_ = all[0].Close()
		time.Sleep(time.Minute)
		require.Equal(t, []string{"0 true 1", "1 true 2", "2 true 3", "1 false 2", "0 false 1"}, got.list())
		stop()
		g.Leave(all[2])
		time.Sleep(time.Minute)
		require.Len(t, got.list(), 5)
		require.Contains(t, strings.Join(log.take(), "\n"), "a watcher of group")
		require.Panics(t, func() { g.Watch(nil) })
	})
}

// slowMember is a member of a group that reads only when it is told to.
type slowMember struct {
	t    *testing.T
	conn net.Conn
	sess *Session
}

// kernelBuffer is what the kernel is asked to hold for each side of a slow member's connection. Without such
// a bound the kernel lets its buffers grow, some time after it has said that they are full.
const kernelBuffer = 64 << 10

func newSlowMember(t *testing.T, srv *Peer, g *Group) *slowMember {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(kernelBuffer))
	far, err := ln.Accept()
	require.NoError(t, err)
	require.NoError(t, far.(*net.TCPConn).SetWriteBuffer(kernelBuffer))
	sess, err := srv.ServeConn(far)
	require.NoError(t, err)
	require.NoError(t, g.Join(sess))
	return &slowMember{t, conn, sess}
}

// read returns the bodies of all pushes, as far as the first space, until one is the last. Each is given to
// seen, if there is one, as it comes.
func (m *slowMember) read(last string, seen ...chan<- string) (got []string) {
	sock := socket.New(m.conn, socket.Options{})
	for {
		var body []byte
		p := new(packet.Packet)
		if err := sock.ReadPacket(p, func(*packet.Header) interface{} { return &body }); err != nil {
			m.t.Errorf("after %d: %v", len(got), err)
			return got
		}
		if p.Header.Type != packet.TypePush {
			continue
		}
		v, _, _ := strings.Cut(string(body), " ")
		got = append(got, v)
		for _, c := range seen {
			c <- v
		}
		if v == last {
			return got
		}
	}
}

// fill pushes until more waits for the member than its buffers in the kernel can still take, whenever the
// kernel moves what is in them: what is pushed next waits until the member reads.
func (m *slowMember) fill(g *Group) (pushes int) {
	waiting := func() (bytes int64) {
		if box := m.sess.conn.Load().outbox.Load(); box != nil {
			_, bytes = box.Waiting()
		}
		return bytes
	}
	for waiting() < 16*kernelBuffer {
		require.Equal(m.t, g.Len(), g.Push("/n", []byte("fill "+strings.Repeat("x", 30_000)),
			WithBodyCodec("string")).Queued)
		pushes++
	}
	return pushes
}

type pushing = func(v string, s ...PacketSetting) Delivery

// What becomes of pushes for a member that does not read, while the kernel's buffers are full: as each
// policy says. The other members get all of them.
func TestSlowMembers(t *testing.T) {
	tests := map[string]struct {
		most  int64
		push  func(push pushing, t *testing.T)
		slow  []string // what the slow member gets in the end, beside fill; nil if it is cut off
		cause string
		held  []string // what no member gets before the test ends
	}{
		"wait": {0, func(push pushing, t *testing.T) {
			require.Equal(t, Delivery{Queued: 2}, push("a"))
			require.Equal(t, Delivery{Queued: 2}, push("b"))
			require.Equal(t, Delivery{Queued: 2}, push("end"))
		}, []string{"a", "b", "end"}, "", nil},
		"latest": {0, func(push pushing, t *testing.T) {
			require.Equal(t, Delivery{Queued: 2}, push("p1", Latest("p")))
			require.Equal(t, Delivery{Queued: 2}, push("q1", Latest("q")))
			require.Equal(t, Delivery{Queued: 2, Replaced: 1}, push("p2", Latest("p")))
			require.Equal(t, Delivery{Queued: 2, Replaced: 1}, push("p3", Latest("p")))
			require.Equal(t, Delivery{Queued: 2}, push("end"))
		}, []string{"p3", "q1", "end"}, "", nil},
		"drop oldest": {0, func(push pushing, t *testing.T) {
			require.Equal(t, Delivery{Queued: 2}, push("a", DropOldest(2)))
			require.Equal(t, Delivery{Queued: 2}, push("w"))
			require.Equal(t, Delivery{Queued: 2}, push("b", DropOldest(2)))
			require.Equal(t, Delivery{Queued: 2, Dropped: 1}, push("c", DropOldest(2)))
			require.Equal(t, Delivery{Queued: 2}, push("end"))
		}, []string{"w", "b", "c", "end"}, "", nil},
		"every": {0, func(push pushing, t *testing.T) {
			require.Equal(t, Delivery{Queued: 2}, push("a", Every(time.Hour)))
			require.Equal(t, Delivery{Queued: 2}, push("b", Every(time.Hour)))
			require.Equal(t, Delivery{Queued: 2, Replaced: 2}, push("c", Every(time.Hour)))
			require.Equal(t, Delivery{Queued: 2}, push("end"))
		}, []string{"a", "end"}, "", []string{"b", "c"}},
		"disconnect": {0, func(push pushing, t *testing.T) {
			require.Equal(t, Delivery{Queued: 1, CutOff: 1}, push("a", Disconnect(0)))
		}, nil, "cut off by tp.Disconnect", nil},
		"too much waits": {20 * kernelBuffer, func(push pushing, t *testing.T) {
			for d := range 100 {
				if got := push("a " + strings.Repeat("x", 30_000)); got.CutOff == 1 {
					require.Equal(t, Delivery{Queued: 1, CutOff: 1}, got)
					require.Greater(t, d, 1)
					return
				}
			}
			t.Error("the member is not cut off")
		}, nil, "there was no room for another one", nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			srv := withoutCredit(newTestPeer(t, &PeerConfig{MaxSessionOutput: test.most}))
			g := srv.Group("room")
			slow, good := newSlowMember(t, srv, g), newSlowMember(t, srv, g)
			all, seen := make(chan []string, 1), make(chan string, 1000)
			go func() { all <- good.read("end", seen) }()
			filled := slow.fill(g)
			for range filled {
				require.Equal(t, "fill", <-seen)
			}
			var pushed []string
			test.push(func(v string, s ...PacketSetting) Delivery {
				d := g.Push("/n", []byte(v), append(s, WithBodyCodec("string"))...)
				v, _, _ = strings.Cut(v, " ")
				if !slices.Contains(test.held, v) {
					pushed = append(pushed, v)
					require.Equal(t, v, <-seen) // nothing waits for the good one when the next is pushed
				}
				return d
			}, t)
			if test.slow == nil {
				<-slow.sess.Done()
				require.ErrorContains(t, slow.sess.Err(), test.cause)
				require.Equal(t, Delivery{Queued: 1}, g.Push("/n", []byte("end"), WithBodyCodec("string")))
				pushed = append(pushed, "end")
			} else {
				want := append(slices.Repeat([]string{"fill"}, filled), test.slow...)
				require.Equal(t, want, slow.read("end"))
			}
			require.Equal(t, append(slices.Repeat([]string{"fill"}, filled), pushed...), <-all)
		})
	}
}

// What waits for a slow member is sent before a peer that shuts down ends.
func TestShutdownSendsWhatWaitsForSlowMembers(t *testing.T) {
	srv := withoutCredit(newTestPeer(t, nil))
	g := srv.Group("room")
	slow := newSlowMember(t, srv, g)
	n := slow.fill(g)
	require.Equal(t, 1, g.Push("/n", []byte("end"), WithBodyCodec("string")).Queued)
	done := make(chan error)
	go func() { done <- srv.Shutdown(t.Context()) }()
	require.Len(t, slow.read("end"), n+1)
	_, _ = io.Copy(io.Discard, slow.conn)
	require.NoError(t, <-done)
}

// A member whose handlers do not keep up gets all pushes too, as its credit comes.
func TestSlowHandlersOfMembers(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, &PeerConfig{MaxSessionInput: 100_000})
	release := make(chan struct{})
	got := make(chan int, 1000)
	HandlePush(cli.PushRouter, "/n", func(_ PushCtx, v *int) { <-release; got <- *v })
	sess := dial(t, cli, srv)
	g := srv.Group("room")
	member := sessionOf(t, srv, sess.Socket().LocalAddr())
	require.NoError(t, g.Join(member))
	for i := range 300 {
		require.Equal(t, Delivery{Queued: 1}, g.Push("/n", i))
	}
	n, bytes := member.conn.Load().outbox.Load().Waiting()
	require.Greater(t, n, 200)
	require.Positive(t, bytes)
	close(release)
	for i := range 300 {
		require.Equal(t, i, <-got)
	}
}

// Pushes go to members over TLS too, and large ones in parts.
func TestGroupOverTLS(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	client := &tls.Config{RootCAs: pool}
	srv := newTestPeer(t, &PeerConfig{TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}})
	g := srv.Group("room")
	addr := serve(t, srv)
	got := make(chan string, 10)
	for range 3 {
		cli := newTestPeer(t, &PeerConfig{TLSConfig: client})
		HandlePush(cli.PushRouter, "/n", func(_ PushCtx, v *string) { got <- *v })
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		require.NoError(t, g.Join(sessionOf(t, srv, sess.Socket().LocalAddr())))
	}
	for _, v := range []string{"small", strings.Repeat("large ", 100_000), "small again"} {
		require.Equal(t, 3, g.Push("/n", v).Queued)
		for range 3 {
			require.Equal(t, v, <-got)
		}
	}
}

// A group is forgotten when it has no members and the program does not hold it.
func TestGroupsAreForgotten(t *testing.T) {
	srv := newTestPeer(t, nil)
	all := inRoom(t, srv, 1, func(int, PushCtx, *string) {})
	count := func() (n int) {
		srv.groups.Range(func(any, any) bool { n++; return true })
		return n
	}
	for i := range 1000 {
		g := srv.Group(fmt.Sprint(i))
		g.Push("/x", 1)
		if i%2 == 0 {
			require.NoError(t, g.Join(all[0]))
			g.Batch(time.Duration(i + 1))
		}
	}
	forgotten := func(left int) func() bool {
		return func() bool { runtime.GC(); return count() == left }
	}
	require.Eventually(t, forgotten(500), 10*time.Second, time.Millisecond)
	g := srv.Group("500")
	require.Equal(t, time.Duration(501), g.tick, "settings last as long as there are members")
	require.NoError(t, all[0].Close())
	require.Zero(t, g.Len())
	require.Eventually(t, forgotten(1), 10*time.Second, time.Millisecond)
	require.Same(t, g, srv.Group("500"))
}

// A push costs a set number of allocations, whatever the number of members.
func TestGroupPushAllocations(t *testing.T) {
	if race.Enabled {
		t.Skip("the race detector allocates")
	}
	srv := withoutCredit(newTestPeer(t, nil))
	allocs := func(n int) float64 {
		g := srv.Group(fmt.Sprint(n))
		for range n {
			m := newSlowMember(t, srv, g)
			go func() { _, _ = io.Copy(io.Discard, m.conn) }()
		}
		body := bytes.Repeat([]byte("x"), 1000)
		return testing.AllocsPerRun(50, func() { g.Push("/x", body, WithBodyCodec("string")) })
	}
	few, many := allocs(2), allocs(100)
	require.Less(t, many-few, 5.0, "%v with 2 members, %v with 100", few, many)
}

// Healthy members take large pushes, whatever their number: memory is counted once.
func TestLargePushToManyMembers(t *testing.T) {
	srv := newTestPeer(t, nil)
	var wg sync.WaitGroup
	wg.Add(3 * 60)
	body := strings.Repeat("x", 2<<20)
	all := inRoom(t, srv, 60, func(_ int, _ PushCtx, v *string) {
		if len(*v) != len(body) {
			t.Error(len(*v))
		}
		wg.Done()
	})
	g := srv.Group("room")
	for _, s := range all {
		require.NoError(t, g.Join(s))
	}
	require.Equal(t, Delivery{Queued: 60}, g.Push("/x", body))
	require.Equal(t, Delivery{Queued: 60}, g.Push("/x", body, Disconnect(time.Hour)))
	require.Equal(t, Delivery{Queued: 60}, g.Push("/x", body))
	wg.Wait()
	require.Equal(t, 60, g.Len())
}

// Where slow members hold what others need, those that take nothing are cut off.
func TestMemoryOfSlowMembersIsTakenBack(t *testing.T) {
	srv := withoutCredit(newTestPeer(t, &PeerConfig{MaxBufferedBytes: 64 << 20, DefaultWriteTimeout: -1}))
	HandlePull(srv.PullRouter, "/big", func(PullCtx, *string) (string, Xerror) {
		return strings.Repeat("x", 6<<20), nil
	})
	addr := serve(t, srv)
	for i := range 6 {
		g := srv.Group(fmt.Sprint(i)) // with pushes of its own
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		slow := sessionOf(t, srv, conn.LocalAddr())
		require.NoError(t, g.Join(slow))
		push := func() Delivery {
			return g.Push("/n", []byte(strings.Repeat("x", 30_000)), WithBodyCodec("string"))
		}
		for slow.conn.Load().outbox.Load() == nil || !slow.conn.Load().outbox.Load().Busy() {
			require.Equal(t, 1, push().Queued)
		}
		for range 40 {
			push()
		}
	}
	require.Eventually(t, func() bool { // they are asked once, so all of them have to be slow by then
		return len(srv.keptBoxes.Stalled(stallPatience)) == len(srv.keptBoxes.Stalled(0))
	}, time.Minute, time.Millisecond)
	held := srv.keptBudget.Used()
	require.Greater(t, held, int64(1<<20))
	sess := dial(t, newTestPeer(t, &PeerConfig{MaxBufferedBytes: -1}), srv)
	var pulls sync.WaitGroup
	for range 8 {
		pulls.Go(func() {
			var reply string
			x := sess.Pull("/big", "", &reply, WithBodyCodec("string")).Xerror
			if x != nil || len(reply) != 6<<20 {
				t.Error(len(reply), x)
			}
		})
	}
	pulls.Wait()
}

// While a pass takes long, a pusher in ticks waits when a megabyte is gathered.
func TestTicksDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		g := srv.Group("room")
		sess, _ := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
		require.NoError(t, g.Join(sess))
		g.Batch(time.Millisecond)
		release := make(chan struct{})
		long := &groupPush{op: func() { <-release }}
		go func() {
			g.mu.Lock()
			g.addLocked(long)
			g.awaitPassLocked(long)
		}()
		synctest.Wait()
		var pushed atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 100 {
				g.Push("/n", strings.Repeat("x", 100_000), DropOldest(1))
				pushed.Add(1)
			}
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		require.Less(t, pushed.Load(), int32(15))
		close(release)
		<-done
	})
}

// What waits in a group takes little, whatever is pushed with one key, or with many.
func TestGroupsKeepLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		g := srv.Group("room")
		sess, _ := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
		for range 1000 { // nobody is there
			require.Zero(t, g.Push("/n", 1, Every(time.Hour)))
		}
		locked := func(f func()) {
			g.mu.Lock()
			defer g.mu.Unlock()
			f()
		}
		locked(func() { require.Empty(t, g.paces) })
		require.NoError(t, g.Join(sess))
		g.Batch(time.Hour)
		for i := range 10_000 {
			g.Push("/n", i, Latest("k"))
			g.Push("/n", i, Latest(fmt.Sprint(i%10)))
		}
		locked(func() { require.Less(t, len(g.pending), 300) })
		g.Batch(0)
		for i := range 100 {
			for range 2 {
				g.Push("/n", strings.Repeat("x", 50_000), Latest(fmt.Sprint(i)), Every(time.Minute),
					DropOldest(1))
			}
			locked(func() { require.LessOrEqual(t, g.heldBytes, maxBatch) })
		}
		time.Sleep(time.Hour)
		locked(func() {
			require.Empty(t, g.paces)
			require.Zero(t, g.heldBytes)
		})
	})
}

// What is gathered for a tick, or held back by Every, is sent before a peer that shuts down ends.
func TestShutdownSendsWhatGroupsHoldBack(t *testing.T) {
	for name, push := range map[string]func(g *Group){
		"tick": func(g *Group) { g.Batch(time.Hour); g.Push("/n", 1); g.Push("/n", 2) },
		"every": func(g *Group) {
			g.Push("/n", 1, Every(time.Hour))
			g.Push("/n", 2, Every(time.Hour))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
				var got texts
				HandlePush(cli.PushRouter, "/n", func(_ PushCtx, n *int) { got.add(*n) })
				sess, _ := connect(t, srv, cli, pipe.Options{})
				g := srv.Group("room")
				require.NoError(t, g.Join(sess))
				push(g)
				require.NoError(t, srv.Shutdown(t.Context()))
				require.Equal(t, []string{"1", "2"}, got.list())
			})
		})
	}
}

// A watcher that ends its goroutine is called again, and sees only what happens after it was added.
func TestWatcherThatEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		g := srv.Group("room")
		var one, two texts
		defer g.Watch(func(e GroupEvent) { one.add(e.Len); runtime.Goexit() })()
		for i := range 4 {
			sess, _ := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
			if i == 2 {
				defer g.Watch(func(e GroupEvent) { two.add(e.Len) })()
			}
			require.NoError(t, g.Join(sess))
		}
		require.Equal(t, []string{"1", "2", "3", "4"}, one.list())
		require.Empty(t, two.list(), "the goroutine that was to tell the second has ended")
	})
}

// A member that has joined within a tick is as healthy as the others.
func TestLateMemberIsNotCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		var got texts
		HandlePush(cli.PushRouter, "/n", func(_ PushCtx, n *int) { got.add(*n) })
		sess, _ := connect(t, srv, cli, pipe.Options{})
		g := srv.Group("room")
		g.Batch(time.Second)
		g.Push("/n", 1, Disconnect(0))
		require.NoError(t, g.Join(sess))
		g.Push("/n", 2, Disconnect(0))
		g.Push("/n", 3, Disconnect(0))
		time.Sleep(time.Second)
		require.Equal(t, []string{"2", "3"}, got.list())
		require.Equal(t, 1, g.Len())
		require.Panics(t, func() { Disconnect(-1) })
	})
}

// A member that has ended its output, and reads nothing, does not stay for what waits for it.
func TestHalfClosedMemberEnds(t *testing.T) {
	srv := withoutCredit(newTestPeer(t, &PeerConfig{DefaultWriteTimeout: -1}))
	g := srv.Group("room")
	slow := newSlowMember(t, srv, g)
	slow.fill(g)
	require.NoError(t, slow.conn.(*net.TCPConn).CloseWrite())
	<-slow.sess.Done()
	require.Zero(t, g.Len())
}

// A session may join in its handshake, and gets pushes when that is over: nothing before the other side
// is let in.
func TestJoinInAHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g *Group
		joined, release := make(chan struct{}), make(chan error)
		srv := newTestPeer(t, nil, hookPlugin("join", "PostAccept", func(ctx interface{}) error {
			require.NoError(t, g.Join(ctx.(ForeSession).Session()))
			joined <- struct{}{}
			return <-release
		}))
		g = srv.Group("room")
		for _, refused := range []error{errors.New("a stranger"), nil} {
			cli := newTestPeer(t, nil)
			var got texts
			HandlePush(cli.PushRouter, "/n", func(_ PushCtx, n *int) { got.add(*n) })
			a, b := pipe.New(pipe.Options{})
			go func() { _, _ = srv.ServeConn(a) }()
			go func() { _, _ = cli.DialConn(t.Context(), b) }()
			<-joined
			require.Equal(t, Delivery{Dropped: 1}, g.Push("/n", 1))
			release <- refused
			synctest.Wait()
			if refused != nil {
				require.Zero(t, g.Len())
				require.Empty(t, got.list())
				continue
			}
			require.Equal(t, Delivery{Queued: 1}, g.Push("/n", 2))
			require.Equal(t, []string{"2"}, got.list())
		}
	})
}

// A group that is set up before it has members keeps what was set.
func TestGroupThatIsSetUpFirst(t *testing.T) {
	srv := newTestPeer(t, nil)
	sess := dial(t, srv, newTestPeer(t, nil))
	srv.Group("ticks").Batch(time.Hour)
	srv.Group("history", History(10, time.Hour))
	for range 5 {
		runtime.GC()
	}
	require.Equal(t, time.Hour, srv.Group("ticks").tick)
	_, err := srv.Group("history").JoinAt(sess, Position{})
	require.NoError(t, err)
	require.NoError(t, srv.Group("ticks").Join(sess))
	require.True(t, srv.Group("ticks").Leave(sess))
	forgotten := func() bool {
		runtime.GC()
		_, ok := srv.groups.Load("ticks")
		return !ok
	}
	require.Eventually(t, forgotten, 10*time.Second, time.Millisecond)
	require.PanicsWithValue(t, `tp: Group("x"): option 1 of 1 is nil.`, func() { srv.Group("x", nil) })
}

// A member that lets more wait than it may costs nobody else his place.
func TestSlowMemberCostsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := withoutCredit(newTestPeer(t, &PeerConfig{MaxSessionOutput: 200_000, DefaultWriteTimeout: -1}))
		full := func(g *Group) *Session { // a member that reads nothing, and for whom something waits
			conn, _ := pipe.New(pipe.Options{})
			sess, err := srv.ServeConn(conn)
			require.NoError(t, err)
			require.NoError(t, g.Join(sess))
			for waits := false; !waits; {
				require.Equal(t, 1, g.Push("/n", make([]byte, 30_000)).Queued)
				synctest.Wait()
				box := sess.conn.Load().outbox.Load()
				waits = box != nil && box.Waits()
			}
			return sess
		}
		quiet, loud := srv.Group("quiet"), srv.Group("loud")
		innocent := full(quiet)
		time.Sleep(time.Minute)
		require.Len(t, srv.keptBoxes.Stalled(time.Minute), 1)
		bad := full(loud)
		for range 20 {
			loud.Push("/n", make([]byte, 30_000))
		}
		<-bad.Done()
		require.Equal(t, 1, quiet.Len())
		require.NoError(t, innocent.Err())
	})
}

// A push that was held back does not go after a later one.
func TestEveryWhileNobodyIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		g := srv.Group("room", History(10, time.Hour))
		var got texts
		HandlePush(cli.PushRouter, "/n", func(_ PushCtx, n *int) { got.add(*n) })
		sess, _ := connect(t, srv, cli, pipe.Options{})
		require.NoError(t, g.Join(sess))
		g.Push("/n", 1, Every(time.Minute))
		g.Push("/n", 2, Every(time.Minute))
		g.Leave(sess)
		g.Push("/n", 3, Every(time.Minute))
		require.NoError(t, g.Join(sess))
		time.Sleep(time.Hour)
		require.Equal(t, []string{"1"}, got.list())
		last, err := g.history.Load().Last()
		require.NoError(t, err)
		require.EqualValues(t, 2, last.Seq, "1 and 3")
	})
}

// A shutdown does not wait longer than its context for what a group's history takes.
func TestShutdownDoesNotWaitForAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		release := make(chan struct{})
		store := &failingStore{HistoryLog: memory{}.Open("", 10, time.Minute)}
		store.what = func() { <-release }
		g := srv.Group("room", HistoryIn(store, 10, time.Minute))
		sess, _ := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
		require.NoError(t, g.Join(sess))
		g.Batch(time.Hour)
		g.Push("/n", 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		close(release)
	})
}
