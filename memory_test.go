package tp

import (
	"context"
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
	"github.com/henrylee2cn/teleport/socket"
)

// stranger is the far end of a session of the peer's, which speaks in frames.
type stranger struct {
	net.Conn
	sess *Session
}

func newStranger(t *testing.T, p *Peer, buffer int) *stranger {
	conn, far := pipe.New(pipe.Options{Buffer: buffer})
	sess, err := p.ServeConn(conn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = far.Close() })
	return &stranger{far, sess}
}

func (s *stranger) pulls(n int, uri string, body interface{}) {
	for i := range n {
		frame, err := packet.Append(nil, &packet.Packet{
			Header:    &packet.Header{Id: fmt.Sprint(i + 1), Type: packet.TypePull, Uri: uri},
			BodyCodec: "string", Body: body,
		}, packet.Limits{})
		if err != nil {
			panic(err)
		}
		if _, err := s.Write(frame); err != nil {
			return
		}
	}
}

// One that pulls and never reads costs its output and a little more, whatever it sends:
// its further pulls wait, and then nothing more is read of it. When it reads at last all
// of them are answered.
func TestWhoDoesNotReadIsNotRead(t *testing.T) {
	for name, c := range map[string]struct {
		arg, reply int
		most       int64 // beside the output
	}{
		"echo":          {60_000, 60_000, 3 << 20},
		"small to much": {10, 200_000, 3 << 20},
		"slow echo":     {60_000, 60_000, 300 * 70_000}, // they all begin before there is a reply
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const output, pulls = 1 << 20, 300
				srv := newTestPeer(t, &PeerConfig{MaxSessionOutput: output, DefaultWriteTimeout: -1})
				var ran atomic.Int32
				reply := strings.Repeat("y", c.reply)
				HandlePull(srv.PullRouter, "/a", func(_ PullCtx, s *string) (string, Xerror) {
					ran.Add(1)
					if name == "slow echo" {
						time.Sleep(time.Millisecond)
					}
					return reply, nil
				})
				s := newStranger(t, srv, 1000)
				sent := make(chan struct{})
				go func() {
					s.pulls(pulls, "/a", strings.Repeat("x", c.arg))
					close(sent)
				}()
				for range 20 {
					synctest.Wait()
					time.Sleep(time.Second)
					require.LessOrEqual(t, srv.memory(), output+c.most)
				}
				if name != "slow echo" {
					require.Less(t, ran.Load(), int32(pulls))
				}
				good, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
				require.Nil(t, good.Pull("/a", "x", new(string)).Xerror)

				answers := 0
				sock := socket.New(s, socket.Options{})
				for answers < pulls {
					var p packet.Packet
					require.NoError(t, sock.ReadPacket(&p,
						func(*packet.Header) interface{} { return new(string) }))
					if p.Header.Type == packet.TypeCredit { // large replies have it asked
						continue
					}
					require.Equal(t, StatusOK, p.Header.StatusCode, "%s", p.Header.Status)
					answers++
				}
				<-sent
				require.EqualValues(t, pulls+1, ran.Load())
				require.Zero(t, used(srv))
			})
		})
	}
}

// The reader does not rest while this side waits for replies: handlers that pull back to a
// caller who does not read get theirs.
func TestAFullOutputHoldsUpNoReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxSessionOutput: 100_000, DefaultWriteTimeout: -1})
		HandlePull(srv.PullRouter, "/a", func(PullCtx, *string) (string, Xerror) {
			return strings.Repeat("y", 50_000), nil
		})
		s := newStranger(t, srv, 1000)
		go s.pulls(200, "/a", strings.Repeat("x", 10_000))
		synctest.Wait()
		cn := s.sess.conn.Load()
		require.True(t, cn.sock.OutputFull())
		require.True(t, cn.resting.Load(), "%d bytes of pulls wait", cn.queue.PullBytes())

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan Xerror)
		go func() { ended <- s.sess.PullContext(ctx, "/back", "", nil).Xerror }()
		synctest.Wait()
		require.False(t, cn.resting.Load(), "somebody waits for a reply, or to send what is replied to")
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.NoError(t, s.sess.Close())
		synctest.Wait()
		require.Zero(t, used(srv))
	})
}

// A few that have sent the beginnings of large bodies, and wait, end when others need the
// memory. Who is good is served at any time.
func TestHalfSentBodiesStarveNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, &PeerConfig{MaxBufferedBytes: 64 << 20, FrameTimeout: time.Hour})
		pullFn(srv, echo)
		large := strings.Repeat("x", 15<<20)
		frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypePull,
			Uri: "/fn/call"}, Body: large[:2<<20]}, packet.Limits{})
		require.NoError(t, err)
		var strangers []*stranger
		for range 17 {
			s := newStranger(t, srv, 0)
			strangers = append(strangers, s)
			go func() { _, _ = s.Write(frame[:len(frame)-1000]) }()
			go func() { _, _ = io.Copy(io.Discard, s) }()
		}
		synctest.Wait()
		good, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		var got string
		for range 10 {
			require.Nil(t, good.Pull("/fn/call", large[:10_000], &got).Xerror)
		}
		time.Sleep(2 * packet.Patience)
		for range 10 {
			cmd := good.Pull("/fn/call", large[:4<<20], &got)
			require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
		}
		require.LessOrEqual(t, srv.memory(), int64(64<<20))
		open := 0
		for _, s := range strangers {
			if s.sess.isOpen() {
				open++
			}
			_ = s.Close()
		}
		require.Less(t, open, len(strangers))
		require.Zero(t, used(srv))
	})
}

// No session takes so many handlers that another gets none.
func TestHandlersAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, release, ran := blockedPeer(t, PeerConfig{MaxHandlers: 1000, MaxSessionHandlers: 500})
		cli := newTestPeer(t, nil)
		done := make(chan *PullCmd, 5010)
		for range 10 {
			sess, _ := connect(t, cli, srv, pipe.Options{})
			for range 500 {
				sess.GoPull("/wait", "x", nil, done)
			}
		}
		synctest.Wait()
		require.Less(t, ran.Load(), int32(950), "an eighth is for those that run few")
		require.Greater(t, ran.Load(), int32(800))
		newcomer, _ := connect(t, cli, srv, pipe.Options{})
		before := ran.Load()
		for range 10 {
			newcomer.GoPull("/wait", "x", nil, done)
		}
		synctest.Wait()
		require.Positive(t, ran.Load()-before)
		close(release)
		synctest.Wait()
		require.Zero(t, used(srv))
	})
}

// What a header keeps alive is counted: URIs and metadata of pulls that run and of pushes
// that wait.
func TestHeadersAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, release, _ := blockedPeer(t, PeerConfig{MaxSessionHandlers: 100, MaxSessionInput: 1 << 20})
		sess, other := connect(t, withoutCredit(newTestPeer(t, nil)), srv, pipe.Options{})
		uri := "/wait?" + strings.Repeat("x", 50_000)
		done := make(chan *PullCmd, 50)
		for range cap(done) {
			sess.GoPull(uri, "x", nil, done)
		}
		synctest.Wait()
		require.Greater(t, srv.memory(), int64(50*50_000))
		for range 100 { // they take five times what may wait, so that the session ends meanwhile
			if x := sess.Push(uri, "x"); x != nil {
				require.Equal(t, StatusConnClosed, x.Code(), "%v", x)
				break
			}
		}
		<-other.Done()
		close(release)
		synctest.Wait()
		require.Zero(t, used(srv))
	})
}

// What a stranger may send before its handshake has passed is little, and is paid back.
func TestHandshakesHaveSmallLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failed error
		srv := newTestPeer(t, &PeerConfig{MaxBufferedBytes: 1 << 20}, hookPlugin("auth", "PostAccept",
			func(c interface{}) error {
				var token string
				_, failed = c.(ForeSession).Receive(&token)
				return failed
			}))
		pullFn(srv, echo)
		token := strings.Repeat("x", 60<<10)
		cli := newTestPeer(t, nil)
		for range 30 {
			conn, far := pipe.New(pipe.Options{})
			done := make(chan error, 1)
			go func() {
				_, err := srv.ServeConn(conn)
				done <- err
			}()
			sess, err := cli.ServeConn(far)
			require.NoError(t, err)
			require.Nil(t, sess.Push("/auth", token))
			require.NoError(t, <-done)
			var got string
			require.Nil(t, sess.Pull("/fn/call", token[:20<<10], &got).Xerror)
			_ = sess.Close()
			require.Zero(t, used(srv))
		}
		conn, far := pipe.New(pipe.Options{})
		go func() { _, _ = srv.ServeConn(conn) }()
		sess, err := cli.ServeConn(far)
		require.NoError(t, err)
		_ = sess.Push("/auth", token+token)
		synctest.Wait()
		require.ErrorIs(t, failed, packet.ErrTooLarge)
		require.Zero(t, used(srv))
	})
}

// Every handler whose caller gives up is told, whatever their number is, whatever the ids
// are, and whenever it asks.
func TestEveryCancelIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10_001
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: -1})
		ask := make(chan struct{})
		var told, not atomic.Int32
		HandlePull(srv.PullRouter, "/wait", func(ctx PullCtx, _ *string) (string, Xerror) {
			<-ask
			select {
			case <-ctx.Context().Done():
				told.Add(1)
			case <-time.After(time.Hour):
				not.Add(1)
			}
			return "", nil
		})
		sess, far := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan *PullCmd, n)
		for range n {
			sess.GoPullContext(ctx, "/wait", "", nil, done)
		}
		long := strings.Repeat("i", 1000)
		raw := sess.conn.Load().sock
		for _, id := range []string{long, "x", "x", "", "y"} {
			require.NoError(t, raw.WritePacket(&packet.Packet{Header: &packet.Header{Id: id,
				Type: packet.TypePull, Uri: "/wait"}}))
		}
		synctest.Wait()
		cancel()
		for i := range 5000 { // of pulls that are none
			require.NoError(t, raw.WritePacket(&packet.Packet{Header: &packet.Header{Id: fmt.Sprint("none",
				i), Type: packet.TypeCancel}}))
		}
		for _, id := range []string{long, "x", ""} {
			require.NoError(t, raw.WritePacket(&packet.Packet{Header: &packet.Header{Id: id,
				Type: packet.TypeCancel}}))
		}
		synctest.Wait()
		close(ask)
		synctest.Wait()
		require.EqualValues(t, n+4, told.Load())
		time.Sleep(2 * time.Hour)
		require.EqualValues(t, 1, not.Load(), "y, which nobody has cancelled")
		require.Zero(t, far.conn.Load().calls.Len())
		require.Zero(t, used(srv))
	})
}

// A cancel finds a quick handler that has held up its reader.
func TestCancelOfAQuickHandlerThatBlocks(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	var block atomic.Bool
	told := make(chan error, 1)
	HandlePull(srv.PullRouter, "/a", func(ctx PullCtx, _ *string) (string, Xerror) {
		if block.Load() {
			<-ctx.Context().Done()
			told <- ctx.Context().Err()
		}
		return "", nil
	})
	sess := dial(t, cli, srv)
	for range 10_000 {
		require.Nil(t, sess.Pull("/a", "", nil).Xerror)
		runtime.Gosched()
	}
	block.Store(true)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := sess.GoPullContext(ctx, "/a", "", nil, nil)
		cancel()
		require.ErrorIs(t, (<-cmd.Done()).Xerror, context.Canceled)
		if x := cmd.Xerror; !NotRun(x) {
			require.ErrorIs(t, <-told, context.Canceled)
		}
	}
}
